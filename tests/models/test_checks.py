"""What linearize believes of a model: each kind is taken rightly, or refused by name."""

import copy
import warnings

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn
from user_cells import (
    HIDDEN,
    NOT_ITS_DERIVATIVE,
    Cell,
    Declared,
    OldStyle,
    Surrogate,
    gru,
    hooked,
    inputs,
    without_grad,
)

import kpops

# Readouts.


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_readout_may_work_in_place(kind):
    model = randomised(kind(2, HIDDEN, batch_first=True))
    readout = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(HIDDEN, 3)).double()
    plain = nn.Sequential(nn.ReLU(), readout[1])
    network = kpops.Network(model, readout)
    reference = kpops.linearize(model, inputs(), readout=plain)
    for lin in (
        kpops.linearize(model, inputs(), readout=readout),
        kpops.linearize(network, inputs()),
    ):
        assert relative(lin.outputs.values, network(inputs()).detach()) < 1e-14
        assert relative(lin.output_ntk.to_dense(), reference.output_ntk.to_dense()) < 1e-14
        assert np.array_equal(lin.states, reference.states)
        assert (lin.states.values < 0).any()


COUNTING = {
    "softmax": lambda: nn.Sequential(nn.Linear(HIDDEN, 3), nn.Softmax(dim=1)),
    "prelu": lambda: nn.PReLU(HIDDEN),
    "flatten": lambda: nn.Flatten(1),
}


@pytest.mark.parametrize("readout", COUNTING)
def test_readouts_that_count_dims_are_refused(readout):
    model = gru()
    with pytest.raises(ValueError, match=r"for \(trial, time, hidden\) than for rows"):
        kpops.linearize(kpops.Network(model, COUNTING[readout]().double()), inputs())


def test_a_softmax_over_time_is_refused_beside_any_model():
    with pytest.raises(ValueError, match="counts dimensions from the left"):
        kpops.linearize(gru(), inputs(), readout=COUNTING["softmax"]().double())
    last = nn.Sequential(nn.Linear(HIDDEN, 3), nn.Softmax(dim=-1)).double()
    assert kpops.linearize(gru(), inputs(), readout=last).outputs.sum("output").values == (
        pytest.approx(1)
    )


def test_a_readout_of_rows_only_is_taken_beside_a_model():
    lin = kpops.linearize(gru(), inputs(), readout=lambda h: torch.einsum("ru->r", h)[:, None])
    assert np.allclose(lin.outputs[..., 0], lin.states.sum("unit"), atol=1e-14)


# Small states.


def small(fault):
    class Small(Cell):
        def forward(self, x, h):
            return fault(1e-5 * torch.tanh(self.W(1e5 * h) + self.U(x)))

    return randomised(Small()).float()


def test_mixing_and_chance_at_small_states_are_refused():
    x = inputs(torch.float32)
    with pytest.raises(ValueError, match="Small mixes trials"):
        kpops.linearize(small(lambda h: h - h.mean(0)), x)
    with pytest.raises(ValueError, match="two steps of Small from the same state differ"):
        kpops.linearize(small(lambda h: h * (1 + 0.1 * torch.rand_like(h))), x)
    with pytest.raises(ValueError, match="readout is random or mixes rows"):
        kpops.linearize(small(lambda h: h), x, readout=lambda h: h - h.mean(0))

    calls = []

    def counting(h):
        calls.append(1)
        return h * (1 + (len(calls) > 8))

    with pytest.raises(ValueError, match="remembers something beside h"):
        kpops.linearize(small(counting), x)


def test_cancellation_is_no_chance():
    # The state is what rounding leaves of large numbers, which one row alone need not give.
    class Cancelled(Cell):
        def forward(self, x, h):
            a = (self.W.weight @ self.W.weight.T + 1e3 * torch.eye(HIDDEN)) @ h.T
            return (torch.linalg.solve(1e3 * torch.eye(HIDDEN).to(a), a).T - h) / 1e3

    cell = randomised(Cancelled()).float()
    states = kpops.linearize(cell, inputs(torch.float32), h0=torch.ones(3, HIDDEN)).states
    assert states.shape == (3, 5, HIDDEN)


# What a copy would not follow.


def test_a_call_of_its_own_is_refused_or_followed():
    class Doubled(nn.GRU):
        def __call__(self, x, h=None):
            return super().__call__(2 * x, h)

    with pytest.raises(ValueError, match="Doubled overrides the __call__ of GRU"):
        kpops.linearize(Doubled(2, HIDDEN, batch_first=True), inputs(torch.float32))

    class Leaky(kpops.models.LeakyCell):
        def __call__(self, x, h):
            return super().__call__(2 * x, h)

    cell = randomised(Leaky(2, HIDDEN, alpha=0.3))
    x, h0 = normal(3, 4, 2), normal(3, HIDDEN)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


