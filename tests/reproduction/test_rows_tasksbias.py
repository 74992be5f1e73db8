"""The pieces of the rows of arXiv 2605.08746, beside autograd and closed forms."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch.func import functional_call, jacrev

import kpops

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction import attention, students
from reproduction.basic_rnn import BasicRNN, descend, memoryless_loss, plant
from reproduction.rows import (
    attention_rank,
    kronecker_schmidt,
    ntk_alignment_vv,
    planted_fixed_points,
    self_referential_bias,
    student_teacher_ranks,
)


@pytest.fixture
def task():
    return kpops.tasks.memory_pro(3, angles="even", noise=0, steps=(2, 2, 2), dtype="float64")


class Calls(torch.nn.Module):
    """A module whose forward applies a function to another module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, function):
        return function(self.inner)


def states_jacobian(network, inputs):
    """dh/dtheta (trial, time, unit, parameter) by autograd."""
    network = network.double()
    cell = {n for n, _ in network.named_parameters() if n.startswith("cell")}
    parameters = {n: p for n, p in network.named_parameters() if n in cell}
    wrapped = Calls(network)

    def states(chosen):
        named = {f"inner.{n}": p for n, p in chosen.items()}
        return functional_call(wrapped, named, (lambda inner: inner.states(inputs),))

    parts = jacrev(states)(parameters)
    return torch.cat([parts[n].detach().flatten(3) for n in parameters], -1).numpy()


def participation(matrix):
    return np.trace(matrix) ** 2 / np.trace(matrix @ matrix)


def test_least_loss_without_memory():
    shown = kpops.tasks.memory_pro(12, angles="even", noise=0, dtype="float64")
    assert memoryless_loss(shown) == pytest.approx(planted_fixed_points.MEMORYLESS, rel=1e-12)
    stays = kpops.tasks.delay_pro(12, angles="even", noise=0, dtype="float64")
    assert memoryless_loss(stays) == pytest.approx(0, abs=1e-12)  # the stimulus is always there


def test_planted_points_are_fixed():
    torch.manual_seed(0)
    network = BasicRNN(9, 0).double()
    points = torch.randn(2, 9, dtype=torch.float64)
    W = plant(network.cell.weight_hh.detach(), points)
    away = torch.randn(9, dtype=torch.float64)
    s = points.tanh()
    away -= torch.linalg.pinv(s) @ (s @ away)
    torch.testing.assert_close(W @ away, network.cell.weight_hh.detach() @ away)
    with torch.no_grad():
        network.cell.weight_hh.copy_(W)
        moved = network.cell(torch.zeros(1, 3, dtype=torch.float64), points[1:])
    torch.testing.assert_close(moved, points[1:])


def test_states_are_those_of_the_cell(task):
    network = BasicRNN(5, 1, g=1.5).double()
    inputs = torch.from_numpy(task.inputs.values)
    h, found = torch.zeros(3, 5, dtype=torch.float64), []
    for x in inputs.unbind(1):
        h = 0.3 * h + 0.7 * (h.tanh() @ network.cell.weight_hh.T + x @ network.cell.weight_ih.T)
        found.append(h)
    wanted = torch.stack(found, 1).detach()
    torch.testing.assert_close(network.states(inputs).detach(), wanted)
    np.testing.assert_allclose(network.linearize(task.inputs).states, wanted, rtol=1e-12)


def test_descent_reports_the_loss_of_its_weights():
    network = BasicRNN(4, 0)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    weights, losses = descend(network, 0, rate=0.05, batch=8, at=[0, 3])
    even = kpops.tasks.memory_pro(100, angles="even", noise=0)
    for state, loss in zip(weights, losses, strict=True):
        network.load_state_dict(state)
        error = network(torch.from_numpy(even.inputs.values)).detach().numpy() - even.targets.values
        assert loss == pytest.approx(float((error**2).mean()), rel=1e-5)
    assert all(torch.equal(weights[0][n], p) for n, p in before.items())
    assert losses[1] < losses[0]


def test_averaged_kernel_is_that_of_autograd(task):
    network = BasicRNN(4, 2)
    found = ntk_alignment_vv.averaged(network.linearize(task.inputs))
    D = states_jacobian(network, torch.from_numpy(task.inputs.values)).sum(2).reshape(18, -1)
    np.testing.assert_allclose(found, D @ D.T / 4, rtol=1e-10, atol=1e-12)


