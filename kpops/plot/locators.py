"""Ticks at whole numbers. Imports matplotlib, so functions import it when they draw."""

from typing import Any

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator


class _Whole(Locator):
    """Ticks at whole numbers alone; a single one where all data stand at one place."""

    axis: Any

    def __call__(self) -> Any:
        """Ticks of the axis as it is now."""
        low, high = self.axis.get_data_interval()
        return np.array([low]) if low == high else super().__call__()

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Whole numbers among the ticks of an interval."""
        ticks = super().tick_values(vmin, vmax)
        return np.unique(np.round(ticks)[np.abs(ticks - np.round(ticks)) < 1e-9])


class WholeNumbers(_Whole, MaxNLocator):
    """On a linear axis."""


class WholeDecades(_Whole, LogLocator):
    """On a logarithmic axis."""
