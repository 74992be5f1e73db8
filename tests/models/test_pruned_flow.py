"""A pruned network: K and P K P* of what is left are below those of all weights."""

import copy

import numpy as np
import pytest
import torch
from cell_contract import normal, randomised
from dense import relative
from torch import nn
from torch.nn.utils import parametrize

import kpops
from kpops.models import LeakyCell, Masked

MODELS = {
    "gru": (lambda: nn.GRU(2, 4, batch_first=True), "weight_hh_l0"),
    "leaky": (lambda: LeakyCell(2, 4, alpha=0.4), "weight_hh"),
}


def pruned(name):
    """Mask, a network whose other weights are zero, and the same with the mask built in."""
    build, weight = MODELS[name]
    network = randomised(build())
    mask = (
        torch.rand(getattr(network, weight).shape, generator=torch.Generator().manual_seed(3)) < 0.4
    )
    with torch.no_grad():
        getattr(network, weight).mul_(mask)
    masked = copy.deepcopy(network)
    parametrize.register_parametrization(masked, weight, Masked(mask))
    return mask, network, masked


def smallest(matrix):
    """Smallest eigenvalue over the largest."""
    values = np.linalg.eigvalsh(matrix)
    return values[0] / values[-1]


@pytest.mark.parametrize("name", MODELS)
def test_K_and_the_flow_of_a_mask_are_below_those_of_all_weights(name):
    _, network, masked = pruned(name)
    x = normal(2, 5, 2)
    whole, part = kpops.linearize(network, x), kpops.linearize(masked, x)
    assert relative(whole.states.values, part.states.values) < 1e-14
    assert relative(whole.P.to_dense(), part.P.to_dense()) < 1e-14
    for above, below in ((whole.K, part.K), (whole.flow, part.flow)):
        difference = above.to_dense() - below.to_dense()
        assert smallest(difference) > -1e-13
        assert np.trace(difference) > 0.01 * np.trace(above.to_dense())
        # Weyl: so is every eigenvalue below its like.
        values = (np.linalg.eigvalsh(op.to_dense()) for op in (above, below))
        assert (np.subtract(*values) > -1e-12 * np.trace(above.to_dense())).all()


@pytest.mark.parametrize("name", MODELS)
def test_K_of_a_mask_and_of_its_complement_add_up(name):
    mask, network, masked = pruned(name)
    rest = copy.deepcopy(network)
    weight = MODELS[name][1]
    parametrize.register_parametrization(rest, weight, Held(getattr(network, weight), ~mask))
    x = normal(2, 5, 2)
    parts = [kpops.linearize(m, x) for m in (masked, rest)]
    K = [lin.K_by_parameter[f"parametrizations.{weight}.original"].to_dense() for lin in parts]
    whole = kpops.linearize(network, x).K_by_parameter[weight].to_dense()
    assert relative(K[0] + K[1], whole) < 1e-13


class Held(nn.Module):
    """Weights of which only those under the mask learn, and the others keep their value."""

    def __init__(self, weight, mask):
        super().__init__()
        self.register_buffer("kept", weight.detach() * ~mask)
        self.register_buffer("mask", mask)

    def forward(self, original):
        return self.kept + original * self.mask

    def right_inverse(self, weight):
        return weight * self.mask


def test_the_flow_of_fewer_parameters_is_below_that_of_more():
    network, x = randomised(nn.GRU(2, 4, batch_first=True)), normal(2, 5, 2)
    whole = kpops.linearize(network, x)
    part = kpops.linearize(network, x, parameters=["weight_hh_l0"])
    assert smallest(whole.flow.to_dense() - part.flow.to_dense()) > -1e-13
