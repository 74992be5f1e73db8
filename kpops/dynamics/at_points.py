"""Operators of the motion at fixed points, and the response of such points to parameters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops import snapshot
from kpops.arrays import as_tensor, to_numpy
from kpops.dynamics.given import bring, n_inputs, steady_input
from kpops.dynamics.resolvent import FixedPointLinearization
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.trajectory import Trajectory
from kpops.kinds import described
from kpops.labels import Coordinate, Space, without_multiindex
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.models.initial_state import LearnedStart
from kpops.models.recurrence import as_recurrence
from kpops.operators.base import TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.read_inputs import Reading
from kpops.scalars import check_count


@in_full_precision
@torch.inference_mode(False)
def linearize_at(
    model: Any, points: Any, n_steps: int | None = None, *, input: Any = None, **options: Any
) -> Linearization:
    """Linearise a model at given points: about trajectories that stay there, or at fixed points.

    Parameters
    ----------
    model : Linearization or nn.Module
        A linearization, whose model, parameters, readout, measure and engine are used, or any model
        that :func:`kpops.linearize` takes.
    points : Dataset, DataArray, Tensor or array_like
        States (point, unit), or the result of :func:`fixed_points`.
    n_steps : int, optional
        Length T of the trajectories. Default: the points are fixed points, and P = (I - A)^-1.
    input : array_like, optional
        Constant input x (feature,), or one for each point (point, feature). Default: that of the
        Dataset, else zeros.
    **options
        For a model: options of :func:`kpops.linearize` other than ``h0`` and ``mask``.

    Returns
    -------
    Linearization
        Every point is a trial, with the label of the point.

    Raises
    ------
    TypeError, ValueError
        As for :func:`kpops.linearize`; or if a linearization comes with options. Without `n_steps`,
        if a point is not fixed, or A has an eigenvalue of 1 there, to rounding; later, if GMRES
        does not converge.

    Notes
    -----
    *Trajectories.* Every step starts at the point itself, so A[t] = df/dh(x, h*) for all t. The
    model does not run on from there: rounding would drive it away from an unstable point, at every
    step by a factor ``|lambda|``. The block of P from time s to time t is A^(t - s), and K repeats
    one block over all pairs of steps of a point. At a slow point this is the motion about it
    without its drift. The states are f(h*), which is h* except for its speed.

    *Fixed points*, such as those of implicit layers (deep equilibrium models). From h* = f(h*,
    theta) follows ``dh*/dtheta = (I - A)^-1 df/dtheta``, which is P J with the *resolvent* P = (I -
    A)^-1, the limit of the last step of ever longer trajectories at a stable point. There is one
    step, P K P* is the tangent kernel of the fixed point, ``lin.output_ntk`` that of outputs, and
    :func:`kpops.gradient_flow` differentiates implicitly. Up to 1024 units, and 2^26 numbers in
    the matrices of all points, I - A is factored. Beyond, GMRES solves for each vector and point
    without the matrix, to a backward error of 16 units of rounding (``|q - (I - A) v|`` over ``|q|
    + |I - A| |v|``), or raises a ValueError that names the point.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> _ = torch.nn.init.constant_(cell.weight_hh, 1.5)
    >>> lin = kpops.linearize_at(cell, torch.zeros(1, 1, dtype=torch.float64), 4)
    >>> (lin.P @ torch.tensor([[[1.0], [0], [0], [0]]], dtype=torch.float64)).ravel().tolist()
    [1.0, 1.5, 2.25, 3.375]

    P of the fixed point itself, 1 / (1 - 1.5):

    >>> kpops.linearize_at(cell, torch.zeros(1, 1, dtype=torch.float64)).P.to_dense()
    array([[-2.]])
    """
    if n_steps is not None:
        check_count("n_steps", n_steps, 1)
    given = options if isinstance(model, Linearization) else {"h0", "mask"} & set(options)
    if given:
        raise ValueError(
            f"{sorted(given)} given: points are the states, and a linearization has its own options"
        )
    states, x, labels = read_points(points, input)
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
        P J, from the parameters to (trial, time, unit), with a trial for each point, and one step:
        ``sensitivity`` of the linearization that :func:`linearize_at` makes without `n_steps`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`linearize_at`.

    Notes
    -----
    With the eigenvectors of :func:`fixed_points`, ``dh*/dtheta = sum_i r_i (l_i . df/dtheta) / (1 -
    lambda_i)``: near a bifurcation at lambda = 1 one channel dominates, and the stationary kernel P
    K P* tends to rank one.

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
    return linearize_at(model, points, input=input, **options).sensitivity


def read_points(points: Any, x: Any) -> tuple[Any, Any, np.ndarray]:
    """States (point, unit), the input or inputs or None, and the labels of the points."""
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
    if np.ndim(x) > 1 and np.shape(x)[:-1] != (len(points),):
        raise ValueError(
            f"input has shape {tuple(np.shape(x))} for {len(points)} points: pass one for each, or "
            "one (feature,) for all"
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
    inputs = np.broadcast_to(inputs, (len(h), inputs.shape[-1]))[:, None]
    start = None if isinstance(recurrent, LearnedStart) else h
    parameters = parts.own_names(options.pop("parameters", None))
    x = xr.DataArray(inputs, dims=("trial", "time", "feature"))
    return linearize(
        recurrent, x, h0=start, readout=parts.readout, parameters=parameters, **options
    )


def _stay(
    lin: Linearization,
    states: Any,
    x: Any,
    labels: np.ndarray,
    n_steps: int | None,
    *,
    convert: bool,
) -> Linearization:
    """The linearization with steps that all start at the same states and read the same input.

    Without a number of steps it is that of fixed points.
    """
    kind = Linearization if n_steps is not None else FixedPointLinearization
    n_steps = int(n_steps or 1)
    recurrence, like = lin.recurrence, lin.trajectory.states
    n_units, n_features = like.shape[2], n_inputs(recurrence, lin.trajectory.inputs.shape[2])
    h = bring(states, like, "points", convert)
    x = like.new_zeros(n_features) if x is None else bring(x, like, "input", convert)
    n_points = len(h)
    if h.shape[1] != n_units or x.shape not in ((n_features,), (n_points, n_features)):
        raise ValueError(
            f"points has shape {tuple(h.shape)} and input {tuple(x.shape)}, expected (point, "
            f"{n_units}) and ({n_features},) for this linearization, or an input for each point"
        )
    steady = steady_input(recurrence, x.expand(n_points, -1))
    inputs = steady[:, None].expand(-1, n_steps, -1).contiguous()
    with exclusive_compute(h.device):
        moved = lin.recurrence(inputs[:, 0], h)
    before, after = (part[:, None].expand(-1, n_steps, -1).contiguous() for part in (h, moved))
    coords = {
        "trial": Coordinate(("trial",), labels),
        "time": Coordinate(("time",), np.arange(1, n_steps + 1)),
        **{k: c for k, c in lin.space.coords.items() if c.dims in ((), ("unit",))},
    }
    space = Space(("trial", "time", "unit"), (n_points, n_steps, n_units), coords)
    trajectory = Trajectory(inputs, before, after, None, lin.precision)
    new = {"trajectory": trajectory, "space": space, "reading": Reading()}
    return kind(**{f.name: getattr(lin, f.name) for f in fields(Linearization)} | new)
