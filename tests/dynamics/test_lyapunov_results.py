"""What lyapunov_spectrum takes and gives back, and its statistics."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from systems import Henon, normal, random_cell
from torch import nn

import kpops
from kpops.dynamics import lyapunov_tangent
from kpops.dynamics.lyapunov import lyapunov_spectrum
from kpops.dynamics.lyapunov_statistics import entropy_bound, kaplan_yorke_dimension


def test_a_module_that_asks_for_inputs_gets_zeros_and_parameters_are_left_alone():
    model = random_cell(nn.RNN(3, 4, batch_first=True), scale=1.5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    h0 = normal(2, 4)
    result = lyapunov_spectrum(model, h0=h0, n_steps=30, rng=1)
    zeros = lyapunov_spectrum(model, inputs=np.zeros((2, 30, 3)), h0=h0, rng=1)
    np.testing.assert_array_equal(result.exponent, zeros.exponent)
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in model.named_parameters())
    assert model.training


def test_a_network_is_its_recurrent_module():
    rnn = random_cell(nn.GRU(2, 4), scale=1.5)
    network = kpops.Network(rnn, nn.Linear(4, 1).double())
    inputs = normal(3, 20, 2)
    ours = lyapunov_spectrum(network, inputs=inputs, rng=0)
    theirs = lyapunov_spectrum(rnn, inputs=inputs.transpose(0, 1), rng=0)
    np.testing.assert_array_equal(ours.exponent, theirs.exponent)


def test_an_lstm_starts_from_what_the_module_takes():
    lstm = random_cell(nn.LSTM(1, 3, num_layers=2), scale=2)
    h, c = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    result = lyapunov_spectrum(lstm, 2, h0=(h, c), n_steps=20, rng=0)
    flat = torch.cat([h[0], c[0], h[1], c[1]], -1)
    same = lyapunov_spectrum(lstm, 2, h0=flat, n_steps=20, rng=0)
    np.testing.assert_array_equal(result.trial_exponent, same.trial_exponent)
    assert result.sizes["trial"] == 4


def test_the_seed_chooses_the_frames_and_the_same_seed_gives_the_same():
    a, b, c = (lyapunov_spectrum(Henon(), h0=[0.1, 0.1], n_steps=30, rng=i) for i in (1, 1, 2))
    assert a.identical(b) and not np.array_equal(a.exponent, c.exponent)


def test_results_are_labelled_and_go_through_files(tmp_path):
    inputs = kpops.tasks.memory_pro(4, rng=0).inputs
    lin = kpops.linearize(nn.GRU(inputs.shape[-1], 5, batch_first=True), inputs.astype("float32"))
    result = lyapunov_spectrum(lin, 2, frame_transient=0, window=10, rng=0)
    assert result.finite_time_exponent.dims == ("trial", "time", "mode")
    np.testing.assert_array_equal(result.time, np.arange(90, 9, -10)[::-1])
    np.testing.assert_array_equal(result.mode, [1, 2])
    np.testing.assert_array_equal(result.angle, inputs.angle)
    for variable in (*result.data_vars.values(), result.time, result.mode, result.trial):
        assert {"long_name", "units"} <= set(variable.attrs)
    settings = json.loads(result.attrs["configuration"])
    assert settings["k"] == 2 and settings["window"] == 10 and settings["frame_transient"] == 0
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    result.to_zarr(tmp_path / "a.zarr", consolidated=False)
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf"), result)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "a.zarr", consolidated=False).load(), result)


ONE = {"h0": [0.1, 0.1], "n_steps": 20}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": None}, "n_steps=None without inputs: pass"),
        ({"inputs": np.zeros((1, 20, 1))}, "n_steps=20 with inputs: pass"),
        ({"k": 3}, "k=3: choose an int from 1 to 2"),
        ({"n_steps": 0}, "n_steps=0: choose"),
        ({"transient": 20}, "transient=20: choose an int from 0 to 19"),
        ({"transient": 10, "frame_transient": 10}, "frame_transient=10: choose an int from 0 to 9"),
        ({"window": 19}, "window=19: choose an int from 1 to 18"),
        ({"interval": 0}, "interval=0: choose"),
        ({"dt": 0.0}, "dt=0.0: pass"),
        ({"h0": [[5.0, 0.0]]}, "the state is not finite, first in trial 0, time step"),
        ({"h0": None}, "state size of Henon is unknown"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(Henon(), **{**ONE, **options})


def test_counts_are_ints_and_dtypes_agree():
    with pytest.raises(TypeError, match=r"transient=1.5: pass an int"):
        lyapunov_spectrum(Henon(), **ONE, transient=1.5)
    with pytest.raises(TypeError, match=r"h0 is torch.float64, the computation torch.float32"):
        lyapunov_spectrum(nn.RNN(1, 2), h0=np.zeros(2), n_steps=5)


def test_packed_sequences_are_sent_to_linearize():
    rnn, inputs = random_cell(nn.RNN(1, 2, batch_first=True)), normal(2, 10, 1)
    packed = nn.utils.rnn.pack_padded_sequence(inputs, [10, 6], batch_first=True)
    with pytest.raises(ValueError, match=r"different lengths: pass kpops.linearize\("):
        lyapunov_spectrum(rnn, inputs=packed)
    result = lyapunov_spectrum(kpops.linearize(rnn, packed), frame_transient=1, rng=0)
    short = lyapunov_spectrum(rnn, inputs=inputs[:, :6], frame_transient=1, rng=0)
    np.testing.assert_allclose(result.trial_exponent[1], short.trial_exponent[1], atol=1e-12)


def test_a_linearization_takes_no_second_trajectory():
    lin = kpops.linearize(nn.RNN(1, 2, batch_first=True), torch.zeros(2, 10, 1))
    with pytest.raises(ValueError, match=r"\['n_steps'\] given, but a linearization has its own"):
        lyapunov_spectrum(lin, n_steps=5)
    masked = kpops.linearize(
        nn.RNN(1, 2, batch_first=True),
        torch.zeros(2, 10, 1),
        mask=np.arange(10) < np.array([[10], [3]]),
    )
    with pytest.raises(ValueError, match="trial 1 has 3 valid steps, of which none is left"):
        lyapunov_spectrum(masked, transient=4)


def test_an_error_late_in_a_run_names_the_step(monkeypatch):
    class Doubling(nn.Module):
        def forward(self, x, h):
            return 2 * h

    monkeypatch.setattr(lyapunov_tangent, "_CHUNK_BYTES", 100 * 8)
    with pytest.raises(ValueError, match=r"time step 24 .*; here steps count from step 1001"):
        lyapunov_spectrum(Doubling(), h0=[1.0], n_steps=2000)


# Statistics.


class Gain(nn.Module):
    """h' = x h, so that log |A[t]| = log |x[t]| is whatever one likes."""

    state_size = 1

    def forward(self, x, h):
        return x * h


