"""Models whose step is linear in the state, as Lambda_t, B_t u_t and C_t with labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from kpops.arrays import to_numpy
from kpops.engines.exclusive import exclusive_compute
from kpops.kinds import described
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.models.diagonal import DiagonalRecurrence, DiagonalSSM, LinearTimeVarying, SelectiveSSM
from kpops.models.linear_attention import LinearAttention
from kpops.models.recurrence import changed
from kpops.models.selective import SelectiveLayer
from kpops.models.switching import SwitchingLinear

_KINDS: dict[type[nn.Module], Callable[[Any], str]] = {
    LinearAttention: lambda m: (
        "normalised " * m.normalised + "gated " * m.gated + "linear attention"
    ),
    SelectiveLayer: lambda m: "selective state-space layer",
    SelectiveSSM: lambda m: "selective state-space layer",
    DiagonalSSM: lambda m: "diagonal state-space layer",
    LinearTimeVarying: lambda m: "bilinear system",
    SwitchingLinear: lambda m: "switching linear system",
}


@experimental
def state_space_form(lin: Linearization) -> xr.Dataset:
    r"""Write a model whose step is linear in its state as a state-space model.

    ``h_t = Lambda_t h_{t-1} + B_t u_t``, and, if it has queries, ``y_t = C_t h_t``

    Parameters
    ----------
    lin : Linearization
        A model with its inputs, from :func:`kpops.linearize`. Lambda_t and B_t u_t are those at
        these inputs, whatever the initial state.

    Returns
    -------
    Dataset
        In the dtype of the computation, zero where the mask is False:

        - ``transition``: Lambda_t, in the smallest of three forms that holds, named by the
          attribute ``structure``. ``"diagonal"``: (trial, time, unit). ``"complex diagonal"``:
          complex (trial, time, mode), for states of real and imaginary parts. ``"dense"``: (trial,
          time, unit, source);
        - ``drive`` (trial, time, unit): B_t u_t, all that is added;
        - ``start`` (trial, unit): h_0;
        - ``output_weight`` (trial, time, unit), for linear attention and selective layers: C_t. An
          output is the sum of ``output_weight * h`` over the units with its number as ``value``;
          with a normaliser, divided by the sum over those with the value -1. The units are then
          those of the memory alone.

        For complex modes, drive and start are complex, with the dimension ``mode`` as well.
        The attribute ``kind`` says what the model is, and ``time_varying`` is 1 if Lambda_t differs
        between steps or trials.

    Raises
    ------
    TypeError
        If `lin` is no Linearization.
    ValueError
        If the step is not linear in the state, beside what is added to it.

    Notes
    -----
    Whether a step is of the form is tested at two other states than that of the trajectory, drawn
    at random with a fixed seed, one of them a thousand times as large, to rounding. So your own
    cells are recognised as well. P is then the same at every state, with blocks ``P[t, s] =
    Lambda_t .. Lambda_{s+1}``.

    C_t of other models is the readout of :func:`kpops.linearize`, which does not depend on time.

    References
    ----------
    T. Dao and A. Gu, Transformers are SSMs, ICML 2024 (arXiv 2405.21060).

    Examples
    --------
    >>> import torch, kpops
    >>> layer = kpops.models.LinearAttention(3, 4, 2, gated=True, rng=0)
    >>> lin = kpops.linearize(layer, torch.randn(2, 50, 3), readout=layer.readout)
    >>> form = kpops.state_space_form(lin)
    >>> form.attrs["kind"], form.attrs["structure"], form.transition.dims
    ('gated linear attention', 'diagonal', ('trial', 'time', 'unit'))
    """
    if not isinstance(lin, Linearization):
        raise TypeError(
            f"lin is {described(lin)}, expected a Linearization: pass "
            "kpops.linearize(model, inputs)"
        )
    with exclusive_compute(lin.device):
        structure, transition = _transition(lin)
        drive = _step(lin, torch.zeros_like(lin.trajectory.states))
        _refuse_unlike(lin, structure, transition, drive)
    varies = bool((transition != transition[:1, :1]).any())
    start = lin.trajectory.previous[:, 0]
    if structure == "complex diagonal":
        drive, start = _as_complex(drive), _as_complex(start)
    names = "mode" if structure == "complex diagonal" else "unit"
    dims = ("trial", "time", *([names, "source"] if structure == "dense" else [names]))
    variables = {
        "transition": (dims, transition, "transition of a step, Lambda"),
        "drive": (("trial", "time", names), drive, "what is added in a step, B u"),
        "start": (("trial", names), start, "initial state"),
    }
    form = xr.Dataset(
        {name: _labelled(lin, *content) for name, content in variables.items()},
        attrs={
            **lin.attrs,
            "kind": _kind(lin, varies),
            "structure": structure,
            "time_varying": int(varies),
        },
    )
    return _with_queries(form, lin)


def _step(lin: Linearization, states: Tensor) -> Tensor:
    """The next states (trial, time, unit) of these, under the inputs of each step."""
    x = lin.trajectory.inputs.flatten(0, 1)
    new = lin.recurrence.step(lin.parameters, x, states.flatten(0, 1))
    return new.unflatten(0, states.shape[:2])


def _transition(lin: Linearization) -> tuple[str, Tensor]:
    """Lambda at every step in the smallest structure that holds, and its name."""
    shape = lin.trajectory.states.shape
    known = isinstance(lin.recurrence, DiagonalRecurrence) and len(lin.recurrence.variables)
    if known in (1, 2):
        tangents = torch.zeros(known, *shape, dtype=lin.dtype, device=lin.device)
        for i, part in enumerate(tangents):
            part.chunk(known, dim=-1)[i].fill_(1)
        columns = lin.engine.rows.state_jvp(tangents.flatten(1, 2)).unflatten(1, shape[:2])
        if known == 1:
            return "diagonal", columns[0]
        (re_re, im_re), (re_im, im_im) = (column.chunk(2, dim=-1) for column in columns)
        if bool((re_re == im_im).all() and (im_re == -re_im).all()):
            return "complex diagonal", torch.complex(re_re, im_re)
    dense = torch.stack([lin.engine.step_jacobians(t) for t in range(shape[1])], dim=1)
    diagonal = dense.diagonal(dim1=-2, dim2=-1)
    if bool((dense == torch.diag_embed(diagonal)).all()):
        return "diagonal", diagonal
    return "dense", dense


def _refuse_unlike(lin: Linearization, structure: str, transition: Tensor, drive: Tensor) -> None:
    """Refuse a step that is not Lambda h + B u at random states, near and far."""
    drawn = np.random.default_rng(0).standard_normal(lin.trajectory.states.shape)
    scale = 1 + lin.trajectory.states.square().mean().sqrt()
    for size in (1, 1e3):
        h = size * scale * torch.from_numpy(drawn).to(scale)
        _refuse_unlike_at(h, lin, structure, transition, drive)


def _refuse_unlike_at(
    h: Tensor, lin: Linearization, structure: str, transition: Tensor, drive: Tensor
) -> None:
    if structure == "dense":
        moved = torch.einsum("btij,btj->bti", transition, h)
    elif structure == "diagonal":
        moved = transition * h
    else:
        z = transition * _as_complex(h)
        moved = torch.cat([z.real, z.imag], dim=-1)
    found = _step(lin, h)
    size = found.norm() + moved.norm() + drive.norm()
    error = float((found - moved - drive).norm() / size) if size else 0.0
    if not error < noise_floor(lin.dtype) * h.shape[-1] ** 0.5:
        raise ValueError(
            f"{type(lin.model).__name__} is not of the form h' = Lambda h + B u: Lambda depends on "
            f"the state, and at another state the step differs by {error:.2g} of its length; use "
            "the operators of its linearization, such as lin.P"
        )


def _as_complex(states: Tensor) -> Tensor:
    return torch.complex(*states.chunk(2, dim=-1))


def _kind(lin: Linearization, varies: bool) -> str:
    model = lin.model
    for cell, name in _KINDS.items():
        if isinstance(model, cell) and not changed(model, cell):
            return name(model)
    return f"linear {'time-varying' if varies else 'time-invariant'} system"


def _labelled(lin: Linearization, dims: tuple[str, ...], values: Tensor, name: str) -> xr.DataArray:
    mask = lin.trajectory.mask
    if mask is not None and "time" in dims:
        values = values.masked_fill(~mask.reshape(mask.shape + (1,) * (values.ndim - 2)), 0)
    known = {k: c.described(k) for k, c in lin.space.coords.items()}
    coords: dict[str, Any] = {k: c for k, c in known.items() if set(c[0]) <= set(dims)}
    if "mode" in dims:
        coords["mode"] = np.arange(1, values.shape[-1] + 1)
    if "source" in dims:
        coords["source"] = ("source", np.asarray(known["unit"][1]), {"long_name": "unit before"})
    attrs = {"long_name": name, "units": "1"}
    return xr.DataArray(to_numpy(values.clone()), dims=dims, coords=coords, attrs=attrs)


def _with_queries(form: xr.Dataset, lin: Linearization) -> xr.Dataset:
    """The form of the memory alone, with C, if some units are queries."""
    variable = form.coords.get("variable")
    if variable is None or "query" not in variable.values or "key" not in form.coords:
        return form
    states = lin.states
    queries = states.isel(unit=np.flatnonzero(variable.values == "query"))
    form = form.isel(unit=np.flatnonzero(variable.values != "query"))
    C = queries.values[..., form["key"].values]
    attrs = {"long_name": "weight of a unit in its output, C", "units": "1"}
    return form.assign(output_weight=(("trial", "time", "unit"), C, attrs))
