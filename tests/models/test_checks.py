"""What linearize believes of a model: each kind of model is taken rightly, or refused by name."""

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from cases import CASES
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

import kpops

HIDDEN = 4


class Cell(nn.Module):
    """h' = tanh(part(W h) + U x): a user's cell, of which one part is what is tested."""

    input_size, hidden_size = 2, HIDDEN

    def __init__(self, part=lambda a: a):
        super().__init__()
        self.W = nn.Linear(HIDDEN, HIDDEN)
        self.U = nn.Linear(2, HIDDEN)
        self.part = part

    def forward(self, x, h):
        return torch.tanh(self.part(self.W(h)) + self.U(x))


class Apply(nn.Module):
    """A readout, or a parametrization, made of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a):
        return self.function(a)


class Surrogate(torch.autograd.Function):
    """A spike, whose backward pass is that of a fast sigmoid."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        return (a > 0).to(a.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + ctx.saved_tensors[0].abs()) ** 2


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


def without_grad(a):
    with torch.no_grad():
        b = a.sin()
    return a + b


def set_without_grad(a):
    with torch.set_grad_enabled(False):
        b = a.sin()
    return a + b


def in_inference(a):
    with torch.inference_mode():
        b = a.sin()
    return a + b


def hooked(change):
    def part(a):
        b = a * 1.0
        if b.requires_grad:
            b.register_hook(change)
        return b

    return part


UNTRUE = {
    "no_grad": without_grad,
    "set_grad_enabled": set_without_grad,
    "detach": lambda a: a + a.detach().sin(),
    "data": lambda a: a + a.data.sin(),
    "inference_mode": in_inference,
    "hook": hooked(lambda gradient: 0.1 * gradient),
    "surrogate": Surrogate.apply,
    "straight through": lambda a: a + (a.round() - a).detach(),
}
"""Parts whose gradient in training is not the derivative of their values."""


def gru(dtype=torch.float64):
    return randomised(nn.GRU(2, HIDDEN, batch_first=True)).to(dtype)


def inputs(dtype=torch.float64):
    return normal(3, 5, 2).to(dtype)


NOT_ITS_DERIVATIVE = "is not the derivative of its values: reverse mode and finite differences"


# The derivative is that of training, in every engine.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", UNTRUE)
def test_a_step_whose_gradient_is_not_its_derivative_is_refused(part, dtype):
    cell = randomised(Cell(UNTRUE[part])).to(dtype)
    told = "the gradient of a step of Cell by its state, W.weight, W.bias " + NOT_ITS_DERIVATIVE
    with pytest.raises(ValueError, match=told):
        kpops.linearize(cell, inputs(dtype), engine="autodiff")


@pytest.mark.parametrize("part", UNTRUE)
def test_a_readout_whose_gradient_is_not_its_derivative_is_refused(part):
    told = "the gradient of the readout by its state " + NOT_ITS_DERIVATIVE
    with pytest.raises(ValueError, match=told):
        kpops.linearize(gru(), inputs(), readout=UNTRUE[part])
    readout = nn.Sequential(nn.Linear(HIDDEN, 3), Apply(UNTRUE[part])).double()
    told = "the gradient of the readout by its state, 0.weight, 0.bias " + NOT_ITS_DERIVATIVE
    with pytest.raises(ValueError, match=told):
        kpops.linearize(gru(), inputs(), readout=readout)


@pytest.mark.parametrize("part", UNTRUE)
def test_a_parametrization_whose_gradient_is_not_its_derivative_is_refused(part):
    model = gru()
    parametrize.register_parametrization(model, "weight_hh_l0", Apply(UNTRUE[part]))
    told = r"a step of \w+ by parametrizations.weight_hh_l0.original " + NOT_ITS_DERIVATIVE
    with pytest.raises(ValueError, match=told):
        kpops.linearize(model, inputs())


def test_a_frozen_part_may_be_without_gradient():
    # What does not learn has no gradient that could be another one.
    class Fixed(Cell):
        def forward(self, x, h):
            with torch.no_grad():
                gain = self.U.weight.sum().sin()
            return torch.tanh(gain * self.W(h) + self.U(x).detach())

    cell = randomised(Fixed())
    with pytest.raises(ValueError, match=r"by U.weight, U.bias is not the derivative"):
        kpops.linearize(cell, inputs())
    lin = kpops.linearize(cell, inputs(), parameters=["W.weight", "W.bias"])
    run = unrolled(cell, inputs(), torch.zeros(3, HIDDEN).double())
    D = jacobian(run.states, [cell.W.weight, cell.W.bias])
    assert relative(lin.sensitivity.to_dense(), D) < 1e-12


