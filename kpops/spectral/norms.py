"""Norms of operators, exact or with an error bar."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.linalg.budget import Estimate, estimated
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.exact import exact_frobenius, is_exact, singular_values
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.quadrature import gauss_rule
from kpops.linalg.scaling import normalized
from kpops.linalg.symmetry import is_self_adjoint
from kpops.linalg.traces.gram import gram_trace, squared_gram_trace
from kpops.linalg.traces.registry import METHODS
from kpops.linalg.triplets import singular_triplets
from kpops.maturity import experimental
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import check_real
from kpops.scalars import generator as seeded
from kpops.spectral._result import check, configuration, scalar_dataset
from kpops.spectral.traces import exact_answer, feasible, trace

_FROBENIUS = {"auto": 2, "exact": 2} | {name: method.least for name, method in METHODS.items()}
_SCHATTEN = {"auto": 8, "exact": 2, "lanczos": 8}
_PROBES = 8
"""Least number of random vectors of a Gauss rule; the other matvecs are its steps."""


@experimental
@in_full_precision
@work.shown
def frobenius_norm(
    op: Any,
    *,
    method: str = "auto",
    num_matvecs: int | None = None,
    tol: float | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Frobenius norm of any operator: the root of the sum of its squared singular values.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    method : {"auto", "exact", "hutchinson", "xtrace", "xnystrace"}
        As for :func:`kpops.trace`, which estimates the trace of ``A* A`` here.
    num_matvecs, tol, rng, progress
        As for :func:`kpops.trace`.

    Returns
    -------
    Dataset
        ``estimate`` and its standard error ``stderr``; attributes as for :func:`kpops.trace`, with
        the participation ratio of ``A* A``.

    Raises
    ------
    ValueError, MemoryError
        As for :func:`kpops.trace`, but any shape of `op` will do.

    Warns
    -----
    ConvergenceWarning
        If `tol` was not reached.

    Notes
    -----
    ``||A z||^2`` has the mean ``||A||_F^2``, so matvecs with A alone suffice. To first order, the
    relative standard error of the root is half that of the square. For P the square is the sum of
    the traces of its observability Gramians.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> float(kpops.frobenius_norm(np.diag([3.0, 4.0])).estimate)
    5.0
    """
    op = as_operator(op, spread=True)
    rng = seeded(rng, op.parts)
    budget = check(method, _FROBENIUS, num_matvecs, tol)
    method = feasible(op, method)
    answer = exact_answer(exact_frobenius, op, method)
    if answer is None:
        factor, act = SpectralProblem(op).factor, None
        if factor is None:
            run = gram_trace(op, 1.0, method, rng)
        else:  # A = F F*: the trace of (F* F)^2
            run, act = squared_gram_trace(factor, 1.0, method, rng)
        answer = estimated(run, budget, tol, positive=True, power=0.5)
        if act is not None:  # its scale is known once it has run
            answer = answer._replace(unit=act.scale * answer.unit)
    settings = {"method": method, "num_matvecs": budget, "tol": tol}
    return scalar_dataset(op, "frobenius_norm", answer, "Frobenius norm", settings)


