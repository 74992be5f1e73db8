"""Fixed points and slow points of a recurrent model at a constant input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import snapshot, work
from kpops.arrays import to_numpy
from kpops.dynamics.given import bring, constant_input, like_what, read_model, steady_input
from kpops.dynamics.search_points import Found, Map, merge, nearest, search
from kpops.dynamics.stability import labelled
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.memory import check_allocation
from kpops.kinds import described
from kpops.linearization import Linearization
from kpops.models.recurrence import Recurrence
from kpops.precision import in_full_precision
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as random_generator

_MATRICES = 16  # of the size of a Jacobian, in memory for each point with its eigenvectors


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
@work.shown
def fixed_points(
    model: Any,
    starts: Any,
    *,
    input: Any = None,
    tol: float = 0.0,
    merge_distance: float = 1e-3,
    jitter: float = 0.0,
    max_iterations: int = 300,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Fixed points and slow points of a model at a constant input, and their stability.

    Parameters
    ----------
    model : Linearization or nn.Module
        A linearization, or any model that :func:`kpops.linearize` takes, or one without parameters.
        A learned initial state is ignored.
    starts : int, array_like, Tensor or DataArray
        States from which to search: the last dimension (of a DataArray: ``unit``) is the state, all
        others are starts. Or the number of starts to draw from the valid states of the
        linearization, without repetition while there are enough.
    input : array_like, optional
        Constant input x (feature,). Default: zeros.
    tol : float
        Speed, in state per step, at which the search ends. A fixed point has at most this speed, or
        one that rounding explains: 16 units of it times ``sqrt(S) + |h|``, plus 4 units times
        ``|A - I| |h|``.
    merge_distance : float
        Points up to this distance apart count as one, relative to the spread of the states; see
        Notes.
    jitter : float
        Standard deviation of Gaussian noise to add to every entry of the starts.
    max_iterations : int
        Most steps of the search from every start.
    dtype : torch.dtype, optional
        float32 or float64 to convert the model, the starts and the input to. With an eigenvalue
        1 - d, the state is known to the rounding of its speed over d: float64 is worth its time
        even for models of float32.
    device : torch.device or str, optional
        Where to compute. Default: where the model is.
    rng : int, Generator or None
        Source of the choice of starts and of the jitter.
    progress : bool
        Show a bar of the starts.

    Returns
    -------
    Dataset
        For every point:

        - ``state(point, unit)``; ``speed(point)``, which is ``|f(h) - h|``; ``kind(point)``:
          ``"fixed"``, ``"slow"`` or ``"not converged"``, and ``converged(point)``, False for the
          last; ``basin_count(point)``, how many starts led there;
        - ``start_distance(point)`` to the nearest start, over the spread, and ``outlier(point)``,
          whether it exceeds 1;
        - ``eigenvalue_real`` and ``eigenvalue_imag`` (point, mode) of the state Jacobian A, by
          falling magnitude; ``time_constant(point, mode)``, which is ``-1 / log |eigenvalue|``,
          negative for growth; ``spectral_radius(point)``; ``n_unstable(point)`` and
          ``is_stable(point)``, magnitudes of 1 to rounding being neither unstable nor stable;
        - ``right_real``, ``right_imag``, ``left_real`` and ``left_imag`` (point, mode, unit), the
          eigenvectors: A r = lambda r of unit norm with the largest entry positive, and
          l A = lambda l, with l_i . r_j = 1 for i = j and else 0, without conjugation;
        - ``eigenvector_condition(point)``: S if A is normal, large if eigenvalues are sensitive;
          infinite if A lacks eigenvectors, where the left ones are NaN.

        And ``input(feature)``. Points are ordered by kind, number of unstable directions, and
        state. Attributes: ``model``, ``dtype``, ``spread``, ``n_starts`` and ``configuration``
        (JSON).

    Raises
    ------
    TypeError
        If dtypes are mixed, or `model` is not a module.
    ValueError
        If a shape or a number is out of range, a value is not finite, or the model is random or
        mixes rows.
    MemoryError
        If the eigenvectors of all points would not fit: raise `merge_distance`.

    Warns
    -----
    ConvergenceWarning
        If some starts reached neither a fixed point nor a slow point nor an outlier.

    See Also
    --------
    linearize_at : The operators of the motion at such points.
    stationary_response : How fixed points move with the parameters.

    Notes
    -----
    The search descends ``q = |f(h) - h|^2 / 2`` from all starts together (Sussillo and Barak 2013,
    Neural Computation 25, 626-649), by Levenberg-Marquardt steps with the damping of Yamashita and
    Fukushima (2001, Computing Suppl. 15, 239-249). A slow point is a minimum of q whose speed is
    above `tol`: the Hessian of q is positive definite there, and the distance to the exact minimum,
    by Newton's step, is below a tenth of the merge distance. With a `tol` above its speed, points
    cover a slow manifold instead, where the starts led to.

    The spread is the root mean square distance of the states from their mean: the valid states of
    the linearization, or else the starts; 1 if all are equal. The best point is kept (fixed before
    slow, then by speed) and stands for all points up to `merge_distance` times the spread away;
    then the best of the rest, and so on. Points are therefore that far apart. A line of fixed
    points is covered at that distance by many starts, not merged.

    The steps of the search are not those of the dynamics: ``basin_count`` refers to the search, and
    saddles are found as well as nodes. The search may also leave the region of the trajectories. A
    GRU has valleys of q far outside, where its gates saturate and the speed falls for ever: a
    search that ends there is an outlier, mostly ``"not converged"``.

    Examples
    --------
    Two stable fixed points and a saddle of a unit that excites itself:

    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> _ = torch.nn.init.constant_(cell.weight_hh, 1.5)
    >>> points = kpops.fixed_points(cell, torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None])
    >>> points.state.values.ravel().round(4).tolist()
    [-0.8586, 0.8586, 0.0]
    >>> points.eigenvalue_real.values.ravel().round(4).tolist()
    [0.3943, 0.3943, 1.5]
    """
    settings = _check(tol, merge_distance, jitter, max_iterations)
    generator = random_generator(rng)
    recurrence, given, starts, states = _read(model, starts, input, dtype, device, generator)
    if jitter:
        noise = torch.from_numpy(generator.standard_normal(starts.shape))
        starts = starts + jitter * noise.to(starts)
    spread = float((states - states.mean(0)).square().sum(1).mean().sqrt()) or 1.0
    distance = merge_distance * spread
    with exclusive_compute(starts.device):
        x = steady_input(recurrence, given)
        f = Map(recurrence, x)
        inputs = x.expand(len(starts), 1, -1)
        snapshot.run_from(recurrence, inputs, starts, None)  # refuses random models
        found = search(f, starts, tol, 0.1 * distance, max_iterations)
        ends, speed, kind = map(to_numpy, found)
        kept, count = merge(ends, speed, kind, distance)
        n_bytes = _MATRICES * len(kept) * x.element_size() * ends.shape[1] ** 2
        check_allocation(f"the eigenvectors of {len(kept)} points", n_bytes, x.device)
        points = Found(*(part[torch.from_numpy(kept).to(x.device)] for part in found))
        jacobians = f.jacobians(points.states)
    away = nearest(points.states, starts) / spread
    result = labelled(recurrence, given, points, jacobians, count, away)
    digits = np.round(ends[kept] / distance)  # so that rounding does not decide the order
    order = np.lexsort((*digits.T[::-1], result.n_unstable.values, kind[kept]))
    result = result.isel(point=order).assign_coords(point=result.point)
    others = result.basin_count.values[~(result.converged | result.outlier).values]
    if len(others):
        work.warn_unconverged(
            f"fixed_points: {others.sum()} starts came to no minimum of the speed in "
            f"{max_iterations} iterations; the variable 'converged' marks their points; raise "
            "max_iterations, or tol to accept their speed as that of fixed points"
        )
    return result.assign_attrs(
        model=type(recurrence.module).__name__,
        dtype=str(given.dtype).removeprefix("torch."),
        spread=spread,
        n_starts=len(starts),
        configuration=json.dumps(settings, sort_keys=True),
    )


