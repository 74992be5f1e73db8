"""Layer norm and residual steps by the engines for any module; a learned start by all engines."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn

import kpops
from kpops.models import LeakyCell, LearnedStart, MGUCell, MinGRUCell, PLRNNCell, TeacherForced


class NormedCell(nn.Module):
    """Layer norm of the drive: each unit sees the others through mean and variance."""

    input_size, hidden_size = 2, 4

    def __init__(self):
        super().__init__()
        self.drive = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x, h):
        return torch.tanh(self.norm(self.drive(torch.cat([x, h], -1))))


class ResidualCell(nn.Module):
    """h' = h + f(h, x), with f a network of two layers after a norm."""

    input_size, hidden_size = 2, 4

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 4))

    def forward(self, x, h):
        return h + 0.3 * self.inner(torch.cat([x, self.norm(h)], -1))


@pytest.mark.parametrize("cell", [NormedCell, ResidualCell])
def test_the_operators_are_those_of_autograd(cell):
    model, x, h0 = randomised(cell()), normal(3, 4, 2), normal(3, 4)
    assert_contract(model, x, unrolled(model, x, h0), gated=False, h0=h0)


def test_layer_norm_leaves_no_perturbation_along_its_null_directions():
    # The norm does not see a shift of all of its arguments alike: A maps the drive's common mode,
    # pulled back by pseudo-inverse, to zero.
    model = randomised(NormedCell())
    with torch.no_grad():
        model.drive.weight[:, 2:].copy_(torch.eye(4))
    lin = kpops.linearize(model, normal(3, 4, 2), h0=normal(3, 4))
    A = lin.engine.step_jacobians(2)
    assert float((A @ torch.ones(4, dtype=torch.float64)).abs().max()) < 1e-14 * float(A.norm())


def test_a_residual_step_is_near_the_identity_for_a_small_inner_map():
    model = randomised(ResidualCell(), scale=1e-4)
    lin = kpops.linearize(model, normal(3, 4, 2))
    assert float((lin.engine.step_jacobians(1) - torch.eye(4)).abs().max()) < 1e-7


# A learned start.


CELLS = {
    "leaky": (lambda: LeakyCell(2, 4, alpha=0.5), True),
    "leaky_with_noise": (lambda: LeakyCell(2, 4, alpha=0.5, noise=True), True),
    "min_gru": (lambda: MinGRUCell(2, 4), True),
    "gru_cell": (lambda: nn.GRUCell(2, 4), True),
    "mgu": (lambda: MGUCell(2, 4), False),
    "residual": (ResidualCell, False),
    "forced": (lambda: TeacherForced(PLRNNCell(2, 4), 0.3), False),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_learned_start_is_a_parameter_like_any_other(name):
    build, gated = CELLS[name]
    cell = randomised(build())
    x = normal(3, 4, cell.input_size)
    model = LearnedStart(cell, normal(4, seed=5))
    assert_contract(model, x, unrolled(cell, x, model.h0.expand(3, -1)), gated=gated)


@pytest.mark.parametrize(
    ("kind", "layers", "batch_first"),
    [(nn.RNN, 1, True), (nn.GRU, 2, False), (nn.LSTM, 1, True), (nn.LSTM, 2, False)],
)
def test_a_learned_start_of_pytorchs_layers(kind, layers, batch_first):
    inner = randomised(kind(2, 3, num_layers=layers, batch_first=batch_first))
    size = 3 * layers * (2 if kind is nn.LSTM else 1)
    model = LearnedStart(inner, normal(size, seed=5))
    x = normal(2, 3, 2)
    fed = x if batch_first else x.transpose(0, 1)
    # All states, by the module's own forward: run it to each step in turn.
    states = []
    for t in range(1, 4):
        part = fed[:, :t] if batch_first else fed[:t]
        last = model(part)[1]
        last = torch.stack(last if kind is nn.LSTM else (last,))
        # (variable, layer, trial, unit) -> (trial, layer, variable, unit)
        states.append(last.permute(2, 1, 0, 3).reshape(2, -1))
    assert_contract(model, fed, torch.stack(states, 1), gated=True)


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
    states = unrolled(model.model, x, model.h0.expand(3, -1))
    D = torch.stack(
        [torch.autograd.grad(h, model.h0, retain_graph=True)[0] for h in states.flatten()]
    )
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
