"""What every model has to keep, against autograd on its own forward alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from cases import serving
from dense import relative
from torch import Tensor, nn

import kpops
from kpops.testing import check_linearization


class Run(NamedTuple):
    """States of a model by its own forward, with their graph, and the kicks added to them.

    All are (trial, time, unit). The kicks are zero: that of a step moves its state, and those after
    it through the model, which is what P says.
    """

    states: Tensor
    kicks: Tensor


def randomised(model: nn.Module, seed: int = 0, scale: float = 0.7) -> nn.Module:
    """The model in float64, with parameters so large that nothing is nearly linear."""
    torch.manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unrolled(step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, h0: Tensor) -> Run:
    """Run ``step(x_t, h)``, which is the model or made of it, through inputs (trial, time, x)."""
    kicks = torch.zeros(*inputs.shape[:2], h0.shape[-1], dtype=h0.dtype, requires_grad=True)
    states, h = [], h0
    for x, kick in zip(inputs.unbind(1), kicks.unbind(1), strict=True):
        h = step(x, h) + kick
        states.append(h)
    return Run(torch.stack(states, 1), kicks)


def jacobian(states: Tensor, variables: list[Tensor]) -> Tensor:
    """A row for each state, a column for each entry of the variables, one after the other."""
    rows = []
    for state in states.flatten():
        gradients = torch.autograd.grad(state, variables, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


def assert_contract(
    model: nn.Module,
    inputs: Tensor,
    run: Run,
    *,
    engine: str = "jacobian",
    h0: Tensor | tuple[Tensor, ...] | None = None,
) -> None:
    """Check the model on all engines that serve it, masked, and in float32.

    `engine` is the one that it has to be taken by; `run` is the model's own way through `inputs`.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    D = jacobian(run.states, list(model.parameters()))
    P = jacobian(run.states, [run.kicks])
    for name in serving(model):
        lin = kpops.linearize(model, inputs, h0=h0, engine=name)
        assert list(lin.parameters) == [name for name, _ in model.named_parameters()]
        assert relative(lin.states.values, run.states.detach()) < 1e-12
        _assert_equal(lin, P, D)
    check_linearization(kpops.linearize(model, inputs, h0=h0))
    _assert_behaves_as_scipys(lin, P, D)

    n_trials, n_steps, _ = run.states.shape
    mask = torch.arange(n_steps) < (n_steps - torch.arange(n_trials)).clamp_min(1)[:, None]
    valid = mask[..., None].expand(run.states.shape).reshape(-1, 1).to(D)
    mask = mask.T if lin.reading.time_first else mask  # as the inputs are
    masked = kpops.linearize(model, inputs, h0=h0, mask=mask)
    assert masked.engine.name == engine
    _assert_equal(masked, P, D, valid)
    _assert_sums_over_parameters(masked, P, D, valid)

    single = kpops.linearize(model, inputs, h0=h0, mask=mask, dtype=torch.float32)
    assert single.engine.name == engine
    assert single.states.dtype == "float32"
    check_linearization(single)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def _assert_equal(lin: kpops.Linearization, P: Tensor, D: Tensor, valid: Tensor | float = 1.0):
    """Compare with P and D = dh/dtheta; J = P^-1 D, K = J J*, and P K P* = D D*."""
    J, dt, D = valid * torch.linalg.solve(P, D), lin.forcing_step, valid * D
    P = P if isinstance(valid, float) else valid * P * valid.T
    expected = {
        "P": (lin.P, dt * P),
        "J": (lin.J, J / dt),
        "K": (lin.K, J @ J.T / dt**2),
        "P J": (lin.sensitivity, D),
        "P K P*": (lin.flow, D @ D.T),
    }
    errors = {name: relative(op.to_dense(), matrix) for name, (op, matrix) in expected.items()}
    assert max(errors.values()) < 1e-10, (lin.engine.name, errors)


def _assert_sums_over_parameters(lin: kpops.Linearization, P: Tensor, D: Tensor, valid: Tensor):
    """Compare each K_j with J_j J_j*, J_j the columns of the j-th parameter."""
    J = valid * torch.linalg.solve(P, D) / lin.forcing_step
    columns = J.split([p.numel() for p in lin.parameters.values()], dim=1)
    for K, J_j in zip(lin.K_by_parameter.values(), columns, strict=True):
        error = torch.from_numpy(K.to_dense()) - J_j @ J_j.T
        assert float(error.norm()) < 1e-10 * float(J.norm()) ** 2, K


def _assert_behaves_as_scipys(lin: kpops.Linearization, P: Tensor, D: Tensor) -> None:
    """The calls that SciPy's solvers make."""
    rng, dt = np.random.default_rng(0), lin.forcing_step
    for op, matrix in ((lin.P, dt * P.numpy()), (lin.sensitivity, D.numpy())):
        u, v = rng.standard_normal((matrix.shape[1], 2)), rng.standard_normal((len(matrix), 2))
        assert op.dtype == np.float64
        assert relative(op.matvec(u[:, 0]), matrix @ u[:, 0]) < 1e-12
        assert relative(op.matmat(u), matrix @ u) < 1e-12
        assert relative(op.rmatvec(v[:, 0]), matrix.T @ v[:, 0]) < 1e-12
        assert relative(op.T @ v, matrix.T @ v) < 1e-12
