"""How far the tangent kernel moves over training, and how far it points to the targets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.engines.random_vectors import RandomVectors
from kpops.labels import Space, enter
from kpops.learning.required import labelled, require_linearization
from kpops.linalg.probes import dots, jackknife
from kpops.linalg.vectors import VectorSpace
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.operators import TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.scalars import check_count


@experimental
@in_full_precision
def kernel_evolution(
    lin: Linearization,
    previous: xr.Dataset | None = None,
    *,
    targets: Any = None,
    centred: bool = False,
    kernel: Callable[[Linearization], TrajectoryOperator] | None = None,
    num_matvecs: int = 64,
    rng: int = 0,
) -> xr.Dataset:
    """Distance of the tangent kernel from those at other checkpoints, and alignment with targets.

    A measure for :func:`kpops.over_training`, which passes `previous`.

    Parameters
    ----------
    lin : Linearization
    previous : Dataset, optional
        The result at the checkpoint before.
    targets : Tensor, array_like or DataArray, optional
        Labels y of the shape of the outputs, (trial, time, output), such as +1 and -1, or one-hot.
    centred : bool
        Remove the mean over trials at each time and output on both sides of the kernel, and from
        the targets.
    kernel : callable, optional
        Of the linearization; returns the operator. Default: the output NTK ``lin.output_ntk``, or
        the flow operator ``lin.flow`` without a readout.
    num_matvecs : int
        Random vectors z, at least 2, the same at every checkpoint. If the kernel has no more rows,
        all is exact.
    rng : int
        Their seed.

    Returns
    -------
    Dataset
        ``distance_to_first`` and ``distance_to_previous``, from 0 to 1, NaN without a checkpoint
        before; ``norm``, the Frobenius norm; with targets ``target_alignment``; each with
        ``..._stderr``, zero if exact. ``image`` (probe, trial, time, output), the images K z, and
        ``first_image``, those at the first checkpoint.

    Raises
    ------
    TypeError
        If `lin` is no linearization, or `rng` no int.
    ValueError
        If `targets`, `previous` or `num_matvecs` does not fit, or the kernel is not square.

    Notes
    -----
    The distance of Fort, Dziugaite, Paul, Kharaghani, Roy and Ganguli (NeurIPS 2020, Deep learning
    versus kernel learning) is one minus the alignment of both kernels (:func:`kpops.alignment`),

        S(K, K') = 1 - <K, K'> / (||K|| ||K'||) = || K / ||K|| - K' / ||K'|| ||^2 / 2.

    It is computed by the right side, which keeps its digits where training is lazy and the distance
    small. With z uniform on the sphere of squared radius n, <K z, K' z> has the mean <K, K'>. The
    distance of any two checkpoints i and j follows from their images in the same way.

    The alignment with the targets is ``y* K y / (||K|| ||y||^2)``, the cosine of K and y y*
    (Cristianini and others 2001; centred: Cortes, Mohri and Rostamizadeh 2012). Baratin and others
    (AISTATS 2021, Implicit regularization via neural feature alignment) follow it over training.

    Examples
    --------
    >>> import copy, functools, torch, kpops
    >>> network = kpops.Network(torch.nn.GRU(3, 4), torch.nn.Linear(4, 1))
    >>> saved = [(step, copy.deepcopy(network.state_dict())) for step in (0, 10)]
    >>> y = torch.randn(5, 6, 1).sign()
    >>> measure = functools.partial(kpops.training.kernel_evolution, targets=y, centred=True)
    >>> moved = kpops.over_training(network, saved, torch.randn(5, 6, 3), measure)
    >>> moved.distance_to_first.values  # nothing was learned
    array([0., 0.], dtype=float32)
    """
    require_linearization(lin)
    check_count("num_matvecs", num_matvecs, 2)
    check_count("rng", rng, 0)
    op = (kernel or _tangent_kernel)(lin)
    if op.domain != op.codomain:
        raise ValueError(f"the kernel is {op!r}: return an operator from a space to itself")
    centre = _Centring(lin, op.domain) if centred else _as_it_is
    exact = op.domain.size <= num_matvecs
    images = _images(op, centre, None if exact else num_matvecs, rng)
    squares = dots(images.flatten(1), images.flatten(1))
    found: dict[str, tuple[float, float]] = {
        "norm": _statistic(torch.sqrt, exact, squares),
        "distance_to_first": (0.0, 0.0),
        "distance_to_previous": (math.nan, math.nan),
    }
    first = images
    if previous is not None:
        first, last = (_read(previous, name, images) for name in ("first_image", "image"))
        found["distance_to_first"] = _distance(images, first, exact)
        found["distance_to_previous"] = _distance(images, last, exact)
    if targets is not None:
        y, _ = enter(targets, op.domain, op.torch_dtype, op.device)
        if len(y) != 1:
            raise ValueError(f"targets are {len(y)} vectors, expected one of {op.domain}")
        y = centre(_Centring(lin, op.domain).valid * y).flatten(1)
        forms = dots(y, op.apply(y.reshape(1, *op.domain.shape)).flatten(1)) / dots(y, y)
        form = forms.item()
        found["target_alignment"] = _statistic(lambda s: form / s.sqrt(), exact, squares)
    dtype = numpy_dtype(op.torch_dtype)
    texts = {
        "norm": "Frobenius norm of the kernel",
        "distance_to_first": "distance from the first kernel",
        "distance_to_previous": "distance from the kernel before",
        "target_alignment": "alignment of the kernel with the targets",
    }
    numbers = {
        **{name: (pair[0], texts[name]) for name, pair in found.items()},
        **{f"{name}_stderr": (pair[1], "standard error") for name, pair in found.items()},
    }
    fields = {"image": (images, "image K z"), "first_image": (first, "image K z of the first")}
    settings = {"centred": bool(centred), "num_matvecs": int(num_matvecs), "rng": int(rng)}
    return xr.Dataset(
        {
            **{name: labelled((), dtype.type(x), text) for name, (x, text) in numbers.items()},
            **{
                name: op.domain.label(to_numpy(x), block_dims=("probe",), long_name=text)
                for name, (x, text) in fields.items()
            },
        },
        attrs={**lin.attrs, "kernel": op.symbol, "configuration": json.dumps(settings)},
    )


def _tangent_kernel(lin: Linearization) -> TrajectoryOperator:
    return lin.flow if lin.readout is None else lin.output_ntk


def _as_it_is(block: Tensor) -> Tensor:
    return block


class _Centring:
    """Subtract the mean over trials that are valid at the step."""

    def __init__(self, lin: Linearization, space: Space) -> None:
        ones = torch.ones(1, *space.shape, dtype=lin.dtype, device=lin.device)
        steps = space.dims[:2] == lin.space.dims[:2]
        whole = steps and space.shape[:2] == lin.space.shape[:2]
        if steps and not whole and lin.trajectory.mask is not None:
            raise ValueError(
                f"the kernel acts on {space}, a part of trials with a mask, whose valid steps are "
                "not known there: linearise that part alone, or keep all trials and steps"
            )
        self.valid = lin.trajectory.restrict(ones) if whole else ones
        self.axis = 1 + space.dims.index("trial") if "trial" in space.dims else None
        self.space = space

    def __call__(self, block: Tensor) -> Tensor:
        if self.axis is None:
            raise ValueError(f"centred=True, but the kernel acts on {self.space}: keep the trials")
        count = self.valid.sum(self.axis, keepdim=True).clamp_min(1)
        block = self.valid * block
        return self.valid * (block - block.sum(self.axis, keepdim=True) / count)


def _images(
    op: TrajectoryOperator, centre: Callable[[Tensor], Tensor], m: int | None, rng: int
) -> Tensor:
    """K z of m random vectors, or of a basis, (probe, *dims)."""
    space, source = VectorSpace.of(op, op.domain), RandomVectors(rng)
    total, shape = op.domain.size if m is None else m, op.domain.shape
    basis = torch.eye(total, dtype=op.torch_dtype, device=op.device) if m is None else None
    images = []
    for start in range(0, total, space.block):
        k = min(space.block, total - start)
        z = space.sphere(source, k) if basis is None else basis[start : start + k]
        images.append(centre(op.apply(centre(z.reshape(-1, *shape)))))
    return torch.cat(images)


def _statistic(
    function: Callable[..., Tensor], exact: bool, *samples: Tensor
) -> tuple[float, float]:
    """A function of the sums over a basis, or of means over random vectors; and its error."""
    if exact:
        return float(function(*(s.sum() for s in samples))), 0.0
    return jackknife(function, *samples)


def _distance(a: Tensor, b: Tensor, exact: bool) -> tuple[float, float]:
    """1 - <a, b> / (|a| |b|) and its standard error, without cancellation.

    With scales s = 1 / |a| and t = 1 / |b| of all vectors, and d = |s a - t b|^2,
    1 - <a, b> / (|a| |b|) = (d - (s |a| - t |b|)^2) / (2 s t |a| |b|) for the norms of any of them.
    """
    a, b = (x.flatten(1).double() for x in (a, b))
    aa, bb = dots(a, a), dots(b, b)
    total = torch.sum if exact else torch.mean
    s, t = (total(x).rsqrt() for x in (aa, bb))
    if not s.isfinite() or not t.isfinite():
        return math.nan, math.nan  # a kernel is zero
    rest = s * a - t * b

    def distance(aa: Tensor, bb: Tensor, dd: Tensor) -> Tensor:
        a, b = s * aa.sqrt(), t * bb.sqrt()
        return (dd - (a - b).square()) / (2 * a * b)

    estimate, stderr = _statistic(distance, exact, aa, bb, dots(rest, rest))
    return max(estimate, 0.0), stderr


def _read(previous: xr.Dataset, name: str, like: Tensor) -> Tensor:
    """Images of another checkpoint."""
    values = as_tensor(np.asarray(previous[name].values), name).to(like)
    if values.shape != like.shape:
        raise ValueError(
            f"previous has images of shape {tuple(values.shape)}, here they are "
            f"{tuple(like.shape)}: use the same inputs and num_matvecs at every checkpoint"
        )
    return values
