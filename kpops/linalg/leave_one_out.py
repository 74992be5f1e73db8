"""Traces and diagonals from random vectors: algorithms that know only blocks of rows.

All but Hutchinson's first form the images ``y_i = A w_i`` of the random vectors and treat what lies
in their span Q exactly. To estimate the rest, each w_i in turn is left out of Q, so that it is
independent of the Q_i it is tried on (Epperly, Tropp and Webber 2024, XTrace: making the most of
every sample in stochastic trace estimation, arXiv 2301.07825; "the paper" below). Q_i lacks one
direction of Q: ``Q_i Q_i* = Q (I - s_i s_i*) Q*``, where s_i is the unit vector orthogonal to the
coordinates of all other images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.probes import TINY, Rows, RunningMoments, Samples, Square, widened
from kpops.linalg.sketch import Sketch
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import beside, on_device, on_host


class Pairs(NamedTuple):
    """Estimates from all random vectors but one or two, in float64.

    The diagonal of `values` holds t_i, the estimate of w_i with the approximation that leaves out
    w_i; off it stands t_ij, that of w_i with the approximation that leaves out w_i and w_j. `floor`
    is what rounding adds to the error.
    """

    values: Square
    floor: float

    @property
    def mean(self) -> float:
        """The estimate: mean of the t_i."""
        return float(self.values.diagonal().mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN if there is only one."""
        if len(self.values) < 2:
            return math.nan
        error = widened(len(self.values)) * math.sqrt(_variance(self.values[..., None]))
        return math.hypot(error, self.floor)


def _variance(values: Float[Tensor, "k k entry"]) -> float:
    """Variance of the mean of t_i, from t_i and t_ij, summed over entries.

    The paper's estimate ``s^2 / k`` assumes that the t_i are uncorrelated. But each uses the images
    of the others, and where the spectrum decays the standard error comes out up to four times too
    small. Their covariance has an unbiased estimate as well: t_i has the mean tr A whatever the
    other vectors are, and t_ij does not depend on w_j, so of the four terms of

        E[(t_i - t_ij) (t_j - t_ji)] = Cov(t_i, t_j)

    three vanish. With c the mean over all pairs, ``Var = s^2 / k + c``, since the sample variance
    s^2 lacks c. Where the spectrum drops near k, the mean over pairs is mere noise. The geometric
    mean of the paper's estimate, which is too small, and of the jackknife's, which is too large
    (Efron and Stein 1981), then takes its place, and bounds it elsewhere.
    """
    k = len(values)
    t = values.diagonal().mT
    gaps = t[:, None] - values
    of_each = (gaps * gaps.transpose(0, 1)).sum((1, 2)) / (k - 1)
    without = (values.sum(0) - t) / (k - 1)
    numbers = t.var(0).sum(), of_each.mean(), of_each.std(), without.var(0, correction=0).sum()
    scatter, covariance, noise, spread = map(float, on_host(*numbers))
    unpaired, jackknife = scatter / k, (k - 1) * spread
    variance, noise = unpaired + covariance, 2 * noise / math.sqrt(k)
    between = max(unpaired, math.sqrt(unpaired * jackknife))
    credible = variance >= unpaired and noise <= 2 * variance
    return min(variance, between) if credible else between


class _Removed(NamedTuple):
    """Geometry of the directions that leave with w_i (diagonal), or with w_i and w_j (off it).

    With ``cosine = s_i . s_j`` the projector on both is ``(s_i s_i* + s_j s_j* - cosine (s_i s_j* +
    s_j s_i*)) / sine2``; on the diagonal there is no second direction.
    """

    cosine: Square
    sine2: Square
    other: Square

    @classmethod
    def of(cls, cosine: Square) -> _Removed:
        other = 1 - torch.eye(len(cosine), dtype=cosine.dtype, device=cosine.device)
        cosine = cosine * other
        return cls(cosine, (1 - cosine.square()).clamp_min(1e-15), other)

    def trace(self, forms: Square) -> Square:
        """Trace of a matrix on the directions, of its forms ``s_i* M s_j``."""
        own = forms.diagonal()
        cross = self.cosine * (forms + forms.mT)
        return (own[:, None] + self.other * own - cross) / self.sine2


def _floor(dtype: torch.dtype, *parts: Tensor) -> float:
    eps = torch.finfo(dtype).eps
    return 16 * eps * sum(float(part.abs().mean()) for part in parts)


