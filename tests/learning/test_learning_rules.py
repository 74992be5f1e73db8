"""Each learning rule against a real small step of it: the error falls linearly with eta."""

import dataclasses

import numpy as np
import pytest
import torch
from dense import relative
from real_steps import (
    OUTPUTS,
    STEPS,
    TRIALS,
    UNITS,
    assert_falls_linearly,
    forward_with,
    gradient_of,
    loss_of,
    moved_along,
    problem,
)
from torch import nn

import kpops
from kpops.labels import Space
from kpops.learning.rules import gauss_newton
from kpops.learning.rules.registry import RULES
from kpops.operators import DenseOperator
from kpops.testing import check_operator

KINDS = pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])


def linearised(network, inputs, targets, **options):
    lin = kpops.linearize(network, inputs, **options)
    return lin, kpops.gradient_flow(lin, targets)


@KINDS
def test_gradient_descent(kind):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    direction = gradient_of(loss_of(network, inputs, targets), network)
    R = kpops.learning_rule(lin, "gradient descent")
    assert_falls_linearly(moved_along(network, inputs, direction), -(R @ flow.error.values))


@KINDS
@pytest.mark.parametrize("steps", [1, 3])
def test_truncated_bptt(kind, steps):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    part, direction = network.recurrent, 0
    states = part(inputs)[0].detach()
    for t in range(STEPS):  # every error on its own, from the detached state some steps before
        first = max(0, t + 1 - steps)
        h = states[:, first - 1][None].contiguous() if first else None
        last = part(inputs[:, first : t + 1], h)[0][:, -1]
        share = (network.readout(last) - targets[:, t]).square().sum() / targets.numel()
        direction = direction + gradient_of(share, network)
    R = kpops.learning_rule(lin, "truncated bptt", steps=steps)
    assert_falls_linearly(moved_along(network, inputs, direction), -(R @ flow.error.values))


@KINDS
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_detached_bptt(kind, steps):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    outputs, h = [], None
    for piece in inputs.split(steps, 1):
        h = None if h is None else h.detach()
        states, h = network.recurrent(piece, h)
        outputs.append(network.readout(states))
    loss = nn.functional.mse_loss(torch.cat(outputs, 1), targets)
    R = kpops.learning_rule(lin, "detached bptt", steps=steps)
    move = moved_along(network, inputs, gradient_of(loss, network))
    assert_falls_linearly(move, -(R @ flow.error.values))


def test_truncation_is_none_where_the_history_is_whole():
    network, inputs, _ = problem()
    lin = kpops.linearize(network, inputs)
    for rule in ("truncated bptt", "detached bptt"):
        R = kpops.learning_rule(lin, rule, steps=STEPS)
        assert relative(R.to_dense(), lin.flow.to_dense()) < 1e-14
        shorter = kpops.learning_rule(lin, rule, steps=STEPS - 1)
        assert relative(shorter.to_dense(), lin.flow.to_dense()) > 1e-4


@KINDS
def test_output_feedback(kind):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    weights = torch.randn(UNITS, OUTPUTS, dtype=torch.float64)
    outputs = forward_with(network, inputs, network.recurrent.weight_hh_l0, weights.T)
    loss = nn.functional.mse_loss(outputs, targets)
    R = kpops.learning_rule(lin, "output feedback", weights=weights)
    move = moved_along(network, inputs, gradient_of(loss, network))
    assert_falls_linearly(move, -(R @ flow.output_error.values))


@KINDS
def test_feedback_alignment_replaces_every_transposed_weight(kind):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    R = kpops.learning_rule(lin, "feedback alignment", rng=0)
    backward, B = R.factors[-2].parent, R.factors[-1]
    weights = backward.engine.feedback[0]["recurrent_weight"]
    assert weights.shape == network.recurrent.weight_hh_l0.shape
    outputs = forward_with(network, inputs, weights, B.weights.T)
    loss = nn.functional.mse_loss(outputs, targets)
    move = moved_along(network, inputs, gradient_of(loss, network))
    assert_falls_linearly(move, -(R @ flow.output_error.values))


