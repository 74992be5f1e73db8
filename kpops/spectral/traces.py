"""Trace and diagonal of an operator: exact where its structure allows, else from random vectors."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.linalg.budget import Estimate, empty, estimated, rows_of
from kpops.linalg.diagonal import Actions, Diagonal
from kpops.linalg.exact import exact_diagonal, exact_trace
from kpops.linalg.quadrature import seek_negative
from kpops.linalg.symmetry import is_self_adjoint
from kpops.linalg.traces.auto import TraceEstimate
from kpops.linalg.traces.gram import gram_trace
from kpops.linalg.traces.registry import METHODS
from kpops.linalg.traces.runs import PlainTrace
from kpops.maturity import experimental
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import generator as seeded
from kpops.spectral._result import check, identity, provenance, scalar_dataset, undone

_TRACE = {"auto": 2, "exact": 2} | {name: method.least for name, method in METHODS.items()}
_DIAGONAL = {"auto": 2, "exact": 2, "hutchinson": 2, "xdiag": 4}


@as_method
@in_full_precision
@work.shown
def trace(
    op: Any,
    *,
    method: str = "auto",
    num_matvecs: int | None = None,
    tol: float | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Trace of a square operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        n x n.
    method : {"auto", "exact", "hutchinson", "xtrace", "xnystrace"}
        ``"exact"`` uses the structure, or makes the matrix; the others are estimates, and
        ``"xnystrace"`` is for positive semi-definite operators: if `op` is not known to be one, 33
        further products look for a negative eigenvalue first. ``"auto"`` is exact where that is
        cheap (K, P and its inverse, blocks of a size up to 1024), and else learns from a part of
        the products what each of Hutchinson, XTrace and, if `op` is known to be positive,
        XNysTrace would make of the rest.
    num_matvecs : int, optional
        Products with `op`: 64, or at most 1024 with `tol`.
    tol : float, optional
        Add products until the standard error is at most this fraction of the estimate.
    rng : int, Generator or None
        Source of the random vectors.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        ``estimate`` and its standard error ``stderr``, 0 if exact: ``estimate +- 2 stderr`` is
        meant to hold the trace in 95 % of all cases. Both are in the dtype of `op`, or in float64
        if that cannot hold them. Attributes: ``method``, what was
        used; ``chosen``, why; ``num_matvecs``, products used, halves where only one factor of
        ``op = R R*`` was applied; ``a_priori``, the relative standard error ``sqrt(2 / (m PR))`` of
        Gaussian Hutchinson with as many products m, PR being the participation ratio estimated from
        the same products (NaN if exact or not known to be positive); with `tol`, ``converged``.

    Raises
    ------
    ValueError
        If `op` is not square or not finite, an option is unknown or out of range, or XNysTrace is
        asked for and `op` is not positive semi-definite.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If `tol` was not reached.

    Notes
    -----
    Where ``op = R R*`` is known, as of the flow operator, its trace is that of ``R* R`` in the
    smaller of the two spaces, ``||R w||^2`` is a sample of it for half a product, and XNysTrace
    needs no shift. Methods: Hutchinson (1990), with vectors on the sphere; Epperly, Tropp and
    Webber (2024), XTrace, arXiv 2301.07825. Their error bars are corrected for the covariance
    of the leave-one-out estimates, which the paper leaves out. As the scatter of few samples is
    uncertain itself, standard errors are widened by Student's t, at half of the degrees of
    freedom of normal samples since quadratic forms have heavier tails: sevenfold from 2
    samples, by half from 8, by 4 % from 64; those of plain forms also by their skewness. An
    interval of two standard errors then held the trace in 91 to 100 % of 200 seeds, 97 % in the
    mean, by each of the methods at 8, 16, 32 and 64 products over six spectra. A tolerance is
    taken as met when two successive rounds, of twice as many products each, meet it and agree
    within twice their combined error; where the spectrum drops just at the number of vectors of
    a round, that may still be fooled.

    Where the leading eigenvalues hold the sum of the squares, XTrace and XNysTrace are more
    accurate by orders of magnitude. If they come in clusters of more than `num_matvecs`, about one
    per unit, no approximation of low rank pays, and twice as many vectors at half the price do.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> float(kpops.trace(np.diag([3.0, 2.0, 1.0])).estimate)
    6.0
    >>> decaying = np.diag(0.7 ** np.arange(500))
    >>> result = kpops.trace(decaying, method="xnystrace", num_matvecs=60, rng=0)
    >>> abs(float(result.estimate) - 1 / 0.3) < 1e-6
    True
    """
    op, generator = square(op), seeded(rng)
    budget = check(method, _TRACE, num_matvecs, tol)
    root = op.root
    if _trivial(op, root):
        method = "exact"
    if method == "xnystrace" and not is_self_adjoint(op):
        raise ValueError(
            f"{op!r} is not self-adjoint, and method='xnystrace' is for positive semi-definite "
            "operators: use method='xtrace'"
        )
    before = op.num_matvecs
    exact = exact_trace(op, method) if method in ("auto", "exact") else None
    if exact is not None:
        answer = Estimate(exact[0], 0.0, "exact", exact[1], op.num_matvecs - before)
    else:
        positive = op.positive or method == "xnystrace"
        if tol is None:
            work.expect(budget * (1 if root is None else 2))
        if root is not None:
            run = gram_trace(root, 0.5, method, generator)
        else:
            act, like = rows_of(op.apply, op.domain.shape), empty(op)
            run = TraceEstimate(PlainTrace(act, op.shape[0], positive, generator, like), method)
        sought = 0
        if method == "xnystrace":
            sought = seek_negative(op, generator, "use method='xtrace' or 'hutchinson'")
        answer = estimated(run, budget, tol, positive=positive)
        answer = answer._replace(num_matvecs=answer.num_matvecs + sought)
    settings = {"method": method, "num_matvecs": budget, "tol": tol}
    return scalar_dataset(op, "trace", answer, "trace", settings)