def test_hooks_on_all_modules_are_refused():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, result: result * 2 if isinstance(module, nn.Linear) else None
    )
    try:
        with pytest.raises(ValueError, match="there are hooks on all modules"):
            kpops.linearize(Cell(), inputs(torch.float32))
        with pytest.raises(ValueError, match="there are hooks on all modules"):
            kpops.fixed_points(Cell(), torch.zeros(1, HIDDEN))
    finally:
        handle.remove()


def test_hooks_on_gradients_of_parts_are_refused():
    model = gru()
    model.register_full_backward_hook(lambda module, given, result: None)
    with pytest.raises(ValueError, match="GRU has hooks, which may change its step or its grad"):
        kpops.linearize(model, inputs())
    cell = randomised(Cell())
    cell.W.register_full_backward_hook(lambda module, given, result: (0.1 * given[0],))
    with pytest.raises(ValueError, match="leave out backward hooks of modules"):
        kpops.linearize(cell, inputs())


def test_hooks_on_the_gradients_of_parameters_are_refused():
    model = gru()
    model.weight_hh_l0.register_hook(lambda gradient: 0.1 * gradient)
    with pytest.raises(ValueError, match="weight_hh_l0 of the model has a hook"):
        kpops.linearize(model, inputs())
    assert kpops.linearize(copy.deepcopy(model), inputs()).K.shape == (60, 60)
    readout = nn.Linear(HIDDEN, 2).double()
    readout.bias.register_hook(lambda gradient: 0.1 * gradient)
    with pytest.raises(ValueError, match="bias of the readout has a hook"):
        kpops.linearize(gru(), inputs(), readout=readout)


OUTSIDE = nn.Linear(HIDDEN, HIDDEN).double()


def by_global_name(a):
    return OUTSIDE(a)


def outsiders():
    net = nn.Linear(HIDDEN, HIDDEN).double()
    weight = nn.Parameter(torch.eye(HIDDEN).double())
    nested = lambda a: net(a)  # noqa: E731
    return {
        "closure": (lambda a: net(a), r"net \(Linear\)"),
        "nested": (lambda a: nested(a), r"net \(Linear\)"),
        "default": (lambda a, net=net: net(a), r"a default \(Linear\)"),
        "global": (by_global_name, r"OUTSIDE \(Linear\)"),
        "weight": (lambda a: a @ weight, r"weight \(Parameter\)"),
        "method": (net.forward, r"\(a method of Linear\)"),
    }


@pytest.mark.parametrize("kind", ["closure", "nested", "default", "global", "weight"])
def test_functions_that_bring_modules_along_are_refused(kind):
    function, told = outsiders()[kind]
    h0 = torch.zeros(3, HIDDEN).double()
    ode = kpops.models.NeuralODE(lambda t, h: function(h), dt=0.1)
    for act in (
        lambda: kpops.linearize(Cell(function).double(), inputs()),
        lambda: kpops.linearize(ode, ode.inputs(0.1 * np.arange(5), n_trials=3), h0=h0),
        lambda: kpops.lyapunov_spectrum(ode, h0=h0, n_steps=10),
        lambda: kpops.fixed_points(ode, h0),
    ):
        with pytest.raises(ValueError, match=f"of the model refers to {told}, whose later"):
            act()


@pytest.mark.parametrize("kind", ["closure", "nested", "default", "global", "weight", "method"])
def test_readouts_that_bring_modules_along_are_refused(kind):
    function, told = outsiders()[kind]
    with pytest.raises(ValueError, match=f"the readout refers to .*{told}, whose later"):
        kpops.linearize(gru(), inputs(), readout=function)


def test_an_attribute_of_the_name_of_a_global_is_no_global():
    class Named(nn.Module):
        input_size, hidden_size = 2, HIDDEN

        def __init__(self):
            super().__init__()
            self.OUTSIDE = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x, h):
            return torch.tanh(self.OUTSIDE(h) + x.sum(1, keepdim=True))

    cell = randomised(Named())
    x, h0 = normal(3, 4, 2), normal(3, HIDDEN)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


# The order of arguments.


def test_a_forward_that_takes_the_state_first_is_refused():
    class First(nn.Module):
        input_size = hidden_size = HIDDEN

        def __init__(self):
            super().__init__()
            self.W, self.U = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

        def forward(self, h, x):
            return torch.tanh(self.W(h) + self.U(x))

    class Words(First):
        def forward(self, prev_state, stimulus):
            return super().forward(prev_state, stimulus)

    class Wrapped(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x, h):
            return self.cell(h, x)

    x = normal(3, 5, HIDDEN).float()
    with pytest.raises(ValueError, match=r"First.forward\(h, x\) takes the state first"):
        kpops.linearize(First(), x)
    with pytest.raises(ValueError, match=r"Words.forward\(prev_state, stimulus\) takes the state"):
        kpops.fixed_points(Words(), torch.zeros(1, HIDDEN))
    cell = randomised(Wrapped(First()))
    x, h0 = normal(3, 4, HIDDEN), normal(3, HIDDEN)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


