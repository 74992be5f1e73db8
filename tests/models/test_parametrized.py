"""Constrained weights: the operators are over what learns, whatever engine computes."""

import pytest
import torch
from cases import Case
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import kpops
from kpops.models import Dale, LeakyCell, Masked, MGUCell, initialize_recurrent

MASK = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0]])
SIGNS = [1, -1, 1, 1]


def dale(size):
    return lambda: [Dale(SIGNS, size=size)]


PARTS = {
    "masked": lambda: [Masked(MASK)],
    "dale_abs": dale("abs"),
    "dale_relu": dale("relu"),
    "dale_exp": dale("exp"),
    "dale_and_masked": lambda: [Dale(SIGNS), Masked(MASK)],
}


def of_cell(build, weight, parts):
    """A cell whose weight is made by these parametrizations."""
    model = randomised(build())
    for part in parts:
        register_parametrization(model, weight, part)
    with torch.no_grad():  # signs of both kinds, so that each branch is met
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(0.7 * normal(*parameter.shape, seed=i))
    return model


@pytest.mark.parametrize("parts", PARTS)
def test_a_gated_cell_learns_through_its_constraint(parts):
    model = of_cell(lambda: LeakyCell(2, 4, alpha=0.4), "weight_hh", PARTS[parts]())
    x, h0 = normal(3, 4, 2), normal(3, 4)
    assert_contract(model, x, unrolled(model, x, h0), engine="gated_numba", h0=h0)


def test_any_cell_learns_through_its_constraint():
    model = of_cell(lambda: MGUCell(2, 4), "weight_hh", [Dale(SIGNS, size="exp")])
    x, h0 = normal(3, 4, 2), normal(3, 4)
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_pytorchs_layers_learn_through_their_constraints(kind):
    gates = {nn.RNN: 1, nn.GRU: 3}[kind]
    model = randomised(kind(2, 4, batch_first=True))
    register_parametrization(model, "weight_hh_l0", Masked(MASK.repeat(gates, 1)))
    register_parametrization(model, "weight_hh_l0", Dale(SIGNS))
    rows = torch.arange(4 * gates)[:, None] % 3 < 2
    register_parametrization(model, "weight_ih_l0", Masked(rows))
    x = normal(3, 4, 2)
    case = Case("", None)
    run = unrolled(lambda x, h: case.own_step(model, x, h), x, torch.zeros(3, 4).double())
    assert relative(run.states.detach(), model(x)[0].detach()) < 1e-14
    assert_contract(model, x, run, engine="gated_numba")


def test_weights_that_a_parametrization_ties_learn_together():
    class Shared(nn.Module):
        """Input weights made of the recurrent ones: the same tensor learns in both places."""

        def __init__(self, of):
            super().__init__()
            self.of = of

        def forward(self, V):
            return 0.5 * self.of[:, :2] + V

    model = randomised(MGUCell(2, 4))
    register_parametrization(model, "weight_ih", Shared(model.weight_hh))
    x, h0 = normal(3, 4, 2), normal(3, 4)
    assert "parametrizations.weight_ih.0.of" not in dict(model.named_parameters())
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


def test_a_module_whose_own_forward_has_run_can_be_linearised():
    # nn.RNN keeps the weights that its parametrizations made, with their graph
    model = randomised(nn.RNN(2, 4, num_layers=2, batch_first=True))
    register_parametrization(model, "weight_hh_l0", Masked(MASK))
    x = normal(3, 4, 2)
    before = kpops.linearize(model, x)
    states = model(x)[0]
    kept = [id(w) for w in model._flat_weights]
    after = kpops.linearize(model, x)
    assert [id(w) for w in model._flat_weights] == kept
    assert relative(after.recurrence.output(after.trajectory.states), states.detach()) < 1e-14
    assert relative(after.flow.to_dense(), before.flow.to_dense()) < 1e-15
    states.sum().backward()  # the graph of the user's run is whole
    assert model.parametrizations["weight_hh_l0"].original.grad is not None


def test_what_is_masked_adds_nothing_to_K():
    free = randomised(nn.RNN(2, 4, batch_first=True))
    masked = randomised(nn.RNN(2, 4, batch_first=True))
    register_parametrization(masked, "weight_hh_l0", Masked(MASK))
    with torch.no_grad():
        free.weight_hh_l0.mul_(MASK)
    x = normal(3, 4, 2)
    some, all_ = kpops.linearize(masked, x), kpops.linearize(free, x)
    assert relative(some.states.values, all_.states.values) < 1e-15
    kept = MASK.flatten().bool().numpy()
    J = all_.J.to_dense()[:, (all_.parameter_space.coords["parameter_name"][1] == "weight_hh_l0")]
    K = some.K_by_parameter["parametrizations.weight_hh_l0.original"].to_dense()
    assert relative(K, J[:, kept] @ J[:, kept].T) < 1e-13


