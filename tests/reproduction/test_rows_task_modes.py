"""Shampoo beside its formula, and the amplitudes and quotients of target modes beside autograd."""

import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.linalg import fractional_matrix_power

import kpops

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction.basic_rnn import BasicRNN, descend
from reproduction.rows import task_modes
from reproduction.shampoo import Shampoo


def test_shampoo_preconditions_both_sides_of_a_matrix():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(3, 4, 3))
    p = torch.nn.Parameter(torch.from_numpy(start))
    optimizer = Shampoo([p], 0.1, epsilon=0.01)
    L, R, expected = 0.01 * np.eye(4), 0.01 * np.eye(3), start.copy()
    for G in gradients:
        p.grad = torch.from_numpy(G)
        optimizer.step()
        L += G @ G.T
        G = fractional_matrix_power(L, -1 / 2) @ G
        R += G.T @ G
        expected -= 0.1 * G @ fractional_matrix_power(R, -1 / 2)
        np.testing.assert_allclose(p.detach(), expected, rtol=1e-10)


def test_shampoo_of_a_vector_has_the_exponent_minus_one():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    Shampoo([p], 1.0, epsilon=0.5).step()
    np.testing.assert_allclose(p.detach(), -p.grad / (0.5 + 9), rtol=1e-12)


def test_descend_goes_on_by_shampoo_where_it_was_told_to():
    network, plain = BasicRNN(6, 0), BasicRNN(6, 0)
    weights, _ = descend(network, 0, rate=0.01, batch=4, at=[0, 3], optimizer=Shampoo)
    other, _ = descend(plain, 0, rate=0.01, batch=4, at=[0, 3])
    name = "cell.weight_hh"
    assert torch.equal(weights[0][name], other[0][name])
    assert not torch.allclose(weights[1][name], other[1][name])


def test_amplitudes_are_those_of_a_decomposition_and_quotients_those_of_autograd():
    task = kpops.tasks.memory_pro(4, angles="even", noise=0, steps=(2, 2, 2), dtype="float64")
    network = BasicRNN(5, 0).double()
    lin = network.linearize(task.inputs)
    C = network.readout.weight.detach().numpy()
    targets = task.targets.values
    amplitudes, quotients = task_modes.along_modes(lin, targets, C)

    left, sigma, _ = np.linalg.svd(targets.reshape(-1, 3), full_matrices=False)
    outputs = lin.outputs.values.reshape(-1, 3)
    expected = np.linalg.norm(left.T @ outputs, axis=1) / sigma
    np.testing.assert_allclose(amplitudes[0], expected[0], rtol=1e-10)  # fixation; cos, sin differ
    np.testing.assert_allclose(
        (amplitudes[1:] ** 2).sum(), (expected[1:] ** 2).sum(), rtol=1e-10
    )  # by a rotation within their common singular value

    inputs = torch.from_numpy(task.inputs.values)
    states = network.states(inputs)
    for i in range(3):
        mode = targets[..., i] / np.linalg.norm(targets[..., i])
        q = torch.from_numpy(mode[..., None] * C.sum(0))
        slopes = torch.autograd.grad(
            (q * states).sum(), list(network.cell.parameters()), retain_graph=True
        )
        squared = sum(float((s**2).sum()) for s in slopes)
        np.testing.assert_allclose(quotients[i], squared / float((q**2).sum()), rtol=1e-10)


def test_judge_tells_memory_from_fixation():
    amplitude = np.zeros((3, 3, 2))
    amplitude[:, 0, 1] = 1
    amplitude[1:, 1:, 1] = 0.8
    rayleigh = np.ones((3, 3, 2))
    rayleigh[1] = 2
    dims = ("case", "mode", "step")
    found = xr.Dataset(
        {"amplitude": (dims, amplitude), "rayleigh": (dims, rayleigh)},
        {"case": list(task_modes.CASES), "mode": list(task_modes.MODES)},
    ).expand_dims(seed=[0, 1])
    assert all(check.holds for check in task_modes.judge(found))
    short = found.assign(amplitude=0.85 * found.amplitude, rayleigh=xr.ones_like(found.rayleigh))
    assert [check.holds for check in task_modes.judge(short)] == [False, True, True, True, False]
    swapped = found.assign_coords(case=["Shampoo", "SGD, planted", "SGD"])
    assert [check.holds for check in task_modes.judge(swapped)] == [True, False, True, False, True]
