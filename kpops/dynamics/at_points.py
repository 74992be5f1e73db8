"""Operators of the motion at fixed points, and the response of such points to parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import snapshot
from kpops.arrays import as_tensor, to_numpy
from kpops.dynamics.given import bring, n_inputs, steady_input
from kpops.dynamics.search_points import Map
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.trajectory import Trajectory
from kpops.kinds import described
from kpops.labels import Coordinate, Space, without_multiindex
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.maturity import experimental
from kpops.models.initial_state import LearnedStart
from kpops.models.recurrence import as_recurrence
from kpops.operators.base import Product, TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.read_inputs import Reading
from kpops.scalars import check_count


@experimental
@in_full_precision
@torch.inference_mode(False)
def linearize_at(
    model: Any, points: Any, n_steps: int, *, input: Any = None, **options: Any
) -> Linearization:
    """Linearise a model about trajectories that stay at given points.

    Parameters
    ----------
    model : Linearization or nn.Module
        A linearization, whose model, parameters, readout, measure and engine are used, or any model
        that :func:`kpops.linearize` takes.
    points : Dataset, DataArray, Tensor or array_like
        States (point, unit), or the result of :func:`fixed_points`.
    n_steps : int
        Length T of the trajectories.
    input : array_like, optional
        Constant input x (feature,). Default: that of the Dataset, else zeros.
    **options
        For a model: options of :func:`kpops.linearize` other than ``h0`` and ``mask``.

    Returns
    -------
    Linearization
        Every point is a trial, with the label of the point.

    Raises
    ------
    TypeError, ValueError
        As for :func:`kpops.linearize`; or if a linearization comes with options.

    Notes
    -----
    Every step starts at the point itself, so A[t] = df/dh(x, h*) for all t. The model does not run
    on from there: rounding would drive it away from an unstable point, at every step by a factor
    ``|lambda|``. The block of P from time s to time t is A^(t - s), and K repeats one block over
    all pairs of steps of a point. At a slow point this is the motion about it without its drift.
    The states are f(h*), which is h* except for its speed.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> _ = torch.nn.init.constant_(cell.weight_hh, 1.5)
    >>> lin = kpops.linearize_at(cell, torch.zeros(1, 1, dtype=torch.float64), 4)
    >>> (lin.P @ torch.tensor([[[1.0], [0], [0], [0]]], dtype=torch.float64)).ravel().tolist()
    [1.0, 1.5, 2.25, 3.375]
    """
    check_count("n_steps", n_steps, 1)
    given = options if isinstance(model, Linearization) else {"h0", "mask"} & set(options)
    if given:
        raise ValueError(
            f"{sorted(given)} given: points are the states, and a linearization has its own options"
        )
    states, x, labels = _read(points, input)
    lin = model if isinstance(model, Linearization) else _at(model, states, x, options)
    lin.space.parts.refuse_spread(lin.P)
    return _stay(lin, states, x, labels, n_steps, convert=options.get("dtype") is not None)


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
def stationary_response(
    model: Any, points: Any, *, input: Any = None, **options: Any
) -> TrajectoryOperator:
    """How fixed points move with the parameters: dh*/dtheta = (I - A)^-1 df/dtheta.

    Parameters
    ----------
    model, points, input, **options
        As for :func:`linearize_at`. All points must be fixed points.

    Returns
    -------
    TrajectoryOperator
        R J, from the parameters to (trial, time, unit), with a trial for each point, and one step.
        J is that of one step at the point, and R = (I - A)^-1 the first factor of the product.

    Raises
    ------
    TypeError, ValueError
        As for :func:`linearize_at`; or if a point is not fixed, or A has an eigenvalue of 1 there,
        to rounding, which makes the response infinite.

    Notes
    -----
    From h* = f(h*, theta). With the eigenvectors of :func:`fixed_points`, ``dh*/dtheta = sum_i r_i
    (l_i . df/dtheta) / (1 - lambda_i)``: near a bifurcation at lambda = 1 one channel dominates,
    and the stationary kernel R J J* R* tends to rank one. At stable points it is the limit of P J
    at the last step of long trajectories.

    Examples
    --------
    The fixed point of h' = w h + b is b / (1 - w): 4 for w = 1/2 and b = 2. Its derivatives are
    b / (1 - w)^2 and 1 / (1 - w).

    >>> import torch, kpops
    >>> class Linear(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.tensor([0.5]))
    ...         self.b = torch.nn.Parameter(torch.tensor([2.0]))
    ...     def forward(self, x, h):
    ...         return self.w * h + self.b
    >>> kpops.stationary_response(Linear(), torch.tensor([[4.0]])).to_dense()
    array([[8., 2.]], dtype=float32)
    """
    lin = linearize_at(model, points, 1, input=input, **options)
    h, x = lin.trajectory.states[:, 0], lin.trajectory.inputs[0, 0]
    with exclusive_compute(h.device):
        f = Map(lin.recurrence, x)
        speed = f.change(h).norm(dim=1)
        # At this distance from a fixed point, half of the digits of the response may be wrong.
        bound = torch.finfo(h.dtype).eps ** 0.5 * (h.shape[1] ** 0.5 + h.norm(dim=1))
        if (speed > bound).any():
            worst = int((speed / bound).argmax())
            raise ValueError(
                f"point {lin.space.coords['trial'][1][worst]} moves by {float(speed[worst]):.2g} "
                "in a step: pass fixed points, for example those of kind 'fixed'"
            )
        jacobians = f.jacobians(h)
    response = Product(Resolvent(jacobians, lin.space), lin.J)
    response.attrs = lin.attrs
    return response


class Resolvent(TrajectoryOperator):
    """R = (I - A)^-1 at points: a constant forcing q moves them by v, with ``v = A v + q``.

    Parameters
    ----------
    jacobians : Tensor, shape (point, unit, unit)
        A at the points.
    space : Space
        (trial, time, unit), with a trial for each point.

    Raises
    ------
    ValueError
        If I - A is singular to rounding.
    """

    def __init__(self, jacobians: Tensor, space: Space) -> None:
        super().__init__(
            space, space, dtype=jacobians.dtype, device=jacobians.device, symbol="(I - A)^-1"
        )
        self.block_diagonal_dims = ("trial", "time")
        matrices = torch.eye(jacobians.shape[1]).to(jacobians) - jacobians
        singular = torch.linalg.svdvals(matrices)
        bad = singular[:, -1] <= noise_floor(jacobians.dtype) * singular[:, 0]
        if bad.any():
            point = space.coords["trial"][1][int(bad.nonzero()[0, 0])]
            raise ValueError(
                f"A has an eigenvalue of 1, to rounding, at point {point}, whose response is "
                "infinite: leave the point out"
            )
        self.factors = torch.linalg.lu_factor(matrices)

    def _apply(self, block: Tensor) -> Tensor:
        return self._solve(block, adjoint=False)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._solve(block, adjoint=True)

    def _solve(self, block: Tensor, *, adjoint: bool) -> Tensor:
        # (block, trial, time, unit) -> (trial, unit, block * time), a matrix for each point
        n_block, n_points, n_steps, n_units = block.shape
        columns = block.permute(1, 3, 0, 2).reshape(n_points, n_units, -1)
        solved = torch.linalg.lu_solve(*self.factors, columns, adjoint=adjoint)
        return solved.reshape(n_points, n_units, n_block, n_steps).permute(2, 0, 3, 1).contiguous()


def _read(points: Any, x: Any) -> tuple[Any, Any, np.ndarray]:
    """States (point, unit), the input or None, and the labels of the points."""
    if isinstance(points, xr.Dataset):
        missing = [name for name in ("state", "input") if name not in points]
        if missing:
            raise ValueError(f"points has no {missing}: pass the result of kpops.fixed_points")
        x = points.input.data if x is None else x
        points = points.state
    labels = None
    if isinstance(points, xr.DataArray):
        if set(points.dims) != {"point", "unit"}:
            raise ValueError(f"points has dims {points.dims}, expected ('point', 'unit')")
        points = without_multiindex(points.transpose("point", "unit"))
        labels, points = points.point.values, points.data
    if isinstance(points, Linearization):
        raise TypeError(f"points is {described(points)}: pass states (point, unit)")
    if np.ndim(points) != 2 or 0 in np.shape(points):
        raise ValueError(
            f"points has shape {tuple(np.shape(points))}, expected (point, unit) with one or more"
        )
    return points, x, np.arange(len(points)) if labels is None else labels


def _at(model: Any, states: Any, x: Any, options: dict[str, Any]) -> Linearization:
    """Linearise a model for one step from the points, or from its learned start."""
    readout = options.pop("readout", None)
    h = to_numpy(as_tensor(states, "points"))
    parts = snapshot.take_apart(model, dtype=options.get("dtype"), readout=readout, h0=h)
    recurrent = parts.recurrent
    inputs = np.zeros(n_inputs(as_recurrence(recurrent)), h.dtype) if x is None else x
    inputs = to_numpy(as_tensor(inputs, "input"))
    inputs = np.broadcast_to(inputs, (len(h), 1, inputs.shape[-1]))
    start = None if isinstance(recurrent, LearnedStart) else h
    parameters = parts.own_names(options.pop("parameters", None))
    x = xr.DataArray(inputs, dims=("trial", "time", "feature"))
    return linearize(
        recurrent, x, h0=start, readout=parts.readout, parameters=parameters, **options
    )


def _stay(
    lin: Linearization, states: Any, x: Any, labels: np.ndarray, n_steps: int, *, convert: bool
) -> Linearization:
    """The linearization with steps that all start at the same states and read the same input."""
    recurrence, like = lin.recurrence, lin.trajectory.states
    n_units, n_features = like.shape[2], n_inputs(recurrence, lin.trajectory.inputs.shape[2])
    h = bring(states, like, "points", convert)
    x = like.new_zeros(n_features) if x is None else bring(x, like, "input", convert)
    if (h.shape[1:], x.shape) != ((n_units,), (n_features,)):
        raise ValueError(
            f"points has shape {tuple(h.shape)} and input {tuple(x.shape)}, expected (point, "
            f"{n_units}) and ({n_features},) for this linearization"
        )
    n_points = len(h)
    inputs = steady_input(recurrence, x).expand(n_points, n_steps, -1).contiguous()
    with exclusive_compute(h.device):
        new = lin.recurrence(inputs[:, 0], h)
    before, after = (part[:, None].expand(-1, n_steps, -1).contiguous() for part in (h, new))
    coords = {
        "trial": Coordinate(("trial",), labels),
        "time": Coordinate(("time",), np.arange(1, n_steps + 1)),
        **{k: c for k, c in lin.space.coords.items() if c.dims in ((), ("unit",))},
    }
    space = Space(("trial", "time", "unit"), (n_points, int(n_steps), n_units), coords)
    trajectory = Trajectory(inputs, before, after, None, lin.precision)
    return replace(lin, trajectory=trajectory, space=space, reading=Reading())
