"""Trace and diagonal: exact where structure allows, else estimates whose error bars hold."""

import json
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from cases import slow_but

import kpops
from kpops.operators.foreign import ForeignOperator
from kpops.spectral.traces import diagonal, trace

N = 200
SPECTRA = {
    "geometric": 0.7 ** np.arange(N),
    "algebraic": 1 / np.arange(1.0, N + 1) ** 2,
    "flat": np.linspace(1, 3, N),
    "step": np.r_[np.ones(20), np.full(N - 20, 1e-3)],
    "spikes on a tail": np.r_[np.full(8, 30.0), np.linspace(0, 2, N - 8)],
    "clusters": np.r_[[5, 4.5], *(10.0**-i * np.linspace(1, 1.05, 66) for i in range(3))],
}
KINDS = ("factored", "positive", "indefinite")
METHODS = {
    "factored": ("hutchinson", "xtrace", "xnystrace"),
    "positive": ("hutchinson", "xtrace", "xnystrace"),
    "indefinite": ("hutchinson", "xtrace"),
}


@pytest.fixture
def never_dense(monkeypatch):
    """Let no operator be small enough for its matrix."""
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)


def operator(spectrum, kind="factored", dtype=np.float64):
    """Operator of this spectrum, and its trace; signs alternate in threes if it is indefinite."""
    spectrum = np.asarray(spectrum, dtype)
    if kind == "factored":
        root = ForeignOperator(scipy.sparse.diags(np.sqrt(spectrum)).tocsr())
        return root @ root.H, spectrum.sum(dtype=float)
    if kind == "indefinite":
        spectrum = np.where(np.arange(len(spectrum)) % 3 == 0, -spectrum, spectrum)
    op = ForeignOperator(scipy.sparse.diags(spectrum).tocsr())
    op.positive = op.self_adjoint = kind == "positive"
    return op, spectrum.sum(dtype=float)


def repeated(op, exact, method, num_matvecs=60, repeats=50):
    """Errors and standard errors over many seeds."""
    results = [trace(op, method=method, num_matvecs=num_matvecs, rng=s) for s in range(repeats)]
    assert all(r.num_matvecs <= num_matvecs for r in results)
    return np.array([(float(r.estimate) - exact, float(r.stderr)) for r in results]).T


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def linearization(model=torch.nn.GRU, mask=None, **options):
    torch.manual_seed(0)
    module = model(3, 5, batch_first=True, **options).double()
    return kpops.linearize(module, torch.randn(3, 6, 3, dtype=torch.float64), mask=mask)


