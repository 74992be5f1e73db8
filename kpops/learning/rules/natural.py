"""Natural gradient of low rank, in the critical channel of fixed points."""

from __future__ import annotations

from torch import Tensor

from kpops.dynamics.critical import critical_channel
from kpops.dynamics.resolvent import FixedPointLinearization
from kpops.labels import Space
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.operators.shapes import Parameters
from kpops.scalars import check_real


class Attenuation(TrajectoryOperator):
    """M = 1 - sum_i c_i v_i v_i*, which multiplies orthonormal directions v_i by 1 - c_i.

    Parameters
    ----------
    directions : Tensor (direction, parameter)
        Orthonormal rows v.
    shares : Tensor (direction,)
        c, from 0 to 1.
    space : Space
        Of flat parameter vectors.
    """

    def __init__(self, directions: Tensor, shares: Tensor, space: Space) -> None:
        super().__init__(
            space,
            space,
            dtype=directions.dtype,
            device=directions.device,
            symbol="M",
            self_adjoint=True,
            positive=True,
        )
        self.directions, self.shares = directions, shares

    def _apply(self, q: Parameters) -> Parameters:
        return q - (q @ self.directions.mT * self.shares) @ self.directions

    def _make_root(self) -> TrajectoryOperator:
        return Attenuation(self.directions, 1 - (1 - self.shares).sqrt(), self.domain)


def critical_channel_rule(lin: Linearization, *, damping: float) -> TrajectoryOperator:
    """P J M J* P*, with M = l (G + l)^-1 and G = (P_1 J)* P_1 J of the critical channel.

    With singular triplets (u, s, v) of P_1 J, M multiplies v by l / (s^2 + l); `damping` is l.
    """
    check_real("damping", damping)
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping={damping}: choose a positive number")
    if not isinstance(lin, FixedPointLinearization):
        raise ValueError(
            "the critical channel is that of fixed points: pass kpops.linearize_at(model, points), "
            "or choose 'gauss-newton', whose metric is that of all directions"
        )
    response = critical_channel(lin).response
    gains = response.values**2
    # The directions of gains that are zero are not attenuated.
    M = Attenuation(response.right, gains / (gains + damping), lin.parameter_space)
    return lin.sensitivity @ M @ lin.sensitivity.H