def xtrace(sketch: Sketch, core: Float[Tensor, "q q"], ahead: Float[Tensor, "k q"]) -> Pairs:
    """XTrace of a square operator A, from the forms ``q_a* A q_b`` (core), ``w_i* A q_b`` (ahead).

    ``t_i = tr(Q_i* A Q_i) + w* (I - Q_i Q_i*) A (I - Q_i Q_i*) w``, with w = w_i scaled so that
    what is left of it has its mean length: section 2.1 of the paper, with the normalisation of its
    section 2.3.
    """
    span, points, axes = sketch.left_out()
    probes, space, n = sketch.probes, sketch.inside, sketch.inside.total
    core, ahead, w, squares = on_host(
        core, ahead, space.inner(probes, sketch.basis), space.dots(probes, probes)
    )
    h, t, w = span @ core @ span.mT, ahead @ span.mT, w @ span.mT
    removed = _Removed.of(axes @ axes.mT)
    # (I - Q_i Q_i*) w is the part of w outside Q, and inside it u = a s_i + b s_j.
    along = w @ axes.mT
    own, other = along.diagonal()[:, None], along * removed.other
    a = (own - removed.cosine * other) / removed.sine2
    b = (other - removed.cosine * own) / removed.sine2
    hs = axes @ h @ axes.mT
    mixed = w @ (h + h.mT) @ axes.mT - t @ axes.mT
    diagonal = hs.diagonal()
    forms = (
        ((w @ h - t) * w).sum(1)[:, None]
        + a * ((points * axes).sum(1) - mixed.diagonal())[:, None]
        - b * mixed
        + a.square() * diagonal[:, None]
        + a * b * (hs + hs.mT)
        + b.square() * diagonal
    )
    outside = (squares - w.square().sum(1)).clamp_min(0)
    lengths = outside[:, None] + a * own + b * other
    missing = axes.any(1).double()
    rest = n - len(span) + missing[:, None] + missing * removed.other
    scaled = torch.where(rest > 0, rest / lengths.clamp_min(TINY) * forms, 0)
    values = h.trace() - removed.trace(hs) + scaled
    return Pairs(values, _floor(probes.dtype, h.trace(), scaled.diagonal()))


def xnystrace(sketch: Sketch, core: Square) -> Pairs:
    """XNysTrace of ``R* R``, from a sketch of R and the forms ``(R* q_a)* (R* q_b)``.

    The Nystrom approximation of ``R* R`` from vectors W is ``R* Q Q* R`` with Q the range of
    ``R W``, which needs neither the shift nor the Cholesky factor of :func:`shifted_xnystrace`.
    Without w_i, its residual in w_i is ``||(I - Q_i Q_i*) R w_i||^2``.
    """
    span, points, axes = sketch.left_out()
    core, squares = on_host(core, sketch.inside.inner(sketch.probes, sketch.probes))
    gram = span @ core @ span.mT
    rest = (points * axes).sum(1).square()
    forms = axes @ gram @ axes.mT
    total = float(gram.trace())
    return _nystrom(sketch.inside, squares, total, axes @ axes.mT, forms, rest)


def shifted_xnystrace(space: VectorSpace, probes: Rows, images: Rows) -> Pairs:
    """XNysTrace of a positive operator, from its images of k random vectors, k at most n.

    Section 2.2 of the paper: with ``A_v = A + v I``, ``Y = A_v W`` and ``H = W* Y``, the Nystrom
    approximation ``Y H^-1 Y*`` loses ``b_i b_i*``, ``b_i = Y H^-1 e_i / sqrt((H^-1)_ii)``, without
    w_i, and its residual in w_i is then ``1 / (H^-1)_ii``. The shift v keeps H invertible where A
    has a rank below k; n times v is subtracted from the trace.

    Raises a ValueError if the operator is not positive semi-definite.
    """
    n, k = space.total, len(probes)
    eps = torch.finfo(images.dtype).eps
    core, squares, lengths = on_host(
        space.inner(probes, images), space.inner(probes, probes), space.lengths(images)
    )
    size = float(lengths.norm()) / math.sqrt(n)
    if size == 0:
        return Pairs(torch.zeros(k, k, dtype=torch.float64), 0.0)
    shift = eps * size
    core = (core + core.mT) / 2
    lower, failed = torch.linalg.cholesky_ex(core + shift * squares)
    while failed:
        shift *= 4
        if shift > math.sqrt(eps) * size:
            raise ValueError(
                "the operator is not positive semi-definite, as XNysTrace needs it: use "
                "method='xtrace' or 'hutchinson'"
            )
        lower, failed = torch.linalg.cholesky_ex(core + shift * squares)
    _, coords = space.orthonormal(images + shift * probes)
    whole = torch.linalg.solve_triangular(lower, coords, upper=False)
    b = torch.linalg.solve_triangular(lower.mT, whole, upper=True)
    inverse = torch.cholesky_inverse(lower)
    lengths = inverse.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    total = float(whole.square().sum()) - shift * n
    return _nystrom(space, squares, total, inverse / scale, b @ b.mT / scale, lengths**-2)


