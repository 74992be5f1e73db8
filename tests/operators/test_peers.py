"""Solvers of other libraries accept the operators as they are."""

import numpy as np
import pytest
import scipy.linalg
import scipy.linalg.interpolative as interpolative
import scipy.sparse.linalg as sla
import torch
from dense import relative

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
    dottest = pytest.importorskip("pylops.utils").dottest
    for op in (lin.P, lin.P_inv, lin.J, lin.K, lin.flow, lin.sensitivity):
        assert dottest(op, *op.shape, rtol=1e-10, complexflag=3)


def test_scipy_takes_it_as_it_is(lin):
    assert sla.aslinearoperator(lin.flow) is lin.flow
    shifted = lin.flow + sla.aslinearoperator(np.eye(90))
    assert shifted.domain == lin.space
    b = rng().standard_normal(90)
    x, info = sla.cg(shifted, b, rtol=1e-13, maxiter=1000)
    assert info == 0
    dense = lin.flow.to_dense() + np.eye(90)
    np.testing.assert_allclose(x, np.linalg.solve(dense, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", [sla.lsqr, sla.lsmr])
def test_scipy_least_squares(lin, solver):
    b = rng().standard_normal(90)
    x = solver(lin.P, b, atol=1e-14, btol=1e-14, conlim=0)[0]
    np.testing.assert_allclose(x, lin.P_inv @ b, atol=1e-9)


@pytest.mark.parametrize("solver", ["propack", "lobpcg"])
def test_scipy_svds_by_other_solvers(lin, solver):
    v0 = rng().standard_normal(90)
    _, values, _ = sla.svds(lin.flow, k=3, solver=solver, v0=v0, tol=1e-3, maxiter=300)
    expected = np.linalg.svd(lin.flow.to_dense(), compute_uv=False)[:3]
    np.testing.assert_allclose(np.sort(values)[::-1], expected, rtol=1e-8)


def test_scipy_onenormest(lin):
    expected = np.abs(lin.P.to_dense()).sum(0).max()
    assert abs(sla.onenormest(lin.P, t=90) - expected) < 1e-12 * expected  # all columns
    assert expected / 3 < sla.onenormest(lin.P) <= expected * (1 + 1e-12)  # a lower bound


def test_scipy_eigs(lin):
    op = lin.P.select(time=slice(0, 2)) @ lin.K.select(time=slice(0, 2))
    values = sla.eigs(op, k=2, v0=rng().standard_normal(30), return_eigenvectors=False)
    expected = np.linalg.eigvals(op.to_dense())
    expected = expected[np.argsort(-np.abs(expected))[:2]]
    np.testing.assert_allclose(np.sort(np.abs(values)), np.sort(np.abs(expected)), rtol=1e-9)


def test_scipy_interpolative_svd(lin):
    _, values, _ = interpolative.svd(lin.flow, 1e-10, rng=0)
    expected = np.linalg.svd(lin.flow.to_dense(), compute_uv=False)
    np.testing.assert_allclose(values[:3], expected[:3], rtol=1e-8)


def test_pylops_solvers_and_algebra(lin):
    pylops = pytest.importorskip("pylops")
    leastsquares = pytest.importorskip("pylops.optimization.leastsquares")
    b = rng().standard_normal(90)
    x = leastsquares.regularized_inversion(
        pylops.LinearOperator(lin.P), b, None, atol=1e-14, btol=1e-14, iter_lim=2000
    )[0]
    np.testing.assert_allclose(x, lin.P_inv @ b, atol=1e-9)
    D = pylops.FirstDerivative(90, kind="forward")
    np.testing.assert_allclose((D @ lin.P) @ b, D @ (lin.P @ b))
    np.testing.assert_allclose((lin.P @ D) @ b, lin.P @ (D @ b))
    roughness = lin.P.H @ D.H @ D @ lin.P  # ours from the left: labelled
    assert roughness.symbol == "P* _AdjointLinearOperator FirstDerivative P"
    assert roughness.domain == lin.space
    modes = kpops.eigsh(roughness, k=2, rng=0)
    dense = D.todense() @ lin.P.to_dense()
    expected = np.linalg.eigvalsh(dense.T @ dense)[::-1][:2]
    np.testing.assert_allclose(modes.eigenvalue, expected, rtol=1e-8)


def test_sklearn_multiplies_it_and_otherwise_says_how_to_make_the_matrix(lin):
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
    from sklearn.linear_model import Ridge
    from sklearn.utils.extmath import randomized_svd, safe_sparse_dot

    X = rng().standard_normal((90, 3))
    np.testing.assert_array_equal(safe_sparse_dot(lin.flow, X), lin.flow @ X)
    for use in (
        lambda op: randomized_svd(op, n_components=3),
        lambda op: TruncatedSVD(3).fit(op),
        lambda op: PCA(3).fit(op),
        lambda op: KernelPCA(3, kernel="precomputed").fit(op),
        lambda op: Ridge().fit(op, np.ones(90)),
    ):
        with pytest.raises(TypeError, match=r"op.to_dense\(\) makes the matrix, 90 x 90"):
            use(lin.flow)
    _, values, _ = randomized_svd(lin.flow.to_dense(), n_components=3, random_state=0)
    np.testing.assert_allclose(values, kpops.eigsh(lin.flow, k=3).eigenvalue, rtol=1e-8)


def test_float32_operators_stay_float32_in_arpack():
    torch.manual_seed(0)
    lin = kpops.linearize(torch.nn.GRU(2, 5, batch_first=True), torch.randn(3, 6, 2))
    values, vectors = sla.eigsh(lin.flow, k=2, v0=rng().standard_normal(90).astype("float32"))
    assert values.dtype == vectors.dtype == np.float32
    expected = np.linalg.eigvalsh(lin.flow.to_dense())[-2:]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
