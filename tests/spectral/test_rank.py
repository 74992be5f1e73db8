"""Effective ranks: exact values, laws, reductions, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch

import kpops
from kpops.linalg.ranks import registry

# Those of which `textbook` knows the definition; tests/spectral/test_registries.py walks them all.
KINDS = ["participation", "variance", "entropy", "stable", "numerical"]
ESTIMATED = [(kind, method) for kind in KINDS for method in registry.KINDS[kind].methods]


def symmetric(spectrum, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (Q * spectrum) @ Q.T


@pytest.fixture(scope="module")
def large():
    """A network with n = 1080, too large for dense matrices without being asked for."""
    torch.manual_seed(0)
    model = torch.nn.GRU(2, 10, batch_first=True).double()
    return kpops.linearize(model, torch.randn(12, 9, 2).double())


def rank(op, kind="participation", **options):
    return float(kpops.effective_rank(op, kind, **options).estimate)


def textbook(matrix, kind, gram=None, threshold=0.95, tol=1e-6):
    """The definitions, from a dense matrix or its singular values."""
    a = matrix if matrix.ndim == 1 else np.linalg.svd(matrix, compute_uv=False)
    if kind == "participation":
        g = a if gram == "A" else a**2
        return g.sum() ** 2 / (g**2).sum()
    if kind == "variance":
        held = np.concatenate([[0], np.cumsum(a**2)]) / (a**2).sum()
        return np.interp(threshold, held, np.arange(len(held)))
    if kind == "entropy":
        p = a[a > 0] / a.sum()
        return np.exp(-(p * np.log(p)).sum())
    if kind == "stable":
        return (a**2).sum() / a[0] ** 2
    return (a > tol * a[0]).sum()


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 5, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 6, 2, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_ranks_of_real_operators_are_those_of_their_matrices(lin, kind):
    for op in (lin.K, lin.flow, lin.P @ lin.P.H, lin.P, lin.J, lin.J.H, lin.sensitivity):
        result = kpops.effective_rank(op, kind, tol=1e-9)
        gram = "A" if op.self_adjoint else "A A*"
        expected = textbook(op.to_dense(), kind, gram, tol=1e-9)
        assert float(result.estimate) == pytest.approx(expected, rel=1e-10)
        assert (float(result.stderr), result.method) == (0, "exact")


@pytest.mark.parametrize(("cell", "hidden"), [(torch.nn.GRU, 14), (torch.nn.LSTM, 7)])
def test_the_whole_spectrum_of_K_comes_from_its_units(cell, hidden):
    torch.manual_seed(0)
    model = cell(2, hidden, batch_first=True).double()
    K = kpops.linearize(model, torch.randn(4, 20, 2).double()).K  # n is above 1024
    singular = np.linalg.eigvalsh(K.to_dense())[::-1].clip(0)
    products = K.num_matvecs
    for kind in KINDS:
        result = kpops.effective_rank(K, kind)
        assert float(result.estimate) == pytest.approx(textbook(singular, kind, "A"), rel=1e-9)
        assert float(result.stderr) == result.num_matvecs == 0
    assert K.num_matvecs == products


def test_one_value_has_every_rank_of_one():
    for kind in KINDS:
        expected = 0.95 if kind == "variance" else 1
        for method in ("exact", "auto"):
            matrix = np.outer(np.arange(1.0, 9), np.ones(8))
            assert rank(matrix, kind, method=method) == pytest.approx(expected)


def test_ranks_of_known_spectra():
    half = symmetric([2.0] * 4 + [1.0] * 8)
    assert rank(half, "entropy") == pytest.approx(math.exp(1.5 * math.log(2) + math.log(4)))
    assert rank(half, "stable") == pytest.approx(6, rel=1e-12)
    assert rank(half, "numerical") == 12
    assert rank(half, "numerical", tol=0.6) == 4
    # Eigenvalues count for the entropy of A, singular values for that of a factor.
    factor = np.diag([3.0, 1.0])
    assert rank(factor, "entropy") != pytest.approx(rank(factor @ factor.T, "entropy"))


def test_the_numerical_rank_stops_at_the_noise_floor():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        factor = rng.standard_normal((200, 7))
        low_rank = (factor @ factor.T).astype(dtype)
        result = kpops.effective_rank(low_rank, "numerical", tol=0)
        assert float(result.estimate) == 7
        assert result.noise_floor == 64 * np.finfo(dtype).eps


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


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_variance_rank_of_the_leading_modes_alone(method):
    values = np.linspace(3, 1, 40) ** 2
    for top in (1, 7, 39, 40, 60):
        found = rank(symmetric(values), "variance", top=top, method=method, rng=0)
        assert found == pytest.approx(textbook(values[:top], "variance"), rel=1e-9)
    assert rank(np.eye(90), "variance", top=60) == pytest.approx(57, abs=1e-12)  # a flat spectrum
    assert rank(np.zeros((9, 9)), "variance", top=3, method=method, rng=0) == 0


def test_variance_rank_of_leading_modes_of_a_large_operator(large):
    estimated = rank(large.flow, "variance", top=6, method="hutchinson", rng=0)
    expected = textbook(kpops.svds(large.flow, k=6).singular_value.values, "variance")
    assert estimated == pytest.approx(expected, rel=1e-9)
    kept = large.P.expand_average("time")
    assert rank(large.P, "variance", keep="time", top=4) == pytest.approx(
        textbook(np.linalg.svd(kept.to_dense(), compute_uv=False)[:4], "variance"), rel=1e-10
    )


def test_variance_rank_of_an_operator_uses_its_own_singular_values():
    matrix = np.diag([2.0, 1.0]) @ np.array([[0.0, -1.0], [1.0, 0.0]])
    assert rank(matrix, "variance") == pytest.approx(1.75, abs=1e-12)


@pytest.mark.parametrize(("kind", "method"), [*((k, "exact") for k in KINDS), *ESTIMATED])
def test_a_zero_operator_has_rank_zero(kind, method):
    for matrix in (np.zeros((6, 6)), np.zeros((30, 40), np.float32)):
        result = kpops.effective_rank(matrix, kind, method=method, rng=0)
        assert float(result.estimate) == float(result.stderr) == 0


def test_thin_operators_are_exact_however_long():
    assert rank(np.eye(2, 3000), "variance") == pytest.approx(1.9, abs=1e-12)
    assert rank(np.ones((1, 3000))) == pytest.approx(1, abs=1e-12)
    assert rank(np.eye(2, 3000), "variance", method="hutchinson", rng=0) == pytest.approx(1.9)


@pytest.mark.filterwarnings("ignore:effective_rank. the numerical rank")
@pytest.mark.parametrize(("kind", "method"), [*((k, "exact") for k in KINDS), *ESTIMATED])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_does_not_matter(kind, method, dtype):
    matrix = symmetric(0.7 ** np.arange(40))
    for wanted in (matrix, matrix[:, :30]):
        plain = rank(wanted.astype(dtype), kind, method=method, tol=0.02, rng=0)
        for scale in (1e-12, 1e12):
            moved = rank((scale * wanted).astype(dtype), kind, method=method, tol=0.02, rng=0)
            assert moved == pytest.approx(plain, rel=1e-3 if dtype == np.float32 else 1e-9)


def test_scale_does_not_matter_for_K_in_single_precision(lin):
    torch.manual_seed(0)
    K = kpops.linearize(torch.nn.GRU(2, 5, batch_first=True), torch.randn(3, 6, 2)).K
    for kind in KINDS:
        for scale in (1e-12, 1e12):
            assert rank(scale * K, kind) == pytest.approx(rank(K, kind), rel=1e-4)


# Reductions.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [("time",), ("unit",), ("trial", "time")])
def test_ranks_of_reductions_are_those_of_the_reduced_matrices(lin, kind, keep):
    axes = [["trial", "time", "unit"].index(d) for d in keep]
    rest = [i for i in range(3) if i not in axes]
    sizes = [(3, 6, 5)[i] for i in range(3)]
    for op in (lin.K, lin.flow, lin.P @ lin.P.H, lin.P):
        full = op.to_dense().reshape(*sizes, *sizes)
        full = full.transpose(*axes, *rest, *(3 + i for i in axes), *(3 + i for i in rest))
        kept, traced = (math.prod(sizes[i] for i in part) for part in (axes, rest))
        full = full.reshape(kept, traced, kept, traced)
        gram = "A" if op.self_adjoint else "A A*"
        for reduction, matrix in (
            ("expand_average", full.sum((1, 3)) / traced),
            ("partial_trace", np.einsum("ajbj->ab", full)),
        ):
            result = kpops.effective_rank(op, kind, keep=keep, reduction=reduction, tol=1e-9)
            expected = textbook(matrix, kind, gram, tol=1e-9)
            assert float(result.estimate) == pytest.approx(expected, rel=1e-8)
            assert (result.reduction, result.method) == (reduction, "exact")


def test_a_thin_root_makes_the_whole_spectrum_of_a_long_operator(large):
    flow = large.flow
    assert flow.root.shape[1] < 1024 < flow.shape[0]
    values = np.linalg.eigvalsh(flow.to_dense())[::-1].clip(0)
    for kind in KINDS:
        result = kpops.effective_rank(flow, kind, tol=1e-9)
        assert float(result.estimate) == pytest.approx(textbook(values, kind, "A", tol=1e-9))
        assert result.num_matvecs == flow.root.shape[1]
        assert "Gram matrix of" in result.chosen


def test_a_partial_trace_counts_the_products_with_the_operator_itself(large):
    options = {"keep": "time", "reduction": "partial_trace"}
    of_P = kpops.effective_rank(large.P, **options)
    assert of_P.num_matvecs == 9 * 10  # times and units; trials are not coupled
    assert kpops.effective_rank(large.flow, method="exact", **options).num_matvecs == 9 * 120


@pytest.mark.parametrize("kind", ["participation", "variance", "entropy"])
def test_error_bars_of_an_estimated_partial_trace_cover(kind, large):
    flow = large.flow
    options = {"keep": "time", "reduction": "partial_trace"}
    exact = rank(flow, kind, method="exact", **options)
    results = [
        kpops.effective_rank(flow, kind, num_matvecs=20, rng=seed, **options) for seed in range(100)
    ]
    assert all(r.method == "hutchinson" and r.num_matvecs == 20 for r in results)
    estimates = np.array([float(r.estimate) for r in results])
    errors = np.array([float(r.stderr) for r in results])
    assert 0.86 <= np.mean(np.abs(estimates - exact) <= 2 * errors) <= 1
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.35)
    assert 0 < errors.mean() < 0.1 * exact


def test_the_two_reductions_are_different_operators(lin):
    average = rank(lin.flow, keep="time")
    trace = rank(lin.flow, keep="time", reduction="partial_trace")
    assert abs(average - trace) > 0.1 * trace


def test_kind_method_and_gram_are_named_in_the_result():
    lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.ones(2, 4, 2))
    of_P, of_K = kpops.effective_rank(lin.P), kpops.effective_rank(lin.K, "variance")
    assert (of_P.kind, of_P.method, of_P.gram) == ("participation", "exact", "A A*")
    assert "dense" in of_P.chosen
    assert "units" in kpops.effective_rank(lin.K).chosen
    assert json.loads(of_K.configuration)["threshold"] == 0.95
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
        ({"kind": "nuclear"}, "kind='nuclear': choose from 'participation', 'variance'"),
        ({"reduction": "sum"}, "reduction='sum': choose"),
        ({"tol": 1.0}, "tol=1.0: choose"),
        ({"rtol": 0.0}, "rtol=0.0: choose"),
        ({"method": "lanczos"}, "method='lanczos' does not give kind='participation'"),
        ({"kind": "entropy", "method": "hutchinson"}, "kind='entropy': choose 'lanczos'"),
        ({"keep": "time"}, "choose one or more of the dims"),
        ({"threshold": 1.0}, "threshold=1.0: choose a fraction"),
        ({"top": 2}, "top=2 with kind='participation'.*only the 'variance' rank"),
        ({"kind": "variance", "top": 2, "method": "lanczos"}, "by 'exact' or 'hutchinson'"),
        ({"kind": "variance", "top": 0}, "top=0"),
        ({"method": "guess"}, "method='guess'"),
        ({"num_matvecs": 1}, "num_matvecs=1"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        kpops.effective_rank(np.eye(3), **options)


@pytest.mark.parametrize(("kind", "method"), [*((k, "exact") for k in KINDS), *ESTIMATED])
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


@pytest.mark.parametrize("operator", ["flow", "K"])
def test_a_probed_numerical_rank_is_a_count_of_at_most_the_size(operator):
    torch.manual_seed(0)
    model = torch.nn.GRU(2, 4, batch_first=True).double()
    lin = kpops.linearize(model, torch.randn(4, 7, 2).double())
    op = lin.P @ lin.K @ lin.P.H if operator == "flow" else 2 * lin.K
    reduced = op.partial_trace("time", num_probes=24, rng=0)
    for kind in KINDS:
        result = kpops.effective_rank(reduced, kind)
        assert 0 <= float(result.estimate) <= 7
    result = kpops.effective_rank(reduced, "numerical", tol=1e-3)
    assert float(result.estimate) == rank(reduced.to_dense(), "numerical", tol=1e-3)
    assert float(result.stderr) == 0 or float(result.stderr) >= 1


def test_a_tolerance_doubles_the_probes_of_a_reduction(large):
    options = {"keep": "time", "reduction": "partial_trace", "method": "hutchinson", "rng": 0}
    loose = kpops.effective_rank(large.flow, num_matvecs=8, **options)
    goal = 0.4 * float(loose.stderr / loose.estimate)
    tight = kpops.effective_rank(large.flow, num_matvecs=8, rtol=goal, **options)
    assert float(tight.stderr) <= goal * float(tight.estimate)
    assert tight.num_matvecs >= 4 * loose.num_matvecs


def test_a_tolerance_that_probes_cannot_meet_is_said(large, monkeypatch):
    monkeypatch.setattr("kpops.spectral.rank._MOST_MATVECS", 20)
    options = {"keep": "time", "reduction": "partial_trace", "method": "hutchinson", "rng": 0}
    with pytest.warns(kpops.ConvergenceWarning, match="does not meet rtol"):
        kpops.effective_rank(large.flow, num_matvecs=8, rtol=1e-4, **options)
    drawn = large.flow.partial_trace("time", num_probes=4, rng=0)  # not to be drawn anew
    with pytest.warns(kpops.ConvergenceWarning, match="does not meet rtol"):
        kpops.effective_rank(drawn, rtol=1e-4)
    with pytest.raises(ValueError, match="one random vector"):
        kpops.effective_rank(large.flow.partial_trace("time", num_probes=1, rng=0))