def _check(
    tol: float, merge_distance: float, jitter: float, max_iterations: int
) -> dict[str, float]:
    """Refuse numbers out of range; return the settings."""
    settings = {"tol": tol, "merge_distance": merge_distance, "jitter": jitter}
    for name, value in settings.items():
        check_real(name, value)
        if not 0 <= value < np.inf or (name == "merge_distance" and value == 0):
            raise ValueError(f"{name}={value!r}: choose a finite number, not below zero")
    check_count("max_iterations", max_iterations, 1)
    return {k: float(v) for k, v in settings.items()} | {"max_iterations": int(max_iterations)}


def _read(
    model: Any,
    starts: Any,
    x: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    generator: np.random.Generator,
) -> tuple[Recurrence, Tensor, Tensor, Tensor]:
    """A model, its input, where to start, and the states that define the spread."""
    lin = model if isinstance(model, Linearization) else None
    if lin is not None:
        lin.space.parts.refuse_spread(lin.P)
    if isinstance(starts, bool | xr.Dataset | Linearization):
        raise TypeError(
            f"starts is {described(starts)}: pass states (start, unit), or a number of them"
        )
    h0 = starts if np.ndim(starts) else None
    recurrence = read_model(model if lin is None else lin.recurrence, dtype, device, h0=h0)
    like = like_what(recurrence, {"starts": starts}, dtype)
    trajectory = None if lin is None else lin.trajectory
    states = None
    if trajectory is not None:
        mask = trajectory.mask
        states = trajectory.states.flatten(0, 1) if mask is None else trajectory.states[mask]
        states = states.to(like)
    if isinstance(starts, int | np.integer):
        begin = _drawn(states, int(starts), generator)
    else:
        begin = _states_of(starts, recurrence.state_size, like, dtype is not None)
    n_read = None if trajectory is None else trajectory.inputs.shape[2]
    x = constant_input(recurrence, n_read, x, like, dtype is not None)
    return recurrence, x, begin, begin if states is None else states


def _states_of(starts: Any, size: int | None, like: Tensor, convert: bool) -> Tensor:
    if isinstance(starts, xr.DataArray):
        if "unit" not in starts.dims:
            raise ValueError(f"starts has dims {starts.dims}: one of them must be unit")
        if "mask" in starts.coords:  # some states of a linearization are padding
            valid = starts["mask"]
            starts = starts.transpose(*valid.dims, ..., "unit").data[valid.values]
        else:
            starts = starts.transpose(..., "unit").data
    states = bring(starts, like, "starts", convert)
    if states.ndim == 0 or 0 in states.shape or (size or states.shape[-1]) != states.shape[-1]:
        raise ValueError(
            f"starts has shape {tuple(states.shape)}, expected (start, unit) with one start or "
            f"more, of {'one or more' if size is None else size} units"
        )
    return states.reshape(-1, states.shape[-1])


def _drawn(states: Tensor | None, n: int, generator: np.random.Generator) -> Tensor:
    if states is None:
        raise ValueError(
            f"starts={n} states can only be drawn from a linearization: pass "
            "kpops.linearize(model, inputs) as the model, or states (start, unit)"
        )
    if n < 1:
        raise ValueError(f"starts={n}: choose 1 or more")
    chosen = generator.choice(len(states), size=n, replace=n > len(states))
    return states[torch.from_numpy(chosen).to(states.device)]
