"""Measures of attractors against closed forms: densities, spectra, dimensions."""

import numpy as np
import pytest
from scipy.integrate import quad

from kpops.reconstruction import correlation_dimension, power_spectrum_error, state_space_divergence


def gaussian(n, mean, root, seed):
    """Samples of the normal distribution with covariance root root^T."""
    z = np.random.default_rng(seed).standard_normal((n, len(mean)))
    return np.array(mean) + z @ np.array(root).T


def divergence(mean1, cov1, mean2, cov2):
    """Kullback-Leibler divergence of the first of two Gaussians from the second."""
    inverse, gap = np.linalg.inv(cov2), np.array(mean2) - np.array(mean1)
    logs = np.linalg.slogdet(cov2)[1] - np.linalg.slogdet(cov1)[1]
    return 0.5 * (np.trace(inverse @ cov1) + gap @ inverse @ gap - len(gap) + logs)


@pytest.mark.parametrize("n_units", [1, 2, 6])
def test_the_mixture_of_two_gaussians_has_their_exact_divergence(n_units):
    root_p = np.tril(0.3 * np.ones((n_units, n_units))) + 0.5 * np.eye(n_units)
    root_q = 1.2 * np.eye(n_units)
    mean_p, mean_q = np.zeros(n_units), 0.7 * np.ones(n_units)
    truth, generated = gaussian(4000, mean_p, root_p, 0), gaussian(4000, mean_q, root_q, 1)
    found = state_space_divergence(generated, truth, method="mixture", n_samples=4000, rng=2)
    blur = np.diag(truth.var(axis=0))
    exact = divergence(mean_p, root_p @ root_p.T + blur, mean_q, root_q @ root_q.T + blur)
    # Besides the statistical error of the average, that of the sampled centres.
    assert abs(float(found.estimate) - exact) < 4 * float(found.stderr) + 0.03 * exact
    assert 0 < float(found.stderr) < 0.2 * exact


def test_the_mixture_of_distant_states_has_the_divergence_of_their_gaussians():
    # Two states at -1 and 1, whose standard deviation is 1, of width s; both moved by delta s.
    s, delta = 0.01, 1.5
    truth = np.array([[-1.0], [1.0]])
    found = state_space_divergence(
        truth + delta * s, truth, method="mixture", width=s, n_samples=100_000, rng=0
    )
    # log p/q is normal with the mean delta^2 / 2 and the standard deviation delta.
    assert abs(float(found.estimate) - delta**2 / 2) < 4 * delta / 100_000**0.5
    assert float(found.stderr) == pytest.approx(delta / 100_000**0.5, rel=0.02)


@pytest.mark.parametrize("method", ["bins", "mixture"])
def test_a_series_has_no_divergence_from_itself(method):
    series = gaussian(500, [0, 1], np.eye(2), 0)
    found = state_space_divergence(series[::-1], series, method=method, rng=0)
    assert abs(float(found.estimate)) < 1e-15


def test_bins_give_the_divergence_of_counts():
    truth = np.array([[0.0], [0.1], [0.9], [1.0]])  # counts 2, 2 of two bins
    generated = np.array([[0.2], [0.7], [0.8], [1.0], [5.0]])  # 1, 3, and one outside
    found = state_space_divergence(generated, truth, bins=2, smoothing=1e-12)
    assert float(found.estimate) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-9)
    assert float(found.outside) == pytest.approx(0.2)


def test_smoothing_adds_to_every_bin():
    truth, generated = np.array([[0.0], [0.1], [1.0]]), np.array([[0.0], [0.2]])
    found = state_space_divergence(generated, truth, bins=2, smoothing=0.5)
    p, q = np.array([2.5, 1.5]) / 4, np.array([2.5, 0.5]) / 3
    assert float(found.estimate) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-12)


def test_bins_converge_to_the_divergence_of_densities():
    # Of the density 1 from 2x on [0, 1]: the integral of -log 2x, 1 - log 2.
    random = np.random.default_rng(0)
    truth, generated = random.random((400_000, 1)), np.sqrt(random.random((400_000, 1)))
    found = state_space_divergence(generated, truth, bins=100)
    assert float(found.estimate) == pytest.approx(1 - np.log(2), abs=0.02)


def test_states_that_miss_every_bin_leave_the_smoothing_alone():
    truth = np.random.default_rng(0).random((1000, 2))
    found = state_space_divergence(truth + 5, truth, bins=4)
    counts = np.histogram2d(*truth.T, bins=4, range=[*zip(truth.min(0), truth.max(0), strict=True)])
    p = counts[0].ravel() / 1000
    assert float(found.outside) == 1
    assert float(found.estimate) == pytest.approx((p * np.log(p * 16)).sum(), abs=1e-6)


def test_the_place_of_the_origin_does_not_change_the_mixture():
    truth, generated = gaussian(800, [0, 1], np.eye(2), 0), gaussian(900, [0.3, 1], np.eye(2), 1)
    plain, far = (
        state_space_divergence(generated + at, truth + at, method="mixture", rng=0)
        for at in (0, 1e8)
    )
    assert float(far.estimate) == pytest.approx(float(plain.estimate), rel=1e-5)


