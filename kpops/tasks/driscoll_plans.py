"""Stimuli and responses of the 15 tasks of :func:`kpops.tasks.driscoll`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kpops.tasks.trials import Condition, Recipe


class Stimulus(NamedTuple):
    """One stimulus of every trial."""

    angle: np.ndarray  # (trial,)
    strength: np.ndarray  # (trial, modality)
    epochs: Sequence[str]  # in which it is shown


class Plan(NamedTuple):
    """Stimuli and responses of a task."""

    stimuli: list[Stimulus]
    response: np.ndarray  # (trial,) angle, NaN where fixation must be kept
    conditions: dict[str, Condition]  # besides directions


class _Conditions:
    """Conditions of trials: drawn, or the fixed ones of an evaluation set."""

    def __init__(self, recipe: Recipe, angles: str | ArrayLike, offset: float = 0.0) -> None:
        self.angle = recipe.angles(angles, offset)
        self.even = isinstance(angles, str) and angles == "even"
        self._generator = recipe.generator
        self._n = recipe.n_trials

    def binary(self, period: int) -> np.ndarray:
        """0 or 1 for each trial; in the evaluation set each for `period` trials in turn."""
        if self.even:
            return np.arange(self._n) // period % 2
        return self._generator.integers(2, size=self._n)

    def uniform(self, low: float, high: float, fixed: float) -> np.ndarray:
        """A number for each trial, `fixed` in the evaluation set."""
        if self.even:
            return np.full(self._n, fixed)
        return self._generator.uniform(low, high, self._n)


def pro(
    recipe: Recipe, angles: str | ArrayLike, *, shown: Sequence[str], anti: bool = False
) -> Plan:
    """One stimulus; respond in its direction or in the opposite one."""
    draw = _Conditions(recipe, angles)
    modality = draw.binary(1)
    return Plan(
        [Stimulus(draw.angle, np.eye(2)[modality], shown)],
        (draw.angle + np.pi * anti) % (2 * np.pi),
        {"modality": _modality(modality, 1)},
    )


def integration(
    recipe: Recipe, angles: str | ArrayLike, *, shown: Sequence[int], attended: Sequence[int]
) -> Plan:
    """Two stimuli; respond to the one that is stronger in the attended modalities.

    In a modality the strengths are m + c and m - c, with a mean m and a coherence c.
    """
    draw = _Conditions(recipe, angles)
    second = draw.angle + draw.uniform(np.pi / 2, 3 * np.pi / 2, np.pi)
    strengths = [_strengths(draw, 1), _strengths(draw, 2)]
    if len(attended) == 2:
        # Both modalities show one pair of strengths, apart from a difference that cancels.
        strengths = _split(draw, strengths[0])
    shows = np.isin([0, 1], shown)
    first, other = (np.stack(s, axis=-1) * shows for s in zip(*strengths, strict=True))
    total = [s[:, list(attended)].sum(axis=-1) for s in (first, other)]
    coherence = (first - other) / 2
    response = np.where(total[0] > total[1], draw.angle, second) % (2 * np.pi)
    return Plan(
        [Stimulus(draw.angle, first, ["stimulus1"]), Stimulus(second, other, ["stimulus2"])],
        response,
        {
            "coherence1": (coherence[:, 0], "half the difference of strengths in modality 1", "1"),
            "coherence2": (coherence[:, 1], "half the difference of strengths in modality 2", "1"),
        },
    )


def _strengths(draw: _Conditions, period: int) -> tuple[np.ndarray, np.ndarray]:
    mean, size = draw.uniform(0.8, 1.2, 1.0), draw.uniform(0.005, 0.8, 0.4)
    coherence = size * (1 - 2 * draw.binary(period))
    return mean + coherence, mean - coherence


def _split(
    draw: _Conditions, strengths: tuple[np.ndarray, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Strengths of both stimuli in each modality, whose means over modalities are `strengths`."""
    first, other = strengths
    shares = [draw.uniform(0.005, 0.8, 0.2) * (1 - 2 * draw.binary(2)) / 2 for _ in strengths]
    return [(first * (1 + s * shares[0]), other * (1 + s * shares[1])) for s in (1, -1)]


def match(recipe: Recipe, angles: str | ArrayLike, *, go_if: bool) -> Plan:
    """Respond to the second stimulus if its direction matches that of the first, or if not."""
    draw = _Conditions(recipe, angles)
    match = draw.binary(1) == 0
    second = draw.angle + np.where(match, 0, draw.uniform(np.pi / 9, 17 * np.pi / 9, np.pi))
    return _comparison(draw, second % (2 * np.pi), match == go_if)


def category(recipe: Recipe, angles: str | ArrayLike, *, go_if: bool) -> Plan:
    """Respond to the second stimulus if both are on the same half of the circle, or if not."""
    # A quarter of the spacing keeps even directions off the border of the categories.
    draw = _Conditions(recipe, angles, offset=0.25)
    if draw.even:  # mirrored in the same category, or opposite in the other
        second = np.where(draw.binary(1) == 0, np.pi - draw.angle, draw.angle + np.pi)
    else:
        second = draw.uniform(0, 2 * np.pi, 0.0)
    second = second % (2 * np.pi)
    match = (draw.angle % (2 * np.pi) < np.pi) == (second < np.pi)
    return _comparison(draw, second, match == go_if)


def _comparison(draw: _Conditions, second: np.ndarray, go: np.ndarray) -> Plan:
    first, other = draw.binary(2), draw.binary(4)
    return Plan(
        [
            Stimulus(draw.angle, np.eye(2)[first], ["stimulus1"]),
            Stimulus(second, np.eye(2)[other], ["response"]),
        ],
        np.where(go, second, np.nan),
        {"modality": _modality(first, 1), "modality2": _modality(other, 2)},
    )


def _modality(modality: np.ndarray, number: int) -> Condition:
    return modality + 1, f"modality of stimulus {number}", "1"
