"""All rows of the page, in its order."""

from __future__ import annotations

from reproduction.row import Row
from reproduction.rows import batches, collapse, initial, pro_anti, scales, state_change

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        initial.ROW,
        collapse.MEMORY_PRO,
        collapse.FLIP_FLOP,
        batches.ROW,
        collapse.ORDER,
        collapse.EIGENFUNCTIONS,
        scales.ROW,
        pro_anti.ROW,
        pro_anti.TURN,
        state_change.ROW,
    )
}
"""Rows by name."""