class Declared(Cell):
    surrogate_gradient = True


@pytest.mark.parametrize("part", [p for p in UNTRUE if p != "inference_mode"])
def test_a_declared_surrogate_is_trainings_gradient_in_all_engines(part):
    cell = randomised(Declared(UNTRUE[part]))
    x, h0 = normal(3, 4, 2), normal(3, HIDDEN)
    run = unrolled(cell, x, h0)
    D = jacobian(run.states, list(cell.parameters()))
    P = jacobian(run.states, [run.kicks])
    for engine in ("jacobian", "autodiff"):
        lin = kpops.linearize(cell, x, h0=h0, engine=engine)
        assert relative(lin.P.to_dense(), P) < 1e-12
        assert relative(lin.sensitivity.to_dense(), D) < 1e-12
        assert relative(lin.flow.to_dense(), D @ D.T) < 1e-12
        assert "surrogate gradient" in repr(lin)
    assert "surrogate" not in repr(kpops.linearize(Cell(), x.float()))


def test_declared_surrogates_in_readout_and_parametrization():
    class Spikes(Apply):
        surrogate_gradient = True

    model = gru()
    parametrize.register_parametrization(model, "weight_hh_l0", Spikes(UNTRUE["detach"]))
    readout = nn.Sequential(Spikes(Surrogate.apply), nn.Linear(HIDDEN, 3)).double()
    lin = kpops.linearize(model, inputs(), readout=readout)
    outputs = readout(model(inputs())[0]).flatten()
    learning = [*model.parameters(), *readout.parameters()]
    order = [dict(model.named_parameters())[n] for n in lin.parameters]
    assert {id(p) for p in order} == {id(p) for p in model.parameters()}
    D = jacobian(outputs, [*order, *readout.parameters()])
    assert len(learning) == len(order) + 2
    assert relative(lin.output_ntk.to_dense(), D @ D.T) < 1e-12
    assert "surrogate gradient" in repr(lin)


def test_exponents_do_not_depend_on_how_many_are_asked_for():
    # k = 1 pushes tangents, k = 40 forms Jacobians.
    class Wide(nn.Module):
        surrogate_gradient = True
        input_size, hidden_size = 2, 40

        def __init__(self):
            super().__init__()
            self.W = nn.Linear(40, 40)

        def forward(self, x, h):
            a = self.W(h)
            return torch.tanh(without_grad(a) + x.sum(1, keepdim=True))

    torch.manual_seed(0)
    wide = Wide().double()
    few, all_ = (kpops.lyapunov_spectrum(wide, k, inputs=normal(2, 300, 2), rng=0) for k in (2, 40))
    assert few.trial_exponent[:, 0].values == pytest.approx(
        all_.trial_exponent[:, 0].values, abs=1e-6
    )


def test_hooks_that_clip_are_refused():
    clip = hooked(lambda gradient: gradient.clamp(-0.1, 0.1))
    with pytest.raises(
        ValueError, match="step of Declared to its state is not linear, so that it has"
    ):
        kpops.linearize(randomised(Declared(clip)), inputs())


# ... and what is right is never refused.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("zero", [False, True])
def test_no_model_of_ours_is_refused(case, dtype, zero):
    model = case.model(dtype)
    x, h0 = case.data(dtype)
    if zero:
        h0 = torch.zeros_like(h0)
        with torch.no_grad():  # all kinks of relu at once
            for parameter in model.parameters():
                parameter.mul_(parameter.ndim > 1)
        x = torch.zeros_like(x)
    from kpops.derivatives import refuse_unlike_training

    recurrence = kpops.models.as_recurrence(model)
    rows, h = x.flatten(0, 1), h0.repeat_interleave(x.shape[1], 0)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    refuse_unlike_training("it", recurrence, recurrence.renewed(), parameters, rows, h)


