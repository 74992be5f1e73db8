"""Branches of fixed points over a parameter, and the bifurcations on them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.dynamics.at_points import read_points
from kpops.dynamics.bifurcations import BRANCHING
from kpops.dynamics.continuation_path import Path, read_path
from kpops.dynamics.continuation_steps import Branch, Event, Follower, correct
from kpops.dynamics.given import bring, constant_input, like_what, read_model
from kpops.engines.exclusive import exclusive_compute
from kpops.labels import Space
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.models.recurrence import Recurrence
from kpops.precision import in_full_precision
from kpops.scalars import check_count, check_real


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
@work.shown
def continuation(
    model: Any,
    points: Any,
    along: Any,
    span: Any = None,
    *,
    input: Any = None,
    switch: bool = False,
    step: float = 0.02,
    max_points: int = 1000,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Follow fixed points of a model over a parameter or over checkpoints, past bifurcations.

    Parameters
    ----------
    model : Linearization or nn.Module
        A linearization, or any model that :func:`kpops.linearize` takes, or one without parameters.
        A readout has no part in it.
    points : Dataset, DataArray, Tensor or array_like
        Fixed points (point, unit) at the beginning of the span, or a result of
        :func:`fixed_points`.
    along : str, callable, or iterable of (step, state_dict)
        What the parameter mu changes:

        - the name of a model's parameter that is one number, or ``"input"`` for an input of one
          feature;
        - a function from mu, a tensor of one number, to a dict of tensors by names of parameters,
          of the recurrent part, or ``"input"`` for the constant input (feature,). It must be
          smooth, and made of torch functions: ``lambda g: {"weight_hh_l0": g * W}``;
        - checkpoints, in order, such as those of :func:`kpops.training.checkpoints`. Between them
          all weights move on straight lines, and mu is the step. Buffers are those of the model.
    span : (float, float), optional
        Value of mu at `points`, and the one to follow them to. Default: all checkpoints.
    input : array_like, optional
        Constant input x (feature,), if `along` does not change it. Default: that of a Dataset, else
        zeros.
    switch : bool
        Whether to follow also the other branches through the pitchforks and transcritical points
        that are found, to both sides, and those through the points found there.
    step : float
        Longest step along a branch, in the length sqrt(mean dh^2 + (dmu / width of the span)^2).
        Bifurcations that cancel each other within a step are missed.
    max_points : int
        Most points of a branch.
    dtype : torch.dtype, optional
        float32 or float64 to convert the model, the points and the input to.
    device : torch.device or str, optional
        Where to compute. Default: where the model is.
    progress : bool
        Show a bar of the points.

    Returns
    -------
    Dataset
        Of all branches, which are padded by NaN, -1 and False to the same number of points:

        - ``parameter(branch, point)``, ``state(branch, point, unit)`` and ``length(branch,
          point)``, the length up to there;
        - ``eigenvalue_real`` and ``eigenvalue_imag`` (branch, point, mode) of the state Jacobian A
          by falling magnitude, ``n_unstable(branch, point)`` and ``is_stable(branch, point)``, as
          of :func:`fixed_points`;
        - ``n_points(branch)``; ``end(branch)``: ``"span"`` where it leaves the span, ``"closed"``
          where it comes back to its first point, ``"max_points"``, or ``"lost"``;
          ``parent(branch)``: the event from which it was switched to, -1 for the given points;
        - ``kind(event)``, ``event_parameter(event)``, ``event_state(event, unit)``; its
          ``event_branch(event)`` and ``event_length(event)`` along that; ``event_eigenvalue_real``
          and ``event_eigenvalue_imag`` of the eigenvalue on the unit circle; ``coefficient(event)``
          of the normal form, see Notes.

        Attributes: ``model``, ``dtype`` and ``configuration`` (JSON).

    Raises
    ------
    TypeError
        If `along` is none of the above, or dtypes are mixed.
    ValueError
        If a point is not fixed or has an eigenvalue of 1 at the beginning, if `along` gives values
        that do not fit the model or checkpoints with other buffers, or if a shape or number is
        wrong or not finite.

    Warns
    -----
    ConvergenceWarning
        If a branch was lost, or longer than `max_points`.

    See Also
    --------
    fixed_points : Finds the points to begin from.
    critical_channel : What learning can move near a bifurcation.

    Notes
    -----
    Steps are those of pseudo-arclength (Keller 1977, Applications of Bifurcation Theory, 359-384),
    which pass folds: a tangent predicts, Newton's method corrects across it. Between two points
    the branch is a function of its length, and a bifurcation is the root where the magnitude of an
    eigenvalue passes 1, by Brent's method. At a regular fold mu is known almost to rounding; at
    branch points, where Newton's matrix is singular, to about the square root of it.

    ==================== =========================== ================================
    kind                 what happens                normal form, and coefficient
    ==================== =========================== ================================
    ``fold``             an eigenvalue passes 1,     z' = z + a mu + b z^2: b
                         and mu turns
    ``transcritical``    it passes 1, mu goes on,    z' = z + a mu z + b z^2: b
                         and b is not zero
    ``pitchfork``        b is zero; or mu turns      z' = z + a mu z + c z^3: c,
                         while it touches 1          negative if supercritical
    ``flip``             an eigenvalue passes -1     z' = -z + c z^3: c, positive if
                                                     a stable 2-cycle arises
    ``neimark-sacker``   a complex pair passes the   z' = e^(i a) z (1 + d abs(z)^2):
                         unit circle                 Re d, negative if a stable
                                                     circle arises; NaN if e^(3 i a) is 1
                                                     and z*^2 has a part in z'
    ``multiple``         several eigenvalues pass    NaN
                         it together
    ``border-collision`` one jumps across it, where  NaN
                         f has a corner (ReLU)
    ==================== =========================== ================================

    z is the coordinate along the eigenvector of unit length whose largest entry is positive; of a
    complex one, z is its complex coordinate (Kuznetsov 2004, Elements of Applied Bifurcation
    Theory). A branch point counts as a pitchfork if ``|b| < |c| / 1000``: only for amplitudes below
    1/1000 would its quadratic term exceed the cubic one. Neural ODEs are followed as the maps of
    their solver: an eigenvalue i w of a Hopf bifurcation is e^(i w dt) here, up to the error of the
    solver. All matrices are dense.

    Examples
    --------
    A unit that excites itself, ``h' = tanh(g h)``, has a pitchfork at g = 1:

    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> rest = torch.zeros(1, 1, dtype=torch.float64)
    >>> found = kpops.continuation(cell, rest, "weight_hh", (0.5, 1.5), switch=True)
    >>> found.kind.values.tolist(), found.event_parameter.values.round(6).tolist()
    (['pitchfork'], [1.0])
    >>> found.coefficient.values.round(6).tolist()
    [-0.333333]
    >>> found.end.values.tolist()
    ['span', 'span', 'span']
    """
    settings = _check(step, max_points, switch)
    if isinstance(model, Linearization):
        model.space.parts.refuse_spread(model.P)
        model = model.model
    states, x, _ = read_points(points, input)
    recurrence = read_model(model, dtype, device, h0=states)
    like = like_what(recurrence, {"points": states}, dtype)
    convert = dtype is not None
    h = bring(states, like, "points", convert)
    size = recurrence.state_size or h.shape[1]
    if h.shape[1] != size:
        raise ValueError(f"points has shape {tuple(h.shape)}, expected (point, unit) = (n, {size})")
    x = constant_input(recurrence, None, x, like, convert)
    with exclusive_compute(h.device):
        pieces, first, last = read_path(along, model, recurrence, x, span, dtype)
        width = abs(last - first)
        paths = [Path(recurrence, x, piece, width, size) for piece in pieces]
        follower = Follower(paths, float(step), int(max_points))
        begin = 0 if first < last else len(paths) - 1
        towards = h.new_zeros(size + 1)
        towards[-1] = 1.0 if first < last else -1.0
        starts = [_start(paths[begin], row, first, i) for i, row in enumerate(h)]
        branches, events = _follow_all(follower, starts, towards, begin, switch)
    ends = [branch.end for branch in branches]
    for end, remedy in (("lost", "smaller step"), ("max_points", "larger max_points")):
        if end in ends:
            work.warn_unconverged(
                f"continuation: {ends.count(end)} branches ended with {end!r}, before they left "
                f"the span; the variable 'end' marks them; pass a {remedy}"
            )
    return _labelled(recurrence, branches, events, paths[0]).assign_attrs(
        model=type(recurrence.module).__name__,
        dtype=str(like.dtype).removeprefix("torch."),
        configuration=json.dumps({**settings, "span": [first, last]}, sort_keys=True),
    )


