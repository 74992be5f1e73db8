"""Anti and Delay variants of Memory-Pro, the four-task mix, and mixing in general."""

import json

import numpy as np
import pytest
import xarray as xr

from kpops.tasks import (
    delay_anti,
    delay_pro,
    flip_flop,
    four_task_mix,
    memory_anti,
    memory_pro,
    mix,
)

CIRCLE = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # cosine and sine of 0, 90, 180 and 270 degrees


def reference(cos, sin, name, lengths):
    """Inputs and targets of a trial, step by step."""
    sign = -1 if name.endswith("anti") else 1
    inputs, targets = [], []
    for epoch, length in zip(("stimulus", "memory", "response"), lengths, strict=True):
        shown = epoch == "stimulus" or name.startswith("delay")
        fixation = 0 if epoch == "response" else 1
        for _ in range(length):
            inputs.append([fixation, cos, sin] if shown else [fixation, 0, 0])
            targets.append([0, sign * cos, sign * sin] if fixation == 0 else [1, 0, 0])
    return np.array(inputs, dtype=float), np.array(targets, dtype=float)


@pytest.mark.parametrize("task", [memory_pro, memory_anti, delay_pro, delay_anti])
def test_even_trials_are_those_of_the_table(task):
    made = task(4, angles="even", noise=0, steps=(2, 3, 4), dtype="float64")
    for trial, direction in enumerate(CIRCLE):
        inputs, targets = reference(*direction, task.__name__, (2, 3, 4))
        np.testing.assert_allclose(made.inputs[trial], inputs, rtol=0, atol=1e-15)
        np.testing.assert_allclose(made.targets[trial], targets, rtol=0, atol=1e-15)
    assert made.task.values.tolist() == [task.__name__] * 4


@pytest.mark.parametrize("task", [memory_anti, delay_pro, delay_anti])
def test_variants_have_the_trials_of_memory_pro(task):
    made, pro = task(5, rng=2, dtype="float64"), memory_pro(5, rng=2, dtype="float64")
    np.testing.assert_array_equal(made.angle, pro.angle)
    first = made.inputs.isel(time=made.epoch == "stimulus")
    np.testing.assert_array_equal(first, pro.inputs.isel(time=pro.epoch == "stimulus"))
    assert json.loads(made.attrs["configuration"])["task"] == task.__name__


def test_random_numbers_of_memory_pro_are_angles_then_noise():
    # Trained checkpoints depend on these very numbers.
    task = memory_pro(6, rng=11, dtype="float64")
    generator = np.random.default_rng(11)
    angle = generator.uniform(0, 2 * np.pi, 6)
    np.testing.assert_array_equal(task.angle, angle)
    noise = generator.standard_normal((6, 90, 3))
    clean = memory_pro(6, angles=angle, noise=0, dtype="float64")
    np.testing.assert_array_equal(task.inputs, clean.inputs + 0.1 * np.sqrt(2) * noise)


def test_four_tasks_are_balanced_and_begin_with_a_context():
    task = four_task_mix(16, angles="even", noise=0, steps=(2, 3, 4, 5), dtype="float64")
    assert task.inputs.shape == (16, 14, 7) and task.targets.shape == (16, 14, 3)
    assert task.epoch.dims == ("time",)
    assert task.epoch.values.tolist() == (
        ["context"] * 2 + ["stimulus"] * 3 + ["memory"] * 4 + ["response"] * 5
    )
    order = ["memory_pro", "memory_anti", "delay_pro", "delay_anti"]
    for number, name in enumerate(order):
        rule = np.eye(4)[number]
        for trial, direction in enumerate(CIRCLE):
            inputs, targets = reference(*direction, name, (3, 4, 5))
            here = task.isel(trial=4 * number + trial)
            assert here.task == name and here.angle == pytest.approx(trial * np.pi / 2)
            context = [[1, 0, 0, *rule]] * 2
            wanted = np.vstack([context, np.hstack([inputs, np.zeros((12, 4))])])
            np.testing.assert_allclose(here.inputs, wanted, rtol=0, atol=1e-15)
            wanted = np.vstack([[[1, 0, 0]] * 2, targets])
            np.testing.assert_allclose(here.targets, wanted, rtol=0, atol=1e-15)


def test_four_tasks_last_30_steps_an_epoch():
    task = four_task_mix(4)
    assert task.sizes == {"trial": 4, "time": 120, "input": 7, "output": 3}
    for epoch, first in [("context", 1), ("stimulus", 31), ("memory", 61), ("response", 91)]:
        assert task.time[task.epoch == epoch].values.tolist() == list(range(first, first + 30))


def test_four_tasks_have_the_same_even_or_given_angles():
    even = four_task_mix(20, angles="even").angle.values.reshape(4, 5)
    np.testing.assert_allclose(even, np.tile(2 * np.pi * np.arange(5) / 5, (4, 1)), rtol=1e-15)
    given = four_task_mix(8, angles=[0.1, 0.2]).angle.values
    np.testing.assert_array_equal(given, [0.1, 0.2] * 4)


