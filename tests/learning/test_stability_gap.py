"""The stability gap of real trainings, by interference at every iteration."""

import functools

import numpy as np
import pytest
import torch
import xarray as xr
from one_step import deep_linear

import kpops
from kpops.training import Measured, stability_gap

TASKS = ["old"] * 4 + ["new"] * 4


def training(eta, steps):
    """Interference at each step after the switch from the old task to both, and their losses.

    One linear map solves both tasks, and each has fewer trials than there are inputs.
    """
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.standard_normal((8, 1, 8)))
    y = x @ torch.from_numpy(rng.standard_normal((8, 2))) / 2
    sizes = ((4, 8), (2, 4))
    net = deep_linear(*[torch.from_numpy(rng.standard_normal(size) / 2) for size in sizes])

    def losses():
        error = (net(x[:, 0], torch.zeros(8, 2).double()) - y[:, 0]).square().mean(1) / 8
        return torch.stack([error[:4].sum(), error[4:].sum()])

    def step(rate, tasks):
        net.zero_grad()
        losses()[tasks].sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= rate * p.grad

    for _ in range(1000):
        step(0.1, [0])
    course = [losses().tolist()]
    measure = functools.partial(kpops.interference, by=TASKS, targets=y, num_matvecs=0)
    with Measured(net, x, measure, every=1) as during:
        for _ in range(steps):
            step(eta, [0, 1])
            during.step()
            course.append(losses().tolist())
    return during.result(), np.array(course)


@pytest.fixture(scope="module")
def run():
    return training(0.05, 60)


def test_the_curve_is_the_true_change_of_the_losses_up_to_the_learning_rate(run):
    errors = []
    for eta, (result, losses) in ((0.1, training(0.1, 30)), (0.05, run)):
        gap = stability_gap(result, eta)
        assert gap.task.values.tolist() == ["old", "new"]
        errors.append(float(abs(gap.loss_change - (losses - losses[0])).max()))
    assert errors[0] < 0.15 * np.ptp(run[1])
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.1)


def test_the_old_task_is_lost_at_first_by_the_new_one_and_then_regained(run):
    result, losses = run
    gap = stability_gap(result, 0.05).sel(task="old")
    old = losses[:, 0] - losses[0, 0]
    assert 5 < old.argmax() < 20 and old[-1] < 0.2 * old.max()
    assert abs(int(gap.peak_step) - old.argmax()) <= 2
    assert float(gap.peak) == pytest.approx(old.max(), rel=0.15)
    assert float(gap.gap) == pytest.approx(old.max() - old[-1], rel=0.15)
    assert (gap.from_itself[1:] < 0).all()
    np.testing.assert_allclose(gap.from_others + gap.from_itself, gap.loss_change, atol=1e-15)
    first = gap.isel(step=1)  # almost nothing of its own yet
    assert abs(float(first.from_itself)) < 0.1 * float(first.from_others)


def test_tasks_that_are_not_learned_change_by_those_that_are(run):
    gap = stability_gap(run[0], 0.05, learned="new")
    assert (gap.from_itself.sel(task="old") == 0).all()
    whole = kpops.accumulate_interference(run[0], 0.05).accumulated_loss_change
    new = whole.sel(task_in="new").transpose("step", "task")
    np.testing.assert_array_equal(gap.loss_change, new)


def test_labels_that_are_no_tasks_are_refused(run):
    with pytest.raises(ValueError, match=r"learned=\['other'\]: choose among the tasks"):
        stability_gap(run[0], learned="other")
    with pytest.raises(TypeError, match=r"pass what kpops\.over_training makes"):
        stability_gap(xr.DataArray(0))
