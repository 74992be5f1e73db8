"""What the figures of the page share. Without PyTorch, hence without kpops.plot."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008), distinct under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SETTINGS: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def grid(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, Any]:
    """Make a figure of rows x columns axes, in the look of the page."""
    with plt.rc_context(_SETTINGS):
        return plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **shared
        )


def legend(ax: Axes, **options: Any) -> None:
    """Draw a legend that has each label once."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        look = {"fontsize": 7, "handlelength": 1.2, "frameon": False, **options}
        ax.legend(once.values(), once.keys(), **look)
