"""Forecasts of cells and of baselines, their labels, and how their errors are measured."""

import numpy as np
import pytest
import torch
import xarray as xr
from random_cells import normal, randomised

import kpops
from kpops.models import PLRNNCell
from kpops.reconstruction import (
    forecast,
    linear_forecast,
    persistence,
    smape,
    valid_prediction_time,
    windows,
)


def linear_series(n_steps=60):
    """Two trials of x[t+1] = M x[t] + c in three units, and M and c."""
    M = np.array([[0.9, -0.2, 0], [0.2, 0.9, 0.1], [0, 0, 0.7]])
    c = np.array([0.1, -0.2, 0.3])
    series = np.empty((2, n_steps, 3))
    series[:, 0] = normal(2, 3).numpy()
    for t in range(1, n_steps):
        series[:, t] = series[:, t - 1] @ M.T + c
    return series, M, c


def test_a_forecast_is_the_free_run_after_the_context():
    cell, context = randomised(PLRNNCell(0, 5, rectified=2), 0.4), normal(3, 4, 2)
    found = forecast(cell, context, 6)
    h = torch.zeros(3, 5, dtype=torch.float64)
    x = torch.zeros(3, 0, dtype=torch.float64)
    with torch.no_grad():
        for t in range(4):
            h = cell(x, torch.cat([context[:, t], h[:, 2:]], dim=1))
        for t in range(6):
            np.testing.assert_allclose(found[:, t], h[:, :2], rtol=1e-14)
            h = cell(x, h)


def test_the_unobserved_units_start_where_they_are_told():
    cell, context, h0 = randomised(PLRNNCell(0, 5), 0.4), normal(3, 1, 2), normal(3, 5)
    told, other = forecast(cell, context, 3, h0=h0), forecast(cell, context, 3)
    assert abs(told - other).max() > 0.01
    moved = h0.clone()
    moved[:, :2] += 7  # replaced by the observation
    np.testing.assert_array_equal(forecast(cell, context, 3, h0=moved), told)


def test_a_forecast_leaves_the_model_alone():
    cell = randomised(PLRNNCell(0, 5), 0.4)
    forecast(cell, normal(3, 1, 2), 3)
    assert all(p.grad is None and p.requires_grad for p in cell.parameters())


def test_labels_go_on():
    context = xr.DataArray(
        normal(2, 4, 2).numpy(),
        dims=("trial", "time", "unit"),
        coords={"trial": ["a", "b"], "time": [0.1, 0.2, 0.3, 0.4], "unit": ["x", "y"]},
    )
    context["time"].attrs["units"] = "s"
    for found in (
        forecast(randomised(PLRNNCell(0, 3), 0.3), context, 3),
        persistence(context, 3),
        linear_forecast(context, context, 3),
    ):
        assert found.dims == ("trial", "time", "unit")
        assert found.trial.values.tolist() == ["a", "b"]
        assert found.unit.values.tolist() == ["x", "y"]
        np.testing.assert_allclose(found.time, [0.5, 0.6, 0.7], rtol=1e-12)
        assert found.time.attrs["units"] == "s"


def test_a_diverging_forecast_is_refused_by_trial_and_step():
    cell = PLRNNCell(0, 1, rectified=0)
    with torch.no_grad():
        cell.A.fill_(1e10)
        cell.W.zero_()
        cell.b.zero_()
    with pytest.raises(FloatingPointError, match=r"trial 1 is not finite from step 3 on"):
        forecast(cell, [[[0.0]], [[1.0]]], 9)


def test_persistence_is_exact_for_a_constant_and_off_by_the_drift_for_a_ramp():
    assert float(persistence([[2.0, 3.0]], 4).std("time").max()) == 0
    ramp = np.arange(10.0)[:, None]
    off = ramp[5:][None] - persistence(ramp[:5], 5).values
    np.testing.assert_array_equal(off.ravel(), [1, 2, 3, 4, 5])


