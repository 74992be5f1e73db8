"""Solvers of other libraries accept the operators as they are."""

import numpy as np
import pylops.utils
import pytest
import scipy.linalg
import scipy.sparse.linalg as sla
import torch
from dense import relative
from sklearn.utils.extmath import randomized_svd

import kpops


@pytest.fixture
def lin(device):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 5, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 6, 2, dtype=torch.float64), device=device)


def rng():
    return np.random.default_rng(0)


def test_scipy_eigsh(lin):
    values = sla.eigsh(lin.flow, k=4, v0=rng().standard_normal(90), return_eigenvectors=False)
    expected = np.linalg.eigvalsh(lin.flow.to_dense())[-4:]
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_scipy_svds(lin):
    for op in (lin.P, lin.J, lin.sensitivity):
        _, values, _ = sla.svds(op, k=4, v0=rng().standard_normal(min(op.shape)))
        expected = np.linalg.svd(op.to_dense(), compute_uv=False)[:4]
        np.testing.assert_allclose(np.sort(values)[::-1], expected, rtol=1e-10)


def test_scipy_lobpcg(lin):
    op = lin.P @ lin.P.H
    start = rng().standard_normal((90, 3))
    values, _ = sla.lobpcg(op, start, tol=1e-8, maxiter=200)
    expected = np.linalg.eigvalsh(op.to_dense())[::-1][:3]
    np.testing.assert_allclose(values, expected, rtol=1e-8)


def test_scipy_gmres_inverts_P(lin):
    b = rng().standard_normal(90)
    x, info = sla.gmres(lin.P, b, rtol=1e-12, restart=90)
    assert info == 0
    np.testing.assert_allclose(x, lin.P_inv @ b, atol=1e-9)


def test_scipy_expm_multiply(lin):
    b = rng().standard_normal(90)
    moved = sla.expm_multiply(-0.1 * lin.flow, b, traceA=-0.1 * np.trace(lin.flow.to_dense()))
    assert relative(moved, scipy.linalg.expm(-0.1 * lin.flow.to_dense()) @ b) < 1e-10


def test_pylops_dottest(lin):
    for op in (lin.P, lin.P_inv, lin.J, lin.K, lin.flow, lin.sensitivity):
        assert pylops.utils.dottest(op, *op.shape, rtol=1e-10, complexflag=3)


def test_sklearn_randomized_svd(lin):
    _, values, _ = randomized_svd(lin.flow.to_dense(), n_components=3, random_state=0)
    np.testing.assert_allclose(values, kpops.eigsh(lin.flow, k=3).eigenvalue, rtol=1e-8)


def test_float32_operators_stay_float32_in_arpack():
    torch.manual_seed(0)
    lin = kpops.linearize(torch.nn.GRU(2, 5, batch_first=True), torch.randn(3, 6, 2))
    values, vectors = sla.eigsh(lin.flow, k=2, v0=rng().standard_normal(90).astype("float32"))
    assert values.dtype == vectors.dtype == np.float32
    expected = np.linalg.eigvalsh(lin.flow.to_dense())[-2:]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
