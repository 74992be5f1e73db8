"""Which trials count as correct."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.tasks import (
    accuracy,
    driscoll,
    flip_flop,
    four_task_mix,
    integration,
    memory_pro,
    memory_pro_one_hot,
)

STEPS = (2, 3, 4)
RESPONSE = slice(5, 9)


def turned(task, angle, size=1.0):
    """The targets, with responses turned by `angle` and scaled."""
    outputs = task.targets.astype(float).copy(deep=True)
    cos, sin = outputs[..., 1].values.copy(), outputs[..., 2].values.copy()
    outputs[..., 1] = size * (math.cos(angle) * cos - math.sin(angle) * sin)
    outputs[..., 2] = size * (math.sin(angle) * cos + math.cos(angle) * sin)
    return outputs


@pytest.fixture
def task():
    return memory_pro(6, angles="even", noise=0, steps=STEPS, dtype="float64")


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [0.01, 1, 30])
def test_responses_may_be_off_by_less_than_18_degrees(task, sign, size):
    within, beyond = math.radians(17.999), math.radians(18.001)
    assert accuracy(task, turned(task, sign * within, size)).accuracy == 1
    assert accuracy(task, turned(task, sign * beyond, size)).accuracy == 0


def test_the_mean_response_counts(task):
    outputs = task.targets.copy(deep=True)
    outputs[0, 5, 1:] *= -1  # one of four steps in the opposite direction
    outputs[1, 5:8, 1:] *= -1  # three of four
    outputs[2, 5:8, 0] = 1  # fixation released at the last step only
    outputs[3, 5, 0] = 1  # released one step late
    correct = accuracy(task, outputs)
    assert correct.correct.values.tolist() == [True, False, False, True, True, True]
    assert correct.accuracy == pytest.approx(4 / 6)


def test_fixation_must_be_kept_at_every_step(task):
    outputs = task.targets.copy(deep=True)
    outputs[0, 4, 0], outputs[1, 0, 0], outputs[2, :5, 0] = 0.49, -3, 0.51
    assert accuracy(task, outputs).correct.values.tolist() == [False, False, *[True] * 4]


def test_trials_without_a_response_are_correct_if_fixation_is_kept():
    task = driscoll(8, tasks="ReactMatch2Sample", angles="even", noise=0)
    nothing = task.targets * 0
    nothing[..., 0] = 1  # always fixates
    correct = accuracy(task, nothing).correct.values
    np.testing.assert_array_equal(correct, np.isnan(task.response))


def test_padding_does_not_count():
    task = driscoll(30, rng=0)
    outputs = task.targets.where(task.mask, 1e6)
    assert accuracy(task, outputs).accuracy == 1
    outputs = task.targets.where(task.mask, np.nan)
    assert accuracy(task, outputs).accuracy == 1


def test_accuracy_of_each_task_of_a_mix():
    task = four_task_mix(16, angles="even", noise=0)
    # a network that takes every task for a Pro task
    outputs = task.targets.copy(deep=True)
    anti = np.array(["anti" in name for name in task.task.values])
    outputs[anti, :, 1:] *= -1
    by_task = accuracy(task, outputs).correct.groupby("task").mean()
    assert by_task.sel(task=["memory_pro", "delay_pro"]).values.tolist() == [1, 1]
    assert by_task.sel(task=["memory_anti", "delay_anti"]).values.tolist() == [0, 0]


def test_channels_are_found_by_name(task):
    outputs = turned(task, 0.1)
    order = ["sin", "fixation", "cos"]
    assert accuracy(task.sel(output=order), outputs.sel(output=order)).accuracy == 1
    wrong = task.assign_coords(output=["a", "b", "c"])
    with pytest.raises(ValueError, match="needs 'fixation', 'cos' and 'sin'"):
        accuracy(wrong, outputs)


def test_choice_is_the_largest_mean_output():
    task = memory_pro_one_hot(4, n_stimuli=3, stimuli="even", noise=0, steps=STEPS)
    outputs = task.targets.copy(deep=True)
    outputs[0, RESPONSE, 2] = 0.99  # the second largest
    outputs[1, RESPONSE, 1] = 1.01  # larger than the right one
    outputs[2, 1, 2] = 4.5  # in one step of five: a mean of 0.9
    outputs[3, 1, 2] = 5.5
    assert accuracy(task, outputs).correct.values.tolist() == [True, False, True, False]


def test_flip_flop_must_be_within_a_half_between_pulses():
    task = flip_flop(200, noise=0, rng=0, dtype="float64")
    assert accuracy(task, task.targets + 0.499).accuracy == 1
    assert accuracy(task, task.targets - 0.501).accuracy == 0
    # a network that is a step late is wrong about every bit that was set
    late = task.targets.shift(time=1, fill_value=0)
    rng = np.random.default_rng(0)
    outputs = task.targets + rng.uniform(-0.9, 0.9, task.targets.shape)
    for made in (late, outputs):
        reference = [_flip_flop_trial(task.targets.values[i], made.values[i]) for i in range(200)]
        np.testing.assert_array_equal(accuracy(task, made).correct, reference)


def _flip_flop_trial(targets, outputs):
    """Right if the mean over each run of equal targets is within a half, by a loop."""
    start = 0
    for t in range(1, len(targets) + 1):
        if t == len(targets) or (targets[t] != targets[start]).any():
            if (abs(outputs[start:t].mean(axis=0) - targets[start]) >= 0.5).any():
                return False
            start = t
    return True


def test_relative_error_is_that_of_the_root_mean_square():
    task = integration(50, rng=0, noise=0, dtype="float64")
    scale = math.sqrt(float((task.targets**2).mean()))
    assert accuracy(task, task.targets + 0.1999 * scale).accuracy == 1
    assert accuracy(task, task.targets - 0.2001 * scale).accuracy == 0
    outputs = task.targets.copy(deep=True)
    outputs[3] += 2 * scale
    assert accuracy(task, outputs).correct.values.tolist().index(False) == 3


def test_tensors_arrays_and_dataarrays_in_any_order_agree(task):
    outputs = turned(task, 0.2)
    expected = accuracy(task, outputs)
    tensor = torch.tensor(outputs.values, dtype=torch.float32, requires_grad=True)
    for same in (tensor, outputs.values, outputs.transpose("time", "output", "trial")):
        xr.testing.assert_identical(accuracy(task, same), expected)


def test_outputs_of_a_network_are_taken_as_they_are():
    task = memory_pro(5, rng=0, steps=STEPS)
    network = kpops.models.Network(torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 3))
    result = accuracy(task, network(torch.from_numpy(task.inputs.values)))
    assert result.accuracy == 0 and result.correct.dtype == bool


def test_result_is_labelled_and_can_be_stored(tmp_path, task):
    result = accuracy(task, task.targets)
    np.testing.assert_array_equal(result.angle, task.angle)
    assert json.loads(result.attrs["configuration"]) == {
        "criterion": "angle",
        "tolerance": math.pi / 10,
    }
    for variable in result.variables.values():
        assert variable.attrs["long_name"] and variable.attrs["units"]
    result.to_netcdf(tmp_path / "accuracy.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "accuracy.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(result, back.load())


def test_a_task_of_your_own_can_have_another_tolerance(task):
    wide = task.assign_attrs(tolerance=math.pi / 5)
    outputs = turned(task, 0.6)
    assert accuracy(task, outputs).accuracy == 0 and accuracy(wide, outputs).accuracy == 1


def test_wrong_use_raises_and_names_the_value(task):
    with pytest.raises(ValueError, match=r"outputs has shape \(6, 9, 2\), expected"):
        accuracy(task, task.targets[..., :2])
    lost = task.targets.copy(deep=True)
    lost[2, 3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite at trial 2, time 3"):
        accuracy(task, lost)
    with pytest.raises(ValueError, match="'criterion'\\] is 'best': set it to one of angle"):
        accuracy(task.assign_attrs(criterion="best"), task.targets)
