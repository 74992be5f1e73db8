"""The Gauss-Newton operator and the Hessian against dense autograd on the module's own forward."""

from functools import partial

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES, HIDDEN, INPUTS, STEPS, TRIALS, serving, slow_but
from dense import relative
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import kpops
from kpops.testing import check_operator

OUTPUTS = 3
MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [2], [4]])
EVERY = torch.ones_like(MASK)
WEIGHTS = torch.rand(TRIALS, STEPS, generator=torch.Generator().manual_seed(2)).double()


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NUMBERS = normal(TRIALS, STEPS, OUTPUTS)
LABELS = torch.randint(OUTPUTS, MASK.shape, generator=torch.Generator().manual_seed(4))
SOME_LABELS = LABELS.masked_fill(WEIGHTS < 0.3, -100)


def log_cosh(y, target, weights):
    return (weights[..., None] * (y - target).cosh().log()).sum() / 2


def cross_entropy(y, target):
    return nn.functional.cross_entropy(y.movedim(-1, 1), target, reduction="none")


# Name: targets, the user's loss, the loss of each step by torch alone, the labels that count.
LOSSES = {
    "mse": (NUMBERS, "mse", lambda y: (y - NUMBERS).square().mean(-1), EVERY),
    "labels": (SOME_LABELS, "cross_entropy", partial(cross_entropy, target=LABELS), WEIGHTS >= 0.3),
    "probabilities": (
        NUMBERS.softmax(-1),
        "cross_entropy",
        partial(cross_entropy, target=NUMBERS.softmax(-1).movedim(-1, 1)),
        EVERY,
    ),
    "callable": (NUMBERS, log_cosh, lambda y: (y - NUMBERS).cosh().log().sum(-1) / 2, None),
}


def new_readout(dtype=torch.float64):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS)).to(dtype)


def linearized(case, readout, mask=None, dtype=torch.float64, **options):
    model = case.model(dtype)
    inputs, h0 = case.data(dtype)
    x, m = (case.as_module_takes(model, a) for a in (inputs, mask))
    return model, kpops.linearize(model, x, h0=h0, readout=readout, mask=m, **options)


def unrolled(case, model, readout=None):
    """Outputs, or states, by the module's own step."""
    inputs, h = case.data()
    states = []
    for t in range(STEPS):
        h = case.own_step(model, inputs[:, t], h)
        states.append(h)
    states = torch.stack(states, 1)
    if readout is None:
        return states
    return readout(kpops.models.as_recurrence(model).output(states))


def rows(ys, parameters):
    """Dense derivatives of the entries of a tensor by the parameters."""
    return torch.stack(
        [
            torch.cat(
                [
                    g.reshape(-1)
                    for g in torch.autograd.grad(
                        y, parameters, retain_graph=True, materialize_grads=True
                    )
                ]
            )
            for y in ys.reshape(-1)
        ]
    )


def references(outputs, loss, parameters):
    """Dense Gauss-Newton matrix and Hessian, by autograd."""
    D = rows(outputs, parameters)
    H = torch.autograd.functional.hessian(loss, outputs.detach()).reshape(len(D), -1)
    gradient = torch.autograd.grad(loss(outputs), parameters, create_graph=True)
    return D.T @ H @ D, rows(torch.cat([g.reshape(-1) for g in gradient]), parameters)


def mean_of(of_steps, counts, mask, weights):
    weights = mask * (1 if weights is None else weights)
    total = 1 if counts is None else (weights * counts).sum()
    return lambda y: (weights * (1 if counts is None else counts) * of_steps(y)).sum() / total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "lstm", "shared_norm_cell"])
def test_both_equal_dense_autograd(name, mask, weights, loss):
    case, readout = BY_NAME[name], new_readout()
    targets, given, of_steps, counts = LOSSES[loss]
    model, lin = linearized(case, readout, mask)
    arguments = targets, given
    options = {"loss_mask": weights}
    of_outputs = mean_of(of_steps, counts, EVERY if mask is None else mask, weights)
    parameters = [*model.parameters(), *readout.parameters()]
    gauss_newton, hessian = references(unrolled(case, model, readout), of_outputs, parameters)
    assert relative(lin.ggn(*arguments, **options).to_dense(), gauss_newton) < 1e-10
    assert relative(lin.hessian(*arguments, **options).to_dense(), hessian) < 1e-10
    assert relative(gauss_newton, hessian) > 1e-3  # so that one is not tested as the other


