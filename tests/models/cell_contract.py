"""What every model has to keep, against autograd on its own forward alone."""

import torch
from cases import ANY_MODEL, ENGINES
from dense import relative
from torch import Tensor, nn

import kpops
from kpops.testing import check_linearization


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


def unrolled(model: nn.Module, inputs: Tensor, h0: Tensor) -> Tensor:
    """States (trial, time, unit) by the model's own forward, step by step."""
    states, h = [], h0
    for x in inputs.unbind(1):
        h = model(x, h)
        states.append(h)
    return torch.stack(states, 1)


def sensitivity(model: nn.Module, states: Tensor) -> Tensor:
    """D = dh/dtheta, a row for each state and a column for each entry of ``named_parameters``."""
    parameters = list(model.parameters())
    rows = []
    for state in states.flatten():
        gradients = torch.autograd.grad(
            state, parameters, retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


def assert_contract(
    model: nn.Module, inputs: Tensor, states: Tensor, *, gated: bool, h0: Tensor | None = None
) -> None:
    """Check all engines that serve the model; `states` are those of its own forward, with graph."""
    D = sensitivity(model, states)
    for engine in ENGINES if gated else ANY_MODEL:
        lin = kpops.linearize(model, inputs, h0=h0, engine=engine)
        assert list(lin.parameters) == [name for name, _ in model.named_parameters()]
        errors = {
            "states": relative(lin.states.values, states.detach()),
            "P J": relative(lin.sensitivity.to_dense(), D),
            "P K P*": relative(lin.flow.to_dense(), D @ D.T),
        }
        assert max(errors.values()) < 1e-10, (engine, errors)
        check_linearization(lin)
    single = kpops.linearize(model, inputs, h0=h0, dtype=torch.float32)
    assert single.engine.name == ("gated_numba" if gated else "jacobian")
    assert single.states.dtype == "float32"
    check_linearization(single)
