"""How a budget of products is spent on random vectors: what all estimates of traces share.

``"auto"`` makes the images of some vectors first, which all methods need and which tell what each
would achieve with the rest of the budget, and only then decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kpops.spectral.estimators.sketch import Act, Sketch, sphere
from kpops.spectral.scaling import power_of_two, raised

NAMES = {
    "hutchinson": "Hutchinson",
    "hutch++": "Hutch++",
    "xtrace": "XTrace",
    "xnystrace": "XNysTrace",
}
_CHUNK = 64


class Outcome(NamedTuple):
    """An estimate in units of the run, its standard error, the method and why that one."""

    estimate: float
    stderr: float
    method: str
    why: str


class Forms:
    """Quadratic forms of random vectors, and what they tell of the trace of the square."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.squares = 0.0
        self.n_squares = 0

    def add(self, samples: Tensor, squares: Tensor) -> None:
        """Take in forms, and independent estimates of the trace of the square."""
        self.samples.append(samples)
        self.squares += float(squares.sum())
        self.n_squares += squares.numel()

    @property
    def all(self) -> Tensor:
        """All forms."""
        return torch.cat(self.samples)

    def participation(self) -> float:
        """Participation ratio of a positive operator; NaN if nothing is known."""
        if not self.n_squares or not self.squares > 0:
            return math.nan
        return float(self.all.mean()) ** 2 / (self.squares / self.n_squares)


class TraceRun:
    """What both kinds of operator share: vectors, and the choice between estimates."""

    degree: int  # of the trace in the operator that is applied

    def __init__(self, dim: int, cost: float, method: str, rng: np.random.Generator, like: Tensor):
        self.dim, self.cost, self.method, self.rng, self.like = dim, cost, method, rng, like
        self.products = 0
        self.scale: float | None = None
        self.forms = Forms()
        self.sketch: Sketch | None = None
        self.why = "asked for"

    def unit(self, power: float) -> float:
        """What a power of the estimate is to be multiplied by: images are of about one."""
        return raised(self.scale or 1.0, self.degree * power)

    @property
    def num_matvecs(self) -> float:
        """Products with the operator so far."""
        return self.cost * self.products

    def spend(self, budget: float) -> None:
        """Use products up to the budget, given in products with the operator."""
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """The estimate from all products so far."""
        raise NotImplementedError

    def left(self, budget: float) -> int:
        """Products that the budget still allows."""
        return max(0, int((budget - self.num_matvecs) / self.cost + 1e-9))

    def _draw(self, k: int) -> Tensor:
        return sphere(self.rng, k, self.dim, self.like)

    def _chunks(self, k: int) -> Iterator[Tensor]:
        for start in range(0, k, _CHUNK):
            yield self._draw(min(_CHUNK, k - start))

    def _counted(self, act: Act, rows: Tensor) -> Tensor:
        self.products += len(rows)
        image = act(rows)
        size = power_of_two(image)
        if self.scale is None and image.any():
            self.scale = size
        return image if self.scale is None else image / self.scale

    def _room(self, k: int) -> int:
        """Vectors of `k` that the sketch has use for."""
        return max(0, min(k, self.dim - (len(self.sketch.probes) if self.sketch else 0)))

    def _take(self, probes: Tensor, images: Tensor) -> None:
        if self.sketch is None:
            self.sketch = Sketch(probes, images)
        else:
            self.sketch.grow(probes, images)

    def _settle(self, found: dict[str, tuple[float, float]]) -> Outcome:
        """The estimate asked for; for "auto" that of the smallest error bar."""
        if self.method != "auto":
            return Outcome(*found[self.method], self.method, self.why)
        sure = {name: e for name, e in found.items() if not math.isnan(e[1])} or found
        best = min(sure, key=lambda name: sure[name][1])
        bars = ", ".join(f"{NAMES[n]} {e[1] * self.unit(1):.3g}" for n, e in sure.items())
        return Outcome(*sure[best], best, f"{self.why}; error bars: {bars}")


def is_exact(sketch: Sketch) -> bool:
    """Whether every image is in the span of the others: the range of the operator is found."""
    return not sketch.left_out().axes.any()
