"""Which structure of a model the operators make use of."""

from __future__ import annotations

from collections.abc import Sequence

from kpops.engines.gated.roles import parameter_roles
from kpops.models.diagonal import DiagonalRecurrence
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence


def classify(recurrence: Recurrence, names: Sequence[str]) -> dict[str, bool]:
    """What is known of a model in which the parameters `names` learn, whatever engine is taken.

    See :attr:`kpops.Linearization.structure`.
    """
    scan = isinstance(recurrence, DiagonalRecurrence)
    gated = recurrence if isinstance(recurrence, GatedRecurrence) else None
    return {
        "P in blocks of trials": True,
        "P in blocks of units": scan or (gated is not None and _has_diagonal_steps(gated)),
        "K in blocks of units": gated is not None and _learns_at_the_top(gated, names),
        "gated": gated is not None,
        "scan": scan,
    }


def _has_diagonal_steps(recurrence: GatedRecurrence) -> bool:
    """Whether a single layer has no recurrent maps, so that its steps couple no two units."""
    return len(recurrence.layers) == 1 and recurrence.layers[0].recurrent is None


def _learns_at_the_top(recurrence: GatedRecurrence, names: Sequence[str]) -> bool:
    """Whether all that learns are affine maps of the last layer, so that nothing is passed up."""
    roles, top = parameter_roles(recurrence), len(recurrence.layers) - 1
    return all(name in roles and roles[name][0] == top for name in names)
