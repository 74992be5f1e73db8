"""Whether an operator is self-adjoint, and whether it is seen to be indefinite."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.rounding import noise_floor
from kpops.linalg.scaling import power_of_two
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.transfers import on_host


def is_self_adjoint(op: TrajectoryOperator) -> bool:
    """Whether `op` is self-adjoint: by construction, or on random vectors."""
    if op.self_adjoint:
        return True
    if op.domain != op.codomain:
        return False
    space = VectorSpace.of(op, op.domain)
    probes = space.normal(RandomVectors(0), 2)
    images = op.apply(probes.reshape(2, *op.domain.shape)).flatten(1)
    images = images.double() / power_of_two(space.largest(images), images.dtype, repr(op))
    forms = space.inner(probes.double(), images)
    (of_u, of_v), (of_image_u, of_image_v) = space.lengths(probes), space.lengths(images)
    scale = of_u * of_image_v + of_image_u * of_v
    return bool((forms[0, 1] - forms[1, 0]).abs() <= noise_floor(op.torch_dtype) * scale)


def require_self_adjoint(op: TrajectoryOperator) -> None:
    """Refuse an operator whose eigenvalues a symmetric solver would silently get wrong."""
    if not is_self_adjoint(op):
        raise ValueError(f"{op!r} is not self-adjoint: use kpops.svds, or eigsh of op @ op.H")


def refuse_indefinite(
    op: TrajectoryOperator, quotients: Float[Tensor, " value"], remedy: str
) -> None:
    """Refuse an operator that is seen to have a negative eigenvalue.

    The least eigenvalue is at most any Rayleigh quotient or Ritz value, so one below the noise
    floor is a proof. If none is seen, that proves nothing.
    """
    if not len(quotients):
        return
    least, largest = map(float, on_host(quotients.min(), quotients.abs().max()))
    if least < -noise_floor(op.torch_dtype) * len(quotients) ** 0.5 * largest:
        raise ValueError(
            f"{op!r} is not positive semi-definite: an eigenvalue is at most {least / largest:.3g} "
            f"of the largest magnitude; {remedy}"
        )
