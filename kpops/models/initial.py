"""Initial recurrent weights of a given scale g, and their spectral radius.

Recurrent weights are found by PyTorch's name for them: the last part of the parameter's name starts
with ``weight_hh``. So do those of :class:`kpops.models.LeakyCell`. Such a weight stacks one square
block for each gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from kpops.arrays import to_numpy
from kpops.scalars import generator as random_generator

Module = TypeVar("Module", bound=nn.Module)

_GATES = {3: "rzn", 4: "ifgo"}  # in PyTorch's order, of a GRU and of an LSTM


def initialize_recurrent(
    model: Module,
    g: float,
    *,
    distribution: str = "normal",
    rng: int | np.random.Generator | None = None,
) -> Module:
    """Draw new recurrent weights of scale `g` for `model`, in place.

    Parameters
    ----------
    model : nn.Module
        nn.RNN, nn.GRU, nn.LSTM of any number of layers, a cell, or a module that contains some.
        All other parameters stay as they are.
    g : float
        Scale, 0 or more.
    distribution : {"normal", "uniform"}
        See Notes.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded to the weights' dtype.

    Returns
    -------
    nn.Module
        `model` itself. Each module that owns recurrent weights gets the attribute
        ``recurrent_init``, a dict of `g` and `distribution`, which :func:`kpops.training.train`
        records.

    Raises
    ------
    ValueError
        If an argument is out of range, `model` has no recurrent weights, or some are not made of
        square blocks or come from a parametrization.

    Notes
    -----
    With N units, each N x N block W (one for each gate) is drawn independently. In the limit of
    large N its eigenvalues fill a disk, whose radius is N^(1/2) times the standard deviation of an
    entry (the circular law; Girko, Theory Probab. Appl. 29, 1985):

    ============  ============================  ===============
    distribution  entries                       spectral radius
    ============  ============================  ===============
    "normal"      N(0, g^2 / N)                 g
    "uniform"     U(-g / N^(1/2), g / N^(1/2))  g / 3^(1/2)
    ============  ============================  ===============

    The first is the g of Sompolinsky, Crisanti and Sommers (Phys. Rev. Lett. 61, 1988): a tanh RNN
    at rest loses stability at g = 1. The second is PyTorch's own initialisation times g, which is
    the g of the KPFlow paper (arXiv 2507.06381): the rest state loses stability at g = 1.73. So
    name the distribution of a g, or report the :func:`spectral_radius`.

    Examples
    --------
    >>> import torch
    >>> from kpops.models import initialize_recurrent, spectral_radius
    >>> rnn = initialize_recurrent(torch.nn.RNN(3, 500), 1.5, rng=0)
    >>> rnn.recurrent_init
    {'g': 1.5, 'distribution': 'normal'}
    >>> abs(float(spectral_radius(rnn)[0]) - 1.5) < 0.1
    True
    """
    if not (math.isfinite(g) and g >= 0):
        raise ValueError(f"g={g}: pass a finite scale, 0 or more")
    if distribution not in ("normal", "uniform"):
        raise ValueError(f"distribution={distribution!r}: choose 'normal' or 'uniform'")
    every = dict(model.named_parameters())
    hidden = [name for name in every if "parametrizations.weight_hh" in name]
    if hidden:
        raise ValueError(
            f"{hidden[0]} is behind a parametrization: draw the weights before it is registered, "
            "or assign them"
        )
    names = _recurrent_weights(every, f"{type(model).__name__} has")
    generator = random_generator(rng)
    for name in names:
        weight = model.get_parameter(name)
        bound = g / math.sqrt(weight.shape[1])
        if distribution == "normal":
            drawn = bound * generator.standard_normal(weight.shape)
        else:
            drawn = generator.uniform(-bound, bound, weight.shape)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(drawn))
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        owner.recurrent_init = {"g": float(g), "distribution": distribution}
    return model


def spectral_radius(model: nn.Module | Mapping[str, Tensor]) -> xr.DataArray:
    """Largest absolute eigenvalue of every recurrent block.

    Parameters
    ----------
    model : nn.Module or state dict
        With recurrent weights under PyTorch's name, ``weight_hh...``.

    Returns
    -------
    DataArray, dims (parameter,)
        In the weights' dtype. The coordinate ``parameter`` is the weight's name, followed by the
        gate in brackets if there are several: r, z, n of a GRU, i, f, g, o of an LSTM.

    Raises
    ------
    ValueError
        If there are no recurrent weights, or some are not finite or not made of square blocks.

    Notes
    -----
    For a tanh RNN at rest without input, the block is the state Jacobian, so that a radius above 1
    means that the rest state is unstable. For gated cells it is only a scale.

    The eigenvalues are computed on the CPU, at a cost of order N^3 for N units: about 0.1 s for
    256, some seconds for 1000.

    Examples
    --------
    For all checkpoints in a folder of :func:`kpops.training.train`:
    ``xr.concat([spectral_radius(state) for _, state in checkpoints(folder)], "step")``.

    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 2)
    >>> _ = torch.nn.init.eye_(gru.weight_hh_l0[2:4])
    >>> kpops.models.spectral_radius(gru).sel(parameter="weight_hh_l0[z]").item()
    1.0
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    labels, radii = [], []
    for name in _recurrent_weights(state, "there are"):
        blocks = state[name].detach().cpu().split(state[name].shape[1])
        for gate, block in zip(_GATES.get(len(blocks), range(len(blocks))), blocks, strict=True):
            labels.append(name if len(blocks) == 1 else f"{name}[{gate}]")
            if not block.isfinite().all():
                raise ValueError(f"{labels[-1]} is not finite: take an earlier checkpoint")
            radii.append(torch.linalg.eigvals(block).abs().max())
    parameter = np.array(labels, dtype=object)  # Zarr has no fixed-width strings yet
    attrs = {"long_name": "recurrent weight and gate", "units": "1"}
    return xr.DataArray(
        to_numpy(torch.stack(radii)),
        dims="parameter",
        coords={"parameter": ("parameter", parameter, attrs)},
        name="spectral_radius",
        attrs={"long_name": "spectral radius of the recurrent block", "units": "1"},
    )


def _recurrent_weights(state: Mapping[str, Tensor], subject: str) -> list[str]:
    """Names of the recurrent weights, each of one or more square blocks."""
    names = [name for name in state if name.rpartition(".")[2].startswith("weight_hh")]
    for name in names:
        shape = tuple(state[name].shape)
        projected = name.replace("weight_hh", "weight_hr") in state
        if len(shape) != 2 or shape[0] % shape[1] or projected:
            raise ValueError(
                f"{name} has shape {shape}{' and a projection' if projected else ''}, expected "
                "(gates * N, N): use a recurrent module without projections"
            )
    if not names:
        raise ValueError(
            f"{subject} no recurrent weights, which are parameters named weight_hh...: "
            "pass nn.RNN, nn.GRU, nn.LSTM, one of their cells or a module that contains one"
        )
    return names