@pytest.mark.parametrize("model", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_trace_and_diagonal_are_those_of_the_matrix(model, masked):
    mask = np.arange(6) < np.array([[6], [4], [1]]) if masked else None
    lin = linearization(model, mask)
    for op in (lin.K, 2 * lin.K, lin.P, lin.P_inv, -3 * lin.P.H, lin.flow, lin.P @ lin.P_inv):
        dense = op.to_dense()
        of_trace, of_diagonal = trace(op), diagonal(op)
        assert of_trace.method == of_diagonal.method == "exact"
        assert float(of_trace.estimate) == pytest.approx(np.trace(dense), rel=1e-12)
        expected = np.diag(dense).reshape(op.domain.shape)
        np.testing.assert_allclose(of_diagonal.estimate, expected, rtol=1e-12, atol=1e-14)
        assert float(of_trace.stderr) == float(of_diagonal.stderr.max()) == 0


def test_structure_costs_no_products_however_large(never_dense):
    lin = linearization(mask=np.arange(6) < np.array([[6], [4], [1]]))
    for op in (lin.K, lin.P, 2 * lin.P_inv.H):
        for function in (trace, diagonal):
            before = op.num_matvecs
            assert function(op).num_matvecs == op.num_matvecs - before == 0
    assert float(trace(lin.P).estimate) == 5 * (6 + 4 + 1)  # the valid steps


def test_diagonal_of_a_stack_is_that_of_the_matrix():
    lin = linearization(num_layers=2)
    for name, op in lin.K_by_parameter.items():
        expected = np.diag(op.to_dense()).reshape(op.domain.shape)
        np.testing.assert_allclose(diagonal(op).estimate, expected, atol=1e-13, err_msg=name)


def test_a_small_factor_makes_a_large_operator_exact():
    factor = np.random.default_rng(0).standard_normal((3000, 7))
    root = ForeignOperator(factor)
    op = root @ root.H
    assert trace(op).method == diagonal(op).method == "exact"
    assert float(trace(op).estimate) == pytest.approx((factor**2).sum(), rel=1e-12)
    np.testing.assert_allclose(diagonal(op).estimate, (factor**2).sum(1), rtol=1e-12)


@pytest.mark.parametrize("name", ["geometric", "algebraic"])
@pytest.mark.parametrize("kind", ["factored", "positive"])
def test_where_the_spectrum_decays_xtrace_and_xnystrace_are_ten_times_better(
    never_dense, name, kind
):
    op, exact = operator(SPECTRA[name], kind)
    plain = rms(repeated(op, exact, "hutchinson", repeats=50)[0])
    for method in ("xtrace", "xnystrace", "auto"):
        assert rms(repeated(op, exact, method, repeats=50)[0]) < plain / 10


def every(factored, others, repeats, *marks):
    """Cases of kind, spectrum and repeats."""
    names = {"factored": factored, "positive": others, "indefinite": others}
    return [pytest.param(k, n, repeats, marks=marks) for k in KINDS for n in names[k]]


@pytest.mark.parametrize(
    ("kind", "name", "repeats"),
    [
        *every(SPECTRA, ("algebraic", "clusters"), 50),
        *every(SPECTRA, SPECTRA, 200, pytest.mark.slow),
    ],
)
def test_error_bars_cover_and_auto_is_near_the_best(never_dense, kind, name, repeats):
    op, exact = operator(SPECTRA[name], kind)
    rounding = 1e-14 * abs(SPECTRA[name]).sum()
    best = math.inf
    for method in (*METHODS[kind], "auto"):
        error, stderr = repeated(op, exact, method, repeats=repeats)
        # Two standard errors hold 95 % if all is well; of few repeats a few less.
        covered = np.mean(np.abs(error) <= 2 * stderr + rounding)
        assert covered >= 0.9 - 2 * np.sqrt(0.09 / repeats), (method, covered)
        assert abs(error.mean()) < 4 * rms(error) / np.sqrt(repeats) + rounding, method
        # In 7 runs of 1000, auto mistakes xnystrace for the better method on "step"; its error bar
        # is right, but such a run alone is most of a sum of squares. One in 100 is left out.
        error, stderr = (np.sort(np.abs(x))[: len(x) - len(x) // 100] for x in (error, stderr))
        # Where the leading modes are all found, error bars may be on the safe side.
        assert rms(stderr) < 2.5 * rms(error) + rounding, method
        if method != "auto":
            best = min(best, rms(error))
    assert rms(error) < 1.5 * best + rounding, (rms(error) / exact, best / exact)


@pytest.mark.slow
@pytest.mark.parametrize("num_matvecs", [24, 120])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_auto_is_near_the_best_at_other_budgets(never_dense, kind, name, num_matvecs):
    op, exact = operator(SPECTRA[name], kind)
    errors = {
        method: rms(repeated(op, exact, method, num_matvecs, 100)[0])
        for method in (*METHODS[kind], "auto")
    }
    auto = errors.pop("auto")
    rounding = 1e-14 * abs(SPECTRA[name]).sum()
    assert auto < 1.5 * min(errors.values()) + rounding, (auto, errors)


@pytest.mark.parametrize("spectrum", [0.97 ** np.arange(N), np.arange(1, N + 1) ** -0.5])
def test_where_no_modes_pay_auto_loses_little_with_few_matvecs(never_dense, spectrum):
    op, exact = operator(spectrum)
    plain, auto = (rms(repeated(op, exact, m, 12, 100)[0]) for m in ("hutchinson", "auto"))
    assert auto < 1.25 * plain, (auto, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "hidden"), [(torch.nn.RNN, 64), (torch.nn.GRU, 48), (torch.nn.RNN, 256)]
)
def test_auto_is_near_the_best_on_the_flow_operator_of_a_network(never_dense, model, hidden):
    torch.manual_seed(0)
    n_trials = 2 if hidden == 256 else 4
    inputs = torch.randn(n_trials, 6, 3, dtype=torch.float64)
    flow = kpops.linearize(model(3, hidden, batch_first=True).double(), inputs).flow
    root = ForeignOperator(flow.root.to_dense())
    exact = float(trace(flow, method="exact").estimate)
    assert exact == pytest.approx(np.square(root.to_dense()).sum(), rel=1e-12)
    errors = {
        method: rms(repeated(root @ root.H, exact, method, 64, 60)[0])
        for method in (*METHODS["factored"], "auto")
    }
    assert errors.pop("auto") < 1.5 * min(errors.values())


def test_a_flow_operator_is_estimated_from_its_factor(never_dense):
    lin = linearization(torch.nn.LSTM)
    exact = np.trace(lin.flow.to_dense())
    for method in ("auto", *METHODS["factored"]):
        result = trace(lin.flow, method=method, num_matvecs=40, rng=1)
        assert abs(float(result.estimate) - exact) < 4 * float(result.stderr) + 1e-10 * exact
    result = trace(lin.flow, method="hutchinson", num_matvecs=5000, rng=1)
    assert float(result.stderr) < 0.02 * exact
    assert abs(float(result.estimate) - exact) < 4 * float(result.stderr)


def test_products_are_counted_by_what_they_cost(never_dense):
    applied = []

    def counting(x):
        applied.append(x.shape[1] if x.ndim == 2 else 1)
        return scipy.sparse.diags(np.linspace(1, 2, N)) @ x

    linear = scipy.sparse.linalg.LinearOperator(
        (N, N), matvec=counting, matmat=counting, rmatvec=counting, rmatmat=counting, dtype=float
    )
    root = ForeignOperator(linear)
    for method in ("auto", *METHODS["factored"]):
        applied.clear()
        result = trace(root @ root.H, method=method, num_matvecs=31, rng=0)
        assert result.num_matvecs == sum(applied) / 2
        assert 29 <= result.num_matvecs <= 31
    op = ForeignOperator(linear)
    for function, methods in ((trace, METHODS["indefinite"]), (diagonal, ("hutchinson", "xdiag"))):
        for method in methods:
            applied.clear()
            result = function(op, method=method, num_matvecs=31, rng=0)
            assert 29 <= result.num_matvecs == sum(applied) <= 31


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["algebraic", "clusters", "step"])
def test_scale_does_not_matter(never_dense, kind, dtype, name):
    for method in ("auto", *METHODS[kind]):
        expected = trace(operator(SPECTRA[name], kind, dtype)[0], method=method, rng=0)
        for scale in (2.0**-40, 2.0**40):
            op, _ = operator(scale * SPECTRA[name], kind, dtype)
            found = trace(op, method=method, rng=0)
            assert found.estimate.dtype == found.stderr.dtype == dtype
            for part in ("estimate", "stderr"):
                tolerance = 2e-3 if dtype == np.float32 else 1e-6
                assert float(found[part]) == pytest.approx(
                    scale * float(expected[part]), rel=tolerance
                )


@pytest.mark.parametrize("kind", KINDS)
def test_zero_rank_one_and_low_rank_are_exact_to_rounding(never_dense, kind):
    for rank in (0, 1, 9):
        op, exact = operator(np.r_[np.linspace(1, 2, rank), np.zeros(N - rank)], kind)
        for method in ("auto", *METHODS[kind][2:]):
            result = trace(op, method=method, rng=0)
            assert float(result.estimate) == pytest.approx(exact, rel=1e-11, abs=1e-11)
            assert float(result.stderr) <= 1e-11
    zero, _ = operator(np.zeros(N), kind)
    result = trace(zero, method="hutchinson", rng=0)
    assert float(result.estimate) == float(result.stderr) == 0


def test_the_a_priori_error_bar_is_that_of_gaussian_vectors(never_dense):
    spectrum = SPECTRA["algebraic"]
    expected = np.sqrt(2 / (60 * spectrum.sum() ** 2 / (spectrum**2).sum()))
    for kind in ("factored", "positive"):
        op, _ = operator(spectrum, kind)
        for method in ("hutchinson", "xnystrace", "xtrace"):
            result = trace(op, method=method, num_matvecs=60, rng=0)
            assert result.a_priori == pytest.approx(expected, rel=0.3)
    flat, _ = operator(SPECTRA["flat"])
    assert trace(flat, num_matvecs=60, rng=0).a_priori == pytest.approx(
        np.sqrt(2 / 60 * (SPECTRA["flat"] ** 2).sum() / SPECTRA["flat"].sum() ** 2), rel=0.1
    )
    assert math.isnan(trace(operator(spectrum, "indefinite")[0], rng=0).a_priori)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["algebraic", "flat"])
