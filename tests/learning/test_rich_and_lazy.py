"""Exact solutions of rich and lazy networks, as oracles of gradient flow, kernels and training.

Feed-forward networks are recurrences of one step, whose state is the output.
"""

import functools

import numpy as np
import pytest
import torch
import xarray as xr
from one_step import OneStep, deep_linear
from scipy.integrate import quad, solve_ivp
from scipy.optimize import linprog, root
from torch import nn

import kpops
from kpops.training import kernel_evolution


def flow_to(net, x, y, times, rtol=1e-11):
    """Parameters at some times of gradient flow on the mean squared error, by the library's."""

    def velocity(_, theta):
        nn.utils.vector_to_parameters(torch.from_numpy(theta.copy()), net.parameters())
        return kpops.gradient_flow(kpops.linearize(net, x), y).parameter_step.values

    start = nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    span = (0, times[-1])
    found = solve_ivp(velocity, span, start, "DOP853", times, rtol=rtol, atol=1e-13)
    assert found.success
    return found.y.T


def deep_and_aligned(s, start, depth):
    """A network of `depth` layers aligned with a map of singular values s, whitened data.

    W_l = O_l diag(b) O_{l-1}^T with b^depth = start: the balanced initial weights of Saxe,
    McClelland and Ganguli (2014).
    """
    n = len(s)
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(depth + 1)]
    b = start ** (1 / depth)
    weights = [bases[i + 1] @ np.diag(b) @ bases[i].T for i in range(depth)]
    x = np.sqrt(6) * np.linalg.qr(rng.standard_normal((6, n)))[0]  # x^T x = 6
    y = x @ (bases[-1] @ np.diag(s) @ bases[0].T).T
    net = deep_linear(*map(torch.from_numpy, weights))
    return net, bases, torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None]


def strengths(theta, bases, n):
    """Diagonal of the map in the singular bases; all else is zero."""
    product = functools.reduce(lambda a, b: b @ a, theta.reshape(-1, n, n))
    modes = bases[-1].T @ product @ bases[0]
    np.testing.assert_allclose(modes - np.diag(np.diag(modes)), 0, atol=1e-9)
    return np.diag(modes)


