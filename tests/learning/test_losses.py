"""Losses, their targets and their weights, against torch.nn.functional and the module's forward."""

import functools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from dense import relative
from torch import nn

import kpops

cross_entropy = nn.functional.cross_entropy


@pytest.fixture
def problem():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 6, batch_first=True), nn.Linear(6, 4)).double()
    inputs = torch.randn(5, 7, 3, dtype=torch.float64)
    return network, inputs


@pytest.fixture
def labels():
    return torch.randint(4, (5, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def numbers():
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def weights():
    drawn = torch.rand(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return drawn.masked_fill(drawn < 0.3, 0)


MASK = torch.arange(7) < torch.tensor([[7], [4], [1], [6], [7]])


def assert_follows(network, inputs, reference, flow):
    """Loss and gradient are those of autograd through the module's own forward."""
    loss = reference(network(inputs))
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    assert float(flow.loss) == pytest.approx(loss.item(), rel=1e-12)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    assert relative(-flow.parameter_step.values, flat) < 1e-10


# Cross entropy


def test_cross_entropy_of_labels(problem, labels):
    network, inputs = problem
    flow = kpops.gradient_flow(kpops.linearize(network, inputs), labels, "cross_entropy")
    assert_follows(network, inputs, lambda y: cross_entropy(y.movedim(-1, 1), labels), flow)


def test_cross_entropy_of_probabilities(problem, numbers):
    network, inputs = problem
    wanted = numbers.softmax(-1)
    flow = kpops.gradient_flow(kpops.linearize(network, inputs), wanted, "cross_entropy")
    assert_follows(
        network,
        inputs,
        lambda y: cross_entropy(y.movedim(-1, 1), wanted.movedim(-1, 1)),
        flow,
    )


def test_labels_and_their_one_hot_probabilities_are_the_same_target(problem, labels):
    network, inputs = problem
    lin = kpops.linearize(network, inputs)
    one_hot = nn.functional.one_hot(labels, 4).double()
    one, other = (kpops.gradient_flow(lin, y, "cross_entropy") for y in (labels, one_hot))
    xr.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_ignored_labels_and_padding_do_not_count(problem, labels):
    network, inputs = problem
    labels = labels.masked_fill(torch.rand(5, 7) < 0.3, -100)
    padded = labels.masked_fill(~MASK, 99)  # whatever stands there
    flow = kpops.gradient_flow(kpops.linearize(network, inputs, mask=MASK), padded, "cross_entropy")
    reference = labels.masked_fill(~MASK, -100)
    assert_follows(network, inputs, lambda y: cross_entropy(y.movedim(-1, 1), reference), flow)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_integers_of_any_kind(problem, labels, dtype):
    network, inputs = problem
    flow = kpops.gradient_flow(
        kpops.linearize(network, inputs), labels.to(dtype).numpy(), "cross_entropy"
    )
    assert_follows(network, inputs, lambda y: cross_entropy(y.movedim(-1, 1), labels), flow)


# Weights


def test_weights_are_those_of_a_mean_over_valid_steps(problem, labels, numbers, weights):
    network, inputs = problem
    lin = kpops.linearize(network, inputs, mask=MASK)
    counts = weights * MASK

    def of_labels(y):
        steps = cross_entropy(y.movedim(-1, 1), labels, reduction="none")
        return (counts * steps).sum() / counts.sum()

    def of_numbers(y):
        return (counts[..., None] * (y - numbers).square()).sum() / (4 * counts.sum())

    flow = kpops.gradient_flow(lin, labels, "cross_entropy", loss_mask=weights)
    assert_follows(network, inputs, of_labels, flow)
    flow = kpops.gradient_flow(lin, numbers, loss_mask=weights)
    assert_follows(network, inputs, of_numbers, flow)


def test_a_boolean_loss_mask_leaves_steps_out_and_states_alone(problem, numbers, weights):
    network, inputs = problem
    lin, counts = kpops.linearize(network, inputs), weights > 0
    targets = numbers.masked_fill(~counts[..., None], torch.nan)
    flow = kpops.gradient_flow(lin, targets, loss_mask=counts)
    assert_follows(network, inputs, lambda y: (y - numbers)[counts].square().mean(), flow)
    assert not flow.error.values[~counts.numpy()].any()
    same = kpops.gradient_flow(lin, targets, loss_mask=3.0 * counts)
    xr.testing.assert_allclose(same, flow, rtol=1e-12, atol=1e-15)


def test_labelled_targets_and_weights_are_understood_by_name(problem, labels, weights):
    network, inputs = problem
    lin = kpops.linearize(network, xr.DataArray(inputs, dims=("trial", "time", "input")))
    named = [xr.DataArray(a, dims=("trial", "time")) for a in (labels, weights)]
    expected = kpops.gradient_flow(lin, labels, "cross_entropy", loss_mask=weights)
    turned = [a.transpose("time", "trial") for a in named]
    flow = kpops.gradient_flow(lin, turned[0], "cross_entropy", loss_mask=turned[1])
    xr.testing.assert_identical(flow, expected)
    shifted = named[1].assign_coords(time=np.arange(7) + 9)
    lin = kpops.linearize(
        network, xr.DataArray(inputs, {"time": range(7)}, ("trial", "time", "input"))
    )
    with pytest.raises(ValueError, match=r"loss_mask and the inputs disagree .*'time'"):
        kpops.gradient_flow(lin, named[0], "cross_entropy", loss_mask=shifted)


# Callables


def test_a_callable_takes_targets_of_any_shape(problem, labels):
    network, inputs = problem
    choices = labels[:, 0]  # one for each trial, read at the last step

    def choice(y, target):
        return cross_entropy(y[:, -1], target)

    lin = kpops.linearize(network, inputs)
    for targets in (choices, xr.DataArray(choices, dims="trial")):
        flow = kpops.gradient_flow(lin, targets, choice)
        assert_follows(network, inputs, lambda y: choice(y, choices), flow)


def test_targets_that_only_look_like_those_of_steps_are_left_alone(problem):
    network, inputs = problem
    prototypes = torch.randn(5, 7, dtype=torch.float64)  # seven numbers for each trial

    def near(y, target):
        return (y[:, 0] @ y.new_ones(4, 7) - target).square().mean()

    flow = kpops.gradient_flow(kpops.linearize(network, inputs, mask=MASK), prototypes, near)
    assert_follows(network, inputs, lambda y: near(y, prototypes), flow)


def test_a_callable_gets_the_weights_if_it_has_a_parameter_for_them(problem, numbers, weights):
    network, inputs = problem
    lin = kpops.linearize(network, inputs, mask=MASK)
    counts = weights * MASK

    def huber(y, target, weights, delta=1.0):
        steps = nn.functional.huber_loss(y, target, reduction="none", delta=delta).sum(-1)
        return (weights * steps).sum()

    flow = kpops.gradient_flow(lin, numbers, functools.partial(huber, delta=0.5), loss_mask=weights)
    assert_follows(network, inputs, lambda y: huber(y, numbers, counts, 0.5), flow)


def test_a_module_is_a_callable(problem, numbers):
    network, inputs = problem
    flow = kpops.gradient_flow(kpops.linearize(network, inputs), numbers, nn.SmoothL1Loss())
    assert_follows(network, inputs, lambda y: nn.functional.smooth_l1_loss(y, numbers), flow)


# All that take a loss


def test_interference_sums_to_the_whole_for_every_loss(problem, labels, weights):
    network, inputs = problem
    lin = kpops.linearize(network, inputs)
    options = {"loss": "cross_entropy", "loss_mask": weights}
    result = kpops.interference(lin, ["a", "a", "b", "b", "b"], targets=labels, **options)
    configuration = json.loads(result.attrs["configuration"])
    assert configuration["loss"] == "cross_entropy" and configuration["loss_mask"] == "given"
    flow = kpops.gradient_flow(lin, labels, **options)
    assert float(result.loss) == float(flow.loss)
    whole = float((flow.parameter_step**2).sum())
    assert float(-result.loss_change.sum()) == pytest.approx(whole, rel=1e-10)


def test_truncated_flow_through_all_modes_is_the_flow(labels, weights):
    torch.manual_seed(0)
    network = kpops.Network(nn.RNN(2, 3, batch_first=True), nn.Linear(3, 4)).double()
    lin = kpops.linearize(network, torch.randn(5, 7, 2, dtype=torch.float64))
    options = {"loss": "cross_entropy", "loss_mask": weights}
    flow = kpops.gradient_flow(lin, labels, **options)
    carried = kpops.truncated_flow(lin, labels, 21, rng=0, **options)
    norm = float(np.sqrt((flow.state_change**2).sum()))
    assert float(carried.total_state_change) == pytest.approx(norm, rel=1e-12)
    assert float(carried.state_change_captured[-1]) == pytest.approx(1, abs=1e-6)


# Wrong use


def at(values, value, *position):
    values = values.clone()
    values[position] = value
    return values


CASES = {
    "unknown": ("targets", {"loss": "hinge"}, ValueError, "loss='hinge': pass 'mse', 'cross_ent"),
    "none": ("targets", {"loss": None}, TypeError, "loss=None: pass 'mse', 'cross_entropy', or a"),
    "class": ("targets", {"loss": nn.MSELoss}, TypeError, r"the class MSELoss: .* MSELoss\(\)"),
    "not scalar": (
        "targets",
        {"loss": lambda y, t: (y - t) ** 2},
        ValueError,
        r"loss returned the shape \(5, 7, 4\), expected a scalar: reduce it, .* \.mean\(\)",
    ),
    "number": ("targets", {"loss": lambda y, t: 1.0}, TypeError, "loss returned a float, expect"),
    "detached": (
        "targets",
        {"loss": lambda y, t: (y.detach() - t).square().mean()},
        ValueError,
        "loss returned .*, which has no gradient: .* without detach",
    ),
    "infinite": ("targets", {"loss": lambda y, t: y.sum() / 0}, ValueError, "expected a finite"),
    "no weights": (
        "targets",
        {"loss": nn.MSELoss(), "loss_mask": torch.ones(5, 7)},
        ValueError,
        "loss_mask is given, but loss does not take it: .* third parameter weights",
    ),
    "labels for mse": ("labels", {}, ValueError, "pass loss='cross_entropy' for labels"),
    "float labels": (
        lambda y, t: t.double(),
        {"loss": "cross_entropy"},
        ValueError,
        r"targets is float64 of shape \(5, 7\), expected integer labels .*convert labels to int",
    ),
    "integer one-hot": (
        lambda y, t: nn.functional.one_hot(t, 4),
        {"loss": "cross_entropy"},
        ValueError,
        r"targets is int64 of shape \(5, 7, 4\).*one-hot targets to floats",
    ),
    "bool": (lambda y, t: t > 1, {"loss": "cross_entropy"}, ValueError, "targets is bool"),
    "class 4": (
        lambda y, t: at(t, 4, 2, 3),
        {"loss": "cross_entropy"},
        ValueError,
        r"targets is 4 at trial 2, time 3 \(from 0\): expected a class from 0 to 3, or -100",
    ),
    "class -1": (
        lambda y, t: at(t, -1, 0, 6),
        {"loss": "cross_entropy"},
        ValueError,
        "targets is -1 at trial 0, time 6",
    ),
    "all ignored": (
        lambda y, t: t * 0 - 100,
        {"loss": "cross_entropy"},
        ValueError,
        "targets is -100 at every step that counts",
    ),
    "probabilities": (
        lambda y, t: at(y.softmax(-1), 0.5, 1, 2),
        {"loss": "cross_entropy"},
        ValueError,
        r"targets is \[0.5, .* at trial 1, time 2 .*whose sum is 1",
    ),
    "negative": (
        lambda y, t: y - y.sum(-1, keepdim=True) / 4 + 0.25,
        {"loss": "cross_entropy"},
        ValueError,
        "at trial 0, time 1 .*none negative",
    ),
    "complex": (lambda y, t: y + 1j, {}, TypeError, "targets is complex: pass real and imaginary"),
    "complex array": (lambda y, t: y.numpy() + 1j, {}, TypeError, "targets is complex: pass real"),
    "a task": (
        lambda y, t: kpops.tasks.memory_pro(5, rng=0),
        {},
        TypeError,
        r"targets is a Dataset of inputs, targets, mask: .* task\.targets",
    ),
    "too few trials": (
        lambda y, t: xr.DataArray(t[:3], dims=("trial", "time")),
        {"loss": lambda y, t: y.sum() * t.sum()},
        ValueError,
        r"targets has sizes {'trial': 3, 'time': 7}, expected \(trial: 5, time: 7\)",
    ),
    "a name": (lambda y, t: "targets", {}, TypeError, "targets is the string 'targets'"),
    "nan": (lambda y, t: at(y, torch.nan, 1, 2), {}, ValueError, "not finite at trial 1, time 2"),
    "weights shape": (
        "targets",
        {"loss_mask": torch.ones(7, 5)},
        ValueError,
        r"loss_mask has shape \(7, 5\), expected \(trial, time\) = \(5, 7\)",
    ),
    "negative weight": (
        "targets",
        {"loss_mask": at(torch.ones(5, 7), -0.5, 3, 1)},
        ValueError,
        "loss_mask is -0.5 at trial 3, time 1",
    ),
    "nan weight": (
        "targets",
        {"loss_mask": at(torch.ones(5, 7), torch.nan, 3, 1)},
        ValueError,
        "loss_mask is nan at trial 3, time 1",
    ),
    "complex weights": (
        "targets",
        {"loss_mask": torch.ones(5, 7) * 1j},
        TypeError,
        "loss_mask is complex",
    ),
    "no weight": (
        "targets",
        {"loss_mask": torch.zeros(5, 7)},
        ValueError,
        "loss_mask is zero at every valid step",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_use_is_named(problem, numbers, labels, case):
    given, options, error, message = CASES[case]
    network, inputs = problem
    fixed = {"targets": numbers, "labels": labels}
    targets = fixed[given] if isinstance(given, str) else given(numbers, labels)
    with pytest.raises(error, match=message):
        kpops.gradient_flow(kpops.linearize(network, inputs), targets, **options)


@pytest.mark.parametrize(
    "function",
    [
        kpops.collapse,
        kpops.interference,
        kpops.rank_bounds,
        lambda op: kpops.gradient_flow(op, torch.zeros(5, 7, 4)),
        lambda op: kpops.truncated_flow(op, torch.zeros(5, 7, 4)),
        lambda op: kpops.interference_operator(op, "a", "b"),
    ],
)
def test_an_operator_in_the_place_of_a_linearization_is_named(problem, function):
    lin = kpops.linearize(*problem)
    with pytest.raises(TypeError, match=r"lin is the operator <P K P\*.*no Linearization: pass"):
        function(lin.flow)