def test_K_under_exp_weighs_each_connection_by_its_square():
    # dW/dV = W for W = exp(V) s
    exp = of_cell(lambda: nn.RNNCell(2, 4), "weight_hh", [Dale(SIGNS, size="exp")])
    plain = nn.RNNCell(2, 4).double()
    plain.load_state_dict({n: getattr(exp, n).detach() for n in plain.state_dict()})
    x = normal(3, 4, 2)
    lin, reference = kpops.linearize(exp, x), kpops.linearize(plain, x)
    names = reference.parameter_space.coords["parameter_name"][1]
    J = reference.J.to_dense()[:, names == "weight_hh"] * plain.weight_hh.detach().numpy().ravel()
    K = lin.K_by_parameter["parametrizations.weight_hh.original"].to_dense()
    assert relative(K, J @ J.T) < 1e-13


def test_P_is_gated_and_K_of_free_weights_too():
    model = of_cell(lambda: LeakyCell(2, 4, alpha=0.4), "weight_hh", [Masked(MASK)])
    lin = kpops.linearize(model, normal(3, 4, 2))
    assert lin.engine.name == "gated_numba"
    assert lin.engine.unit_blocks(("weight_ih", "bias")) is not None
    assert lin.engine.unit_blocks(tuple(lin.parameters)) is None


@pytest.mark.parametrize("names", [["weight_hh_l0"], ["weight_hh_l0", "weight_hh_l1"]])
def test_recurrent_weights_behind_a_parametrization_are_not_left_out_of_a_new_draw(names):
    model = nn.RNN(2, 4, num_layers=2)
    for name in names:
        register_parametrization(model, name, Masked(MASK))
    with pytest.raises(ValueError, match=r"weight_hh_l0\.original is behind a parametrization"):
        initialize_recurrent(model, 1.0, rng=0)


@pytest.mark.parametrize("size", ["abs", "relu", "exp"])
def test_registration_keeps_the_sizes_and_sets_the_signs(size):
    cell = randomised(LeakyCell(2, 4, alpha=0.4))
    before = cell.weight_hh.detach().clone()
    register_parametrization(cell, "weight_hh", Dale(SIGNS, size=size))
    expected = before.abs() * torch.tensor(SIGNS, dtype=torch.float64)
    assert relative(cell.weight_hh.detach(), expected) < 1e-15
    cell.weight_hh = 2 * before
    assert relative(cell.weight_hh.detach(), 2 * expected) < 1e-15


def test_the_derivative_at_a_weight_of_zero_is_zero():
    for size in ("abs", "relu"):
        V = torch.zeros(3, 4, requires_grad=True)
        Dale(SIGNS, size=size)(V).sum().backward()
        assert torch.equal(V.grad, torch.zeros(3, 4))


def test_assigned_weights_come_back_masked():
    cell = LeakyCell(2, 4, alpha=0.4).double()
    register_parametrization(cell, "weight_hh", Masked(MASK))
    new = normal(4, 4)
    cell.weight_hh = new
    assert torch.equal(cell.weight_hh, new * MASK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_weight_is_kept(dtype):
    cell = LeakyCell(2, 4, alpha=0.4).to(dtype)
    register_parametrization(cell, "weight_hh", Dale(torch.tensor(SIGNS, dtype=torch.float64)))
    register_parametrization(cell, "weight_hh", Masked(MASK.double().numpy()))
    assert cell.weight_hh.dtype == dtype
    assert cell.double().weight_hh.dtype == torch.float64


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Masked([[0.5, 1.0]]), "mask has values other than 0 and 1"),
        (lambda: Masked(torch.ones(3, 4))(torch.ones(4, 4)), r"mask has shape \(3, 4\)"),
        (
            lambda: register_parametrization(nn.RNNCell(2, 4), "weight_hh", Masked([[1] * 3] * 4)),
            r"mask has shape \(4, 3\), the weight \(4, 4\)",
        ),
        (lambda: Masked(torch.ones(2, 4, 4))(torch.ones(4, 4)), r"mask has shape \(2, 4, 4\)"),
        (lambda: Dale([1, 0, -1]), "signs must be a list of 1 and -1"),
        (lambda: Dale([True, False]), "signs must be a list of 1 and -1"),
        (lambda: Dale([[1, -1]]), "signs must be a list of 1 and -1"),
        (lambda: Dale([1, -1], size="square"), "size='square': choose 'abs', 'relu' or 'exp'"),
        (lambda: Dale([1, -1])(torch.ones(4, 4)), r"2 signs for a weight of shape \(4, 4\)"),
    ],
)
def test_wrong_use_is_refused(build, told):
    with pytest.raises(ValueError, match=told):
        build()
