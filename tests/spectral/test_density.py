"""Spectral density and sums over the spectrum: exact cases, laws, and honest error bars."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg import quadrature as lanczos
from kpops.linalg.scaling import normalized
from kpops.linalg.symmetry import is_self_adjoint
from kpops.operators.foreign import as_operator
from kpops.spectral.density import spectral_density

SPECTRA = {
    "flat": np.ones(60),
    "decaying": 0.8 ** np.arange(60),
    "clustered": np.repeat([1.0, 0.3, 0.01, 0.0], 15),
}


def symmetric(spectrum, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (Q * spectrum) @ Q.T


def wigner(n, seed):
    """Symmetric Gaussian matrix whose spectrum fills a semicircle from -2 to 2."""
    g = np.random.default_rng(seed).standard_normal((n, n))
    return (g + g.T) / math.sqrt(2 * n)


@pytest.fixture
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 5, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 6, 2, dtype=torch.float64))


def quadrature(op, functions, **options):
    """Sums of functions over the spectrum, (function, probe), as each random vector sees them."""
    op = as_operator(op)
    scaled, unit = normalized(op)
    rule = lanczos.gauss_rule(scaled, symmetric=is_self_adjoint(op), **options).times(unit)
    return torch.stack([rule.sums(f) for f in functions])


def sphere(n, probes, seed):
    """The random vectors that quadrature draws."""
    z = RandomVectors(seed).normal(probes, range(n), torch.empty(0, dtype=torch.float64)).numpy()
    return z * math.sqrt(n) / np.linalg.norm(z, axis=1, keepdims=True)


# Sums over the spectrum.


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_a_full_recursion_gives_the_quadratic_form_of_every_probe(spectrum):
    matrix = symmetric(spectrum)
    values, vectors = np.linalg.eigh(matrix)
    z = sphere(60, 5, seed=3)
    sums = quadrature(matrix, [torch.exp, lambda x: x.abs().sqrt()], num_probes=5, steps=60, rng=3)
    for row, function in zip(sums, (np.exp, lambda x: np.sqrt(np.abs(x))), strict=True):
        expected = (z @ vectors) ** 2 @ function(values)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_few_steps_are_exact_for_polynomials_of_degree_below_twice_their_number():
    matrix = symmetric(np.linspace(-1, 2, 40))
    z = sphere(40, 4, seed=1)
    for steps in (1, 2, 4):
        for power in range(2 * steps):
            sums = quadrature(matrix, [lambda x, p=power: x**p], num_probes=4, steps=steps, rng=1)
            expected = np.einsum("pi,pi->p", z, z @ np.linalg.matrix_power(matrix, power))
            np.testing.assert_allclose(sums[0], expected, atol=1e-10 * 40)
    beyond = quadrature(matrix, [lambda x: x**8], num_probes=4, steps=4, rng=1)
    exact = np.einsum("pi,pi->p", z, z @ np.linalg.matrix_power(matrix, 8))
    assert np.abs(beyond[0].numpy() - exact).min() > 1e-6


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "clustered")) for n in SPECTRA]
)
def test_errors_told_by_the_scatter_cover(name):
    spectrum = SPECTRA[name]
    matrix = symmetric(spectrum)
    exact = np.array([np.sqrt(spectrum).sum(), (spectrum > 0.1).sum(), 60])
    functions = [lambda x: x.clamp_min(0).sqrt(), lambda x: (x > 0.1).double(), torch.ones_like]
    covered = np.zeros(3)
    for seed in range(200):
        sums = quadrature(matrix, functions, num_probes=30, steps=40, rng=seed).numpy()
        error = sums.std(1, ddof=1) / math.sqrt(30)
        covered += np.abs(sums.mean(1) - exact) <= 2 * error + 1e-6
    assert (covered >= 0.9 * 200).all()
    if (spectrum != 1).any():  # a flat spectrum has no scatter on the sphere
        assert (covered[:2] <= 0.99 * 200).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_and_dtype_do_not_matter(dtype, scale):
    matrix = symmetric(SPECTRA["decaying"])
    for wanted in (matrix, matrix[:, :40]):
        same = {"num_probes": 4, "steps": 20, "rng": 0}
        plain = quadrature(wanted, [lambda x: x], **same)
        moved = quadrature((scale * wanted).astype(dtype), [lambda x: x / scale], **same)
        np.testing.assert_allclose(moved, plain, rtol=1e-4 if dtype == np.float32 else 1e-9)


def test_structural_zeros_are_counted_exactly(lin):
    factor = np.random.default_rng(0).standard_normal((50, 4))
    F = as_operator(factor)
    gram = F @ F.H
    sums = quadrature(gram, [torch.ones_like, lambda x: x], num_probes=30, steps=8, rng=0)
    np.testing.assert_allclose(sums[0], 50, rtol=1e-12)
    error = float(sums[1].std()) / math.sqrt(30)
    assert abs(float(sums[1].mean()) - (factor**2).sum()) < 4 * error
    assert gram.num_matvecs == 1  # that finds the scale; all others in the small space


def test_singular_values_are_those_of_the_dense_matrix(lin):
    for op in (lin.P, lin.J, lin.J.H, lin.sensitivity):
        singular = np.linalg.svd(op.to_dense(), compute_uv=False)
        functions = [torch.ones_like, lambda x: x, lambda x: x**2]
        sums = quadrature(op, functions, num_probes=60, steps=40, rng=0).numpy()
        exact = [len(singular), singular.sum(), (singular**2).sum()]
        error = sums.std(1, ddof=1) / math.sqrt(60)
        assert (np.abs(sums.mean(1) - exact) < 4 * error + 1e-9).all()


def test_uncoupled_trials_have_recursions_of_their_own(lin):
    # A block of P has 30 values: 30 steps are exact for the whole of 90.
    exact = np.linalg.svd(lin.P.to_dense(), compute_uv=False)
    z = RandomVectors(2).normal(4, range(90), torch.empty(0, dtype=torch.float64))
    z = z.numpy().reshape(4, 3, 30)
    z *= math.sqrt(30) / np.linalg.norm(z, axis=2, keepdims=True)
    blocks = [lin.P.select(trial=b).to_dense() for b in range(3)]
    expected = 0
    for b, block in enumerate(blocks):
        values, vectors = np.linalg.eigh(block.T @ block)
        expected = expected + (z[:, b] @ vectors) ** 2 @ np.sqrt(values)
    sums = quadrature(lin.P, [lambda x: x], num_probes=4, steps=30, rng=2)
    np.testing.assert_allclose(sums[0], expected, rtol=1e-9)
    assert abs(float(sums.mean()) - exact.sum()) < 4 * float(sums.std())


def test_groups_of_probes_do_not_change_the_result(monkeypatch):
    matrix = symmetric(SPECTRA["decaying"])
    whole = quadrature(matrix, [torch.exp], num_probes=5, steps=9, rng=0)
    monkeypatch.setattr(lanczos, "free_bytes", lambda device: 0)
    np.testing.assert_allclose(
        quadrature(matrix, [torch.exp], num_probes=5, steps=9, rng=0), whole, rtol=1e-12
    )


def test_a_function_that_is_infinite_at_zero_is_not_asked_for_what_is_not_there():
    sums = quadrature(np.eye(8), [torch.log], num_probes=3, steps=8, rng=0)
    np.testing.assert_allclose(sums, 0, atol=1e-12)


# The density.


def smooth(spectrum, value, width):
    z = (value[:, None] - spectrum) / width
    return np.exp(-(z**2) / 2).sum(1) / (width * math.sqrt(2 * math.pi))


def test_the_exact_density_is_a_sum_of_gaussians():
    spectrum = np.linspace(-1, 3, 50)
    d = spectral_density(np.diag(spectrum), width=0.2)
    np.testing.assert_allclose(d.density, smooth(spectrum, d.value.values, 0.2), rtol=1e-10)
    assert (d.stderr == 0).all()
    assert (d.method, d.scale, d.kind) == ("exact", "linear", "eigenvalue")


def test_on_a_logarithmic_grid_the_gaussians_are_of_the_decades():
    spectrum = np.r_[10.0 ** np.linspace(-6, 0, 30), np.zeros(12)]
    d = spectral_density(np.diag(spectrum), width=0.1)
    assert d.scale == "log"
    x = np.log10(d.value.values)
    expected = smooth(np.log10(spectrum[:30]), x, 0.1) / (d.value.values * math.log(10))
    np.testing.assert_allclose(d.density, expected, rtol=1e-8)
    assert (d.n_zeros, d.n_bulk) == (12, 42)


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_the_density_integrates_to_the_number_of_values(scale, method):
    spectrum = np.r_[10.0 ** np.linspace(-3, 0, 50), np.zeros(10)]
    d = spectral_density(symmetric(spectrum), scale=scale, method=method, points=2000, rng=0)
    shown = d.n_bulk - (d.n_zeros if scale == "log" else 0)
    assert float(d.density.integrate("value")) == pytest.approx(shown, rel=1e-3)
    assert float(d["cumulative"][0]) == pytest.approx(shown, rel=1e-3)
    assert abs(d.n_zeros - 10) <= 4 * d.n_zeros_stderr
    above = -np.gradient(d["cumulative"].values, d.value.values, edge_order=2)
    np.testing.assert_allclose(above, d.density, atol=2e-2 * float(d.density.max()))


def test_lanczos_agrees_with_the_exact_density_within_its_error_bars():
    matrix = wigner(400, 0)
    inside = []
    for seed in range(1, 6):
        d = spectral_density(matrix, method="lanczos", rng=seed)
        exact = smooth(np.linalg.eigvalsh(matrix), d.value.values, d.width)
        bulk = np.abs(d.value.values) < 1.8
        off = np.abs(d.density.values - exact)
        assert off.mean() < 0.12 * exact.mean()
        inside.append((off <= 2 * d.stderr.values)[bulk].mean())
        assert (d.stderr[bulk] > 0).all()
    assert 0.85 < np.mean(inside) < 0.995


def test_a_semicircle_is_a_semicircle():
    d = spectral_density(wigner(1000, 1), method="lanczos", num_probes=10, rng=0)
    x = np.linspace(-1.5, 1.5, 31)
    semicircle = 1000 * np.sqrt(4 - x**2) / (2 * math.pi)
    np.testing.assert_allclose(d.density.interp(value=x), semicircle, rtol=0.12)
    assert d.bulk_edge == pytest.approx(2, abs=0.05)


def test_raw_weights_add_up_to_the_number_of_bulk_values():
    d = spectral_density(symmetric(SPECTRA["decaying"]), method="lanczos", outliers=4, rng=0)
    np.testing.assert_allclose(d.weight.sum("step"), 56, rtol=1e-12)
    assert d.n_bulk == pytest.approx(56)
    assert d.node.dims == ("probe", "step")


# Outliers.


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("spikes", [[], [4.0], [4.0, 3.5, 3.0], [5.0, -4.0, 3.0]])
def test_spikes_of_a_random_matrix_stand_off_and_nothing_else(method, spikes):
    for seed in range(5):
        u = np.linalg.qr(np.random.default_rng(99 + seed).standard_normal((400, 4)))[0]
        u = u[:, : len(spikes)]
        d = spectral_density(
            wigner(400, seed) + (u * spikes) @ u.T, outliers=8, method=method, rng=50 + seed
        )
        assert d.n_outliers == len(spikes)
        assert d.bulk_edge == pytest.approx(2, abs=0.12)
        # A spike s outside the semicircle is found at s + 1/s.
        expected = [s + 1 / s for s in spikes]
        np.testing.assert_allclose(d.outlier[: len(spikes)], expected, atol=0.25)
        assert float(np.abs(d.node.where(d.weight > 0)).max()) < 2.15


def test_outliers_of_singular_values_leave_the_bulk():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((300, 100)) / math.sqrt(300)
    u, v = (np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (300, 100))
    matrix = noise + (u * [9.0, 6.0]) @ v.T
    singular = np.linalg.svd(matrix, compute_uv=False)
    for wanted in (matrix, matrix.T):
        for method in ("exact", "lanczos"):
            d = spectral_density(wanted, outliers=6, method=method, rng=0)
            np.testing.assert_allclose(d.outlier, singular[:6], rtol=1e-6)
            assert d.n_outliers == 2
            assert d.kind == "singular value"
            assert d.bulk_edge == pytest.approx(singular[2], rel=1e-2)
            assert float(d.node.max()) == pytest.approx(singular[6], rel=1e-2)


def test_modes_of_a_flow_operator_leave_the_small_space_too(lin):
    d = spectral_density(lin.flow, outliers=5, method="lanczos", num_probes=40, steps=90, rng=0)
    values = np.linalg.eigvalsh(lin.flow.to_dense())[::-1]
    np.testing.assert_allclose(d.outlier, values[:5], rtol=1e-6)
    top = float(d.node.max())
    assert top == pytest.approx(values[5], rel=1e-6)
    sums = (d.node * d.weight).sum("step").values
    error = sums.std(ddof=1) / math.sqrt(40)
    assert abs(sums.mean() - values[5:].sum()) < 4 * error


def test_more_modes_than_the_rank_leave_only_zeros():
    d = spectral_density(symmetric(np.r_[3.0, 2.0, 1.0, np.zeros(27)]), outliers=5, method="exact")
    assert (d.n_outliers, d.n_zeros) == (3, 25)
    assert d.bulk_edge == pytest.approx(0, abs=1e-12)
    d = spectral_density(
        symmetric(np.r_[3.0, 2.0, 1.0, np.zeros(27)]), outliers=5, method="lanczos", rng=0
    )
    assert (d.n_outliers, round(d.n_zeros, 9)) == (
        3,
        27,
    )  # only modes that are not zero are taken away


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_flat_bulk_has_its_spikes(method):
    d = spectral_density(symmetric(np.r_[9.0, 1.5, np.ones(58)]), outliers=4, method=method, rng=0)
    assert d.n_outliers == 2
    assert d.bulk_edge == pytest.approx(1)


# Normal inputs, options, files.


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_flat_and_rank_one_operators_work(method, dtype):
    for matrix, values in (
        (np.zeros((20, 20)), np.zeros(20)),
        (np.eye(20), np.ones(20)),
        (np.ones((20, 20)), np.r_[20.0, np.zeros(19)]),
        (np.ones((1, 20)), [math.sqrt(20)]),
    ):
        d = spectral_density(matrix.astype(dtype), method=method, rng=0, points=1000)
        assert d.density.dtype == dtype
        assert float(d.density.integrate("value")) == pytest.approx(
            len(values) if d.scale == "linear" else 1, rel=1e-3
        )
        assert float(d.value[0]) < min(values)
        assert float(d.value[-1]) > max(values)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_density_scales_with_the_operator(scale):
    matrix = symmetric(SPECTRA["decaying"]).astype(np.float32)
    options = {"method": "lanczos", "rng": 0, "steps": 12, "outliers": 2}
    one = spectral_density(matrix, **options)
    other = spectral_density(np.float32(scale) * matrix, **options)
    np.testing.assert_allclose(other.value / np.float32(scale), one.value, rtol=1e-2)
    np.testing.assert_allclose(
        other["cumulative"], one["cumulative"], atol=1e-2 * float(one["cumulative"].max())
    )
    assert other.n_outliers == one.n_outliers


def test_real_operators_agree_with_their_dense_spectra(lin):
    for op in (lin.K, lin.flow, lin.P @ lin.P.H, lin.P):
        exact = spectral_density(op, scale="log")
        singular = np.linalg.svd(op.to_dense(), compute_uv=False)
        shown = singular > exact.noise_floor * singular.max()
        x = np.log10(exact.value.values)
        expected = smooth(np.log10(singular[shown]), x, exact.width)
        expected /= exact.value.values * math.log(10)
        np.testing.assert_allclose(exact.density, expected, atol=1e-6 * expected.max())
        estimated = spectral_density(op, scale="log", method="lanczos", steps=90, rng=0)
        above = (singular[:, None] > exact.value.values).sum(0)
        found = estimated["cumulative"].interp(value=exact.value).values
        assert np.nanmax(np.abs(found - above)) < 15


def test_the_same_seed_gives_the_same_density():
    matrix = symmetric(SPECTRA["clustered"])
    one, same, other = (
        spectral_density(matrix, method="lanczos", outliers=2, rng=seed) for seed in (1, 1, 2)
    )
    assert one.identical(same)
    assert not one.density.equals(other.density)


def test_results_survive_files(tmp_path, lin):
    d = spectral_density(lin.flow, outliers=2, method="lanczos", num_probes=3, steps=5, rng=0)
    d.to_netcdf(tmp_path / "d.nc", engine="h5netcdf")
    d.to_zarr(tmp_path / "d.zarr", consolidated=False)
    for back in (
        xr.load_dataset(tmp_path / "d.nc", engine="h5netcdf"),
        xr.open_zarr(tmp_path / "d.zarr", consolidated=False).load(),
    ):
        xr.testing.assert_equal(back, d)
        assert back.attrs["bulk_edge"] == d.attrs["bulk_edge"]
        assert back.density.attrs == d.density.attrs
    assert all(v.attrs["units"] == "1" and v.attrs["long_name"] for v in d.data_vars.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_probes": 1}, "num_probes=1: choose an int of 2 or more"),
        ({"steps": 0}, "steps=0: choose an int of 1 or more"),
        ({"outliers": 3}, "outliers=3: choose an int from 0 to 2"),
        ({"points": 1}, "points=1"),
        ({"scale": "cubic"}, "scale='cubic': choose"),
        ({"width": 0.0}, "width=0.0: choose a positive number"),
        ({"method": "kpm"}, "method='kpm': choose"),
        ({"scale": "log"}, "scale='log' with values from -1 to 3.*use scale='linear'"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        spectral_density(np.diag([3.0, 2.0, -1.0]), **options)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_an_operator_that_is_not_finite_is_refused(method):
    with pytest.raises((ValueError, RuntimeError), match=r"finite|converge|NaN"):
        spectral_density(np.full((4, 4), np.nan), method=method, rng=0)