def test_a_tolerance_adds_products_until_it_is_met(never_dense, kind, name):
    op, exact = operator(SPECTRA[name], kind)
    for method in ("auto", *METHODS[kind]):
        used = []
        for tol in (0.15, 0.1):
            result = trace(op, method=method, tol=tol, rng=3)
            assert result.converged == 1
            assert float(result.stderr) <= tol * abs(float(result.estimate))
            assert abs(float(result.estimate) - exact) < 4 * float(result.stderr)
            used.append(result.num_matvecs)
        assert used[0] <= used[1] <= 1024


def test_a_tolerance_out_of_reach_is_said(never_dense):
    op, _ = operator(SPECTRA["flat"], "indefinite")
    with pytest.warns(kpops.ConvergenceWarning, match="raise num_matvecs, or tol"):
        result = trace(op, tol=1e-9, num_matvecs=50, rng=0)
    assert result.converged == 0
    assert result.num_matvecs == 50
    with pytest.warns(kpops.ConvergenceWarning):
        assert diagonal(dense_positive(SPECTRA["flat"]), tol=1e-12, num_matvecs=30).converged == 0


def test_growing_by_rounds_is_as_accurate_as_all_at_once(never_dense):
    op, exact = operator(SPECTRA["algebraic"])
    # auto may have spent a part on another method while there were too few vectors to tell
    for method, loss in (("xnystrace", 1.3), ("xtrace", 1.3), ("auto", 2.5)):
        rounds = []
        for seed in range(40):
            with pytest.warns(kpops.ConvergenceWarning):
                result = trace(op, method=method, tol=1e-9, num_matvecs=64, rng=seed)
            rounds.append(float(result.estimate) - exact)
        at_once = repeated(op, exact, method, 64, 40)[0]
        assert rms(rounds) < loss * rms(at_once), method


