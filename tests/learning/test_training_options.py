"""Optimizers, stop criteria and checkpoint schedules: what they do, and that they resume."""

import itertools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.optim import lr_scheduler

import kpops
from kpops.learning.checkpoints import newest_checkpoint
from kpops.learning.training import _draw
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, logarithmic, mean_below, train

TASK = memory_pro(24, rng=0, steps=(3, 2, 3), dtype="float64")
SETTINGS = {"max_steps": 12, "batch_size": 8, "checkpoint_every": 1, "rng": 1}

NAMED = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
}


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, 10)


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)


def milestones(optimizer):
    return lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.5)


def warm_up(optimizer):
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    second = lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lr_scheduler.SequentialLR(optimizer, [first, second], [4])


def by_function(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


SCHEDULERS = [cosine, one_cycle, milestones, warm_up, by_function]


def scheduled(make_scheduler):
    def factory(params, lr):
        optimizer = torch.optim.SGD(params, lr, momentum=0.9)
        return optimizer, make_scheduler(optimizer)

    return factory


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(nn.GRU(3, 6), nn.Linear(6, 3)).double()


def by_hand(optimizer, n_steps, learning_rate, make_scheduler=None):
    """Train in the few lines that everyone writes, and return the model and the losses."""
    model = make()
    optimizer = optimizer(model.parameters(), lr=learning_rate)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    inputs, targets = (torch.tensor(TASK[name].values) for name in ("inputs", "targets"))
    losses = []
    for step in range(n_steps + 1):
        batch, _ = _draw(SETTINGS["rng"], step, 24, 8)
        loss = (model(inputs[batch]) - targets[batch]).square().mean()
        losses.append(loss.item())
        if step < n_steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return model, losses


def assert_close_models(one, other):
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def assert_resumes(tmp_path, **options):
    """Ends to the bit as an uninterrupted training, when it is started anew for every few steps."""
    settings = {"task": TASK, **SETTINGS, **options}
    whole = make()
    expected = train(whole, folder=tmp_path / "whole", **settings)
    for max_steps in (0, 1, 5, 6, settings["max_steps"]):
        parts = make(seed=9 if max_steps else 0)
        history = train(parts, folder=tmp_path / "parts", **{**settings, "max_steps": max_steps})
    xr.testing.assert_identical(history, expected)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    one, other = newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts")
    assert str(one["optimizer"]) == str(other["optimizer"])
    assert one.get("scheduler") == other.get("scheduler")


# Optimizers


@pytest.mark.parametrize("name", NAMED)
def test_named_optimizer_is_that_of_torch(tmp_path, name):
    model = make()
    history = train(model, TASK, folder=tmp_path, optimizer=name, learning_rate=0.01, **SETTINGS)
    expected, losses = by_hand(NAMED[name], 12, 0.01)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-10)
    assert_close_models(model, expected)
    assert json.loads(history.attrs["configuration"])["optimizer"] == NAMED[name].__name__


@pytest.mark.parametrize("name", [*NAMED, "adafactor"])
def test_named_optimizer_resumes_exactly(tmp_path, name):
    assert_resumes(tmp_path, optimizer=name, learning_rate=0.01)


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_scheduler_moves_once_per_step(tmp_path, make_scheduler):
    model = make()
    train(
        model,
        TASK,
        folder=tmp_path,
        optimizer=scheduled(make_scheduler),
        learning_rate=0.05,
        **SETTINGS,
    )
    expected, _ = by_hand(
        lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9), 12, 0.05, make_scheduler
    )
    assert_close_models(model, expected)


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_scheduler_resumes_exactly(tmp_path, make_scheduler):
    assert_resumes(tmp_path, optimizer=scheduled(make_scheduler), learning_rate=0.05)


def test_another_scheduler_is_another_training(tmp_path):
    settings = {"task": TASK, "folder": tmp_path, **SETTINGS}
    train(make(), optimizer=scheduled(cosine), **settings)
    with pytest.raises(ValueError, match="scheduler is CosineAnnealingLR there and absent here"):
        train(make(), optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), **settings)
    longer = scheduled(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 11))
    with pytest.raises(ValueError, match="scheduler: T_max is 10 there and 11 here"):
        train(make(), optimizer=longer, **settings)


def test_learning_rate_from_numpy_leaves_readable_checkpoints(tmp_path):
    (rate,) = np.geomspace(1e-3, 1e-2, 1)
    train(make(), TASK, folder=tmp_path, learning_rate=rate, **SETTINGS)
    assert newest_checkpoint(tmp_path)["optimizer"]["param_groups"][0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (
            "gradient",
            ValueError,
            r"optimizer is the string 'gradient': use one of \['adadelta'",
        ),
        ("lbfgs", ValueError, "step of LBFGS needs closure"),
        (lambda p, lr: torch.optim.LBFGS(p, lr), ValueError, "step of LBFGS needs closure"),
        (
            scheduled(lr_scheduler.ReduceLROnPlateau),
            ValueError,
            "step of ReduceLROnPlateau needs metrics",
        ),
        (lambda p, lr: p, TypeError, "optimizer returned a list, expected"),
        (lambda p, lr: (torch.optim.SGD(p, lr), 1, 2), TypeError, "returned a tuple, expected"),
        (lambda p, lr: (torch.optim.SGD(p, lr), 1), TypeError, "returned a int as the scheduler"),
        (
            lambda p, lr: torch.optim.SGD(p, lr, momentum=np.float64(0.9)),
            TypeError,
            "cannot be read back from a checkpoint: .* instead of NumPy's",
        ),
    ],
)
def test_unsuitable_optimizers_are_refused(tmp_path, optimizer, error, message):
    with pytest.raises(error, match=message):
        train(make(), TASK, folder=tmp_path, optimizer=optimizer, **SETTINGS)
    assert not list(tmp_path.iterdir())


