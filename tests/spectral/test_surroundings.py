"""What surrounds a call of the user changes no result, and a warning points to that call."""

import inspect
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import kpops

CALLS = {
    "eigvalsh": lambda lin: kpops.eigvalsh(lin.K),
    "eigsh": lambda lin: kpops.eigsh(lin.flow, k=2, rng=0),
    "svds": lambda lin: kpops.svds(lin.P, k=2, rng=0),
    "effective_rank": lambda lin: kpops.effective_rank(lin.flow, rng=0),
    "trace": lambda lin: kpops.trace(lin.flow, method="xtrace", rng=0),
    "diagonal": lambda lin: kpops.diagonal(lin.flow, method="xdiag", rng=0),
    "frobenius_norm": lambda lin: kpops.frobenius_norm(lin.flow, rng=0),
    "schatten_norm": lambda lin: kpops.schatten_norm(lin.flow, 3, rng=0),
    "spectral_norm": lambda lin: kpops.spectral_norm(lin.flow, rng=0),
    "alignment": lambda lin: kpops.alignment(lin.flow, lin.K, method="hutchinson", rng=0),
    "spectral_density": lambda lin: kpops.spectral_density(lin.flow, method="lanczos", rng=0),
    "frobenius_map": lambda lin: kpops.frobenius_map(lin.P, "time"),
    "greens_map": lambda lin: kpops.greens_map(lin),
    "greens_fractions": lambda lin: kpops.greens_fractions(kpops.greens_map(lin)),
    "predictive_information": lambda lin: kpops.predictive_information(lin, times=[9]),
    "observability_gramian": lambda lin: kpops.observability_gramian(lin),
    "controllability_gramian": lambda lin: kpops.controllability_gramian(lin),
    "truncate": lambda lin: kpops.truncate(lin.flow, 2, rng=0) @ np.ones(lin.flow.shape[1], "f4"),
}


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    return kpops.linearize(torch.nn.GRU(2, 30, batch_first=True), torch.ones(8, 20, 2))


@pytest.mark.parametrize("name", CALLS)
def test_autocast_does_not_lower_the_precision(name, lin):
    plain = CALLS[name](lin)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = CALLS[name](lin)
    if isinstance(plain, xr.Dataset | xr.DataArray):
        xr.testing.assert_equal(plain, cast)
    else:
        np.testing.assert_array_equal(plain, cast)


def test_every_function_of_the_room_is_called_here():
    exported = {n for n in kpops.spectral.__all__ if not inspect.isclass(getattr(kpops, n, None))}
    assert exported <= set(CALLS)


WARNING = {
    "solver": lambda op: kpops.eigsh(op, k=5, method="lobpcg", max_matvecs=12, rng=0),
    "tolerance": lambda op: kpops.trace(op, tol=1e-9, num_matvecs=20, rng=0),
    "rank": lambda op: kpops.effective_rank(np.eye(400), "variance", method="hutchinson", rng=0),
    "norm": lambda op: kpops.frobenius_norm(op, tol=1e-9, num_matvecs=20, rng=0),
    "triplets": lambda op: kpops.svds(op, k=5, max_matvecs=30, rng=0),
}


@pytest.mark.parametrize("name", WARNING)
def test_warnings_point_to_the_call(name, monkeypatch):
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 10)
    matrix = np.diag(1 / np.arange(1.0, 2501))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WARNING[name](matrix)
    told = [w for w in caught if issubclass(w.category, kpops.ConvergenceWarning)]
    assert told
    assert all(w.filename == __file__ for w in told)