def gains(correlation, n_trials, n_steps, seed=0):
    """Logarithms with standard deviation 1 and an exponential autocorrelation, and the inputs."""
    rng = np.random.default_rng(seed)
    logs = np.empty((n_trials, n_steps))
    logs[:, 0] = rng.standard_normal(n_trials)
    for t in range(1, n_steps):
        fresh = rng.standard_normal(n_trials) * np.sqrt(1 - correlation**2)
        logs[:, t] = correlation * logs[:, t - 1] + fresh
    return logs - 0.3, np.exp(logs - 0.3)[:, :, None]


@pytest.fixture(scope="module", params=[0.0, 0.8])
def correlated(request):
    logs, inputs = gains(request.param, 200, 2000)
    result = lyapunov_spectrum(Gain(), inputs=inputs, h0=[1.0], frame_transient=0, rng=0)
    error = np.sqrt((1 + request.param) / (1 - request.param) / 2000)  # of a long AR(1) series
    return logs, result, error


def test_exponents_windows_and_history_are_means_of_the_logarithms(correlated):
    logs, result, _ = correlated
    windows = logs.reshape(200, 100, 20).mean(2)
    np.testing.assert_allclose(result.trial_exponent[:, 0], logs.mean(1), atol=1e-12)
    np.testing.assert_allclose(result.finite_time_exponent[..., 0], windows, atol=1e-12)
    np.testing.assert_allclose(result.finite_time_std[0], windows.std(ddof=1), rtol=1e-10)
    history = windows.mean(0).cumsum() / np.arange(1, 101)
    np.testing.assert_allclose(result.history[:, 0], history, atol=1e-12)
    assert float(result.exponent[0]) == pytest.approx(logs.mean(), abs=1e-12)


def test_standard_errors_account_for_autocorrelation(correlated):
    logs, result, error = correlated
    measured = float((result.trial_stderr[:, 0] ** 2).mean()) ** 0.5
    assert measured == pytest.approx(error, rel=0.1)
    assert float(result.stderr[0]) == pytest.approx(logs.mean(1).std(ddof=1) / 200**0.5, rel=1e-10)
    assert float(result.stderr[0]) == pytest.approx(error / 200**0.5, rel=0.2)


