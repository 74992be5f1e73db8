"""Eigenvalues, modes and residuals of series with known Koopman spectra."""

import importlib
import logging

import koopman_systems as systems
import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.koopman import dmd

pytest.importorskip("pydmd", exc_type=ImportError)

EIGENVALUES = [0.95, 0.5, -0.7, 0.8 + 0.4j]


def rng():
    return np.random.default_rng(0)


def sorted_pairs(values):
    return np.sort_complex(np.round(np.asarray(values), 13))


def reconstructed(modes, n_steps):
    powers = modes.eigenvalue.values[:, None] ** np.arange(n_steps)
    parts = (modes.amplitude.values, powers, modes.mode_shape.values)
    return np.einsum("km,kt,ku->mtu", *parts)


@pytest.mark.parametrize("delays", [1, 3])
def test_a_linear_system_has_the_eigenvalues_of_its_matrix(delays):
    A = systems.planted(EIGENVALUES, rng())
    x = systems.linear(A, 8, 20, rng())
    modes = dmd(x, delays=delays, rank=5)
    expected = sorted_pairs(np.linalg.eigvals(A))
    np.testing.assert_allclose(sorted_pairs(modes.eigenvalue), expected, rtol=0, atol=1e-10)
    assert modes.residual.max() < 1e-10 and not modes.spurious.any()
    np.testing.assert_allclose(reconstructed(modes, 20), x, rtol=0, atol=1e-10)


def test_delays_recover_a_system_from_one_of_its_units():
    A = systems.planted(EIGENVALUES, rng())
    x = systems.linear(A, 30, 12, rng())[:, :, 0]
    series = xr.DataArray(x, dims=("trial", "time"))
    modes = dmd(series, delays=5)
    expected = sorted_pairs(np.linalg.eigvals(A))
    np.testing.assert_allclose(sorted_pairs(modes.eigenvalue), expected, rtol=0, atol=1e-10)


def test_no_pair_of_states_is_across_trials():
    A = systems.planted(EIGENVALUES, rng())
    x = systems.linear(A, 6, 9, rng())
    ragged = [trial[: 4 + i % 3] for i, trial in enumerate(x)]
    modes = dmd(ragged)
    assert modes.attrs["n_pairs"] == sum(len(trial) - 1 for trial in ragged)
    assert modes.residual.max() < 1e-10


def test_a_mask_and_a_list_of_trials_are_read_alike():
    x = systems.linear(systems.planted(EIGENVALUES, rng()), 6, 9, rng())
    lengths = np.array([9, 8, 7, 9, 6, 5])
    mask = np.arange(9) < lengths[:, None]
    padded = np.where(mask[..., None], x, np.nan)
    by_mask = dmd(padded, mask=mask)
    by_list = dmd([trial[:n] for trial, n in zip(x, lengths, strict=True)])
    xr.testing.assert_equal(by_mask, by_list)
    labelled = xr.DataArray(padded, dims=("trial", "time", "unit")).assign_coords(
        mask=(("trial", "time"), mask)
    )
    xr.testing.assert_equal(dmd(labelled.transpose("unit", "time", "trial")), by_list)


def test_gradient_descent_on_a_quadratic_has_one_minus_eta_lambda():
    curvature, eta = np.array([0.3, 1.0, 2.5, 4.0]), 0.3
    Q = systems.orthogonal(4, rng())
    H = torch.from_numpy(Q @ np.diag(curvature) @ Q.T)
    paths = []
    for start in rng().standard_normal((5, 4)):
        w = torch.nn.Parameter(torch.from_numpy(start))
        optimizer, path = torch.optim.SGD([w], lr=eta), []
        for step in range(15):
            path.append((step, {"w": w.detach().clone()}))
            optimizer.zero_grad()
            (w @ H @ w / 2).backward()
            optimizer.step()
        paths.append(kpops.training.weight_trajectories(path))
    weights = xr.concat(paths, "seed")
    modes = dmd(weights)
    expected = np.sort(1 - eta * curvature)
    np.testing.assert_allclose(sorted_pairs(modes.eigenvalue), expected, rtol=0, atol=1e-10)
    assert modes.mode_shape.dims == ("mode", "parameter")
    assert modes.amplitude.dims == ("mode", "seed")
    assert modes.parameter_name.values.tolist() == ["w"] * 4
    # The loss is the sum of the squares of the eigenfunctions.
    losses = 0.5 * xr.dot(
        weights, xr.DataArray(H.numpy(), dims=("parameter", "p2")), dim="parameter"
    )
    loss = (losses.rename(p2="parameter") * weights).sum("parameter")
    found = dmd(loss.drop_vars("step"), delays=4).eigenvalue.values
    np.testing.assert_allclose(np.sort(found.real), np.sort(expected**2), rtol=0, atol=1e-8)


