"""Effective ranks: exact values, laws, and honest error bars."""

import numpy as np
import pytest
import torch

import kpops


def symmetric(spectrum, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (Q * spectrum) @ Q.T


def rank(op, kind="participation", **options):
    return float(kpops.effective_rank(op, kind, **options).estimate)


def test_participation_of_a_flat_spectrum_is_its_count():
    assert rank(symmetric([2.0] * 7 + [0.0] * 5)) == pytest.approx(7, rel=1e-12)


def test_participation_of_a_rectangular_operator_is_that_of_its_gram():
    matrix = np.random.default_rng(0).standard_normal((8, 5))
    gram = matrix @ matrix.T
    expected = np.trace(gram) ** 2 / (gram**2).sum()
    assert rank(matrix) == pytest.approx(expected, rel=1e-12)
    assert rank(matrix.T) == pytest.approx(expected, rel=1e-12)
    assert rank(gram) == pytest.approx(expected, rel=1e-12)


def test_variance_rank_interpolates_between_counts():
    assert rank(symmetric([5.0] + [0.0] * 9), "variance") == pytest.approx(0.95, abs=1e-12)
    assert rank(symmetric([1.0] * 10), "variance") == pytest.approx(9.5, abs=1e-12)
    # Squares 4, 1: the first holds 0.8, and 0.15 of the total is 0.75 of the second.
    assert rank(symmetric([2.0, 1.0]), "variance") == pytest.approx(1.75, abs=1e-12)
    assert rank(symmetric([2.0, 1.0]), "variance", threshold=0.4) == pytest.approx(0.5)


def test_variance_rank_of_an_operator_uses_its_own_singular_values():
    matrix = np.diag([2.0, 1.0]) @ np.array([[0.0, -1.0], [1.0, 0.0]])
    assert rank(matrix, "variance") == pytest.approx(1.75, abs=1e-12)


@pytest.mark.parametrize("kind", ["participation", "variance"])
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_a_zero_operator_has_rank_zero(kind, method):
    result = kpops.effective_rank(np.zeros((6, 6)), kind, method=method)
    assert float(result.estimate) == float(result.stderr) == 0


def test_thin_operators_are_exact_however_long():
    assert rank(np.eye(2, 3000), "variance") == pytest.approx(1.9, abs=1e-12)
    assert rank(np.ones((1, 3000))) == pytest.approx(1, abs=1e-12)
    assert rank(np.eye(2, 3000), "variance", method="hutchinson", rng=0) == pytest.approx(1.9)


def test_scale_does_not_matter():
    for scale in (1e-12, 1e12):
        for kind in ("participation", "variance"):
            matrix = symmetric(np.arange(1.0, 9))
            assert rank(scale * matrix, kind) == pytest.approx(rank(matrix, kind), rel=1e-10)


@pytest.mark.parametrize(
    "spectrum", [np.ones(60), 0.8 ** np.arange(60), np.r_[1.0, np.full(59, 1e-3)]]
)
def test_error_bars_of_participation_cover(spectrum):
    matrix = symmetric(spectrum)
    exact = rank(matrix)
    results = [
        kpops.effective_rank(matrix, method="hutchinson", num_matvecs=40, rng=seed)
        for seed in range(200)
    ]
    estimates = np.array([float(r.estimate) for r in results])
    errors = np.array([float(r.stderr) for r in results])
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(200) + 0.02 * exact
    covered = np.mean(np.abs(estimates - exact) <= 2 * errors)
    assert 0.85 < covered <= 1


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


def test_kind_method_and_gram_are_named_in_the_result():
    lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.ones(2, 4, 2))
    of_P, of_K = kpops.effective_rank(lin.P), kpops.effective_rank(lin.K, "variance")
    assert (of_P.kind, of_P.method, of_P.gram) == ("participation", "exact", "A A*")
    assert (of_K.kind, of_K.gram) == ("variance", "A")
    assert of_K.estimate.dtype == np.float32
    assert "variance" in of_K.estimate.attrs["long_name"]


def test_measure_does_not_change_a_rank():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 3, batch_first=True).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    total, mean = (kpops.linearize(gru, x, measure=m) for m in ("sum", "mean"))
    assert rank(total.flow) == pytest.approx(rank(mean.flow), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "stable"}, "kind='stable': choose 'participation' or 'variance'"),
        ({"threshold": 1.0}, "threshold=1.0: choose a fraction"),
        ({"method": "guess"}, "method='guess'"),
        ({"num_matvecs": 1}, "num_matvecs=1"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        kpops.effective_rank(np.eye(3), **options)


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
@pytest.mark.parametrize("kind", ["participation", "variance"])
def test_an_indefinite_operator_is_refused(kind, method):
    with pytest.raises(ValueError, match="positive semi-definite"):
        kpops.effective_rank(symmetric([1.0, -1.0, -2.0] * 5), kind, method=method, rng=0)


def test_provenance_is_carried_by_every_result():
    gru = torch.nn.GRU(2, 3, batch_first=True)
    lin = kpops.linearize(gru, torch.ones(2, 4, 2), measure="mean", engine="autodiff")
    flow = lin.flow.select(trial=0).expand_average(keep=("time",))
    for result in (kpops.effective_rank(flow), kpops.eigsh(flow, k=2), kpops.svds(2 * lin.P, k=2)):
        assert (result.measure, result.model, result.engine) == ("mean", "GRU", "autodiff")
    other = kpops.linearize(gru, torch.ones(2, 4, 2), measure="sum", engine="autodiff")
    mixed = kpops.eigsh(lin.K + other.K, k=2)
    assert "measure" not in mixed.attrs
    assert mixed.model == "GRU"
