"""The pieces of the rows on Green's maps and of the findings beyond the papers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from reproduction import intervals, short
from reproduction.multitask import Leaky, training_set
from reproduction.rows import (
    collapse_leads_loss,
    greens_lags,
    greens_task_similarity,
    rank_predicts_speed,
    truncated_flow_predicts,
)


@pytest.fixture
def leaky():
    torch.manual_seed(0)
    return Leaky(3, 4, 2).double()


def by_steps(model, inputs, pushes=0.0):
    """States (trial, time, unit) by the cell itself, pushed at every step."""
    h, states = torch.zeros(len(inputs), 4, dtype=torch.float64), []
    pushes = torch.zeros(*inputs.shape[:2], 4, dtype=torch.float64) + pushes
    for t in range(inputs.shape[1]):
        h = model.cell(inputs[:, t], h) + pushes[:, t]
        states.append(h)
    return torch.stack(states, 1)


def test_the_leaky_network_and_its_gradient_are_those_of_its_cell_step_by_step(leaky):
    inputs = torch.randn(5, 7, 3, dtype=torch.float64)
    weights = torch.randn(5, 7, 2, dtype=torch.float64)
    ours, theirs = leaky(inputs), leaky.readout(by_steps(leaky, inputs))
    torch.testing.assert_close(ours, theirs)
    of_ours = torch.autograd.grad((ours * weights).sum(), list(leaky.parameters()))
    of_theirs = torch.autograd.grad((theirs * weights).sum(), list(leaky.parameters()))
    for a, b in zip(of_ours, of_theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_reduced_maps_are_those_of_the_dense_operator(leaky):
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    lin = kpops.linearize(leaky.cell, inputs, dtype=torch.float64)
    found = greens_task_similarity.reduced(lin)
    for trial in range(2):
        one = inputs[trial : trial + 1]
        dense = torch.autograd.functional.jacobian(
            lambda u, one=one: by_steps(leaky, one, u)[0], torch.zeros(5, 4, dtype=torch.float64)
        )  # (time, unit, time_in, unit_in)
        response = dense - torch.eye(20, dtype=torch.float64).reshape(5, 4, 5, 4)
        np.testing.assert_allclose(found["units"][trial], response.sum((0, 2)) / 5, atol=1e-12)
        np.testing.assert_allclose(found["times"][trial], response.sum((1, 3)) / 4, atol=1e-12)
        states = by_steps(leaky, one)[0].detach().numpy()
        covariance = np.cov(states.T, bias=True)
        np.testing.assert_allclose(found["states"][trial], covariance, atol=1e-12)


def test_cuts_and_fractions_of_a_geometric_decay():
    q, lags = 0.642, np.arange(126)
    energy = np.where(lags > 0, q**lags, 0)
    before = energy / energy.sum()
    slow = np.where(lags > 0, 0.95**lags, 0)
    after = slow / slow.sum()
    values = np.stack([[before] * 2, [after] * 2])[None]
    coords = {"moment": list(greens_lags.MOMENTS), "task": list(greens_lags.TASKS), "lag": lags}
    found = xr.Dataset({"by_lag": (("seed", "moment", "task", "lag"), values)}, coords)
    assert greens_lags.cuts(found) == (4, 17)  # 1 - q^4 = 0.830, q^17 = 5.3e-4
    of = greens_lags.fractions(found, 4, 17).sel(moment="after training", task="MemoryPro")
    assert float(of.near[0]) == pytest.approx(1 - 0.95**4, rel=1e-2)
    assert float(of.far[0]) == pytest.approx(0.95**17, rel=1e-2)
    texts = [c.holds for c in greens_lags.judge_far(found)]
    assert texts == [True, False, True, False]  # 0.95^17 = 0.42


def test_the_training_set_has_all_tasks_and_no_loss_in_the_padding():
    task = training_set(2, seed=0)
    assert task.sizes["trial"] == 30
    rules = task.inputs.values[:, 0, 5:].round().argmax(1)
    assert sorted(rules) == sorted(list(range(15)) * 2)
    assert not task.loss_mask.values[~task.mask.values].any()
    assert set(np.unique(task.loss_mask)) == {0, 1, 5}
    assert task.mask.values[:, 0].all() and not task.mask.values[:, -1].all()


def test_a_prediction_by_the_whole_operator_has_the_closed_form_of_a_linear_flow():
    torch.manual_seed(1)
    network = kpops.Network(torch.nn.GRU(2, 3, batch_first=True), torch.nn.Linear(3, 2)).double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64)
    targets = torch.randn(2, 4, 2, dtype=torch.float64)
    lin = kpops.linearize(network, inputs)
    parameters = list(network.recurrent.parameters())
    states = network.recurrent(inputs)[0]
    rows = [torch.autograd.grad(s, parameters, retain_graph=True) for s in states.flatten()]
    D = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    W, b = network.readout.weight.detach(), network.readout.bias.detach()
    C = torch.block_diag(*[W] * 8)
    missing = C @ states.detach().flatten() + (b - targets).flatten()
    rate, steps = 0.3, 6
    M = torch.eye(16, dtype=torch.float64) - rate * 2 / 16 * C @ D @ D.T @ C.T
    wanted = [
        float((torch.linalg.matrix_power(M, n) @ missing).square().mean()) for n in range(steps + 1)
    ]
    modes = kpops.eigsh(lin.flow, k=24, rng=0)
    for k in (None, 24):
        kernels = [truncated_flow_predicts._kernel(lin, modes, k)] * 3
        found = truncated_flow_predicts.predict(lin, targets, kernels, steps, 2, rate)
        np.testing.assert_allclose(found, wanted, rtol=1e-7)
    few = [truncated_flow_predicts._kernel(lin, modes, 1)] * 3
    assert truncated_flow_predicts.predict(lin, targets, few, steps, 2, rate)[-1] > wanted[-1]


def test_a_step_of_descent_is_that_of_sgd_with_a_fixed_readout():
    torch.manual_seed(2)
    network = kpops.Network(torch.nn.GRU(2, 3, batch_first=True), torch.nn.Linear(3, 2)).double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64)
    targets = torch.randn(2, 4, 2, dtype=torch.float64)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    truncated_flow_predicts._descend(network, inputs, targets, 0.1)
    ours = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(before)
    optimizer = torch.optim.SGD(network.recurrent.parameters(), 0.1)
    torch.nn.functional.mse_loss(network(inputs), targets).backward()
    optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours[name], value)


def test_leads_of_curves_with_a_known_shift():
    steps = np.arange(0, 405, 5)
    rank = 2 + 16 / (1 + np.exp((steps - 100) / 8))
    loss = 0.1 / (1 + np.exp((steps - 130) / 8))
    found = xr.Dataset(
        {
            "rank": (("seed", "step"), [rank, rank]),
            "loss": (("seed", "step"), [loss, loss]),
            "blind_loss": ("seed", [0.1, 0.1]),
        },
        {"step": steps},
    )
    np.testing.assert_allclose(collapse_leads_loss.leads(found), 30, atol=0.2)
    np.testing.assert_allclose(collapse_leads_loss.leads(found, 0.25), 30, atol=0.5)
    assert all(c.holds for c in collapse_leads_loss.judge(found))
    late = found.assign(rank=found["rank"].roll(step=6))
    late["rank"][:, :6] = 18.0
    assert not collapse_leads_loss.judge(late)[2].holds


def test_correlations_are_within_tasks_and_of_speed():
    rank = np.arange(1.0, 13).reshape(3, 4)
    slow = np.stack([100 - rank, 1000 - rank], -1)
    kinds = np.stack([np.stack([rank] * 2, -1), np.stack([-rank] * 2, -1)], -1)
    found = xr.Dataset(
        {
            "rank": (("seed", "cell", "g", "task", "kind"), kinds[None]),
            "iterations": (("seed", "cell", "g", "task"), slow[None]),
        },
        {"kind": list(rank_predicts_speed.RANKS), "task": ["a", "b"]},
    )
    np.testing.assert_allclose(rank_predicts_speed.correlations(found), [[1, -1]])
    found["iterations"][:, 0, :, 0] = np.inf  # the smallest ranks are the slowest already
    assert rank_predicts_speed.correlations(found)[0, 0] == pytest.approx(1, abs=0.05)


def test_the_bootstrap_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).standard_normal(400) + 3
    low, high = intervals.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert intervals.excludes_zero("", values).holds
    assert not intervals.excludes_zero("", values - values.mean()).holds


def test_iterations_to_a_level():
    steps = np.array([0.0, 10, 20])
    assert intervals.passes(steps, np.array([3.0, 2.0, 0.0]), 1.0) == 15
    assert intervals.passes(steps, np.array([1.0, 2.0, 0.0]), 1.0) == 0
    assert intervals.passes(steps, np.array([3.0, 2.0, 1.5]), 1.0) == np.inf


def test_the_loss_without_an_answer_is_that_of_fixation_alone():
    task = kpops.tasks.memory_pro(8, angles="even", noise=0, steps=(2, 3, 4))
    outputs = task.targets.copy()
    outputs.loc[{"output": ["cos", "sin"]}] = 0
    squared = float(((outputs - task.targets).astype(float) ** 2).mean())
    assert short.blind_loss(task) == pytest.approx(squared)
    assert short.blind_loss(task) == pytest.approx(4 / 9 / 3)


def test_short_trainings_depend_on_their_seed_alone_and_lower_the_loss():
    task = kpops.tasks.delay_pro(64, steps=(3, 3, 3), rng=0)
    losses = []
    for _ in range(2):
        network = short.network("gru", task, 8, seed=3)
        options = {"learning_rate": 1e-2, "batch_size": 16, "seed": 0}
        losses.append(
            [short.loss(network, task) for _ in short.train(network, task, 30, **options)]
        )
    assert losses[0] == losses[1]
    assert len(losses[0]) == 31
    assert losses[0][-1] < 0.7 * losses[0][0]
