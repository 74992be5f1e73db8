"""The leaky cell: its two forms, and what it refuses."""

import pytest
import torch
from dense import relative
from torch import nn

from kpops.models import LeakyCell


def cell(**options):
    torch.manual_seed(0)
    return LeakyCell(3, 5, **options).double()


def data():
    rng = torch.Generator().manual_seed(1)
    return (torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (3, 5))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_forms_are_their_formulas(activation):
    x, h = data()
    phi = getattr(torch, activation)
    rate, current = (cell(alpha=0.3, activation=activation, form=f) for f in ("rate", "current"))
    W, U, b = rate.weight_hh, rate.weight_ih, rate.bias
    expected = 0.7 * h + 0.3 * phi(h @ W.T + x @ U.T + b)
    assert relative(rate(x, h).detach(), expected.detach()) < 1e-15
    W, U, b = current.weight_hh, current.weight_ih, current.bias
    expected = 0.7 * h + 0.3 * (phi(h) @ W.T + x @ U.T + b)
    assert relative(current(x, h).detach(), expected.detach()) < 1e-15


def test_without_leak_the_rate_form_is_pytorchs_cell():
    x, h = data()
    ours, theirs = cell(alpha=1), nn.RNNCell(3, 5).double()
    with torch.no_grad():
        theirs.weight_hh.copy_(ours.weight_hh)
        theirs.weight_ih.copy_(ours.weight_ih)
        theirs.bias_ih.copy_(ours.bias)
        theirs.bias_hh.zero_()
    assert relative(ours(x, h).detach(), theirs(x, h).detach()) < 1e-15


def test_weights_start_as_pytorchs():
    for parameter in cell(alpha=0.5).parameters():
        assert parameter.abs().max() <= 5**-0.5
        assert parameter.std() > 0.1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alpha": 0}, r"alpha=0: .* in \(0, 1\]"),
        ({"alpha": 1.5}, r"alpha=1.5: .* in \(0, 1\]"),
        ({"alpha": 0.5, "activation": "sin"}, "activation='sin': choose from"),
        ({"alpha": 0.5, "form": "spikes"}, "form='spikes': choose 'rate' or 'current'"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        LeakyCell(3, 5, **options)
