"""Covariant Lyapunov vectors: covariance, eigenvectors, the direction of the flow."""

import json

import numpy as np
import pytest
import torch
from systems import RK4, Henon, Linear, dense_jacobians, lorenz, normal, random_cell
from torch import nn

import kpops
from kpops.dynamics.covariant import covariant_lyapunov_vectors
from kpops.dynamics.lyapunov import lyapunov_spectrum


def aligned(a, b):
    """|cos| of the angles between vectors along the first dim."""
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.abs((np.asarray(a) * np.asarray(b)).sum(0)) / lengths


def test_of_a_linear_map_they_are_the_eigenvectors():
    values = np.array([1.1, -0.9, 0.6, 0.3])
    V = np.eye(4) + np.triu(np.full((4, 4), 0.8), 1)
    V /= np.linalg.norm(V, axis=0)
    result = covariant_lyapunov_vectors(
        Linear(V @ np.diag(values) @ np.linalg.inv(V)),
        h0=np.zeros(4),
        n_steps=400,
        frame_transient=180,
        angles=True,
        rng=0,
    )
    assert result.covariant_vector.dims == ("trial", "time", "unit", "mode")
    assert result.covariant_vector.shape == (1, 41, 4, 4)
    for t in (0, 20, 40):
        vectors = result.covariant_vector[0, t].values
        np.testing.assert_allclose(aligned(vectors, V), 1, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(result.growth_rate[0, 0], np.log(np.abs(values)), atol=1e-10)
    np.testing.assert_allclose(result.exponent, np.log(np.abs(values)), atol=1e-10)
    np.testing.assert_allclose(np.cos(result.covariant_angle[0, 3]), np.abs(V.T @ V), atol=1e-10)
    assert (
        np.diagonal(result.covariant_angle[0, 3]) == 0
    ).all() and result.covariant_angle.units == "rad"


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    ("build", "n_units", "k"),
    [
        (lambda: nn.GRU(2, 5, batch_first=True), 5, 5),
        (lambda: nn.LSTM(2, 10, batch_first=True), 20, 2),
    ],
)
def test_the_jacobians_take_each_vector_to_a_positive_multiple_of_the_next(
    build, n_units, k, interval
):
    model = random_cell(build(), scale=1.2)
    inputs, h0 = normal(2, 40, 2, seed=1), normal(2, n_units, seed=2)
    lin = kpops.linearize(model, inputs, h0=h0)
    result = covariant_lyapunov_vectors(
        lin, k, interval=interval, frame_transient=8, backward_transient=6, rng=0
    )
    np.testing.assert_array_equal(result.time, np.arange(8, 35, interval))
    states, jacobians = dense_jacobians(kpops.models.as_recurrence(model), h0, inputs)
    np.testing.assert_allclose(lin.states, states, atol=1e-12)
    vectors, times = result.covariant_vector.values, result.time.values
    for b in range(2):
        for i, t in enumerate(times):
            tangents = vectors[b, i]
            for A in jacobians[b, t : t + interval]:  # h[t] is the state before step t + 1
                tangents = A @ tangents
            lengths = np.linalg.norm(tangents, axis=0)
            if i + 1 < len(times):
                np.testing.assert_allclose(tangents / lengths, vectors[b, i + 1], atol=1e-8)
            rates = np.log(lengths) / interval
            np.testing.assert_allclose(result.growth_rate[b, i], rates, atol=1e-8)
    np.testing.assert_allclose(
        result.exponent, result.growth_rate.mean(("trial", "time")), atol=1e-12
    )
    assert result.attrs["dynamics"] == "driven"


def test_their_growth_is_that_of_the_exponents_and_the_first_is_the_first_of_the_frame():
    h0 = 0.1 * normal(20, 2)
    options = {"h0": h0, "n_steps": 2000, "transient": 100, "rng": 0}
    result = covariant_lyapunov_vectors(
        Henon(), frame_transient=50, backward_transient=50, dt=0.5, **options
    )
    spectrum = lyapunov_spectrum(Henon(), frame_transient=50, dt=0.5, **options)
    np.testing.assert_allclose(result.exponent, spectrum.exponent, atol=2e-3)
    assert result.growth_rate.units == "1/time" and result.time[0] == 75.0
    one = covariant_lyapunov_vectors(
        Henon(), 1, frame_transient=50, backward_transient=50, dt=0.5, **options
    )
    a, b = (r.covariant_vector.isel(mode=0).transpose("unit", ...) for r in (one, result))
    np.testing.assert_allclose(aligned(a.values, b.values), 1, rtol=1e-10)


def test_they_do_not_depend_on_the_inner_product():
    """In coordinates y = M h they are M v, which the frames of the QR are not."""
    cell = random_cell(nn.RNNCell(2, 3), scale=1.0)
    M = torch.tensor([[1.0, 0.8, 0.0], [-0.5, 2.0, 0.3], [0.0, 0.0, 0.5]]).double()

    class Oblique(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, y):
            return self.cell(x, y @ torch.linalg.inv(M).T) @ M.T

    inputs, h0 = normal(2, 300, 2, seed=1), normal(2, 3)
    options = {"inputs": inputs, "frame_transient": 120, "backward_transient": 120, "rng": 0}
    ours = covariant_lyapunov_vectors(Oblique(), h0=h0 @ M.T, **options)
    theirs = covariant_lyapunov_vectors(cell, h0=h0, **options)
    np.testing.assert_allclose(ours.exponent, theirs.exponent, atol=0.02)  # what ends differ
    moved = np.einsum("uv,btvm->ubtm", M.numpy(), theirs.covariant_vector.values)
    vectors = ours.covariant_vector.transpose("unit", ...).values
    np.testing.assert_allclose(aligned(vectors, moved), 1, atol=1e-10)


