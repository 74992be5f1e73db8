"""Every function of a spectrum on operators of size one, of no or little rank, and of all modes."""

import numpy as np
import pytest

import kpops

rng = np.random.default_rng(0)
FACTOR = rng.standard_normal((30, 3))
MATRICES = {
    "one": np.array([[2.0]]),
    "minus one": np.array([[-2.0]]),
    "zero of size one": np.zeros((1, 1)),
    "zero": np.zeros((30, 30)),
    "rank three": FACTOR @ FACTOR.T,
    "both signs": FACTOR @ np.diag([1.0, -1.0, 2.0]) @ FACTOR.T,
    "repeated": 3 * np.eye(30),
    "row": rng.standard_normal((1, 7)),
    "wide and zero": np.zeros((3, 20)),
}
SQUARE = [name for name, a in MATRICES.items() if a.shape[0] == a.shape[1]]
POSITIVE = [n for n in SQUARE if np.linalg.eigvalsh(MATRICES[n]).min() > -1e-9]


@pytest.fixture(params=["exact", "estimated"], autouse=True)
def size(request, monkeypatch):
    """Let operators be small enough for their matrix, or not."""
    if request.param == "estimated":
        monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)


def holds(result, exact):
    """Whether the truth is within the error bar, or rounding."""
    error = np.abs(result.estimate - exact)
    size = np.abs(exact).max()
    assert (error <= 4 * result.stderr + 1e-6 * size).all(), (result.estimate, exact)


@pytest.mark.parametrize("name", MATRICES)
def test_norms(name):
    matrix = MATRICES[name]
    values = np.linalg.svd(matrix, compute_uv=False)
    holds(kpops.frobenius_norm(matrix, rng=0), np.linalg.norm(values))
    holds(kpops.spectral_norm(matrix, rng=0), values[0])
    for p in (1, 3, 4):
        holds(kpops.schatten_norm(matrix, p, rng=0), np.linalg.norm(values, p))


@pytest.mark.parametrize("name", SQUARE)
def test_traces_and_diagonals(name):
    matrix = MATRICES[name]
    for method in ("auto", "hutchinson", "xtrace"):
        holds(kpops.trace(matrix, method=method, rng=0), np.trace(matrix))
    for method in ("auto", "hutchinson", "xdiag"):
        holds(kpops.diagonal(matrix, method=method, num_matvecs=400, rng=0), np.diag(matrix))
    if name in POSITIVE:
        holds(kpops.trace(matrix, method="xnystrace", rng=0), np.trace(matrix))


@pytest.mark.parametrize("kind", ["participation", "variance", "entropy", "stable", "numerical"])
@pytest.mark.parametrize("name", MATRICES)
def test_ranks(name, kind):
    matrix = MATRICES[name]
    if name in SQUARE and name not in POSITIVE:
        with pytest.raises(ValueError, match="is not positive semi-definite"):
            kpops.effective_rank(matrix, kind, rng=0)
        return
    a = np.linalg.svd(matrix, compute_uv=False)
    squares, total = a**2, (a**2).sum()
    g = a if name in SQUARE else squares
    if total == 0:
        exact = 0.0
    else:
        p = (a / a.sum())[a > 1e-12 * a[0]]
        held = np.r_[0, np.cumsum(squares)] / total
        exact = {
            "participation": g.sum() ** 2 / (g**2).sum(),
            "variance": np.interp(0.95, held, np.arange(len(held))),
            "entropy": np.exp(-(p @ np.log(p))),
            "stable": total / squares[0],
            "numerical": (a > 1e-6 * a[0]).sum(),
        }[kind]
    holds(kpops.effective_rank(matrix, kind, rng=0), exact)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("method", ["auto", "exact", "block-krylov", "lobpcg"])
def test_all_eigenpairs(name, method):
    matrix = MATRICES[name]
    n = len(matrix)
    result = kpops.eigsh(matrix, n, method=method, rng=0)
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.sort(result.eigenvalue), values, atol=1e-9 * abs(values).max())
    assert result.converged.all()
    functions = result.eigenfunction.values
    np.testing.assert_allclose(functions @ functions.T, np.eye(n), atol=1e-9)
    np.testing.assert_allclose(
        np.sort(kpops.eigvalsh(matrix).eigenvalue), values, atol=1e-9 * abs(values).max()
    )


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", ["auto", "exact", "block-krylov"])
def test_all_singular_triplets(name, method):
    matrix = MATRICES[name]
    k = min(matrix.shape)
    result = kpops.svds(matrix, k, method=method, rng=0)
    values = np.linalg.svd(matrix, compute_uv=False)
    found = result.converged.values  # those that the Gram operator lost are said to be
    np.testing.assert_allclose(
        result.singular_value[found], values[found], atol=1e-6 * values.max()
    )
    assert found[values > 1e-6 * values.max()].all()


@pytest.mark.parametrize("name", MATRICES)
def test_densities_count_all_values(name):
    matrix = MATRICES[name]
    options = {"scale": "linear", "num_probes": 4, "rng": 0}
    density = kpops.spectral_density(matrix, **options)
    assert density.n_bulk == pytest.approx(min(matrix.shape), rel=1e-9)
    # Gaussians end four widths from the last value: 6e-5 of one lies beyond.
    integral = float(density.density.integrate("value"))
    assert integral == pytest.approx(min(matrix.shape), rel=1e-3)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", ["auto", "hutchinson"])
def test_alignment_with_itself(name, method):
    matrix = MATRICES[name]
    result = kpops.alignment(matrix, -2 * matrix, method=method, rng=0)
    if matrix.any():
        assert float(result.estimate) == pytest.approx(-1, abs=1e-12)
        assert float(result.stderr) < 1e-7
    else:
        assert np.isnan(float(result.estimate))
        assert result.chosen == "undefined: an operator is zero"


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", ["exact", "probes"])
def test_maps(name, method):
    op = kpops.operators.foreign.as_operator(MATRICES[name])
    result = kpops.frobenius_map(op, "index", method=method, num_probes=200, rng=0)
    exact = MATRICES[name] ** 2
    # Signs at single positions see the squares of their entries exactly.
    np.testing.assert_allclose(result.energy, exact, rtol=1e-9, atol=1e-12)
    assert float(result.total) == pytest.approx(exact.sum(), rel=1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_truncations_of_all_modes_are_the_operator(name):
    matrix = MATRICES[name]
    whole = kpops.truncate(matrix, min(matrix.shape), method="exact", rng=0)
    np.testing.assert_allclose(whole.to_dense(), matrix, atol=1e-9)
