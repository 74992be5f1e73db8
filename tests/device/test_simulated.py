"""The simulated device refuses what a GPU refuses, and computes what the CPU computes."""

import copy
import pickle

import pytest
import simulated
import torch
from torch import nn

HERE = torch.device("simulated", 0)


def draw(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def test_operands_on_two_devices_are_refused():
    x = draw(2, 2).to(HERE)
    for mixed in (lambda: x + draw(2), lambda: draw(2, 2) @ x, lambda: torch.cat([x, draw(2, 2)])):
        with pytest.raises(RuntimeError, match="on cpu, others on simulated"):
            mixed()
    with pytest.raises(RuntimeError, match="addmm takes tensors of shapes"):
        nn.Linear(2, 2).double()(x)
    with pytest.raises(RuntimeError, match="takes a generator on cpu"):
        x.normal_(generator=torch.Generator())
    number = torch.tensor(2.0, dtype=torch.float64)  # which is passed to a kernel
    assert torch.equal((number * x).cpu(), 2 * x.cpu())


def test_waits_and_copies_are_counted():
    x = draw(3, 3).to(HERE)
    with simulated.watched() as (waits, copies):
        _ = x.cpu(), float(x.sum()), x[x > 0], bool((x > 0).any()), x.nonzero(), x.tolist()
        torch.linalg.svd(x), torch.linalg.eigh(x @ x.T), torch.linalg.solve(x, x)
        torch.linalg.cholesky_ex(x), torch.linalg.qr(x), x + 1, x[:, 1:], x.clone()
        assert (waits.total(), copies.total()) == (9, 0)
        x.copy_(draw(3, 3))
        _ = torch.tensor([1.0], device=HERE), x[torch.tensor([0, 1])]
        assert (waits.total(), copies.total()) == (9, 3)
    with simulated.watched(forbidden=True):
        with pytest.raises(RuntimeError, match="_local_scalar_dense waits for the device"):
            x.sum().item()
        with pytest.raises(RuntimeError, match="copy_ copies to the device"):
            draw(3).to(HERE)


def test_recordings_replay_on_the_same_memory_and_refuse_waits():
    weight = draw(3, 3).to(HERE)

    def action(q):
        v = torch.zeros_like(q)
        for t in range(1, 3):
            v[t] = (v[t - 1] + q[t]) @ weight
        return v

    q, other = (draw(3, 3, seed=seed).to(HERE) for seed in (1, 2))
    recording = simulated.record(action, q.clone())
    for argument in (q, other, q):
        recording.argument.copy_(argument)
        recording.replay()
        assert torch.equal(recording.result, action(argument))
    for waiting in (lambda q: q * q.sum().item(), lambda q: q + torch.ones(3).to(HERE)):
        with pytest.raises(RuntimeError, match="waits for the device"):
            simulated.record(waiting, q)


def test_copies_and_pickles_are_parameters_on_the_device():
    layer = nn.Linear(2, 3).to(HERE)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(again.weight, nn.Parameter) and again.weight.device == HERE
        assert torch.equal(again.weight, layer.weight)
        with torch.no_grad():
            again.weight.zero_()
        assert not torch.equal(again.weight, layer.weight)
    assert layer.double().weight.dtype == torch.float64


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell])
def test_derivatives_are_those_of_the_cpu(cell):
    torch.manual_seed(0)
    here = cell(2, 3).double()
    there = copy.deepcopy(here).to(HERE)
    x, h, g = draw(4, 2), draw(4, 3, seed=1), draw(4, 3, seed=2)
    gradients = torch.autograd.grad(here(x, h), here.parameters(), g)
    on_device = torch.autograd.grad(there(x.to(HERE), h.to(HERE)), there.parameters(), g.to(HERE))
    for expected, found in zip(gradients, on_device, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's, at first use
def test_forward_mode_and_vmap_are_those_of_the_cpu():
    def jacobian(x):
        return torch.func.vmap(lambda v: torch.func.jvp(torch.tanh, (x,), (v,))[1])(
            torch.eye(4, dtype=x.dtype, device=x.device)
        )

    x = draw(4)
    assert torch.equal(jacobian(x.to(HERE)).cpu(), jacobian(x))