def test_alignments_are_cosines():
    rng = np.random.default_rng(0)
    states, inputs = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2))
    joint = np.concatenate([states, inputs], -1).reshape(10, -1)
    ntk, order = joint @ joint.T, np.array([1, 2, 3, 4, 0])
    x = inputs.reshape(10, 2) @ inputs.reshape(10, 2).T
    turned = np.concatenate([states, inputs], -1)[:, order].reshape(10, -1)

    def cosine(a, b):
        return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)

    found = ntk_alignment_vv.alignments(ntk, states, inputs, [order])
    wanted = [1, cosine(ntk, x), cosine(ntk, turned @ turned.T)]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_ranks_of_an_image():
    image = np.zeros((2, 3, 4))
    image[0, 0, 0], image[1, 2, 1] = 2, 1  # singular values 2 and 1
    numerical, effective = kronecker_schmidt._ranks(image)
    assert (numerical, effective) == (2, pytest.approx(25 / 17))


def test_kronecker_core_needs_the_step_before(task):
    """K is M M^T kron I, with the states of the step before; the first step by autograd."""
    network = BasicRNN(3, 0, alpha=1.0)
    lin = network.linearize(task.inputs)
    M = kronecker_schmidt.weight_sites(lin, task.inputs)
    inputs = torch.from_numpy(task.inputs.values)
    J = states_jacobian(network, inputs)[:, :1]  # the first step has no past: P is 1
    first = M.reshape(3, 6, -1)[:, 0]
    wanted = np.einsum("bf,cf,ij->bicj", first, first, np.eye(3))
    np.testing.assert_allclose(np.einsum("btip,ctjp->bicj", J, J), wanted, atol=1e-12)
    K = np.asarray(lin.K @ np.eye(54))
    np.testing.assert_allclose(K, np.kron(M @ M.T, np.eye(3)), atol=1e-12)


def test_shares_and_rates(task):
    network = BasicRNN(3, 4)
    lin = network.linearize(task.inputs)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(18, 18)))[0]
    shares = self_referential_bias.shares_of(basis, lin.states.values)
    assert shares.sum() == pytest.approx(1)
    rows = lin.states.values.reshape(18, 3)
    assert shares[2] == pytest.approx(((basis[:, 2] @ rows) ** 2).sum() / (rows**2).sum())
    D = states_jacobian(network, torch.from_numpy(task.inputs.values)).reshape(18, 3, -1)
    along = np.einsum("nk,nip->kip", basis[:, :4], D)
    wanted = (along**2).sum((1, 2)) / 3
    np.testing.assert_allclose(self_referential_bias.rates(lin, basis[:, :4]), wanted, rtol=1e-9)


def test_students_learn_from_their_teacher():
    setting = students.Students(6, 0, steps=5, rank=2, teacher=1.2)
    inputs = setting.inputs(2000)
    flat = inputs.reshape(-1, students.INPUTS)
    assert torch.linalg.matrix_rank(flat, rtol=1e-4) == 2
    assert flat.square().sum(1).mean() == pytest.approx(1, abs=0.05)
    assert setting.loss(setting.network(1.2), inputs) == 0
    student = setting.network(0.5)
    W = student.weight_hh_l0.detach().clone()
    torch.testing.assert_close(W @ W.T, 0.25 * torch.eye(6), atol=1e-6, rtol=0)
    pair = [student, setting.network(0.9)]
    state = setting.source.get_state()
    setting.train(pair, 1, rate=0.1, batch=4)
    setting.source.set_state(state)
    inputs = setting.inputs(4)
    for trained, g in zip(pair, (0.5, 0.9), strict=True):
        again = setting.network(g)
        setting.loss(again, inputs).backward()
        wanted = again.weight_hh_l0 - 0.1 * again.weight_hh_l0.grad
        torch.testing.assert_close(trained.weight_hh_l0.detach(), wanted.detach())


def test_ranks_of_a_student_are_those_of_autograd():
    setting = students.Students(4, 0, steps=5, rank=2, teacher=1.2)
    student, inputs = setting.network(0.8), setting.inputs(3)
    found = students.ranks(student, inputs, 0)
    U, x = student.weight_ih_l0.detach().double(), inputs.double()

    def states(W):
        h, all_h = x.new_zeros(3, 4), []
        for of_step in x.unbind(1):
            h = torch.tanh(of_step @ U.T + h @ W.T)
            all_h.append(h)
        return torch.stack(all_h, 1)

    W = student.weight_hh_l0.detach().double()
    D = jacrev(states)(W).flatten(3).numpy()  # trial, time, unit, parameter
    time, space, whole = D.sum(2).reshape(15, -1), D.sum((0, 1)), D.reshape(60, -1)
    assert found["time"] == pytest.approx(participation(time @ time.T), rel=1e-8)
    assert found["space"] == pytest.approx(participation(space @ space.T), rel=1e-8)
    assert found["whole"] == pytest.approx(participation(whole @ whole.T), rel=1e-6)
    squared = time @ time.T @ time @ time.T
    assert found["time_gram"] == pytest.approx(participation(squared), rel=1e-8)
    V = torch.cat([states(W), x], -1).reshape(15, -1).numpy()
    assert found["V"] == pytest.approx(participation(V @ V.T), rel=1e-6)
    R = np.linalg.inv(np.eye(4) - W.numpy())
    assert found["response"] == pytest.approx(participation(R @ R.T), rel=1e-6)


