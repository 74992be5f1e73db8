"""Branches of fixed points are drawn by their stability, and change it at the bifurcations."""

import numpy as np
import pytest
import torch
from torch import nn

import kpops


@pytest.fixture(scope="module")
def pitchfork():
    cell = nn.RNNCell(1, 2, bias=False).double()
    W = torch.diag(torch.tensor([0.2, 0.8], dtype=torch.float64))
    return kpops.continuation(
        cell, np.zeros((1, 2)), lambda g: {"weight_hh": g * W}, (0.7, 1.6), step=0.05, switch=True
    )


def test_lines_change_their_style_at_the_bifurcation(pitchfork):
    ax = kpops.plot.branches(pitchfork)
    assert ax.get_ylabel() == "state of unit 1"  # that which varies
    lines = [line for line in ax.lines if line.get_linestyle() in ("-", "--")]
    spans = [(line.get_linestyle(), *line.get_xdata()[[0, -1]].round(6)) for line in lines]
    arm = ("-", 1.25, 1.6)
    assert spans == [("-", 0.7, 1.25), ("--", 1.25, 1.6), arm, arm]
    for line in lines[2:]:
        g, m = line.get_xdata()[1:], line.get_ydata()[1:]
        np.testing.assert_allclose(np.tanh(0.8 * g * m), m, atol=1e-12)
    marker = ax.lines[-1]
    assert marker.get_marker() == "D"
    np.testing.assert_allclose(marker.get_xydata(), [[1.25, 0]], atol=1e-7)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["stable", "unstable", "pitchfork"]


def test_two_results_share_axes_and_legend(pitchfork):
    ax = kpops.plot.branches(pitchfork, unit=0)
    assert kpops.plot.branches(pitchfork, ax, unit=0) is ax
    assert len(ax.get_legend().get_texts()) == 3
    assert ax.get_ylabel() == "state of unit 0"


def test_other_things_are_refused(pitchfork):
    with pytest.raises(ValueError, match=r"unit=2: choose from 0 to 1"):
        kpops.plot.branches(pitchfork, unit=2)
    with pytest.raises(ValueError, match=r"unit=0.0: choose from 0 to 1"):
        kpops.plot.branches(pitchfork, unit=0.0)
    with pytest.raises(ValueError, match=r"pass what kpops\.continuation returns"):
        kpops.plot.branches(pitchfork.drop_vars("event_state"))


def test_the_order_of_dimensions_and_a_branch_of_one_point_change_nothing(pitchfork):
    lines = kpops.plot.branches(pitchfork).lines
    turned = kpops.plot.branches(pitchfork.transpose()).lines
    for line, again in zip(lines, turned, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), again.get_xydata())
    lost = pitchfork.copy(deep=True)
    lost["n_points"][-1] = 1
    ax = kpops.plot.branches(lost, unit=0)
    np.testing.assert_allclose(ax.lines[-2].get_xydata(), [[1.25, 0]], atol=1e-7)
