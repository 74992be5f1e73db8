"""Principal components of trajectories, against plain SVDs and closed forms."""

import numpy as np
import pytest
import torch
import xarray as xr
from test_oracles import linear_rnn
from torch import nn

import kpops
from kpops.learning.trajectories import trajectory_dimension

B, T, S = 5, 7, 4


@pytest.fixture
def states():
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, T, S)) @ np.diag([3, 2, 1, 0.1]) + rng.standard_normal(S)


def rows_about_their_means(states, over):
    """Samples (trial and time, unit), group by group, and the number of groups; by plain loops."""
    if over == ():
        return states.reshape(-1, S), 0
    groups = {
        ("trial", "time"): [states.reshape(-1, S)],
        ("trial",): [states[:, t] for t in range(T)],
        ("time",): list(states),
    }[over]
    return np.concatenate([g - g.mean(0) for g in groups]), len(groups)


@pytest.mark.parametrize("over", [("trial", "time"), ("trial",), ("time",), ()])
def test_axes_and_variances_are_those_of_the_covariance(states, over):
    rows, n_groups = rows_about_their_means(states, over)
    covariance = rows.T @ rows / (B * T - n_groups)
    values = np.linalg.eigvalsh(covariance)[::-1]
    result = trajectory_dimension(states, over=over)
    np.testing.assert_allclose(result.variance, values, rtol=1e-12)
    np.testing.assert_allclose(result.explained, values / values.sum(), rtol=1e-12)
    axes = result.axis.values
    np.testing.assert_allclose(axes @ axes.T, np.eye(S), atol=1e-13)
    np.testing.assert_allclose(axes.T @ np.diag(values) @ axes, covariance, atol=1e-12)
    assert float(result.participation_ratio) == pytest.approx(
        np.trace(covariance) ** 2 / np.trace(covariance @ covariance), rel=1e-12
    )


