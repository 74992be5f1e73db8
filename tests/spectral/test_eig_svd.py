"""Leading modes against dense decompositions and prescribed spectra."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as sla
import torch

import kpops
from kpops.linalg import lanczos
from kpops.linalg.rounding import clusters

ITERATIVE = ["block-krylov", "lobpcg", "arpack"]
METHODS = ["exact", *ITERATIVE]


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
        assert result.residual.max() < 2e-12
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
    result = kpops.eigsh(matrix, k=3, method=method, tol=1e-13, rng=0)
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


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_solver_that_does_not_converge_says_so(method):
    matrix = symmetric(np.linspace(1, 1.001, 300))
    with pytest.warns(kpops.ConvergenceWarning, match="modes did not reach the relative residual"):
        result = kpops.eigsh(matrix, k=4, method=method, tol=1e-14, max_matvecs=40, rng=0)
    assert not result.converged.all()
    assert result.num_matvecs <= 40 + 4 + 1  # and what the residuals and the scale take
    with pytest.warns(kpops.ConvergenceWarning):
        triplets = kpops.svds(matrix, k=4, method=method, tol=1e-14, max_matvecs=40, rng=0)
    assert not triplets.converged[-1]
    if method == "arpack":  # which has nothing to show before it converges
        assert np.isnan(result.eigenvalue.values[-1])
        assert np.isnan(triplets.singular_value.values[-1])
    else:  # the best so far
        np.testing.assert_allclose(result.eigenvalue, 1, rtol=2e-3)


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
    matrix = symmetric([1.0, 1e-3, 1e-11] + [0.0] * 27)
    with pytest.warns(kpops.ConvergenceWarning):
        result = kpops.svds(matrix, k=3, method="lobpcg", tol=1e-16, rng=0)
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
    assert (
        kpops.eigsh(lin.flow, k=3, method="exact").num_matvecs == 94
    )  # three for residuals, one for the scale


def test_results_can_be_saved(lin, tmp_path):
    pytest.importorskip("h5netcdf")
    pytest.importorskip("zarr")
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


MODELS = {
    f"{kind.__name__} g={g}": (kind, g)
    for kind in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)
    for g in (0.5, 1.0, 3.0)
}


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        pytest.param(name, trained, marks=[pytest.mark.slow] * (trained and g != 1.0))
        for name, (_, g) in MODELS.items()
        for trained in (False, True)
    ],
)
def test_spectra_of_real_operators_equal_the_dense_ones(name, trained):
    kind, g = MODELS[name]
    torch.manual_seed(1)
    module = kind(3, 12, batch_first=True).double()
    with torch.no_grad():
        module.weight_hh_l0 *= g
    task = kpops.tasks.memory_pro(4, angles="even", noise=0, steps=(3, 4, 3))
    inputs = torch.from_numpy(task.inputs.values).double()
    targets = torch.from_numpy(task.targets.values).double()
    readout = torch.nn.Linear(12, targets.shape[-1]).double()
    optimiser = torch.optim.Adam([*module.parameters(), *readout.parameters()], lr=1e-2)
    for _ in range(30 if trained else 0):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(readout(module(inputs)[0]), targets).backward()
        optimiser.step()
    lin = kpops.linearize(module, inputs)
    for op in (lin.K, lin.flow, lin.P @ lin.P.H):
        expected = np.linalg.eigvalsh(op.to_dense())[::-1]
        for method in ("auto", "block-krylov"):
            result = kpops.eigsh(op, k=8, method=method, tol=1e-11, rng=0)
            assert np.abs(result.eigenvalue - expected[:8]).max() <= 1e-10 * expected[0]
            assert result.converged.all()
        every = kpops.eigvalsh(op)
        values = np.append(every.eigenvalue.values, np.zeros(every.n_zeros))
        assert np.abs(values - expected).max() <= 1e-10 * expected[0]


def test_all_of_k_is_found_unit_by_unit():
    lin = linearize()
    spectrum = kpops.eigvalsh(lin.K)
    assert spectrum.n_zeros == 0  # 5 units of 18 rows each, all of the 90
    for unit in range(5):
        block = lin.K.select(unit=unit).to_dense()
        ours = spectrum.eigenvalue.values[spectrum.unit.values == unit]
        expected = np.linalg.eigvalsh(block)[::-1]
        np.testing.assert_allclose(ours, expected, atol=1e-13 * expected[0])


def test_few_parameters_give_the_whole_spectrum_of_large_operators():
    cell = torch.nn.Linear(5, 4, dtype=torch.float64)

    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.step = cell

        def forward(self, x, h):
            return torch.sin(self.step(torch.cat([x, h], -1)))

    x = torch.randn(6, 10, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lin = kpops.linearize(Cell(), x, h0=torch.zeros(6, 4, dtype=torch.float64))
    for op in (lin.K, lin.flow, 3 * lin.K):
        result = kpops.eigvalsh(op)
        assert result.chosen.startswith("the Gram matrix of"), result.chosen
        assert (result.sizes["mode"], result.n_zeros) == (24, 240 - 24)
        expected = np.linalg.eigvalsh(op.to_dense())[::-1]
        tolerance = {"rtol": 1e-10, "atol": 1e-12 * expected[0]}
        np.testing.assert_allclose(result.eigenvalue, expected[:24], **tolerance)
        np.testing.assert_allclose(expected[24:], 0, atol=1e-12 * expected[0])


def test_modes_of_k_live_on_one_unit_each():
    torch.manual_seed(0)
    lin = kpops.linearize(torch.nn.LSTM(2, 40, batch_first=True), torch.randn(4, 10, 2))
    result = kpops.eigsh(lin.K, k=5)
    assert result.method == "exact"
    assert "no two" in result.chosen
    energy = (result.eigenfunction.values**2).sum((1, 2)).reshape(5, 2, 40).sum(1)
    np.testing.assert_allclose(np.sort(energy, axis=1)[:, -1], 1, rtol=1e-5)
    np.testing.assert_allclose(result.eigenvalue, kpops.eigvalsh(lin.K).eigenvalue[:5], rtol=1e-5)


def test_iterations_run_where_vectors_are_short():
    torch.manual_seed(0)
    lin = kpops.linearize(torch.nn.RNN(2, 30, batch_first=True), torch.ones(8, 20, 2))
    flow, P = kpops.eigsh(lin.flow, k=2, rng=0), kpops.eigsh(lin.P @ lin.P.H, k=2, rng=0)
    assert "of the domain of P F" in flow.chosen
    assert (
        "8 problems of size 600, one per trial"
        in kpops.eigsh(lin.P @ lin.P.H, k=2, method="block-krylov", rng=0).chosen
    )
    assert "dense" in P.chosen


@pytest.mark.parametrize("block_size", [1, 2])
def test_small_blocks_do_not_miss_copies_in_silence(block_size):
    spectrum = np.repeat(0.8 ** np.arange(100), 8)
    matrix = scipy.sparse.diags_array(spectrum).tocsr()
    with pytest.warns(kpops.ConvergenceWarning, match="larger modes may be missing"):
        result = kpops.eigsh(matrix, k=6, method="block-krylov", block_size=block_size, rng=0)
    assert not result.converged.any()
    with pytest.warns(kpops.ConvergenceWarning):
        triplets = kpops.svds(matrix, k=6, method="block-krylov", block_size=block_size, rng=0)
    assert not triplets.converged.any()


def test_small_blocks_converge_where_nothing_is_repeated():
    matrix = symmetric(0.9 ** np.arange(200))
    for function in (kpops.eigsh, kpops.svds):
        result = function(matrix, k=6, method="block-krylov", block_size=2, rng=0)
        assert result.converged.all()


def test_restarts_lead_to_the_same_modes(monkeypatch):

    matrix = symmetric(1 / (1.0 + np.arange(400)) ** 0.3)
    expected = kpops.eigsh(matrix, k=4, method="exact")
    monkeypatch.setattr(lanczos, "_BLOCKS", 5)
    monkeypatch.setattr(lanczos, "_VECTORS", 30)
    for function, name in ((kpops.eigsh, "eigenvalue"), (kpops.svds, "singular_value")):
        result = function(matrix, k=4, method="block-krylov", tol=1e-10, rng=0)
        assert result.num_matvecs > 60  # more than the basis holds
        assert result.converged.all()
        np.testing.assert_allclose(result[name], expected.eigenvalue, rtol=1e-12)


def test_singular_values_far_below_the_largest_keep_their_digits():
    spectrum = 10.0 ** -np.arange(12.0)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 12)))[0]
    matrix = Q * spectrum  # the Gram matrix has all below 1e-8 in its rounding
    result = kpops.svds(matrix, k=8, method="block-krylov", tol=1e-12, rng=0)
    np.testing.assert_allclose(result.singular_value, spectrum[:8], rtol=1e-7)


def test_clusters_are_flagged():
    spectrum = np.r_[5.0, 3 + 1e-15, 3, 3, 1, 1 - 1e-3, np.zeros(54)]
    for method in METHODS:
        result = kpops.eigsh(symmetric(spectrum), k=6, method=method, tol=1e-10, rng=0)
        assert result.cluster.values.tolist() == [1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("method", ITERATIVE)
def test_callbacks_are_told_and_can_stop(method):
    told = []
    matrix = symmetric(np.linspace(0, 1, 200))
    kpops.eigsh(matrix, k=3, method="block-krylov", rng=0, callback=told.append)
    assert told[-1].values.shape == told[-1].residuals.shape == (3,)
    assert told[-1].residuals.max() <= 1e-6
    assert [t.num_matvecs for t in told] == sorted(t.num_matvecs for t in told)
    if method == "arpack":
        return  # which tells nothing before it ends
    with pytest.warns(kpops.ConvergenceWarning):
        stopped = kpops.eigsh(matrix, k=3, method=method, rng=0, callback=lambda told: True)
    assert stopped.num_matvecs < 50


def test_blocks_of_an_operator_over_trials_are_solved_side_by_side():
    torch.manual_seed(0)
    lin = kpops.linearize(
        torch.nn.GRU(2, 5, batch_first=True).double(), torch.randn(4, 6, 2).double()
    )
    P = lin.P
    before = P.num_matvecs
    exact = kpops.svds(P, k=9, method="exact")
    # One finds the scale; one trial's basis serves all; residuals.
    assert P.num_matvecs - before == 1 + 30 + 2 * 9
    expected = np.linalg.svd(P.to_dense(), compute_uv=False)[:9]
    np.testing.assert_allclose(exact.singular_value, expected, rtol=1e-12)
    found = kpops.svds(P, k=9, method="block-krylov", tol=1e-12, rng=0)
    np.testing.assert_allclose(found.singular_value, expected, rtol=1e-12)
    energy = (found.left.values**2).sum((2, 3))
    np.testing.assert_allclose(np.sort(energy, axis=1)[:, -1], 1, rtol=1e-12)  # on one trial each


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
        (lambda lin: kpops.eigsh(lin.P @ lin.P.H, k=90, method="arpack"), ValueError, "n - 1 = 89"),
        (lambda lin: kpops.eigsh(lin.K, tol=0), ValueError, "tol=0: choose a positive"),
        (lambda lin: kpops.svds(lin.K, max_matvecs=0), ValueError, "max_matvecs=0: choose"),
        (lambda lin: kpops.svds(lin.K, block_size=0), ValueError, "block_size=0: choose"),
        (lambda lin: kpops.eigsh(np.full((9, 9), np.nan)), ValueError, "is not finite"),
        (lambda lin: kpops.eigsh(lin.K, method="qr"), ValueError, "method='qr': choose"),
        (lambda lin: kpops.svds(lin.K, method="qr"), ValueError, "method='qr': choose"),
        (lambda lin: kpops.eigsh(np.eye(3) * 1j), TypeError, "operators are real"),
        (lambda lin: kpops.eigsh(np.ones(3)), ValueError, r"shape \(3,\), expected a matrix"),
    ],
)
def test_wrong_use_is_refused(lin, act, error, told):
    with pytest.raises(error, match=told):
        act(lin)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["auto", "block-krylov", "lobpcg"])
def test_operators_confined_to_a_few_entries_are_no_trap(method, dtype):
    # Products have fewer directions than a block has vectors, and those on two entries only.
    matrix = np.zeros((1500, 1500), dtype)
    matrix[0, 0], matrix[1, 1] = 1, 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        for seed in range(3):
            result = kpops.svds(matrix, k=4, method=method, rng=seed)
            good = result.converged.values
            expected = np.array([1, 1e-5, 0, 0])
            gaps = np.abs(result.singular_value.values - expected)
            assert (gaps[good] <= 1e-5 if dtype == "float32" else gaps[good] <= 1e-6).all()
            assert good[0] or method == "lobpcg"
            assert result.singular_value.values.max() < 1.001


@pytest.mark.parametrize("method", ["auto", "lobpcg"])
def test_small_singular_values_do_not_hide_others_in_silence(method):
    values = np.full(8000, 1e-4, np.float32)
    values[:2] = 1, 3e-4
    matrix = scipy.sparse.diags_array(values).tocsr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        result = kpops.svds(matrix, k=2, method=method, rng=0)
    wrong = np.abs(result.singular_value.values - [1, 3e-4]) > 1e-5
    assert not (wrong & result.converged.values).any()


def test_zeros_that_structure_explains_are_modes_like_others():
    quiet = kpops.linearize(
        torch.nn.RNN(2, 30, bias=False, batch_first=True), torch.zeros(8, 20, 2)
    )
    result = kpops.eigsh(quiet.flow, k=3, rng=0)
    assert (result.eigenvalue == 0).all()
    assert result.converged.all()
    assert kpops.eigsh(quiet.K, k=3).converged.all()
    rnn = torch.nn.RNN(2, 4, batch_first=True)
    lin = kpops.linearize(rnn, torch.ones(20, 40, 2), parameters=["bias_hh_l0"])
    for op in (lin.K, lin.flow):  # four units, one bias each
        result = kpops.eigsh(op, k=6, rng=0)
        assert result.converged.all()
        assert np.abs(result.eigenvalue.values[4:]).max() < 1e-5 * result.eigenvalue.values[0]


def test_a_budget_returns_the_best_so_far_where_squares_lose_digits():
    matrix = np.diag(0.3 ** np.arange(1500)).astype(np.float32)
    with pytest.warns(kpops.ConvergenceWarning):
        result = kpops.svds(matrix, k=10, max_matvecs=60, rng=0)
    assert float(result.singular_value[0]) == pytest.approx(1, rel=1e-5)


def test_clusters_see_copies_beyond_other_signs():
    matrix = np.diag([5.0, -5.0, 5.0, 1.0])
    clusters = kpops.eigsh(matrix, k=3).cluster.values
    signs = np.sign(kpops.eigsh(matrix, k=3).eigenvalue.values)
    assert len(set(clusters)) == 2
    assert len(set(clusters[signs > 0])) == 1


def test_a_matrix_that_is_nearly_symmetric_has_no_eigvalsh():
    matrix = np.eye(900, dtype=np.float32)
    matrix[0, 1] = 0.03
    with pytest.raises(ValueError, match="is not self-adjoint"):
        kpops.eigvalsh(matrix)


@pytest.mark.parametrize("seed", range(3))
def test_long_vectors_lose_no_digit_in_single_precision(seed):
    leading = 2.005 - 1e-3 * np.arange(6)
    matrix = scipy.sparse.diags_array(np.r_[leading, np.linspace(0, 0.2, 300_000)].astype("f4"))
    with warnings.catch_warnings():
        # Residuals end within a tenth of the noise floor, 64 units of rounding, on either side.
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        result = kpops.svds(matrix.tocsr(), k=6, rng=seed)
    assert result.residual.max() < 1.25 * result.noise_floor
    np.testing.assert_allclose(result.singular_value, leading, rtol=3e-6)


def test_neighbours_on_both_sides_of_zero_share_a_cluster():
    values = torch.tensor([1.0, 0.05, -0.06], dtype=torch.float64)
    residual = torch.tensor([1e-12, 0.02, 1e-3], dtype=torch.float64)
    assert clusters(values, residual).tolist() == [1, 2, 2]


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")
def test_arpack_restarts_from_the_seed_where_its_space_is_exhausted():
    matrix = np.diag(np.r_[3.0, 2.0, 1.0, np.zeros(97)])
    first, second = (kpops.eigsh(matrix, k=4, method="arpack", rng=5) for _ in range(2))
    np.testing.assert_array_equal(first.eigenfunction, second.eigenfunction)