def test_kernel_of_attention_is_that_of_autograd():
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4))
    block = attention.Block(4, 6, 2, 5, seed=0).double()
    x = torch.from_numpy(inputs)

    def features(block):
        h = block.embed(x)
        q, k, v = (p(h).reshape(2, 3, 2, 3) for p in (block.q, block.k, block.v))
        weights = torch.einsum("bthd,bshd->bhts", q, k).div(3**0.5).softmax(-1)
        heads = torch.einsum("bhts,bshd->bthd", weights, v).reshape(2, 3, 6)
        read = torch.nn.functional.gelu(block.o(heads))
        act = torch.nn.functional.gelu(block.first(read))
        return torch.cat([h, h, h, heads, read, act, block.last(act)], -1)

    wrapped = Calls(block)
    parameters = dict(wrapped.named_parameters())
    parts = jacrev(lambda p: functional_call(wrapped, p, (features,)).sum(-1))(parameters)
    D = torch.cat([part.detach().flatten(2) for part in parts.values()], -1).reshape(6, -1)
    lin = attention.linearize(block, inputs)
    np.testing.assert_allclose(attention.averaged_ntk(lin), D @ D.T, rtol=1e-9, atol=1e-12)
    wanted = features(block).detach().reshape(6, -1).numpy()
    found = attention.weight_features(lin)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, rtol=1e-9)
    assert attention.rank(np.diag([2.0, 1.0])) == pytest.approx(9 / 5)


def planted(without, with_points):
    return xr.Dataset(
        {"loss": (("seed", "planted", "step"), np.array([[without, with_points]]))},
        coords={"planted": [0, 5], "step": np.arange(6) * 100},
    )


@pytest.mark.parametrize(
    ("without", "with_points", "passed"),
    [
        ([0.3, 0.2, 0.111, 0.111, 0.111, 0.111], [0.3, 0.2, 0.1, 0.09, 0.08, 0.07], [1, 1, 1]),
        ([0.3, 0.2, 0.11, 0.11, 0.12, 0.11], [0.3, 0.2, 0.15, 0.12, 0.12, 0.111], [1, 0, 0]),
        ([0.3, 0.2, 0.11, 0.11, 0.1, 0.1], [0.3, 0.2, 0.15, 0.12, 0.12, 0.09], [0, 1, 1]),
    ],
)
def test_verdict_on_planted_points(without, with_points, passed):
    checks = planted_fixed_points.judge(planted(without, with_points))
    assert [check.passed for check in checks] == passed


def test_verdict_on_students_needs_both_ranks():
    scales, n = np.array([0.0, 0.5, 1.0]), len(students.RANKS)
    start = np.tile([[4.0], [3.0], [2.0]], n)
    found = xr.Dataset(
        {
            "start_rank": (("seed", "scale", "quantity"), start[None]),
            "rank": (("seed", "student", "step", "quantity"), start[None, None]),
        },
        coords={"scale": scales, "quantity": list(students.RANKS), "student": [1.0]},
    )
    assert all(check.holds for check in student_teacher_ranks.judge(found))
    turned = found.copy(deep=True)
    turned.start_rank.loc[{"quantity": "space"}] = np.array([[2.0, 3.0, 4.0]])
    held = [check.holds for check in student_teacher_ranks.judge(turned)]
    assert held == [True, False, False, True, True]


def test_verdict_on_attention_is_for_narrow_inputs():
    sizes = [1, 4, 16, 1000]
    found = xr.Dataset(
        {
            "input_rank": (("seed", "input_size"), [[1.0, 3.9, 15.0, 200.0]]),
            "ntk_rank": (("seed", "input_size"), [[2.0, 3.0, 9.0, 190.0]]),
        },
        coords={"input_size": sizes},
    )
    assert all(check.holds for check in attention_rank.judge(found))
    found.ntk_rank[0, 2] = 26
    assert [check.holds for check in attention_rank.judge(found)] == [True, False]
