"""Spectra from the structure of an operator, or from its matrix: no iteration, no tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops import work
from kpops.arrays import to_numpy
from kpops.linalg.exact import eigenvalues
from kpops.linalg.rounding import noise_floor
from kpops.linalg.symmetry import require_self_adjoint
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.spectral._result import configuration, identity, mode_variables, undone


@in_full_precision
@work.shown
def eigvalsh(op: Any, *, anyway: bool = False, progress: bool = False) -> xr.Dataset:
    """All eigenvalues of a self-adjoint operator, exactly.

    K of a single gated layer (RNN, GRU, LSTM, leaky cells) couples no two units, so its spectrum is
    that of one small matrix per unit. P P* has one matrix per trial. If there are fewer parameters
    than entries of the trajectory, K = J J* and P K P* have the spectrum of the smaller Gram matrix
    of J or P J. Any other operator is made into a matrix.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Self-adjoint, n x n.
    anyway : bool
        Run decompositions that will take more than ten minutes, too. The estimate assumes 1e10
        operations a second: one matrix of n = 16,500 takes that long.
    progress : bool
        Show a bar of the matvecs, and first how long the decomposition will take.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, in order of falling magnitude. If units are not coupled, the
        coordinate ``unit(mode)`` names the unit of each. Zeros that follow from the structure are
        not listed. Attributes: ``n_zeros``, their number; ``chosen``, how the others were found;
        ``noise_floor``, the level of rounding relative to the largest.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint, or the decomposition will take more than ten minutes.
    MemoryError
        If the matrices would not fit.

    See Also
    --------
    eigsh : Leading eigenvalues with eigenfunctions, for operators of any size.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> spectrum = kpops.eigvalsh(lin.K)
    >>> spectrum.eigenvalue.sizes["mode"] + spectrum.n_zeros == lin.K.shape[0]
    True
    """
    op = as_operator(op, spread=True)
    require_self_adjoint(op)
    spectrum = eigenvalues(op, "" if anyway else "anyway=True")
    values = undone(spectrum.values, 1.0, op, "spectrum")
    result = xr.Dataset(
        mode_variables({"eigenvalue": (values, "eigenvalue")}),
        coords=identity(op),
        attrs={
            **configuration(op, method="exact"),
            "method": "exact",
            "chosen": spectrum.how,
            "n_zeros": spectrum.n_zeros,
            "noise_floor": noise_floor(op.torch_dtype),
        },
    )
    if spectrum.unit is None:
        return result
    labels = op.domain.coords.get("unit", (("unit",), np.arange(op.domain.sizes["unit"])))[1]
    return result.assign_coords(unit=("mode", labels[to_numpy(spectrum.unit)]))
