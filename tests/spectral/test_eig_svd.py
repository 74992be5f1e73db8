"""Leading modes against dense decompositions and prescribed spectra."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as sla
import torch

import kpops

METHODS = ["exact", "arpack"]


def symmetric(spectrum, seed=0, dtype=float):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return ((Q * spectrum) @ Q.T).astype(dtype)


def linearize(device="cpu"):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 5, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 6, 2, dtype=torch.float64), device=device)


@pytest.fixture
def lin(device):
    return linearize(device)


@pytest.mark.parametrize("method", METHODS)
def test_eigenvalues_and_functions_equal_the_dense_ones(method, device):
    moved = linearize(device)
    for op in (moved.K, moved.flow, moved.P @ moved.P.H):
        result = kpops.eigsh(op, k=5, method=method, tol=1e-12, rng=0)
        values, vectors = np.linalg.eigh(op.to_dense())
        np.testing.assert_allclose(result.eigenvalue, values[::-1][:5], rtol=1e-10)
        overlap = np.abs(vectors[:, ::-1][:, 0] @ result.eigenfunction.values[0].ravel())
        assert overlap == pytest.approx(1, abs=1e-8)
        assert result.converged.all()
        assert result.residual.max() < 1e-12
        assert result.eigenfunction.dims == ("mode", "trial", "time", "unit")
        assert result.mode.values.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", METHODS)
def test_singular_triplets_equal_the_dense_ones(lin, method):
    for op in (lin.P, lin.J, lin.J.H, lin.sensitivity):
        result = kpops.svds(op, k=4, method=method, tol=1e-10, rng=0)
        expected = np.linalg.svd(op.to_dense(), compute_uv=False)[:4]
        np.testing.assert_allclose(result.singular_value, expected, rtol=1e-10)
        assert result.converged.all()
        assert result.residual.max() < 1e-10
        assert result.left.dims == ("mode", *op.codomain.dims)
        assert result.right.dims == ("mode", *op.domain.dims)


@pytest.mark.parametrize("method", METHODS)
def test_modes_are_those_of_largest_magnitude_with_a_fixed_sign(method):
    matrix = symmetric([1.0, -7.0, 3.0, 0.1, 0.0, 5.0])
    result = kpops.eigsh(matrix, k=3, method=method, rng=0)
    np.testing.assert_allclose(result.eigenvalue, [-7, 5, 3], rtol=1e-12)
    functions = result.eigenfunction.values
    assert (functions[range(3), np.abs(functions).argmax(1)] > 0).all()
    assert result.eigenfunction.dims == ("mode", "index")


def test_the_same_seed_gives_the_same_result():
    matrix = symmetric(np.linspace(1, 2, 30))
    first, second = (kpops.eigsh(matrix, k=3, method="arpack", rng=5) for _ in range(2))
    assert first.identical(second)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_dtype_is_kept(method, dtype):
    matrix = symmetric(np.arange(1.0, 21), dtype=dtype)
    result = kpops.eigsh(matrix, k=3, method=method, rng=0)
    assert result.eigenvalue.dtype == result.eigenfunction.dtype == np.dtype(dtype)
    np.testing.assert_allclose(result.eigenvalue, [20, 19, 18], rtol=50 * np.finfo(dtype).eps)
    triplets = kpops.svds(matrix, k=3, method=method, rng=0)
    assert triplets.singular_value.dtype == triplets.left.dtype == np.dtype(dtype)


@pytest.mark.parametrize("kind", ["sparse", "linear operator", "tensor"])
def test_operators_of_others_are_taken(kind):
    matrix = symmetric([4.0, 2.0, 1.0, 0.5])
    op = {
        "sparse": scipy.sparse.csr_array(matrix),
        "linear operator": sla.aslinearoperator(matrix),
        "tensor": torch.from_numpy(matrix),
    }[kind]
    np.testing.assert_allclose(kpops.eigsh(op, k=2).eigenvalue, [4, 2], rtol=1e-12)
    np.testing.assert_allclose(kpops.svds(op, k=2).singular_value, [4, 2], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_operator_has_zero_modes(method):
    zero = np.zeros((30, 30))
    result = kpops.eigsh(zero, k=3, method=method)
    assert (result.eigenvalue == 0).all()
    assert result.converged.all()
    gram = result.eigenfunction.values @ result.eigenfunction.values.T
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-12)
    assert (kpops.svds(zero, k=3, method=method).singular_value == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_modes_beyond_the_rank_are_zero_or_not_converged(method):
    matrix = symmetric([3.0, 2.0, 1.0] + [0.0] * 37)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        result = kpops.eigsh(matrix, k=6, method=method, rng=0)
    good = result.converged.values
    expected = np.array([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(result.eigenvalue.values[good], expected[good], atol=1e-10)
    assert good[:3].all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_copies_of_repeated_eigenvalues_are_found(dtype):
    spectrum = np.repeat(0.8 ** np.arange(250), 8)  # K of a linear RNN of 8 units looks like this
    matrix = scipy.sparse.diags_array(spectrum.astype(dtype)).tocsr()
    values = kpops.eigsh(matrix, k=10, rng=0)
    np.testing.assert_allclose(values.eigenvalue, [1] * 8 + [0.8] * 2, rtol=1e-5)
    assert values.converged.all()
    triplets = kpops.svds(matrix, k=10, rng=0)
    np.testing.assert_allclose(triplets.singular_value, [1] * 8 + [0.8] * 2, rtol=1e-5)


def test_identical_trials_give_identical_singular_values():
    gru = torch.nn.GRU(2, 4, batch_first=True).double()
    x = torch.randn(1, 6, 2, dtype=torch.float64).expand(5, -1, -1)
    P = kpops.linearize(gru, x).P
    exact = np.linalg.svd(P.to_dense(), compute_uv=False)[:7]
    found = kpops.svds(P, k=7, method="arpack", tol=1e-10, rng=0).singular_value
    np.testing.assert_allclose(found, exact, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-14, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_scale_does_not_matter(method, scale):
    matrix = scale * symmetric(0.5 ** np.arange(30))
    result = kpops.eigsh(matrix, k=3, method=method, rng=0)
    np.testing.assert_allclose(result.eigenvalue, scale * np.array([1, 0.5, 0.25]), rtol=1e-8)
    assert result.converged.all()


def test_blocks_between_different_trials_keep_both_labels():
    lin = linearize()
    rows, columns = (
        kpops.operators.Restriction(lin.space, {"trial": b}, lin.dtype, lin.device) for b in (0, 2)
    )
    result = kpops.svds(rows @ lin.K @ columns.H, k=2)
    assert result.left.trial.values.tolist() == [0]
    assert result.right.trial_in.values.tolist() == [2]
    assert not result.left.isnull().any()


def test_a_solver_that_does_not_converge_says_so():
    matrix = symmetric(np.linspace(1, 1.001, 300))
    with pytest.warns(kpops.ConvergenceWarning, match="modes did not reach the relative residual"):
        result = kpops.eigsh(matrix, k=4, method="arpack", tol=1e-14, max_iterations=1, rng=0)
    assert not result.converged.all()
    assert np.isnan(result.eigenvalue.values[-1])
    with pytest.warns(kpops.ConvergenceWarning):
        triplets = kpops.svds(matrix, k=4, method="arpack", tol=1e-14, max_iterations=1, rng=0)
    assert np.isnan(triplets.singular_value.values[-1])
    assert not triplets.converged[-1]


def test_modes_are_not_certified_when_the_second_search_fails(monkeypatch):
    real, calls = sla.eigsh, []

    def second_fails(*args, **options):
        calls.append(1)
        if len(calls) > 1:
            raise sla.ArpackNoConvergence("", np.zeros(0), np.zeros((300, 0)))
        return real(*args, **options)

    monkeypatch.setattr(sla, "eigsh", second_fails)
    matrix = symmetric(0.9 ** np.arange(300))
    with pytest.warns(kpops.ConvergenceWarning, match="larger modes may be missing"):
        result = kpops.eigsh(matrix, k=3, method="arpack", rng=0)
    np.testing.assert_allclose(result.eigenvalue, [1, 0.9, 0.81], rtol=1e-8)
    assert not result.converged.any()


def test_small_singular_values_lost_in_the_gram_are_marked():
    matrix = np.diag([1.0, 1e-3, 1e-11] + [0.0] * 27)
    with pytest.warns(kpops.ConvergenceWarning):
        result = kpops.svds(matrix, k=3, method="arpack", tol=1e-16, rng=0)
    np.testing.assert_allclose(result.singular_value.values[:2], [1, 1e-3], rtol=1e-9)
    wrong = np.abs(result.singular_value.values - [1, 1e-3, 1e-11]) > 1e-14
    assert not (wrong & result.converged.values).any()


def test_dims_of_different_sizes_are_told_apart():
    lin = kpops.linearize(torch.nn.GRU(2, 5, batch_first=True), torch.ones(3, 6, 2))
    trials = kpops.operators.Restriction(lin.space, {"trial": 0}, lin.dtype, lin.device)
    result = kpops.svds(trials @ lin.flow, k=2)
    assert result.left.dims == ("mode", "trial", "time", "unit")
    assert result.right.dims == ("mode", "trial_in", "time", "unit")


def test_matvecs_are_reported(lin):
    result = kpops.eigsh(lin.flow, k=3, method="arpack", rng=0)
    assert 3 < result.num_matvecs < 90
    assert kpops.eigsh(lin.flow, k=3, method="exact").num_matvecs == 90


def test_results_can_be_saved(lin, tmp_path):
    import xarray as xr

    result = kpops.eigsh(lin.flow, k=3)
    result.to_netcdf(tmp_path / "modes.nc", engine="h5netcdf")
    result.to_zarr(tmp_path / "modes.zarr", consolidated=False)
    for again in (
        xr.load_dataset(tmp_path / "modes.nc", engine="h5netcdf"),
        xr.open_zarr(tmp_path / "modes.zarr", consolidated=False).load(),
    ):
        xr.testing.assert_equal(again, result)
        assert again.attrs["configuration"] == result.attrs["configuration"]


@pytest.mark.parametrize(
    ("act", "error", "told"),
    [
        (lambda lin: kpops.eigsh(lin.P), ValueError, "is not self-adjoint: use kpops.svds"),
        (lambda lin: kpops.eigsh(np.triu(np.ones((9, 9)))), ValueError, "is not self-adjoint"),
        (lambda lin: kpops.eigsh(lin.J), ValueError, "is not self-adjoint"),
        (lambda lin: kpops.eigsh(lin.K, k=0), ValueError, "k=0: choose an int from 1 to 90"),
        (lambda lin: kpops.eigsh(lin.K, k=91), ValueError, "k=91"),
        (lambda lin: kpops.eigsh(lin.K, k=2.0), ValueError, "k=2.0"),
        (lambda lin: kpops.svds(lin.J, k=91), ValueError, "k=91: choose an int from 1 to 90"),
        (lambda lin: kpops.eigsh(lin.K, k=90, method="arpack"), ValueError, "at most n - 1 = 89"),
        (lambda lin: kpops.eigsh(lin.K, method="qr"), ValueError, "method='qr': choose"),
        (lambda lin: kpops.svds(lin.K, method="qr"), ValueError, "method='qr': choose"),
        (lambda lin: kpops.eigsh(np.eye(3) * 1j), TypeError, "operators are real"),
        (lambda lin: kpops.eigsh(np.ones(3)), ValueError, r"shape \(3,\), expected a matrix"),
    ],
)
def test_wrong_use_is_refused(lin, act, error, told):
    with pytest.raises(error, match=told):
        act(lin)