def _nystrom(
    space: VectorSpace,
    squares: Square,
    total: float,
    cosine: Square,
    forms: Square,
    rest: Float[Tensor, " k"],
) -> Pairs:
    """What both ways to XNysTrace share; `squares` is the Gram matrix of the vectors.

    The approximation is exact on the other w_j, so only the component of w_i orthogonal to them
    counts; it is scaled to its mean length (section 2.3 of the paper).
    """
    k, n = len(squares), space.total
    removed = _Removed.of(cosine)
    inverse = torch.linalg.inv(squares)
    own = inverse.diagonal()
    stretch = own[:, None] - removed.other * inverse.square() / own
    left = (n - k + 1 + removed.other) * stretch * rest[:, None] / removed.sine2
    values = total - removed.trace(forms) + left
    whole = torch.tensor(total, dtype=torch.float64)
    return Pairs(values, _floor(space.dtype, whole, left.diagonal()))


def hutchpp(
    sketch: Sketch,
    core: Float[Tensor, "q q"],
    probes: Float[Tensor, "probe entry"],
    forms: Samples,
    ahead: Float[Tensor, "probe q"],
    behind: Float[Tensor, "probe q"],
) -> Samples:
    """Hutch++ of a square operator A, one estimate for each of other random vectors z_l.

    From the forms ``q_a* A q_b`` (core), ``z_l* A z_l`` (forms), ``z_l* A q_b`` (ahead) and
    ``q_b* A z_l`` (behind). Meyer, Musco, Musco and Woodruff (2021), Hutch++: optimal stochastic
    trace estimation, algorithm 1: ``tr(Q* A Q) + z* (I - Q Q*) A (I - Q Q*) z``, with
    ``(I - Q Q*) z`` scaled to its mean length, as in :func:`xtrace`.
    """
    span = sketch.left_out().range
    space, n = sketch.inside, sketch.inside.total
    core, forms, ahead, behind, z, squares = on_host(
        core, forms, ahead, behind, space.inner(probes, sketch.basis), space.dots(probes, probes)
    )
    h, z = span @ core @ span.mT, z @ span.mT
    rest = forms - (((ahead + behind) @ span.mT - z @ h) * z).sum(1)
    lengths = squares - z.square().sum(1)
    return h.trace() + (n - len(span)) / lengths.clamp_min(TINY) * rest


def xdiag(sketch: Sketch) -> RunningMoments:
    """XDiag of a square operator: the mean over its random vectors, and its standard error.

    The sketch is from vectors of signs, with the images of its basis under the adjoint.
    ``diag(Q_i Q_i* A) + w_i o (I - Q_i Q_i*) A w_i``, where o multiplies entry by entry: section
    2.4 of the paper. The rest is ``(s_i . y_i) Q s_i``. How much the covariance of the estimates
    adds to the error is computed from a sample of the entries, and applied to all.
    """
    span, points, axes = sketch.left_out()
    lengths = (axes * points).sum(1)
    directions, columns = (
        beside(axes @ span, part) @ part for part in (sketch.basis, sketch.products)
    )
    whole = torch.zeros_like(sketch.basis[0], dtype=torch.float64)
    kept = beside(span.mT @ span, sketch.basis) @ sketch.basis
    for row, column in zip(kept, sketch.products, strict=True):
        whole += row.double() * column.double()
    scatter = RunningMoments()
    for direction, column, length, probe in zip(
        directions, columns, lengths, sketch.probes, strict=True
    ):
        scatter.add(whole - direction * column + float(length) * probe * direction)
    k, n = sketch.probes.shape
    if k > 1:
        some = torch.linspace(0, n - 1, max(1, min(n, 4096, 2**24 // k**2))).long().unique()
        some = on_device(some, whole.device, some.dtype)
        small = beside(axes @ axes.mT, whole), beside(lengths, whole)
        parts = (directions, columns, sketch.probes)
        values = whole[some] + _changes(*small, *(p[:, some] for p in parts))
        unpaired = float(values.diagonal().var(1).sum()) / k
        scatter.squares = scatter.squares * (_variance(values) / unpaired if unpaired > 0 else 1.0)
    return scatter


def _changes(
    cosine: Square,
    lengths: Float[Tensor, " k"],
    directions: Float[Tensor, "k entry"],
    columns: Float[Tensor, "k entry"],
    probes: Float[Tensor, "k entry"],
) -> Float[Tensor, "k k entry"]:
    """What the estimate of w_i loses and gains by leaving out w_i, or w_i and w_j."""
    removed = _Removed.of(cosine)
    q, z, w = directions.double(), columns.double(), probes.double()
    c, sine2, other = (part[..., None] for part in removed)
    lost = (q * z)[:, None] + other * (q * z) - c * (q[:, None] * z + q * z[:, None])
    rest = lengths[:, None, None] * w[:, None] * (q[:, None] - c * q)
    return (rest - lost) / sine2