def test_random_angles_of_four_tasks_differ():
    angle = four_task_mix(40, rng=0).angle.values
    assert len(set(angle)) == 40


def test_rule_without_a_context_stays_on_and_shorter_trials_are_padded():
    short = memory_pro(2, noise=0, steps=(1, 1, 1), rng=0)
    long = delay_pro(1, noise=0, steps=(2, 2, 2), rng=1)
    both = mix([short, long])
    assert both.inputs.shape == (3, 6, 5)
    assert both.input.values.tolist()[3:] == ["rule memory_pro", "rule delay_pro"]
    np.testing.assert_array_equal(both.mask.sum("time"), [3, 3, 6])
    rule = both.inputs.isel(input=slice(3, None)).values
    np.testing.assert_array_equal(rule[0], [[1, 0]] * 3 + [[0, 0]] * 3)
    np.testing.assert_array_equal(rule[2], [[0, 1]] * 6)
    np.testing.assert_array_equal(both.inputs[:2, :3, :3], short.inputs)
    np.testing.assert_array_equal(both.targets[2], long.targets[0])
    assert both.epoch.dims == ("trial", "time")
    assert both.epoch.values[0].tolist() == ["stimulus", "memory", "response"] + ["padding"] * 3


def test_rules_may_name_more_tasks_than_there_are_and_set_the_order():
    rules = ["delay_anti", "memory_pro"]
    mixed = mix([memory_pro(2, noise=0)], context=3, rules=rules)
    assert mixed.input.values.tolist()[3:] == ["rule delay_anti", "rule memory_pro"]
    rule = mixed.inputs.isel(input=slice(3, None)).values
    np.testing.assert_array_equal(rule[:, :3], np.broadcast_to([0, 1], (2, 3, 2)))
    assert not rule[:, 3:].any()


def test_mixing_changes_no_task_and_can_be_repeated():
    parts = [memory_pro(2, rng=0), delay_pro(2, rng=1)]
    before = [part.copy(deep=True) for part in parts]
    mixed = mix(parts, context=4, noise=0.3, rng=5)
    for part, old in zip(parts, before, strict=True):
        xr.testing.assert_identical(part, old)
    xr.testing.assert_identical(mixed, mix(parts, context=4, noise=0.3, rng=5))


def test_noise_of_the_mix_is_on_the_context_and_the_rules_alone():
    parts = [memory_pro(200, noise=0, rng=0), delay_pro(200, noise=0, rng=1)]
    noisy, clean = mix(parts, context=20, noise=0.3, rng=2), mix(parts, context=20)
    added = (noisy.inputs - clean.inputs).values.astype(float)
    assert not added[:, 20:, :3].any()
    for part in (added[:, :20, :3], added[:, :, 3:]):
        assert abs(part.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * part.size)
        assert abs(part.mean()) < 5 * 0.3 / np.sqrt(part.size)


def test_conditions_of_some_tasks_are_blank_in_others():
    shape = {"coords": {"cue": ("trial", np.array(["left", "right"], dtype=object))}}
    parts = [memory_pro(2, rng=0).assign_coords(**shape["coords"]), delay_pro(1, rng=0)]
    parts[1] = parts[1].drop_vars("angle")
    mixed = mix(parts)
    assert mixed.cue.values.tolist() == ["left", "right", ""]
    np.testing.assert_array_equal(mixed.angle, [*parts[0].angle.values, np.nan])


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "one Dataset or more"),
        (memory_pro(1), {}, "in a list"),
        ([memory_pro(1), flip_flop(1)], {}, r"tasks\[1\] has the inputs \['bit 1'"),
        ([memory_pro(1), delay_pro(1, dtype="float64")], {}, "has the dtype float64"),
        ([memory_pro(1).drop_attrs()], {}, r"tasks\[0\] has no attrs\['criterion'\]"),
        ([memory_pro(1)], {"rules": ["delay_pro"]}, "memory_pro"),
        ([memory_pro(1)], {"rules": ["memory_pro"] * 2}, "name every task once"),
        ([memory_pro(1)], {"context": -1}, "context=-1"),
        ([memory_pro(1)], {"noise": np.inf}, "noise=inf"),
    ],
)
def test_wrong_mixes_raise(tasks, options, message):
    with pytest.raises(ValueError, match=message):
        mix(tasks, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_trials": 6}, "n_trials=6: pass a multiple of 4"),
        ({"steps": (30, 30, 30)}, r"steps=\(30, 30, 30\): pass 4 positive ints"),
        ({"angles": [0.0] * 8}, r"shape \(8,\), expected \(n_trials,\) = \(2,\)"),
    ],
)
def test_wrong_four_task_mixes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        four_task_mix(**{"n_trials": 8, **arguments})
