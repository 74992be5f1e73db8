"""Norms: exact where structure allows, else estimates whose error bars hold."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from cases import slow_but

import kpops
from kpops.operators.foreign import ForeignOperator
from kpops.spectral.norms import frobenius_norm, schatten_norm, spectral_norm
from kpops.spectral.traces import trace

N = 200
SPECTRA = {
    "geometric": 0.8 ** np.arange(N),
    "algebraic": 1 / np.arange(1.0, N + 1),
    "flat": np.linspace(1, 3, N),
}


@pytest.fixture
def never_dense(monkeypatch):
    """Let no operator be small enough for its matrix."""
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)


def rectangular(singular, rows=N + 30, seed=0):
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, len(singular))))[0]
    right = np.linalg.qr(generator.standard_normal((len(singular), len(singular))))[0]
    return (left * singular) @ right


def linearization(model=torch.nn.GRU, mask=None):
    torch.manual_seed(0)
    module = model(3, 5, batch_first=True).double()
    return kpops.linearize(module, torch.randn(3, 6, 3, dtype=torch.float64), mask=mask)


def p_norm(values, p):
    return np.linalg.norm(values, ord=p)


@pytest.mark.parametrize("model", [torch.nn.RNN, torch.nn.LSTM])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_norms_are_those_of_the_matrix(model, masked):
    lin = linearization(model, np.arange(6) < np.array([[6], [4], [1]]) if masked else None)
    for op in (lin.K, 2 * lin.K, lin.P, -3 * lin.P.H, lin.flow, lin.sensitivity, lin.P_inv):
        values = np.linalg.svd(op.to_dense(), compute_uv=False)
        for result, p in (
            (frobenius_norm(op), 2),
            (spectral_norm(op), np.inf),
            *((schatten_norm(op, p), p) for p in (1, 1.5, 2, 3, 4, np.inf)),
        ):
            assert result.method == "exact"
            assert float(result.estimate) == pytest.approx(p_norm(values, p), rel=1e-12)
            assert float(result.stderr) == 0


def test_structure_costs_no_products_however_large(never_dense):
    lin = linearization()
    for op in (lin.K, lin.P):
        before = op.num_matvecs
        assert frobenius_norm(op).num_matvecs == op.num_matvecs - before == 0
        exact = np.linalg.norm(op.to_dense())
        assert float(frobenius_norm(op).estimate) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(dtype, scale, monkeypatch):
    matrix = rectangular(SPECTRA["algebraic"]).astype(dtype)
    for dense_size in (1024, 0):
        monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", dense_size)
        for function in (
            frobenius_norm,
            spectral_norm,
            *(lambda op, p=p, rng=None: schatten_norm(op, p, rng=rng) for p in (1, 3, 4)),
        ):
            expected, found = function(matrix, rng=0), function(dtype(scale) * matrix, rng=0)
            assert found.estimate.dtype == dtype
            tolerance = 1e-3 if dtype == np.float32 else 1e-8
            assert float(found.estimate) == pytest.approx(
                scale * float(expected.estimate), rel=tolerance
            )


@pytest.mark.parametrize("kind", ["rectangular", "wide", "factored"])
@pytest.mark.parametrize("name", slow_but(["algebraic"], SPECTRA))
def test_error_bars_of_the_frobenius_norm_cover(never_dense, kind, name):
    if kind == "factored":
        root = ForeignOperator(scipy.sparse.diags(np.sqrt(SPECTRA[name])).tocsr())
        op = root @ root.H
    else:
        matrix = rectangular(SPECTRA[name])
        op = ForeignOperator(matrix if kind == "rectangular" else matrix.T)
    exact = np.linalg.norm(SPECTRA[name])
    errors = {}
    for method in ("hutchinson", "xnystrace", "xtrace", "auto"):
        results = [frobenius_norm(op, method=method, num_matvecs=60, rng=s) for s in range(60)]
        assert all(r.num_matvecs <= 60 for r in results)
        error = np.array([float(r.estimate) - exact for r in results])
        stderr = np.array([float(r.stderr) for r in results])
        assert np.mean(np.abs(error) <= 2 * stderr + 1e-13 * exact) >= 0.83, method
        errors[method] = np.sqrt(np.mean(error**2))
    auto = errors.pop("auto")
    assert auto < 1.5 * min(errors.values()) + 1e-13 * exact, (auto, errors)
    if name == "geometric":
        assert auto < errors["hutchinson"] / 10


@pytest.mark.parametrize("p", [1, 1.5, 3, 4, 6])
def test_error_bars_of_schatten_norms_cover(never_dense, p):
    singular = SPECTRA["algebraic"]
    matrix = rectangular(singular)
    exact = p_norm(singular, p)
    results = [schatten_norm(matrix, p, num_matvecs=120, rng=seed) for seed in range(40)]
    error = np.array([float(r.estimate) - exact for r in results])
    stderr = np.array([float(r.stderr) for r in results])
    assert all(r.num_matvecs <= 120 for r in results)
    assert np.mean(np.abs(error) <= 2 * stderr) >= 0.8
    assert np.sqrt(np.mean(error**2)) < 0.2 * exact
    assert results[0].method == ("lanczos" if p != 4 else results[0].method)


def test_the_nuclear_norm_of_a_positive_operator_is_its_trace(never_dense):
    lin = linearization()
    result = schatten_norm(lin.flow, 1, num_matvecs=40, rng=0)
    same = trace(lin.flow, num_matvecs=40, rng=0)
    assert float(result.estimate) == float(same.estimate)
    assert json.loads(result.configuration)["p"] == 1
    assert "Schatten norm (p = 1)" in result.estimate.attrs["long_name"]


def test_the_spectral_norm_is_certified(never_dense):
    matrix = rectangular(np.r_[3.0, np.linspace(2, 1, N - 1)])
    for op, exact in ((matrix, 3.0), (-matrix.T @ matrix, 9.0)):
        result = spectral_norm(op, tol=1e-8, rng=0)
        assert result.converged == 1
        assert abs(float(result.estimate) - exact) <= float(result.stderr) + 1e-12
        assert float(result.stderr) <= 1e-8 * exact
        assert result.num_matvecs > 0


def test_norms_of_zero_and_rank_one(never_dense):
    zero = np.zeros((60, 50))
    one = 2 * np.outer(np.ones(60), np.ones(50))
    for function in (
        frobenius_norm,
        spectral_norm,
        *(lambda op, p=p, rng=None: schatten_norm(op, p, rng=rng) for p in (1, 2, 3, 4, np.inf)),
    ):
        assert float(function(zero, rng=0).estimate) == float(function(zero, rng=0).stderr) == 0
        exact = 2 * np.sqrt(60 * 50)
        result = function(one, rng=0)
        assert abs(float(result.estimate) - exact) <= 3 * float(result.stderr) + 1e-10 * exact
    result = frobenius_norm(one, rng=0)
    assert float(result.stderr) < 1e-12 * exact


def test_a_tolerance_adds_products(never_dense):
    matrix = rectangular(SPECTRA["flat"])
    exact = np.linalg.norm(SPECTRA["flat"])
    rough, fine = (frobenius_norm(matrix, tol=tol, rng=0) for tol in (0.02, 0.005))
    assert rough.num_matvecs < fine.num_matvecs
    for result, tol in ((rough, 0.02), (fine, 0.005)):
        assert result.converged == 1
        assert float(result.stderr) <= tol * float(result.estimate)
        assert abs(float(result.estimate) - exact) < 4 * float(result.stderr)
    result = schatten_norm(matrix, 3, tol=0.02, rng=0)
    assert result.converged == 1 and float(result.stderr) <= 0.02 * float(result.estimate)
    with pytest.warns(kpops.ConvergenceWarning, match="raise num_matvecs"):
        assert frobenius_norm(matrix, tol=1e-9, num_matvecs=20, rng=0).converged == 0


def test_the_a_priori_error_bar_is_that_of_the_root(never_dense):
    singular = SPECTRA["algebraic"]
    gram = singular**2
    expected = 0.5 * np.sqrt(2 / 60 * (gram**2).sum() / gram.sum() ** 2)
    result = frobenius_norm(rectangular(singular), method="hutchinson", num_matvecs=60, rng=0)
    assert result.a_priori == pytest.approx(expected, rel=0.3)


def test_the_seed_decides_the_result(never_dense):
    matrix = rectangular(SPECTRA["algebraic"])
    for function in (frobenius_norm, lambda op, rng: schatten_norm(op, 3, rng=rng)):
        one, same, other = (function(matrix, rng=r) for r in (1, np.random.default_rng(1), 2))
        assert one.identical(same)
        assert float(one.estimate) != float(other.estimate)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda a: frobenius_norm(a, method="guess"), "method='guess': choose one of"),
        (lambda a: frobenius_norm(a, num_matvecs=1), "num_matvecs=1"),
        (lambda a: schatten_norm(a, 0.5), "p=0.5: choose p from 1"),
        (lambda a: schatten_norm(a, np.inf, method="lanczos"), "have no largest value"),
        (lambda a: spectral_norm(a, tol=0), "tol=0: choose a relative residual"),
    ],
)
def test_wrong_options_are_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call(np.eye(3))


def test_numpy_numbers_are_powers_too():
    for p in (np.float32(3), np.int64(3)):
        assert float(schatten_norm(np.diag([1.0, 2.0]), p).estimate) == pytest.approx(9 ** (1 / 3))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_fourth_powers_stay_in_single_precision(never_dense, scale):
    matrix = np.diag(np.linspace(1, 2, 60)).astype(np.float32)
    plain, scaled = (schatten_norm(np.float32(s) * matrix, 4, rng=0) for s in (1, scale))
    assert float(scaled.estimate / plain.estimate) == pytest.approx(scale, rel=1e-4)
    assert float(scaled.stderr / scaled.estimate) == pytest.approx(
        float(plain.stderr / plain.estimate), rel=1e-2
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_exact_frobenius_norms_square_no_extreme_numbers(scale):
    matrix = scale * np.array([[3.0, 0.0], [0.0, 4.0]])
    assert float(frobenius_norm(matrix).estimate) == pytest.approx(5 * scale)
    factor = kpops.operators.foreign.as_operator(scale**0.5 * np.array([[3.0], [4.0]]))
    assert float(frobenius_norm(factor @ factor.H).estimate) == pytest.approx(25 * scale)