@experimental
@in_full_precision
@work.shown
def diagonal(
    op: Any,
    *,
    method: str = "auto",
    num_matvecs: int | None = None,
    tol: float | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Diagonal of a square operator, as a field over its dims.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        n x n.
    method : {"auto", "exact", "hutchinson", "xdiag"}
        ``"exact"`` uses the structure, or makes the matrix. ``"auto"`` is exact where that is cheap
        (K, P and its inverse, blocks of a size up to 1024), and else learns from half of the
        products whether XDiag pays.
    num_matvecs : int, optional
        Products with `op` and its adjoint: 64, or at most 1024 with `tol`.
    tol : float, optional
        Add products until the norm of all standard errors is at most this fraction of the norm of
        the estimate.
    rng : int, Generator or None
        Source of the random vectors.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        ``estimate`` and ``stderr`` over the dims of `op`. Attributes as of :func:`kpops.trace`,
        without ``a_priori``.

    Raises
    ------
    ValueError
        If `op` is not square, or an option is unknown or out of range.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If `tol` was not reached.

    Notes
    -----
    Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix: the mean of ``w o
    A w`` over vectors of signs w, o being the product entry by entry. Where ``A = R R*`` is known,
    so is the mean of ``(R w) o (R w)``, from half a product and of a relative error of at most
    ``sqrt(2)`` per vector, however strongly an entry is coupled to others. XDiag: Epperly, Tropp
    and Webber (2024), arXiv 2301.07825, section 2.4.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(1, 4, 2))
    >>> diagonal = kpops.diagonal(lin.flow)
    >>> diagonal.estimate.dims
    ('trial', 'time', 'unit')
    >>> bool(abs(diagonal.estimate.sum() / kpops.trace(lin.flow).estimate - 1) < 1e-5)
    True
    """
    op, generator = square(op), seeded(rng)
    budget = check(method, _DIAGONAL, num_matvecs, tol)
    root = op.root
    if _trivial(op, root):
        method = "exact"
    before = op.num_matvecs
    exact = exact_diagonal(op, method) if method in ("auto", "exact") else None
    if exact is not None:
        values, chosen = exact
        answer = Estimate(
            values, torch.zeros_like(values), "exact", chosen, op.num_matvecs - before
        )
    else:
        actions = Actions(
            rows_of(op.apply, op.domain.shape),
            rows_of(op.apply_adjoint, op.domain.shape),
            op.shape[0],
            rows_of(root.apply, root.domain.shape) if root is not None else None,
            root.shape[1] if root is not None else 0,
        )
        run = Diagonal(actions, method, generator, empty(op))
        answer = estimated(run, budget, tol, positive=False)
    settings = {"method": method, "num_matvecs": budget, "tol": tol}

    def field(values: Tensor, name: str) -> xr.DataArray:
        array = undone(values.reshape(op.domain.shape), answer.unit, op, name)
        return op.domain.label(array, long_name=name)

    attrs = provenance(op, "diagonal", answer, settings)
    del attrs["a_priori"]
    estimate, stderr = field(answer.estimate, "diagonal"), field(answer.stderr, "standard error")
    coords = identity(op)
    return xr.Dataset({"estimate": estimate, "stderr": stderr}, coords, attrs)


def square(op: Any) -> TrajectoryOperator:
    """Refuse an operator that has no trace."""
    op = as_operator(op)
    if op.domain != op.codomain:
        raise ValueError(
            f"{op!r} does not map a space to itself, so that it has no trace and no diagonal: use "
            "kpops.frobenius_norm, or the trace of op @ op.H"
        )
    return op


def _trivial(op: TrajectoryOperator, root: TrajectoryOperator | None) -> bool:
    """Whether there is too little for random vectors to leave out one of several."""
    return min(op.shape if root is None else root.shape) < 2