def dense_positive(spectrum, seed=0):
    generator = np.random.default_rng(seed)
    q = np.linalg.qr(generator.standard_normal((len(spectrum), len(spectrum))))[0]
    root = ForeignOperator(q * np.sqrt(spectrum))
    return root @ root.H


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("name", slow_but(["algebraic", "clusters"], SPECTRA))
def test_error_bars_of_the_diagonal_cover_and_auto_is_near_the_best(never_dense, name, factored):
    op = dense_positive(SPECTRA[name])
    matrix = op.to_dense()
    exact = np.diag(matrix)
    op = op if factored else ForeignOperator(matrix)
    errors = {}
    for method in ("hutchinson", "xdiag", "auto"):
        gaps, bars, covered = [], [], []
        for seed in range(25):
            result = diagonal(op, method=method, num_matvecs=60, rng=seed)
            assert result.num_matvecs <= 60
            gap = np.abs(result.estimate.values - exact)
            gaps.append(np.linalg.norm(gap))
            bars.append(np.linalg.norm(result.stderr))
            covered.append(np.mean(gap <= 2 * result.stderr.values + 1e-14))
        errors[method] = rms(gaps)
        assert np.mean(covered) > 0.9
        assert 0.85 * rms(gaps) < rms(bars) < 2.2 * rms(gaps)
    assert errors["auto"] < 1.5 * min(errors["hutchinson"], errors["xdiag"])


