"""Graphs of symbolic codes."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.patches import Circle, FancyArrowPatch

from kpops.plot import transitions


def code(chance, bits, share=None):
    n = len(chance)
    share = np.full(n, 1 / n) if share is None else share
    made = {"probability": (("region", "next_region"), chance), "share": ("region", share)}
    return xr.Dataset(made, {"region": np.arange(n), "bits": ("region", np.array(bits, object))})


CHAIN = np.array([[0.5, 0.25, 0.25], [0.4, 0.6, 0], [1, 0, 0]])


def test_each_transition_is_an_arrow_with_its_probability(ax):
    assert transitions(code(CHAIN, ["01", "11", "00"]), ax) is ax
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert len(arrows) == 6
    written = sorted(text.get_text() for text in ax.texts)
    assert written == sorted(["0.5", "0.25", "0.25", "0.4", "0.6", "1", "01", "11", "00"])
    widths = sorted(arrow.get_linewidth() for arrow in arrows)
    assert np.allclose(np.diff(widths) / 2.6, np.diff(sorted([0.5, 0.25, 0.25, 0.4, 0.6, 1])))


def test_areas_grow_with_shares_and_regions_follow_each_other_by_their_patterns(ax):
    transitions(code(CHAIN, ["01", "11", "00"], np.array([0.2, 0.7, 0.1])), ax)
    circles = [p for p in ax.patches if isinstance(p, Circle)]
    areas = np.array([c.radius**2 for c in circles])
    assert np.allclose(np.diff(areas) / np.diff([0.2, 0.7, 0.1]), 0.32**2 - 0.15**2)
    angles = [np.angle(complex(*circles[i].center)) for i in (2, 0, 1)]
    assert np.allclose(angles, [np.pi, np.pi / 3, -np.pi / 3])


def test_a_region_that_is_never_left_has_no_arrow_and_many_have_no_numbers(ax):
    transitions(code(np.array([[0.9, 0.1], [np.nan, np.nan]]), ["0", "1"]), ax)
    assert sum(isinstance(p, FancyArrowPatch) for p in ax.patches) == 2
    other = transitions(code(np.full((8, 8), 1 / 8), [f"{i:012b}" for i in range(8)]))
    assert [text.get_text() for text in other.texts] == [str(i) for i in range(8)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (xr.DataArray(CHAIN), "cannot plot a DataArray: pass what kpops.reconstruction.symbolic"),
        (xr.Dataset({"share": ("region", [1.0])}), "expected probability"),
        (code(np.eye(21), [""] * 21), "21 regions, of which no graph can be read"),
    ],
)
def test_wrong_use_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        transitions(given)
