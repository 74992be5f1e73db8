"""Training on any loss: labels, weights of steps, callables; and tasks that are refused."""

import json
import re

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, train

PRO = memory_pro(24, rng=0, steps=(3, 2, 3), dtype="float64")
SETTINGS = {"max_steps": 6, "batch_size": 8, "checkpoint_every": 2, "rng": 1}


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(nn.GRU(3, 6), nn.Linear(6, 4)).double()


def decisions(padded=False):
    """Labels of four classes, some ignored; weights; a mask."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=(24, 8))
    labels[rng.random((24, 8)) < 0.2] = -100
    labels[:, 0] = 1
    task = PRO.drop_dims("output").assign(targets=(("trial", "time"), labels))
    if padded:
        mask = np.arange(8) < rng.integers(2, 9, size=(24, 1))
        weights = rng.random((24, 8))
        task = task.assign(mask=(("trial", "time"), mask), loss_mask=(("trial", "time"), weights))
    return task


def one_step(folder, task, loss, reference):
    """A step of gradient descent on all trials is that on `reference(outputs)`."""
    model, other = make(), make()
    history = train(
        model,
        task,
        folder=folder,
        loss=loss,
        max_steps=1,
        batch_size=24,
        learning_rate=0.1,
        optimizer="sgd",
        rng=0,
    )
    value = reference(other(torch.tensor(task.inputs.values)))
    value.backward()
    np.testing.assert_allclose(history.loss[0], value.item(), rtol=1e-12)
    for new, old in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-10, atol=1e-13)
    return history


def test_a_step_on_labels_is_that_of_pytorch(tmp_path):
    task = decisions()
    labels = torch.tensor(task.targets.values)
    history = one_step(
        tmp_path,
        task,
        "cross_entropy",
        lambda y: nn.functional.cross_entropy(y.movedim(-1, 1), labels),
    )
    assert history.loss.long_name == "cross entropy of the minibatch"
    assert json.loads(history.attrs["configuration"])["loss"] == "cross_entropy"


def test_mask_weights_and_ignored_labels_go_together(tmp_path):
    task = decisions(padded=True)
    labels = torch.tensor(task.targets.values)
    weights = torch.tensor(task.loss_mask.values * task.mask.values) * (labels != -100)

    def reference(y):
        steps = nn.functional.cross_entropy(y.movedim(-1, 1), labels, reduction="none")
        return (weights * steps).sum() / weights.sum()

    one_step(tmp_path, task, "cross_entropy", reference)


def test_weights_of_the_squared_error(tmp_path):
    rng = np.random.default_rng(1)
    task = PRO.assign(
        targets=(("trial", "time", "channel"), rng.standard_normal((24, 8, 4))),
        loss_mask=(("time", "trial"), rng.random((8, 24))),
    )
    weights = torch.tensor(task.loss_mask.values.T)[..., None]
    targets = torch.tensor(task.targets.values)
    one_step(
        tmp_path,
        task,
        "mse",
        lambda y: (weights * (y - targets).square()).sum() / (4 * weights.sum()),
    )


def test_a_callable_takes_targets_of_any_shape_trial_by_trial(tmp_path):
    choices = np.random.default_rng(2).integers(4, size=24)
    task = PRO.drop_dims("output").assign(targets=("trial", choices))
    wanted = torch.tensor(choices)

    def choice(y, target):
        return nn.functional.cross_entropy(y[:, -1], target)

    history = one_step(tmp_path / "one", task, choice, lambda y: choice(y, wanted))
    assert history.loss.long_name == "loss of the minibatch"
    train(make(), task, folder=tmp_path / "batches", loss=choice, **SETTINGS)
    assert checkpoints(tmp_path / "batches").steps == (0, 2, 4, 6)


def test_a_callable_gets_the_weights_of_the_batch(tmp_path):
    task = decisions(padded=True)
    labels, counts = torch.tensor(task.targets.values), torch.tensor(task.loss_mask.values)
    counts = counts * torch.tensor(task.mask.values)

    def summed(y, target, weights):
        steps = nn.functional.cross_entropy(y.movedim(-1, 1), target, reduction="none")
        return (weights * steps).sum()

    one_step(tmp_path, task, summed, lambda y: summed(y, labels, counts))


def test_integer_targets_are_numbers_to_the_squared_error(tmp_path):
    targets = np.random.default_rng(3).integers(-2, 3, size=(24, 8, 4))
    wholes = PRO.assign(targets=(("trial", "time", "channel"), targets))
    floats = PRO.assign(targets=(("trial", "time", "channel"), targets.astype(float)))
    losses = [
        train(make(), task, folder=tmp_path / str(n), **SETTINGS).loss
        for n, task in enumerate((wholes, floats))
    ]
    np.testing.assert_array_equal(*losses)


def test_training_on_labels_resumes_exactly(tmp_path):
    settings = {"task": decisions(padded=True), "loss": "cross_entropy", **SETTINGS}
    whole, parts = make(), make()
    expected = train(whole, folder=tmp_path / "whole", **settings)
    for max_steps in (1, 3, 6):
        history = train(parts, folder=tmp_path / "parts", **{**settings, "max_steps": max_steps})
    xr.testing.assert_identical(history, expected)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_weights_of_steps_are_another_training(tmp_path):
    task = decisions(padded=True)
    train(make(), task, folder=tmp_path, loss="cross_entropy", **SETTINGS)
    other = task.assign(loss_mask=task.loss_mask + 0.01)
    with pytest.raises(ValueError, match="task fingerprint is"):
        train(make(), other, folder=tmp_path, loss="cross_entropy", **SETTINGS)


def test_the_bar_shows_the_loss_and_what_is_left(tmp_path, capsys):
    history = train(
        make(), decisions(), folder=tmp_path, loss="cross_entropy", progress=True, **SETTINGS
    )
    shown = capsys.readouterr().err
    assert re.search(r"6/6 \[\d\d:\d\d<", shown)
    assert f"loss {float(history.loss[-1]):.4g}" in shown


def labels_with(value):
    task = decisions()
    task["targets"][3, 2] = value
    return task


CASES = [
    (labels_with(4), "cross_entropy", ValueError, "targets is 4 at trial 3, time 2 .* from 0 to 3"),
    (
        decisions().assign(targets=decisions().targets.where(decisions().trial != 2, -100)),
        "cross_entropy",
        ValueError,
        "no step of trial 2 counts in the loss: drop that trial, or correct its mask",
    ),
    (decisions(), "mse", ValueError, "pass loss='cross_entropy' for labels"),
    (PRO, "mse", ValueError, r"targets has shape \(24, 8, 3\), expected \(24, 8, 4\)"),
    (decisions(), "hinge", ValueError, "loss='hinge': pass 'mse', 'cross_entropy', or a callable"),
    (decisions().astype(float), "cross_entropy", ValueError, "float64 of shape .*integer labels"),
    (PRO.assign(targets=PRO.targets * 1j), "mse", TypeError, "targets is complex: pass real and"),
    (PRO.assign(inputs=PRO.inputs * 1j), "mse", TypeError, "inputs is complex: pass real and"),
    (PRO.assign(mask=PRO.mask * 0.5), "mse", ValueError, r"values other than 0 and 1.*loss_mask'"),
    (
        PRO.assign(loss_mask=-1.0 * PRO.mask),
        "mse",
        ValueError,
        r"task\['loss_mask'\] is -1.0 at trial 0, time 0",
    ),
    (PRO.drop_vars("targets"), "mse", ValueError, r"task\['targets'\] is missing"),
    (
        PRO.assign(targets=PRO.targets[0].drop_vars("trial")),
        "mse",
        ValueError,
        r"task\['targets'\] is \('time', 'output'\), expected the dims \('trial'",
    ),
    (PRO.inputs, "mse", TypeError, "task is a DataArray .*, expected a Dataset with inputs"),
    (
        decisions(padded=True),
        lambda y, t: y.sum(),
        ValueError,
        "loss_mask is given, but loss does not take it",
    ),
    (
        decisions(),
        lambda y, t: (y[..., 0] - t) ** 2,
        ValueError,
        r"loss returned the shape \(8, 8\), expected a scalar",
    ),
]


@pytest.mark.parametrize(("task", "loss", "error", "told"), CASES, ids=range(len(CASES)))
def test_wrong_use_is_named_before_anything_is_written(tmp_path, task, loss, error, told):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=told):
        train(model, task, folder=tmp_path, loss=loss, **SETTINGS)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
