"""A training that is killed by SIGKILL, at any moment, ends to the bit as one that is not."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from kpops.learning.checkpoints import newest_checkpoint
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, train

# Processes that are forked from one that has imported all, since the import takes seconds. The
# last is what optimizers of torch import at their first use.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "kpops.training", "kpops.tasks", "torch._dynamo"])

FOREVER = 10**9


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(nn.GRU(3, 6, num_layers=2, dropout=0.2), nn.Linear(6, 3))


def annealed(params, lr):
    optimizer = torch.optim.AdamW(params, lr)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7)


def learn(folder, max_steps, **options):
    model = make()
    settings = {"batch_size": 8, "optimizer": annealed, "checkpoint_every": 1, "rng": 1, **options}
    task = memory_pro(24, rng=0, steps=(3, 2, 3))
    return model, train(model, task, folder=folder, max_steps=max_steps, **settings)


def learn_forever(folder, **options):
    # The default lock of tqdm is a semaphore of the system, which the killed would leave behind.
    tqdm.set_lock(threading.RLock())
    learn(folder, FOREVER, **options)


def learn_until_killed(folder, begun):
    def announce(step, losses):
        if not begun.closed:
            begun.send(True)
            begun.close()
        return False

    learn_forever(folder, stop=announce)


def learn_until_writing(folder, at_step, moment):
    """Die at one moment of the writing of a checkpoint."""
    replace = os.replace

    def dying_replace(source, target):
        if f"{at_step:08d}" in str(target):
            if moment == "half written":
                os.truncate(source, os.path.getsize(source) // 2)
            if moment == "renamed":
                replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying_replace
    learn_forever(folder)


def assert_same(one, other):
    """Equal to the bit, whatever the nesting."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_ends_as_uninterrupted(folder, whole_folder):
    """Train a few steps further, and compare all that there is with a single training."""
    last = checkpoints(folder).steps[-1] + 3
    model, history = learn(folder, last)
    whole_model, whole_history = learn(whole_folder, last, checkpoint_every=FOREVER)
    assert history.identical(whole_history)
    assert_same(dict(model.state_dict()), dict(whole_model.state_dict()))
    assert_same(newest_checkpoint(folder), newest_checkpoint(whole_folder))
    assert checkpoints(folder).steps == tuple(range(last + 1))
    assert {path.suffix for path in folder.iterdir() if path.name != "finished"} == {".pt"}
    return last


@pytest.mark.parametrize("n_moments", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_training_killed_at_random_moments_ends_as_an_uninterrupted_one(tmp_path, n_moments):
    folder = tmp_path / "parts"
    rng = np.random.default_rng()
    for delay in rng.uniform(0, 0.2, size=n_moments):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=learn_until_killed, args=(folder, sender))
        process.start()
        sender.close()
        assert receiver.poll(60) and receiver.recv()
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        receiver.close()
    assert assert_ends_as_uninterrupted(folder, tmp_path / "whole") > 3


@pytest.mark.parametrize("moment", ["half written", "written", "renamed"])
def test_training_killed_while_writing_ends_as_an_uninterrupted_one(tmp_path, moment):
    folder = tmp_path / "parts"
    process = PROCESSES.Process(target=learn_until_writing, args=(folder, 4, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
    assert [name[:18] for name in left] == [".step_00000004.pt."] * (moment != "renamed")
    assert checkpoints(folder).steps[-1] == (4 if moment == "renamed" else 3)
    assert_ends_as_uninterrupted(folder, tmp_path / "whole")
