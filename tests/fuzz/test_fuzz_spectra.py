"""Spectra that are hard for solvers: what is called converged is right, whatever was asked."""

import warnings

import numpy as np
from drawn import Symmetric, cases, symmetric
from hypothesis import assume, given
from hypothesis import strategies as st

import kpops

METHODS = ["auto", "block-krylov", "lobpcg", "arpack", "exact"]
PSD = ("flat", "geometric", "steep", "harmonic", "low rank", "one small")


def quietly(function, *arguments, **options):
    """Call, and let a solver say that it did not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        return function(*arguments, **options)


@cases(40)
@given(
    drawn=symmetric(),
    method=st.sampled_from(METHODS),
    tol=st.sampled_from([1e-2, 1e-3, 1e-6, 1e-9]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["float32", "float64"]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    data=st.data(),
)
def test_converged_modes_are_the_leading_ones(
    tally, drawn: Symmetric, method, tol, seed, dtype, scale, data
):
    n = len(drawn.values)
    k = data.draw(st.integers(1, min(n, 8)))
    assume(method != "arpack" or k < n)
    options = {}
    if method in ("auto", "block-krylov"):
        options["block_size"] = data.draw(st.none() | st.integers(1, n))
    if data.draw(st.booleans()):
        options["max_matvecs"] = data.draw(st.integers(n, 40 * n + 40))
    matrix = (scale * drawn.matrix).astype(dtype)
    truth = np.linalg.eigvalsh(matrix.astype(float))
    truth = truth[np.argsort(-np.abs(truth))][:k]
    found = quietly(kpops.eigsh, matrix, k, method=method, tol=tol, rng=seed, **options)
    largest = max(np.abs(truth[0]), 1e-300)
    sure = found.converged.values
    allowed = 4 * max(tol, 64 * np.finfo(dtype).eps) * largest
    values = found.eigenvalue.values.astype(float)
    assert found.eigenvalue.dtype == dtype
    assert (np.abs(np.abs(values) - np.abs(truth))[sure] <= allowed).all(), (found, truth)
    # A value is an eigenvalue, with its sign, to its own residual; and its mode is its mode.
    every = np.linalg.eigvalsh(matrix.astype(float))
    for value in values[sure]:
        assert np.abs(every - value).min() <= allowed
    modes = found.eigenfunction.values.astype(float)[sure]
    gaps = np.linalg.norm(modes @ matrix.astype(float) - values[sure, None] * modes, axis=1)
    assert (gaps <= allowed).all()
    tally(cases=1, modes_called_converged=int(sure.sum()), comparisons=3 * int(sure.sum()))


@cases(10)
@given(
    seed=st.integers(0, 2**31),
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    rank=st.integers(0, 30),
    decay=st.sampled_from([1.0, 0.7, 0.1]),
    data=st.data(),
)
def test_converged_singular_values_are_the_leading_ones(tally, seed, m, n, rank, decay, data):
    rng = np.random.default_rng(seed)
    least = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((s, least)))[0] for s in (m, n))
    matrix = left * (decay ** np.arange(least) * (np.arange(least) < rank)) @ right.T
    k = data.draw(st.integers(1, min(least, 6)))
    found = quietly(kpops.svds, matrix, k, rng=seed)
    truth = np.linalg.svd(matrix, compute_uv=False)[:k]
    sure = found.converged.values
    allowed = 4e-6 * max(truth[0], 1e-300)
    assert (np.abs(found.singular_value.values - truth)[sure] <= allowed).all(), (found, truth)
    tally(cases=1, modes_called_converged=int(sure.sum()), comparisons=int(sure.sum()))


def participation(values):
    return values.sum() ** 2 / (values**2).sum()


def stable(values):
    return (values**2).sum() / (values**2).max()


@cases(10)
@given(
    drawn=symmetric(kinds=PSD),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_ranks_and_norms_are_within_their_error_bars(tally, drawn: Symmetric, seed, scale):
    matrix, values = scale * drawn.matrix, scale * drawn.values
    checks = [
        (kpops.trace(matrix, rng=seed), values.sum()),
        (kpops.frobenius_norm(matrix, rng=seed), np.linalg.norm(values)),
        (kpops.spectral_norm(matrix, rng=seed), values.max()),
        (kpops.effective_rank(matrix, kind="participation", rng=seed), participation(values)),
        (kpops.effective_rank(matrix, kind="stable", rng=seed), stable(values)),
    ]
    for result, truth in checks:
        # Ten standard errors: what is beyond them is no bad luck.
        allowed = 10 * float(result.stderr) + 1e-5 * truth
        assert abs(float(result.estimate) - truth) <= allowed, (result, truth)
    tally(cases=1, comparisons=len(checks))