@pytest.mark.parametrize("case", slow_but(CASES[1::3], CASES), ids=lambda case: case.name)
def test_the_hessian_of_every_model_without_a_readout(case):
    model, lin = linearized(case, None, MASK)
    targets = normal(*lin.space.shape)
    given = case.as_module_takes(model, targets)

    def loss(y):
        return (MASK[..., None] * (y - targets).square()).sum() / (MASK.sum() * y.shape[-1])

    gauss_newton, hessian = references(unrolled(case, model), loss, list(model.parameters()))
    assert relative(lin.ggn(given).to_dense(), gauss_newton) < 1e-10
    assert relative(lin.hessian(given).to_dense(), hessian) < 1e-10


@pytest.mark.parametrize("engine", serving(BY_NAME["gru"].model()))
def test_every_engine_gives_the_same(engine):
    readout = new_readout()
    lins = [linearized(BY_NAME["gru"], readout, MASK, engine=e)[1] for e in (engine, "autodiff")]
    a, b = (lin.hessian(NUMBERS).to_dense() for lin in lins)
    assert relative(a, b) < 1e-12


def test_models_whose_step_is_more_than_a_cell():
    learned = kpops.models.LearnedStart(nn.GRU(INPUTS, HIDDEN, batch_first=True)).double()
    x, targets = normal(TRIALS, STEPS, INPUTS), normal(TRIALS, STEPS, HIDDEN, seed=6)
    parameters = dict(learned.named_parameters())

    def loss(flat):
        parts = flat.split([p.numel() for p in parameters.values()])
        moved = {n: q.view_as(p) for (n, p), q in zip(parameters.items(), parts, strict=True)}
        return nn.functional.mse_loss(functional_call(learned, moved, (x,))[0], targets)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    expected = torch.autograd.functional.hessian(loss, flat)
    assert relative(kpops.linearize(learned, x).hessian(targets).to_dense(), expected) < 1e-10


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, t, z):
        return torch.tanh(self.linear(z)) - z


def test_a_rate_forced_ode_has_the_hessian_of_its_solver():
    field = Field().double()
    ode = [kpops.models.NeuralODE(field, dt=0.2, forcing=f) for f in ("state", "rate")]
    x, h0 = ode[0].inputs(0.2 * torch.arange(STEPS + 1), n_trials=TRIALS), normal(TRIALS, HIDDEN)
    x, targets = x.double(), normal(TRIALS, STEPS, HIDDEN, seed=6)
    a, b = (kpops.linearize(m, x, h0=h0).hessian(targets).to_dense() for m in ode)
    assert relative(a, b) < 1e-12


# Laws


