"""Memory-Pro: inputs, targets and labels."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from kpops.tasks import memory_pro


def test_noise_free_even_trials_are_exact():
    task = memory_pro(4, angles="even", noise=0, steps=(2, 3, 1), dtype="float64")
    # angles 0, 90, 180, 270 degrees
    for trial, (cos, sin) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        inputs = [[1, cos, sin]] * 2 + [[1, 0, 0]] * 3 + [[0, 0, 0]]
        targets = [[1, 0, 0]] * 5 + [[0, cos, sin]]
        np.testing.assert_allclose(task.inputs[trial], inputs, rtol=0, atol=1e-15)
        np.testing.assert_allclose(task.targets[trial], targets, rtol=0, atol=1e-15)


def test_even_angles_divide_the_circle():
    angle = memory_pro(20, angles="even").angle.values
    np.testing.assert_allclose(angle, np.arange(20) * 2 * np.pi / 20, rtol=1e-15)


def test_epochs_are_30_steps_each_and_time_starts_at_1():
    task = memory_pro(2)
    assert dict(task.sizes) == {"trial": 2, "time": 90, "input": 3, "output": 3}
    assert task.time.values.tolist() == list(range(1, 91))
    assert task.trial.values.tolist() == [0, 1]
    for epoch, first in [("stimulus", 1), ("memory", 31), ("response", 61)]:
        steps = task.time[task.epoch == epoch].values
        assert steps.tolist() == list(range(first, first + 30))


def test_channels_and_trials_are_named():
    task = memory_pro(2)
    assert task.input.values.tolist() == ["fixation", "cos", "sin"]
    assert task.output.values.tolist() == ["fixation", "cos", "sin"]
    assert task.task.values.tolist() == ["memory_pro", "memory_pro"]
    assert task.mask.dtype == bool and bool(task.mask.all())


def test_response_target_is_the_cosine_and_sine_of_the_angle():
    task = memory_pro(50, rng=0, dtype="float64")
    response = task.targets.isel(time=task.epoch == "response")
    assert float(abs(response.sel(output="cos") - np.cos(task.angle)).max()) == 0
    assert float(abs(response.sel(output="sin") - np.sin(task.angle)).max()) == 0


def test_fixation_target_is_the_noise_free_fixation_input():
    task, clean = memory_pro(5, rng=0), memory_pro(5, rng=0, noise=0)
    fixation = task.targets.sel(output="fixation").values
    np.testing.assert_array_equal(fixation, clean.inputs.sel(input="fixation").values)
    assert abs(task.inputs.sel(input="fixation").values - fixation).max() > 0.1


def test_same_seed_gives_the_same_data_and_another_seed_does_not():
    first = memory_pro(6, rng=3)
    xr.testing.assert_identical(first, memory_pro(6, rng=3))
    again = memory_pro(6, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, memory_pro(6, rng=4).inputs)


def test_angles_do_not_depend_on_the_noise():
    np.testing.assert_array_equal(
        memory_pro(6, rng=3).angle, memory_pro(6, rng=3, noise=0, steps=(1, 1, 1)).angle
    )


def test_noise_has_the_standard_deviation_of_the_papers_on_every_channel():
    task, clean = memory_pro(500, rng=0), memory_pro(500, rng=0, noise=0)
    noise = (task.inputs - clean.inputs).astype("float64")
    n = noise[..., 0].size
    sigma = 0.1 * np.sqrt(2)
    # five standard errors of a mean and of a standard deviation
    assert float(abs(noise.mean(("trial", "time"))).max()) < 5 * sigma / np.sqrt(n)
    assert float(abs(noise.std(("trial", "time")) - sigma).max()) < 5 * sigma / np.sqrt(2 * n)


def test_random_angles_are_uniform_on_the_circle():
    angle = memory_pro(4000, rng=0, noise=0, steps=(1, 1, 1)).angle.values
    assert angle.min() >= 0 and angle.max() < 2 * np.pi
    for harmonic in (1, 2):  # the mean resultant of uniform angles is O(1 / sqrt(n))
        assert abs(np.exp(1j * harmonic * angle).mean()) < 4 / np.sqrt(4000)


def test_given_angles_are_kept():
    given = [0.5, -1.0, 7.0]
    task = memory_pro(3, angles=given, rng=0)
    assert task.angle.values.tolist() == given
    assert json.loads(task.attrs["configuration"])["angles"] == "given"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept_and_float32_is_the_rounded_float64(dtype):
    task = memory_pro(3, rng=0, dtype=dtype)
    assert task.inputs.dtype == task.targets.dtype == dtype
    exact = memory_pro(3, rng=0, dtype="float64")
    np.testing.assert_array_equal(task.inputs, exact.inputs.astype(dtype))


def test_netcdf_round_trip_is_identical(tmp_path):
    task = memory_pro(3, rng=np.random.default_rng(0))
    task.to_netcdf(tmp_path / "task.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "task.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(task, back.load())
        assert back.mask.dtype == bool


def test_zarr_round_trip_is_identical(tmp_path):
    task = memory_pro(3, rng=np.int64(0))
    task.to_zarr(tmp_path / "task.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "task.zarr", engine="zarr", consolidated=False) as back:
        xr.testing.assert_identical(task, back.load())
        assert back.mask.dtype == bool


def test_configuration_makes_the_same_data_again():
    task = memory_pro(3, rng=5, noise=0.2, steps=(2, 2, 2))
    configuration = json.loads(task.attrs["configuration"])
    assert configuration.pop("task") == "memory_pro"
    xr.testing.assert_identical(task, memory_pro(**configuration))


def test_every_variable_has_a_long_name():
    task = memory_pro(2)
    assert all(variable.attrs["long_name"] for variable in task.variables.values())
    assert task.angle.attrs["units"] == "rad"


def test_global_random_state_is_untouched():
    np.random.seed(0)
    torch.manual_seed(0)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    memory_pro(5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"steps": (30, 30)}, r"steps=\(30, 30\)"),
        ({"steps": (30, 0, 30)}, r"steps=\(30, 0, 30\)"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"noise": np.nan}, "noise=nan"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"angles": "evenly"}, "angles='evenly'"),
        ({"angles": [0.0, 1.0]}, r"shape \(2,\), expected \(n_trials,\) = \(3,\)"),
        ({"angles": [0.0, np.inf, 1.0]}, r"angles\[1\] is inf"),
    ],
)
def test_wrong_use_raises_and_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        memory_pro(**{"n_trials": 3, **arguments})