@pytest.mark.slow
def test_modes_of_two_layers_follow_the_sigmoid_of_saxe():
    """a' = c a (s - a): a(t) = s e^(c s t) / (e^(c s t) - 1 + s / a_0), c = 4 / outputs."""
    s, a = np.array([3.0, 2, 1]), np.array([0.3, 0.1, 0.02])
    net, bases, x, y = deep_and_aligned(s, a, 2)
    times = np.linspace(0, 1.2, 3)
    growth = np.exp(4 / 3 * s * times[:, None])
    expected = s * growth / (growth - 1 + s / a)
    found = [strengths(theta, bases, 3) for theta in flow_to(net, x, y, times, 1e-10)]
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert (expected[-1] / s).round(1).tolist() == [0.9, 0.6, 0.1]  # one after the other


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
def test_modes_of_a_deep_network_reach_their_strengths_in_the_time_of_saxe(depth):
    """u' = c u^(2 - 2 / N) (s - u), c = 2 N / outputs."""
    s, a = np.array([2.0, 1.5]), np.array([0.4, 0.3])
    net, bases, x, y = deep_and_aligned(s, a, depth)
    times = np.linspace(0, 0.8, 4)
    found = np.array([strengths(theta, bases, 2) for theta in flow_to(net, x, y, times)])
    assert (found[-1] > 0.7 * s).all()
    for mode in range(2):
        for t, u in zip(times, found[:, mode], strict=True):

            def slowness(v, s=s[mode]):
                return 1 / (depth * v ** (2 - 2 / depth) * (s - v))

            taken = quad(slowness, a[mode], u, epsabs=1e-12, epsrel=1e-12)[0]
            assert taken == pytest.approx(t, abs=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_kernel_of_an_aligned_network_has_the_eigenvalues_of_its_modes(depth):
    """On u_j v_i^T it is 6 sum_l b_j^(2 (N - l)) b_i^(2 (l - 1)); N b^(2 (N - 1)) for i = j."""
    a = np.array([0.9, 0.5, 0.2])
    net, _, x, _ = deep_and_aligned(np.ones(3), a, depth)
    b = a ** (2 / depth)
    layers = np.arange(depth)
    expected = 6 * (b[:, None, None] ** layers[::-1] * b[None, :, None] ** layers).sum(-1)
    found = kpops.eigsh(kpops.linearize(net, x).flow, 9, rng=0).eigenvalue
    np.testing.assert_allclose(found, np.sort(expected.ravel())[::-1], rtol=1e-9)


def test_training_follows_the_flow_to_the_order_of_its_learning_rate(tmp_path):
    s, a = np.array([3.0, 2, 1]), np.array([0.5, 0.3, 0.2])
    growth = np.exp(4 / 3 * s * 0.8)
    exact, errors = s * growth / (growth - 1 + s / a), []
    for steps in (40, 80, 160):
        net, bases, x, y = deep_and_aligned(s, a, 2)

        class Whole(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net(x, 0)

        task = xr.Dataset(
            {
                "inputs": (("trial", "time", "input"), x.numpy()),
                "targets": (("trial", "time", "output"), y.numpy()),
                "mask": (("trial", "time"), np.ones((6, 1), bool)),
            }
        )
        options = {"batch_size": 6, "learning_rate": 0.8 / steps, "optimizer": "sgd", "rng": 0}
        folder = tmp_path / str(steps)
        kpops.training.train(Whole(net), task, folder=folder, max_steps=steps, **options)
        theta = kpops.training.weight_trajectories(folder).values[-1]
        errors.append(abs(strengths(theta, bases, 3) - exact).max())
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.5, atol=0.05)


# Diagonal networks: y = sum_i (u_i^2 - v_i^2) x_i.


def diagonal(alpha, n):
    def function(net, x):
        return x @ (net.u**2 - net.v**2)[:, None]

    return OneStep(function, 1, u=alpha * torch.ones(n), v=alpha * torch.ones(n))


@functools.cache
def limit_of(alpha):
    """Coefficients at the end of gradient flow, and the problem: 3 equations for 6 unknowns."""
    X = 3**0.5 * np.linalg.qr(np.random.default_rng(2).standard_normal((6, 3)))[0].T
    y = X @ np.array([1.5, 0, 0, -1, 0, 0])
    net, x = diagonal(alpha, 6), torch.from_numpy(X)[:, None]
    # Errors fall as exp(-16 alpha^2 t) at first, later by the coefficients that have grown.
    time = 20 if alpha < 1 else 2.5 / alpha**2
    u, v = flow_to(net, x, torch.from_numpy(y)[:, None, None], [time], 1e-10)[0].reshape(2, 6)
    return u**2 - v**2, X, y, net, x


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_diagonal_networks_end_at_the_minimum_of_woodworths_q(alpha):
    """Woodworth et al. (2020): beta = 2 alpha^2 sinh(X^T nu), the stationary point of

    Q = alpha^2 sum_i q(beta_i / alpha^2), q(z) = 2 - sqrt(4 + z^2) + z arcsinh(z / 2), X beta = y.
    """
    beta, X, y, *_ = limit_of(alpha)
    of_nu = lambda nu: 2 * alpha**2 * np.sinh(X.T @ nu)  # noqa: E731
    start = np.linalg.lstsq(X.T, np.arcsinh(beta / (2 * alpha**2)), rcond=None)[0]
    exact = root(lambda nu: X @ of_nu(nu) - y, 0.9 * start, tol=1e-14)
    np.testing.assert_allclose(X @ of_nu(exact.x), y, atol=1e-11)
    np.testing.assert_allclose(beta, of_nu(exact.x), atol=1e-8)


@pytest.mark.slow
def test_diagonal_networks_are_lazy_at_a_large_scale_and_rich_at_a_small_one():
    """From the solution of least squares towards that of the least sum of absolute values."""
    moved, excess = [], []
    for alpha in (0.1, 1.0, 5.0):
        beta, X, y, net, x = limit_of(alpha)
        least_squares = np.linalg.pinv(X) @ y
        least = linprog(np.ones(12), A_eq=np.concatenate([X, -X], 1), b_eq=y).fun
        excess.append((abs(beta).sum() - least) / (abs(least_squares).sum() - least))
        pairs = [(0, diagonal(alpha, 6).state_dict()), (1, net.state_dict())]
        result = kpops.over_training(net, pairs, x, kernel_evolution)
        moved.append(float(result.distance_to_first[1]))
        # The kernel is 4 X diag(u^2 + v^2) X^T, and u^2 + v^2 = (beta^2 + 4 alpha^4)^(1/2).
        first, last = X @ X.T, X * np.sqrt(beta**2 + 4 * alpha**4) @ X.T
        first, last = (kernel / np.linalg.norm(kernel) for kernel in (first, last))
        assert moved[-1] == pytest.approx(((first - last) ** 2).sum() / 2, rel=1e-5, abs=1e-14)
    assert abs(beta - least_squares).max() < 1e-3
    assert excess[0] < 0.5 < 0.9 < excess[1] < excess[2] < 1.001
    assert moved[2] < 1e-6 < 1e-5 < moved[1] < 1e-3 < 0.01 < moved[0]


def test_the_mean_of_the_posterior_of_a_linear_network_is_kernel_regression():
    """Li and Sompolinsky (2021): at zero temperature the renormalisation of the kernel cancels.

    Given the first layer W, the posterior mean of the outputs is regression with the kernel of the
    readout, J_C J_C*. Its mean over W is regression with the kernel of the inputs, that of K: what
    W does to directions without training inputs has either sign with equal weight.
    """
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((7, 1, 8)))  # five trials to learn, two to predict
    y = rng.standard_normal(5)
    learned = x[:5, 0].numpy()
    along = np.linalg.pinv(learned) @ learned

    def prediction(kernel):
        return kernel[5:, :5] @ np.linalg.solve(kernel[:5, :5], y)

    def given(W):
        readout = nn.Linear(6, 1, bias=False).double()
        lin = kpops.linearize(deep_linear(torch.from_numpy(W)), x, readout=readout)
        return prediction((lin.J_C @ lin.J_C.H).to_dense()), lin.K.select(unit=0).to_dense()

    W = rng.standard_normal((6, 8))
    one, kernel = given(W)
    mirrored, _ = given(W @ (2 * along - np.eye(8)))
    np.testing.assert_allclose((one + mirrored) / 2, prediction(kernel), atol=1e-11)
    assert abs(one - mirrored).max() > 0.1