def test_the_diagonal_of_a_flow_operator_is_a_labelled_field(never_dense):
    lin = linearization(torch.nn.RNN)
    exact = np.diag(lin.flow.to_dense()).reshape(lin.flow.domain.shape)
    result = diagonal(lin.flow, num_matvecs=2000, rng=0)
    assert result.estimate.dims == result.stderr.dims == ("trial", "time", "unit")
    assert result.estimate.attrs == {"long_name": "diagonal", "units": "1"}
    assert np.abs(result.estimate - exact).max() < 5 * result.stderr.max() + 1e-12
    assert float((result.stderr**2).sum()) ** 0.5 < 0.05 * np.linalg.norm(exact)


def test_a_tolerance_of_the_diagonal_is_met_in_the_norm(never_dense):
    op = dense_positive(SPECTRA["flat"])
    result = diagonal(op, tol=0.04, rng=0)
    assert result.converged == 1
    ratio = np.linalg.norm(result.stderr) / np.linalg.norm(result.estimate)
    assert 0.02 < ratio <= 0.04


def test_diagonal_of_zero_and_low_rank_is_exact(never_dense):
    for rank in (0, 1, 9):
        op = dense_positive(np.r_[np.linspace(1, 2, rank), np.zeros(60 - rank)])
        for method in ("auto", "xdiag"):
            result = diagonal(op, method=method, rng=0)
            np.testing.assert_allclose(result.estimate, np.diag(op.to_dense()), atol=1e-12)
            assert float(result.stderr.max()) < 1e-12


def test_the_seed_decides_the_result(never_dense):
    op = dense_positive(SPECTRA["clusters"])
    for function in (trace, diagonal):
        one, same, other = (function(op, rng=seed) for seed in (1, np.random.default_rng(1), 2))
        assert one.identical(same)
        assert not one.estimate.equals(other.estimate)


def test_results_survive_a_file(never_dense, tmp_path):
    import xarray

    op, _ = operator(SPECTRA["clusters"])
    for name, result in (("t", trace(op, rng=0, tol=0.1)), ("d", diagonal(op, rng=0))):
        result.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xarray.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as back:
            assert back.attrs["method"] == result.method
            assert back.attrs["chosen"] == result.chosen
            settings = json.loads(back.attrs["configuration"])
            assert settings["method"] == "auto"
    assert result.estimate.attrs["units"] == "1"


def test_one_by_one_operators_are_exact_by_any_method(never_dense):
    for method in ("hutchinson", "xtrace", "xnystrace"):
        assert float(trace(np.array([[3.0]]), method=method).estimate) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "guess"}, "method='guess': choose one of 'auto'"),
        ({"num_matvecs": 1}, "num_matvecs=1: method='auto' needs an int of at least 2"),
        ({"method": "xtrace", "num_matvecs": 4}, "needs an int of at least 6"),
        ({"num_matvecs": 3.5}, "num_matvecs=3.5"),
        ({"tol": 0.0}, "tol=0.0: choose a fraction"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        trace(np.eye(3), **options)


def test_what_has_no_trace_is_refused():
    with pytest.raises(ValueError, match="does not map a space to itself"):
        trace(np.ones((3, 4)))
    with pytest.raises(ValueError, match="does not map a space to itself"):
        diagonal(np.ones((3, 4)))


def test_xnystrace_of_what_is_not_positive_is_refused(never_dense):
    with pytest.raises(ValueError, match="not self-adjoint"):
        trace(np.triu(np.ones((30, 30))), method="xnystrace")
    with pytest.raises(ValueError, match="not positive semi-definite"):
        trace(operator(SPECTRA["flat"], "indefinite")[0], method="xnystrace")


def test_an_operator_that_is_not_finite_is_refused(never_dense):
    with pytest.raises(ValueError, match=r"not finite: .* fill or drop them"):
        trace(operator(np.full(N, np.inf), "positive")[0])


def test_one_round_that_meets_a_tolerance_is_confirmed_by_another(never_dense):
    spectrum = np.r_[np.ones(16), np.full(284, 0.2)]
    result = trace(operator(spectrum)[0], method="hutchinson", tol=0.9, rng=0)
    assert result.num_matvecs == 32
    assert result.converged
