"""What fixed_points takes, refuses, gives back and leaves alone."""

import json
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.dynamics.fixed_points import fixed_points


def rnn(dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = nn.RNN(2, 6, batch_first=True, **options).to(dtype)
    with torch.no_grad():
        model.weight_hh_l0.normal_(0, 0.7)
    return model


def linearization(model=None, dtype=torch.float64, **options):
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 8, 2))).to(dtype)
    return kpops.linearize(rnn(dtype) if model is None else model, inputs, **options)


def same(one, other, atol=0.0):
    assert one.state.shape == other.state.shape
    np.testing.assert_allclose(one.state, other.state, atol=atol)


def test_nothing_of_the_model_is_changed():
    model = nn.LSTM(2, 3, dropout=0.0).double().train()
    model.weight_hh_l0.grad = torch.ones_like(model.weight_hh_l0)
    model.bias_hh_l0.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    starts = torch.ones(2, 6, dtype=torch.float64)
    fixed_points(model, starts, jitter=0.1, rng=0)
    assert model.training and not model.bias_hh_l0.requires_grad
    assert model.weight_hh_l0.requires_grad and (model.weight_hh_l0.grad == 1).all()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert (starts == 1).all()


def test_numbers_of_starts_are_drawn_from_the_linearization_by_the_seed():
    lin = linearization()
    one, same_seed = (fixed_points(lin, 12, rng=3, jitter=0.2) for _ in range(2))
    assert one.identical(same_seed)
    assert one.basin_count.sum() == 12 == one.attrs["n_starts"]
    # The identity stays where it starts: each state is drawn once, as long as there are enough.
    lin = kpops.linearize(Stay(), torch.arange(8.0)[None, :, None], h0=torch.zeros(1, 1))
    drawn = fixed_points(lin, 8, rng=0)
    assert drawn.state.values.ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (drawn.basin_count == 1).all()
    assert fixed_points(lin, 20, rng=0).basin_count.sum() == 20


