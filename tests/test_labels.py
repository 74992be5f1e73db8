"""What users call their trials and times comes through all results, and into files and back."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn

import kpops

TRIALS, STEPS = 4, 5
TIMES = {
    "seconds": np.arange(STEPS) / 10,
    "datetime64": pd.date_range("2024-01-01", periods=STEPS, freq="10ms"),
    "timedelta64": pd.timedelta_range("0s", periods=STEPS, freq="10ms"),
    "strings": ["a", "b", "c", "d", "e"],
}
MASK = np.arange(STEPS) < np.array([[5], [4], [2], [5]])


def gru():
    torch.manual_seed(0)
    return nn.GRU(3, 4, batch_first=True, dtype=torch.float64)


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def recorded(times="seconds"):
    """Inputs with labels of every sort, and attributes of the user's own."""
    units = {"units": "s"} if times == "seconds" else {}
    array = xr.DataArray(
        values(TRIALS, STEPS, 3),
        dims=("trial", "time", "channel"),
        coords={
            "trial": ("trial", ["p", "q", "r", "s"], {"long_name": "recording"}),
            "time": ("time", TIMES[times], {"long_name": "time after go", **units}),
            "rt": ("trial", np.arange(4.0), {"long_name": "reaction time", "units": "ms"}),
            "stimulus": (("trial", "time"), np.full((TRIALS, STEPS), "on")),
            "subject": ((), "m1", {"species": "mouse"}),
            "session": 3,
        },
    )
    return array.assign_coords(bare=("time", np.arange(STEPS)))


def linearised(times="seconds"):
    torch.manual_seed(1)
    readout = nn.Linear(4, 2, dtype=torch.float64)
    return kpops.linearize(gru(), recorded(times), mask=MASK, readout=readout)


RESULTS = {
    "states": lambda lin: lin.states.to_dataset(),
    "outputs": lambda lin: lin.outputs.to_dataset(),
    "product": lambda lin: (lin.flow @ lin.states).to_dataset(name="moved"),
    "selection": lambda lin: (
        lin.P.select(time=slice(1, 4)) @ lin.states.isel(time=slice(1, 4))
    ).to_dataset(name="v"),
    "eigsh": lambda lin: kpops.eigsh(lin.flow, k=2),
    "svds": lambda lin: kpops.svds(lin.P, k=2),
    "gradient_flow": lambda lin: kpops.gradient_flow(lin, 0 * lin.outputs),
    "gramian": lambda lin: kpops.controllability_gramian(lin.P, times=[2, 4]),
    "map": lambda lin: kpops.frobenius_map(lin.P, "time"),
    "greens_map": lambda lin: kpops.greens_map(lin),
    "information": lambda lin: kpops.predictive_information(lin, times=[1, 3]),
    "exponents": lambda lin: kpops.lyapunov_spectrum(lin, k=2),
    "points": lambda lin: kpops.linearize_at(lin, np.zeros((2, 4)), 3).states.to_dataset(),
}


@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("times", TIMES)
def test_results_keep_the_users_labels_and_go_to_files_and_back(what, times, tmp_path):
    given = recorded(times)
    result = RESULTS[what](linearised(times))
    kept = [n for n in ("subject", "session", "rt", "trial") if n in result.coords]
    assert kept[:2] == ["subject", "session"]
    for name in kept:
        if result[name].shape == given[name].shape and what != "points":
            assert result[name].variable.identical(given[name].variable), name
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    result.to_zarr(tmp_path / "a.zarr", consolidated=False)
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf"), result)
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "a.zarr", consolidated=False).load(), result
    )


@pytest.mark.parametrize("times", TIMES)
def test_coordinates_are_identical_to_the_users(times):
    given, lin = recorded(times), linearised(times)
    for result in (lin.states, lin.outputs, kpops.eigsh(lin.flow, k=1).eigenfunction):
        for name in given.coords:
            assert result[name].variable.identical(given[name].variable), name
    at = kpops.controllability_gramian(lin.P, times=[2, 4]).gramian.at_time
    np.testing.assert_array_equal(at, given.time[[2, 4]])
    assert at.attrs == given.time.attrs


def test_who_writes_into_the_labels_of_a_result_changes_no_other():
    task = kpops.tasks.memory_pro(4, rng=0, steps=(2, 2, 2))
    lin = kpops.linearize(torch.nn.GRU(3, 5, batch_first=True), task.inputs)
    q = xr.zeros_like(lin.states)
    result = lin.flow @ q
    for name in ("epoch", "angle", "variable"):
        before = lin.states[name].values.copy()
        result[name].values[...] = before[::-1].copy()[:1]
        result[name].attrs["note"] = "mine"
        for other in (lin.flow @ q, lin.states):
            np.testing.assert_array_equal(other[name], before)
            assert "note" not in other[name].attrs


def test_kpops_describes_what_the_user_has_not_labelled():
    states = kpops.linearize(gru(), values(TRIALS, STEPS, 3)).states
    assert states.time.attrs == {"long_name": "time", "units": "step"}
    assert states.trial.attrs == {"long_name": "trial", "units": "1"}
    assert states.unit.attrs == {"long_name": "unit", "units": "1"}