def test_the_linear_forecast_of_a_linear_system_is_exact():
    series, M, c = linear_series()
    starts = normal(4, 1, 3, seed=5).numpy()
    found, state = linear_forecast(series, starts, 20, ridge=0), starts[:, 0]
    for t in range(20):
        state = state @ M.T + c
        np.testing.assert_allclose(found[:, t], state, atol=1e-11)


def test_the_ridge_draws_the_linear_forecast_to_the_mean():
    series, _, _ = linear_series()
    found = linear_forecast(series, series[:, -1:], 1, ridge=1e12)
    np.testing.assert_allclose(found[0, 0], series[:, 1:].mean(axis=(0, 1)), rtol=1e-9)


def test_the_ridge_solution_solves_the_normal_equations():
    series, ridge = normal(1, 40, 2).numpy(), 0.3
    scale, mean = series[0, :-1].std(axis=0), series[0, :-1].mean(axis=0)
    X, ahead = (series[0, :-1] - mean) / scale, (series[0, 1:] - mean) / scale
    M = np.linalg.solve(X.T @ X + ridge * len(X) * np.eye(2), X.T @ (ahead - ahead.mean(axis=0)))
    wanted = (((series[0, -1] - mean) / scale) @ M + ahead.mean(axis=0)) * scale + mean
    np.testing.assert_allclose(
        linear_forecast(series, series[:, -1:], 1, ridge=ridge)[0, 0], wanted, rtol=1e-12
    )


def test_windows_are_stretches_of_each_trial():
    series = xr.DataArray(
        np.arange(24.0).reshape(2, 6, 2), dims=("trial", "time", "unit"), coords={"unit": [7, 8]}
    )
    cut = windows(series, 3, every=2)
    assert cut.start.values.tolist() == [0, 2, 0, 2]
    assert cut.series.values.tolist() == [0, 0, 1, 1]
    assert cut.unit.values.tolist() == [7, 8]
    np.testing.assert_array_equal(cut[3], series[1, 2:5])