def test_rflo_is_murrays_rule_with_eligibility_traces():
    torch.manual_seed(0)
    alpha = 0.3
    cell = kpops.models.LeakyCell(2, UNITS, alpha=alpha).double()
    with torch.no_grad():
        cell.weight_hh.normal_(0, 0.8)
    readout = nn.Linear(UNITS, OUTPUTS).double()
    inputs = torch.randn(TRIALS, STEPS, 2, dtype=torch.float64)
    targets = torch.randn(TRIALS, STEPS, OUTPUTS, dtype=torch.float64)
    lin = kpops.linearize(cell, inputs, readout=readout)
    flow = kpops.gradient_flow(lin, targets)
    B = torch.randn(UNITS, OUTPUTS, dtype=torch.float64)

    def run():
        h, states = inputs.new_zeros(TRIALS, UNITS), []
        for x in inputs.unbind(1):
            h = cell(x, h)
            states.append(h)
        return torch.stack(states, 1).detach()

    states = run()
    error = 2 * (readout(states) - targets).detach() / targets.numel()
    previous = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    steps = {name: torch.zeros_like(p) for name, p in cell.named_parameters()}
    traces = {name: 0 for name in steps}
    for t in range(STEPS):
        u = previous[:, t] @ cell.weight_hh.T + inputs[:, t] @ cell.weight_ih.T + cell.bias
        slope = alpha * (1 - torch.tanh(u).square()).detach()
        features = {"weight_hh": previous[:, t], "weight_ih": inputs[:, t], "bias": None}
        signal = error[:, t] @ B.T
        for name, f in features.items():
            new = slope if f is None else slope[:, :, None] * f[:, None]
            traces[name] = (1 - alpha) * traces[name] + new
            shape = (-1, UNITS) if f is None else (-1, UNITS, 1)
            steps[name] += (signal.view(shape) * traces[name]).sum(0)

    before = {name: p.detach().clone() for name, p in cell.named_parameters()}

    def move(eta):
        with torch.no_grad():
            for name, p in cell.named_parameters():
                p.copy_(before[name] - eta * steps[name])
            return (run() - states) / eta

    R = kpops.learning_rule(lin, "rflo", leak=1 - alpha, weights=B)
    assert_falls_linearly(move, -(R @ flow.output_error.values))
    # Without any leak no error goes back.
    local = kpops.learning_rule(lin, "rflo", leak=0, weights=B)
    one = kpops.learning_rule(lin, "output feedback", steps=1, weights=B)
    assert relative(local.to_dense(), one.to_dense()) < 1e-14


@pytest.mark.parametrize("error", ["state", "output"])
def test_random_update(error):
    network, inputs, targets = problem()
    lin, flow = linearised(network, inputs, targets)
    R = kpops.learning_rule(lin, "random update", error=error, rng=0)
    B = next(f for f in R.factors if isinstance(f, DenseOperator)).matrix
    assert float(B.var()) == pytest.approx(1 / B.shape[1], rel=0.1)
    given = flow.output_error if error == "output" else flow.adjoint
    direction = B @ torch.from_numpy(given.values).flatten()
    own = flow.output_error if error == "output" else flow.error
    assert_falls_linearly(moved_along(network, inputs, direction), -(R @ own.values))


@KINDS
def test_functional_gradient_pushes_every_step(kind):
    network, inputs, targets = problem(kind)
    lin, flow = linearised(network, inputs, targets)
    adjoint = torch.from_numpy(flow.adjoint.values)

    def run(eta):
        h, states = torch.zeros(TRIALS, UNITS, dtype=torch.float64), []
        for t in range(STEPS):
            h = lin.recurrence(inputs[:, t], h) - eta * adjoint[:, t]
            states.append(h)
        return torch.stack(states, 1)

    R = kpops.learning_rule(lin, "functional gradient")
    assert_falls_linearly(lambda eta: (run(eta) - run(0)) / eta, -(R @ flow.error.values))


