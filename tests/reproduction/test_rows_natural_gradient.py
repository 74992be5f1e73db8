"""Steps of low-rank natural gradient beside the dense formula, and what is read off losses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jacrev

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction.memories import LowRankGaussNewton, TwoMemories, train
from reproduction.rows import bifurcation_natural_gradient as row
from reproduction.rows import bifurcation_normal_form as normal_form


@pytest.fixture
def setting():
    return TwoMemories(0, units=3, time=4, trials=3, student=(0.5, 0.6), teacher=(1.5, 1.2))


def gauss_newton_matrix(setting):
    """(2/N) J^T J by autograd."""

    def states(W):
        h, found = setting.starts, []
        for _ in range(setting.time):
            h = torch.tanh(h @ W.T)
            found.append(h)
        return torch.stack(found, 1).flatten()

    J = jacrev(states)(setting.student.W.detach()).flatten(1)
    return (2 / len(J) * J.T @ J).numpy()


def test_the_memories_are_eigenvalues_and_the_rest_is_shared(setting):
    values = np.linalg.eigvals(setting.student.W.detach().numpy())
    assert np.abs(values[:, None] - [0.5, 0.6]).min(0) == pytest.approx([0, 0], abs=1e-12)
    assert setting.leading() == pytest.approx(np.sort(values.real)[::-1][:2])


def test_a_step_of_full_rank_is_the_damped_gauss_newton_step(setting):
    rate, W = 0.3, setting.student.W.detach().numpy().copy()
    F = gauss_newton_matrix(setting)
    loss, slopes = setting.gradient()
    expected = np.linalg.solve(np.eye(9) / rate + F, slopes.numpy())
    method = LowRankGaussNewton(setting, 9, 1, np.random.default_rng(0))
    assert method.step(rate) == loss
    np.testing.assert_allclose(
        (W - setting.student.W.detach().numpy()).ravel(), expected, rtol=1e-9, atol=1e-13
    )


def test_low_rank_is_newton_in_the_leading_direction_and_plain_in_others(setting):
    F, rate = gauss_newton_matrix(setting), 0.3
    method = LowRankGaussNewton(setting, 1, 1, np.random.default_rng(0))
    for _ in range(200):
        method.update()
    values, vectors = np.linalg.eigh(F)
    np.testing.assert_allclose(method.values, values[-1:], rtol=1e-10)
    method.update = lambda: None
    W = setting.student.W.detach().numpy().copy()
    g = setting.gradient()[1].numpy()
    method.step(rate)
    change = vectors.T @ (W - setting.student.W.detach().numpy()).ravel()
    expected = vectors.T @ g * np.append(np.full(8, rate), 1 / (1 / rate + values[-1]))
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-12)


def test_rank_zero_is_gradient_descent(setting):
    W, g = setting.student.W.detach().clone(), setting.gradient()[1]
    LowRankGaussNewton(setting, 0, 1, np.random.default_rng(0)).step(0.1)
    np.testing.assert_allclose(setting.student.W.detach(), W - 0.1 * g.reshape(3, 3), rtol=1e-14)


def test_training_records_losses_before_each_step_and_after_the_last(setting):
    losses, leading = train(LowRankGaussNewton(setting, 0, 1, np.random.default_rng(0)), 0.01, 3)
    assert losses[-1] == setting.loss().item() and tuple(leading[-1]) == setting.leading()
    assert len(losses) == len(leading) == 4 and (np.diff(losses) < 0).all()


def dataset(sgd, ours):
    """Two rates; losses of SGD and of all other methods, for one seed."""
    loss = np.array([sgd if method == row.SGD else ours for method in row.METHODS], float)
    eigenvalues = [[0.5, 0.4], [0.8, 0.6], [1.0, 0.7], [1.2, 0.9]]
    leading = np.broadcast_to(eigenvalues, (*loss.shape, 2))
    found = row.summary(loss, leading, [0.1, 0.2])
    return found.assign(overhead=("optimizer", [1.0, 1.2, 1.2, 1.2])).expand_dims(seed=[0])


def test_what_is_read_off_the_losses():
    quiet, jumps = [1, 0.5, 0.1, 0.005], [1, 0.5, 0.9, 0.1]
    found = dataset([quiet, jumps], [quiet, quiet])
    assert row.rates_of(found, row.SGD) == ([1], [0.1])
    assert row.rates_of(found, row.JUDGED) == ([2], [0.2])
    before = row.least_unstable(found, "eigenvalue_at_rise", row.SGD)
    assert before == [0.8]  # of the step from 0.5 to 0.9
    assert row.least_unstable(found, "second_at_rise", row.SGD) == [0.6]
    assert row.least_unstable(found, "largest_rise", row.SGD) == pytest.approx([0.8])
    assert row.iterations(found, row.SGD) == row.iterations(found, row.JUDGED) == [3]
    assert [c.holds for c in row.judge(found)] == [False, True, True, False, True]


def test_where_all_is_stable_nothing_is_said_of_the_least_unstable_rate():
    quiet = [1, 0.5, 0.1, 0.005]
    found = dataset([quiet, quiet], [quiet, quiet])
    assert np.isnan(row.least_unstable(found, "largest_rise", row.JUDGED)).all()
    assert not row.judge(found)[1].holds


def test_a_loss_that_is_not_a_number_is_unstable():
    found = dataset([[1, np.nan, 1, 1]] * 2, [[1, 0.5, 0.1, 0.005]] * 2)
    first, stable = row.rates_of(found, row.SGD)
    assert first == [0] and np.isnan(stable[0])
    assert row.iterations(found, row.SGD) == [np.inf]


def test_the_response_of_the_normal_form_is_that_of_autograd():
    rng = np.random.default_rng(0)
    r = rng.normal(size=5)
    r /= np.linalg.norm(r)
    left = r + 0.3 * (np.eye(5) - np.outer(r, r)) @ rng.normal(size=5)
    mu, starts = 1.1, rng.normal(size=(4, 5))
    line, readout = torch.from_numpy(r), torch.from_numpy(left)

    def step(x):  # on the line of r, at an eigenvalue of 1: its third derivative is -6 c
        return readout @ torch.tanh(line * x)

    third = jacrev(jacrev(jacrev(step)))(torch.zeros((), dtype=torch.float64))

    def responses(mu):
        x, found = torch.from_numpy(starts) @ readout, []
        for _ in range(6):
            x = mu * x + third / 6 * x**3
            found.append(x)
        return torch.stack(found)

    expected = (jacrev(responses)(torch.tensor(mu, dtype=torch.float64)) ** 2).sum()
    predicted, towards = normal_form.normal_form(mu * np.outer(r, left), starts, 6)
    np.testing.assert_allclose(predicted, expected, rtol=1e-10)
    np.testing.assert_allclose(towards, np.outer(left, r), rtol=1e-10)


def test_without_its_cube_the_normal_form_is_linear():
    W, starts = np.diag([0.9, 0.1]), np.array([[1e-6, 0.0]])
    total, towards = normal_form.normal_form(W, starts, 3)
    expected = sum((t * 0.9 ** (t - 1) * 1e-6) ** 2 for t in (1, 2, 3))
    np.testing.assert_allclose(total, expected, rtol=1e-10)
    np.testing.assert_allclose(towards, [[1, 0], [0, 0]], atol=1e-12)


def test_a_memory_that_is_never_reached_does_not_count():
    found = normal_form.measure(
        0, units=4, time=3, trials=2, start=0.2, rate=1e-6, steps=2, eigenvalues=[0.55, 1.0]
    )
    start = TwoMemories(
        0, units=4, time=3, trials=2, start=0.2, student=(0.5, 0.6), teacher=(1.5, 1.2)
    )
    positions = start.target.numel()
    largest = np.linalg.eigvalsh(gauss_newton_matrix(start) * positions / 2)[-1]
    np.testing.assert_allclose(found.restricted[0], largest, rtol=1e-10)
    assert np.isnan(found.restricted[1])
    assert [c.passed for c in normal_form.judge(found.expand_dims(seed=[0]))] == [0, 0, 0]
