"""S4D: diagonal state-space layers that start as discretised continuous systems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.utils import parametrize

from kpops.maturity import experimental
from kpops.models.cells import check_sizes
from kpops.models.diagonal import DiagonalSSM, Rng
from kpops.models.parametrizations import Masked
from kpops.scalars import generator as random_generator

# Eigenvalues of the modes n = 0 .. M - 1 of a channel; with complex ones, N = 2 M real states.
_STARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lin": lambda n: -0.5 + 1j * np.pi * n,
    "inv": lambda n: -0.5 + 2j * len(n) / np.pi * (2 * len(n) / (2 * n + 1) - 1),
    "real": lambda n: -(n + 1.0),
}


@experimental
def s4d(
    input_size: int,
    n_modes: int,
    *,
    start: str = "lin",
    dt: tuple[float, float] = (1e-3, 1e-1),
    rng: Rng = None,
) -> DiagonalSSM:
    r"""Make a :class:`DiagonalSSM` that starts as S4D: modes of each input channel alone.

    Mode n of channel c is ``z' = lambda_n z + x_c`` under a zero-order hold of length dt_c,

    ``z' = a z + (a - 1) / lambda_n x_c``, with ``a = exp(dt_c lambda_n)``

    Parameters
    ----------
    input_size : int
        Number of channels.
    n_modes : int
        Modes M of each channel. The layer has input_size * M modes, channel by channel.
    start : {"lin", "inv", "real"}
        Which lambda_n, n = 0 .. M - 1: ``-1/2 + i pi n``, ``-1/2 + i (N / pi) (N / (2 n + 1) - 1)``
        with N = 2 M, or ``-(n + 1)``.
    dt : (float, float)
        Range of the steps dt_c, which are drawn log-uniformly.
    rng : int, Generator or None
        Seed or source of the steps.

    Returns
    -------
    DiagonalSSM
        Of the form "real" with the last start, else "complex". With several channels, its weight is
        parametrised by a :class:`Masked`, so that channels stay apart as they learn.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The states at the ends of steps are those of the continuous system exactly, if the input is
    constant within steps. What learns is a and the drive of each mode, not lambda, dt and B: the
    same recurrence as S4D, under the parameters of :class:`DiagonalSSM`. Its outputs are a constant
    matrix times the state, the readout of :func:`kpops.linearize`; S4D takes the real part of
    ``C z``, which such a matrix includes.

    References
    ----------
    A. Gu et al., On the parameterization and initialization of diagonal state space models, NeurIPS
    2022 (arXiv 2206.11893).

    Examples
    --------
    >>> import torch, kpops
    >>> layer = kpops.models.s4d(2, 8, rng=0)
    >>> lin = kpops.linearize(layer, torch.randn(3, 100, 2))
    >>> lin.P, lin.engine.name
    (<P (trial: 3, time: 100, unit: 32), float32 on cpu>, 'scan')
    """
    check_sizes(input_size=input_size, n_modes=n_modes)
    if start not in _STARTS:
        raise ValueError(f"start={start!r}: choose one of {list(_STARTS)}")
    ends = np.asarray(dt)
    if ends.shape != (2,) or ends.dtype.kind not in "fiu" or not 0 < ends[0] <= ends[1] < np.inf:
        raise ValueError(f"dt={dt}: pass a rising pair above 0")
    shortest, longest = np.log(ends)
    steps = np.exp(random_generator(rng).uniform(shortest, longest, input_size))
    rates = np.tile(_STARTS[start](np.arange(n_modes)), input_size)
    exponents = np.repeat(steps, n_modes) * rates
    drive = np.expm1(exponents) / rates
    form = "complex" if np.iscomplexobj(rates) else "real"
    layer = DiagonalSSM(input_size, input_size * n_modes, form=form, rng=0)
    own = np.repeat(np.eye(input_size), n_modes, axis=0)  # the channel of each mode
    parts = [drive.real, drive.imag] if form == "complex" else [drive]
    values = {
        "log_rate": np.log(-exponents.real),
        "weight": np.concatenate([p[:, None] * own for p in parts]),
    }
    if form == "complex":
        values["phase"] = exponents.imag
    with torch.no_grad():
        for name, array in values.items():
            getattr(layer, name).copy_(torch.from_numpy(array))
    if input_size > 1:
        mask = Masked(np.tile(own, (len(parts), 1)).astype(bool))
        parametrize.register_parametrization(layer, "weight", mask)
    return layer