KINKS = {
    "relu": torch.relu,
    "hard sigmoid": nn.functional.hardsigmoid,
    "hard tanh": nn.functional.hardtanh,
    "clamp": lambda a: a.clamp(-0.3, 0.3),
    "abs": torch.abs,
    "steep": lambda a: torch.tanh(300 * a),
    "root": lambda a: (a.abs() + 1e-12).sqrt(),
    "floor": lambda a: a - a.floor(),
    "top": lambda a: torch.where(a >= a.amax(-1, keepdim=True), a, 0.1 * a),
    "saturated": lambda a: torch.sigmoid(a + 30),
    "cancelled": lambda a: (a + 1e6) - 1e6,
    "in float32": lambda a: a.float().tanh().to(a.dtype),
    "huge": lambda a: 1e12 * a,
    "tiny": lambda a: 1e-12 * a,
    "log of what may be negative": lambda a: torch.log(a.relu()).nan_to_num(0, 0, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kink", KINKS)
def test_kinks_and_scales_are_not_refused(kink, zero, dtype):
    for seed in range(5):
        cell = randomised(Cell(KINKS[kink]), seed=seed).to(dtype)
        x = torch.zeros(3, 5, 2, dtype=dtype) if zero else normal(3, 5, 2, seed=seed).to(dtype)
        if zero:
            nn.init.zeros_(cell.U.bias), nn.init.zeros_(cell.W.bias)
        assert kpops.linearize(cell, x, readout=KINKS[kink]).states.shape == (3, 5, HIDDEN)


# Weights made once.


class MadeOnce(Cell):
    """Orthogonal recurrent weights, made in the first call."""

    def __init__(self, A=None):
        super().__init__()
        self.A = A

    def made(self):
        return torch.matrix_exp(self.W.weight - self.W.weight.T)

    def forward(self, x, h):
        if self.A is None:
            self.A = self.made()
        return torch.tanh(h @ self.A.T + self.U(x))


class MadeAnew(MadeOnce):
    def forward(self, x, h):
        return torch.tanh(h @ self.made().T + self.U(x))


MADE_ONCE = r"step of MadeOnce by W.weight is not the one that training gets: a step makes A and"


def test_weights_made_once_are_refused():
    cell = randomised(MadeOnce())
    with pytest.raises(ValueError, match=MADE_ONCE):
        kpops.linearize(cell, inputs())
    assert cell.A is None
    with torch.no_grad():
        cell(inputs()[:, 0], torch.zeros(3, HIDDEN).double())
    told = "keeps A, made in an earlier call of W.weight, which therefore has no effect: set it to"
    with pytest.raises(ValueError, match=told):
        kpops.linearize(cell, inputs())
    cell.A = None
    cell(inputs()[:, 0], torch.zeros(3, HIDDEN).double())
    with pytest.raises(ValueError, match="MadeOnce cannot be copied"):
        kpops.linearize(cell, inputs())


def test_weights_made_anew_are_taken():
    cell = randomised(MadeAnew())
    x, h0 = normal(3, 4, 2), normal(3, HIDDEN)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


def test_a_readout_that_makes_its_weight_once_is_refused():
    class Once(nn.Linear):
        made = None

        def forward(self, h):
            if self.made is None:
                self.made = self.weight.exp()
            return h @ self.made.T

    with pytest.raises(
        ValueError, match=r"the readout by weight is not the one .* a step makes mad"
    ):
        kpops.linearize(gru(), inputs(), readout=Once(HIDDEN, 3, bias=False).double())


def test_a_constant_that_is_no_buffer_is_taken():
    class Constant(Cell):
        def __init__(self):
            super().__init__()
            self.mask = torch.eye(HIDDEN).double()
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x, h):
            return torch.tanh(h @ self.mask + self.U(x))

    lin = kpops.linearize(randomised(Constant()), inputs())
    assert not lin.K_by_parameter["unused"].to_dense().any()


def test_a_cell_that_notes_its_activity_stays_whole():
    class Noting(Cell):
        def forward(self, x, h):
            self.last = super().forward(x, h)
            return self.last

    cell = randomised(Noting())
    lin = kpops.linearize(cell, inputs())
    lin.flow.to_dense()
    again = copy.deepcopy(lin)
    assert relative(again.flow.to_dense(), lin.flow.to_dense()) < 1e-14
    assert len(kpops.fixed_points(lin, 2, rng=0).point) >= 1


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
    with pytest.raises(ValueError, match="counts dims from the left"):
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
    with pytest.raises(ValueError, match="leave backward hooks of modules out"):
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


# Refused at once, with the remedy.


class Attention(nn.Module):
    input_size, hidden_size = HIDDEN, HIDDEN

    def __init__(self, math):
        super().__init__()
        self.attention = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)
        self.math = math

    def forward(self, x, h):
        both = torch.stack([x, h], 1)
        with sdpa_kernel(SDPBackend.MATH if self.math else SDPBackend.FLASH_ATTENTION):
            return torch.tanh(self.attention(h[:, None], both, both, need_weights=False)[0][:, 0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, before it fails
def test_attention_is_taken_by_its_plain_kernel():
    x, h0 = normal(3, 4, HIDDEN), normal(3, HIDDEN)
    with pytest.raises(ValueError, match=r"sdpa_kernel\(SDPBackend.MATH\)"):
        kpops.linearize(randomised(Attention(math=False)), x, h0=h0)
    cell = randomised(Attention(math=True))
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


LOUD = {
    "checkpoint": (
        lambda a: torch.utils.checkpoint.checkpoint(torch.sin, a, use_reentrant=False),
        "leave torch.utils.checkpoint out",
    ),
    "old style": (OldStyle.apply, "give the autograd.Function a setup_context"),
    "numpy": (lambda a: torch.from_numpy(np.sin(a.detach().numpy())), "leave NumPy"),
    "branch": (lambda a: a if a.sum() > 1e9 else a.sin(), None),
    "in place": (lambda a: a.exp_().sin_(), "change nothing in place"),
}


@pytest.mark.parametrize("kind", LOUD)
def test_what_cannot_be_differentiated_is_refused_at_once(kind):
    part, remedy = LOUD[kind]
    cell = randomised(Cell(part))
    if remedy is None:  # torch can
        x, h0 = normal(3, 4, 2), normal(3, HIDDEN)
        assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)
        return
    with pytest.raises(
        ValueError, match=rf"derivatives of a step of Cell cannot be taken.*{remedy}"
    ):
        kpops.linearize(cell, inputs())
    with pytest.raises(ValueError, match=rf"derivatives of the readout cannot be taken.*{remedy}"):
        kpops.linearize(
            gru(), inputs(), readout=nn.Sequential(nn.Linear(4, 2).double(), Apply(part))
        )


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


# Threads.


def test_copies_and_fixed_points_while_another_thread_computes():
    lin = kpops.linearize(
        randomised(Cell()),
        normal(2, 4, 2),
        readout=nn.Linear(HIDDEN, 2).double(),
        engine="autodiff",
    )
    q, y = normal(2, 4, HIDDEN), normal(2, 4, 2)
    expected = lin.flow @ q, lin.output_ntk @ y
    ended, wrong = threading.Event(), []

    def compute():
        while not ended.is_set():
            got = lin.flow @ q, lin.output_ntk @ y
            wrong.extend(
                relative(g, e) for g, e in zip(got, expected, strict=True) if relative(g, e) > 1e-13
            )

    calls = {
        "deepcopy": lambda: copy.deepcopy(lin).flow @ q,
        "engine": lambda: copy.deepcopy(lin.engine),
        "operator": lambda: copy.deepcopy(lin.output_ntk) @ y,
        "fixed points": lambda: kpops.fixed_points(lin, 2, rng=0, max_iterations=2),
        "exponents": lambda: kpops.lyapunov_spectrum(lin, 1, rng=0),
        "repr": lambda: repr(lin),
    }
    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kpops.ConvergenceWarning)
            results = {name: [call() for _ in range(25)] for name, call in calls.items()}
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(relative(r, expected[0]) < 1e-13 for r in results["deepcopy"])
    assert all(relative(r, expected[1]) < 1e-13 for r in results["operator"])
    assert len(set(results["repr"])) == 1


def test_pickles_while_another_thread_computes():
    lin = kpops.linearize(gru(), inputs(), readout=nn.Linear(HIDDEN, 2).double(), engine="autodiff")
    q = normal(3, 5, HIDDEN)
    expected = lin.flow @ q
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            lin.output_ntk @ torch.ones(3, 5, 2).double()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        pickles = [pickle.dumps((lin, lin.flow, lin.engine)) for _ in range(100)]
    finally:
        ended.set()
        thread.join()
    for data in pickles[::20]:
        assert relative(pickle.loads(data)[1] @ q, expected) < 1e-14