def test_kronecker_factors_are_those_of_shampoo():
    network, inputs, targets = problem()
    lin, flow = linearised(network, inputs, targets)
    torch.manual_seed(1)
    factors, directions = {}, []
    loss = loss_of(network, inputs, targets)
    gradients = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    for (name, p), G in zip(network.recurrent.named_parameters(), gradients, strict=True):
        grams = []
        for n in p.shape:
            A = torch.randn(n, n + 2, dtype=torch.float64)
            values, vectors = torch.linalg.eigh(A @ A.T)
            root = vectors * values**-0.25 @ vectors.T
            grams.append((root + root.T) / 2)
        factors[name] = tuple(grams)
        directions.append(grams[0] @ G if p.ndim == 1 else grams[0] @ G @ grams[1])
    direction = torch.cat([d.flatten() for d in directions])
    R = kpops.learning_rule(lin, "preconditioned", preconditioner=factors)
    assert R.positive
    check_operator(R)
    assert relative((R.root @ R.root.H).to_dense(), R.to_dense()) < 1e-12
    assert_falls_linearly(moved_along(network, inputs, direction), -(R @ flow.error.values))


def test_a_preconditioner_is_a_diagonal_a_dict_or_an_operator():
    network, inputs, _ = problem()
    lin = kpops.linearize(network, inputs)
    d = torch.rand(lin.parameter_space.size, dtype=torch.float64)
    parts = d.split([p.numel() for p in lin.parameters.values()])
    every = zip(lin.parameters.items(), parts, strict=True)
    by_name = {name: part.view_as(p) for (name, p), part in every}
    space = lin.parameter_space
    M = DenseOperator(torch.diag(d), space, space, symbol="M", positive=True)
    D = lin.sensitivity.to_dense()
    for given in (d, d.numpy(), by_name, M):
        R = kpops.learning_rule(lin, "preconditioned", preconditioner=given)
        assert R.positive
        assert relative(R.to_dense(), D * d.numpy() @ D.T) < 1e-13
    skew = {n: tuple(torch.randn(s, s).double() for s in p.shape) for n, p in by_name.items()}
    R = kpops.learning_rule(lin, "preconditioned", preconditioner=skew)
    assert not R.self_adjoint
    check_operator(R)


def jacobians(network, inputs):
    """Of the states by the recurrent parameters, and of the outputs by all."""
    parameters = list(network.parameters())
    n = len(list(network.recurrent.parameters()))

    def rows(values):
        every = [
            torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True)
            for v in values.flatten()
        ]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in every])

    size = sum(p.numel() for p in parameters[:n])
    return rows(network.recurrent(inputs)[0])[:, :size], rows(network(inputs))


@pytest.mark.parametrize("solver", ["exact", "conjugate gradients"])
@pytest.mark.parametrize("error", ["state", "output"])
def test_gauss_newton(error, solver, monkeypatch):
    network, inputs, targets = problem()
    if solver != "exact":
        monkeypatch.setattr(gauss_newton, "_SIDE", 0)
    lin, flow = linearised(network, inputs, targets)
    of_states, of_outputs = jacobians(network, inputs)
    D, size = (of_states if error == "state" else of_outputs), of_states.shape[1]
    own = flow.error if error == "state" else flow.output_error
    damping = 0.3
    system = D.T @ D + damping * torch.eye(D.shape[1], dtype=torch.float64)
    direction = torch.linalg.solve(system, D.T @ torch.from_numpy(own.values).flatten())
    R = kpops.learning_rule(lin, "gauss-newton", damping=damping, error=error)
    assert R.positive == (error == "state")
    predicted = -(R @ own.values)
    expected = -of_states @ direction[:size]
    assert relative(predicted.ravel(), expected) < (1e-12 if solver == "exact" else 1e-9)
    assert_falls_linearly(moved_along(network, inputs, direction[:size]), predicted)