def test_a_step_that_changes_its_input_is_refused():
    class InPlace(Cell):
        def forward(self, x, h):
            x *= 2
            return super().forward(x, h)

    class Late(Cell):
        """Only where the input is large, which neither the first nor the last is."""

        def forward(self, x, h):
            if (x > 50).any():
                x.clamp_(max=1)
            return super().forward(x, h)

    x = inputs()
    with pytest.raises(ValueError, match="InPlace changes x in place"):
        kpops.linearize(randomised(InPlace()), x)
    x[1, 2] = 100
    with pytest.raises(ValueError, match="Late changes x in place"):
        kpops.linearize(randomised(Late()), x)


def test_a_scripted_part_is_refused():
    class Holds(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x, h):
            return self.cell(x, h)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's
        scripted = torch.jit.trace(Cell(), (torch.zeros(1, 2), torch.zeros(1, HIDDEN)))
    with pytest.raises(ValueError, match="cell of the model is scripted, so its weights"):
        kpops.linearize(Holds(scripted), inputs(torch.float32), h0=torch.zeros(HIDDEN))


def test_inference_mode_changes_nothing_of_exponents():
    cell, x = randomised(Cell()), normal(2, 40, 2)
    expected = kpops.lyapunov_spectrum(cell, 2, inputs=x, rng=0)
    with torch.inference_mode():
        got = kpops.lyapunov_spectrum(cell, 2, inputs=x, rng=0)
    assert got.identical(expected)


def test_half_precision_and_lazy_modules_are_refused():
    class Lazy(Cell):
        def __init__(self):
            super().__init__()
            self.U = nn.LazyLinear(HIDDEN)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = Lazy()
        readout = nn.LazyLinear(2)
    with pytest.raises(ValueError, match=r"U.weight of the model has no shape yet: run the lazy"):
        kpops.linearize(lazy, inputs(torch.float32))
    with pytest.raises(ValueError, match="weight of the readout has no shape yet"):
        kpops.linearize(gru(), inputs(), readout=readout)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"{dtype} is not supported: use torch.float32"):
            kpops.linearize(gru(dtype), inputs(dtype))
        with pytest.raises(TypeError, match=f"{dtype} is not supported: use torch.float32"):
            kpops.lyapunov_spectrum(Cell().to(dtype), n_steps=5)
        lin = kpops.linearize(gru(dtype), inputs(dtype), dtype=torch.float32)
        assert lin.states.dtype == "float32"


def test_parameters_without_entries_are_refused_alone():
    cell = randomised(kpops.models.LeakyCell(0, HIDDEN, alpha=0.3))
    x = torch.zeros(3, 5, 0).double()
    with pytest.raises(ValueError, match=r"\['weight_ih'\] have no entries"):
        kpops.linearize(cell, x, parameters=["weight_ih"])
    assert kpops.linearize(cell, x).J.shape == (60, 20)


# Exponents and fixed points look at a model in the same way.

UNFIT = {
    "no_grad": (lambda: Cell(without_grad), NOT_ITS_DERIVATIVE),
    "surrogate": (lambda: Cell(Surrogate.apply), NOT_ITS_DERIVATIVE),
    "old style": (lambda: Cell(OldStyle.apply), "cannot be taken"),
    "clipped": (lambda: Declared(hooked(lambda g: g.clamp(-0.1, 0.1))), "is not linear"),
    "mixing": (lambda: Cell(lambda a: a - a.mean(0)), "mixes trials"),
    "random": (lambda: Cell(lambda a: a + torch.rand_like(a)), "two steps of Cell"),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize(
    "act",
    [
        lambda m, h: kpops.lyapunov_spectrum(m, 2, h0=h, n_steps=10),
        lambda m, h: kpops.covariant_lyapunov_vectors(m, h0=h, n_steps=10),
        lambda m, h: kpops.fixed_points(m, h),
        lambda m, h: kpops.linearize_at(m, h, 3),
        lambda m, h: kpops.stationary_response(m, h),
    ],
    ids=["lyapunov", "covariant", "fixed_points", "linearize_at", "stationary_response"],
)
def test_dynamics_refuse_what_linearize_refuses(kind, act):
    build, told = UNFIT[kind]
    with pytest.raises(ValueError, match=told):
        act(randomised(build()), normal(3, HIDDEN))
