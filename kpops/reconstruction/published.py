"""Weights that others have published."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kpops.kinds import described
from kpops.maturity import experimental
from kpops.models.piecewise_linear import PLRNNCell
from kpops.scalars import check_count

_SHAPES = {"A": "(unit,)", "W": "(unit, unit)", "h": "(unit,)", "B": "(feature, unit)"}


@experimental
class PublishedALRNN(NamedTuple):
    """A published almost-linear RNN: its cell, and how its state relates to observations.

    Attributes
    ----------
    cell : PLRNNCell
        The dynamics. It reads no inputs.
    B : Tensor
        Shape (feature, unit): the first state of the units that are not observed, from an
        observation.
    """

    cell: PLRNNCell
    B: Tensor

    def start(self, x: Tensor) -> Tensor:
        """State that belongs to observations; (..., feature) -> (..., unit)."""
        return torch.cat([x, (x @ self.B)[..., len(self.B) :]], -1)

    def observe(self, h: Tensor) -> Tensor:
        """Observations of states, which are the first units; (..., unit) -> (..., feature)."""
        return h[..., : len(self.B)]


@experimental
def published_alrnn(
    path: str | os.PathLike[str],
    *,
    rectified: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> PublishedALRNN:
    """Read an almost-linear RNN in the form of the weights published with the paper.

    Parameters
    ----------
    path : str or path
        A state dict written by ``torch.save``, with the tensors ``A`` (unit,), ``W`` (unit, unit),
        ``h`` (unit,) and ``B`` (feature, unit).
    rectified : int, optional
        Number of relus, which the file does not contain. Default: what the name of the file ends
        with, as 2 in ``lorenz_m20_p2``.
    dtype : torch.dtype
        float32, as published, or float64, to convert to.

    Returns
    -------
    PublishedALRNN
        ``cell``, ``B``, and the functions ``start`` and ``observe``.

    Raises
    ------
    TypeError
        If `rectified` is not an int, or `dtype` neither float32 nor float64.
    ValueError
        If the file has another form, or `rectified` is missing or out of range.
    OSError
        If the file cannot be read.

    Notes
    -----
    The model is ``z' = A z + W phi(z) + h``, phi the relu of the last units, which is
    :class:`kpops.models.PLRNNCell` with ``b = h``. The first units of z are the observations
    themselves; B is no readout, it only starts the other units, as ``x B``. The file is read by
    ``torch.load(weights_only=True)``, which runs no code from it.

    References
    ----------
    M. Brenner et al., Almost-linear RNNs yield highly interpretable symbolic codes in dynamical
    systems reconstruction, NeurIPS 2024 (arXiv 2410.14240); weights in the folder
    ``alrnn_python/models`` of the repository DurstewitzLab/ALRNN-DSR.

    Examples
    --------
    >>> import tempfile, torch, kpops
    >>> weights = {"A": torch.rand(5), "W": torch.rand(5, 5) / 9, "h": torch.rand(5)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({**weights, "B": torch.rand(3, 5)}, f"{folder}/mine_m5_p2")
    ...     read = kpops.reconstruction.published_alrnn(f"{folder}/mine_m5_p2")
    >>> read.cell
    PLRNNCell(0, 5, rectified=2)
    >>> h0 = read.start(torch.rand(4, 3))
    >>> kpops.linearize(read.cell, torch.zeros(4, 9, 0), h0=h0).states.shape
    (4, 9, 5)
    """
    path = Path(path)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype={dtype!r}: choose torch.float32 or torch.float64")
    arrays = {name: values.to(dtype) for name, values in _arrays(path).items()}
    (n_units,) = arrays["A"].shape
    if rectified is None:
        named = re.search(r"_p(\d+)$", path.stem)
        if named is None:
            raise ValueError(
                f"{path.name} does not end with the number of relus, as lorenz_m20_p2 does: pass "
                "rectified="
            )
        rectified = int(named[1])
    check_count("rectified", rectified, 0, n_units)
    cell = PLRNNCell(0, n_units, rectified=rectified).to(dtype)
    with torch.no_grad():
        for parameter, name in ((cell.A, "A"), (cell.W, "W"), (cell.b, "h")):
            parameter.copy_(arrays[name])
    return PublishedALRNN(cell, arrays["B"])


def _arrays(path: Path) -> dict[str, Tensor]:
    """The four tensors of a file, of shapes that fit together."""
    with path.open("rb") as file:
        readable = zipfile.is_zipfile(file)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True) if readable else None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        readable = False
    if not readable:  # torch's own message recommends to run what the file contains
        raise ValueError(
            f"{path} is no file of plain tensors by torch.save: pass published weights as they are"
        )
    names = sorted(map(str, found)) if isinstance(found, dict) else None
    if names != sorted(_SHAPES):
        what = described(found) if names is None else f"a dict of {names}"
        raise ValueError(f"{path} contains {what}, expected the tensors A, W, h and B")
    shapes = {n: tuple(v.shape) if isinstance(v, Tensor) else None for n, v in found.items()}
    match shapes:
        case {"A": (n,), "W": (n_in, n_out), "h": (n_bias,), "B": (n_features, n_units)}:
            fit = n == n_in == n_out == n_bias == n_units >= n_features > 0
        case _:
            fit = False
    if not fit:
        raise ValueError(f"{path} has arrays of shapes {shapes}, expected {_SHAPES}")
    wrong = [n for n, v in found.items() if not (v.is_floating_point() and v.isfinite().all())]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} are not finite real numbers")
    return {name: values.detach() for name, values in found.items()}
