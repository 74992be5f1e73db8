"""Follow a folder that a training is still filling."""

import functools
import os
import signal
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.learning import watching
from kpops.training import Checkpoints, Watch, checkpoints, train

TASK = kpops.tasks.memory_pro(6, angles="even", noise=0, steps=(2, 2, 2))
SOON = functools.partial(Watch, pause=0.001)


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))


def learn(folder, max_steps=6, **settings):
    every = {"batch_size": 3, "checkpoint_every": 2, "rng": 0, **settings}
    return train(make(), TASK, folder=folder, max_steps=max_steps, **every)


def norm(lin):
    return {"norm": float(np.linalg.norm(lin.states))}


@pytest.fixture
def follow(tmp_path):
    def run(measure=norm, folder=None, store="followed.zarr", **settings):
        folder = tmp_path / "run" if folder is None else folder
        store = store and tmp_path / store
        return kpops.over_training(make(), folder, TASK.inputs, measure, store=store, **settings)

    (tmp_path / "run").mkdir()
    return run


@pytest.fixture
def looks(monkeypatch):
    """Do something at each look at the folder that finds nothing new: a list of functions."""
    waiting = []

    def sleep(seconds):
        assert waiting, "it looks again after the last event"
        waiting.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    return waiting


def test_a_training_beside_it_is_followed_to_its_end(tmp_path, follow):
    measured_first = threading.Event()

    def stop(step, losses):  # the training waits for the analysis of its first checkpoint
        return step == 1 and not measured_first.wait(60)

    def measure(lin):
        measured_first.set()
        return norm(lin)

    training = threading.Thread(target=learn, args=[tmp_path / "run"], kwargs={"stop": stop})
    training.start()
    try:
        result = follow(measure, watch=SOON())
    finally:
        training.join()
    assert result.step.values.tolist() == [0, 2, 4, 6]
    xr.testing.assert_identical(result, follow(store=None))


def test_the_marker_of_train_is_there_only_when_it_has_ended(tmp_path):
    marker, seen = tmp_path / "finished", []

    def stop(step, losses):
        seen.append(marker.exists())
        return False

    for number, max_steps in enumerate((2, 2, 4)):
        seen.clear()
        learn(tmp_path, max_steps, stop=stop)
        assert marker.exists()
        # A training that goes on finds the marker, and removes it before its next update.
        assert seen == [[False] * 2, [], [True, False]][number]
    with pytest.raises(KeyboardInterrupt):
        learn(
            tmp_path, 6, stop=lambda step, losses: step == 5 and signal.raise_signal(signal.SIGINT)
        )
    assert not marker.exists()


def test_checkpoints_are_measured_as_they_appear_until_the_marker(tmp_path, follow, looks):
    learn(tmp_path / "all")
    paths = sorted((tmp_path / "all").glob("*.pt"))

    def publish(path):
        return lambda: os.link(path, tmp_path / "run" / path.name)

    def finish():
        publish(paths[3])()
        (tmp_path / "run" / "DONE").touch()

    looks += [publish(paths[0]), lambda: None, publish(paths[2]), publish(paths[1]), finish]
    result = follow(watch=Watch("DONE"))
    assert not looks
    xr.testing.assert_identical(result, follow(folder=tmp_path / "all", store=None))


@pytest.mark.parametrize("in_order", [False, True])
def test_a_half_written_file_waits_until_it_is_whole(tmp_path, follow, looks, in_order):
    learn(tmp_path / "all")
    order = []

    def measure(lin):
        order.append(float(np.linalg.norm(lin.states)))
        return {"norm": order[-1]}

    def measure_in_order(lin, previous):
        return measure(lin)

    for path in sorted((tmp_path / "all").glob("*.pt")):
        data = path.read_bytes()
        half = len(data) // 2 if "2.pt" in path.name else len(data)
        (tmp_path / "run" / path.name).write_bytes(data[:half])
        if half < len(data):
            rest, unfinished = data[half:], tmp_path / "run" / path.name

    def go_on(content):
        with open(unfinished, "ab") as file:
            file.write(content)

    def finish():
        go_on(rest[100:])
        (tmp_path / "run" / "finished").touch()

    looks += [lambda: go_on(rest[:100]), finish]
    result = follow(measure_in_order if in_order else measure, watch=True)
    positions = [0, 1, 2, 3] if in_order else [0, 2, 3, 1]
    assert order == result.norm.values[positions].tolist()


