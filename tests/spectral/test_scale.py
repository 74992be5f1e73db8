"""A -> s A: ranks and angles stay, norms and traces go with s, whatever the dtype holds."""

import numpy as np
import pytest
import torch

import kpops
from kpops.linalg.exact import DENSE_SIZE
from kpops.operators.foreign import ForeignOperator

SCALES = [
    *((np.float32, s) for s in (1e-30, 1e-18, 1e18, 1e30)),
    *((np.float64, s) for s in (1e-200, 1e-100, 1e100, 1e200)),
]
ROUNDING = {np.float32: 2e-3, np.float64: 1e-8}
RANKS = [
    ("participation", "exact"),
    ("participation", "hutchinson"),
    ("variance", "lanczos"),
    ("variance", "hutchinson"),
    ("entropy", "lanczos"),
    ("stable", "hutchinson"),
    ("numerical", "exact"),
]


FALLING = 0.8 ** np.arange(40)


def symmetric(values=FALLING, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (basis * values) @ basis.T


@pytest.fixture(params=["exact", "estimated"])
def size(request, monkeypatch):
    """Let operators be small enough for their matrix, or not."""
    if request.param == "estimated":
        monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)


def pairs(matrix, dtype, scale):
    """A matrix and its multiple, both rounded to the dtype; also of other shapes."""
    for shape in (matrix, matrix[:, :25], matrix[:25]):
        yield shape.astype(dtype), (scale * shape).astype(dtype)


@pytest.mark.parametrize(("kind", "method"), RANKS)
@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_ranks_do_not_know_the_scale(kind, method, dtype, scale):
    for plain, scaled in pairs(symmetric(), dtype, scale):
        found, expected = (
            float(kpops.effective_rank(a, kind, method=method, tol=0.02, rng=0).estimate)
            for a in (scaled, plain)
        )
        assert found == pytest.approx(expected, rel=ROUNDING[dtype])


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_angles_do_not_know_the_scale(dtype, scale, size):
    first, second = symmetric().astype(dtype), symmetric(seed=1)
    for method in ("auto", "hutchinson"):
        found, expected = (
            float(kpops.alignment(first, s * second.astype(dtype), method=method, rng=0).estimate)
            for s in (dtype(scale), dtype(1))
        )
        assert found == pytest.approx(expected, rel=ROUNDING[dtype])


TIMES_SCALE = {
    "trace": lambda a: kpops.trace(a, rng=0),
    "xnystrace": lambda a: kpops.trace(a, method="xnystrace", num_matvecs=20, rng=0),
    "trace of a product": lambda a: kpops.trace(root(a) @ root(a).H, rng=0),
    "frobenius": lambda a: kpops.frobenius_norm(a, rng=0),
    "xtrace of the square": lambda a: kpops.frobenius_norm(a, method="xtrace", rng=0),
    "nuclear": lambda a: kpops.schatten_norm(a, 1, rng=0),
    "schatten": lambda a: kpops.schatten_norm(a, 4, rng=0),
    "spectral": lambda a: kpops.spectral_norm(a, rng=0),
}


def root(matrix):
    values, vectors = np.linalg.eigh(matrix.astype(float))
    return ForeignOperator((vectors * values.clip(0) ** 0.5).astype(matrix.dtype))