def test_gauss_newton_with_small_damping_is_the_projection_on_what_can_be_reached():
    network, inputs, targets = problem()
    lin, flow = linearised(network, inputs, targets)
    D = jacobians(network, inputs)[0]
    error = torch.from_numpy(flow.error.values).flatten()
    values = torch.linalg.svdvals(D)
    assert values[-1] < 1e-3 * values[0]  # which a Gram matrix squares
    basis = torch.linalg.svd(D, full_matrices=False)[0][:, : int((values > 1e-12).sum())]
    R = kpops.learning_rule(lin, "gauss-newton", damping=1e-20)
    assert relative(R @ error, basis @ (basis.T @ error)) < 1e-8
    with pytest.raises(ValueError, match="damping=1e-40 is hidden by rounding"):
        kpops.learning_rule(lin, "gauss-newton", damping=1e-40)


def test_gauss_newton_warns_of_what_conjugate_gradients_miss(monkeypatch):
    network, inputs, targets = problem()
    lin, flow = linearised(network, inputs, targets)
    monkeypatch.setattr(gauss_newton, "_SIDE", 0)
    monkeypatch.setattr(gauss_newton, "_ITERATIONS", 3)
    R = kpops.learning_rule(lin, "gauss-newton", damping=1e-6)
    with pytest.warns(kpops.ConvergenceWarning, match="relative residual of"):
        R @ flow.error.values


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t, h):
        return torch.tanh(self.linear(h)) - h


def test_the_measure_and_the_unit_of_forcing_change_no_real_step():
    network, inputs, _ = problem()
    rules = {
        "gradient descent": {},
        "truncated bptt": {"steps": 2},
        "gauss-newton": {"damping": 0.1},
        "momentum": {"steps": 2},
        "output feedback": {"rng": 0},
    }
    total, mean = (kpops.linearize(network, inputs, measure=m) for m in ("sum", "mean"))
    for rule, options in rules.items():
        a, b = (kpops.learning_rule(lin, rule, **options).to_dense() for lin in (total, mean))
        assert relative(b, a) < 1e-12, rule

    torch.manual_seed(0)
    readout, field = nn.Linear(2, 2).double(), Field().double()
    found = []
    for forcing in ("state", "rate"):
        ode = kpops.models.NeuralODE(field, 0.25, "rk4", forcing=forcing)
        h0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        times = ode.inputs(0.25 * torch.arange(6.0), n_trials=3).double()
        found.append(kpops.linearize(ode, times, h0=h0, readout=readout))
    rules |= {"rflo": {"leak": 0.3, "rng": 0}, "random update": {"rng": 0}}
    for rule, options in rules.items():
        a, b = (kpops.learning_rule(lin, rule, **options).to_dense() for lin in found)
        assert relative(b, a) < 1e-12, rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rules_keep_the_contract_with_a_mask(dtype, device):
    network, inputs, _ = problem(nn.GRU)
    mask = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])
    lin = kpops.linearize(network.to(dtype), inputs.to(dtype), mask=mask, device=device)
    diagonal = torch.rand(lin.parameter_space.size)
    for rule, options in {
        "truncated bptt": {"steps": 3},
        "detached bptt": {"steps": 2},
        "functional gradient": {},
        "output feedback": {"rng": 0, "steps": 2},
        "feedback alignment": {"rng": 0},
        "rflo": {"leak": 0.6, "rng": 0},
        "random update": {"rng": 0, "error": "output"},
        "preconditioned": {"preconditioner": diagonal},
        "gauss-newton": {"damping": 0.1, "error": "output"},
        "momentum": {"momentum": 0.5, "steps": 4, "nesterov": True},
    }.items():
        R = kpops.learning_rule(lin, rule, **options)
        check_operator(R)
        q = torch.randn(1, *R.domain.shape, dtype=dtype, device=device)
        padded = ~mask.to(device)
        image = R.apply(q)
        assert not image[..., padded, :].any(), rule
        q[..., padded, :] = 0
        assert torch.equal(R.apply(q), image) or relative(R.apply(q), image) < 1e-6, rule


