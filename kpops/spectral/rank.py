"""Effective ranks, each by its name."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.linalg.budget import Estimate
from kpops.linalg.exact import is_cheap, whole_spectrum
from kpops.linalg.moments import NEEDS_POSITIVE
from kpops.linalg.probes import left_out
from kpops.linalg.quadrature import seek_negative
from kpops.linalg.ranks.base import RankRun, RankSpec, of_spectrum
from kpops.linalg.ranks.by_rules import PROBES
from kpops.linalg.ranks.registry import KINDS, rank_spec
from kpops.linalg.rounding import noise_floor
from kpops.linalg.scaling import normalized
from kpops.linalg.symmetry import is_self_adjoint, refuse_indefinite
from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.operators.partial_trace import PartialTrace, ProbedGram, ProbedTrace
from kpops.precision import in_full_precision
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded
from kpops.spectral._result import configuration, estimates, identity

_MOST_MATVECS = 2**16
_SAYS_LITTLE = 0.25  # standard error of a numerical rank, over the rank, that is worth a warning


@in_full_precision
@work.shown
def effective_rank(
    op: Any,
    kind: str = "participation",
    *,
    keep: tuple[str, ...] | str | None = None,
    reduction: str = "expand_average",
    threshold: float = 0.95,
    top: int | None = None,
    tol: float = 1e-6,
    method: str = "auto",
    num_matvecs: int = 64,
    rtol: float | None = None,
    rng: Any = None,
    progress: bool = False,
    on_interrupt: str = "raise",
) -> xr.Dataset:
    """Effective rank of an operator, in one of five definitions that differ greatly.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        A self-adjoint operator must be positive semi-definite. If it is not known to be, estimates
        first look for a negative eigenvalue, by 33 more matvecs, and refuse the operator if they
        find one. Finding none is no proof.
    kind : {"participation", "variance", "entropy", "stable", "numerical"}
        With a_k the falling singular values of `op`, which are its eigenvalues if it is
        self-adjoint:

        ``"participation"``: ``(tr G)^2 / tr(G^2)``, where G is the operator itself if it is
        self-adjoint, and ``op op*`` if not.
        ``"variance"``: the number of leading a_k whose squares hold the fraction `threshold` of
        the sum of all squares, interpolated linearly between counts (a rank-one operator gives
        0.95).
        ``"entropy"``: ``exp(-sum_k p_k log p_k)`` with ``p_k = a_k / sum a``.
        ``"stable"``: ``sum_k a_k^2 / a_1^2``.
        ``"numerical"``: the number of a_k above `tol` times a_1, and above the noise floor.
    keep : tuple of str, optional
        Reduce the operator to these dimensions first, for example ``("time",)``.
    reduction : {"expand_average", "partial_trace"}
        How to reduce: by :meth:`TrajectoryOperator.expand_average`, as in the figures of the KPFlow
        paper, or by :meth:`TrajectoryOperator.partial_trace`.
    threshold : float
        Fraction of the sum for ``"variance"``, between 0 and 1.
    top : int, optional
        Only the largest `top` of the a_k, and the sum of their squares, count for ``"variance"``.
        The figures of the KPFlow paper take 60 of 90 for P P* over time, and 20 for K: a flat
        spectrum then has the rank 57.
    tol : float
        Relative tolerance for ``"numerical"``, from 0 to 1.
    method : {"auto", "exact", "hutchinson", "lanczos"}
        ``"exact"`` uses the whole spectrum, or exact traces. ``"hutchinson"`` estimates traces from
        random vectors and takes leading modes, if any, from eigsh or svds: participation, variance,
        stable. ``"lanczos"`` estimates the spectrum by Gauss rules: variance, entropy, numerical.
        ``"auto"`` is exact where structure allows (small operators and reductions, K of gated
        cells).
    num_matvecs : int
        Approximate number of matvecs of an estimate. ``"lanczos"`` takes at least 384, and leading
        modes for ``"variance"`` and ``"stable"`` come on top.
    rtol : float, optional
        Double `num_matvecs` until the standard error is at most this fraction of the estimate.
    rng, progress
        As for :func:`kpops.trace`.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does during an estimate. With ``"return"`` the first one ends it after the
        current matvec: the estimate so far, or NaN, is returned with a warning and the attribute
        ``converged`` as 0. The second one raises.

    Returns
    -------
    Dataset
        ``estimate`` and its standard error ``stderr`` (zero if exact), with ``operator`` and
        ``kind`` as scalar coordinates, which :func:`xarray.concat` keeps. ``estimate +- 2 stderr``
        should contain the rank in 95 % of all cases; the standard error of few random vectors is
        widened by Student's t for this. Attributes: the ``method``, why it was ``chosen``, the
        matvecs used, and for participation which ``gram`` is G: ``"A"`` or ``"A A*"``.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or a self-adjoint operator is not positive.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If ``"variance"`` by ``"hutchinson"`` would need more than 256 modes: the estimate is then a
        lower bound and ``stderr`` is NaN. If `rtol` is not met within 65,536 matvecs. If the
        standard error of ``"numerical"`` is above a quarter of it.

    Notes
    -----
    Participation: see Gao and others (2017) for the ratio. Its traces share random vectors; the
    jackknife gives the standard error and removes the bias of first order. Plain random vectors
    give tr G a relative standard deviation of ``sqrt(2 / (m PR))``; few modes that hold most of G
    are summed exactly.

    Variance: as in the figures of the KPFlow paper. The squares of the leading modes are summed
    exactly; random vectors, projected off these modes, estimate only the rest of the sum. For P the
    whole sum is exact, by its Gramian. If many modes are needed, the count comes from Gauss rules
    (:func:`kpops.spectral_density`) instead.

    Entropy: Roy and Vetterli (2007), definition 1. Entropy and numerical rank are estimated by
    stochastic Lanczos quadrature from 16 random vectors, projected off up to 8 leading modes that
    are summed exactly. The jackknife's standard error is combined, in squares, with the distance to
    the rule of three quarters of the steps. Eigenvalues near a tolerance amid a spectrum are hard
    to count: the standard error may be as large as the count, and more matvecs help.

    Stable: the squared Frobenius norm over the square of the largest singular value, which is
    converged to a relative residual of 1e-6. The norm is exact for P; otherwise random vectors,
    projected off this mode, estimate the rest.

    An estimated partial trace, ``R = mean R_j`` over random vectors, has a rank by its whole
    spectrum. The jackknife over the R_j gives the error bar and removes the bias. The exception is
    ``"numerical"``: it counts the whole mean, with an error bar of at least 1 if any vector changes
    the count. A vector costs half a matvec where ``op = F F*`` is known, and otherwise one matvec
    for each kept position; at least 16 vectors are taken.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> identity = np.eye(10)
    >>> for kind in ("participation", "variance", "entropy", "stable", "numerical"):
    ...     print(kind, float(kpops.effective_rank(identity, kind).estimate.round(9)))
    participation 10.0
    variance 9.5
    entropy 10.0
    stable 10.0
    numerical 10.0
    """
    op = as_operator(op, spread=True)
    spec = rank_spec(kind, threshold, tol, top)
    found = found_rank(
        op,
        spec,
        keep=keep,
        reduction=reduction,
        method=method,
        num_matvecs=num_matvecs,
        rtol=rtol,
        rng=rng,
        on_interrupt=on_interrupt,
    )
    return _dataset(spec, "none" if keep is None else reduction, found)


class Found(NamedTuple):
    """The rank of an operator, which is the reduced and scaled one that was measured."""

    op: TrajectoryOperator
    symmetric: bool
    answer: Estimate


def found_rank(
    op: TrajectoryOperator,
    spec: RankSpec,
    *,
    keep: tuple[str, ...] | str | None = None,
    reduction: str = "expand_average",
    method: str = "auto",
    num_matvecs: int = 64,
    rtol: float | None = None,
    rng: Any = None,
    on_interrupt: str = "raise",
) -> Found:
    """As :func:`effective_rank`, before it is labelled."""
    _check(spec, reduction, method, num_matvecs, rtol)
    work.check_on_interrupt(on_interrupt)
    op.parts.check_interrupt(on_interrupt)
    rng = seeded(rng, op.parts)
    whole = op
    if keep is not None:
        # No rank depends on the scale, but what is reduced may leave the dtype.
        whole, _ = normalized(op)
        op = _reduced(whole, keep, reduction, method, num_matvecs, rng)
    symmetric, probed = is_self_adjoint(op), isinstance(op, ProbedGram | ProbedTrace)
    answer, best = None, Estimate(math.nan, math.nan, method, "interrupted before there was any", 0)
    if method in ("auto", "exact") and not probed:
        answer = _exact(op, spec, symmetric, force=method == "exact")
    if answer is None and not probed:
        op, _ = normalized(op)
    budget = num_matvecs
    while answer is None:
        if isinstance(op, ProbedGram | ProbedTrace):
            answer = _of_probes(op, spec, symmetric)
            budget = max(budget, int(answer.num_matvecs))  # the fewest probes may cost more
        else:
            try:
                with work.held(on_interrupt):
                    answer = _estimated(RankRun(op, symmetric, spec, method, budget, rng))
            except work.NothingYetError:
                answer = best
        if work.interrupted():
            work.warn(f"effective_rank was interrupted after {answer.num_matvecs} matvecs")
            break
        best = answer
        if rtol is not None and answer.stderr > rtol * answer.estimate:
            if 2 * budget > _MOST_MATVECS or not _may_double(op, whole):
                work.warn_unconverged(
                    f"effective_rank: stderr {answer.stderr:.2g} of {answer.estimate:.4g} after "
                    f"{answer.num_matvecs} matvecs does not meet rtol={rtol}"
                )
                break
            budget, answer = 2 * budget, None
            if probed:
                assert keep is not None
                op = _reduced(whole, keep, reduction, method, budget, rng)
    if spec.kind.counts and rtol is None and answer.stderr > _SAYS_LITTLE * answer.estimate:
        work.warn_unconverged(
            f"effective_rank: the {spec.kind.name} rank is {answer.estimate:.4g} with a standard "
            f"error of {answer.stderr:.2g} after {answer.num_matvecs} matvecs, which says little: "
            "where values crowd near tol, a count needs the spectrum (method='exact'), a larger "
            "tol, more num_matvecs, or another kind, such as 'entropy'"
        )
    if isinstance(op, PartialTrace) and not isinstance(op, ProbedTrace):
        answer = answer._replace(num_matvecs=answer.num_matvecs * op.num_vectors)
    return Found(op, symmetric, answer)


def _check(
    spec: RankSpec, reduction: str, method: str, num_matvecs: int, rtol: float | None
) -> None:
    if reduction not in ("expand_average", "partial_trace"):
        raise ValueError(f"reduction={reduction!r}: choose 'expand_average' or 'partial_trace'")
    check_real("threshold", spec.threshold)
    check_real("tol", spec.tol)
    check_count("num_matvecs", num_matvecs, 2)
    if not 0 < spec.threshold < 1:
        raise ValueError(f"threshold={spec.threshold}: choose a fraction between 0 and 1")
    if spec.top is not None:
        check_count("top", spec.top, 1)
        if spec.kind.name != "variance" or method == "lanczos":
            asked = f"kind={spec.kind.name!r}, method={method!r}"
            raise ValueError(
                f"top={spec.top} with {asked}: only the 'variance' rank counts leading modes, by "
                "'exact' or 'hutchinson'"
            )
    if not 0 <= spec.tol < 1:
        raise ValueError(f"tol={spec.tol}: choose a fraction of the largest, from 0 to 1")
    if rtol is not None:
        check_real("rtol", rtol)
        if not 0 < rtol < 1:
            raise ValueError(f"rtol={rtol}: choose a fraction between 0 and 1")
    every = {method for kind in KINDS.values() for method in kind.methods}
    if method not in ("auto", "exact", *every):
        raise ValueError(f"method={method!r}: choose from {['auto', 'exact', *sorted(every)]}")
    if method not in ("auto", "exact", *spec.kind.methods):
        others = " or ".join(map(repr, spec.kind.methods))
        raise ValueError(
            f"method={method!r} does not give kind={spec.kind.name!r}: choose {others}"
        )


def _reduced(
    op: TrajectoryOperator,
    keep: tuple[str, ...] | str,
    reduction: str,
    method: str,
    num_matvecs: int,
    rng: np.random.Generator,
) -> TrajectoryOperator:
    """The operator on the kept dimensions; partial traces by random vectors where cheaper."""
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if reduction == "expand_average":
        return op.expand_average(keep)
    exact = op.partial_trace(keep)
    if method == "exact" or not isinstance(exact, PartialTrace):
        return exact
    if method == "auto" and is_cheap(exact.num_vectors * exact.shape[0]):
        return exact
    # A probe takes half a matvec if there is a root, and one for each kept position if not.
    per_probe = 0.5 if op.root is not None else exact.shape[0]
    return op.partial_trace(keep, num_probes=max(PROBES, int(num_matvecs / per_probe)), rng=rng)


def _may_double(op: TrajectoryOperator, whole: TrajectoryOperator) -> bool:
    """Whether twice as many random vectors are possible: if probes, drawn here and small enough."""
    if not isinstance(op, ProbedGram | ProbedTrace):
        return True
    count = len(op.images) if isinstance(op, ProbedGram) else len(op.probes)
    numbers = 2 * count * (op.shape[0] ** 2 + op.parent.shape[0])
    return op is not whole and numbers * op.dtype.itemsize < free_bytes(op.device) // 4


def _exact(
    op: TrajectoryOperator, spec: RankSpec, symmetric: bool, *, force: bool
) -> Estimate | None:
    """The rank from exact traces or the whole spectrum; None if they cost too much."""
    structured = spec.kind.from_structure(op)
    if structured is not None:
        return structured
    spectrum = whole_spectrum(op, symmetric, force=force)
    if spectrum is None:
        return None
    if symmetric and not op.positive:
        refuse_indefinite(op, spectrum.values, NEEDS_POSITIVE)
    floor = noise_floor(op.torch_dtype)
    estimate = of_spectrum(spectrum.values, spec, symmetric, floor)
    return Estimate(estimate, 0.0, "exact", f"whole spectrum: {spectrum.how}", spectrum.num_matvecs)


def _estimated(run: RankRun) -> Estimate:
    """The rank from random vectors."""
    op = run.op
    sought = seek_negative(op, run.rng, NEEDS_POSITIVE) if run.symmetric else 0
    answer = run.spec.kind.estimate(run)
    rounding = 10 * noise_floor(op.torch_dtype) * answer.estimate
    error = math.hypot(answer.stderr, rounding)
    return answer._replace(stderr=error, num_matvecs=answer.num_matvecs + sought)


def _of_probes(op: ProbedGram | ProbedTrace, spec: RankSpec, symmetric: bool) -> Estimate:
    """The rank of an estimated partial trace, with the jackknife over its random vectors."""
    parts = op.dense_per_probe()
    m, floor = len(parts), noise_floor(op.torch_dtype)
    if m < 2:
        raise ValueError(f"{op!r} is from one random vector: a standard error needs at least 2")

    def rank(matrix: Tensor) -> float:
        values = torch.linalg.eigvalsh(matrix) if symmetric else torch.linalg.svdvals(matrix)
        values = values.clamp_min(0) if op.positive else values
        if symmetric and not op.positive:
            refuse_indefinite(op, values, NEEDS_POSITIVE)
        return of_spectrum(values.flip(0) if symmetric else values, spec, symmetric, floor)

    total = parts.sum(0)
    without = torch.tensor([rank((total - part) / (m - 1)) for part in parts], dtype=torch.float64)
    whole = rank(total / m)
    estimate, stderr = left_out(torch.tensor(whole, dtype=torch.float64), without)
    if spec.kind.counts:
        # A count has no bias of first order to remove: m times its steps would be noise.
        estimate = whole
        stderr = max(stderr, 1.0) if bool((without != whole).any()) else 0.0
    how = f"whole spectrum of a partial trace from {m} random vectors"
    used = math.ceil(m / 2) if isinstance(op, ProbedGram) else m * op.shape[0]
    return Estimate(min(max(estimate, 0.0), op.shape[0]), stderr, "hutchinson", how, used)


def _dataset(spec: RankSpec, reduction: str, found: Found) -> xr.Dataset:
    op, symmetric, answer = found
    kind = spec.kind.name
    long_name = f"effective rank ({kind})"
    settings = {"threshold": spec.threshold, "tol": spec.tol, "reduction": reduction}
    if spec.top is not None:
        settings["top"] = spec.top
    attrs = {
        **configuration(op, kind=kind, method=answer.method, **settings),
        "method": answer.method,
        "chosen": answer.chosen,
        "reduction": reduction,
        "gram": "A" if symmetric or not spec.kind.of_gram else "A A*",
        "num_matvecs": answer.num_matvecs,
    }
    if work.interrupted():
        attrs["converged"] = 0
    if spec.kind.counts:
        attrs |= {"tol": spec.tol, "noise_floor": noise_floor(op.torch_dtype)}
    values = np.array([answer.estimate, answer.stderr], op.dtype)
    return xr.Dataset(estimates(values, long_name), identity(op, kind=kind), attrs)