# Stop criteria


def test_stop_sees_every_step_with_the_losses_so_far(tmp_path):
    seen = []

    def stop(step, losses):
        seen.append((step, list(losses)))
        return step == 7

    history = train(make(), TASK, folder=tmp_path, stop=stop, **SETTINGS)
    losses = history.loss.values.tolist()
    assert seen == [(step, losses[: step + 1]) for step in range(8)]
    assert checkpoints(tmp_path).steps[-1] == 7


def test_training_stops_at_the_first_step_whose_running_mean_is_low_enough(tmp_path):
    full = train(make(), TASK, folder=tmp_path / "full", **SETTINGS).loss.values
    means = np.convolve(full, np.ones(4) / 4, mode="valid")  # of the steps 0-3, 1-4, ...
    bound = np.nextafter(means[5], np.inf)
    first = 3 + int(np.flatnonzero(means <= bound)[0])
    stop = mean_below(bound, window=4)
    history = train(make(), TASK, folder=tmp_path / "stopped", stop=stop, **SETTINGS)
    np.testing.assert_array_equal(history.loss, full[: first + 1])
    again = train(make(seed=3), TASK, folder=tmp_path / "stopped", stop=stop, **SETTINGS)
    xr.testing.assert_identical(again, history)


def test_running_mean_resumes_exactly(tmp_path):
    full = train(make(), TASK, folder=tmp_path / "full", **SETTINGS).loss.values
    bound = np.convolve(full, np.ones(4) / 4, mode="valid")[6]
    assert_resumes(tmp_path, stop=mean_below(bound, window=4))


def test_either_criterion_stops(tmp_path):
    for name, options in [("loss", {"stop_loss": np.inf}), ("stop", {"stop": lambda *_: True})]:
        history = train(make(), TASK, folder=tmp_path / name, **SETTINGS, **options)
        assert history.sizes["step"] == 1


def test_wrong_running_means_are_refused():
    with pytest.raises(ValueError, match="window=0"):
        mean_below(1.0, window=0)
    with pytest.raises(ValueError, match="loss=nan"):
        mean_below(np.nan)


# Checkpoint schedules


@pytest.mark.parametrize("per_decade", [1, 3, 7, 10, 40])
def test_logarithmic_schedule_is_the_rounded_geometric_sequence(per_decade):
    wanted = {round(10 ** (k / per_decade)) for k in range(5 * per_decade)}
    keep = logarithmic(per_decade)
    assert {step for step in range(1, 10**5) if keep(step)} == wanted - {10**5}


def test_logarithmic_schedule_keeps_every_power_of_ten():
    assert all(logarithmic(m)(10**k) for m, k in itertools.product(range(1, 50), range(13)))


@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (5, (0, 5, 10, 12)),
        (np.int64(5), (0, 5, 10, 12)),
        (range(1, 12, 4), (0, 1, 5, 9, 12)),
        (np.array([3, 4]), (0, 3, 4, 12)),
        (logarithmic(4), (0, 1, 2, 3, 6, 10, 12)),
        (lambda step: step in (2, 11), (0, 2, 11, 12)),
    ],
)
def test_schedule_keeps_its_steps_the_first_and_the_last(tmp_path, every, kept):
    settings = {**SETTINGS, "checkpoint_every": every}
    train(make(), TASK, folder=tmp_path, **settings)
    assert checkpoints(tmp_path).steps == kept


@pytest.mark.parametrize("every", ["log", 2.5, [1.5], None])
def test_schedules_of_the_wrong_type_are_named(tmp_path, every):
    with pytest.raises(TypeError, match=r"checkpoint_every=.*logarithmic"):
        train(make(), TASK, folder=tmp_path, **{**SETTINGS, "checkpoint_every": every})


def test_wrong_number_per_decade_is_refused():
    with pytest.raises(ValueError, match="per_decade=0"):
        logarithmic(0)


def test_wrong_options_leave_no_folder_behind(tmp_path):
    network = kpops.models.Network(nn.GRU(3, 4), nn.Linear(4, 3))
    task = kpops.tasks.memory_pro(8, rng=0)
    for wrong in ({"learning_rate": -1.0}, {"optimizer": "none"}, {"checkpoint_every": 0}):
        with pytest.raises((TypeError, ValueError)):
            train(network, task, folder=tmp_path / "new", max_steps=1, batch_size=4, **wrong)
    assert not (tmp_path / "new").exists()