@pytest.mark.parametrize("measure", ["sum", "mean"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_trace_is_that_of_the_output_ntk_up_to_the_normalisation(mask, measure):
    _, lin = linearized(BY_NAME["gru"], new_readout(), mask, measure=measure)
    n_steps = TRIALS * STEPS if mask is None else int(mask.sum())
    ntk = float(kpops.trace(lin.output_ntk).estimate) * (n_steps if measure == "mean" else 1)
    trace = float(kpops.trace(lin.ggn(NUMBERS)).estimate)
    assert trace == pytest.approx(2 / (n_steps * OUTPUTS) * ntk, rel=1e-12)

    def half(y, target, weights):
        return (weights[..., None] * (y - target).square()).sum() / 2

    trace = float(kpops.trace(lin.ggn(NUMBERS, half)).estimate)
    assert trace == pytest.approx(ntk, rel=1e-12)


def test_where_the_errors_vanish_both_are_one():
    _, lin = linearized(BY_NAME["lstm"], new_readout())
    both = lin.ggn(lin.outputs), lin.hessian(lin.outputs)
    assert relative(*(op.to_dense() for op in both)) < 1e-13


class Softmax(nn.Module):
    """One linear map of the inputs: its states are the logits."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.input_size, self.hidden_size = n_features, n_classes
        self.linear = nn.Linear(n_features, n_classes, bias=False)

    def forward(self, x, h):
        return self.linear(x) + 0 * h


@pytest.mark.parametrize(("n_samples", "rank"), [(4, 4), (20, 5)])
def test_the_rank_of_a_linear_softmax_is_classes_less_one_times_that_of_the_features(
    n_samples, rank
):
    n_classes = 4
    model = Softmax(8, n_classes).double()
    x = normal(n_samples, 5) @ normal(5, 8, seed=7)  # features of rank 5
    labels = torch.arange(n_samples)[:, None] % n_classes
    lin = kpops.linearize(model, x[:, None])
    gauss_newton = lin.ggn(labels, "cross_entropy")
    values = kpops.eigsh(gauss_newton, 32, method="exact").eigenvalue.values
    assert (values > 1e-12 * values[0]).sum() == (n_classes - 1) * rank
    p = lin.states.values[:, 0]
    p = np.exp(p) / np.exp(p).sum(1, keepdims=True)
    each = [np.kron(np.diag(q) - np.outer(q, q), np.outer(f, f)) for q, f in zip(p, x, strict=True)]
    assert relative(gauss_newton.to_dense(), np.mean(each, 0)) < 1e-12


# As operators


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_keep_the_contract(dtype, loss):
    _, lin = linearized(BY_NAME["gru"], new_readout(dtype), MASK, dtype)
    targets, given, *_ = LOSSES[loss]
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    for op in (lin.ggn(targets, given), lin.hessian(targets, given)):
        check_operator(op)
        assert op.self_adjoint and op.torch_dtype == dtype
        assert kpops.eigsh(op, 2).eigenvalue.dtype == op.dtype
    assert lin.ggn(targets, given).positive == isinstance(given, str)


def test_labels_name_the_parameters_of_model_and_readout():
    _, lin = linearized(BY_NAME["gru"], new_readout())
    op = lin.hessian(NUMBERS)
    mode = kpops.eigsh(op, 1).eigenfunction[0]
    names = list(dict.fromkeys(mode.parameter_name.values))
    assert names == [*lin.parameters, *(f"readout.{n}" for n in lin.readout_parameters)]
    inside = mode.parameter_name.values == "readout.0.weight"
    part = op.select(parameter=np.flatnonzero(inside))
    assert relative(part.to_dense(), op.to_dense()[np.ix_(inside, inside)]) < 1e-13


def test_a_frozen_readout_leaves_the_parameters_of_the_gradient():
    readout = new_readout().requires_grad_(False)
    _, lin = linearized(BY_NAME["gru"], readout)
    assert lin.ggn(NUMBERS).domain == lin.hessian(NUMBERS).domain == lin.parameter_space
    step = kpops.gradient_flow(lin, NUMBERS).parameter_step
    assert (lin.hessian(NUMBERS) @ step).dims == ("parameter",)


def test_spectra_traces_and_densities_take_them():
    model = nn.GRU(INPUTS, 12, batch_first=True).double()
    readout = nn.Linear(12, OUTPUTS).double()
    lin = kpops.linearize(model, normal(TRIALS, STEPS, INPUTS), readout=readout)
    for op in (lin.ggn(LABELS, "cross_entropy"), lin.hessian(LABELS, "cross_entropy")):
        expected = np.linalg.eigvalsh(op.to_dense())[::-1]
        top = kpops.eigsh(op, 3, which="LA", method="block-krylov", tol=1e-8, rng=0)
        np.testing.assert_allclose(top.eigenvalue, expected[:3], rtol=1e-6)
        trace = kpops.trace(op, method="xtrace", num_matvecs=600, rng=0)
        assert float(abs(trace.estimate - expected.sum())) < 4 * float(trace.stderr) + 1e-9
        density = kpops.spectral_density(op, outliers=4, scale="linear", rng=0)
        largest = np.sort(np.abs(expected))[::-1][:4]
        np.testing.assert_allclose(np.abs(density.outlier), largest, rtol=1e-5)
        bulk = float((density.density * density.value).integrate("value"))
        rest = expected.sum() - float(density.outlier.sum())
        assert bulk == pytest.approx(rest, abs=0.01 * largest[0])


# Refusals


class Silent(torch.autograd.Function):
    """A square whose backward pass has no derivative, and does not say so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach())

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * gradient


class Step(nn.Module):
    def __init__(self, function, **attributes):
        super().__init__()
        self.hidden_size, self.input_size, self.function = HIDDEN, INPUTS, function
        self.linear = nn.Linear(INPUTS, HIDDEN)
        vars(self).update(attributes)

    def forward(self, x, h):
        return self.function(0.3 * h + self.linear(x))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (nn.functional.l1_loss, "no second derivative at these outputs: it is zero although"),
        (lambda y, t: Silent.apply(y - t).mean(), "second derivative of loss is not that of its"),
        (lambda y, t: ((y - t).detach().square() * (y - t)).sum(), "is not that of its values"),
        (lambda y, t: nn.functional.hardsigmoid(y - t).sum(), "loss has no second derivative"),
        (lambda y, t: (y - t).square(), r"loss returned the shape \(3, 5, 3\), expected a scalar"),
    ],
)
@pytest.mark.parametrize("what", ["ggn", "hessian"])
def test_losses_that_cannot_be_differentiated_twice_are_refused(what, loss, told):
    _, lin = linearized(BY_NAME["rnn_tanh"], new_readout())
    with pytest.raises(ValueError, match=told):
        getattr(lin, what)(NUMBERS, loss)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Step(nn.functional.hardsigmoid), "a step of Step has no second derivative .*: use ggn"),
        (Step(Silent.apply), "second derivative of a step of Step is not that of its values"),
        (
            parametrizations.weight_norm(nn.RNN(INPUTS, HIDDEN, batch_first=True), "weight_hh_l0"),
            "of a step of ParametrizedRNN is not that of its values: .* PyTorch's weight_norm may",
        ),
        (Step(torch.sign, surrogate_gradient=True), "a step of Step declares a surrogate gradient"),
    ],
)
def test_models_that_cannot_be_differentiated_twice_are_refused(model, told):
    lin = kpops.linearize(model.double(), normal(TRIALS, STEPS, INPUTS))
    targets = normal(*lin.space.shape)
    check_operator(lin.ggn(targets))
    with pytest.raises(ValueError, match=told):
        lin.hessian(targets)


