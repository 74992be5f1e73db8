"""Alignment against dense matrices, exactly and within its error bars."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import slow_but

import kpops
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.probes import widened
from kpops.linalg.vectors import VectorSpace
from kpops.spectral.align import alignment


def linearize(seed=0, model=torch.nn.GRU, inputs=None, **options):
    torch.manual_seed(seed)
    model = model(2, 5, batch_first=True).double()
    if inputs is None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(3, 6, 2, dtype=torch.float64, generator=generator)
    return kpops.linearize(model, inputs, **options)


@pytest.fixture(scope="module")
def pair():
    return linearize(0), linearize(1)


def cosine(a, b):
    a, b = (x if isinstance(x, np.ndarray) else x.to_dense() for x in (a, b))
    return (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))


def operators(early, late):
    """Pairs that alignment is made for."""
    return {
        "K over training": (early.K, late.K),
        "flow over training": (early.flow, late.flow),
        "misdirection": (late.flow, late.P @ late.P.H),
        "P over training": (early.P, late.P),
        "P and flow": (late.P, late.flow),
        "wide": (early.J, late.J),
        "long": (early.J.H, late.J.H),
    }


NAMES = list(operators(linearize(0), linearize(1)))


@pytest.mark.parametrize("name", NAMES)
def test_exact_alignment_is_the_dense_cosine(pair, name):
    a, b = operators(*pair)[name]
    result = alignment(a, b)
    assert float(result.estimate) == pytest.approx(cosine(a, b), rel=1e-12)
    assert (float(result.stderr), result.method) == (0, "exact")
    swapped = alignment(b, a)
    assert float(swapped.estimate) == pytest.approx(float(result.estimate), rel=1e-12)


@pytest.mark.parametrize("name", slow_but([NAMES[0], NAMES[-1]], NAMES))
def test_error_bars_cover(pair, name):
    a, b = operators(*pair)[name]
    exact = cosine(a, b)
    results = [alignment(a, b, method="hutchinson", num_matvecs=40, rng=s) for s in range(200)]
    estimates = np.array([float(r.estimate) for r in results])
    errors = np.array([float(r.stderr) for r in results])
    covered = np.mean(np.abs(estimates - exact) <= 2 * errors)
    assert 0.9 <= covered <= 0.99
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.25)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(200)


def test_the_estimate_equals_a_jackknife_written_out(pair):
    a, b = pair[0].flow, pair[1].flow
    m, n = 7, a.shape[0]
    z = VectorSpace(1, n, torch.float64, torch.device("cpu")).sphere(RandomVectors(3), m).numpy()
    y, w = z @ a.to_dense().T, z @ b.to_dense().T

    def ratio(chosen):
        return (y[chosen] * w[chosen]).sum() / (
            np.linalg.norm(y[chosen]) * np.linalg.norm(w[chosen])
        )

    without = np.array([ratio([i for i in range(m) if i != left]) for left in range(m)])
    result = alignment(a, b, method="hutchinson", num_matvecs=m, rng=3)
    expected = m * ratio(range(m)) - (m - 1) * without.mean()
    assert float(result.estimate) == pytest.approx(expected, rel=1e-9)
    stderr = widened(m) * np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
    assert float(result.stderr) == pytest.approx(stderr, rel=1e-9)


def test_K_is_aligned_unit_by_unit_without_a_product(pair):
    a, b = pair[0].K, pair[1].K
    before = a.num_matvecs + b.num_matvecs
    result = alignment(a, b)
    assert a.num_matvecs + b.num_matvecs == before
    assert result.num_matvecs == 0
    assert "units" in result.chosen
    lstm = [linearize(seed, torch.nn.LSTM).K for seed in (0, 1)]
    assert float(alignment(*lstm).estimate) == pytest.approx(cosine(*lstm), rel=1e-12)


def test_parts_of_K_that_learn_different_things_are_aligned_too(pair):
    parts = pair[0].K_by_parameter
    a, b = parts["weight_ih_l0"], parts["weight_hh_l0"]
    assert float(alignment(a, b).estimate) == pytest.approx(cosine(a, b), rel=1e-12)


def test_trials_that_are_not_coupled_share_a_basis(pair):
    result = alignment(pair[0].P, pair[1].P)
    assert result.num_matvecs == 2 * 30  # of 90


def test_output_tangent_kernels_align():
    def with_readout(seed):
        torch.manual_seed(seed)
        return linearize(seed, readout=torch.nn.Linear(5, 3).double())

    a, b = (with_readout(seed).output_ntk for seed in (0, 1))
    assert float(alignment(a, b).estimate) == pytest.approx(cosine(a, b), rel=1e-10)


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_alignment_is_a_cosine(pair, method):
    for op in (pair[0].P, pair[0].flow, pair[0].K):
        same = alignment(op, op, method=method, rng=0)
        opposite = alignment(op, -3 * op, method=method, rng=0)
        assert float(same.estimate) == pytest.approx(1, abs=1e-12)
        assert float(opposite.estimate) == pytest.approx(-1, abs=1e-12)
        assert max(float(same.stderr), float(opposite.stderr)) < 1e-12
    upper, lower = np.triu(np.ones((4, 4)), 1), np.tril(np.ones((4, 4)))
    assert float(alignment(upper, lower, method="exact").estimate) == 0


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_estimates_stay_between_minus_one_and_one(method):
    rng = np.random.default_rng(0)
    for seed in range(50):
        a = np.outer(*rng.standard_normal((2, 6)))
        b = a + 1e-3 * rng.standard_normal((6, 6))
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        for sign in (-1, 1):
            estimate = float(
                alignment(a, sign * b, method=method, num_matvecs=2, rng=seed).estimate
            )
            assert abs(estimate) <= 1
            assert abs(estimate - sign * cosine) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scales", [(1e-12, 1.0), (1e12, 1e-12), (1e12, 1e12)])
def test_scale_does_not_matter(dtype, scales):
    early, late = (linearize(seed, dtype=dtype) for seed in (0, 1))
    for a, b in ((early.K, late.K), (early.P, late.P)):
        for method in ("exact", "hutchinson"):
            plain = alignment(a, b, method=method, rng=0)
            moved = alignment(scales[0] * a, scales[1] * b, method=method, rng=0)
            assert float(moved.estimate) == pytest.approx(float(plain.estimate), rel=1e-5)
            assert moved.estimate.dtype == early.K.dtype


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_a_zero_operator_has_no_angle_and_says_so(pair, method):
    for a, b in (
        (np.zeros((5, 5)), np.eye(5)),
        (np.eye(5), np.zeros((5, 5))),
        (pair[0].K, 0.0 * pair[0].K),
    ):
        result = alignment(a, b, method=method, rng=0)
        assert np.isnan(result.estimate)
        assert np.isnan(result.stderr)
        assert result.chosen == "undefined: an operator is zero"


def test_shared_probes_beat_separate_ones(pair):
    """What one random vector adds to all three products cancels in the ratio."""
    a, b = pair[0].flow, (1.01 * pair[0].flow) + 0.01 * pair[1].flow
    result = alignment(a, b, method="hutchinson", num_matvecs=10, rng=0)
    assert abs(float(result.estimate) - cosine(a, b)) < 1e-4
    assert float(result.stderr) < 1e-4  # a norm alone is off by 10 %


def test_result_carries_what_both_operators_share(tmp_path, pair):
    mean = linearize(0, measure="mean")
    result = alignment(pair[0].flow, mean.flow)
    assert "measure" not in result.attrs
    assert (result.model, result.operator, result.operator2) == ("GRU", "P K P*", "P K P*")
    assert float(result.estimate) == pytest.approx(1, abs=1e-12)
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf").attrs == result.attrs
    assert result.estimate.attrs == {"long_name": "alignment", "units": "1"}


def test_same_seed_same_result(pair):
    one, same, other = (
        alignment(pair[0].P, pair[1].P, method="hutchinson", rng=seed) for seed in (1, 1, 2)
    )
    assert one.identical(same)
    assert float(one.estimate) != float(other.estimate)


def test_operators_of_different_spaces_are_refused(pair):
    lin = pair[0]
    with pytest.raises(ValueError, match="they must be equal"):
        alignment(lin.P, lin.J)
    with pytest.raises(ValueError, match="they must be equal"):
        alignment(np.eye(3), np.eye(4))
    inputs = xr.DataArray(
        np.zeros((3, 6, 2)), dims=("trial", "time", "feature"), coords={"trial": [5, 6, 7]}
    )
    with pytest.raises(ValueError, match="labels of \\['trial'\\] differ"):
        alignment(lin.P, linearize(inputs=inputs).P)
    with pytest.raises(ValueError, match="different dtypes"):
        alignment(lin.P, linearize(dtype=torch.float32).P)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"method": "guess"}, "method='guess'"), ({"num_matvecs": 1}, "num_matvecs=1")],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        alignment(np.eye(3), np.eye(3), **options)


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_an_operator_that_is_not_finite_is_refused(method):
    with pytest.raises(ValueError, match="not finite"):
        alignment(np.eye(3), np.full((3, 3), np.nan), method=method, rng=0)


def test_positive_operators_are_never_found_at_an_obtuse_angle():
    first, second = np.zeros((2, 40, 1))
    first[:20], second[20:] = 1, 1
    a, b = (kpops.operators.foreign.as_operator(x) for x in (first, second))
    for seed in range(20):
        result = alignment(a @ a.H, b @ b.H, method="hutchinson", num_matvecs=4, rng=seed)
        assert 0 <= float(result.estimate) <= 3 * float(result.stderr)  # they are orthogonal
