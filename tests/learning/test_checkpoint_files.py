"""Files of checkpoints: damage is seen, interrupts leave no halves, one training at a time."""

import itertools
import multiprocessing
import os
import secrets
import signal
import sys
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kpops.learning.checkpoints import FINISHED, LOCK, newest_checkpoint, write_checkpoint
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, train

TASK = memory_pro(24, rng=0, steps=(3, 2, 3))
SETTINGS = {"max_steps": 4, "batch_size": 8, "checkpoint_every": 2, "rng": 1}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "kpops.training", "kpops.tasks", "torch._dynamo"])


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(nn.GRU(3, 6), nn.Linear(6, 3))


def learn(folder, stop=None, **options):
    model = make()
    return model, train(model, TASK, folder=folder, stop=stop, **{**SETTINGS, **options})


def same(one, other):
    """Whether contents of files are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Damage


@pytest.mark.parametrize("whose", ["ours", "anybody's"])
def test_of_200_corruptions_none_gives_other_weights(tmp_path, whose):
    if whose == "ours":
        learn(tmp_path)
        path = tmp_path / "step_00000004.pt"
    else:
        path = tmp_path / "step_00000004.pt"
        torch.save(make().state_dict(), path)
    whole, data = checkpoints(tmp_path)[-1][1], path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "same": 0, "other": 0}
    for number in range(200):
        damaged = bytearray(data)
        place = int(rng.integers(len(data)))
        if number % 2:
            damaged[place] ^= 1 << int(rng.integers(8))
        else:
            damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
        path.write_bytes(damaged)
        try:
            state = checkpoints(tmp_path)[-1][1]
        except OSError:
            outcomes["refused"] += 1
        else:
            outcomes["same" if same(state, whole) else "other"] += 1
    assert outcomes["other"] == 0
    assert outcomes["refused"] > 50


def test_one_changed_weight_is_told_by_its_checksum_and_passed_over_by_training(tmp_path):
    whole, _ = learn(tmp_path)
    path = tmp_path / "step_00000004.pt"
    data, weights = path.read_bytes(), state_of(whole)["readout.weight"].numpy().tobytes()
    place = data.index(weights)
    path.write_bytes(data[: place + 3] + bytes([data[place + 3] ^ 1]) + data[place + 4 :])
    with pytest.raises(OSError, match=r"damaged \(delete it\).* the checksum of its record"):
        checkpoints(tmp_path)[-1]
    with pytest.warns(UserWarning, match=r"checksum .*; trying the one before"):
        again, _ = learn(tmp_path)
    assert same(state_of(again), state_of(whole))


def test_files_without_checksums_are_read_as_they_are(tmp_path):
    state = make().state_dict()
    torch.save(state, tmp_path / "step_1.pt", _use_new_zipfile_serialization=False)
    asked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save(state, tmp_path / "step_2.pt")
    torch.serialization.set_crc32_options(asked)
    assert all(same(dict(read), dict(state)) for _, read in checkpoints(tmp_path))


# Interrupts


@pytest.mark.parametrize("moment", ["pickled", "open", "written", "renamed"])
def test_ctrl_c_inside_a_save_is_a_keyboard_interrupt_and_leaves_no_half(
    tmp_path, monkeypatch, moment
):
    whole, expected = learn(tmp_path / "whole")
    owner, at = {
        "pickled": (torch, "save"),
        "open": (secrets, "token_hex"),
        "written": (os, "fsync"),
        "renamed": (os, "replace"),
    }[moment]
    original = getattr(owner, at)

    def interrupted(*arguments):
        if checkpoints(tmp_path / "parts").steps == (0, 2):  # in the next save
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    learn(tmp_path / "parts", max_steps=2)
    monkeypatch.setattr(owner, at, interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts")
    monkeypatch.undo()
    left = {p.name for p in (tmp_path / "parts").iterdir()} - {FINISHED}
    assert left == {"step_00000000.pt", "step_00000002.pt"}
    resumed, history = learn(tmp_path / "parts")
    xr.testing.assert_identical(history, expected)
    assert same(state_of(resumed), state_of(whole))


def press_at_line(number):
    """Trace function that presses Ctrl-C at the line of `write_checkpoint` that is run as such."""
    lines = iter(range(number))

    def within(frame, event, argument):
        if event == "line" and next(lines, None) is None:
            raise KeyboardInterrupt
        return within

    return lambda frame, *_: within if frame.f_code is write_checkpoint.__code__ else None


# Where the interrupt comes before the file is closed, the garbage collector closes it.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_every_line_of_a_save_leaves_the_old_or_the_new_file(tmp_path):
    path, tracing = tmp_path / "step_00000001.pt", sys.gettrace()
    write_checkpoint(path, {"weight": torch.tensor([0.0])})
    left = []
    for number in itertools.count():
        held = checkpoints(tmp_path)[0][1]["weight"].item()
        sys.settrace(press_at_line(number))
        try:
            write_checkpoint(path, {"weight": torch.tensor([number + 1.0])})
            break
        except KeyboardInterrupt:
            left.append(checkpoints(tmp_path)[0][1]["weight"].item() - held)
        finally:
            sys.settrace(tracing)
        assert list(tmp_path.iterdir()) == [path]
    assert len(left) > 8
    assert left[:6] == [0.0] * 6  # nothing is there before the file has its name


def test_what_is_refused_leaves_the_model_as_it_was(tmp_path):
    learn(tmp_path)
    model = make(seed=5)
    before = state_of(model)
    handle = model.register_forward_hook(lambda module, inputs, outputs: outputs + 1)
    with pytest.raises(ValueError, match="another model: at step 4"):
        train(model, TASK, folder=tmp_path, **SETTINGS)
    handle.remove()
    assert same(state_of(model), before)


# Several trainings


def hold(folder, begun, go_on, **options):
    """Train until told to go on."""

    def stop(step, losses):
        begun.set()
        return go_on.wait(60)

    learn(folder, stop=stop, **options)


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    begun, go_on = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path, begun, go_on))
    process.start()
    assert begun.wait(60)
    model = make(seed=5)
    before = state_of(model)
    told = f"is being trained in by process {process.pid} on .*: wait for it, or pass another"
    with pytest.raises(RuntimeError, match=told):
        train(model, TASK, folder=tmp_path, **SETTINGS)
    assert same(state_of(model), before)
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000000.pt", FINISHED}


def test_a_killed_training_blocks_nobody(tmp_path):
    begun, go_on = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path, begun, go_on))
    process.start()
    assert begun.wait(60)
    process.kill()
    process.join()
    assert (tmp_path / LOCK).exists()
    learn(tmp_path)
    assert checkpoints(tmp_path).steps == (0, 2, 4)
    assert all(path.suffix == ".pt" or path.name == FINISHED for path in tmp_path.iterdir())


def test_threads_on_one_folder_train_once_or_are_refused(tmp_path):
    outcomes, start = [], threading.Barrier(4)

    def run():
        start.wait()
        try:
            write_checkpoint(tmp_path / "step_00000009.pt", {"step": 9, "w": torch.ones(1000)})
            outcomes.append("written")
        except OSError as error:
            outcomes.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["written"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000009.pt"]


def test_a_finished_training_is_read_while_another_process_trains_there(tmp_path):
    model, history = learn(tmp_path)
    begun, go_on = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path, begun, go_on), kwargs={"max_steps": 9})
    process.start()
    assert begun.wait(60)
    again, read = learn(tmp_path)
    go_on.set()
    process.join(60)
    xr.testing.assert_identical(read, history)
    assert same(state_of(again), state_of(model))


def test_a_finished_training_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    _, history = learn(tmp_path)
    monkeypatch.setattr(
        "kpops.learning.checkpoints._take", lambda path: os.open("/nowhere", os.O_RDWR)
    )
    _, read = learn(tmp_path)
    xr.testing.assert_identical(read, history)
    with pytest.raises(
        RuntimeError, match=r"cannot be written to or locked: .*No such file.*another folder"
    ):
        learn(tmp_path, max_steps=9)


def test_newest_checkpoint_is_that_of_the_last_step(tmp_path):
    learn(tmp_path)
    assert newest_checkpoint(tmp_path)["step"] == 4