@pytest.mark.parametrize("name", TIMES_SCALE)
@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_norms_and_traces_go_with_the_scale(name, dtype, scale, size):
    plain, scaled = (s * symmetric().astype(dtype) for s in (dtype(1), dtype(scale)))
    expected, found = (TIMES_SCALE[name](a) for a in (plain, scaled))
    assert found.estimate.dtype == found.stderr.dtype == dtype
    for part in ("estimate", "stderr"):
        assert float(found[part]) / scale == pytest.approx(
            float(expected[part]), rel=10 * ROUNDING[dtype], abs=1e-6
        )


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_modes_go_with_the_scale(dtype, scale, size):
    for plain, scaled in pairs(symmetric(), dtype, scale):
        expected, found = (kpops.svds(a, 3, rng=0) for a in (plain, scaled))
        np.testing.assert_allclose(
            found.singular_value / scale, expected.singular_value, rtol=ROUNDING[dtype]
        )
        assert found.converged.all()
        assert found.singular_value.dtype == dtype
    values = kpops.eigvalsh((scale * symmetric()).astype(dtype)).eigenvalue / scale
    np.testing.assert_allclose(values[:9], 0.8 ** np.arange(9), rtol=ROUNDING[dtype])
    for method in ("block-krylov", "lobpcg", "arpack"):
        result = kpops.eigsh((scale * symmetric()).astype(dtype), 3, method=method, rng=0)
        np.testing.assert_allclose(
            result.eigenvalue / scale, 0.8 ** np.arange(3), rtol=ROUNDING[dtype]
        )


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_diagonals_go_with_the_scale(dtype, scale, size):
    matrix = symmetric()
    for method in ("hutchinson", "xdiag", "auto"):
        expected, found = (
            kpops.diagonal((s * matrix).astype(dtype), method=method, rng=0) for s in (1, scale)
        )
        for part in ("estimate", "stderr"):
            np.testing.assert_allclose(
                found[part] / scale, expected[part], rtol=1e-2, atol=ROUNDING[dtype] / 100
            )


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_densities_go_with_the_scale(dtype, scale, size):
    # Modes are known to their tolerance only, and the rules off them move by more.
    outliers = 2 if DENSE_SIZE else 0
    options = {"outliers": outliers, "scale": "linear", "steps": 8, "num_probes": 4, "rng": 0}
    for plain, scaled in pairs(symmetric(np.linspace(1, 2, 40)), dtype, scale):
        expected, found = (kpops.spectral_density(a, **options) for a in (plain, scaled))
        np.testing.assert_allclose(found.value / scale, expected.value, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(
            found.density * scale, expected.density, rtol=0.02, atol=0.02 * expected.density.max()
        )
        if outliers:
            np.testing.assert_allclose(
                found.outlier / scale, expected.outlier, rtol=ROUNDING[dtype]
            )
        assert found.bulk_edge / scale == pytest.approx(expected.bulk_edge, rel=ROUNDING[dtype])
        count = found.n_bulk + outliers
        assert count == pytest.approx(min(scaled.shape), rel=ROUNDING[dtype])


def linearize(weights=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 3, batch_first=True).to(dtype)
    inputs = torch.randn(3, 5, 2, dtype=dtype)
    if weights != 1.0:
        # Readers of weak inputs, with the recurrence off: J is as small as the inputs.
        with torch.no_grad():
            for parameter in gru.parameters():
                parameter.zero_()
        return kpops.linearize(gru, weights * inputs, parameters=["weight_ih_l0"])
    return kpops.linearize(gru, inputs)


@pytest.mark.parametrize("kind", ["participation", "variance", "entropy", "stable", "numerical"])
def test_ranks_of_a_K_that_underflows_are_those_of_its_factor(kind):
    weak, plain = linearize(1e-25), linearize(1e-5)
    assert not (weak.K @ np.ones(weak.K.shape[0], np.float32)).any()  # all 1e-50
    for of_weak, of_plain in ((weak.K, plain.K), (weak.flow, plain.flow)):
        for keep in (None, "time"):
            expected = float(kpops.effective_rank(of_plain, kind, keep=keep).estimate)
            found = float(kpops.effective_rank(of_weak, kind, keep=keep).estimate)
            assert found == pytest.approx(expected, rel=1e-3)
            assert found > 0.9


def test_what_a_K_that_underflows_has_is_given_in_float64():
    weak, plain = linearize(1e-25), linearize(1e-5)
    for of_weak, of_plain in ((weak.K, plain.K), (weak.flow, plain.flow)):
        for function in (kpops.trace, kpops.frobenius_norm, kpops.spectral_norm):
            found, expected = function(of_weak).estimate, function(of_plain).estimate
            assert found.dtype == np.float64
            assert float(found) == pytest.approx(1e-40 * float(expected), rel=1e-3)
        found, expected = (kpops.eigsh(op, 2).eigenvalue for op in (of_weak, of_plain))
        np.testing.assert_allclose(found, 1e-40 * expected.astype(float), rtol=1e-3)
        found, expected = (kpops.diagonal(op).estimate for op in (of_weak, of_plain))
        np.testing.assert_allclose(found, 1e-40 * expected.astype(float), rtol=1e-3)


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_maps_go_with_the_square_of_the_scale(method):
    P = linearize().P
    options = {"method": method, "rng": 0}
    expected = kpops.frobenius_map(P, "time", **options)
    for scale in (1e-15, 1e15, 1e-30, 1e30):
        found = kpops.frobenius_map(scale * P, "time", **options)
        assert found.energy.dtype == (np.float32 if 1e-18 < scale < 1e18 else np.float64)
        np.testing.assert_allclose(
            found.energy / scale**2, expected.energy.astype(float), rtol=1e-4
        )
        np.testing.assert_allclose(found.near_diagonal, expected.near_diagonal, rtol=1e-4)
        assert float(found.long_range) == pytest.approx(float(expected.long_range), rel=1e-4)


def test_the_norm_of_a_propagator_goes_with_the_scale():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 3, batch_first=True).double()
    P = kpops.linearize(gru, torch.randn(3, 5, 2).double()).P
    for scale in (1e-200, 1e200):
        found = kpops.frobenius_norm(scale * P)
        assert found.chosen == "sum of the traces of the observability Gramians of P"
        expected = float(kpops.frobenius_norm(P).estimate)
        assert float(found.estimate) / scale == pytest.approx(expected, rel=1e-12)
        rank, expected = (kpops.effective_rank(op, "stable") for op in (scale * P, P))
        assert float(rank.estimate) == pytest.approx(float(expected.estimate), rel=1e-10)