def test_the_error_of_a_mean_over_few_trials_covers():
    """Of 40 means over five trials each, nearly all lie within two of their standard errors."""
    _, inputs = gains(0.8, 200, 1000, seed=1)
    within = []
    for trials in np.arange(200).reshape(40, 5):
        some = lyapunov_spectrum(
            Gain(), inputs=inputs[trials], h0=[1.0], frame_transient=0, window=50, rng=0
        )
        assert 0 < float(some.stderr[0]) < 0.1  # what is infinite would cover anything
        within.append(abs(float(some.exponent[0]) + 0.3) < 2 * float(some.stderr[0]))
    assert 0.9 <= np.mean(within) <= 1


@pytest.mark.parametrize("n_steps", [500, 2000])
def test_errors_of_single_runs_of_chaos_cover(n_steps):
    """Two batch means of 20 hold the long-run exponent in 95 % of the runs (Student: 94 %)."""
    h0 = 0.03 * normal(1000, 2, seed=3)
    result = lyapunov_spectrum(Henon(), h0=h0, n_steps=n_steps, transient=100, rng=0)
    z = (result.trial_exponent[:, 0] - 0.41922) / result.trial_stderr[:, 0]
    assert 0.92 <= float((abs(z) < 2).mean()) <= 0.97  # binomial: 0.94 +- 0.008
    assert float((z**2).mean()) ** 0.5 == pytest.approx(1, abs=0.12)
    spread = float(result.trial_exponent[:, 0].std())
    told = float((result.trial_stderr[:, 0] ** 2).mean()) ** 0.5
    assert told == pytest.approx(spread, rel=0.15)


def test_a_single_window_has_no_standard_error():
    logs, inputs = gains(0, 1, 50)
    result = lyapunov_spectrum(Gain(), inputs=inputs, h0=[1.0], window=45)
    assert np.isnan(result.stderr[0]) and np.isnan(result.trial_stderr[0, 0])
    assert float(result.exponent[0]) == pytest.approx(logs[0, 5:].mean(), rel=1e-12)


def test_windows_take_dt_and_their_ends_as_times():
    result = lyapunov_spectrum(
        Henon(), h0=[0.1, 0.1], n_steps=103, frame_transient=0, window=10, dt=0.5, rng=0
    )
    np.testing.assert_array_equal(result.time, 0.5 * np.arange(13, 104, 10))
    assert result.time.units == "time" and result.history.units == "1/time"
    assert json.loads(result.attrs["configuration"])["frame_transient"] == 3


@pytest.mark.parametrize(
    ("exponents", "dimension", "entropy"),
    [
        ([0.905, 0.0, -14.57], 2 + 0.905 / 14.57, 0.905),
        ([-1.0, 0.5, 0.2], 2.7, 0.7),
        ([-0.1, -0.2], 0.0, 0.0),
        ([0.3, -np.inf], 1.0, 0.3),
        ([-np.inf, -np.inf], 0.0, 0.0),
        ([0.3, 0.1], 2.0, 0.4),
        ([0.0, -1.0], 1.0, 0.0),
        ([np.nan, -1.0], np.nan, np.nan),
    ],
)
def test_dimension_and_entropy_in_closed_form(exponents, dimension, entropy):
    assert float(kaplan_yorke_dimension(exponents)) == pytest.approx(dimension, nan_ok=True)
    assert float(entropy_bound(exponents)) == pytest.approx(entropy, nan_ok=True)


def test_leading_exponents_that_are_too_few_give_no_number():
    assert np.isnan(kaplan_yorke_dimension([0.5, 0.1], complete=False))
    assert np.isnan(entropy_bound([0.5, 0.1], complete=False))
    assert np.isnan(kaplan_yorke_dimension([0.5, -0.1], complete=False))
    assert float(entropy_bound([0.5, -0.1], complete=False)) == 0.5
    result = lyapunov_spectrum(Henon(), 1, h0=[0.1, 0.1], n_steps=200, rng=0)
    assert np.isnan(result.kaplan_yorke_dimension) and np.isnan(result.entropy_bound)


def test_dimension_and_entropy_of_labelled_exponents_keep_the_other_dims():
    result = lyapunov_spectrum(Henon(), h0=0.1 * normal(3, 2), n_steps=300, dt=2.0, rng=0)
    dimension, entropy = (
        function(result.trial_exponent) for function in (kaplan_yorke_dimension, entropy_bound)
    )
    first, second = result.trial_exponent.T
    np.testing.assert_allclose(dimension, 1 - first / second, rtol=1e-12)
    np.testing.assert_allclose(entropy, first, rtol=1e-12)
    assert dimension.dims == ("trial",) and entropy.units == "1/time"
    with pytest.raises(ValueError, match="expected mode among them"):
        entropy_bound(result.time)
