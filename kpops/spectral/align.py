"""Alignment of operators: the cosine of the angle between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.exact import is_cheap
from kpops.linalg.probes import jackknife, three_dots
from kpops.linalg.scaling import normalized
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import Sum, TrajectoryOperator
from kpops.operators.dense import Batches, block_diagonal_dims
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import check_count
from kpops.scalars import generator as seeded
from kpops.spectral._result import configuration, estimates, identity


@in_full_precision
@work.shown
def alignment(
    a: Any,
    b: Any,
    *,
    method: str = "auto",
    num_matvecs: int = 64,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Frobenius cosine of two operators between the same spaces.

    Parameters
    ----------
    a, b : TrajectoryOperator, LinearOperator or array_like
        Shape (m, n), with one dtype, one device and labels that agree.
    method : {"auto", "exact", "hutchinson"}
        ``"exact"`` uses K unit by unit if both are known so. Otherwise it applies both operators to
        a whole basis of the smaller side, once for all blocks that neither couples.
        ``"hutchinson"`` applies both to the same random vectors. ``"auto"`` is exact where K is
        known unit by unit, or the basis has at most 1024 vectors.
    num_matvecs : int
        Random vectors, at least 2: matvecs with each of the operators.
    rng, progress
        As for :func:`kpops.trace`.

    Returns
    -------
    Dataset
        ``estimate``, from -1 to 1 (from 0 to 1 if both operators are positive), and its standard
        error ``stderr``, zero if exact. If one of the operators is zero, no angle is defined: both
        are NaN, and the attribute ``chosen`` says so.

    Raises
    ------
    ValueError
        If the operators differ in spaces, labels, dtype or device, or an option is out of range.

    Notes
    -----
    ``<A, B>_F / (||A||_F ||B||_F)`` with ``<A, B>_F = tr(A* B)``. For two Gram operators it is the
    kernel alignment of Cristianini and others (2001), without centring. With z uniform on the
    sphere of squared radius n, ``(A z)* (B z)``, ``||A z||^2`` and ``||B z||^2`` have the three
    inner products as means. What one z adds to all of them cancels in the ratio. The jackknife
    removes the remaining bias and gives the standard error.

    Uses: K with K over training, or the output tangent kernel with itself, shows how far learning
    is from the lazy regime; the flow operator ``P K P*`` with ``P P*`` shows how much of the path
    of gradient flow is due to the dynamics alone.

    Examples
    --------
    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> inputs = torch.randn(4, 6, 2)
    >>> early, late = (torch.nn.GRU(2, 5, batch_first=True) for _ in range(2))
    >>> before, after = (kpops.linearize(m, inputs, dtype=torch.float64) for m in (early, late))
    >>> bool(0 < kpops.alignment(before.K, after.K).estimate < 1)  # of K over training
    True
    >>> turned = kpops.alignment(after.flow, after.P @ after.P.H)  # misdirection of gradient flow
    >>> bool(turned.estimate < 1), float(turned.stderr)
    (True, 0.0)
    >>> float(kpops.alignment(after.P, -2 * after.P).estimate.round(12))
    -1.0
    """
    a, b = as_operator(a, spread=True), as_operator(b, spread=True)
    both = Sum(a, b)  # refuses operators that have no sum
    rng = seeded(rng, both.parts)
    check_count("num_matvecs", num_matvecs, 2)
    if method not in ("auto", "exact", "hutchinson"):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'hutchinson'")
    samples = _of_unit_blocks(a, b) if method != "hutchinson" else None
    used, how = 0, "K is block diagonal over units"
    if samples is None:
        a, b = (normalized(op)[0] for op in (a, b))  # no angle depends on the scale
        # The smaller side, as the blocks that neither couples.
        wide = a.shape[0] < a.shape[1]
        space = a.codomain if wide else a.domain
        dims = tuple(d for d in block_diagonal_dims(a) if d in block_diagonal_dims(b))
        batches = Batches(space, dims)
        if method == "exact" or (method == "auto" and is_cheap(batches.size)):
            n, blocks = batches.size, _basis(VectorSpace.of(a, space), batches)
            method, how = "exact", f"a basis of {n} vectors"
        else:
            n, blocks = num_matvecs, _probes(VectorSpace.of(a, space), num_matvecs, rng)
            method, how = "hutchinson", f"{num_matvecs} shared random vectors"
        used = 2 * n
        work.expect(used)
        samples = _products(a, b, wide, blocks)
    else:
        method = "exact"
    if method == "exact":
        samples = samples.sum(1, keepdim=True)
    estimate, stderr = _cosine_and_error(samples)
    if a.positive and b.positive:
        estimate = max(estimate, 0.0)  # tr A B = ||A^(1/2) B^(1/2)||_F^2
    if math.isnan(estimate):
        how = "undefined: an operator is zero"
    return xr.Dataset(
        estimates(np.array([estimate, stderr], a.dtype), "alignment"),
        coords=identity(a, b),
        attrs={
            **{k: v for k, v in a.attrs.items() if b.attrs.get(k) == v},
            **configuration(both, num_matvecs=num_matvecs, method=method),
            "method": method,
            "chosen": how,
            "num_matvecs": used,
        },
    )


def _cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    return ab / (aa.sqrt() * bb.sqrt())


def _cosine_and_error(samples: Tensor) -> tuple[float, float]:
    """From (A z)* (B z), ||A z||^2 and ||B z||^2, shape (3, probe), or (3, 1) if exact."""
    if not samples[1].any() or not samples[2].any():
        return math.nan, math.nan
    if samples.shape[1] == 1:
        estimate, stderr = float(_cosine(*samples[:, 0])), 0.0
    else:
        estimate, stderr = jackknife(_cosine, *samples)
    return min(max(estimate, -1.0), 1.0), stderr


def _of_unit_blocks(a: TrajectoryOperator, b: TrajectoryOperator) -> Tensor | None:
    """The three inner products (3, 1) of two K of the same units, or None."""
    first, second = a.unit_blocks(), b.unit_blocks()
    if first is None or second is None or not first.alike(second):
        return None
    # Scaled to a trace of 1, since squares might leave the dtype; a zero stays zero.
    first, second = (x.scaled(1 / (x.trace() or 1.0)) for x in (first, second))
    products = [first.inner(second), first.inner(first), second.inner(second)]
    return torch.tensor(products, dtype=torch.float64)[:, None]


def _basis(space: VectorSpace, batches: Batches) -> Iterator[Tensor]:
    for start in range(0, batches.size, space.block):
        chosen = range(start, min(start + space.block, batches.size))
        yield batches.basis(chosen, space.like)


def _probes(space: VectorSpace, m: int, rng: np.random.Generator) -> Iterator[Tensor]:
    source = RandomVectors(rng)
    for start in range(0, m, space.block):
        yield space.sphere(source, min(space.block, m - start))


def _products(
    a: TrajectoryOperator, b: TrajectoryOperator, wide: bool, blocks: Iterator[Tensor]
) -> Tensor:
    """(A z)* (B z), ||A z||^2 and ||B z||^2, shape (3, vector); adjoints if `wide`."""
    acts = [op.apply_adjoint if wide else op.apply for op in (a, b)]
    inside, outside = (a.codomain, a.domain) if wide else (a.domain, a.codomain)
    space, parts = VectorSpace.of(a, outside), []
    for block in blocks:
        vectors = block.reshape(-1, *inside.shape)
        y, w = (act(vectors).flatten(1) for act in acts)
        parts.append(space.parts.sum(three_dots(y, w)))
    return torch.cat(parts, 1)