def _check(step: float, max_points: int, switch: bool) -> dict[str, Any]:
    check_real("step", step)
    if not 0 < step <= 1:
        raise ValueError(f"step={step!r}: choose a length above 0, of at most 1")
    check_count("max_points", max_points, 2)
    if not isinstance(switch, bool | np.bool_):
        raise TypeError(f"switch={switch!r}: pass True or False")
    return {"step": float(step), "max_points": int(max_points), "switch": bool(switch)}


def _start(path: Path, h: Tensor, mu: float, index: int) -> Tensor:
    """The fixed point itself, from a state that is one to half of the digits."""
    v = path.point(h, mu)
    local = path.at(v)
    speed, eps = float(local.F.norm()), torch.finfo(h.dtype).eps
    if not speed <= eps**0.5 * (len(h) ** 0.5 + float(h.norm())):
        raise ValueError(
            f"point {index} moves by {speed:.2g} in a step at {mu:g}, the beginning of the span: "
            "pass fixed points there, for example those of kind 'fixed' of kpops.fixed_points"
        )
    eye = torch.eye(len(h)).to(local.A)
    if not torch.linalg.cond(local.A - eye) < 1 / noise_floor(h.dtype):
        raise ValueError(
            f"A has an eigenvalue of 1, to rounding, at point {index}, so that its branch has no "
            "direction there: begin the span beside the bifurcation"
        )
    only_mu = torch.zeros_like(v)
    only_mu[-1] = 1
    found = correct(path, v, only_mu, v[-1])
    return v if found is None else found[0]


