"""The kinds of effective rank by name: a new one is a class and an entry here."""

from __future__ import annotations

from typing import Any

from kpops.linalg.ranks.base import RankKind, RankSpec
from kpops.linalg.ranks.by_modes import Stable, Variance
from kpops.linalg.ranks.by_rules import Entropy, Numerical
from kpops.linalg.ranks.participation import Participation

KINDS: dict[str, RankKind] = {
    kind.name: kind for kind in (Participation(), Variance(), Entropy(), Stable(), Numerical())
}


def rank_spec(
    kind: Any, threshold: float = 0.95, tol: float = 0.0, top: int | None = None
) -> RankSpec:
    """The kind of that name with its options; a ValueError if there is none."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose from {', '.join(map(repr, KINDS))}")
    return RankSpec(KINDS[kind], threshold, tol, top)
