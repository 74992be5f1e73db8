"""What every iterative solver is told, and how it decides that it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kpops import work
from kpops.linalg.rounding import noise_floor

# A residual says that there is an eigenvalue so near, not that it is the one looked for: in nearly
# flat spectra the one looked for may be several times further away.
_MARGIN = 0.1


class Progress(NamedTuple):
    """What a callback is told.

    Attributes
    ----------
    num_matvecs : int
        Products so far.
    values : ndarray
        The leading eigenvalues or singular values as they are now; NaN for those not in sight.
    residuals : ndarray
        Their residuals, relative to the largest value.
    """

    num_matvecs: int
    values: np.ndarray
    residuals: np.ndarray


@dataclass
class Search:
    """The k modes of largest magnitude that are looked for, and what that may cost.

    Parameters
    ----------
    k : int
        Number of modes.
    tol : float
        Relative residual to reach.
    budget : int
        Products at most.
    rng : numpy.random.Generator
        Source of start vectors.
    callback : callable, optional
        Called with a :class:`Progress` after each look; if it returns True, the search ends.
    squares : bool
        Whether the values are squares of the singular values that are wanted.
    floor : float
        Least value that the tolerance is relative to.
    rounding : float
        Relative residual below which rounding decides.
    near : Tensor, optional
        Start vectors (problem, vector, entry) in which the modes are guessed to lie.
    ended : callable, optional
        Told the largest magnitude in sight and the products so far, says whether that is enough.

    Attributes
    ----------
    aim : float
        Relative residual at which a mode counts as found.
    spent : int
        Products so far.
    distance : float
        Decades by which the largest residual of a leading mode was too large at the last look.
    """

    k: int
    tol: float
    budget: int
    rng: np.random.Generator
    callback: Callable[[Progress], Any] | None = None
    squares: bool = False
    floor: float = 0.0
    rounding: float = 0.0
    near: Tensor | None = None
    ended: Callable[[float, int], bool] | None = None

    def __post_init__(self) -> None:
        self.aim = _MARGIN * self.tol
        self.spent = 0
        self.over = False
        self.distance = math.inf

    def spend(self, n: int) -> None:
        """Count products."""
        self.spent += n

    @property
    def stopped(self) -> bool:
        """Whether the budget, the callback or Ctrl-C ended the search."""
        return self.over or work.interrupted()

    def can_afford(self, n: int) -> bool:
        """Whether so many more products are within the budget."""
        self.over |= self.spent + n > self.budget
        return not self.stopped

    def look(self, values: Tensor, residuals: Tensor) -> tuple[Tensor, int]:
        """Choose the leading modes, and decide how many of them are found.

        Parameters
        ----------
        values, residuals : Tensor
            Of the approximate modes in sight, (problem, mode).

        Returns
        -------
        chosen : Tensor
            Positions of the leading modes among all, flattened.
        n_certified : int
            How many of them, from the first on, are converged with no larger one in hiding.
        """
        size = values.abs().flatten()
        chosen = size.argsort(descending=True)[: self.k]
        leading, gaps = size[chosen], residuals.flatten()[chosen]
        scale = size.max().clamp_min(self.floor)
        unconverged = residuals.flatten() > self._slack(size, scale)
        tiny = torch.finfo(scale.dtype).tiny
        far = (gaps / self._slack(leading, scale).clamp_min(tiny)).max()
        self.distance = math.log10(max(1.0, float(far)))
        if len(values) == 1:  # of one problem the leading modes converge first
            found = ~unconverged[chosen]
        else:  # of several each has its own pace
            reach = torch.where(unconverged, size + residuals.flatten(), 0).max()
            found = ~unconverged[chosen] & (leading + self._slack(leading, scale) >= reach)
        self._tell(values.flatten()[chosen], gaps, scale, int(found.sum()))
        if self.ended is not None and self.ended(float(size.max()), self.spent):
            return chosen, len(chosen)
        return chosen, int(found.long().cumprod(0).sum())

    def _slack(self, size: Tensor, scale: Tensor) -> Tensor:
        """Residuals that are small enough."""
        # ||A u - s v|| = ||A*A v - s^2 v|| / s, down to where A*A has lost it.
        wanted = scale.expand_as(size) if not self.squares else (size * scale).sqrt()
        return (self.aim * wanted).clamp_min(float(self.rounding * scale))

    def _tell(self, values: Tensor, residuals: Tensor, scale: Tensor, found: int) -> None:
        tiny = torch.finfo(scale.dtype).tiny
        worst = float(residuals.max() / scale.clamp_min(tiny))
        left = f"{found} of {self.k} modes" if self.ended is None else "certifying"
        work.tell(f"{left}, residual {worst:.1e} of {self.aim:.1e}")
        if self.callback is None:
            return
        absent = values.new_full((self.k - len(values),), torch.nan)
        relative = residuals / scale.clamp_min(tiny)
        if self.squares:
            values = values.clamp_min(0).sqrt()
        told = (torch.cat([part, absent]).cpu().numpy() for part in (values, relative))
        self.over |= bool(self.callback(Progress(self.spent, *told)))


class LeadingModes(NamedTuple):
    """Leading modes of an operator ``unit * A``, and what is certain of them.

    Attributes
    ----------
    values : Tensor, shape (mode,)
        Eigenvalues or singular values of A; NaN for modes that were not found.
    vectors : tuple of Tensor, shape (mode, *dims)
        The eigenvectors, or the left and the right singular vectors.
    unit : float
        The scale of the operator.
    residual, converged, cluster : Tensor, shape (mode,)
        Relative residuals; whether they meet the tolerance with no larger mode missing; numbers
        that modes share which are not told apart.
    method, chosen : str
        How they were found, and why so.
    num_matvecs : int
        Products with the operator.
    """

    values: Tensor
    vectors: tuple[Tensor, ...]
    unit: float
    residual: Tensor
    converged: Tensor
    cluster: Tensor
    method: str
    chosen: str
    num_matvecs: int


def verdict(residual: Tensor, tol: float, what: str, n_certified: int) -> Tensor:
    """Which modes meet the tolerance, of the first `n_certified` ones.

    Warns if some do not.
    """
    converged = residual <= max(tol, noise_floor(residual.dtype))  # NaN counts as not converged
    converged[n_certified:] = False
    if not converged.all():
        work.warn_unconverged(
            f"{what}{' was interrupted' * work.interrupted()}: {int((~converged).sum())} of "
            f"{len(converged)} modes did not reach the relative residual {tol:g}, or larger modes "
            "may be missing; the variable 'converged' marks them"
        )
    return converged
