"""All rows of the page, in its order."""

from __future__ import annotations

from reproduction.row import Row
from reproduction.rows import state_change

ROWS: dict[str, Row] = {row.name: row for row in (state_change.ROW,)}
"""Rows by name."""