@pytest.mark.parametrize("times", ["datetime64", "timedelta64"])
def test_times_of_the_clock_align_and_misalign(times):
    lin = linearised(times)
    q = xr.DataArray(
        values(TRIALS, STEPS, 4),
        dims=("trial", "time", "unit"),
        coords={"time": recorded(times).time},
    )
    np.testing.assert_array_equal(lin.P @ q, lin.P @ q.values)
    assert (lin.P @ q).time.dtype.kind == times[0].replace("d", "M").replace("t", "m")
    later = q.assign_coords(time=q.time + np.timedelta64(1, "s"))
    with pytest.raises(ValueError, match=r"disagree on the labels of \['time'\]"):
        lin.P @ later


NUMBERS = {
    "effective_rank": kpops.effective_rank,
    "trace": kpops.trace,
    "diagonal": kpops.diagonal,
    "eigvalsh": kpops.eigvalsh,
    "frobenius_norm": kpops.frobenius_norm,
    "schatten_norm": lambda op: kpops.schatten_norm(op, 1),
    "spectral_norm": kpops.spectral_norm,
    "spectral_density": lambda op: kpops.spectral_density(op, points=8),
    "frobenius_map": lambda op: kpops.frobenius_map(op, "time"),
    "alignment": lambda op: kpops.alignment(op, op),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_keep_what_the_user_says_of_the_whole_recording(what):
    given, function = recorded(), NUMBERS[what]
    result = function(linearised().K)
    for name in ("subject", "session"):
        assert result[name].variable.identical(given[name].variable)
    others = [
        function(kpops.linearize(gru(), given.assign_coords(subject=s)).K) for s in ("m2", "m3")
    ]
    others = [one.drop_vars("unit", errors="ignore") for one in others]
    if what == "spectral_density":  # each has a grid of its own
        others = [one.drop_dims("value") for one in others]
    assert xr.concat(others, "animal").subject.values.tolist() == ["m2", "m3"]


def test_of_two_recordings_what_they_share_is_kept():
    one, other = (
        kpops.linearize(gru(), recorded().assign_coords(subject=s)).K for s in ("m1", "m2")
    )
    result = kpops.alignment(one, other)
    assert "subject" not in result.coords and result.session == 3
    into_parameters = kpops.frobenius_norm(kpops.linearize(gru(), recorded()).J)
    assert into_parameters.subject == "m1"


# A mask comes as a coordinate, and goes in as one.


def test_masked_results_carry_their_mask():
    lin = linearised()
    for result in (lin.states, lin.outputs, lin.flow @ lin.states):
        assert result["mask"].dims == ("trial", "time")
        assert result["mask"].dtype == bool
        np.testing.assert_array_equal(result["mask"], MASK)
        assert not result.where(~result["mask"], 0).any()
    assert "mask" in kpops.eigsh(lin.flow, k=1).coords
    some = lin.P.select(time=slice(0, 3)).domain.coords["mask"].values
    np.testing.assert_array_equal(some, MASK[:, :3])
    whole = kpops.linearize(gru(), recorded())
    assert "mask" not in whole.states.coords


def test_a_coordinate_mask_of_the_inputs_is_their_mask():
    expected = linearised().states
    own = recorded().assign_coords(mask=(("time", "trial"), MASK.T))
    np.testing.assert_array_equal(kpops.linearize(gru(), own).states, expected)
    np.testing.assert_array_equal(kpops.linearize(gru(), own, mask=MASK).states, expected)
    with pytest.raises(ValueError, match="mask and the coordinate mask of inputs differ"):
        kpops.linearize(gru(), own, mask=np.ones_like(MASK))
    noise = recorded().assign_coords(mask=("trial", ["yes", "no", "no", "no"]))
    with pytest.raises(ValueError, match=r"coordinate mask with dims \('trial',\).*rename it"):
        kpops.linearize(gru(), noise)
    # States of one model are inputs of the next, which ends where they end.
    after = nn.GRU(4, 2, batch_first=True, dtype=torch.float64)
    assert kpops.linearize(after, expected).trajectory.n_valid == MASK.sum()


# Several indexes of one dim.


def stacked():
    coords = {"subject": ["m1", "m2"], "session": [1, 2]}
    array = xr.DataArray(values(2, 2, STEPS, 3), dims=(*coords, "time", "channel"), coords=coords)
    return array.stack(trial=("subject", "session")).transpose("trial", "time", "channel")


def test_a_multiindex_becomes_coordinates_that_can_be_saved(tmp_path):
    inputs = stacked()
    lin = kpops.linearize(gru(), inputs)
    modes = kpops.eigsh(lin.flow, k=2)
    assert modes.subject.values.tolist() == ["m1", "m1", "m2", "m2"]
    assert modes.session.values.tolist() == [1, 2, 1, 2]
    assert modes.trial.values.tolist() == [0, 1, 2, 3]
    modes.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    modes.to_zarr(tmp_path / "a.zarr", consolidated=False)
    again = xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf")
    xr.testing.assert_identical(again, modes)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "a.zarr", consolidated=False).load(), modes)
    restored = again.set_index(trial=["subject", "session"]).eigenfunction
    assert restored.sel(trial=("m2", 1)).dims == ("mode", "time", "unit")


