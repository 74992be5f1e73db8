"""Green's maps: against dense blocks of P, closed forms, and error bars over trials."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, CASES_AND_ENGINES, STEPS, TRIALS, skip_compiled_elsewhere
from dense import dense
from linear_networks import linear_rnn

import kpops
from kpops.linalg import responses
from kpops.linalg.gramians import propagator_norm
from kpops.spectral.greens_maps import mean_response

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


def of_dense(P, n_units):
    """Energy and projection (trial, time, time_in) of the dense matrix less its diagonal blocks."""
    P = torch.as_tensor(P).reshape(TRIALS, STEPS, n_units, TRIALS, STEPS, n_units)
    blocks = torch.stack([P[b, :, :, b] for b in range(TRIALS)])  # (trial, t, i, s, j)
    for t in range(STEPS):
        valid = blocks[:, t, :, t].diagonal(dim1=1, dim2=2)
        blocks[:, t, :, t] -= torch.diag_embed(valid.round())
    return blocks.square().sum((2, 4)) / n_units, blocks.sum((2, 4)) / n_units


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
@pytest.mark.parametrize(
    ("case", "engine"), CASES_AND_ENGINES, ids=lambda value: getattr(value, "name", value)
)
def test_maps_of_every_model_are_those_of_its_dense_propagator(case, engine, mask, device):
    skip_compiled_elsewhere(engine, device)
    model, (inputs, h0) = case.model(), case.data()
    options = {"h0": h0, "engine": engine, "device": device}
    options["mask"] = case.as_module_takes(model, mask)
    lin = kpops.linearize(model, case.as_module_takes(model, inputs), **options)
    energy, projection = of_dense(dense(case, model, inputs, h0, mask=mask).P, case.state_size)
    maps = kpops.greens_map(lin)
    within = (torch.ones(TRIALS, STEPS) if mask is None else mask).double()
    pairs = torch.einsum("bt,bs->ts", within, within).clamp_min(1)
    for found, exact in (
        (maps.energy, energy),
        (maps.projection, projection),
        (kpops.greens_fractions(maps).rms, (energy.sum(0) / pairs).sqrt()),
        (mean_response(maps, "projection"), projection.sum(0) / pairs),
    ):
        assert np.abs(found.values - exact.numpy()).max() < 1e-12 * float(exact.abs().max())


def test_a_scalar_system_responds_by_a_power_of_its_weight():
    for a in (0.9, 1.0, -0.6):
        maps = kpops.greens_map(linear_rnn([[a]], 12, n_trials=2))
        lag = np.subtract.outer(np.arange(12), np.arange(12))
        exact = np.where(lag > 0, float(a) ** abs(lag), 0)
        np.testing.assert_allclose(kpops.greens_fractions(maps).rms, abs(exact), rtol=1e-12)
        np.testing.assert_allclose(maps.projection, np.stack([exact] * 2), rtol=1e-12)


def test_the_triangular_toy_has_the_response_of_the_paper():
    a, b, c = 0.9, 0.5, 0.3
    maps = kpops.greens_map(linear_rnn([[a, c], [0, b]], 10))
    for k in range(1, 10):
        across = c * (a**k - b**k) / (a - b)
        at = {"trial": 0, "time": k, "time_in": 0}
        assert float(maps.projection[at]) == pytest.approx((a**k + b**k + across) / 2, rel=1e-12)
        energy = (a ** (2 * k) + b ** (2 * k) + across**2) / 2
        assert float(maps.energy[at]) == pytest.approx(energy, rel=1e-12)


def test_networks_of_one_trajectory_and_spectrum_differ_in_their_maps():
    with_route, without = (kpops.greens_map(linear_rnn(W, 8)) for W in ROUTES)
    assert (with_route.energy.values[0, 1:, 0] > 1.1 * without.energy.values[0, 1:, 0]).all()


ROUTES = ([[0.9, 0.5], [0, 0.5]], [[0.9, 0], [0, 0.5]])


def test_the_energy_adds_up_to_the_norm_of_the_propagator():
    torch.manual_seed(0)
    lin = kpops.linearize(
        torch.nn.GRU(2, 6, batch_first=True).double(), torch.randn(3, 9, 2).double()
    )
    total = 6 * float(kpops.greens_map(lin).energy.sum()) + lin.space.size
    assert total == pytest.approx(propagator_norm(lin.P) ** 2, rel=1e-12)


def test_rotations_of_the_states_change_the_projection_alone():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    W = 0.5 * rng.standard_normal((3, 3))
    first, second = (kpops.greens_map(linear_rnn(m, 6)) for m in (W, rotation @ W @ rotation.T))
    np.testing.assert_allclose(first.energy, second.energy, rtol=1e-12, atol=1e-14)
    assert abs(first.projection - second.projection).max() > 0.01


def test_blocks_may_be_carried_in_parts(monkeypatch):
    lin = linear_rnn([[0.5, 0.2], [-0.3, 0.8]], 7, n_trials=2)
    whole = kpops.greens_map(lin)
    monkeypatch.setattr(responses, "_BYTES", 3 * 2 * 4 * 8)  # three sources at a time
    xr.testing.assert_allclose(kpops.greens_map(lin), whole, rtol=1e-14, atol=0)


def test_fractions_of_a_scalar_system_have_their_closed_form():
    a, T = 0.8, 40
    fractions = kpops.greens_fractions(kpops.greens_map(linear_rnn([[a]], T, 3)), near=3, far=12)
    lag = np.arange(T)
    by_lag = (T - lag) * a ** (2 * lag) * (lag > 0)
    by_lag = by_lag / by_lag.sum()
    np.testing.assert_allclose(fractions.by_lag, by_lag, rtol=1e-12)
    assert float(fractions.near_diagonal) == pytest.approx(by_lag[1:4].sum(), rel=1e-12)
    assert float(fractions.long_range) == pytest.approx(by_lag[13:].sum(), rel=1e-12)
    np.testing.assert_allclose(fractions.long_range_by_trial, by_lag[13:].sum(), rtol=1e-12)
    assert float(fractions.near_diagonal_stderr) < 1e-14
    assert fractions.long_range.long_name == "fraction of the energy beyond lag 12"


def test_default_cuts_are_a_sixteenth_and_a_quarter_of_the_steps():
    for n_steps, near, far in ((90, 5, 22), (16, 1, 4), (2, 1, 1)):
        fractions = kpops.greens_fractions(kpops.greens_map(linear_rnn([[0.5]], n_steps)))
        assert (fractions.near, fractions.far) == (near, far)
    assert float(fractions.near_diagonal) == 1
    assert float(fractions.long_range) == 0


def test_standard_errors_are_those_of_the_jackknife_over_trials():
    maps = kpops.greens_map(of_gru())
    fractions = kpops.greens_fractions(maps, near=1, far=2)
    without = [
        float(kpops.greens_fractions(maps.drop_isel(trial=b), near=1, far=2).long_range)
        for b in range(6)
    ]
    exact = np.sqrt(5 / 6 * np.square(np.subtract(without, np.mean(without))).sum())
    assert float(fractions.long_range_stderr) == pytest.approx(exact, rel=1e-10)
    alone = kpops.greens_fractions(maps.isel(trial=[2]), near=1, far=2)
    assert np.isnan(alone.long_range_stderr)
    assert float(alone.long_range) == pytest.approx(float(fractions.long_range_by_trial[2]))


def test_a_network_without_recurrence_has_no_fractions():
    fractions = kpops.greens_fractions(kpops.greens_map(linear_rnn([[0.0]], 5)))
    assert np.isnan(fractions.long_range)
    assert np.isnan(fractions.near_diagonal_by_trial).all()


def of_gru(dtype=torch.float64, **options):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 4, batch_first=True, dtype=dtype)
    time = xr.Variable("time", [0.0, 0.5, 1.0, 1.5, 2.0], {"units": "s"})
    coords = {"time": time, "epoch": ("time", np.array(list("ssmmr"), dtype=object))}
    coords["task"] = ("trial", np.array(list("aaabbb"), dtype=object))
    data = torch.randn(6, 5, 2, dtype=dtype).numpy()
    inputs = xr.DataArray(data, dims=("trial", "time", "input"), coords=coords)
    return kpops.linearize(gru, inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_and_dtype_reach_the_results(dtype):
    maps = kpops.greens_map(of_gru(dtype))
    assert maps.energy.dims == ("trial", "time", "time_in")
    assert maps.time_in.values.tolist() == [0, 0.5, 1, 1.5, 2]
    assert maps.time_in.attrs["units"] == "s"
    assert maps.epoch_in.dims == ("time_in",)
    fractions = kpops.greens_fractions(maps)
    assert fractions.task.values.tolist() == list("aaabbb")
    expected = np.dtype(str(dtype).removeprefix("torch."))
    for variable in (*maps.values(), *fractions.values()):
        assert variable.dtype == expected
        assert variable.attrs["units"] == "1"
        assert variable.attrs["long_name"]
    assert (maps.model, fractions.model) == ("GRU", "GRU")


def test_results_survive_files(tmp_path):
    maps = kpops.greens_map(of_gru(mask=torch.arange(5) < torch.tensor([[5], [4]] * 3)))
    for name, result in (("maps", maps), ("fractions", kpops.greens_fractions(maps))):
        result.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as again:
            xr.testing.assert_equal(again, result)
        result.to_zarr(tmp_path / f"{name}.zarr", consolidated=False)
        with xr.open_zarr(tmp_path / f"{name}.zarr", consolidated=False) as again:
            xr.testing.assert_equal(again.load(), result)


def test_what_has_no_maps_is_refused():
    with pytest.raises(TypeError, match=r"lin is a model .*: pass a Linearization"):
        kpops.greens_map(torch.nn.GRU(2, 3))
    lin = BY_NAME["gru"]
    made = kpops.linearize(lin.model(), lin.data()[0])
    with pytest.raises(TypeError, match="pass a Linearization, or its P"):
        kpops.greens_map(made.flow)


def test_a_propagator_that_leaves_its_dtype_is_refused():
    lin = linear_rnn([[4.0]], 80, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"leave its dtype at position 64 .* dtype=torch.float64"):
        kpops.greens_map(lin)
    energy = kpops.greens_map(linear_rnn([[4.0]], 80)).energy
    assert float(energy[0, 79, 0]) == pytest.approx(16.0**79, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"near": 0}, "near=0: choose an int from 1 to 4"),
        ({"near": 5}, "near=5: choose an int from 1 to 4"),
        ({"near": 3, "far": 2}, "far=2: choose an int from 3 to 4"),
        ({"far": 5}, "far=5: choose an int from 1 to 4"),
    ],
)
def test_cuts_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        kpops.greens_fractions(kpops.greens_map(of_gru()), **options)


def test_what_is_no_map_is_refused():
    maps = kpops.greens_map(of_gru())
    with pytest.raises(TypeError, match=r"maps is a DataArray .*: pass what kpops.greens_map"):
        kpops.greens_fractions(maps.energy)
    with pytest.raises(TypeError, match=r"far=2.5: pass an int"):
        kpops.greens_fractions(maps, far=2.5)
    for wrong, told in (
        (maps[["projection"]], r"energy of variables \['projection'\], expected"),
        (maps.isel(trial=0), r"or trials of it by .isel\(trial=\[0\]\)"),
        (maps.isel(time=slice(3)), "3 times and 5 times in: pass all times of both"),
        (maps.where(maps.time < 1), r"energy is nan at \(trial, time, time_in\) = \(0, 2, 0\)"),
        (-maps, "energies are finite and 0 or more"),
        (maps.isel(time=slice(None, None, -1)), "not zero where time is not after time_in"),
        (maps.isel(time=slice(2, 5), time_in=slice(3)), "pass the same times of both"),
    ):
        with pytest.raises(ValueError, match=told):
            kpops.greens_fractions(wrong)