@pytest.mark.parametrize(("rate", "threshold"), [(0.3, 0.4), (0.05, 0.2)])
def test_an_exponentially_growing_error_is_valid_until_it_meets_the_threshold(rate, threshold):
    # error_t = 0.001 e^(rate t) in standard deviations, of one unit or of both.
    truth = np.stack([normal(400, 2).numpy() * [1, 10]] * 2)
    growth = 1e-3 * np.exp(rate * np.arange(400))[:, None]
    forecast = truth + np.stack([growth, 2 * growth]) * truth[0].std(axis=0)
    found = valid_prediction_time(
        forecast, truth, lyapunov_time=1 / rate * 0.5, dt=0.5, threshold=threshold
    )
    steps = [int(np.log(threshold / 1e-3 / k) // rate) + 1 for k in (1, 2)]
    np.testing.assert_allclose(found.valid_prediction_time, np.array(steps) * rate, rtol=1e-12)
    assert not found.censored.any()
    assert found.attrs["configuration"].count("threshold") == 1
    np.testing.assert_allclose(found.error[0], growth[:, 0], rtol=1e-6)


def test_a_forecast_that_never_fails_is_marked_as_censored():
    truth = normal(3, 50, 2).numpy()
    found = valid_prediction_time(truth, truth, lyapunov_time=10.0)
    assert found.censored.all()
    assert found.valid_prediction_time.values.tolist() == [5.0] * 3
    assert float(found.median_time) == 5.0
    assert float(found.error.max()) == 0


def test_smape_of_known_ratios():
    truth = np.array([[[1.0], [2.0], [0.0], [-1.0]]])
    found = smape(np.array([[[3.0], [2.0], [0.0], [1.0]]]), truth)
    assert float(found.smape[0]) == 100 * (1 + 0 + 0 + 2) / 4
    assert np.isnan(found.stderr)
    two = smape(np.stack([truth[0], -truth[0]]), np.stack([truth[0]] * 2))
    assert two.smape.values.tolist() == [0, 150]
    assert float(two.mean_smape) == 75
    assert float(two.stderr) == pytest.approx(75)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_keep_the_dtype_and_can_be_written(dtype, tmp_path):
    truth = normal(3, 50, 2).numpy().astype(dtype)
    results = {
        "vpt": valid_prediction_time(truth, truth, lyapunov_time=1.0),
        "smape": smape(truth, truth),
        "windows": windows(truth, 5).to_dataset(),
        "persistence": persistence(truth, 5).to_dataset(),
    }
    for name, result in results.items():
        floats = {v.dtype for v in result.data_vars.values() if v.dtype.kind == "f"}
        assert floats == {np.dtype(dtype)}, name
        assert all("long_name" in v.attrs for v in result.data_vars.values()), name
        result.to_netcdf(tmp_path / f"{name}.nc")
        result.to_zarr(tmp_path / f"{name}.zarr", consolidated=False)


def test_units_in_another_order_are_refused():
    truth = xr.DataArray(normal(9, 2).numpy(), dims=("time", "unit"), coords={"unit": ["x", "y"]})
    swapped = truth.sel(unit=["y", "x"])
    with pytest.raises(ValueError, match="unit y where truth has x: order and name them alike"):
        smape(swapped, truth)
    with pytest.raises(ValueError, match="context has the unit y where series has x"):
        linear_forecast(truth, swapped, 2)
    assert float(smape(swapped.sel(unit=truth.unit), truth).mean_smape) == 0


def test_forecasts_of_other_times_or_trials_are_refused():
    truth = xr.DataArray(
        normal(3, 9, 2).numpy(),
        dims=("trial", "time", "unit"),
        coords={"trial": range(3), "time": 0.1 * np.arange(9)},
    )
    late = truth.assign_coords(time=0.1 * np.arange(4, 13))
    with pytest.raises(ValueError, match=r"time 0.4 where truth has 0\.0: order and name"):
        smape(late, truth)
    with pytest.raises(ValueError, match="trial 2 where truth has 0: order and name"):
        valid_prediction_time(truth[::-1], truth, lyapunov_time=1.0)
    rounded = truth.assign_coords(time=truth.time * (1 + 1e-12))
    assert float(smape(rounded, truth).mean_smape) == 0
    unknown = truth.assign_coords(time=[np.nan, *range(8)])
    assert float(smape(unknown, unknown).mean_smape) == 0
    other_run = truth.assign_coords(trial=range(3, 6))  # no label in common
    assert float(smape(other_run, truth).mean_smape) == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float16, torch.bfloat16])
def test_other_numbers_are_read_in_float64(dtype):
    series = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).to(dtype)
    cut = windows(series, 2)
    assert cut.dtype == np.float64 and cut.values.tolist() == [[[1, 0], [0, 1]]]


def test_whole_times_stay_whole():
    context = xr.DataArray(SERIES[0], dims=("time", "unit"), coords={"time": range(5, 95, 3)})
    found = persistence(context, 2).time
    assert found.dtype.kind == "i" and found.values.tolist() == [95, 98]


def test_the_dims_of_a_first_state_are_read_by_name():
    cell, context = randomised(PLRNNCell(0, 3), 0.5), normal(3, 4, 1).numpy()
    h0 = xr.DataArray(normal(3, 3, seed=2).numpy(), dims=("trial", "unit"))
    wanted = forecast(cell, context, 2, h0=h0.values)
    assert forecast(cell, context, 2, h0=h0.T).equals(wanted)
    with pytest.raises(ValueError, match="h0 has dims"):
        forecast(cell, context, 2, h0=h0.rename(unit="feature"))


