"""Estimated effective ranks: honest error bars, and agreement with the exact ones."""

import warnings

import numpy as np
import pytest
import torch
from cases import slow_but
from test_rank import ESTIMATED, rank, symmetric, textbook

import kpops
from kpops.linalg.probes import jackknife, widened

SPECTRA = {
    "nearly flat": np.linspace(1, 1.3, 60),
    "decaying": 0.8 ** np.arange(60),
    "clustered": np.repeat([1.0, 0.3, 0.05, 0.0], 15),
    "spike": np.r_[1.0, np.linspace(1e-3, 2e-3, 59)],
}


def coverage(matrix, exact, kind, method, num_matvecs, repetitions=100):
    results = [
        kpops.effective_rank(matrix, kind, method=method, num_matvecs=num_matvecs, rng=seed)
        for seed in range(1, repetitions + 1)
    ]
    estimates = np.array([float(r.estimate) for r in results])
    errors = np.array([float(r.stderr) for r in results])
    scatter = estimates.std()
    assert abs(estimates.mean() - exact) < 4 * scatter / np.sqrt(repetitions) + 0.02 * exact
    assert errors.mean() == pytest.approx(np.sqrt(np.mean((estimates - exact) ** 2)), rel=0.35)
    return np.mean(np.abs(estimates - exact) <= 2 * errors)


# The fractions have a standard error of 3 % at 90 % and 100 seeds, and the seeds are fixed.


@pytest.mark.parametrize("name", slow_but(["decaying"], SPECTRA))
def test_error_bars_of_participation_cover(name):
    matrix = symmetric(SPECTRA[name])
    exact = textbook(matrix, "participation", "A")
    assert 0.9 <= coverage(matrix, exact, "participation", "hutchinson", 60) <= 0.99
    thin = matrix[:, :50]
    assert coverage(thin, rank(thin), "participation", "hutchinson", 120) >= 0.87


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("nearly flat", "variance", marks=pytest.mark.slow),
        ("clustered", "entropy"),
        pytest.param("nearly flat", "entropy", marks=pytest.mark.slow),
        pytest.param("clustered", "variance", marks=pytest.mark.slow),
        pytest.param("decaying", "entropy", marks=pytest.mark.slow),
        pytest.param("decaying", "variance", marks=pytest.mark.slow),
    ],
)
def test_error_bars_of_gauss_rules_cover(name, kind):
    matrix = symmetric(SPECTRA[name])
    exact = textbook(matrix, kind)
    assert 0.86 <= coverage(matrix, exact, kind, "lanczos", 500) <= 1


def test_error_bars_of_the_stable_rank_cover():
    matrix = symmetric(SPECTRA["decaying"])
    exact = textbook(matrix, "stable")
    assert 0.87 <= coverage(matrix, exact, "stable", "hutchinson", 40) <= 1


def test_a_flat_spectrum_is_seen_without_error():
    for kind, method in ESTIMATED:
        if (kind, method) != ("variance", "hutchinson"):
            result = kpops.effective_rank(np.eye(90), kind, method=method, rng=0)
            expected = 0.95 * 90 if kind == "variance" else 90
            assert float(result.estimate) == pytest.approx(expected, rel=1e-10)
            assert float(result.stderr) < 1e-10


def test_few_modes_that_hold_most_are_summed_exactly():
    matrix = symmetric(np.r_[5.0, 3.0, 1.0, np.full(97, 1e-4)])
    exact = textbook(matrix, "participation", "A")
    result = kpops.effective_rank(matrix, method="hutchinson", rng=0)
    assert float(result.estimate) == pytest.approx(exact, rel=1e-4)
    assert float(result.stderr) < 1e-3
    assert "leading directions" in result.chosen
    assert result.num_matvecs == 64 + 33  # which look for a negative eigenvalue


def test_a_jackknife_of_a_mean_is_the_mean_and_its_standard_error():
    samples = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate, stderr = jackknife(lambda mean: mean, samples)
    assert estimate == pytest.approx(float(samples.mean()))
    assert stderr == pytest.approx(widened(20) * float(samples.std()) / 20**0.5)
    # Of a square it takes the bias away: the square of the mean less its variance.
    unbiased = float(samples.mean() ** 2 - samples.var() / 20)
    assert jackknife(lambda mean: mean**2, samples)[0] == pytest.approx(unbiased)


def test_participation_from_a_root_works_in_the_small_space():
    factor = kpops.operators.foreign.as_operator(np.random.default_rng(0).standard_normal((60, 8)))
    gram = factor @ factor.H
    result = kpops.effective_rank(gram, method="hutchinson", num_matvecs=60, rng=0)
    assert gram.num_matvecs == 1  # for the scale
    # The images of 15 random vectors span all 8 dims there are.
    exact = textbook(gram.to_dense(), "participation", "A")
    assert float(result.estimate) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("kind", "method"), ESTIMATED)
def test_estimates_of_real_operators_agree_with_the_exact_ranks(kind, method):
    torch.manual_seed(0)
    model = torch.nn.GRU(2, 5, batch_first=True).double()
    lin = kpops.linearize(model, torch.randn(3, 6, 2).double())
    for op in (lin.K, lin.flow, lin.P @ lin.P.H, lin.P, lin.J):
        exact = rank(op, kind, tol=1e-2)
        result = kpops.effective_rank(op, kind, method=method, tol=1e-2, num_matvecs=2000, rng=1)
        assert result.method == method
        assert abs(float(result.estimate) - exact) <= 4 * float(result.stderr) + 1e-6
        assert float(result.stderr) < 0.15 * exact


