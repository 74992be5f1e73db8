"""Start vectors, and the ends of a spectrum."""

import numpy as np
import pytest
import torch

import kpops

ITERATIVE = ["block-krylov", "lobpcg", "arpack"]


def symmetric(spectrum, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (Q * spectrum) @ Q.T


def perturbed(matrix, size, seed=1):
    noise = np.random.default_rng(seed).standard_normal(matrix.shape)
    return matrix + size * (noise + noise.T) / np.sqrt(8 * len(matrix))


def gru(seed, near=None):
    torch.manual_seed(seed)
    module = torch.nn.GRU(2, 12, batch_first=True).double()
    if near is not None:
        with torch.no_grad():
            for mine, other in zip(module.parameters(), near.parameters(), strict=True):
                mine.copy_(other + 1e-6 * mine)
    return module


@pytest.fixture(scope="module")
def before_and_after():
    inputs = torch.randn(4, 15, 2, generator=torch.Generator().manual_seed(0)).double()
    first = gru(0)
    return kpops.linearize(first, inputs), kpops.linearize(gru(1, near=first), inputs)


# Start vectors.


@pytest.mark.parametrize("spectrum", [0.98 ** np.arange(300), 1 / np.arange(1, 301) ** 0.25])
@pytest.mark.parametrize("size", [1e-6, 1e-9])
def test_modes_of_a_nearby_operator_save_matvecs(spectrum, size):
    options = {"k": 6, "method": "block-krylov", "rng": 0}
    first = kpops.eigsh(symmetric(spectrum), **options)
    matrix = perturbed(symmetric(spectrum), size)
    anew = kpops.eigsh(matrix, **options)
    again = kpops.eigsh(matrix, **options, v0=first.eigenfunction)
    assert again.num_matvecs < anew.num_matvecs
    assert again.converged.all()
    np.testing.assert_allclose(again.eigenvalue, np.linalg.eigvalsh(matrix)[:-7:-1], rtol=1e-10)


def test_modes_from_the_last_checkpoint_save_matvecs(before_and_after):
    before, after = before_and_after
    options = {"k": 4, "method": "lobpcg", "tol": 1e-4, "rng": 0}
    first = kpops.eigsh(before.flow, **options)
    anew = kpops.eigsh(after.flow, **options)
    again = kpops.eigsh(after.flow, **options, v0=first.eigenfunction)
    assert again.num_matvecs < anew.num_matvecs
    assert again.converged.all()
    np.testing.assert_allclose(
        again.eigenvalue, np.linalg.eigvalsh(after.flow.to_dense())[:-5:-1], rtol=1e-6
    )


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_start_vectors_without_the_leading_modes_hide_none(method, k):
    """Modes of an invariant subspace are a trap for whatever starts there."""
    spectrum = 1 / np.arange(1, 201)
    matrix = symmetric(spectrum)
    vectors = np.linalg.eigh(matrix)[1].T[::-1]
    result = kpops.eigsh(matrix, k, method=method, v0=vectors[k : 2 * k], rng=0, tol=1e-8)
    np.testing.assert_allclose(result.eigenvalue[result.converged], spectrum[:k], rtol=1e-10)
    assert result.converged.all()


@pytest.mark.parametrize(
    "get", [lambda lin: lin.flow, lambda lin: lin.P @ lin.P.H, lambda lin: lin.K]
)
def test_exact_modes_are_start_vectors_of_any_operator(before_and_after, get):
    op = get(before_and_after[0])
    exact = kpops.eigsh(op, 3, method="exact")
    again = kpops.eigsh(op, 3, method="block-krylov", v0=exact.eigenfunction, rng=0)
    np.testing.assert_allclose(again.eigenvalue, exact.eigenvalue, rtol=1e-10)
    assert again.converged.all()


@pytest.mark.parametrize("get", [lambda lin: lin.P, lambda lin: lin.J, lambda lin: lin.J.H])
def test_right_singular_functions_are_start_vectors(before_and_after, get):
    op = get(before_and_after[1])
    options = {"k": 4, "method": "lobpcg", "tol": 1e-3, "rng": 0}
    first = kpops.svds(get(before_and_after[0]), **options)
    again = kpops.svds(op, **options, v0=first.right)
    assert again.num_matvecs < kpops.svds(op, **options).num_matvecs
    assert again.converged.all()
    expected = np.linalg.svd(op.to_dense(), compute_uv=False)[:4]
    np.testing.assert_allclose(again.singular_value, expected, rtol=1e-5)


def test_start_vectors_may_be_arrays_tensors_and_single():
    matrix = symmetric(np.linspace(1, 2, 40))
    vector = np.linalg.eigh(matrix)[1][:, -1]
    given = [vector, vector[None], torch.from_numpy(vector), np.stack([vector, 0 * vector])]
    for v0 in given:
        result = kpops.eigsh(matrix, 1, method="block-krylov", v0=v0, rng=0)
        assert float(result.eigenvalue[0]) == pytest.approx(2, rel=1e-10)


def test_modes_that_were_not_found_are_no_start_vectors(before_and_after):
    flow = before_and_after[0].flow
    modes = kpops.eigsh(flow, 3, rng=0).eigenfunction
    for kept in (modes.where(modes["mode"] < 2), modes.where(modes["mode"] < 1)):
        result = kpops.eigsh(flow, 3, method="block-krylov", v0=kept, rng=0)
        assert result.converged.all()


def test_wrong_start_vectors_are_refused(before_and_after):
    flow = before_and_after[0].flow
    good = np.ones(flow.domain.shape)
    bad = good.copy()
    bad[0, 0, 0] = np.inf
    labelled = kpops.eigsh(flow, 2, rng=0).eigenfunction
    cases = [
        (good[:2], ValueError, r"v0 has shape \(2, 15, 12\), expected \(4, 15, 12\)"),
        (bad, ValueError, "v0 has entries that are not finite"),
        (0 * good, ValueError, "v0 is zero"),
        (good * 1j, TypeError, "real"),
        (torch.ones(flow.domain.shape, dtype=torch.cfloat), TypeError, "v0 is complex"),
        (labelled.assign_coords(trial=[7, 8, 9, 10]), ValueError, r"labels of \['trial'\]"),
        (labelled.rename(unit="x"), ValueError, "v0 has dims"),
    ]
    for v0, error, told in cases:
        with pytest.raises(error, match=told):
            kpops.eigsh(flow, 2, v0=v0)


# Ends of the spectrum.

SPECTRA = {
    "indefinite": np.r_[-3.0, -2.9, np.linspace(-1, 1, 190), 2.0, 2.5],
    "positive": 1.0 + np.linspace(0, 1, 150) ** 2,
    "negative": -1.0 - np.linspace(0, 1, 150) ** 2,
    "low rank": np.r_[np.arange(1.0, 6), np.zeros(120)],
    "zero": np.zeros(80),
}


@pytest.mark.parametrize("method", ["exact", "block-krylov", "lobpcg", "arpack"])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_a_spectrum(method, name):
    matrix, ordered = symmetric(SPECTRA[name]), np.sort(SPECTRA[name])
    for which, expected in (("LA", ordered[::-1][:3]), ("SA", ordered[:3])):
        result = kpops.eigsh(matrix, 3, which=which, method=method, tol=1e-6, rng=0)
        np.testing.assert_allclose(result.eigenvalue, expected, rtol=1e-9, atol=1e-9)
        assert result.converged.all()
        vectors = result.eigenfunction.values.reshape(3, -1)
        gaps = np.linalg.norm(matrix @ vectors.T - vectors.T * result.eigenvalue.values, axis=0)
        largest = np.abs(ordered).max() or 1.0
        assert (gaps <= 1.001 * largest * np.maximum(result.residual, 1e-13)).all()


def test_ends_of_operators_of_a_model(before_and_after):
    lin = before_and_after[0]
    mixed = lin.flow - 3 * lin.K
    for op in (mixed, lin.K, lin.P @ lin.P.H, lin.P + lin.P.H):
        values = np.linalg.eigvalsh(op.to_dense())
        for method in ("exact", "block-krylov"):
            low = kpops.eigsh(op, 3, which="SA", method=method, rng=0)
            high = kpops.eigsh(op, 3, which="LA", method=method, rng=0)
            scale = np.abs(values).max()
            for end, expected in ((low, values[:3]), (high, values[::-1][:3])):
                allowed = scale * np.maximum(end.residual.values, 1e-12)
                assert (np.abs(end.eigenvalue.values - expected) <= allowed).all()
            assert low.converged.all() and high.converged.all()


def test_values_near_zero_at_an_end_share_a_cluster():
    result = kpops.eigsh(np.diag(SPECTRA["low rank"]), 3, which="SA")
    assert result.cluster.values.tolist() == [1, 1, 1]


def test_an_end_that_the_budget_does_not_reach_is_not_certified():
    matrix = symmetric(np.linspace(-1, 1.001, 300))
    with pytest.warns(kpops.ConvergenceWarning):
        result = kpops.eigsh(matrix, 2, which="SA", method="block-krylov", max_matvecs=30, rng=0)
    assert not result.converged.any()


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ("BE", "which='BE': choose 'LA' and 'SA', one call for each end"),
        ("SM", "which='SM': choose 'SA' for a positive operator, or take 'LM' of the inverse"),
        ("LR", "which='LR': choose 'LM' .largest magnitude., 'LA' or 'SA' .*eigenvalues are real"),
        ("largest", "which='largest': choose 'LM' .largest magnitude."),
    ],
)
def test_other_ends_are_refused_with_the_remedy(which, told):
    with pytest.raises(ValueError, match=told):
        kpops.eigsh(np.eye(3), 1, which=which)
