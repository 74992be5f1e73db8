"""Every test draws into figures of its own."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _closed():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots(layout="constrained")[1]


@pytest.fixture
def legend():
    """Texts of the legend of some Axes."""
    return lambda ax: [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture
def bars():
    """Ends (point, low and high) of all error bars of some Axes."""
    import numpy as np
    from matplotlib.container import ErrorbarContainer

    def ends(ax):
        parts = [c.lines[2] for c in ax.containers if isinstance(c, ErrorbarContainer)]
        found = [
            segment[:, 1]
            for collections in parts
            for c in collections
            for segment in c.get_segments()
        ]
        return np.array(found)

    return ends