def test_what_a_gauss_rule_cannot_resolve_is_in_its_error_bar():
    spectrum = 0.8 ** np.arange(200)  # 62 of which are above 1e-6, and none of them apart
    matrix = symmetric(spectrum)
    for num_matvecs in (384, 1500, 6000):
        for seed in range(1, 4):  # the matrix comes from seed 0
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = kpops.effective_rank(
                    matrix, "numerical", method="lanczos", num_matvecs=num_matvecs, rng=seed
                )
            assert ("says little" in str([w.message for w in caught])) == (
                float(result.stderr) > 0.25 * float(result.estimate)
            )
            if num_matvecs == 384:
                assert caught
            assert abs(float(result.estimate) - 62) <= 2 * float(result.stderr)
    assert float(result.stderr) < 10


def test_variance_rank_of_a_broad_spectrum_comes_from_gauss_rules():
    matrix = np.diag(np.linspace(0.5, 1, 1500))
    exact = textbook(matrix, "variance")
    result = kpops.effective_rank(matrix, "variance", rng=0)
    assert result.method == "lanczos"
    assert abs(float(result.estimate) - exact) <= 3 * float(result.stderr)
    assert float(result.stderr) < 20


def test_a_tolerance_is_met_by_more_products():
    matrix = symmetric(SPECTRA["clustered"])
    exact = textbook(matrix, "participation", "A")
    loose = kpops.effective_rank(matrix, method="hutchinson", num_matvecs=16, rng=0)
    tight = kpops.effective_rank(matrix, method="hutchinson", num_matvecs=16, rtol=0.01, rng=0)
    assert float(loose.stderr) > 0.02 * float(loose.estimate)
    assert float(tight.stderr) <= 0.01 * float(tight.estimate)
    assert abs(float(tight.estimate) - exact) < 4 * float(tight.stderr)
    assert tight.num_matvecs >= 128


def test_estimated_variance_rank_agrees_with_the_exact_one():
    matrix = symmetric(0.7 ** np.arange(50))
    exact = rank(matrix, "variance")
    result = kpops.effective_rank(matrix, "variance", method="hutchinson", num_matvecs=400, rng=0)
    assert abs(float(result.estimate) - exact) < 3 * float(result.stderr)
    assert 0 < float(result.stderr) < 0.5
    rectangular = np.random.default_rng(0).standard_normal((40, 30)) * 0.6 ** np.arange(30)
    result = kpops.effective_rank(rectangular, "variance", method="hutchinson", rng=0)
    assert abs(float(result.estimate) - rank(rectangular, "variance")) < 3 * float(result.stderr)


def test_too_flat_a_spectrum_is_a_lower_bound_and_says_so():
    with pytest.warns(kpops.ConvergenceWarning, match="the estimate is a lower bound"):
        result = kpops.effective_rank(np.eye(400), "variance", method="hutchinson", rng=0)
    assert float(result.estimate) == 256
    assert np.isnan(float(result.stderr))


@pytest.mark.parametrize("kind", ["participation", "stable"])
@pytest.mark.parametrize("num_matvecs", [2, 3, 6, 7])
def test_the_smallest_budgets_work(kind, num_matvecs):
    matrix = np.linspace(1, 2, 150)[:, None] * np.eye(150)
    for op in (matrix, matrix[:, :140]):
        options = {"method": "hutchinson", "num_matvecs": num_matvecs, "rng": 0}
        result = kpops.effective_rank(op, kind, **options)
        exact = rank(op, kind)
        assert abs(float(result.estimate) - exact) <= 0.2 * exact


def test_a_propagator_takes_a_budget_too_small_for_a_pilot():
    torch.manual_seed(0)
    model = torch.nn.GRU(2, 5, batch_first=True).double()
    P = kpops.linearize(model, torch.randn(3, 6, 2).double()).P
    estimate = rank(P, method="hutchinson", num_matvecs=6, rng=0)
    assert estimate == pytest.approx(rank(P), rel=0.5)


def test_a_stable_rank_near_one_is_not_blurred_by_the_leading_mode():
    matrix = np.diag(np.r_[1000.0, np.ones(2999)])
    result = kpops.effective_rank(matrix, "stable", method="hutchinson", rng=0)
    assert float(result.estimate) == pytest.approx(1.002999, abs=1e-5)
    assert float(result.stderr) < 1e-4
    rank_one = np.outer(np.arange(1.0, 41), np.ones(30))
    assert rank(rank_one, "stable", method="hutchinson", rng=0) == pytest.approx(1, abs=1e-6)


def test_modes_and_vectors_are_taken_in_chunks(monkeypatch):
    seen = []
    whole = kpops.operators.foreign.as_operator(symmetric(SPECTRA["decaying"]))
    inner = type(whole)._apply_adjoint
    monkeypatch.setattr(
        type(whole), "_apply_adjoint", lambda op, b: (seen.append(len(b)), inner(op, b))[1]
    )
    for kind in ("stable", "variance"):
        kpops.effective_rank(whole, kind, method="hutchinson", num_matvecs=200, rng=0)
    assert seen and max(seen) <= 64


@pytest.mark.parametrize("seed", range(4))
def test_a_cluster_of_positive_values_is_not_called_indefinite(seed):
    # Beside the leading modes that are set aside, Lanczos vectors grow parts along them.
    rng = np.random.default_rng(seed)
    values = 1 + 1e-4 * rng.standard_normal(21)
    found = kpops.effective_rank(np.diag(values), "entropy", method="lanczos", rng=seed)
    assert abs(float(found.estimate) - 21) < 2 * float(found.stderr) + 1e-6