def test_the_neutral_direction_of_a_flow_is_that_of_its_velocity():
    result = covariant_lyapunov_vectors(
        RK4(lorenz, 0.01),
        h0=[[1.0, 2.0, 20.0], [-3.0, 1.0, 25.0]],
        n_steps=5000,
        transient=1000,
        frame_transient=1500,
        backward_transient=1500,
        interval=50,
        angles=True,
        dt=0.01,
        rng=0,
    )
    h = torch.tensor([[1.0, 2.0, 20.0], [-3.0, 1.0, 25.0]]).double()
    velocities = []
    for t in range(1, 3501):
        h = RK4(lorenz, 0.01)(None, h)
        if t >= 2500 and (t - 2500) % 50 == 0:
            velocities.append(lorenz(h).numpy())
    velocities = np.stack(velocities, 1)
    neutral = result.covariant_vector.sel(mode=2).values
    sines = np.sqrt(1 - aligned(np.moveaxis(neutral, -1, 0), np.moveaxis(velocities, -1, 0)) ** 2)
    assert np.median(sines) < 1e-6 and sines.max() < 1e-3
    np.testing.assert_array_equal(
        result.covariant_angle, result.covariant_angle.transpose(..., "mode_in", "mode")
    )


def test_results_are_labelled_and_go_through_files(tmp_path):
    lin = kpops.linearize(nn.LSTM(2, 3, batch_first=True), torch.randn(2, 30, 2))
    result = covariant_lyapunov_vectors(lin, 2, angles=True, rng=0)
    assert result.sizes == {"trial": 2, "time": 25, "unit": 6, "mode": 2, "mode_in": 2}
    assert list(result.variable.values) == ["h"] * 3 + ["c"] * 3
    assert all(v.dtype == np.float32 for v in result.data_vars.values())
    for variable in (*result.data_vars.values(), result.time, result.unit, result.mode):
        assert {"long_name", "units"} <= set(variable.attrs)
    assert json.loads(result.attrs["configuration"])["backward_transient"] == 3
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    result.to_zarr(tmp_path / "a.zarr", consolidated=False)
    again = covariant_lyapunov_vectors(lin, 2, angles=True, rng=0)
    assert result.identical(again)


def test_without_a_way_back_there_are_no_vectors():
    singular = Linear(np.diag([1.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"annihilates mode 3 of trial 0 by step 1, .* take k=2"):
        covariant_lyapunov_vectors(singular, h0=np.zeros(3), n_steps=20)
    with pytest.raises(ValueError, match=r"mode 1 of trial 0 by step 1, .* begin after that step"):
        covariant_lyapunov_vectors(Linear(np.zeros((2, 2))), h0=np.zeros(2), n_steps=20)
    result = covariant_lyapunov_vectors(singular, 2, h0=np.zeros(3), n_steps=200, rng=0)
    np.testing.assert_allclose(result.exponent, np.log([1, 0.5]), atol=1e-5)


def test_wrong_arguments_are_refused_with_the_remedy():
    mask = np.arange(10) < np.array([[10], [3]])
    lin = kpops.linearize(nn.RNN(1, 2, batch_first=True), torch.zeros(2, 10, 1), mask=mask)
    with pytest.raises(ValueError, match="has a mask: linearise trials of one length"):
        covariant_lyapunov_vectors(lin)
    options = {"h0": [0.1, 0.1], "n_steps": 20}
    for name, value, bounds in (
        ("frame_transient", 0, "from 1 to 20"),
        ("backward_transient", 19, "from 0 to 18"),
        ("interval", 0, "of 1 or more"),
        ("k", 3, "from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=f"{name}={value}: choose an int {bounds}"):
            covariant_lyapunov_vectors(Henon(), **{**options, name: value})
    for few in ({"n_steps": 1}, {"interval": 19}):
        with pytest.raises(ValueError, match="vectors at a single time have no growth: run longer"):
            covariant_lyapunov_vectors(Henon(), **{**options, **few})
    with pytest.raises(MemoryError, match=r"2 covariant vectors at .* times needs"):
        covariant_lyapunov_vectors(Henon(), h0=np.full((10**6, 2), 0.1), n_steps=10**5)


def test_angles_stand_beside_a_coordinate_angle_of_the_trials():
    task = kpops.tasks.memory_pro(2, steps=(2, 2, 2), rng=0, dtype="float64")
    lin = kpops.linearize(torch.nn.GRU(3, 2, batch_first=True).double(), task.inputs)
    result = kpops.covariant_lyapunov_vectors(lin, angles=True)
    np.testing.assert_array_equal(result.angle, task.angle)
    assert result.covariant_angle.dims == ("trial", "time", "mode", "mode_in")