def test_numbers_of_numpy_are_options():
    truth = gaussian(400, [0, 1], np.eye(2), 0)
    one, five = np.float32(1), np.int64(5)
    for ours, theirs in (
        (D(truth, truth, bins=five, smoothing=one), D(truth, truth, bins=5, smoothing=1.0)),
        (H(truth, truth, smoothing=one), H(truth, truth, smoothing=1.0)),
        (C(truth, theiler=five, scaling=(0.2, one)), C(truth, theiler=5, scaling=(0.2, 1.0))),
    ):
        assert ours.identical(theirs)
    many = gaussian(50, np.zeros(20), np.eye(20), 0)
    with pytest.raises(ValueError, match=r"30\*\*20 cells"):
        D(many, many, bins=np.int64(30))


def test_units_and_scales_do_not_change_either_divergence():
    truth, generated = gaussian(800, [0, 1], np.eye(2), 0), gaussian(900, [0.3, 1], np.eye(2), 1)
    scale = np.array([7.0, 0.01])
    for method in ("bins", "mixture"):
        plain = state_space_divergence(generated, truth, method=method, rng=0)
        scaled = state_space_divergence(scale * generated, scale * truth, method=method, rng=0)
        assert float(scaled.estimate) == pytest.approx(float(plain.estimate), rel=1e-9)


@pytest.mark.parametrize("shift", [5, 30, 60])
def test_two_sinusoids_have_the_distance_of_the_gaussians_that_smooth_them(shift):
    # Lines at k and k + d become Gaussians of width s: H^2 = 1 - exp(-d^2 / (8 s^2)), but for what
    # is lost where they end, at four widths.
    time = np.arange(4000)
    one, two = (np.sin(2 * np.pi * k * time / 4000)[:, None] for k in (400, 400 + shift))
    found = power_spectrum_error(one, two, smoothing=20)
    assert float(found.estimate) == pytest.approx(
        np.sqrt(1 - np.exp(-(shift**2) / (8 * 20**2))), abs=4e-3
    )


def test_equal_series_have_equal_spectra():
    series = gaussian(500, [0, 1], np.eye(2), 0)
    assert float(power_spectrum_error(series, series).estimate) == 0
    assert float(power_spectrum_error(3 - 7 * series, series).estimate) < 1e-7


def autoregression(a, seed, n=200_000):
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).standard_normal(n)
    return lfilter([1], [1, -a], noise)[:, None]


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.6), (-0.5, 0.5)])
def test_two_autoregressions_have_the_distance_of_their_spectra(a, b):
    # S(w) = (1 - a^2) / (1 - 2 a cos w + a^2), of the integral 2 pi; smoothing 500 of 100,000 bins.
    def spectrum(a, w):
        return (1 - a**2) / (1 - 2 * a * np.cos(w) + a**2)

    overlap = quad(lambda w: np.sqrt(spectrum(a, w) * spectrum(b, w)), 0, np.pi)[0] / np.pi
    found = power_spectrum_error(autoregression(a, 0), autoregression(b, 1), smoothing=500)
    assert float(found.estimate) == pytest.approx(np.sqrt(1 - overlap), abs=0.01)


def test_trials_share_one_spectrum():
    both = np.stack([autoregression(0.5, seed, 20_000) for seed in range(8)])
    found = power_spectrum_error(both[:4], both[4:], smoothing=50)
    one = power_spectrum_error(both[0], both[4], smoothing=50)
    assert float(found.estimate) == pytest.approx(float(one.estimate) / 2, rel=0.2)


def henon(n):
    x, y = 0.1, 0.1
    states = []
    for t in range(n + 100):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        if t >= 100:
            states.append((x, y))
    return np.array(states)


