"""Distances of kernels over training and alignments with targets, against dense kernels."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import kpops
from kpops.training import kernel_evolution

B, T = 5, 4


@pytest.fixture(scope="module")
def trained():
    """A network, its checkpoints, inputs and targets; trials have several lengths."""
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(2, 6), nn.Linear(6, 2)).double()
    x, y = torch.randn(B, T, 2, dtype=torch.float64), torch.randn(B, T, 2, dtype=torch.float64)
    optimizer, saved = torch.optim.SGD(network.parameters(), 1.0), []
    for step in range(4):
        saved.append((step, copy.deepcopy(network.state_dict())))
        optimizer.zero_grad()
        (network(x) - y).square().mean().backward()
        optimizer.step()
    mask = torch.arange(T) < torch.tensor([4, 2, 4, 3, 4])[:, None]
    return network, saved, x, y, mask


def kernels(trained, centred=False):
    """Dense kernels at the checkpoints, and the targets."""
    network, saved, x, y, mask = trained
    centring = np.zeros((B, T, 2, B, T, 2))
    valid = mask.numpy().astype(float)
    for t in range(T):
        one = np.diag(valid[:, t])
        if centred:
            one = one - np.outer(valid[:, t], valid[:, t]) / valid[:, t].sum()
        for o in range(2):
            centring[:, t, o, :, t, o] = one
    centring = centring.reshape(B * T * 2, -1)
    dense = []
    for _, state in saved:
        network.load_state_dict(state)
        op = kpops.linearize(network, x, mask=mask).output_ntk
        dense.append(centring @ op.to_dense() @ centring)
    return dense, centring @ y.numpy().flatten()


def cosine(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def follow(trained, **options):
    network, saved, x, y, mask = trained
    measure = functools.partial(kernel_evolution, targets=y, **options)
    return kpops.over_training(network, saved, x, measure, options={"mask": mask})


@pytest.mark.parametrize("centred", [False, True])
def test_numbers_are_those_of_the_dense_kernels(trained, centred):
    result = follow(trained, centred=centred, num_matvecs=40)
    dense, y = kernels(trained, centred)
    first = [1 - cosine(dense[0], K) for K in dense]
    before = [1 - cosine(K, L) for K, L in itertools.pairwise(dense)]
    aligned = [cosine(K, np.outer(y, y)) for K in dense]
    np.testing.assert_allclose(result.distance_to_first, first, atol=1e-13)
    np.testing.assert_allclose(result.distance_to_previous[1:], before, atol=1e-13)
    assert np.isnan(result.distance_to_previous[0])
    np.testing.assert_allclose(result.target_alignment, aligned, rtol=1e-11)
    np.testing.assert_allclose(result.norm, [np.linalg.norm(K) for K in dense], rtol=1e-12)
    assert not result[["norm_stderr", "target_alignment_stderr"]].to_array().any()
    assert first[-1] > 1e-3


def test_one_minus_the_distance_is_the_alignment_of_operators(trained):
    network, saved, x, _, mask = trained
    result = follow(trained, num_matvecs=40)
    ntks = []
    for _, state in (saved[0], saved[-1]):
        network.load_state_dict(state)
        ntks.append(kpops.linearize(network, x, mask=mask).output_ntk)
    alignment = float(kpops.alignment(*ntks).estimate)
    assert float(1 - result.distance_to_first[-1]) == pytest.approx(alignment, rel=1e-13)


def test_distances_of_lazy_training_keep_their_digits(trained):
    """A relative change e E of the kernel is a distance of order e^2, far below rounding."""
    network, saved, x, _, _ = trained
    state = {n: v.clone() for n, v in saved[0][1].items()}
    results = []
    for epsilon in (1e-7, 2e-7):
        moved = {n: v * (1 + epsilon * (n == "readout.weight")) for n, v in state.items()}
        pair = [(0, state), (1, moved)]
        measure = functools.partial(kernel_evolution, num_matvecs=40)
        result = kpops.over_training(network, pair, x, measure)
        results.append(float(result.distance_to_first[1]))
    assert 0 < results[0] < 1e-14
    assert results[1] / results[0] == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_random_vectors_give_estimates_within_their_error_bars(trained, centred):
    dense, y = kernels(trained, centred)
    exact = {
        "distance_to_first": 1 - cosine(dense[0], dense[-1]),
        "target_alignment": cosine(dense[-1], np.outer(y, y)),
        "norm": np.linalg.norm(dense[-1]),
    }
    inside = {name: 0 for name in exact}
    for seed in range(40):
        last = follow(trained, centred=centred, num_matvecs=16, rng=seed).isel(step=-1)
        for name, value in exact.items():
            inside[name] += abs(float(last[name]) - value) < 2 * float(last[f"{name}_stderr"])
    assert min(inside.values()) >= 34, inside


def test_the_images_give_the_distance_of_any_two_checkpoints(trained):
    result = follow(trained, num_matvecs=40)
    dense, _ = kernels(trained)
    rows = result.image.stack(entry=("probe", "trial", "time", "output")).values
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [[1 - cosine(a, b) for a in dense] for b in dense]
    np.testing.assert_allclose(1 - rows @ rows.T, expected, atol=1e-13)
    np.testing.assert_array_equal(result.first_image[2], result.image[0])


def test_states_without_a_readout_and_other_kernels(trained):
    network, _, x, _, _ = trained
    lin = kpops.linearize(network.recurrent, x)
    assert kernel_evolution(lin, num_matvecs=4).attrs["kernel"] == "P K P*"
    over_time = kernel_evolution(lin, kernel=lambda lin: lin.K.expand_average("time"))
    dense = lin.K.expand_average("time").to_dense()
    assert float(over_time.norm) == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    with pytest.raises(ValueError, match="keep the trials"):
        kernel_evolution(lin, centred=True, kernel=lambda lin: lin.K.expand_average("time"))


def test_kernels_of_other_spaces_know_which_steps_are_valid(trained):
    _, _, x, _, mask = trained
    lin = kpops.linearize(nn.GRU(2, T, batch_first=True).double(), x, mask=mask)
    reduced = lin.flow.partial_trace(keep=("trial", "unit"))
    over_units = kernel_evolution(lin, kernel=lambda _: reduced, centred=True)
    centring = np.kron(np.eye(B) - 1 / B, np.eye(T))
    expected = np.linalg.norm(centring @ reduced.to_dense() @ centring)
    assert float(over_units.norm) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="linearise that part alone"):
        kernel_evolution(lin, kernel=lambda lin: lin.flow.select(time=[2, 3]), centred=True)


def test_the_zero_kernel_has_no_distance(trained):
    network, _, x, _, _ = trained
    lin = kpops.linearize(network.recurrent, x)
    zero = functools.partial(kernel_evolution, kernel=lambda lin: 0 * lin.K, num_matvecs=4)
    assert np.isnan(zero(lin, zero(lin)).distance_to_previous)


def test_what_does_not_fit_is_refused(trained):
    network, _, x, y, _ = trained
    lin = kpops.linearize(network, x)
    with pytest.raises(ValueError, match="return an operator from a space to itself"):
        kernel_evolution(lin, kernel=lambda lin: lin.J)
    with pytest.raises(ValueError, match="use the same inputs and num_matvecs"):
        kernel_evolution(lin, kernel_evolution(lin, num_matvecs=4), num_matvecs=5)
    with pytest.raises(ValueError, match=r"q has shape \(4, 4, 2\)"):
        kernel_evolution(lin, targets=y[:4])
    with pytest.raises(TypeError, match="rng=None"):
        kernel_evolution(lin, rng=None)