def test_shifted_minima_add_the_eigenvalue_one():
    A = np.diag([0.9, 0.6])
    x = systems.linear(A, 5, 12, rng()) + np.array([2.0, -1.0])
    found = dmd(np.concatenate([x, np.ones((5, 12, 1))], -1))
    np.testing.assert_allclose(found.eigenvalue.values.real, [1, 0.9, 0.6], rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Input data condition number")
def test_eigenvalues_and_modes_are_those_of_pydmd():
    pydmd = importlib.import_module("pydmd")
    x = systems.lorenz(120, rng())
    theirs = pydmd.DMD(svd_rank=3, exact=True).fit(x.T)
    ours = dmd(x)
    order = np.lexsort((-theirs.eigs.imag, -theirs.eigs.real, -np.abs(theirs.eigs).round(12)))
    np.testing.assert_allclose(ours.eigenvalue, theirs.eigs[order], rtol=0, atol=1e-12)
    shapes = theirs.modes[:, order] / np.linalg.norm(theirs.modes[:, order], axis=0)
    overlap = np.abs((ours.mode_shape.values.conj() * shapes.T).sum(1))
    np.testing.assert_allclose(overlap, 1, rtol=0, atol=1e-12)
    hankel = pydmd.HankelDMD(svd_rank=6, exact=True, d=4).fit(x.T)
    np.testing.assert_allclose(
        np.sort_complex(dmd(x, delays=4, rank=6).eigenvalue.values),
        np.sort_complex(hankel.eigs),
        rtol=0,
        atol=1e-10,
    )


def test_many_more_parameters_than_steps_are_reduced_exactly():
    A = systems.planted(EIGENVALUES, rng())
    few = systems.linear(A, 2, 10, rng())
    wide = few @ rng().standard_normal((5, 400))
    modes = dmd(wide, rank=5)
    expected = sorted_pairs(np.linalg.eigvals(A))
    np.testing.assert_allclose(sorted_pairs(modes.eigenvalue), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(reconstructed(modes, 10), wide, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept_and_results_can_be_saved(dtype, tmp_path):
    x = systems.linear(systems.planted(EIGENVALUES, rng()), 6, 9, rng()).astype(dtype)
    modes = dmd(xr.DataArray(x, dims=("trial", "time", "unit"), coords={"trial": range(6)}))
    complexes = {"eigenvalue", "mode_shape", "amplitude"}
    assert {modes[name].dtype for name in complexes} == {np.result_type(dtype, np.complex64)}
    assert modes.residual.dtype == dtype
    assert all({"long_name", "units"} <= set(v.attrs) for v in modes.data_vars.values())
    modes.to_netcdf(tmp_path / "modes.nc", engine="h5netcdf")
    modes.to_zarr(tmp_path / "modes.zarr", consolidated=False)
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "modes.zarr", consolidated=False).load(), modes
    )


def test_states_of_a_linearization_are_read_with_their_mask_and_labels(tmp_path):
    task = kpops.tasks.memory_pro(6, steps=(3, 4, 5), rng=0)
    gru = torch.nn.GRU(3, 4, batch_first=True).double()
    mask = np.arange(12) < np.array([12, 11, 10, 12, 9, 8])[:, None]
    lin = kpops.linearize(gru, task.inputs, mask=mask, dtype=torch.float64)
    modes = dmd(lin)
    xr.testing.assert_allclose(modes.residual, dmd(lin.states.values, mask=mask).residual)
    assert modes.angle.dims == ("trial",)
    modes.to_zarr(tmp_path / "modes.zarr", consolidated=False)


def test_a_trial_or_a_unit_that_was_selected_is_read_with_its_label(tmp_path):
    x = systems.linear(systems.planted(EIGENVALUES, rng()), 3, 20, rng())
    labelled = xr.DataArray(
        x,
        dims=("trial", "time", "unit"),
        coords={"trial": [4, 5, 6], "time": range(20), "unit": list("abcde")},
    )
    one = dmd(labelled[1])
    assert one.trial.values.tolist() == [5] and one.unit.values.tolist() == list("abcde")
    xr.testing.assert_allclose(one.eigenvalue, dmd(x[1]).eigenvalue)
    few = dmd(labelled[:, :, 2], delays=3)
    assert few.unit.values.tolist() == ["c"] and few.trial.values.tolist() == [4, 5, 6]
    few.to_zarr(tmp_path / "few.zarr", consolidated=False)


def test_units_in_another_order_are_refused():
    x = systems.linear(systems.planted(EIGENVALUES, rng()), 3, 20, rng())
    x = xr.DataArray(x, dims=("trial", "time", "unit"), coords={"unit": list("abcde")})
    turned = x.sel(unit=list("edcba"))
    with pytest.raises(ValueError, match="test has the unit e where series has a: order"):
        dmd(x, test=turned)
    with pytest.raises(ValueError, match=r"series\[1\] has the unit e where series\[0\] has a"):
        dmd([x[0], turned[1]])
    assert dmd(x, test=turned.sel(unit=x.unit)).residual.max() < 1e-10


def test_the_root_logger_stays_the_users():
    before = logging.root.handlers[:]
    dmd(systems.lorenz(50, rng()))
    assert logging.root.handlers == before


def test_bad_series_are_refused_by_name():
    x = systems.linear(systems.planted(EIGENVALUES, rng()), 3, 8, rng())
    cases = [
        (lambda: dmd(np.ones((3, 8, 2))), "series is constant in every trial"),
        (lambda: dmd(np.where(x > x.max() - 1e-9, np.nan, x)), "series is not finite at trial"),
        (lambda: dmd(x[:, :4], delays=4), "too few for delays=4: pass at least 5 steps"),
        (lambda: dmd(x[:, :1]), "series has 1 steps in trial 0: pass at least 2"),
        (lambda: dmd([x[0], x[1, :, :2]]), r"series\[1\] has observables 2, series\[0\] has 5"),
        (lambda: dmd([]), "series is an empty list"),
        (lambda: dmd(x, rank=6), "rank=6: choose an int from 1 to 5"),
        (lambda: dmd(x[0, :5]), "has 4 pairs of successive windows.*choose rank below 4"),
        (lambda: dmd(np.eye(3)[:, 2:]), "series is zero up to its last step"),
        (lambda: dmd(x, tol=0), "tol=0: choose a positive residual"),
        (lambda: dmd(x, test=x[..., :2]), "test has 2 observables, series 5"),
        (lambda: dmd(x, mask=np.ones((3, 7))), r"mask has shape \(3, 7\)"),
        (lambda: dmd(x, mask=np.arange(8) % 2), "mask of series has a gap in trial 0"),
        (lambda: dmd(x, mask=np.full((3, 8), np.nan)), "mask has values other than 0 and 1"),
        (lambda: dmd(x[:0]), r"series has no trials, shape \(0, 8, 5\)"),
        (lambda: dmd(xr.DataArray(x, dims=("a", "b", "c"))), "expected time or step"),
    ]
    for use, words in cases:
        with pytest.raises(ValueError, match=words):
            use()
    for wrong, words in [
        (x * 1j, "series is complex"),
        (x.astype(int), "int64 is not supported"),
        ("weights", "series is the string 'weights'"),
        (xr.Dataset({"w": ("time", x[0, :, 0])}), "series is a Dataset of w"),
    ]:
        with pytest.raises(TypeError, match=words):
            dmd(wrong)
    with pytest.raises(TypeError, match=r"delays=1\.5: pass an int"):
        dmd(x, delays=1.5)
    with pytest.raises(ValueError, match="mask is given with a list of trials"):
        dmd([x[0], x[1]], mask=np.ones((2, 8)))


def test_without_pydmd_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="install the extra koopman of kpops-flow"):
        dmd(systems.lorenz(50, rng()))
