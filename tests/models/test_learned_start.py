"""A learned start is a parameter like any other, around every kind of model."""

import pytest
import torch
from cases import Case
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import kpops
from kpops.models import (
    DiagonalSSM,
    LeakyCell,
    LearnedStart,
    LowRankCell,
    MGUCell,
    MinGRUCell,
    NeuralODE,
    PLRNNCell,
    SelectiveSSM,
    TeacherForced,
)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.W = nn.Linear(4, 4)

    def forward(self, t, h):
        return torch.tanh(self.W(h)) * torch.cos(t) - h


CELLS = {
    "leaky_with_noise": (lambda: LeakyCell(2, 4, alpha=0.5, noise=True), "gated_numba"),
    "low_rank": (lambda: LowRankCell(2, 4, 2, alpha=0.5), "gated_numba"),
    "min_gru": (lambda: MinGRUCell(2, 4), "gated_numba"),
    "gru_cell": (lambda: nn.GRUCell(2, 4), "gated_numba"),
    "real_ssm": (lambda: DiagonalSSM(2, 4, form="real"), "scan"),
    "complex_ssm": (lambda: DiagonalSSM(2, 2), "scan"),
    "selective_ssm": (lambda: SelectiveSSM(2, 2), "scan"),
    "mgu": (lambda: MGUCell(2, 4), "jacobian"),
    "forced": (lambda: TeacherForced(PLRNNCell(2, 4), 0.3), "jacobian"),
    "ode": (lambda: NeuralODE(Field(), 0.1, "rk4", forcing="rate"), "jacobian"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_learned_start_is_a_parameter_like_any_other(name):
    build, engine = CELLS[name]
    cell = randomised(build(), scale=0.5)
    x = normal(2, 3, 1 if name == "ode" else cell.input_size)
    model = LearnedStart(cell, normal(4, seed=5))
    assert_contract(model, x, unrolled(cell, x, model.h0.expand(2, -1)), engine=engine)


@pytest.mark.parametrize(
    ("kind", "layers", "batch_first"),
    [(nn.RNN, 1, True), (nn.GRU, 2, False), (nn.LSTM, 1, True), (nn.LSTM, 2, False)],
)
def test_a_learned_start_of_pytorchs_layers(kind, layers, batch_first):
    inner = randomised(kind(2, 4, num_layers=layers, batch_first=batch_first))
    size = 4 * layers * (2 if kind is nn.LSTM else 1)
    model = LearnedStart(inner, normal(size, seed=5))
    x = normal(2, 3, 2)
    fed = x if batch_first else x.transpose(0, 1)
    # All states, by the module's own forward: run it to each step in turn, and step by step.
    states = []
    for t in range(1, 4):
        part = fed[:, :t] if batch_first else fed[:t]
        last = model(part)[1]
        last = torch.stack(last if kind is nn.LSTM else (last,))
        # (variable, layer, trial, unit) -> (trial, layer, variable, unit)
        states.append(last.permute(2, 1, 0, 3).reshape(2, -1))
    case = Case("", None, layers=layers)
    run = unrolled(lambda x, h: case.own_step(inner, x, h), x, model.h0.expand(2, -1))
    assert relative(run.states.detach(), torch.stack(states, 1).detach()) < 1e-15
    assert_contract(model, fed, run, engine="gated_numba")


def test_K_of_the_start_is_that_of_the_first_jacobian_at_the_first_step():
    model = LearnedStart(randomised(nn.GRUCell(2, 4)), normal(4, seed=5))
    lin = kpops.linearize(model, normal(3, 5, 2))
    A = lin.engine.step_jacobians(0)
    K = torch.from_numpy(lin.K_by_parameter["h0"].to_dense()).reshape(3, 5, 4, 3, 5, 4)
    expected = torch.zeros_like(K)
    expected[:, 0, :, :, 0] = torch.einsum("bij,ckj->bick", A, A)
    assert relative(K, expected) < 1e-14


def test_the_gradient_of_a_loss_reaches_the_start():
    model, x = LearnedStart(randomised(nn.GRU(2, 4, batch_first=True)), normal(4)), normal(3, 5, 2)
    states = model(x)[0]
    states.square().sum().backward()
    lin = kpops.linearize(model, x)
    gradient = lin.sensitivity.H @ (2 * states.detach())
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(gradient, expected) < 1e-13


def test_masked_trials_and_chosen_parameters_see_the_start():
    model, x = LearnedStart(randomised(nn.GRUCell(2, 4)), normal(4)), normal(3, 4, 2)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    D = jacobian(unrolled(model.model, x, model.h0.expand(3, -1)).states, [model.h0])
    D = D * mask[..., None].expand(3, 4, 4).reshape(-1, 1)
    for engine in ("gated_numba", "gated", "jacobian", "autodiff"):
        lin = kpops.linearize(model, x, mask=mask, parameters="h0", engine=engine)
        assert relative(lin.sensitivity.to_dense(), D) < 1e-13


def test_the_start_follows_training_of_a_recurrence_that_is_kept():
    model = LearnedStart(randomised(nn.GRUCell(2, 4)), normal(4))
    recurrence, x = kpops.models.as_recurrence(model), normal(3, 5, 2)
    with torch.no_grad():
        model.h0.mul_(-2)
    kept, fresh = kpops.linearize(recurrence, x), kpops.linearize(model, x)
    assert relative(kept.flow.to_dense(), fresh.flow.to_dense()) < 1e-15


def test_the_start_begins_at_zero_in_the_dtype_of_the_model():
    model = LearnedStart(nn.LSTM(2, 3, num_layers=2).double())
    assert torch.equal(model.h0, torch.zeros(12, dtype=torch.float64))
    x = normal(5, 3, 2)
    plain = kpops.linearize(model.model, x)
    assert relative(kpops.linearize(model, x).P.to_dense(), plain.P.to_dense()) < 1e-15


class Sizeless(nn.Module):
    def __init__(self):
        super().__init__()
        self.W = nn.Linear(2, 4)

    def forward(self, x, h):
        return torch.tanh(self.W(x) + h)


def test_a_start_of_known_size_gives_a_model_its_size():
    model = LearnedStart(randomised(Sizeless()), normal(4))
    assert kpops.linearize(model, normal(3, 5, 2)).states.sizes["unit"] == 4


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: LearnedStart(nn.GRUCell(2, 4), torch.zeros(3)), r"h0 has shape \(3,\), expected"),
        (lambda: LearnedStart(nn.GRUCell(2, 4), torch.zeros(2, 4)), r"h0 has shape \(2, 4\)"),
        (lambda: LearnedStart(Sizeless()), "state size of Sizeless is unknown: pass h0"),
        (
            lambda: kpops.linearize(
                LearnedStart(nn.GRUCell(2, 4)), torch.zeros(3, 5, 2), h0=torch.zeros(3, 4)
            ),
            "model has a LearnedStart: leave h0 out",
        ),
    ],
)
def test_wrong_use_is_refused(build, told):
    with pytest.raises(ValueError, match=told):
        build()


def test_packed_sequences_start_where_it_says():
    model = randomised(LearnedStart(nn.LSTM(2, 4, batch_first=True)))
    packed = pack_sequence([normal(n, 2, seed=n) for n in (3, 5, 2)], enforce_sorted=False)
    own, _ = pad_packed_sequence(model(packed)[0], batch_first=True)
    states = kpops.linearize(model, packed).states
    assert relative(states.sel(unit=states["variable"] == "h").values, own.detach()) < 1e-15


class Doubled(LearnedStart):
    def forward(self, x, h=None):
        return super().forward(2 * x, h)


def hooked():
    model = LearnedStart(nn.GRUCell(2, 4))
    model.register_forward_hook(lambda module, given, new: 2 * new)
    return model


@pytest.mark.parametrize("build", [lambda: Doubled(nn.GRUCell(2, 4)), hooked])
def test_a_start_whose_call_is_another_is_refused(build):
    with pytest.raises(ValueError, match=r"hooks or methods of its own.*change the model inside"):
        kpops.linearize(build(), torch.zeros(3, 5, 2))