def on_circle(n):
    angle = 2 * np.pi * np.random.default_rng(0).random(n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@pytest.mark.parametrize(
    ("series", "dimension", "scaling"),
    [
        (on_circle(4000), 1.0, (0.01, 0.1)),
        (np.random.default_rng(0).random((6000, 2)), 2.0, (0.02, 0.08)),
        (henon(30_000), 1.22, (0.01, 0.3)),
    ],
    ids=["circle", "square", "henon"],
)
def test_the_correlation_dimension_of_known_sets(series, dimension, scaling):
    found = correlation_dimension(series, scaling=scaling)
    assert float(found.estimate) == pytest.approx(dimension, abs=0.05)
    assert 0 < float(found.stderr) < 0.03


def test_the_correlation_sum_is_the_fraction_of_pairs_outside_the_window():
    series, window = np.random.default_rng(0).random((3, 80, 2)), 5
    found = correlation_dimension(series, theiler=window, scaling=(0.3, 1.0), n_radii=5)
    points = series.reshape(-1, 2)
    radii = found.radius.values * found.attrs["size"]
    trial, time = np.divmod(np.arange(240), 80)
    apart = (trial[:, None] != trial) | (abs(time[:, None] - time) > window)
    gaps = np.linalg.norm(points[:, None] - points, axis=-1)[apart]
    wanted = [(gaps <= r).mean() for r in radii]
    np.testing.assert_allclose(found.correlation_sum, wanted, rtol=1e-12)
    slope = np.polyfit(np.log(radii), np.log(wanted), 1)[0]
    assert float(found.estimate) == pytest.approx(slope, rel=1e-10)


def test_the_standard_error_is_the_scatter_of_independent_series():
    random = np.random.default_rng(1)
    results = [
        correlation_dimension(random.random((400, 2)), scaling=(0.1, 0.5)) for _ in range(40)
    ]
    scatter = np.std([float(r.estimate) for r in results], ddof=1)
    assert np.mean([float(r.stderr) for r in results]) == pytest.approx(scatter, rel=0.35)


def test_a_window_keeps_what_is_close_in_time_alone_from_counting():
    # Neighbours along a slow random curve in three units make the set look one-dimensional.
    steps = np.random.default_rng(0).standard_normal((3000, 3))
    slow = np.apply_along_axis(np.convolve, 0, steps, np.hanning(101), "valid")
    near, apart = (correlation_dimension(slow, theiler=w, scaling=(0.05, 0.3)) for w in (0, 100))
    assert float(apart.estimate) > float(near.estimate) + 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measures_keep_the_dtype_and_can_be_written(dtype, tmp_path):
    truth = gaussian(400, [0, 1], np.eye(2), 0).astype(dtype)
    results = {
        "bins": state_space_divergence(truth, truth),
        "mixture": state_space_divergence(truth, truth, method="mixture", rng=0),
        "spectrum": power_spectrum_error(truth, truth),
        "dimension": correlation_dimension(truth, scaling=(0.2, 0.8)),
    }
    for name, result in results.items():
        assert {v.dtype for v in result.data_vars.values()} == {np.dtype(dtype)}, name
        assert all("long_name" in v.attrs for v in result.variables.values()), name
        result.to_netcdf(tmp_path / f"{name}.nc")
        result.to_zarr(tmp_path / f"{name}.zarr", consolidated=False)


def test_the_same_seed_gives_the_same_divergence():
    truth, generated = gaussian(400, [0, 1], np.eye(2), 0), gaussian(400, [0, 1], np.eye(2), 1)
    once, again = (
        state_space_divergence(generated, truth, method="mixture", rng=7) for _ in range(2)
    )
    assert once.identical(again)


SERIES = gaussian(100, [0, 1], np.eye(2), 0)
NAN = SERIES.copy()
NAN[3, 1] = np.inf
D, H, C = state_space_divergence, power_spectrum_error, correlation_dimension


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: D(SERIES[:, :1], SERIES), ValueError, "generated has 1 units, truth 2"),
        (lambda: D(NAN, SERIES), ValueError, "generated is inf at trial 0, time 3, unit 1"),
        (lambda: D(SERIES, 0 * SERIES), ValueError, "truth is constant in unit 0"),
        (lambda: D(SERIES[:1], SERIES), ValueError, "generated has 1 steps, and 2 are needed"),
        (lambda: D(SERIES, SERIES, method="kde"), ValueError, "choose 'bins' or 'mixture'"),
        (lambda: D(SERIES, SERIES, bins=1), ValueError, "bins=1: choose"),
        (lambda: D(SERIES, SERIES, bins=20_000), ValueError, "20000.*2 cells.*method='mixture'"),
        (lambda: D(SERIES, SERIES, smoothing=0), ValueError, "smoothing=0: pass a positive"),
        (lambda: D(SERIES, SERIES, width=-1.0), ValueError, "width=-1.0: pass a positive"),
        (lambda: H(SERIES[1:], SERIES), ValueError, "99 steps, truth 100: cut both"),
        (lambda: H(0 * SERIES, SERIES), ValueError, "generated is constant in unit 0"),
        (lambda: H(SERIES[:3], SERIES[:3]), ValueError, "3 steps, and 4 are needed"),
        (lambda: H(SERIES, SERIES, smoothing=-1), ValueError, "smoothing=-1: pass a number"),
        (lambda: C(SERIES[:20]), ValueError, "series has 20 states, and 64 are needed"),
        (lambda: C(0 * SERIES), ValueError, "series is constant"),
        (lambda: C(0 * SERIES + 0.1), ValueError, "series is constant"),
        (lambda: C(SERIES, theiler=99), ValueError, "theiler=99 leaves no pair of the 100 steps"),
        (lambda: C(SERIES, scaling=(1e-9, 1e-8)), ValueError, "too few pairs are closer"),
        (lambda: C(SERIES, scaling=(0.2, 0.1)), ValueError, "0 < the first < the second"),
        (lambda: C(SERIES, scaling=0.1), TypeError, "scaling=0.1: pass two radii"),
    ],
)
def test_wrong_use_of_measures_is_refused(call, error, told):
    with pytest.raises(error, match=told):
        call()
