"""Linear systems whose matrix is a mixture of a few, with weights that change in time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.cells import check_sizes
from kpops.models.diagonal import Rng
from kpops.scalars import generator as random_generator


@experimental
class SwitchingLinear(nn.Module):
    """A decomposed linear dynamical system: a dictionary of matrices, mixed anew at every step.

    ``h' = (sum_m c_m F_m) h + B u``, with inputs ``[c, u]`` side by side

    Parameters
    ----------
    n_systems : int
        Number M of matrices, of which a step takes the mixture with coefficients c.
    state_size : int
        Number of state variables.
    input_size : int
        Number of features of the external drive u; 0 for none.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded.

    Raises
    ------
    ValueError
        If a size is out of range.

    Notes
    -----
    The parameters are ``dictionary`` (system, unit, unit), which holds the F_m, and, with a drive,
    ``weight`` (unit, feature). Coefficients that are one-hot give a switching system; sparse or
    smooth ones a decomposed one. As inputs they are given, not inferred. So A[t] = sum_m c_m[t] F_m
    at any state, a block of P is the product of the mixtures between two steps, and J by F_m is
    c_m[t] times h[t-1]: an element of the dictionary learns where it is used.

    F_m start normal with a spectral radius of about 0.9. :class:`LinearTimeVarying` has the inputs
    as coefficients, too, beside a constant matrix, and its inputs drive the state as well.

    References
    ----------
    N. Mudrik et al., Decomposed linear dynamical systems (dLDS) for learning the latent components
    of neural dynamics, JMLR 25 (2024), arXiv 2206.02972.

    Examples
    --------
    Two systems in turn, from a given start:

    >>> import torch, kpops
    >>> system = kpops.models.SwitchingLinear(2, 4, rng=0)
    >>> c = torch.nn.functional.one_hot(torch.arange(20) // 5 % 2).float()
    >>> kpops.linearize(system, c[None], h0=torch.ones(4)).P
    <P (trial: 1, time: 20, unit: 4), float32 on cpu>
    """

    def __init__(
        self, n_systems: int, state_size: int, input_size: int = 0, *, rng: Rng = None
    ) -> None:
        super().__init__()
        check_sizes(n_systems=n_systems, state_size=state_size)
        check_sizes(0, input_size=input_size)
        self.n_systems = n_systems
        self.state_size = state_size
        self.input_size = n_systems + input_size
        generator, dtype = random_generator(rng), torch.get_default_dtype()
        matrices = generator.standard_normal((n_systems, state_size, state_size))
        drive = generator.standard_normal((state_size, input_size)) / math.sqrt(max(input_size, 1))
        scale = 0.9 / math.sqrt(state_size)
        self.dictionary = nn.Parameter(torch.from_numpy(scale * matrices).to(dtype))
        self.weight = nn.Parameter(torch.from_numpy(drive).to(dtype)) if input_size else None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, system + feature), (row, unit) -> (row, unit)."""
        coefficients, drive = x.tensor_split([self.n_systems], dim=-1)
        new = torch.einsum("...m,mij,...j->...i", coefficients, self.dictionary, h)
        return new if self.weight is None else new + F.linear(drive, self.weight)

    def extra_repr(self) -> str:
        """Return the sizes, for the repr."""
        return f"{self.n_systems}, {self.state_size}, {self.input_size - self.n_systems}"
