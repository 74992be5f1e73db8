"""Residuals and pseudospectra: spurious eigenpairs of chaotic series, closed forms."""

import koopman_systems as systems
import numpy as np
import pytest

from kpops.koopman import dmd, pseudospectrum

pytest.importorskip("pydmd", exc_type=ImportError)


def rng():
    return np.random.default_rng(0)


def test_the_residual_is_that_of_the_gram_matrices():
    x = systems.lorenz(200, rng())
    modes = dmd(x)
    now, then = x[:-1], x[1:]
    G, A, L = (a.T @ b / len(now) for a, b in ((now, now), (now, then), (then, then)))
    values, vectors = np.linalg.eig(np.linalg.solve(G, A))  # extended DMD, written anew
    squares = [
        np.real(v.conj() @ (L - z * A.T - np.conj(z) * A + abs(z) ** 2 * G) @ v)
        / np.real(v.conj() @ G @ v)
        for z, v in zip(values, vectors.T, strict=True)
    ]
    order = np.argsort(values.real)
    ours = modes.residual.values[np.argsort(modes.eigenvalue.values.real)]
    np.testing.assert_allclose(ours, np.sqrt(squares)[order], rtol=1e-8)


def test_no_eigenpair_of_the_cat_map_is_small():
    # Its Koopman operator permutes the waves, in orbits that never close: all of the circle is
    # spectrum and none is an eigenvalue. On these waves it is nilpotent and keeps the norm, so the
    # residual of every eigenpair is one.
    pairs, _ = systems.cat_map(37, 4)
    modes = dmd(pairs)
    assert modes.sizes["mode"] == 80
    np.testing.assert_allclose(modes.residual, 1, rtol=0, atol=1e-6)
    assert modes.spurious.all()


def test_the_pseudospectrum_of_the_cat_map_is_that_of_shifts():
    # On an orbit with n waves in the dictionary, K - z is bidiagonal with n + 1 rows, and its
    # Gram matrix is tridiagonal and Toeplitz.
    pairs, waves = systems.cat_map(37, 4)
    inside = {tuple(k) for k in np.concatenate([waves, -waves])}
    M = np.array([[2, 1], [1, 1]])

    def after(k):
        return tuple(M @ k)

    ends = {after(k) for k in inside}
    longest = 0
    for k in inside - ends:
        n = 0
        while k in inside:
            k, n = after(k), n + 1
        longest = max(longest, n)
    real = np.array([1.0, 0.5, 0.0])
    found = pseudospectrum(pairs, real, [0.0]).residual.values[0]
    expected = np.sqrt(1 + real**2 - 2 * real * np.cos(np.pi / (longest + 1)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert longest == 4


def test_the_pseudospectrum_vanishes_at_eigenvalues_and_bounds_residuals():
    x = systems.lorenz(200, rng())
    modes = dmd(x, delays=3)
    for value, residual in zip(modes.eigenvalue.values, modes.residual.values, strict=True):
        at = pseudospectrum(x, [value.real], [value.imag], delays=3).residual.item()
        assert at <= residual * (1 + 1e-10)
    A = systems.planted([0.9, 0.3 + 0.4j], rng())
    linear = systems.linear(A, 6, 10, rng())
    on = pseudospectrum(linear, [0.3, 0.9], [0.4, 0.0]).residual.values
    assert on[0, 0] < 1e-10 and on[1, 1] < 1e-10 and on[0, 1] > 1e-3


@pytest.mark.parametrize("delays", [1, 5])
def test_spurious_pairs_of_chaotic_series_are_flagged(delays):
    flow = systems.lorenz(500, rng(), every=20)
    logistic = systems.logistic(1000)
    for x in (flow, logistic):
        modes = dmd(x - x.mean(0), delays=delays)
        assert modes.spurious.all(), modes.residual.values


def test_true_pairs_are_kept_beside_spurious_ones():
    # A rotation, whose eigenvalues are on the circle, beside a chaotic map.
    t = np.arange(1000)
    x = systems.logistic(1000) - 0.5
    series = np.concatenate([np.stack([np.cos(0.7 * t), np.sin(0.7 * t)], 1), x], 1)
    modes = dmd(series, delays=3)
    kept = modes.eigenvalue.values[~modes.spurious.values]
    np.testing.assert_allclose(np.sort_complex(kept), np.exp([-0.7j, 0.7j]), rtol=0, atol=1e-3)


def test_residuals_on_other_trials_reveal_a_fit_of_noise():
    noise = rng().standard_normal((2, 60, 40))
    own, other = dmd(noise[0], rank=40), dmd(noise[0], rank=40, test=noise[1])
    assert own.residual.median() < 0.75 * other.residual.median()
    assert other.spurious.all() and other.attrs["held_out"] == 1


def test_white_noise_has_no_pair():
    steps = rng().standard_normal((3, 400, 3))
    modes = dmd(steps, delays=2)
    assert modes.spurious.all()


def test_bad_grids_are_refused():
    x = systems.lorenz(60, rng())
    with pytest.raises(ValueError, match=r"real has shape \(2, 2\)"):
        pseudospectrum(x, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="imag has shape"):
        pseudospectrum(x, [0.0], [np.inf])
    with pytest.raises(TypeError, match="real is complex"):
        pseudospectrum(x, np.array([1 + 1j]))
    with pytest.raises(ValueError, match="series is constant"):
        pseudospectrum(np.ones((5, 2)))
