"""The functions of compiled gates against those of NumPy."""

import numba
import numpy as np
import pytest

from kpops.engines.cpu import state_kernels

EPS = np.finfo(np.float64).eps


@numba.njit(error_model="numpy")
def both(x, t, s):
    for i in range(x.size):
        t[i] = state_kernels.tanh(x[i])
        s[i] = state_kernels.sigmoid(x[i])


def of(x):
    t, s = np.empty((2, len(x)))
    both(x, t, s)
    return t, s


@pytest.mark.parametrize("largest", [1e-300, 1e-9, 1e-3, 0.4, 3.0, 40.0, 800.0])
def test_tanh_and_sigmoid_are_right_to_a_few_rounding_units(largest):
    x = largest * np.random.default_rng(0).uniform(-1, 1, 20_000)
    t, s = of(x)
    np.testing.assert_allclose(t, np.tanh(x), rtol=4 * EPS, atol=0)
    exact = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
    np.testing.assert_allclose(s, exact, rtol=8 * EPS, atol=1e-300)


def test_the_ends_of_tanh_and_sigmoid():
    t, s = of(np.array([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(t, [0, 0, 1, -1, np.nan])
    np.testing.assert_allclose(s, [0.5, 0.5, 1, 0, np.nan], rtol=0, atol=1e-300)
