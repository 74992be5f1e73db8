"""The fast estimators equal their textbook versions, and their error bars are unbiased."""

import math

import numpy as np
import pytest
import torch

from kpops.engines.random_vectors import RandomVectors
from kpops.linalg import leave_one_out
from kpops.linalg import probes as pr
from kpops.linalg.sketch import Sketch
from kpops.linalg.vectors import VectorSpace

N, K = 40, 12
FLOAT64 = torch.zeros((), dtype=torch.float64)


def matrix(spectrum, seed=0, dtype=torch.float64):
    values = torch.from_numpy(np.asarray(spectrum, dtype=float))
    generator = np.random.default_rng(seed)
    q = torch.from_numpy(np.linalg.qr(generator.standard_normal((len(values), len(values))))[0])
    return ((q * values) @ q.T).to(dtype)


def general(seed=0):
    """Not symmetric, with a decaying spectrum."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((N, N)))[0] for _ in range(2))
    return torch.from_numpy((left * 0.8 ** np.arange(N)) @ right)


def probes(k=K, n=N, seed=0, like=FLOAT64):
    return space(n, like.dtype).sphere(RandomVectors(seed), k)


def space(n, dtype=torch.float64):
    return VectorSpace(1, n, dtype, torch.device("cpu"))


def sketched(w, images):
    return Sketch(w, images, space(w.shape[1], w.dtype), space(images.shape[1], w.dtype))


def sketch_of(a, w):
    """Sketch of a matrix, with its products with the basis."""
    sketch = sketched(w, w @ a.T)
    sketch.complete(lambda rows: rows @ a.T, len(w))
    return sketch


def xtrace(sketch):
    core = pr.inner(sketch.basis, sketch.products)
    return leave_one_out.xtrace(sketch, core, pr.inner(sketch.probes, sketch.products))


def xnystrace(r, w):
    sketch = sketched(w, w @ r.T)
    sketch.complete(lambda rows: rows @ r, len(w))
    return leave_one_out.xnystrace(sketch, pr.inner(sketch.products, sketch.products))


def without(w, *left_out):
    return w[[i for i in range(len(w)) if i not in left_out]]


def naive_xtrace(a, w, i, *others):
    q = torch.linalg.qr(a @ without(w, i, *others).T)[0]
    rest = w[i] - q @ (q.T @ w[i])
    rest = rest * math.sqrt(len(a) - q.shape[1]) / rest.norm()
    return float((q.T @ a @ q).trace() + rest @ a @ rest)


def naive_xnystrace(a, w, i, *others):
    kept = without(w, i, *others).T
    y = a @ kept
    low = y @ torch.linalg.pinv(kept.T @ y, rtol=1e-13, hermitian=True) @ y.T
    q = torch.linalg.qr(kept)[0]
    rest = w[i] - q @ (q.T @ w[i])
    rest = rest * math.sqrt(len(a) - q.shape[1]) / rest.norm()
    return float(low.trace() + rest @ (a - low) @ rest)


def naive_table(estimate, a, w):
    """On the diagonal one vector is left out, beside it two."""
    k = len(w)
    return torch.tensor(
        [[estimate(a, w, i, *([j] if j != i else [])) for j in range(k)] for i in range(k)],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("seed", range(3))
def test_xtrace_equals_its_textbook_version_for_every_vector_left_out(seed):
    a, w = general(seed), probes(seed=seed)
    torch.testing.assert_close(
        xtrace(sketch_of(a, w)).values, naive_table(naive_xtrace, a, w), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_xnystrace_equals_its_textbook_version_for_every_vector_left_out(seed):
    root, w = general(seed), probes(seed=seed)
    expected = naive_table(naive_xnystrace, root.T @ root, w)
    torch.testing.assert_close(xnystrace(root, w).values, expected, rtol=1e-9, atol=0)
    shifted = leave_one_out.shifted_xnystrace(space(w.shape[1], w.dtype), w, w @ (root.T @ root))
    torch.testing.assert_close(shifted.values, expected, rtol=1e-8, atol=0)


def test_xdiag_equals_its_textbook_version():
    a = general()
    w = RandomVectors(0).signs(K, range(N), FLOAT64)
    sketch = sketched(w, w @ a.T)
    sketch.complete(lambda rows: rows @ a, K)
    estimates = []
    for i in range(K):
        q = torch.linalg.qr(a @ without(w, i).T)[0]
        rest = a @ w[i] - q @ (q.T @ a @ w[i])
        estimates.append((q @ (q.T @ a)).diagonal() + w[i] * rest / w[i] ** 2)
    found = leave_one_out.xdiag(sketch)
    torch.testing.assert_close(found.mean, torch.stack(estimates).mean(0), rtol=1e-9, atol=1e-12)


def test_hutchpp_equals_its_textbook_version():
    a, w, other = general(), probes(seed=1), probes(seed=2)
    sketch = sketch_of(a, w)
    images = other @ a.T
    found = leave_one_out.hutchpp(
        sketch,
        pr.inner(sketch.basis, sketch.products),
        other,
        pr.dots(other, images),
        pr.inner(other, sketch.products),
        pr.inner(images, sketch.basis),
    )
    q = torch.linalg.qr(a @ w.T)[0]
    for estimate, vector in zip(found, other, strict=True):
        rest = vector - q @ (q.T @ vector)
        rest = rest * math.sqrt(N - K) / rest.norm()
        expected = (q.T @ a @ q).trace() + rest @ a @ rest
        assert float(estimate) == pytest.approx(float(expected), rel=1e-9)


def test_a_sketch_that_grows_says_what_one_of_all_vectors_says():
    a, w = general(), probes()
    grown = sketched(w[:5], w[:5] @ a.T)
    grown.complete(lambda rows: rows @ a.T, 5)
    grown.grow(w[5:], w[5:] @ a.T)
    assert grown.missing == K - 5
    grown.complete(lambda rows: rows @ a.T, K)
    torch.testing.assert_close(xtrace(grown).values, xtrace(sketch_of(a, w)).values)
    torch.testing.assert_close(grown.coords @ grown.basis, w @ a.T, rtol=0, atol=1e-12)
    first = grown.first(5)
    torch.testing.assert_close(xtrace(first).values, xtrace(sketch_of(a, w[:5])).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rank", [0, 1, 5, K - 1])
def test_a_rank_below_the_number_of_vectors_is_exact_to_rounding(rank, scale, dtype):
    a = matrix(np.r_[np.linspace(1, 2, rank), np.zeros(N - rank)]).to(dtype) * scale
    root = matrix(np.sqrt(np.r_[np.linspace(1, 2, rank), np.zeros(N - rank)])).to(dtype)
    root = root * math.sqrt(scale)
    exact = scale * np.linspace(1, 2, rank).sum()
    # Any 11 of these are well conditioned on a range of 11 dims: the shift costs its square.
    w = probes(seed=36, like=torch.zeros((), dtype=dtype))
    eps = torch.finfo(dtype).eps
    for pairs in (xtrace(sketch_of(a, w)), xnystrace(root, w)):
        assert abs(pairs.mean - exact) <= 300 * eps * exact
        assert pairs.stderr <= 300 * eps * exact
    # The shift leaves a trace of every vector, by which a rank of k - 1 looks like a cliff there.
    shifted = leave_one_out.shifted_xnystrace(space(w.shape[1], w.dtype), w, w @ a)
    assert abs(shifted.mean - exact) <= 2000 * eps * exact
    assert shifted.stderr <= (300 * eps if rank < K - 1 else 20 * eps**0.5) * exact


def test_as_many_vectors_as_dims_are_exact():
    a, w = general(), probes(k=N)
    assert xtrace(sketch_of(a, w)).mean == pytest.approx(float(a.trace()), rel=1e-10)
    assert xnystrace(a, w).mean == pytest.approx(float(a.square().sum()), rel=1e-10)


def test_xdiag_of_low_rank_is_exact_though_signs_repeat_each_other():
    a = torch.zeros(N, N, dtype=torch.float64)
    a[0, 0], a[1, 1] = 3.0, 2.0  # images of signs take four values only, two up to the sign
    n_checked = 0
    for seed in range(30):
        w = RandomVectors(seed).signs(5, range(N), FLOAT64)
        counts = torch.unique(w[:, 0] * w[:, 1], return_counts=True)[1]
        if len(counts) < 2 or counts.min() < 2:
            continue  # an image that the others do not span
        sketch = sketched(w, w @ a)
        sketch.complete(lambda rows: rows @ a, 5)
        torch.testing.assert_close(
            leave_one_out.xdiag(sketch).mean, a.diagonal(), atol=1e-12, rtol=0
        )
        n_checked += 1
    assert n_checked > 10


def test_an_indefinite_operator_is_not_for_xnystrace():
    a, w = matrix(np.r_[-1.0, np.linspace(0.1, 1, N - 1)]), probes(k=30)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        leave_one_out.shifted_xnystrace(space(w.shape[1], w.dtype), w, w @ a)


def test_forms_of_the_sphere_have_the_stated_variance():
    spectrum = torch.linspace(1, 5, 30, dtype=torch.float64)
    w = probes(k=40000, n=30)
    samples = (w.square() * spectrum).sum(1)
    tr, squares = spectrum.sum(), spectrum.square().sum()
    expected = 2 * (squares - tr**2 / 30) * 30 / 32
    assert abs(float(samples.mean() - tr)) < 4 * float((expected / 40000).sqrt())
    assert float(samples.var() / expected) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("spectrum", "paper_is_too_small_by"),
    [(0.9 ** np.arange(200), 1.5), (1 / np.arange(1.0, 201) ** 2, 1.25), (np.ones(200), None)],
)
def test_error_bars_of_xnystrace_are_unbiased_where_those_of_the_paper_are_too_small(
    spectrum, paper_is_too_small_by
):
    if paper_is_too_small_by is None:
        spectrum = np.linspace(1, 3, 200)  # nearly flat: nothing in common
    root = torch.from_numpy(np.sqrt(spectrum))
    results = []
    for seed in range(300):
        pairs = xnystrace(torch.diag(root), probes(k=30, n=200, seed=seed))
        alone = float(pairs.values.diagonal().var()) / 30
        results.append((pairs.mean - spectrum.sum(), pairs.stderr / pr.widened(30), alone))
    error, stderr, alone = np.array(results).T
    rms = np.sqrt(np.mean(error**2))
    assert abs(error.mean()) < 4 * rms / np.sqrt(300)
    assert np.sqrt(np.mean(stderr**2)) == pytest.approx(rms, rel=0.15)
    if paper_is_too_small_by is not None:
        assert rms > paper_is_too_small_by * np.sqrt(alone.mean())


def test_error_bars_of_xtrace_and_xdiag_are_unbiased():
    a = matrix(1 / np.arange(1.0, 101))
    traces, diagonals = [], []
    for seed in range(200):
        pairs = xtrace(sketch_of(a, probes(k=20, n=100, seed=seed)))
        traces.append((pairs.mean - float(a.trace()), pairs.stderr / pr.widened(20)))
        w = RandomVectors(seed).signs(20, range(100), FLOAT64)
        found = leave_one_out.xdiag(sketch_of(a, w))
        gap = (found.mean - a.diagonal()).norm()
        diagonals.append((float(gap), float(found.stderr.norm()) / pr.widened(20)))
    for results in (traces, diagonals):
        error, stderr = np.sqrt(np.mean(np.square(results), axis=0))
        assert stderr == pytest.approx(error, rel=0.15)


def test_scatter_is_mean_and_standard_error():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 5))) + 1e3
    scatter = pr.RunningMoments()
    scatter.add(values[0])
    assert scatter.stderr.isnan().all()
    for row in values[1:]:
        scatter.add(row)
    torch.testing.assert_close(scatter.mean, values.mean(0))
    torch.testing.assert_close(scatter.stderr, pr.widened(7) * values.std(0) / math.sqrt(7))
