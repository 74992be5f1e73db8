"""Tasks by name, and what users add."""

import numpy as np
import pytest
import xarray as xr

from kpops.tasks import (
    accuracy,
    flip_flop,
    integration,
    make,
    memory_pro,
    names,
    register,
    registry,
)


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))


def halves(n_trials, *, length=4, rng=None):
    """A user's task: copy the input."""
    drive = np.random.default_rng(rng).standard_normal((n_trials, length, 1))
    return xr.Dataset(
        {
            "inputs": (("trial", "time", "input"), drive),
            "targets": (("trial", "time", "output"), drive),
            "mask": (("trial", "time"), np.ones((n_trials, length), dtype=bool)),
        },
        attrs={"criterion": "relative error", "tolerance": 0.1},
    )


def test_make_passes_its_options_to_the_task():
    made = make("flip_flop", 3, bits=2, steps=7, rng=1)
    xr.testing.assert_identical(made, flip_flop(3, bits=2, steps=7, rng=1))
    assert make("line_attractor", 2, rng=0).identical(integration(2, rng=0))


def test_users_tasks_are_made_by_name_and_by_alias():
    register("copy", halves, aliases=["echo"])
    assert names()[-1] == "copy" and "echo" not in names()
    for name in ("copy", "echo"):
        xr.testing.assert_identical(make(name, 3, rng=0, length=5), halves(3, rng=0, length=5))
    task = make("echo", 3, rng=0)
    assert accuracy(task, task.targets * 1.05).accuracy == 1
    assert accuracy(task, task.targets * 1.5).accuracy == 0


def test_a_users_task_may_be_replaced():
    register("copy", halves, aliases=["echo"])
    register("copy", lambda n_trials: halves(n_trials, length=9, rng=0), aliases=["echo"])
    assert make("echo", 1).sizes["time"] == 9


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("memory-pro", "memory_pro"),
        ("MemoryPros", "MemoryPro"),
        ("flipflop", "flip_flop"),
        ("delaygos", "delaygo"),
    ],
)
def test_unknown_names_raise_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"'{name}': did you mean .*{near}"):
        make(name, 2)


def test_a_name_like_no_other_points_to_the_list():
    with pytest.raises(ValueError, match=r"kpops.tasks.names\(\) lists all"):
        make("zzz", 2)


@pytest.mark.parametrize(
    ("name", "aliases", "taken"),
    [
        ("memory_pro", [], "memory_pro"),
        ("dms", [], "ReactMatch2Sample"),
        ("mine", ["flip_flop"], "flip_flop"),
        ("mine", ["go"], "DelayPro"),
    ],
)
def test_names_of_other_tasks_are_not_to_be_had(name, aliases, taken):
    before = names()
    with pytest.raises(ValueError, match=f"belongs to the task '{taken}'"):
        register(name, halves, aliases)
    assert names() == before
    assert make("memory_pro", 2, rng=0).identical(memory_pro(2, rng=0))


def test_names_of_another_users_task_are_not_to_be_had_either():
    register("copy", halves, aliases=["echo"])
    with pytest.raises(ValueError, match="'echo' belongs to the task 'copy'"):
        register("other", halves, aliases=["echo"])


def test_what_is_no_task_is_refused():
    with pytest.raises(TypeError, match="function is a Dataset"):
        register("mine", memory_pro(2))
    with pytest.raises(TypeError, match="aliases='echo'"):
        register("mine", halves, aliases="echo")
