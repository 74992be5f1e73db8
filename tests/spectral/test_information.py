"""Predictive information: closed forms, laws, and log determinants of dense covariances."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME
from linear_networks import linear_rnn

import kpops
from kpops.spectral.information import predictive_information

RNG = np.random.default_rng(3)
W = 0.5 * RNG.standard_normal((3, 3))
ROOT = RNG.standard_normal((3, 3))
Q = ROOT @ ROOT.T + 0.2 * np.eye(3)
R = np.array([[0.5, 0.1, 0], [0.1, 0.3, -0.1], [0, -0.1, 0.8]])
SINGULAR = np.outer(ROOT[0], ROOT[0])


def covariance_of(noise, n):
    noise = np.asarray(noise, dtype=float)
    return noise if noise.ndim == 2 else np.diag(np.broadcast_to(noise, n))


def dense_information(P, noise, observation_noise, cut, n_units):
    """From log determinants and canonical correlations of what is observed; P of one trial."""
    n_steps = len(P) // n_units
    whole = P @ np.kron(np.eye(n_steps), covariance_of(noise, n_units)) @ P.T
    seen = np.ones(n_units, dtype=bool)
    if observation_noise is not None:
        added = covariance_of(observation_noise, n_units)
        seen = np.isfinite(np.diag(added))
        whole = whole + np.kron(np.eye(n_steps), np.where(np.isfinite(added), added, 0))
    whole = whole[np.ix_(np.tile(seen, n_steps), np.tile(seen, n_steps))]
    at = (cut + 1) * seen.sum()
    past, future, across = whole[:at, :at], whole[at:, at:], whole[:at, at:]
    information = sum(np.linalg.slogdet(m)[1] / 2 for m in (past, future))
    information -= np.linalg.slogdet(whole)[1] / 2
    a, b = np.linalg.cholesky(past), np.linalg.cholesky(future)
    rho = np.linalg.svd(np.linalg.solve(a, np.linalg.solve(b, across.T).T), compute_uv=False)
    return information, rho


@pytest.mark.parametrize(
    ("noise", "observation_noise"),
    [
        (1.0, None),
        ([0.5, 1, 2], None),
        (Q, None),
        (1.0, 0.7),
        (Q, R),
        (SINGULAR, R),
        (Q, [0.5, np.inf, 0.1]),
        ([1.0, 0, 0], 1e-3),
    ],
    ids=["unit", "by unit", "matrix", "noisy", "matrices", "singular", "unseen", "precise"],
)
def test_information_is_that_of_the_dense_covariances(noise, observation_noise):
    lin = linear_rnn(W, 7)
    found = predictive_information(lin, noise=noise, observation_noise=observation_noise)
    P = lin.P.to_dense()
    for cut in range(6):
        exact, rho = dense_information(P, noise, observation_noise, cut, 3)
        here = found.isel(trial=0, at_time=cut)
        assert float(here.information) == pytest.approx(exact, abs=1e-10)
        padded = np.concatenate([rho, np.zeros(3)])[:3]
        np.testing.assert_allclose(here.correlation**2, padded**2, atol=1e-10)


@pytest.mark.parametrize("name", ["gru", "lstm_two_layers", "shared_norm_cell"])
def test_every_trial_of_a_model_has_its_own(name):
    case = BY_NAME[name]
    model, (inputs, h0) = case.model(), case.data()
    lin = kpops.linearize(model, case.as_module_takes(model, inputs), h0=h0)
    found = predictive_information(lin, noise=0.5, observation_noise=2.0, times=[1, 3])
    for b in range(3):
        P = lin.P.select(trial=b).to_dense()
        for i, cut in enumerate((1, 3)):
            exact, _ = dense_information(P, 0.5, 2.0, cut, case.state_size)
            assert float(found.information[b, i]) == pytest.approx(exact, abs=1e-10)


def test_a_scalar_system_tends_to_its_closed_form():
    for a in (0.3, -0.8, 0.95):
        found = predictive_information(linear_rnn([[a]], 500), noise=2.5, times=[498]).squeeze()
        assert float(found.information) == pytest.approx(-0.5 * np.log(1 - a**2), abs=1e-10)
        assert float(found.correlation) == pytest.approx(abs(a), abs=1e-10)
        assert float(found.participation) == float(found.entropy_dimension) == 1


def test_exact_states_need_the_controllability_gramian_alone():
    lin = linear_rnn(W, 9)
    C = kpops.controllability_gramian(lin, times=[4]).gramian.values[0, 0]
    exact = np.linalg.slogdet(np.eye(3) + W @ C @ W.T)[1] / 2
    found = predictive_information(lin, times=[4]).squeeze()
    assert float(found.information) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("observation_noise", [None, 0.3])
def test_independent_units_add(observation_noise):
    weights = (0.9, -0.5, 0.2)
    options = {"observation_noise": observation_noise}
    whole = predictive_information(linear_rnn(np.diag(weights), 30), **options)
    parts = [predictive_information(linear_rnn([[a]], 30), **options) for a in weights]
    np.testing.assert_allclose(whole.information, sum(p.information for p in parts), atol=1e-12)
    joined = np.sort(np.concatenate([p.correlation for p in parts], axis=2), axis=2)[..., ::-1]
    np.testing.assert_allclose(whole.correlation, joined, atol=1e-12)


def test_equal_units_have_as_many_dimensions():
    found = predictive_information(linear_rnn(0.7 * np.eye(4), 10), observation_noise=1.0)
    np.testing.assert_allclose(found.participation, 4, rtol=1e-12)
    np.testing.assert_allclose(found.entropy_dimension, 4, rtol=1e-12)


def test_dimensions_are_those_of_the_shares_of_information():
    found = predictive_information(linear_rnn(W, 6), noise=Q)
    share = -0.5 * np.log(1 - found.correlation.values**2)
    np.testing.assert_allclose(share.sum(-1), found.information, rtol=1e-10)
    share /= share.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.participation, 1 / (share**2).sum(-1), rtol=1e-8)
    entropy = -(share * np.log(share)).sum(-1)
    np.testing.assert_allclose(found.entropy_dimension, np.exp(entropy), rtol=1e-8)


@pytest.mark.parametrize("observation_noise", [None, R])
def test_invertible_maps_of_the_state_change_nothing(observation_noise):
    T = np.array([[1.0, 0.4, 0], [-0.2, 0.7, 0.5], [0.1, 0, 1.3]])
    mapped = None if observation_noise is None else T @ observation_noise @ T.T
    first = predictive_information(linear_rnn(W, 8), noise=Q, observation_noise=observation_noise)
    second = predictive_information(
        linear_rnn(T @ W @ np.linalg.inv(T), 8), noise=T @ Q @ T.T, observation_noise=mapped
    )
    for name in ("information", "correlation", "participation", "entropy_dimension"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-9, atol=1e-10)


def test_the_less_is_observed_the_less_is_known():
    lin = linear_rnn(W, 8)
    levels = (None, 1e-8, 0.1, 1.0, 10.0, 1e8)
    found = [predictive_information(lin, observation_noise=r).information for r in levels]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    for more, less in pairwise(found):
        assert (less < more).all()
    assert float(found[-1].max()) < 1e-12


@pytest.mark.parametrize("observation_noise", [None, 0.5])
def test_padded_steps_do_not_count(observation_noise):
    torch.manual_seed(0)
    gru, inputs = torch.nn.GRU(2, 3, batch_first=True).double(), torch.randn(2, 7, 2).double()
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    options = {"observation_noise": observation_noise}
    found = predictive_information(kpops.linearize(gru, inputs, mask=mask), **options)
    short = predictive_information(kpops.linearize(gru, inputs[1:, :4]), **options)
    whole = predictive_information(kpops.linearize(gru, inputs[:1]), **options)
    np.testing.assert_allclose(found.information[0], whole.information[0], rtol=1e-12)
    np.testing.assert_allclose(found.information[1, :3], short.information[0], rtol=1e-12)
    assert not found.information[1, 3:].any()
    assert np.isnan(found.participation[1, 3:]).all()


def test_times_are_chosen_in_any_order():
    lin = linear_rnn(W, 8)
    every, some = predictive_information(lin), predictive_information(lin, times=[5, -6, 5])
    assert some.at_time.values.tolist() == [6, 3, 6]
    np.testing.assert_allclose(some.information, every.information[:, [5, 2, 5]], rtol=1e-13)


def test_labels_dtype_and_files(tmp_path):
    lin = kpops.linearize(torch.nn.LSTM(2, 3, batch_first=True), torch.ones(2, 4, 2))
    found = predictive_information(lin, observation_noise=0.1)
    assert found.information.attrs["units"] == "nat"
    assert found.correlation.dims == ("trial", "at_time", "mode")
    assert found.mode.values.tolist() == [1, 2, 3, 4, 5, 6]
    assert all(variable.dtype == np.float32 for variable in found.values())
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again, found)
    found.to_zarr(tmp_path / "found.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "found.zarr", consolidated=False) as again:
        xr.testing.assert_equal(again.load(), found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"times": [4]}, r"times=\[4\]: choose positions from 0 to 3"),
        ({"times": [3]}, r"times=\[3\]: nothing is after the last of 4 steps"),
        ({"noise": 0.0}, "noise has the eigenvalue 0.* infinite: pass observation_noise="),
        ({"noise": SINGULAR}, "noise has the eigenvalue .* infinite: pass observation_noise="),
        ({"noise": -1.0, "observation_noise": 1.0}, "noise has the eigenvalue -1: variances"),
        ({"noise": [1.0, 2.0]}, r"noise has shape \(2,\): pass a variance, 3 of them"),
        ({"noise": np.nan}, "noise has entries that are not finite"),
        ({"noise": np.triu(Q)}, "noise is not symmetric"),
        ({"observation_noise": 0.0}, "observation_noise has the eigenvalue 0"),
        ({"observation_noise": np.inf}, "infinite for every unit: nothing is observed"),
        ({"noise": [1, np.inf, 1], "observation_noise": 1.0}, "noise has entries that are not"),
    ],
)
def test_impossible_noise_and_times_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        predictive_information(linear_rnn(W, 4), **options)


def test_what_has_no_future_or_no_states_is_refused():
    with pytest.raises(ValueError, match="one step alone, which has no future"):
        predictive_information(linear_rnn(W, 1))
    with pytest.raises(TypeError, match="pass a Linearization, or its P"):
        predictive_information(np.eye(3))
    with pytest.raises(TypeError, match="noise is"):
        predictive_information(linear_rnn(W, 4), noise="white")


def test_the_entropy_rank_is_the_von_neumann_dimension():
    torch.manual_seed(0)
    lin = kpops.linearize(
        torch.nn.GRU(2, 3, batch_first=True).double(), torch.randn(2, 4, 2).double()
    )
    G = lin.flow.to_dense()
    values = np.linalg.eigvalsh(G / np.trace(G))
    values = values[values > 1e-15]
    exact = np.exp(-(values * np.log(values)).sum())
    assert float(kpops.effective_rank(lin.flow, "entropy").estimate) == pytest.approx(exact)