def test_gramians_that_leave_float32_are_given_in_float64():
    cell = torch.nn.RNN(1, 2, batch_first=True, bias=False, nonlinearity="relu")
    with torch.no_grad():
        cell.weight_hh_l0.copy_(1e4 * torch.eye(2))
        cell.weight_ih_l0.fill_(1e-30)
    lin = kpops.linearize(cell, torch.ones(1, 7, 1))
    for function in (kpops.observability_gramian, kpops.controllability_gramian):
        result = function(lin)
        assert result.trace.dtype == result.gramian.dtype == np.float64
        assert float(result.trace.max()) == pytest.approx(2e48, rel=1e-5)
        assert float(result.gramian.max()) == pytest.approx(1e48, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_what_float64_cannot_hold_is_refused(scale):
    op = kpops.operators.foreign.as_operator(np.eye(3))
    with pytest.raises(ValueError, match="leaves float64: scale the operator"):
        kpops.frobenius_map(scale * op, "index")
    product = (scale * op) @ (scale * op)  # not known to be a square
    if scale > 1:
        for function in (kpops.trace, kpops.frobenius_norm, kpops.spectral_norm, kpops.eigvalsh):
            with pytest.raises(OverflowError, match=r"leaves the range of torch\.float64"):
                function(product)


def test_what_has_lost_its_digits_is_refused():
    with pytest.raises(ValueError, match="float32 loses digits"):
        kpops.eigsh(np.float32(1e-40) * np.eye(3, dtype=np.float32), 1)


@pytest.mark.filterwarnings("ignore:.*encountered in")  # by NumPy, in the matrix itself
@pytest.mark.parametrize("method", ["auto", "block-krylov"])
def test_products_that_overflow_are_refused_by_name(method):
    matrix = np.full((200, 200), 1e38, np.float32)  # its largest eigenvalue is 2e40
    with pytest.raises(ValueError, match="is not finite in float32"):
        kpops.eigsh(matrix, 1, method=method)
