"""The Kuramoto-Sivashinsky equation on a ring of points."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kpops.systems.models import SemilinearFlow
from kpops.systems.registry import Entry, register

# On the attractor, of mean 0.
_START = (
    -0.38,
    0.92,
    2.25,
    0.56,
    -2.09,
    -1.56,
    -0.34,
    0.64,
    1.62,
    1.95,
    0.54,
    -0.3,
    0.41,
    -0.55,
    -2.02,
    -1.65,
)


class KuramotoSivashinskyField(nn.Module):
    r"""``u_t = -u u_x - u_xx - viscosity u_xxxx`` with period `length`, by Fourier series.

    On n points, the derivatives of the interpolating trigonometric polynomial are taken; that of
    its highest mode is zero if n is even. The Jacobian of the nonlinear part, ``-D diag(u)``, has
    trace 0, since D is antisymmetric. So the divergence is that of the linear part,

    .. math:: \sum_k \left(k^2 - \nu k^4\right)

    over all n modes. The mean of u does not change, and the equation keeps its form in a frame that
    moves: the exponents contain two zeros more than that of the flow itself.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        super().__init__()
        for name, value in values.items():
            parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
            self.register_parameter(name, parameter)

    length: Tensor
    viscosity: Tensor

    def _wavenumbers(self, n: int) -> Tensor:
        whole = torch.arange(n // 2 + 1, dtype=self.length.dtype, device=self.length.device)
        return 2 * math.pi / self.length * whole

    def symbol(self, n: int) -> Tensor:
        """Eigenvalues of the linear part on n points, for wavenumbers 0 to n // 2."""
        squared = self._wavenumbers(n) ** 2
        return squared - self.viscosity * squared**2

    def bent(self, h: Tensor) -> Tensor:
        """-u u_x, as the derivative of -u^2 / 2."""
        n = h.shape[-1]
        k = self._wavenumbers(n)
        if n % 2 == 0:
            k = torch.cat([k[:-1], k.new_zeros(1)])
        modes = torch.fft.rfft(h * h / 2)
        # The modes of a derivative, i k u, from real and imaginary part.
        return -torch.fft.irfft(torch.complex(-k * modes.imag, k * modes.real), n)

    def forward(self, t: object, h: Tensor) -> Tensor:
        """Rate of u at the points; (.., unit) -> (.., unit). The time t has no effect."""
        n = h.shape[-1]
        return torch.fft.irfft(self.symbol(n) * torch.fft.rfft(h), n) + self.bent(h)


def make(entry: Entry, values: Mapping[str, float]) -> SemilinearFlow:
    """The model of the entry."""
    return SemilinearFlow(entry, KuramotoSivashinskyField(values))


@register(
    "ETDRK4",
    "KuramotoSivashinsky",
    _START,
    "Y. Kuramoto 1978, Suppl. Prog. Theor. Phys. 64, 346-367; G. I. Sivashinsky 1977, Acta "
    "Astronaut. 4, 1177-1206; solver of A.-K. Kassam and L. N. Trefethen 2005, SIAM J. Sci. "
    "Comput. 26, 1214-1233",
    dt=0.1,
    n_substeps=8,
)
def kuramoto_sivashinsky(h: Tensor, *, length: float = 22.0, viscosity: float = 1.0) -> Tensor:
    """The rate, as a function."""
    return KuramotoSivashinskyField({"length": length, "viscosity": viscosity})(None, h)