def test_over_both_dims_it_is_the_pca_of_scikit_learn(states):
    PCA = pytest.importorskip("sklearn.decomposition").PCA
    pca = PCA().fit(states.reshape(-1, S))
    result = trajectory_dimension(states)
    np.testing.assert_allclose(result.variance, pca.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(result.explained, pca.explained_variance_ratio_, rtol=1e-12)
    signs = np.sign((result.axis.values * pca.components_).sum(1))
    np.testing.assert_allclose(result.axis, signs[:, None] * pca.components_, atol=1e-12)


def test_both_measures_are_effective_ranks_of_the_centred_samples(states):
    rows, _ = rows_about_their_means(states, ("trial", "time"))
    result = trajectory_dimension(states, threshold=0.9)
    participation = kpops.effective_rank(rows, "participation").estimate
    assert float(result.participation_ratio) == pytest.approx(float(participation), rel=1e-12)
    variance = float(kpops.effective_rank(rows, "variance", threshold=0.9).estimate)
    assert int(result.n_components) == np.ceil(variance) == 2


def test_isotropic_states_fill_all_their_dimensions():
    n = 20
    states = np.concatenate([np.eye(n), -np.eye(n)])[:, None]
    result = trajectory_dimension(states)
    assert float(result.participation_ratio) == pytest.approx(n, rel=1e-13)
    assert int(result.n_components) == 19  # exactly 95 %
    assert int(trajectory_dimension(states, threshold=0.951).n_components) == 20


def test_a_circle_has_two_dimensions_and_a_line_one():
    angle = 2 * np.pi * np.arange(12).reshape(3, 4) / 12
    plane = np.stack([np.cos(angle), np.sin(angle)], -1) @ np.linalg.qr(np.eye(6, 2) + 0.1)[0].T
    circle = trajectory_dimension(plane)
    assert float(circle.participation_ratio) == pytest.approx(2, rel=1e-13)
    assert int(circle.n_components) == 2
    assert float(circle.variance[2:].max()) < 1e-28
    line = trajectory_dimension(angle[..., None] * np.ones(6))
    assert float(line.participation_ratio) == pytest.approx(1, rel=1e-13)
    assert int(line.n_components) == 1


def test_what_all_trials_share_does_not_count_over_trials(states):
    common = 50 * np.random.default_rng(1).standard_normal((1, T, S))
    own = 50 * np.random.default_rng(1).standard_normal((B, 1, S))
    for offset, over in ((common, "trial"), (own, "time")):
        with_offset = trajectory_dimension(states + offset, over=over)
        without = trajectory_dimension(states, over=over)
        np.testing.assert_allclose(with_offset.variance, without.variance, rtol=1e-10)
        among_all = trajectory_dimension(states + offset)
        assert float(among_all.variance.sum()) > 100 * float(without.variance.sum())


@pytest.mark.parametrize("over", [("trial", "time"), "trial", "time", ()])
def test_masked_steps_are_left_out(states, over):
    lengths = np.array([7, 5, 2, 7, 3])
    mask = np.arange(T) < lengths[:, None]
    padded = np.where(mask[..., None], states, np.nan)
    result = trajectory_dimension(padded, mask=mask, over=over)
    if over == "time":
        groups = [states[b, :n] for b, n in enumerate(lengths)]
    elif over == "trial":
        groups = [states[mask[:, t], t] for t in range(T)]
    else:
        groups = [states[mask]]
    means = [0 if over == () else g.mean(0) for g in groups]
    rows = np.concatenate([g - m for g, m in zip(groups, means, strict=True)])
    n_free = len(rows) - (0 if over == () else len(groups))
    expected = np.linalg.eigvalsh(rows.T @ rows / n_free)[::-1]
    np.testing.assert_allclose(result.variance, expected, rtol=1e-12)


def test_a_linearization_stands_for_its_valid_states():
    torch.manual_seed(0)
    gru = nn.GRU(3, 6, batch_first=True).double()
    inputs = torch.randn(4, 5, 3).double()
    mask = torch.arange(5) < torch.tensor([[5], [3], [5], [2]])
    lin = kpops.linearize(gru, inputs, mask=mask)
    result = trajectory_dimension(lin)
    by_hand = trajectory_dimension(gru(inputs)[0], mask=mask)
    np.testing.assert_allclose(result.variance, by_hand.variance, rtol=1e-12)
    assert result.attrs["model"] == "GRU"
    xr.testing.assert_allclose(
        result.drop_attrs(), trajectory_dimension(lin.states, mask=mask).drop_attrs()
    )


def test_second_moments_of_the_previous_states_give_the_participation_of_K():
    rng = np.random.default_rng(0)
    W = 0.5 * rng.standard_normal((S, S))
    inputs = torch.from_numpy(rng.standard_normal((B, T, 2)))
    h0 = torch.from_numpy(rng.standard_normal((B, S)))
    cell = linear_rnn(W, rng.standard_normal((S, 2)))
    lin = kpops.linearize(cell, inputs, h0=h0, parameters=["W"])
    previous = np.concatenate([h0[:, None], lin.states.values[:, :-1]], axis=1)
    moments = trajectory_dimension(previous, over=())
    rank = float(kpops.effective_rank(lin.K).estimate)
    assert rank == pytest.approx(S * float(moments.participation_ratio), rel=1e-10)


def test_more_units_than_samples():
    states = np.random.default_rng(0).standard_normal((2, 3, 9))
    result = trajectory_dimension(states)
    rows = states.reshape(6, 9) - states.reshape(6, 9).mean(0)
    expected = np.linalg.svd(rows, compute_uv=False)[:5] ** 2 / 5
    np.testing.assert_allclose(result.variance, expected, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_constant_states_have_no_dimension(value):
    result = trajectory_dimension(np.full((3, 4, 5), value))
    assert not result.variance.any()
    assert float(result.participation_ratio) == 0
    assert int(result.n_components) == 0


def test_float32_states_are_summed_in_float64_and_stay_float32(states):
    far = (states + 1e4).astype("float32")
    result = trajectory_dimension(far)
    exact = trajectory_dimension(far.astype(float))
    assert result.variance.dtype == result.axis.dtype == np.float32
    assert result.participation_ratio.dtype == np.float32
    np.testing.assert_allclose(result.variance, exact.variance, rtol=1e-6)
    assert trajectory_dimension(torch.from_numpy(states)).variance.dtype == np.float64


def test_labels_are_kept_whatever_the_order_of_dims(states, tmp_path):
    named = xr.DataArray(
        states, dims=("trial", "time", "unit"), coords={"unit": list("abcd"), "trial": range(B)}
    )
    result = trajectory_dimension(named.transpose("unit", "trial", "time"))
    assert result.axis.dims == ("mode", "unit")
    assert result.unit.values.tolist() == list("abcd")
    plain = trajectory_dimension(states)
    np.testing.assert_array_equal(result.variance, plain.variance)
    projected = named @ result.axis
    variances = projected.stack(sample=("trial", "time")).var("sample", ddof=1)
    np.testing.assert_allclose(variances, result.variance, rtol=1e-12)
    assert all({"long_name", "units"} <= set(v.attrs) for v in result.data_vars.values())
    plain.to_netcdf(tmp_path / "pca.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "pca.nc", engine="h5netcdf"), plain)


def test_one_variable_of_an_lstm_is_chosen_by_its_label():
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 3, batch_first=True).double()
    inputs = torch.randn(4, 5, 2).double()
    states = kpops.linearize(lstm, inputs).states
    hidden = trajectory_dimension(states.isel(unit=states["variable"] == "h"))
    by_hand = trajectory_dimension(lstm(inputs)[0])
    np.testing.assert_allclose(hidden.variance, by_hand.variance, rtol=1e-12)


def test_states_on_the_device(device):
    torch.manual_seed(0)
    rnn = nn.RNN(2, 3, batch_first=True).double()
    inputs = torch.randn(4, 5, 2).double()
    there = trajectory_dimension(kpops.linearize(rnn, inputs, device=device))
    here = trajectory_dimension(rnn(inputs)[0])
    np.testing.assert_allclose(there.variance, here.variance, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"over": "unit"}, ValueError, r"over=\('unit',\): choose from \('trial', 'time'\)"),
        ({"over": ("time", "time")}, ValueError, "each at most once"),
        ({"threshold": 1.0}, ValueError, r"threshold=1.0: choose a fraction"),
        ({"mask": np.ones((2, 2))}, ValueError, r"mask has shape \(2, 2\), expected"),
        ({"mask": np.full((B, T), 2)}, ValueError, "mask has values other than 0 and 1"),
    ],
)
def test_wrong_options_are_refused(states, options, error, told):
    with pytest.raises(error, match=told):
        trajectory_dimension(states, **options)


def test_wrong_states_are_refused(states):
    with pytest.raises(ValueError, match=r"states has shape \(5, 7\), expected"):
        trajectory_dimension(states[..., 0])
    with pytest.raises(ValueError, match="states has dims"):
        trajectory_dimension(xr.DataArray(states, dims=("trial", "time", "neuron")))
    with pytest.raises(TypeError, match=r"torch\.int64 is not supported"):
        trajectory_dimension(np.ones((2, 3, 4), dtype=int))
    with pytest.raises(ValueError, match="not finite at some valid step"):
        trajectory_dimension(np.where(states > 0, states, np.nan))
    with pytest.raises(ValueError, match="makes 7 means of 7 samples"):
        trajectory_dimension(states[:1], over="trial")
    lin = kpops.linearize(nn.RNN(2, 3, batch_first=True), torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="a linearization has its own"):
        trajectory_dimension(lin, mask=np.ones((1, 4)))
