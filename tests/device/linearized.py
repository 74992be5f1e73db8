"""Small models of every kind, linearised on the simulated device and on the CPU."""

from functools import cache, partial

import simulated
import torch
from cases import BY_NAME, HIDDEN, INPUTS, STEPS, TRIALS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import kpops
from kpops.models import DiagonalSSM, Masked, SelectiveSSM


class AroundGRUCell(nn.Module):
    """A user's cell around PyTorch's, which is one kernel on a GPU, without a forward mode."""

    def __init__(self):
        super().__init__()
        self.hidden_size, self.input_size = HIDDEN, INPUTS
        self.cell = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x, h):
        return 0.5 * h + 0.5 * self.cell(x, h)


def parametrized(parametrization, family=nn.RNN, hidden=HIDDEN):
    return parametrization(family(INPUTS, hidden, batch_first=True), "weight_hh_l0")


def masked():
    model = nn.RNN(INPUTS, HIDDEN, batch_first=True)
    mask = Masked(~torch.eye(HIDDEN, dtype=torch.bool))
    parametrize.register_parametrization(model, "weight_hh_l0", mask)
    return model


MODELS = {
    "gru": (BY_NAME["gru"].build, ["gated", "gated recomputed", "jacobian", "autodiff"]),
    "lstm_two_layers": (BY_NAME["lstm_two_layers"].build, ["gated", "autodiff"]),
    "min_gru": (BY_NAME["min_gru"].build, ["gated"]),
    "diagonal": (partial(DiagonalSSM, INPUTS, HIDDEN, form="real", rng=0), ["scan", "jacobian"]),
    "selective": (partial(SelectiveSSM, INPUTS, 2, rng=0), ["scan"]),
    "around_gru_cell": (AroundGRUCell, ["jacobian", "autodiff"]),
    "masked_weight": (masked, ["gated"]),
    "weight_norm": (partial(parametrized, parametrizations.weight_norm), ["gated"]),
    "orthogonal": (partial(parametrized, parametrizations.orthogonal, nn.GRU), ["gated"]),
    "orthogonal_square": (partial(parametrized, parametrizations.orthogonal), ["gated"]),
}
LENGTHS = torch.tensor([[STEPS], [3], [1]])


@cache
def linearized(name, engine, device=simulated.NAME, *, with_mask=False):
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    inputs = torch.randn(TRIALS, STEPS, INPUTS, dtype=torch.float64)
    mask = torch.arange(STEPS) < LENGTHS if with_mask else None
    if not getattr(model, "batch_first", True):
        inputs, mask = inputs.transpose(0, 1), mask.T if with_mask else None
    engine, *gates = engine.split()
    options = {"gates": gates[0]} if gates else {}
    readout = nn.Linear(HIDDEN, 2, dtype=torch.float64)
    return kpops.linearize(
        model, inputs, readout=readout, mask=mask, engine=engine, device=device, **options
    )