def test_a_multiindex_of_a_vector_is_compared_by_its_levels():
    inputs = stacked()
    lin = kpops.linearize(gru(), inputs)
    q = xr.DataArray(
        values(4, STEPS, 4), dims=("trial", "time", "unit"), coords={"trial": inputs.trial}
    )
    np.testing.assert_array_equal(lin.P @ q, lin.P @ q.values)
    with pytest.raises(ValueError, match=r"disagree on the labels of \['session'\]"):
        lin.P @ q.isel(trial=[1, 0, 3, 2])
    targets = q.rename(unit="output")
    assert kpops.gradient_flow(lin, targets).loss > 0
    with pytest.raises(ValueError, match=r"disagree on the labels of \['subject'\]"):
        kpops.gradient_flow(lin, targets.isel(trial=[2, 3, 0, 1]))


# Labels of other arguments, and names that are taken.


def test_states_to_start_from_are_understood_by_name():
    inputs = recorded()
    first = kpops.linearize(gru(), inputs)
    last = first.states.isel(time=-1, drop=True)
    expected = kpops.linearize(gru(), inputs, h0=last.values).states
    for h0 in (last, last.T):
        np.testing.assert_array_equal(kpops.linearize(gru(), inputs, h0=h0).states, expected)
    with pytest.raises(ValueError, match=r"h0 and the inputs disagree.*\['trial'\]"):
        kpops.linearize(gru(), inputs, h0=last.isel(trial=[1, 0, 2, 3]))
    with pytest.raises(ValueError, match=r"h0 has dims \('trial', 'feature'\), expected trial"):
        kpops.linearize(gru(), inputs, h0=last.rename(unit="feature"))


def test_arguments_with_labels_are_understood_by_them():
    lin, tasks = linearised(), ["a", "a", "b", "b"]
    by = xr.DataArray(tasks, dims="trial", coords={"trial": recorded().trial})
    xr.testing.assert_identical(kpops.interference(lin, by), kpops.interference(lin, tasks))
    with pytest.raises(ValueError, match=r"by and the inputs disagree .*\['trial'\]"):
        kpops.interference(lin, by.isel(trial=[1, 2, 0, 3]))
    ode = kpops.models.NeuralODE(lambda x, h: x - h, dt=0.1, arguments="xh")
    x = xr.DataArray(values(3, 3, 2).astype("float32"), dims=("trial", "time", "feature"))
    times = 0.1 * np.arange(4)
    assert torch.equal(ode.inputs(times, x.transpose("time", "trial", ...)), ode.inputs(times, x))
    points = xr.DataArray(values(2, 2, 4), dims=("a", "b", "unit"), coords={"a": [1, 2]})
    at = kpops.linearize_at(lin, points.stack(point=("a", "b")), 2)
    assert at.states.trial.values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["unit", "output", "layer", "operator", "kind"])
def test_names_that_kpops_gives_to_its_own_labels_are_refused(name):
    with pytest.raises(ValueError, match=rf"coordinates \['{name}'\].*rename.*drop_vars"):
        kpops.linearize(gru(), recorded().assign_coords({name: 1}))


def test_outputs_are_judged_by_name():
    task = kpops.tasks.memory_pro(3, angles="even", noise=0, steps=(2, 2, 2))
    swapped = task.targets.transpose("time", "trial", "output").rename(output="channel")
    swapped = swapped.drop_vars("channel")
    assert kpops.tasks.accuracy(task, swapped.rename(channel="output")).accuracy == 1
    with pytest.raises(ValueError, match=r"outputs has dims .* expected"):
        kpops.tasks.accuracy(task, swapped)
    with pytest.raises(ValueError, match=r"disagree on the labels of \['trial'\]"):
        kpops.tasks.accuracy(task, task.targets.isel(trial=[1, 0, 2]))


def test_epochs_and_what_xarray_makes_of_times():
    lin = kpops.linearize(
        nn.GRU(3, 4, batch_first=True), kpops.tasks.memory_pro(3, steps=(2, 2, 2)).inputs
    )
    states = lin.states
    assert states.sel(time=states.epoch == "memory").time.values.tolist() == [3, 4]
    assert states.interp(time=[1.5]).epoch.item() == "stimulus"
    # xarray takes the mean of every coordinate, and finds none of strings.
    with pytest.raises(ValueError, match="could not convert string"):
        states.coarsen(time=2).mean()
    coarse = states.coarsen(time=2, coord_func={"time": "mean", "epoch": "min"}).mean()
    assert coarse.epoch.values.tolist() == ["stimulus", "memory", "response"]
    plain = states.drop_vars("epoch").coarsen(time=2).mean()
    np.testing.assert_array_equal(plain, coarse)
    assert plain.time.values.tolist() == [1.5, 3.5, 5.5]
