"""Tokens of deep selective layers against closed forms, quadrature, and a real stack of layers."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from dense import relative
from scipy.integrate import quad

import kpops
from kpops.models import NeuralODE, SelectiveLayer, TokenFlow


def scalar(mu, s, decay=1.0):
    """A flow of one channel."""
    flow = TokenFlow(1, 1, decay=decay).double()
    with torch.no_grad():
        flow.query_weight.fill_(1)
        flow.key_weight.fill_(mu)
        flow.step_weight.fill_(s)
    return flow


def softplus(v):
    return np.logaddexp(0, v)


def naive(flow, x):
    """Velocity of tokens (token, channel), by the double sum of the definition."""
    B, C, s = (w.detach().numpy() for w in (flow.key_weight, flow.query_weight, flow.step_weight))
    delta, velocity = softplus(x @ s), np.zeros_like(x)
    for i in range(len(x)):
        for j in range(i + 1):
            weight = (C @ x[i]) @ (B @ x[j]) * delta[j]
            velocity[i] += weight * math.exp(-flow.decay * delta[j + 1 : i + 1].sum()) * x[j]
    return velocity


def test_the_field_is_the_double_sum():
    flow, x = (
        TokenFlow(3, 2, decay=0.7, rng=0).double(),
        np.random.default_rng(1).normal(size=(2, 5, 3)),
    )
    found = flow(None, torch.from_numpy(x).flatten(1)).detach().unflatten(1, (5, 3))
    assert relative(found, np.stack([naive(flow, each) for each in x])) < 1e-14


def test_the_field_is_the_output_of_a_selective_layer():
    # Of one step size and one rate for all channels; queries and keys are its C and B.
    flow, layer = TokenFlow(2, 3, decay=0.7, rng=0).double(), SelectiveLayer(2, 3, rng=1).double()
    with torch.no_grad():
        layer.ssm.log_rate.fill_(math.log(0.7))
        layer.ssm.step_weight.copy_(flow.step_weight.expand(2, -1))
        layer.ssm.step_bias.zero_()
        layer.ssm.drive_weight.copy_(flow.key_weight)
        layer.query_weight.copy_(flow.query_weight)
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(2)).double()
    outputs = kpops.linearize(layer, x, readout=layer.readout).outputs.values
    velocity = flow(None, x.flatten(1)).detach().unflatten(1, (6, 2))
    assert relative(outputs, velocity) < 1e-14


@pytest.mark.parametrize("mu", [-1.3, 0.4])
def test_the_first_two_tokens_have_a_closed_form_at_constant_step_size(mu):
    # s = 0: delta = log 2, and with v = x_1^-2 = v0 - 2 mu delta t and kappa = exp(-a delta)
    # x_2^-2 = v / (1 - kappa) + const v^kappa.
    a, delta, times = 0.8, math.log(2), np.linspace(0, 2, 9)
    kappa, x = math.exp(-a * delta), np.array([[0.7], [-0.5]])
    found = kpops.token_dynamics(scalar(mu, 0.0, a), x, times)
    v0, w0 = (1 / x[:, 0] ** 2).tolist()
    v = v0 - 2 * mu * delta * times
    w = v / (1 - kappa) + (w0 - v0 / (1 - kappa)) * (v / v0) ** kappa
    exact = np.stack([v**-0.5, -(w**-0.5)], 1)
    assert relative(found.tokens.values[0, ..., 0], exact) < 1e-8


def test_convergent_tokens_fall_like_the_root_of_time_at_fixed_ratios():
    # At zero delta = log 2 for any s, and x_l^2 / x_1^2 -> 1 - exp(-a delta) for all l > 1.
    flow, t = scalar(-1.0, 0.8), [0.0, 1e6, 4e6]
    found = kpops.token_dynamics(flow, [[1.0], [-0.6], [0.3], [2.0]], t)
    assert set(found.regime.values.ravel()) == {"convergence"}
    squares = found.tokens.values[0, 1:, :, 0] ** 2
    np.testing.assert_allclose(squares[:, 0] * 2 * math.log(2) * np.array(t[1:]), 1, rtol=5e-3)
    np.testing.assert_allclose(squares[1, 1:] / squares[1, 0], 0.5, rtol=0.02)
    assert np.isnan(found.escape_time).all()


def test_fast_divergence_ends_at_the_time_of_its_quadrature():
    mu, s, start, bound = 0.5, 1.2, 0.8, 1e4
    found = kpops.token_dynamics(scalar(mu, s), [[start]], [0, 10], bound=bound)
    assert found.regime.item() == "fast divergence"
    # dx / (mu x^3 softplus(s x)), in y = log x
    expected, _ = quad(
        lambda y: math.exp(-2 * y) / (mu * softplus(s * math.exp(y))),
        math.log(start), math.log(bound), epsabs=1e-13, epsrel=1e-13,
    )  # fmt: skip
    assert found.escape_time.item() == pytest.approx(expected, rel=1e-8)
    assert np.isnan(found.tokens.values[0, 1]).all()


def test_slow_divergence_is_logarithmic_and_passes_its_states_at_the_times_of_quadrature():
    mu, s, start = 0.5, -1.2, 0.8
    times = np.array([0.0, 10.0, 1e3, 1e5, 1e7])
    found = kpops.token_dynamics(scalar(mu, s), [[start]], times)
    assert found.regime.item() == "slow divergence"
    x = found.tokens.values[0, :, 0, 0]
    for end, time in zip(x[1:], times[1:], strict=True):
        expected, _ = quad(lambda v: 1 / (mu * v**3 * softplus(s * v)), start, end, limit=200)
        assert expected == pytest.approx(time, rel=1e-6)
    rate = np.diff(x) / np.diff(np.log(np.maximum(times, 1)))
    assert rate[-1] == pytest.approx(1 / 1.2, rel=0.3)


def test_the_sign_of_mu_decides_for_all_tokens_of_one_channel():
    rng = np.random.default_rng(0)
    for _ in range(12):
        mu, s = rng.normal(), rng.normal()
        x = rng.normal(size=(2, 4, 1))
        found = kpops.token_dynamics(scalar(mu, s), x, np.linspace(0, 1.0, 6), bound=1e3)
        grows = (found.length.diff("time") > 0).where(found.length.diff("time").notnull())
        assert bool((grows.fillna(mu > 0) == (mu > 0)).all())
        assert bool(
            (np.sign(found.tokens) == np.sign(x)[:, None]).where(found.tokens.notnull(), True).all()
        )
        names = {"convergence"} if mu < 0 else {"slow divergence", "fast divergence"}
        assert set(found.regime.values.ravel()) <= names


def test_those_predicted_to_diverge_fast_escape_and_the_others_do_not():
    x = [[[0.9], [0.5]], [[-0.9], [-0.5]], [[-0.5], [0.9]], [[0.0], [-0.9]]]
    found = kpops.token_dynamics(scalar(1.0, 2.0), x, [0, 5])
    fast, slow = "fast divergence", "slow divergence"
    expected = [[fast, fast], [slow, slow], [slow, fast], ["rest", slow]]
    assert found.regime.values.tolist() == expected
    assert np.isfinite(found.escape_time).values.tolist() == [True, False, True, False]


def test_the_first_token_stays_on_its_ray_where_the_form_of_mu_decides():
    flow = TokenFlow(3, 2, rng=0).double()
    x = np.random.default_rng(3).normal(size=(12, 3, 3))
    found = kpops.token_dynamics(flow, x, np.linspace(0, 0.5, 5))
    mu = flow.mu().detach().numpy()
    first, u = found.tokens.values[:, :, 0], x[:, 0] / np.linalg.norm(x[:, 0], axis=1)[:, None]
    ray = np.einsum("btd,bd->bt", first, u)
    np.testing.assert_allclose(first, ray[..., None] * u[:, None], atol=1e-7)
    coefficient = np.einsum("bi,ij,bj->b", u, mu, u)
    np.testing.assert_allclose(found.coefficient[:, 0], coefficient, rtol=1e-12)
    assert ((ray[:, 1] > ray[:, 0]) == (coefficient > 0)).all()
    assert {True, False} == set((coefficient > 0).tolist())
    assert (found.regime[:, 1:] == "undecided").all()
    values = np.linalg.eigvalsh((mu + mu.T) / 2)
    np.testing.assert_allclose(found.eigenvalue, values[::-1], rtol=1e-12)


def test_a_stack_of_thin_residual_layers_follows_the_flow():
    flow = TokenFlow(2, 3, rng=0).double()
    x = 0.5 * np.random.default_rng(2).normal(size=(1, 4, 2))
    exact = kpops.token_dynamics(flow, x, [0, 1]).tokens.values[0, 1].ravel()
    errors = []
    for depth in (20, 40, 80):
        ode = NeuralODE(flow, 1 / depth)
        lin = kpops.linearize(ode, ode.inputs(np.arange(depth + 1) / depth), h0=x.reshape(1, -1))
        errors.append(np.linalg.norm(lin.states.values[0, -1] - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_the_result_is_saved_and_comes_in_float64(tmp_path):
    found = kpops.token_dynamics(TokenFlow(2, 3, rng=0), torch.ones(4, 2), [0, 0.1])
    assert found.tokens.dtype == "float64"
    found.to_netcdf(tmp_path / "tokens.nc")
    found.to_zarr(tmp_path / "tokens.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "tokens.zarr", consolidated=False) as again:
        xr.testing.assert_equal(again.load(), found)


def test_the_order_of_dims_of_labelled_tokens_changes_nothing():
    flow = TokenFlow(2, 3, rng=0)
    start = xr.DataArray([[0.1, 0.3], [-0.2, 0.4]], dims=("token", "channel"))
    found = kpops.token_dynamics(flow, start, [0, 1])
    xr.testing.assert_allclose(found, kpops.token_dynamics(flow, start.T, [0, 1]), rtol=1e-12)
    onward = found.tokens.isel(time=1, drop=True).transpose("channel", "trial", "token")
    again = kpops.token_dynamics(flow, onward, [1, 2]).tokens[0, 0]
    np.testing.assert_array_equal(again, found.tokens[0, 1])


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"flow": torch.nn.GRU(2, 3)}, TypeError, r"flow is a model \(GRU\), expected a kpops"),
        ({"tokens": np.ones((4, 3))}, ValueError, r"tokens has shape \(4, 3\), .* 2 channels"),
        ({"tokens": np.full((4, 2), np.nan)}, ValueError, "tokens is not finite"),
        ({"times": [0.0, 0.0]}, ValueError, "pass two rising times or more"),
        ({"times": [0.0, np.inf]}, ValueError, "times is not finite"),
        ({"bound": 1.0}, ValueError, r"a token starts at length 1.41421: pass a larger bound="),
        ({"bound": np.nan}, ValueError, "pass a larger bound= than nan"),
        ({"tokens": xr.DataArray(np.ones((4, 2)))}, ValueError, r"tokens has dims .* expected"),
        ({"rtol": 0}, ValueError, "rtol=0: choose a relative tolerance"),
        ({"bound": "far"}, TypeError, "bound is the string 'far': pass a real number"),
    ],
    ids=range(10),
)
def test_wrong_arguments_are_refused(change, error, told):
    given = {"flow": TokenFlow(2, 3, rng=0), "tokens": np.ones((4, 2)), "times": [0, 1], **change}
    with pytest.raises(error, match=told):
        kpops.token_dynamics(**given)


def test_a_flow_that_is_another_or_not_finite_is_refused():
    class Decay(TokenFlow):
        def forward(self, t, h):
            return -h

    with pytest.raises(TypeError, match=r"flow is a model \(Decay\), whose velocity is not that"):
        kpops.token_dynamics(Decay(2, 3), np.ones((4, 2)), [0, 1])
    flow = TokenFlow(2, 3, rng=0)
    with torch.no_grad():
        flow.step_weight[0] = np.nan
    with pytest.raises(ValueError, match="step_weight of flow is not finite"):
        kpops.token_dynamics(flow, np.ones((4, 2)), [0, 1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size=0: pass an int"),
        ({"n_states": 0}, "n_states=0: pass an int"),
        ({"decay": 0.0}, "decay=0.0: pass a number above 0"),
    ],
)
def test_wrong_options_of_the_flow_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        TokenFlow(**{"size": 2, "n_states": 3, **options})
