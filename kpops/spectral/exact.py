"""Spectra from the structure of an operator, or from its matrix: no iteration, no tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.engines.unit_blocks import UnitBlocks
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import batches, dense_blocks
from kpops.operators.foreign import as_operator
from kpops.spectral import common, structure
from kpops.spectral.scaling import undone


@common.in_full_precision
@work.shown
def eigvalsh(op: Any, *, anyway: bool = False, progress: bool = False) -> xr.Dataset:
    """All eigenvalues of a self-adjoint operator, exactly.

    K of a single gated layer (RNN, GRU, LSTM, leaky cells) couples no two units, so that its whole
    spectrum is that of one small matrix per unit. For P P* there is a matrix for each trial. Where
    there are fewer parameters than dims, K = J J* and P K P* have the spectrum of the Gram matrix
    of J or P J, which is as small as that number. Of any other operator the matrix itself is made.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Self-adjoint, n x n.
    anyway : bool
        Do it also where the decomposition will take more than ten minutes, reckoned from its sizes
        at 1e10 operations a second: of one matrix, from n = 16,500 on.
    progress : bool
        Show a bar of the matvecs, and before it how long the decomposition will take.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, of falling magnitude, with the unit to which each belongs as the
        coordinate ``unit(mode)`` where units are not coupled. Zeros that follow from the structure
        are not listed; the attribute ``n_zeros`` counts them, ``chosen`` says how the others were
        found, and ``noise_floor`` what is rounding, relative to the largest.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint, or the decomposition will take more than ten minutes.
    MemoryError
        If the matrices would not fit.

    See Also
    --------
    eigsh : The leading ones and their eigenfunctions, for operators of any size.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> spectrum = kpops.eigvalsh(lin.K)
    >>> spectrum.eigenvalue.sizes["mode"] + spectrum.n_zeros == lin.K.shape[0]
    True
    """
    op = as_operator(op)
    common.require_self_adjoint(op)
    spectrum = structure.eigenvalues(op, "" if anyway else "anyway=True")
    values = undone(spectrum.values, 1.0, op, "spectrum")
    result = xr.Dataset(
        common.mode_variables({"eigenvalue": (values, "eigenvalue")}),
        coords=common.identity(op),
        attrs={
            **common.configuration(op, method="exact"),
            "method": "exact",
            "chosen": spectrum.how,
            "n_zeros": spectrum.n_zeros,
            "noise_floor": common.noise_floor(op.torch_dtype),
        },
    )
    if spectrum.unit is None:
        return result
    labels = op.domain.coords.get("unit", (("unit",), np.arange(op.domain.sizes["unit"])))[1]
    return result.assign_coords(unit=("mode", labels[to_numpy(spectrum.unit)]))


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "LM": torch.abs,
    "LA": torch.clone,
    "SA": torch.neg,
}
"""Which eigenvalues are the leading ones: those of which this is the largest."""


def leading(
    op: TrajectoryOperator, k: int, which: str = "LM", insist: str = ""
) -> tuple[Tensor, Tensor, str, float]:
    """The k leading eigenvalues, eigenfunctions (mode, *dims), how, and the largest magnitude.

    The operator is of about one (:func:`kpops.spectral.scaling.normalized`). See
    :func:`kpops.spectral.structure.check_cost` for `insist`.
    """
    blocks = op.unit_blocks()
    if blocks is not None and which != "SA" and not structure.smaller_dense(op, blocks):
        total = blocks.n_units * min(blocks.n_rows, blocks.n_columns)
        if k <= total:
            values, block = _of_units(op, blocks, k)
            return values, block, f"K couples no two of {blocks.n_units} units", float(values[0])
    inside = batches(op)[0]
    structure.check_cost(op, inside.count, (inside.size,) * 2, 9, insist)
    work.expect(inside.size + k)
    dense = dense_blocks(op)
    values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
    chosen = ENDS[which](values.flatten()).argsort(descending=True)[:k]
    problem, mode = chosen // values.shape[1], chosen % values.shape[1]
    whole = dense.new_zeros(len(dense), k, dense.shape[1])
    whole[problem, torch.arange(k, device=problem.device)] = vectors[problem, :, mode]
    block = inside.join(whole)
    how = f"{len(dense)} dense block(s) of size {dense.shape[1]}"
    return values.flatten()[chosen], block, how, float(values.abs().max())


def _of_units(op: TrajectoryOperator, blocks: UnitBlocks, k: int) -> tuple[Tensor, Tensor]:
    """Leading modes of K, each of which lives on one unit."""
    every = blocks.eigenvalues()
    chosen = every.flatten().argsort(descending=True)[:k]
    units, ranks = chosen // every.shape[1], chosen % every.shape[1]
    whole = every.new_zeros(k, *op.domain.shape)
    for unit in units.unique().tolist():
        here = torch.nonzero(units == unit).flatten()
        m = blocks.factors(slice(unit, unit + 1))[0]
        rows = torch.linalg.svd(m, full_matrices=False)[0].flip(1)[:, ranks[here]].mT
        fields = every.new_zeros(len(here), *op.domain.shape)
        blocks.place(rows, unit, fields)
        whole[here] = fields
    return every.flatten()[chosen], whole
