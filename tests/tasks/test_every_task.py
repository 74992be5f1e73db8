"""What holds for every task by name: seeds, noise, labels, files, the range of its arguments."""

import json
import math
import operator

import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.tasks import make, names

ANGLE_NOISE, PULSE_NOISE = 0.1 * math.sqrt(2), 0.03 * math.sqrt(2)
NOISE = {"flip_flop": PULSE_NOISE, "integration": PULSE_NOISE}
BUILT_IN = [name for name in names() if not name.startswith("short_")]  # a doctest adds one


def trials(name, **options):
    """Few trials; a multiple of 4 for the mix and of 15 for Driscoll's set."""
    return make(name, 60 if name == "driscoll" else 12, **options)


@pytest.fixture(params=BUILT_IN)
def name(request):
    return request.param


def test_all_tasks_of_the_papers_are_there():
    ours = {"memory_pro", "memory_anti", "delay_pro", "delay_anti", "four_task_mix", "flip_flop"}
    ours |= {"memory_pro_one_hot", "integration", "low_rank_forecast", "driscoll"}
    assert set(BUILT_IN) == ours | set(kpops.tasks.DRISCOLL_TASKS)
    assert len(kpops.tasks.DRISCOLL_TASKS) == 15


def test_same_seed_gives_the_same_trials_and_another_seed_does_not(name):
    first = trials(name, rng=3)
    xr.testing.assert_identical(first, trials(name, rng=3))
    again = trials(name, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    other = trials(name, rng=4)
    assert other.inputs.shape != first.inputs.shape or (other.inputs != first.inputs).any()


def test_only_the_inputs_depend_on_the_noise(name):
    noisy, clean = trials(name, rng=3), trials(name, rng=3, noise=0)
    xr.testing.assert_equal(noisy.drop_vars("inputs"), clean.drop_vars("inputs"))


def test_noise_has_the_stated_standard_deviation_on_every_channel(name):
    noisy, clean = make(name, 240, rng=0), make(name, 240, rng=0, noise=0)
    sigma = NOISE.get(name, ANGLE_NOISE)
    difference = (noisy.inputs - clean.inputs).values.astype(float)
    noise, n = difference[noisy.mask.values], int(noisy.mask.sum())
    # five and a half standard errors of a mean and of a standard deviation
    assert abs(noise.mean(axis=0)).max() < 5.5 * sigma / math.sqrt(n)
    assert abs(noise.std(axis=0) - sigma).max() < 5.5 * sigma / math.sqrt(2 * n)
    assert not difference[~noisy.mask.values].any()
    assert json.loads(noisy.attrs["configuration"])["noise"] == pytest.approx(sigma)


def test_padding_is_zero_and_comes_last(name):
    task = trials(name, rng=1)
    mask = task.mask.values
    assert (mask[:, :-1] >= mask[:, 1:]).all() and mask[:, 0].all()
    assert not task.inputs.values[~mask].any() and not task.targets.values[~mask].any()
    epoch = np.broadcast_to(task.epoch.values, mask.shape)
    np.testing.assert_array_equal(epoch == "padding", ~mask)


def test_float32_is_the_rounded_float64(name):
    single, double = trials(name, rng=0), trials(name, rng=0, dtype="float64")
    for variable in ("inputs", "targets"):
        assert single[variable].dtype == "float32" and double[variable].dtype == "float64"
        np.testing.assert_allclose(single[variable], double[variable], rtol=2e-7, atol=1e-7)


def test_configuration_makes_the_same_trials_again(name):
    task = trials(name, rng=np.int64(5), noise=0.2)
    configuration = json.loads(task.attrs["configuration"])
    again = make(configuration.pop("task"), **configuration)
    xr.testing.assert_identical(task, again)


def test_everything_is_labelled(name):
    task = trials(name)
    assert task.inputs.dims == ("trial", "time", "input")
    assert task.targets.dims == ("trial", "time", "output")
    assert task.mask.dims == ("trial", "time") and task.mask.dtype == bool
    assert {"trial", "time", "input", "output", "epoch", "task"} <= set(task.coords)
    assert task.time.values.tolist() == list(range(1, task.sizes["time"] + 1))
    for variable in task.variables.values():
        assert variable.attrs["long_name"] and variable.attrs["units"]
    assert all(isinstance(value, str | float) for value in task.attrs.values())


@pytest.mark.parametrize("format", ["netcdf", "zarr"])
def test_files_give_back_what_was_written(name, format, tmp_path):
    task = trials(name, rng=0)
    if format == "netcdf":
        task.to_netcdf(tmp_path / "task.nc", engine="h5netcdf")
        opened = xr.open_dataset(tmp_path / "task.nc", engine="h5netcdf")
    else:
        task.to_zarr(tmp_path / "task.zarr", consolidated=False)
        opened = xr.open_dataset(tmp_path / "task.zarr", engine="zarr", consolidated=False)
    with opened as back:
        xr.testing.assert_identical(task, back.load())
        assert back.mask.dtype == bool


def test_global_random_state_is_untouched(name):
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    trials(name)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_targets_themselves_are_accurate_and_silence_is_not(name):
    task = trials(name, rng=0)
    assert kpops.tasks.accuracy(task, task.targets).accuracy == 1
    assert kpops.tasks.accuracy(task, task.targets * 0).accuracy == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_wrong_arguments_raise_and_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **{"n_trials": 60, **arguments})


def test_a_task_goes_through_linearize_with_its_labels():
    task = trials("MemoryPro", rng=0, steps={"stimulus1": (2, 4), "memory1": 2, "context": 1})
    gru = torch.nn.GRU(task.sizes["input"], 4, batch_first=True)
    lin = kpops.linearize(gru, task.inputs, mask=task.mask)
    assert lin.states.coords["epoch"].dims == ("trial", "time")
    np.testing.assert_array_equal(lin.states.coords["epoch"], task.epoch)
    one = lin.P.select(trial=[1, 3])
    np.testing.assert_array_equal(one.domain.coords["epoch"][1], task.epoch.values[[1, 3]])


def test_n_trials_may_be_a_numpy_integer(name):
    task = make(name, np.int64(60), rng=0)
    assert task.sizes["trial"] == operator.index(60)
