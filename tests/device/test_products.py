"""Matvecs on a device: equal to those of the CPU, never waiting, sharing no memory."""

from functools import partial

import pytest
import simulated
import torch
from cases import INPUTS
from dense import relative
from linearized import MODELS, linearized, parametrized
from torch import nn
from torch.nn.utils import parametrizations

import kpops
from kpops.dynamics import resolvent

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's

CURVATURE = {"ggn", "hessian"}
OPERATORS = ["P", "P_inv", "J", "K", "flow", "sensitivity", "C", "output_ntk", *sorted(CURVATURE)]
SELF_ADJOINT = {"K", "flow", "output_ntk", *CURVATURE}
PRODUCTS = OPERATORS + [f"{name}*" for name in OPERATORS if name not in SELF_ADJOINT]
CASES = [
    (name, engine, with_mask)
    for name, (_, engines) in MODELS.items()
    for engine in engines
    for with_mask in ([False, True] if engine == engines[0] else [False])
]


def operator(lin, product):
    op = getattr(lin, product.rstrip("*"))
    op = op(0.5 * lin.outputs) if product in CURVATURE else op
    return op.H if product.endswith("*") else op


@pytest.mark.parametrize(("name", "engine", "with_mask"), CASES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_matvecs_equal_those_of_the_cpu_and_do_not_wait(name, engine, with_mask, product):
    if product == "hessian" and name in ("weight_norm", "orthogonal_square"):
        pytest.skip("torch's second derivative of weight_norm is wrong, of matrix_exp waits")
    op = operator(linearized(name, engine, with_mask=with_mask), product)
    on_cpu = operator(linearized(name, engine, "cpu", with_mask=with_mask), product)
    rng = torch.Generator().manual_seed(1)
    blocks = [torch.randn(n, *op.domain.shape, generator=rng, dtype=op.torch_dtype) for n in (1, 5)]
    expected = [on_cpu.apply(block) for block in blocks]
    arguments = [block.to(op.device) for block in blocks]
    for argument in arguments:
        op.apply(argument)  # what is made at first use may wait
    with simulated.watched(forbidden=True):
        images = [op.apply(argument) for argument in arguments * 2]
    for image, there in zip(images, expected * 2, strict=True):  # none was overwritten meanwhile
        assert image.device == op.device
        assert relative(image.cpu(), there) < 1e-12
    assert all(torch.equal(a.cpu(), b) for a, b in zip(arguments, blocks, strict=True))


LARGE = 40  # M of such a weight is not kept as a matrix
MADE = {
    "exponential": parametrizations.orthogonal,
    "cayley": partial(parametrizations.orthogonal, orthogonal_map="cayley"),
    "householder": partial(parametrizations.orthogonal, orthogonal_map="householder"),
    "free": partial(parametrizations.orthogonal, use_trivialization=False),
    "weight norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("engine", ["gated", "jacobian"])
@pytest.mark.parametrize("name", MADE)
def test_matvecs_through_large_weights_that_are_made_do_not_wait(name, engine):
    torch.manual_seed(0)
    model = parametrized(MADE[name], nn.RNN, LARGE).double()
    with torch.no_grad():
        for weight in model.parametrizations["weight_hh_l0"].parameters():
            weight += 0.3 * torch.randn_like(weight).tril(-1)
    inputs = torch.randn(2, 3, INPUTS, dtype=torch.float64)
    lin, on_cpu = (
        kpops.linearize(model, inputs, engine=e, device=d)
        for e, d in ((engine, simulated.NAME), ("autodiff", "cpu"))
    )
    for product in ("J", "J*", "K", "P", "P*", "flow", "sensitivity", "sensitivity*"):
        op, reference = (operator(each, product) for each in (lin, on_cpu))
        q = torch.randn(3, *op.domain.shape, dtype=torch.float64)
        blocks = [block.to(op.device) for block in (q, q[:1])]
        for block in blocks:
            op.apply(block)  # what is made at first use may wait
        with simulated.watched(forbidden=True):
            images = [op.apply(block) for block in blocks]
        assert all(relative(x.cpu(), reference.apply(q)[: len(x)]) < 1e-12 for x in images)


def operator_at(lin, product):
    if product == "channel":
        return kpops.critical_channel(lin)
    if product == "rule":
        return kpops.learning_rule(lin, "critical channel", damping=0.1)
    return operator(lin, product)


@pytest.mark.parametrize("by_factors", [True, False])
@pytest.mark.parametrize("product", ["P", "P*", "P_inv", "flow", "channel", "rule"])
def test_matvecs_at_fixed_points_equal_those_of_the_cpu(product, by_factors, monkeypatch):
    monkeypatch.setattr(resolvent, "is_cheap", lambda size: by_factors)
    torch.manual_seed(0)
    cell, h = nn.RNNCell(2, 20).double(), torch.zeros(3, 20).double()
    for _ in range(200):
        h = cell(torch.zeros(3, 2).double(), h).detach()
    op = operator_at(kpops.linearize_at(cell, h, device=simulated.NAME), product)
    on_cpu = operator_at(kpops.linearize_at(cell, h), product)
    q = torch.randn(4, 3, 1, 20).double()
    argument = q.to(op.device)
    op.apply(argument)  # what is made at first use may wait
    with simulated.watched(forbidden=by_factors):
        image = op.apply(argument)
    assert relative(image.cpu(), on_cpu.apply(q)) < 1e-12


def test_branches_on_a_device_are_those_of_the_cpu():
    W = torch.diag(torch.tensor([0.8, 0.3, -0.5], dtype=torch.float64))

    def follow(device):
        cell, weights = nn.RNNCell(1, 3, bias=False).double(), W.to(device)
        rest = torch.zeros(1, 3, dtype=torch.float64)
        options = {"device": device, "step": 0.1, "switch": True}
        path = lambda g: {"weight_hh": g * weights}  # noqa: E731
        return kpops.continuation(cell, rest, path, (0.5, 1.6), **options)

    there, here = follow(simulated.NAME), follow("cpu")
    assert there.kind.values.tolist() == here.kind.values.tolist() == ["pitchfork"]
    for name in ("state", "parameter", "eigenvalue_real", "event_parameter", "coefficient"):
        torch.testing.assert_close(
            *(torch.from_numpy(r[name].values) for r in (there, here)), equal_nan=True
        )
