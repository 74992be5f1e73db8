"""How linearize reads networks without recurrence, and what it refuses."""

import pytest
import torch
from torch import nn

import kpops


class Scaled(nn.Module):
    """A forward of two arguments, as that of a cell."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale):
        return self.linear(x) * scale[:, None]


def test_inputs_in_a_dict_are_the_arguments_of_a_network_with_sites():
    torch.manual_seed(0)
    net, inputs = Scaled(), {"scale": torch.arange(4.0), "x": torch.randn(4, 3)}
    lin = kpops.linearize(net, inputs)
    assert torch.equal(torch.from_numpy(lin.outputs.values), net(**inputs))
    assert lin.space.coords["site"].values.tolist() == ["linear"] * 2


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5)])
def test_batch_statistics_are_refused_with_the_remedy(shape):
    net = nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"batch normalisation in training mode.*model\.eval\(\)"):
        kpops.linearize(net, torch.randn(shape), sites="auto")
    assert kpops.linearize(net.eval(), torch.randn(shape)).output_space.shape == shape
