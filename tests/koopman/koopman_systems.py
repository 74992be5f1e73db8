"""Series with known Koopman spectra."""

import numpy as np


def linear(A, n_trials, n_steps, rng):
    """Trials (trial, time, unit) of x -> A x from random starts."""
    x = [rng.standard_normal((n_trials, len(A)))]
    for _ in range(n_steps - 1):
        x.append(x[-1] @ A.T)
    return np.stack(x, 1)


def planted(eigenvalues, rng):
    """A real matrix with these real or complex (one of each pair) eigenvalues, not normal."""
    n = sum(1 if np.isreal(z) else 2 for z in eigenvalues)
    blocks, at = np.zeros((n, n)), 0
    for z in eigenvalues:
        if np.isreal(z):
            blocks[at, at] = np.real(z)
            at += 1
        else:
            blocks[at : at + 2, at : at + 2] = [[z.real, z.imag], [-z.imag, z.real]]
            at += 2
    S = np.eye(n) + 0.3 * rng.standard_normal((n, n))
    return S @ blocks @ np.linalg.inv(S)


def orthogonal(n, rng):
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def lorenz(n_steps, rng, dt=0.01, every=10):
    """One trial (time, 3) of the Lorenz system, sampled at every few steps of RK4."""

    def field(h):
        x, y, z = h
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    h, out = rng.standard_normal(3) + np.array([1, 1, 20]), []
    for t in range((n_steps + 50) * every):
        k1 = field(h)
        k2 = field(h + dt / 2 * k1)
        k3 = field(h + dt / 2 * k2)
        k4 = field(h + dt * k3)
        h = h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if t % every == 0:
            out.append(h)
    return np.array(out[50:])


def logistic(n_steps, start=0.3):
    """One trial (time, 1) of the chaotic logistic map."""
    x = [start]
    for _ in range(n_steps - 1):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x)[:, None]


def cat_map(grid, order):
    """Pairs (trial, 2, observable) of the cat map on a grid of the torus.

    The observables are the sines and cosines of all wave vectors up to an order, but for the
    constant. Also returns these wave vectors.
    """
    points = np.stack(np.meshgrid(range(grid), range(grid)), -1).reshape(-1, 2)
    mapped = points @ np.array([[2, 1], [1, 1]]).T % grid
    span = range(-order, order + 1)
    waves = np.array([(a, b) for a in span for b in span if (a, b) > (0, 0)])

    def observed(at):
        phase = 2 * np.pi * (at @ waves.T) / grid
        return np.concatenate([np.cos(phase), np.sin(phase)], 1)

    return np.stack([observed(points), observed(mapped)], 1), waves


STEP, N_STEPS, DELAYS = 0.01, 100, 5
"""Of the example of online learning: learning rate, length, and states in a window."""


def square_of_starts(low, high):
    """25 points (start, 2) of a square."""
    line = np.linspace(low, high, 5)
    return np.reshape(np.meshgrid(line, line), (2, 25)).T


def _slope(x):
    return 1 / np.cos(x) ** 2  # of the loss, the sum of tan x


def _path(step, x):
    path = [x]
    for _ in range(N_STEPS - 1):
        path.append(step(path[-1]))
    return np.stack(path, 1)


def mirror_descent(x0):
    """Online mirror descent of sum tan x with the log barrier, in the box [1 / 100, 1].

    The Bregman projection onto a box is a clip, since the barrier is a sum over coordinates.
    """
    return _path(lambda x: np.clip(1 / (1 / x + STEP * _slope(x)), 1 / N_STEPS, 1), x0)


def gradient_descent(u0):
    """Online gradient descent of the same loss in u = log x."""

    def step(u):
        return np.clip(u - STEP * np.exp(u) * _slope(np.exp(u)), -np.log(N_STEPS), 0)

    return _path(step, u0)


def bisection():
    """Bisection for the zero of the loss between 25 pairs of ends."""
    a, b = square_of_starts(-4 / 3, -1 / 3), square_of_starts(1 / 7, 8 / 7)
    path = [(a + b) / 2]
    for _ in range(N_STEPS - 1):
        z = path[-1]
        loss = np.tan(z).sum(1, keepdims=True)
        a, b = np.where(loss < 0, z, a), np.where(loss > 0, z, b)
        path.append(np.where(loss == 0, z, (a + b) / 2))
    return np.stack(path, 1)
