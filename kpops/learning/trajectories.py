"""How many dimensions the trajectories fill."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, numpy_dtype
from kpops.engines.threads import enough_for
from kpops.kinds import is_array
from kpops.labels import Coordinate, Space, by_name, coordinates_of
from kpops.learning.required import labelled, require_linearization
from kpops.linalg.ranks.base import of_spectrum
from kpops.linalg.ranks.registry import rank_spec
from kpops.linalg.rounding import fix_signs
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.precision import in_full_precision
from kpops.spectral._result import mode_variables, modes_of

_DIMS = ("trial", "time", "unit")


@experimental
@in_full_precision
def trajectory_dimension(
    states: Any,
    *,
    over: str | Sequence[str] = ("trial", "time"),
    threshold: float = 0.95,
    mask: Any = None,
) -> xr.Dataset:
    """Dimension of the trajectories by principal components.

    Parameters
    ----------
    states : Linearization, or Tensor, array_like or DataArray of shape (trial, time, unit)
        A linearization stands for its states. The dimensions of a DataArray are identified by
        name, and its coordinates label the axes.
    over : sequence of str
        Dimensions of the mean that is subtracted. ``("trial", "time")``: the mean of all samples.
        ``("trial",)``: the mean over trials at each time, which removes what all trials share.
        ``("time",)``: the mean over time of each trial, which removes where trials rest. ``()``:
        none; second moments about zero.
    threshold : float
        Fraction of the variance that ``n_components`` axes hold, between 0 and 1.
    mask : array_like of bool, optional
        Shape (trial, time), True at valid steps; the others are ignored. A linearization has its
        own.

    Returns
    -------
    Dataset
        ``variance(mode)`` along the principal axes, decreasing; ``explained(mode)``, its fraction
        of the total; ``axis(mode, unit)`` of unit norm, its entry of largest magnitude positive;
        ``participation_ratio``; ``n_components``, the smallest number of axes that hold
        `threshold` of the variance.

    Raises
    ------
    TypeError
        If `states` is neither float32 nor float64.
    ValueError
        If `states`, `mask` or an option is wrong, states are not finite, or no variance is left
        because every mean is of one sample.

    Notes
    -----
    With N valid samples x_n of the state, less the mean of their group (g groups: one for all, one
    for each time, one for each trial, or none), the covariance is
    ``C = sum_n x_n x_n^T / (N - g)``, with eigenvalues v_k. The participation ratio is
    ``(sum_k v_k)^2 / sum_k v_k^2`` (Gao and others 2017, A theory of multineuronal dimensionality,
    dynamics and measurement), between 1 and the number of axes, and 0 if nothing varies. Both
    measures are those of :func:`kpops.effective_rank` for the matrix of the centred samples (kinds
    ``"participation"`` and, without its interpolation, ``"variance"``). The singular values come
    from the triangular factor of that matrix in float64, not from its square.

    The state of an LSTM is h and c; for h alone pass
    ``lin.states.isel(unit=lin.states["variable"] == "h")``, which keeps the mask. Second moments
    about zero (``over=()``) are those in K: the recurrent weights of a linear network have
    ``PR(K) = units * PR(second moments of the previous states)``.

    Examples
    --------
    >>> import torch, kpops
    >>> task = kpops.tasks.memory_pro(6, angles="even", noise=0)
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), task.inputs)
    >>> pca = kpops.trajectory_dimension(lin)
    >>> (lin.states @ pca.axis[:3]).dims  # with the coordinates of the trials
    ('trial', 'time', 'mode')
    >>> bool(1 <= pca.participation_ratio <= 8)
    True
    """
    over = (over,) if isinstance(over, str) else tuple(over)
    if not set(over) <= {"trial", "time"} or len(set(over)) < len(over):
        raise ValueError(f"over={over}: choose from ('trial', 'time'), each at most once")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: choose a fraction between 0 and 1")
    values, valid, space, attrs = read_states(states, mask)
    singular, axes, n_free = principal(values, valid, over)
    variance = singular.square() / n_free
    axes = axes * fix_signs(axes)[:, None]
    held = of_spectrum(singular, rank_spec("variance", threshold), False, 0.0)
    participation = of_spectrum(singular, rank_spec("participation"), False, 0.0)
    n_components = math.ceil(held * (1 - 1e-12))  # rounding lifts no count
    dtype = values.dtype
    numbers = {
        "variance": (variance.to(dtype), "variance along the principal axis"),
        "explained": ((variance / variance.sum()).to(dtype), "fraction of the variance"),
    }
    ratio = numpy_dtype(dtype).type(participation)
    configuration = {"over": over, "threshold": threshold}
    return xr.Dataset(
        {
            **mode_variables(numbers),
            "axis": modes_of(axes.to(dtype), space.keep(("unit",)), "principal axis"),
            "participation_ratio": labelled((), ratio, "participation ratio of the states"),
            "n_components": labelled(
                (), n_components, f"axes that hold {threshold:g} of the variance"
            ),
        },
        attrs={**attrs, "configuration": json.dumps(configuration, sort_keys=True)},
    )


def read_states(states: Any, mask: Any) -> tuple[Tensor, Tensor, Space, dict[str, str]]:
    """States (trial, time, unit), valid steps (trial, time), their labels and attributes."""
    if isinstance(states, Linearization):
        if mask is not None:
            raise ValueError("mask is given, but a linearization has its own: leave it out")
        require_linearization(states)
        values, mask = states.trajectory.states, states.trajectory.mask
        space, attrs = states.space, states.attrs
        if "time" not in space.dims:  # a network with sites takes one step
            values, space = values[:, None], _one_step(space)
    else:
        if not is_array(states):
            require_linearization(states, "states")
        space, attrs = _space_of(states), {}
        if isinstance(states, xr.DataArray):
            mask = states.coords.get("mask") if mask is None else mask
            states = by_name(states, space, "states")
        values = as_tensor(states, "states")
        numpy_dtype(values.dtype)  # refuses what is not computed in
    steps = space.keep(("trial", "time"))
    if mask is None:
        mask = torch.ones(steps.shape, dtype=torch.bool)
    mask = by_name(mask, steps, "mask") if isinstance(mask, xr.DataArray) else mask
    given = as_tensor(mask, "mask").to(values.device)
    if tuple(given.shape) != steps.shape:
        raise ValueError(
            f"mask has shape {tuple(given.shape)}, expected (trial, time) = {steps.shape}"
        )
    if not ((given == 0) | (given == 1)).all():
        raise ValueError("mask has values other than 0 and 1: pass booleans")
    valid = given.bool()
    if not values[valid].isfinite().all():
        raise ValueError("states are not finite at some valid step: mask those steps")
    return values, valid, space, attrs


def _one_step(space: Space) -> Space:
    trial, unit = space.shape
    return Space(_DIMS, (trial, 1, unit), space.coords, space.parts)


def _space_of(states: Any) -> Space:
    shape = tuple(np.shape(states))
    if isinstance(states, xr.DataArray):
        if set(states.dims) != set(_DIMS):
            raise ValueError(f"states has dims {states.dims}, expected {_DIMS}")
        shape = tuple(states.sizes[d] for d in _DIMS)
        return Space(_DIMS, shape, coordinates_of(states, _DIMS))
    if len(shape) != 3:
        raise ValueError(f"states has shape {shape}, expected (trial, time, unit)")
    return Space(_DIMS, shape, {"unit": Coordinate(("unit",), np.arange(shape[2]))})


def principal(values: Tensor, valid: Tensor, over: tuple[str, ...]) -> tuple[Tensor, Tensor, int]:
    """Singular values and right singular vectors of the centred samples, and N - g."""
    x = values.double().masked_fill(~valid[..., None], 0)
    n_groups = 0
    size = x.norm()
    if over:
        axes = [_DIMS.index(d) for d in over]
        counts = valid.sum(axes, keepdim=True)
        n_groups = int((counts > 0).sum())
        x = x - x.sum(axes, keepdim=True) / counts.clamp_min(1)[..., None]
        x = x.masked_fill(~valid[..., None], 0)
    n_samples = int(valid.sum())
    n_free = n_samples - n_groups
    if n_free < 1:
        raise ValueError(
            f"over={over} makes {n_groups} means of {n_samples} samples, which leaves no variance: "
            "take the mean over other dimensions, or more samples"
        )
    with enough_for(4 * x.numel()):  # a reflection at a time
        triangle = torch.linalg.qr(x.flatten(0, 1), mode="r").R
        _, singular, axes_of = torch.linalg.svd(triangle, full_matrices=False)
    singular, axes_of = singular[:n_free], axes_of[:n_free]
    # What the rounding of the means leaves in constant states is no variance.
    return singular * (singular > torch.finfo(x.dtype).eps * size), axes_of, n_free
