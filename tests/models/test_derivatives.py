"""The derivative is that of training, in every engine; what is not its derivative is refused."""

import copy

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
from user_cells import (
    HIDDEN,
    NOT_ITS_DERIVATIVE,
    UNTRUE,
    Apply,
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
    with pytest.raises(ValueError, match="step of Declared to its state is not linear, so it has"):
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
    from kpops.derivatives import Rows, refuse_unlike_training

    recurrence = kpops.models.as_recurrence(model)
    rows, h = x.flatten(0, 1), h0.repeat_interleave(x.shape[1], 0)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    refuse_unlike_training("it", recurrence, recurrence.renewed(), Rows(parameters, rows, h))


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
        "leave out torch.utils.checkpoint",
    ),
    "old style": (OldStyle.apply, "give the autograd.Function a setup_context"),
    "numpy": (lambda a: torch.from_numpy(np.sin(a.detach().numpy())), "leave out NumPy"),
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


def test_a_gradient_that_vanishes_is_rounding_and_no_disagreement():
    class Normed(nn.Module):
        """The norm of a single unit is constant, so that no weight before it has an effect."""

        def __init__(self):
            super().__init__()
            self.drive, self.norm = nn.Linear(1, 1), nn.LayerNorm(1)

        def forward(self, x, h):
            return torch.tanh(0.5 * h + self.norm(self.drive(x) + h))

    for seed in range(20):
        torch.manual_seed(seed)
        model = Normed().double()
        lin = kpops.linearize(model, torch.randn(2, 3, 1).double(), h0=torch.randn(2, 1).double())
        assert abs(lin.J.select(parameter="drive.weight").to_dense()).max() < 1e-14
