"""Which structure of a model the operators make use of."""

from __future__ import annotations

from collections.abc import Sequence

from kpops.engines.gated.roles import parameter_roles
from kpops.models.diagonal import DiagonalRecurrence
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence


def classify(recurrence: Recurrence, names: Sequence[str]) -> dict[str, bool]:
    """Return what is known of a model, whatever engine is taken.

    Parameters
    ----------
    recurrence : Recurrence
        The model.
    names : sequence of str
        The parameters that learn.

    Returns
    -------
    dict of str to bool
        See :attr:`kpops.Linearization.structure`.
    """
    gated = isinstance(recurrence, GatedRecurrence)
    return {
        "P in blocks of trials": True,
        "P in blocks of units": isinstance(recurrence, DiagonalRecurrence)
        or (isinstance(recurrence, GatedRecurrence) and _uncoupled(recurrence)),
        "K in blocks of units": isinstance(recurrence, GatedRecurrence)
        and _learns_at_the_top(recurrence, names),
        "gated": gated,
        "scan": isinstance(recurrence, DiagonalRecurrence),
    }


def _uncoupled(recurrence: GatedRecurrence) -> bool:
    """Whether a single layer has no recurrent maps."""
    return len(recurrence.layers) == 1 and recurrence.layers[0].recurrent is None


def _learns_at_the_top(recurrence: GatedRecurrence, names: Sequence[str]) -> bool:
    """Whether all that learns are affine maps of the last layer, so that nothing is passed up."""
    roles, top = parameter_roles(recurrence), len(recurrence.layers) - 1
    return all(name in roles and roles[name][0] == top for name in names)