def test_random_weights_reach_the_units_that_the_readout_sees():
    torch.manual_seed(0)
    network = kpops.Network(nn.LSTM(2, 4, num_layers=2), nn.Linear(4, 2))
    lin = kpops.linearize(network, torch.randn(3, 5, 2))
    R = kpops.learning_rule(lin, "output feedback", rng=0)
    variable, layer = (lin.states[name].values for name in ("variable", "layer"))
    seen = (variable == "h") & (layer == layer.max())
    weights = R.factors[-1].weights
    assert np.array_equal((weights != 0).all(1).numpy(), seen)
    check_operator(kpops.learning_rule(lin, "feedback alignment", rng=0))
    again = kpops.learning_rule(lin, "output feedback", rng=0)
    assert torch.equal(again.factors[-1].weights, weights)


def test_rules_about_time_refuse_states_without():
    network, inputs, _ = problem()
    lin = kpops.linearize(network, inputs)
    without = Space(("trial", "site", "unit"), lin.space.shape)
    lin = dataclasses.replace(lin, space=without)
    for rule, options in (("truncated bptt", {"steps": 2}), ("rflo", {"leak": 0.5})):
        with pytest.raises(ValueError, match=r"dimensions \('trial', 'site', 'unit'\)"):
            kpops.learning_rule(lin, rule, **options)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("truncated bptt", {"steps": 1}),
        ("detached bptt", {"steps": 1}),
        ("output feedback", {"steps": 1}),
        ("feedback alignment", {}),
        ("rflo", {"leak": 0.5}),
    ],
)
def test_rules_about_single_steps_refuse_fixed_points(rule, options):
    cell = nn.RNN(1, UNITS, bias=False).double()  # with a fixed point at 0
    points = torch.zeros(1, UNITS, dtype=torch.float64)
    readout = nn.Linear(UNITS, OUTPUTS).double()
    with pytest.raises(ValueError, match="at fixed points P is the limit of all steps"):
        kpops.learning_rule(kpops.linearize_at(cell, points, readout=readout), rule, **options)
    lin = kpops.linearize_at(cell, points, 1, readout=readout)
    assert kpops.learning_rule(lin, rule, **options).codomain == lin.space


@pytest.mark.parametrize(
    ("rule", "options", "error", "told"),
    [
        ("sgd", {}, ValueError, "rule='sgd': choose one of 'gradient descent', "),
        ("truncated bptt", {}, TypeError, r"needs \['steps'\]: its options are \['steps'\]"),
        ("gradient descent", {"k": 1}, TypeError, r"has no option \['k'\]: it has none"),
        ("truncated bptt", {"steps": 0}, ValueError, "steps=0"),
        ("rflo", {"leak": 1.5}, ValueError, "leak=1.5"),
        ("gauss-newton", {"damping": 0}, ValueError, "damping=0: choose a positive"),
        ("gauss-newton", {"damping": 1, "error": "h"}, ValueError, "error='h': choose 'state'"),
        ("output feedback", {"weights": [[1.0]]}, ValueError, r"\(1, 1\), expected \(4, 2\)"),
        ("momentum", {"momentum": 2}, ValueError, "momentum=2"),
        ("preconditioned", {"preconditioner": [1.0]}, ValueError, r"shape \(1,\), expected"),
        ("preconditioned", {"preconditioner": 3}, TypeError, "the number 3: pass an array"),
        ("preconditioned", {"preconditioner": {"W": 1}}, ValueError, r"for \['W'\]: give one"),
    ],
)
def test_wrong_use_is_refused(rule, options, error, told):
    network, inputs, _ = problem()
    with pytest.raises(error, match=told):
        kpops.learning_rule(kpops.linearize(network, inputs), rule, **options)


def test_feedback_alignment_needs_known_weights_and_errors_of_outputs_a_readout():
    network, inputs, _ = problem()
    with pytest.raises(ValueError, match="needs a readout"):
        kpops.learning_rule(kpops.linearize(network.recurrent, inputs), "rflo", leak=0.1)

    class Cell(nn.Module):
        hidden_size = 2

        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(2, 2).double()

        def forward(self, x, h):
            return torch.tanh(self.lin(h) + x)

    lin = kpops.linearize(Cell(), inputs, readout=nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="feedback alignment of Cell"):
        kpops.learning_rule(lin, "feedback alignment")


def test_the_docstring_lists_every_rule():
    for rule in RULES:
        assert f"``{rule}``" in kpops.learning_rule.__doc__
