"""What an iterative solver looks for, and how it decides that it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kpops import work
from kpops.linalg.rounding import noise_floor

# A residual bounds the distance to some eigenvalue, not to the one wanted: in nearly flat spectra
# that one may be several times further away.
_MARGIN = 0.1


class Progress(NamedTuple):
    """What a callback receives.

    Attributes
    ----------
    num_matvecs : int
        Matvecs so far.
    values : ndarray
        The current leading eigenvalues or singular values; NaN for those not seen yet.
    residuals : ndarray
        Their residuals, relative to the largest value.
    """

    num_matvecs: int
    values: np.ndarray
    residuals: np.ndarray


@dataclass
class Search:
    """The k modes of largest magnitude, to a relative residual `tol` within a budget of matvecs.

    Parameters
    ----------
    rng
        Source of start vectors.
    callback
        Called with a :class:`Progress` after each look; if it returns True, the search ends.
    squares
        Whether the values are squares of the singular values that are wanted.
    rounding
        Relative residual below which rounding decides.
    near
        Start vectors, near which the modes are expected.

    Attributes
    ----------
    aim : float
        Relative residual at which a mode counts as found.
    spent : int
        Matvecs so far.
    distance : float
        Decades by which the largest residual of a leading mode was too large at the last look.
    """

    k: int
    tol: float
    budget: int
    rng: np.random.Generator
    callback: Callable[[Progress], Any] | None = None
    squares: bool = False
    rounding: float = 0.0
    near: Float[Tensor, "problem vector entry"] | None = None

    def __post_init__(self) -> None:
        self.aim = _MARGIN * self.tol
        self.spent = 0
        self.over = False
        self.distance = math.inf

    def spend(self, n: int) -> None:
        """Count matvecs."""
        self.spent += n

    @property
    def stopped(self) -> bool:
        """Whether the budget, the callback or Ctrl-C ended the search."""
        return self.over or work.interrupted()

    def can_afford(self, n: int) -> bool:
        """Whether the budget allows n more matvecs."""
        self.over |= self.spent + n > self.budget
        return not self.stopped

    def look(
        self, values: Float[Tensor, "problem mode"], residuals: Float[Tensor, "problem mode"]
    ) -> tuple[Int[Tensor, " leading"], int]:
        """Choose the leading modes, and decide how many of them are found.

        Returns their positions among all, flattened, and how many, from the first on, have
        converged with no larger one hidden.
        """
        size = values.abs().flatten()
        chosen = size.argsort(descending=True)[: self.k]
        leading, gaps = size[chosen], residuals.flatten()[chosen]
        scale = size.max()
        unconverged = residuals.flatten() > self._slack(size, scale)
        tiny = torch.finfo(scale.dtype).tiny
        far = (gaps / self._slack(leading, scale).clamp_min(tiny)).max()
        self.distance = math.log10(max(1.0, float(far)))
        if len(values) == 1:  # in one problem the leading modes converge first
            found = ~unconverged[chosen]
        else:  # each of several has its own pace
            reach = torch.where(unconverged, size + residuals.flatten(), 0).max()
            found = ~unconverged[chosen] & (leading + self._slack(leading, scale) >= reach)
        self._report(values.flatten()[chosen], gaps, scale, int(found.sum()))
        return chosen, int(found.long().cumprod(0).sum())

    def _slack(self, size: Float[Tensor, " mode"], scale: Float[Tensor, ""]) -> Tensor:
        """Residuals that are small enough."""
        # ||A u - s v|| = ||A*A v - s^2 v|| / s, down to where A*A has lost it.
        wanted = scale.expand_as(size) if not self.squares else (size * scale).sqrt()
        return (self.aim * wanted).clamp_min(float(self.rounding * scale))

    def _report(self, values: Tensor, residuals: Tensor, scale: Tensor, found: int) -> None:
        tiny = torch.finfo(scale.dtype).tiny
        worst = float(residuals.max() / scale.clamp_min(tiny))
        work.tell(f"{found} of {self.k} modes, residual {worst:.1e} of {self.aim:.1e}")
        if self.callback is None:
            return
        absent = values.new_full((self.k - len(values),), torch.nan)
        relative = residuals / scale.clamp_min(tiny)
        if self.squares:
            values = values.clamp_min(0).sqrt()
        shown = (torch.cat([part, absent]).cpu().numpy() for part in (values, relative))
        self.over |= bool(self.callback(Progress(self.spent, *shown)))


class LeadingModes(NamedTuple):
    """Leading modes of an operator ``unit * A``; NaN for modes that were not found.

    Attributes
    ----------
    values
        Eigenvalues or singular values of A.
    vectors
        The eigenvectors, or the left and the right singular vectors.
    residual, converged, cluster
        Relative residuals; whether they meet the tolerance with no larger mode missing; a number
        that modes share which cannot be told apart.
    method, chosen
        How they were found, and why by that method.
    """

    values: Float[Tensor, " mode"]
    vectors: tuple[Float[Tensor, " mode *dims"], ...]
    unit: float
    residual: Float[Tensor, " mode"]
    converged: Bool[Tensor, " mode"]
    cluster: Int[Tensor, " mode"]
    method: str
    chosen: str
    num_matvecs: int


def padded(k: int, *parts: Shaped[Tensor, "mode ..."]) -> tuple[Shaped[Tensor, "{k} ..."], ...]:
    """Append NaN for modes that were not found."""
    missing = k - len(parts[0])
    if not missing:
        return parts
    return tuple(torch.cat([p, p.new_full((missing, *p.shape[1:]), torch.nan)]) for p in parts)


def verdict(
    residual: Float[Tensor, " mode"], tol: float, what: str, n_certified: int
) -> Bool[Tensor, " mode"]:
    """Which of the first `n_certified` modes meet the tolerance; warn if some do not."""
    converged = residual <= max(tol, noise_floor(residual.dtype))  # NaN counts as not converged
    converged[n_certified:] = False
    if not converged.all():
        work.warn_unconverged(
            f"{what}{' was interrupted' * work.interrupted()}: {int((~converged).sum())} of "
            f"{len(converged)} modes did not reach the relative residual {tol:g}, or larger modes "
            "may be missing; the variable 'converged' marks them"
        )
    return converged