class Stay(nn.Module):
    """h' = h without input; with input x, it is x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x, h):
        return torch.where(x == 0, h, self.w * x)


def test_padding_is_no_state_to_start_from():
    inputs = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])[..., None]
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    lin = kpops.linearize(Stay(), inputs, h0=torch.zeros(2, 1), mask=mask)
    found = fixed_points(lin, 6, rng=0)
    assert found.state.values.ravel().tolist() == [1, 2, 5, 6, 7, 8]
    states = np.array([1, 2, 5, 6, 7, 8])
    assert found.attrs["spread"] == pytest.approx(states.std(), rel=1e-6)


def test_jitter_has_the_standard_deviation_asked_for():
    lin = kpops.linearize(Stay(), torch.ones(1, 1, 1), h0=torch.zeros(1, 1))
    found = fixed_points(lin, 2000, jitter=0.3, rng=0, merge_distance=1e-9)
    offsets = np.repeat(found.state.values.ravel(), found.basin_count) - 1
    assert offsets.std() == pytest.approx(0.3, rel=0.05) and abs(offsets.mean()) < 0.02


def test_starts_may_be_states_of_any_kind_and_shape():
    lin = linearization()
    expected = fixed_points(lin, lin.trajectory.states.flatten(0, 1))
    same(fixed_points(lin, lin.states), expected)
    same(fixed_points(lin, lin.states.transpose("unit", "time", "trial")), expected, 1e-12)
    same(fixed_points(lin, lin.states.values), expected)
    assert fixed_points(lin, lin.states.values[0, 0]).basin_count.sum() == 1


def test_a_linearization_its_model_and_its_network_have_the_same_points():
    model, readout = rnn(), nn.Linear(6, 1).double()
    starts = linearization(model).states
    expected = fixed_points(model, starts, input=[0.5, -0.5])
    same(fixed_points(linearization(model), starts, input=[0.5, -0.5]), expected)
    same(fixed_points(kpops.Network(model, readout), starts, input=[0.5, -0.5]), expected)
    other = fixed_points(model, starts)
    assert abs(other.state.values[0] - expected.state.values[0]).max() > 1e-3
    np.testing.assert_array_equal(other.input, [0, 0])


def test_where_a_model_has_learned_to_start_plays_no_part():
    model, h0 = rnn(), torch.full((6,), 0.7).double()
    learned = kpops.models.LearnedStart(model, h0)
    lin, lin_of_learned = linearization(model, h0=h0), linearization(learned)
    starts = lin.states.values
    for options in ({}, {"input": [0.5, -0.5]}):
        for one, other in ((learned, model), (lin_of_learned, lin)):
            found, expected = (fixed_points(m, starts, **options) for m in (one, other))
            xr.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"input has shape \(3,\), expected .* = \(2,\)"):
        fixed_points(lin_of_learned, starts, input=[0.5, -0.5, 0.0])
    assert fixed_points(lin_of_learned, 7, rng=0).attrs["n_starts"] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learned_start_goes_to_another_dtype(dtype):
    learned = kpops.models.LearnedStart(rnn(), torch.full((6,), 0.7).double())
    one, other = (
        fixed_points(model, np.zeros((1, 6)), dtype=dtype) for model in (learned, learned.model)
    )
    assert one.state.dtype == str(dtype).removeprefix("torch.")
    same(one, other)


def test_inputs_of_the_wrong_size_are_refused_where_only_the_linearization_knows_it():
    lin = kpops.linearize(Stay(), torch.ones(1, 2, 1), h0=torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"input has shape \(3,\), expected .* = \(1,\)"):
        fixed_points(lin, 1, input=torch.zeros(3))


def test_float64_finds_the_points_of_a_float32_model_to_its_digits():
    lin = linearization(dtype=torch.float32)
    single, double = (fixed_points(lin, lin.states, dtype=d) for d in (None, torch.float64))
    assert single.state.dtype == "float32" and double.state.dtype == "float64"
    assert double.attrs["dtype"] == "float64"
    same(fixed_points(rnn(torch.float32), lin.states, dtype=torch.float64), double)
    assert lin.dtype == torch.float32
    single, double = (p.isel(point=(p.kind == "fixed").values) for p in (single, double))
    assert double.speed.values.max() < 1e-14
    same(single, double, 1e-5)


def test_inference_mode_and_autocast_change_nothing():
    lin = linearization(dtype=torch.float32)
    expected = fixed_points(lin, 10, rng=0)
    with torch.inference_mode():
        same(fixed_points(lin, 10, rng=0), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(fixed_points(lin, 10, rng=0), expected)


def test_models_without_parameters_compute_in_the_dtype_of_the_starts():
    class Logistic(nn.Module):
        def forward(self, x, h):
            return 3.2 * h * (1 - h)

    points = fixed_points(Logistic(), np.array([[0.1], [0.9]], dtype="float32"))
    assert points.state.dtype == "float32"
    np.testing.assert_allclose(points.state[:, 0], [0, 1 - 1 / 3.2], atol=1e-6)
    np.testing.assert_allclose(points.eigenvalue_real[:, 0], [3.2, 2 - 3.2], rtol=1e-5)


@pytest.mark.parametrize("format", ["netcdf", "zarr"])
def test_results_survive_files(format, tmp_path):
    lin = linearization(nn.LSTM(2, 3, batch_first=True).double())
    points = fixed_points(lin, 5, rng=0)
    for name, variable in points.variables.items():
        assert variable.attrs["long_name"]
        assert variable.dtype == object or variable.attrs["units"], name
    if format == "netcdf":
        points.to_netcdf(tmp_path / "points.nc", engine="h5netcdf")
        again = xr.open_dataset(tmp_path / "points.nc", engine="h5netcdf")
    else:
        points.to_zarr(tmp_path / "points.zarr", consolidated=False)
        again = xr.open_dataset(tmp_path / "points.zarr", engine="zarr", consolidated=False)
    with again:
        xr.testing.assert_equal(again.load(), points)
        assert again.attrs == points.attrs
        assert json.loads(again.attrs["configuration"])["merge_distance"] == 1e-3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"starts": torch.zeros(3, 5).double()}, ValueError, r"starts has shape \(3, 5\).*6 unit"),
        ({"starts": torch.zeros(3, 6)}, TypeError, r"starts is torch.float32.*dtype=torch.float32"),
        ({"starts": torch.zeros(0, 6).double()}, ValueError, r"\(0, 6\), expected"),
        ({"starts": 4}, ValueError, "starts=4 states can only be drawn from a linearization"),
        ({"starts": [[np.nan] * 6]}, ValueError, "starts is not finite"),
        ({"starts": xr.DataArray(np.zeros((1, 6)))}, ValueError, "one of them must be unit"),
        ({"input": [1.0]}, ValueError, r"input has shape \(1,\), expected .*\(2,\)"),
        ({"input": [np.inf, 0]}, ValueError, "input is not finite"),
        ({"tol": -1.0}, ValueError, "tol=-1.0"),
        ({"merge_distance": 0}, ValueError, "merge_distance=0"),
        ({"jitter": np.nan}, ValueError, "jitter=nan"),
        ({"max_iterations": 0}, ValueError, "max_iterations=0"),
        ({"dtype": torch.float16}, TypeError, "float16"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    starts = options.pop("starts", torch.zeros(1, 6, dtype=torch.float64))
    with pytest.raises(error, match=message):
        fixed_points(rnn(), starts, **options)


def test_no_starts_from_a_linearization_are_refused():
    with pytest.raises(ValueError, match="starts=0: choose 1 or more"):
        fixed_points(linearization(), 0)


def test_more_points_than_fit_are_refused(monkeypatch):
    lin = kpops.linearize(Stay(), torch.arange(8.0)[None, :, None], h0=torch.zeros(1, 1))
    monkeypatch.setattr("kpops.engines.memory.free_bytes", lambda device: 100)
    monkeypatch.setattr("kpops.engines.memory.ALWAYS_FITS", 100)
    with pytest.raises(MemoryError, match="the eigenvectors of 8 points needs"):
        fixed_points(lin, 8, rng=0)


def test_random_models_are_refused():
    class Noisy(nn.Module):
        def forward(self, x, h):
            return h + torch.randn_like(h)

    with pytest.raises(ValueError, match="random"):
        fixed_points(Noisy(), torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        fixed_points(lambda x, h: h, torch.zeros(2, 3))


def test_outliers_are_flagged_without_a_warning():
    # h' = sigmoid(3 h) h: beyond h = 0.43, where the gate saturates, |F| falls for ever.
    gru = nn.GRU(1, 1, batch_first=True).double()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        gru.weight_hh_l0[1] = 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = fixed_points(gru, torch.tensor([[0.0], [0.9]]).double(), max_iterations=5)
    assert points.kind.values.tolist() == ["fixed", "not converged"]
    assert points.state.values[0, 0] == 0 and points.state.values[1, 0] > 2
    assert points.outlier.values.tolist() == [False, True]