def _follow_all(
    follower: Follower, starts: list[Tensor], towards: Tensor, begin: int, switch: bool
) -> tuple[list[Branch], list[tuple[int, Event]]]:
    """The branches from the starts and, with `switch`, from all branch points."""
    branches: list[Branch] = []
    events: list[tuple[int, Event]] = []
    waiting: list[tuple[Tensor, Tensor, int, int]] = [(v, towards, begin, -1) for v in starts]
    while waiting:
        v, direction, piece, parent = waiting.pop(0)
        if parent >= 0 and follower.is_traced(events[parent][1], [e for _, e in events]):
            continue
        branch = follower.follow(v, direction, piece, parent, start_event=parent >= 0)
        for event in branch.events:
            known = any(follower.is_same(event.v, other.v) for _, other in events)
            events.append((len(branches), event))
            if switch and not known and event.bifurcation.kind in BRANCHING:
                other, number = follower.across(event), len(events) - 1
                waiting += [(event.v, side * other, event.piece, number) for side in (1, -1)]
        branches.append(branch)
    return branches, events


def _labelled(
    recurrence: Recurrence,
    branches: list[Branch],
    events: list[tuple[int, Event]],
    path: Path,
) -> xr.Dataset:
    def stacked(name: str) -> list[Tensor]:
        return [torch.stack(getattr(branch, name)) for branch in branches]

    states, values = stacked("states"), stacked("values")
    n_units = states[0].shape[1]
    sizes = {"branch": len(branches), "point": max(map(len, states)), "event": len(events)}
    sizes |= {"mode": n_units, "unit": n_units}
    coords: dict[str, Any] = {d: ((d,), np.arange(n) + (d == "mode")) for d, n in sizes.items()}
    of_units = recurrence.unit_coords(n_units)
    coords |= {name: (("unit",), labels) for name, labels in of_units.items()}
    space = Space(tuple(sizes), tuple(sizes.values()), coords)
    like = states[0]
    found = [event.bifurcation for _, event in events]
    at = torch.stack([path.state(event.v) for _, event in events]) if events else like[:0]
    crossing = torch.tensor([f.value for f in found], dtype=values[0].dtype)
    along = {
        "parameter": ([like.new_tensor(branch.mu) for branch in branches], "parameter mu"),
        "length": ([like.new_tensor(branch.length) for branch in branches], "length of the branch"),
        "n_unstable": (stacked("n_unstable"), "number of unstable directions"),
        "is_stable": (stacked("is_stable"), "whether all directions are stable"),
    }
    variables: dict[str, tuple[str, Any, str]] = {
        name: ("branch point", _padded(rows), what) for name, (rows, what) in along.items()
    }
    real, imaginary = ([getattr(v, part) for v in values] for part in ("real", "imag"))
    variables |= {
        "state": ("branch point unit", _padded(states), "state h"),
        "eigenvalue_real": ("branch point mode", _padded(real), "eigenvalue, real part"),
        "eigenvalue_imag": ("branch point mode", _padded(imaginary), "eigenvalue, imaginary part"),
        "n_points": ("branch", np.array([len(h) for h in states]), "number of points"),
        "end": ("branch", _words([b.end for b in branches]), "how the branch ends"),
        "parent": ("branch", np.array([b.parent for b in branches]), "event that it comes from"),
        "kind": ("event", _words([f.kind for f in found]), "kind of bifurcation"),
        "event_branch": ("event", np.array([i for i, _ in events], dtype=int), "branch"),
        "event_parameter": (
            "event",
            like.new_tensor([path.mu(event.v) for _, event in events]),
            "parameter mu",
        ),
        "event_length": (
            "event",
            like.new_tensor([event.length for _, event in events]),
            "length of the branch",
        ),
        "event_state": ("event unit", at, "state h"),
        "event_eigenvalue_real": ("event", crossing.real, "eigenvalue that crosses, real part"),
        "event_eigenvalue_imag": ("event", crossing.imag, "eigenvalue that crosses, imaginary"),
        "coefficient": (
            "event",
            like.new_tensor([f.coefficient for f in found]),
            "coefficient of the normal form",
        ),
    }
    result = {}
    for name, (dims, given, long_name) in variables.items():
        array = np.array(to_numpy(given) if isinstance(given, Tensor) else given)
        label = space.keep(tuple(dims.split())).label(array, long_name=long_name)
        result[name] = label.assign_attrs(units="1")
    return xr.Dataset(result)


def _padded(rows: list[Tensor]) -> np.ndarray:
    """Arrays of all branches side by side, with NaN, -1 or False behind the shorter ones."""
    arrays = [to_numpy(row) for row in rows]
    fill = {"f": np.nan, "i": -1, "b": False}[arrays[0].dtype.kind]
    shape = len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]
    side_by_side = np.full(shape, fill, arrays[0].dtype)
    for row, array in zip(side_by_side, arrays, strict=True):
        row[: len(array)] = array
    return side_by_side


def _words(given: list[str]) -> np.ndarray:
    return np.array(given, dtype=object)
