"""No mode is called converged while a larger one is missing, whatever the spectrum."""

import warnings

import numpy as np
import pytest

import kpops
from kpops.linalg import lanczos

METHODS = ["block-krylov", "lobpcg", "arpack"]


def matrix(values, rng):
    """Symmetric matrix of these eigenvalues in a random basis."""
    basis = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return (basis * values) @ basis.T


def nearly_flat(n, rng):
    return rng.choice([-1, 1], n) * (1 + 0.01 * rng.standard_normal(n))


def n_missing(found, exact, converged, tol):
    """Converged modes that the true one of the same number exceeds by more than the tolerance."""
    gaps = np.abs(exact) - np.abs(found)
    return int((converged & (gaps > tol * np.abs(exact).max())).sum())


@pytest.mark.parametrize(("n", "k", "block"), [(50, 2, 30), (50, 2, 45), (60, 7, 31), (20, 19, 19)])
def test_blocks_of_more_than_half_the_space_miss_no_mode(n, k, block):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        values = nearly_flat(n, rng)
        exact = np.sort(np.abs(values))[::-1][:k]
        result = kpops.eigsh(
            matrix(values, rng), k, method="block-krylov", block_size=block, tol=1e-3, rng=seed
        )
        # The basis becomes the whole space, at no more products than a matrix.
        assert result.converged.all()
        np.testing.assert_allclose(np.abs(result.eigenvalue), exact, rtol=1e-12)
        assert result.num_matvecs <= n + k + 1


@pytest.mark.parametrize(("n", "k", "block"), [(60, 2, 10), (60, 2, 2), (80, 4, 4), (50, 1, 5)])
def test_restarts_of_the_smallest_basis_miss_no_mode(n, k, block, monkeypatch):
    monkeypatch.setattr(lanczos, "_room", lambda k, block, families: k + 3 * block)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = nearly_flat(n, rng)
        exact = np.sort(np.abs(values))[::-1][:k]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kpops.ConvergenceWarning)
            result = kpops.eigsh(
                matrix(values, rng), k, method="block-krylov", block_size=block, tol=1e-3, rng=seed
            )
        assert n_missing(result.eigenvalue, exact, result.converged.values, 1e-3) == 0


SPECTRA = {
    "clusters": lambda n, rng: rng.choice([1, 0.5, 0], n) * (1 + 1e-4 * rng.standard_normal(n)),
    "repeated": lambda n, rng: np.resize(np.repeat(rng.random(n), 3), n),
    "both signs": nearly_flat,
    "low rank": lambda n, rng: np.where(np.arange(n) < 3, rng.standard_normal(n), 0),
    "falling": lambda n, rng: rng.choice([-1, 1], n) * 0.7 ** np.arange(n),
    "zero": lambda n, rng: np.zeros(n),
    "one outlier": lambda n, rng: np.where(np.arange(n) == 0, -1.001, 1.0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("n", [1, 4, 24])
def test_no_method_certifies_a_spectrum_that_lacks_a_mode(n, spectrum, method):
    for seed, (k, block) in enumerate([(1, None), (min(3, n), 2), (min(3, n), n), (n, None)]):
        rng = np.random.default_rng(seed)
        values = spectrum(n, rng)
        symmetric = matrix(values, rng)
        arguments = {"method": method, "block_size": block, "tol": 1e-6, "rng": seed}
        exact = np.sort(np.abs(values))[::-1][:k]
        for solve, name, of in (
            (kpops.eigsh, "eigenvalue", symmetric),
            (kpops.svds, "singular_value", symmetric @ matrix(np.sign(values) + 0.0, rng)),
        ):
            if method == "arpack" and k >= n:
                with pytest.raises(ValueError, match="use method='exact'"):
                    solve(of, k, **arguments)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", kpops.ConvergenceWarning)
                result = solve(of, k, max_matvecs=400, **arguments)
            true = exact if name == "eigenvalue" else np.linalg.svd(of, compute_uv=False)[:k]
            assert n_missing(result[name], true, result.converged.values, 1e-6) == 0