@experimental
@in_full_precision
@work.shown
def schatten_norm(
    op: Any,
    p: float,
    *,
    method: str = "auto",
    num_matvecs: int | None = None,
    tol: float | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Schatten norm of any operator: the p-norm of its singular values.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    p : float
        At least 1: 1 is the nuclear norm, 2 the Frobenius norm, infinity the spectral norm.
    method : {"auto", "exact", "lanczos"}
        ``"exact"`` computes all singular values; ``"lanczos"`` makes Gauss rules of the spectrum
        from random vectors. ``"auto"`` is exact where that is cheap. Otherwise it is
        :func:`kpops.frobenius_norm` for p = 2, :func:`kpops.spectral_norm` for infinite p,
        :func:`kpops.trace` for p = 1 if `op` is known to be positive, the mean of ``||A* A z||^2``
        for p = 4, and ``"lanczos"`` for the rest.
    num_matvecs, tol, rng, progress
        As for :func:`kpops.trace`; an infinite p ignores `num_matvecs`.

    Returns
    -------
    Dataset
        ``estimate`` and its standard error ``stderr``; attributes as for :func:`kpops.trace`.

    Raises
    ------
    ValueError, MemoryError
        As for :func:`kpops.frobenius_norm`, or if `p` is below 1.

    Warns
    -----
    ConvergenceWarning
        If `tol` was not reached.

    Notes
    -----
    Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017) sums ``sigma^p`` over the spectrum.
    The standard error combines the variance of a form ``z* f(A) z`` of a vector on the sphere,
    ``2 (tr f(A)^2 - (tr f(A))^2 / n)``, estimated from the same rules, and twice the change of the
    mean when a quarter of the steps is left out. With a tolerance, each round makes new rules from
    as many matvecs as all rounds before. Where the spectrum decays, few vectors leave an error of
    the order of the largest singular value's share.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> float(kpops.schatten_norm(np.diag([3.0, -4.0]), 1).estimate)
    7.0
    """
    op, rng = as_operator(op), seeded(rng)
    if not isinstance(p, numbers.Real) or not p >= 1:
        raise ValueError(f"p={p!r}: choose p from 1 to infinity, where Schatten norms are defined")
    budget = check(method, _SCHATTEN, num_matvecs, tol)
    name = f"Schatten norm (p = {p:g})"
    settings = {"method": method, "num_matvecs": budget, "tol": tol, "p": float(p)}
    exact = method == "exact" or (method == "auto" and (min(op.shape) < 2 or is_exact(op)))
    options = {"num_matvecs": budget, "tol": tol, "rng": rng}
    if not exact and method == "auto":
        special = _special(op, p, options)
        if special is not None:
            special.estimate.attrs["long_name"] = name
            own = configuration(op, what="schatten_norm", **settings)["configuration"]
            return special.assign_attrs(configuration=own)
    if exact:
        spectrum = singular_values(op)
        norm = _p_norm(spectrum.values.double(), p)
        answer = Estimate(norm, 0.0, "exact", spectrum.how, spectrum.num_matvecs)
    elif method == "auto" and p == 4:
        smaller = SpectralProblem(op, symmetric=False).factor
        assert smaller is not None
        run, act = squared_gram_trace(smaller, 2.0, "auto", rng)
        answer = estimated(run, budget, tol, positive=True, power=0.25)
        answer = answer._replace(unit=math.sqrt(act.scale) * answer.unit)
    elif p == math.inf:
        raise ValueError("p=inf: Gauss rules have no largest value; use method='auto'")
    else:
        answer = estimated(_Rules(op, float(p), rng), budget, tol, positive=False)
    return scalar_dataset(op, "schatten_norm", answer, name, settings)


@in_full_precision
@work.shown
def spectral_norm(
    op: Any, *, tol: float = 1e-6, rng: Any = None, progress: bool = False
) -> xr.Dataset:
    """Spectral norm of any operator: its largest singular value.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    tol : float
        Relative residual to reach where the norm is not exact.
    rng, progress
        As for :func:`kpops.eigsh`.

    Returns
    -------
    Dataset
        ``estimate``, and ``stderr``, here no standard error but an error bound: some singular value
        lies within this residual norm. Attributes as for :func:`kpops.trace`, and ``converged``.

    Raises
    ------
    ValueError
        If `tol` is out of range, or `op` is not finite.

    Warns
    -----
    ConvergenceWarning
        If `tol` was not reached.

    Notes
    -----
    The leading mode of :func:`kpops.eigsh` if `op` is self-adjoint, of :func:`kpops.svds` if not.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> float(kpops.spectral_norm(np.diag([3.0, -4.0])).estimate)
    4.0
    """
    op = as_operator(op, spread=True)
    check_real("tol", tol)
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol!r}: choose a relative residual between 0 and 1")
    if min(op.shape) == 0 or is_exact(op):
        spectrum = singular_values(op)
        norm = float(spectrum.values[0]) if spectrum.values.numel() else 0.0
        answer = Estimate(norm, 0.0, "exact", spectrum.how, spectrum.num_matvecs, converged=True)
    else:
        symmetric = is_self_adjoint(op)
        modes = (eigenpairs if symmetric else singular_triplets)(op, 1, Options(tol=tol, rng=rng))
        size = abs(float(modes.values[0]))
        error, converged = size * float(modes.residual[0]), bool(modes.converged[0])
        how = (modes.method, modes.chosen, modes.num_matvecs)
        answer = Estimate(size, error, *how, converged=converged, unit=modes.unit)
    return scalar_dataset(op, "spectral_norm", answer, "spectral norm", {"tol": tol})


class _Rules:
    """The sum of ``sigma^p`` from Gauss rules, which every budget replaces."""

    def __init__(self, op: TrajectoryOperator, p: float, rng: np.random.Generator) -> None:
        self.p, self.rng = p, rng
        self.op, self.scale = normalized(op)
        self.symmetric = is_self_adjoint(op)
        self.num_matvecs = 0.0
        self.found = (math.nan, math.nan)

    def spend(self, budget: float) -> None:
        """Use matvecs up to the budget."""
        left = int(budget - self.num_matvecs) // (1 if self.symmetric else 2)
        probes = max(min(_PROBES, left // 2), int(math.sqrt(left)))
        if probes < 2:
            return
        steps = max(1, left // probes)
        rule = gauss_rule(
            self.op, num_probes=probes, steps=steps, rng=self.rng, symmetric=self.symmetric
        )
        self.num_matvecs += rule.num_matvecs
        scale = float(rule.nodes.abs().max())
        if scale == 0:
            self.found = 0.0, 0.0
            return

        def power(values: Tensor) -> Tensor:
            return (values.abs() / scale) ** self.p

        mean = float(rule.sums(power).mean())
        change = mean - float(rule.coarse.sums(power).mean()) if rule.coarse else 0.0
        # The variance of a form of a vector on the sphere; the scatter of so few says less.
        squares = float(rule.sums(lambda values: power(values).square()).mean())
        size = float(rule.weights.sum(1).mean())
        variance = 2 * max(squares - mean**2 / size, 0.0) / probes
        error = math.hypot(math.sqrt(variance), 2 * change)
        norm = scale * mean ** (1 / self.p)
        self.found = norm, norm * error / mean / self.p

    def participation(self) -> float:
        """Not known."""
        return math.nan

    def unit(self, power: float) -> float:
        """Factor of the norm."""
        return self.scale**power

    def outcome(self) -> tuple[float, float, str, str]:
        """The norm from the last rule."""
        return *self.found, "lanczos", "no special method for this p"


def _special(op: TrajectoryOperator, p: float, options: dict[str, Any]) -> xr.Dataset | None:
    """The norm by a function made for this p, if there is one."""
    if p == 2:
        return frobenius_norm(op, **options)
    if p == math.inf:
        return spectral_norm(op, tol=options["tol"] or 1e-6, rng=options["rng"])
    if p == 1 and op.positive:
        return trace(op, **options)
    return None


def _p_norm(values: Tensor, p: float) -> float:
    largest = float(values.max()) if values.numel() else 0.0
    if p == math.inf or largest == 0:
        return largest
    return largest * float(torch.sum((values / largest) ** p)) ** (1 / p)


@as_method
def norm(op: TrajectoryOperator, kind: str = "frobenius", **options: Any) -> xr.Dataset:
    """Norm of this operator, by its name.

    Parameters
    ----------
    kind : {"frobenius", "spectral"}
        :func:`kpops.frobenius_norm` or :func:`kpops.spectral_norm`; see :func:`kpops.schatten_norm`
        for the others.
    **options
        Of that function.

    Returns
    -------
    Dataset
    """
    norms = {"frobenius": frobenius_norm, "spectral": spectral_norm}
    if kind not in norms:
        raise ValueError(
            f"kind={kind!r}: choose 'frobenius' or 'spectral'; see also kpops.schatten_norm"
        )
    return norms[kind](op, **options)