def test_a_linear_loss_has_the_hessian_of_the_model_alone():
    model, lin = linearized(BY_NAME["gru"], None)
    c = normal(*lin.space.shape)
    assert not lin.ggn(c, lambda y, c: (y * c).sum()).to_dense().any()
    y = unrolled(BY_NAME["gru"], model)
    expected = references(y, lambda y: (y * c).sum(), list(model.parameters()))[1]
    found = lin.hessian(c, lambda y, c: (y * c).sum()).to_dense()
    assert relative(found, expected) < 1e-10


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ((NUMBERS[:, :4],), ValueError, r"targets has shape \(3, 4, 3\), expected \(3, 5, 3\)"),
        ((NUMBERS.float(),), TypeError, "targets is torch.float32, the outputs are torch.float64"),
        ((LABELS,), ValueError, "pass loss='cross_entropy' for labels"),
        ((LABELS + 2, "cross_entropy"), ValueError, "expected a class from 0 to 2"),
        ((NUMBERS, "mae"), ValueError, "loss='mae': pass 'mse', 'cross_entropy', or a callable"),
        (("mse", NUMBERS), TypeError, r"loss is a tensor of shape \(3, 5, 3\): pass 'mse'"),
    ],
)
def test_wrong_targets_are_refused(arguments, error, told):
    _, lin = linearized(BY_NAME["rnn_tanh"], new_readout())
    for act in (lin.ggn, lin.hessian):
        with pytest.raises(error, match=told):
            act(*arguments)