def test_a_trial_that_was_selected_keeps_its_label():
    states = kpops.systems.trajectory(kpops.systems.load("Henon"), 40, n_trials=3, rng=0)
    one, plain = states[2], states[2].values
    assert smape(one, one).trial.values.tolist() == [2]
    found = valid_prediction_time(persistence(one[:20], 20), one[20:], lyapunov_time=1.0)
    assert found.trial.values.tolist() == [2]
    np.testing.assert_array_equal(windows(one, 5), windows(plain, 5))
    assert "variable" in persistence(one, 2).to_dataset().coords


def test_padding_is_refused():
    mask = np.arange(30) < np.array([[30], [20]])
    padded = xr.DataArray(
        np.where(mask[..., None], SERIES, 0),
        dims=("trial", "time", "unit"),
        coords={"mask": (("trial", "time"), mask)},
    )
    for use in (
        lambda x: smape(x, x),
        lambda x: windows(x, 5),
        lambda x: kpops.reconstruction.state_space_divergence(x, x),
    ):
        with pytest.raises(ValueError, match="has masked steps, which hold no data"):
            use(padded)
        use(padded[:1])


SERIES = normal(2, 30, 2).numpy()
NAN = SERIES.copy()
NAN[1, 3, 0] = np.nan
CELL = PLRNNCell(0, 2).double()
MEASURE = kpops.reconstruction.valid_prediction_time


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (
            lambda: forecast(CELL, SERIES[..., :1].repeat(3, -1), 3),
            ValueError,
            "3 units, the model",
        ),
        (lambda: forecast(CELL, NAN, 3), ValueError, "context is nan at trial 1, time 3, unit 0"),
        (lambda: forecast(CELL, SERIES, 0), ValueError, "n_steps=0: choose an int of 1 or more"),
        (
            lambda: forecast(CELL, SERIES, 2, h0=[0, 0]),
            ValueError,
            r"h0 has shape \(2,\), expected",
        ),
        (lambda: linear_forecast(SERIES, SERIES[..., :1], 3), ValueError, "context has 1 units"),
        (
            lambda: linear_forecast(SERIES[:, :2], SERIES, 3),
            ValueError,
            "2 steps, and 3 are needed",
        ),
        (lambda: linear_forecast(SERIES, SERIES, 3, ridge=-1), ValueError, "ridge=-1: pass 0"),
        (lambda: linear_forecast(SERIES, SERIES, 3, ridge=np.inf), ValueError, "ridge=inf: pass 0"),
        (lambda: linear_forecast(0 * SERIES, SERIES, 3), ValueError, "constant in unit 0"),
        (
            lambda: linear_forecast([[1.0], [1], [1], [2]], [[1.0]], 3),
            ValueError,
            "constant in unit 0",
        ),
        (
            lambda: forecast(CELL, SERIES, 2, h0=np.full((2, 2), np.nan)),
            ValueError,
            "h0 is not finite",
        ),
        (lambda: windows(SERIES, 31), ValueError, "series has 30 steps, and 31 are needed"),
        (lambda: MEASURE(SERIES, SERIES[:1], lyapunov_time=1), ValueError, "2 trials, truth 1"),
        (lambda: MEASURE(SERIES, SERIES[:, 1:], lyapunov_time=1), ValueError, "cut both to the"),
        (lambda: MEASURE(SERIES[..., 1:], SERIES, lyapunov_time=1), ValueError, "1 units, truth 2"),
        (lambda: MEASURE(SERIES, 0 * SERIES, lyapunov_time=1), ValueError, "truth is constant"),
        (lambda: MEASURE(SERIES, SERIES, lyapunov_time=0), ValueError, "lyapunov_time=0: pass a"),
        (lambda: MEASURE(SERIES, SERIES, lyapunov_time=1, dt=-1), ValueError, "dt=-1: pass a"),
        (lambda: smape(NAN, SERIES), ValueError, "forecast is nan at trial 1, time 3, unit 0"),
        (lambda: smape(SERIES, SERIES[..., :1]), ValueError, "forecast has 2 units, truth 1"),
    ],
)
def test_wrong_use_of_forecasts_is_refused(call, error, told):
    with pytest.raises(error, match=told):
        call()