def test_a_damaged_file_is_named_at_the_end_and_keeps_the_others(tmp_path, follow):
    learn(tmp_path / "run")
    (tmp_path / "run" / "step_00000002.pt").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(kpops.MeasureError, match=r"at step 2: .*00000002.pt' cannot be rea") as e:
        follow(watch=True)
    assert e.value.finished.step.values.tolist() == [0, 4, 6]


def test_no_checkpoint_is_lost_between_the_look_at_the_folder_and_at_the_marker(
    tmp_path, follow, monkeypatch
):
    learn(tmp_path / "all")
    paths, again = sorted((tmp_path / "all").glob("*.pt")), Checkpoints.again

    def published(self):
        seen = again(self)
        for path in paths:
            os.link(path, tmp_path / "run" / path.name)
        paths.clear()
        (tmp_path / "run" / "finished").touch()
        return seen

    monkeypatch.setattr(Checkpoints, "again", published)
    assert follow(watch=SOON()).step.values.tolist() == [0, 2, 4, 6]


def test_the_time_limit_ends_it_too_and_later_it_goes_on(tmp_path, follow):
    learn(tmp_path / "run", 2)
    (tmp_path / "run" / "finished").unlink()
    assert follow(watch=Watch(seconds=0)).step.values.tolist() == [0, 2]
    learn(tmp_path / "run", 4)
    assert follow(watch=True).step.values.tolist() == [0, 2, 4]


def test_ctrl_c_while_it_waits_returns_what_is_finished(tmp_path, follow, looks):
    learn(tmp_path / "run", 2)
    (tmp_path / "run" / "finished").unlink()
    looks.append(lambda: signal.raise_signal(signal.SIGINT))
    result = follow(watch=True, on_interrupt="return")
    assert result.step.values.tolist() == [0, 2]


def test_files_of_another_program_are_followed_by_their_pattern(tmp_path, follow, looks):
    states = {step: {f"net.{k}": v for k, v in make().state_dict().items()} for step in (3, 7)}

    def save(step):
        torch.save({"state_dict": states[step]}, tmp_path / "run" / f"epoch=0-step={step}.ckpt")
        (tmp_path / "run" / "last.txt").write_text(str(step))

    save(3)
    looks += [lambda: save(7), (tmp_path / "run" / "END").touch]
    saved = checkpoints(tmp_path / "run", "*.ckpt", step=r"step=(\d+)", prefix="net.")
    assert saved.steps == (3,)
    assert follow(folder=saved, watch=Watch("END")).step.values.tolist() == [3, 7]
    with pytest.raises(TypeError, match="watch follows a folder, and checkpoints is a Checkpoints"):
        follow(folder=saved[:1], watch=True)


def test_nothing_at_all_is_told(tmp_path, follow):
    with pytest.raises(ValueError, match="no checkpoint"):
        follow(watch=Watch(seconds=0))
    with pytest.raises(FileNotFoundError, match=r"folder '.*nowhere' does not exist: make it, or"):
        follow(folder=tmp_path / "nowhere", watch=True)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"marker": 3}, TypeError, "marker is the number 3: pass the name of a file"),
        ({"seconds": -1}, ValueError, "seconds=-1: pass a time of 0 or more"),
        ({"pause": np.nan}, ValueError, "pause=nan: pass a time"),
        ({"seconds": "1 h"}, TypeError, "seconds is the string '1 h': pass a real number"),
    ],
)
def test_wrong_use_is_refused(settings, error, told):
    with pytest.raises(error, match=told):
        Watch(**settings)
