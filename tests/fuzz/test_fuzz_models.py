"""Models of every family on every engine, against autograd on the module's own forward."""

import numpy as np
import torch
from drawn import Case, cases, labelled, linearizable
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kpops

TOLERANCE = 1e-10


def compare(tally, lin, pairs, size=None):
    """Assert that operators are their matrices, and that products agree, relative to `size`."""
    for op, expected in pairs:
        # Where a derivative vanishes (the norm of one unit) what is left is rounding of its terms.
        bound = TOLERANCE * max(float(expected.norm()) if size is None else size, 1e-4)
        u, v = (torch.randn(s, 2, dtype=expected.dtype) / s**0.5 for s in reversed(expected.shape))
        for ours, theirs in [
            (torch.from_numpy(op.to_dense()), expected),
            (op @ u, expected @ u),
            (op.H @ v, expected.T @ v),
        ]:
            assert float((ours - theirs).norm()) <= 4 * bound, (lin, op)
        tally(comparisons=3)


def selected(data, lin, flow):
    """A selection along every dim, and its part of the dense matrix."""
    parts = {
        dim: data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
        for dim, size in lin.space.sizes.items()
    }
    index = torch.arange(lin.space.size).reshape(lin.space.shape)
    picked = index[np.ix_(*parts.values())].reshape(-1)
    return lin.flow.select(**parts), flow[picked][:, picked]


def reduced(data, lin, flow):
    """A partial trace, and the sum over equal positions in the dense matrix."""
    dims, shape = lin.space.dims, lin.space.shape
    keep = data.draw(st.lists(st.sampled_from(dims), min_size=1, max_size=2, unique=True))
    letters = dict(zip(dims, "abc", strict=True))
    right = "".join(s.upper() if d in keep else s for d, s in letters.items())
    out = "".join(s for d, s in letters.items() if d in keep)
    summed = torch.einsum(f"abc{right}->{out}{out.upper()}", flow.reshape(*shape, *shape))
    op = lin.flow.partial_trace(tuple(keep))
    return op, summed.reshape(op.shape)


@cases(25)
@given(case=linearizable(), data=st.data())
def test_operators_are_the_dense_jacobians(tally, case: Case, data):
    learning = [p for p in case.model.parameters() if p.requires_grad]
    valid = case.valid[..., None].expand(case.states.shape).reshape(-1, 1)
    P, D = case.jacobian(case.states, [case.kicks]), case.jacobian(case.states, learning)
    J = valid * torch.linalg.solve(P, D)
    P, D = valid * P * valid.T, valid * D
    lin = case.linearize()
    engine = data.draw(st.sampled_from(sorted(lin.memory_estimate())))
    measure = data.draw(st.sampled_from(["sum", "mean"]))
    lin = case.linearize(engine=engine, measure=measure)
    states = torch.from_numpy(lin.states.values).reshape(-1, 1)
    assert (states - valid * case.states.reshape(-1, 1)).abs().max() < 1e-12
    scale = 1.0 if measure == "sum" else 1.0 / int(case.valid.sum())
    K, flow = scale * J @ J.T, scale * D @ D.T
    columns = J.split([p.numel() for p in learning], dim=1)
    by_parameter = [
        (op, scale * c @ c.T) for op, c in zip(lin.K_by_parameter.values(), columns, strict=True)
    ]
    pairs = [(lin.P, P), (lin.J, J), (lin.sensitivity, D), (lin.K, K), (lin.flow, flow)]
    compare(tally, lin, pairs)
    compare(tally, lin, by_parameter, scale * float(J.norm()) ** 2)
    parts = [selected(data, lin, flow), reduced(data, lin, flow)]
    compare(tally, lin, parts, float(flow.norm()) * lin.space.size**0.5)
    tally(cases=1)


@cases(10)
@given(case=linearizable(), data=st.data())
def test_what_a_gradient_step_does(tally, case: Case, data):
    learning = [p for p in case.model.parameters() if p.requires_grad]
    lin = case.linearize()
    hidden = lin.recurrence.output(case.states)
    torch.manual_seed(0)
    layers = [nn.Linear(hidden.shape[-1], 2), nn.Tanh()][: data.draw(st.integers(1, 2))]
    readout = nn.Sequential(*layers).double()
    lin = case.linearize(readout=readout)
    outputs = readout(hidden)
    targets = torch.randn(outputs.shape, dtype=torch.float64)
    weights = case.valid[..., None].to(outputs)
    loss = (weights * (outputs - targets).square()).sum() / (2 * int(case.valid.sum()))
    gradient = case.jacobian(loss[None], learning)[0]
    D = case.valid.repeat_interleave(case.states.shape[-1], 1).reshape(-1, 1) * case.jacobian(
        case.states, learning
    )
    flow = kpops.gradient_flow(lin, labelled(targets))
    assert abs(flow.loss.item() - loss.item()) <= TOLERANCE * loss.item()
    for ours, theirs, size in [
        (flow.parameter_step, -gradient, gradient.norm()),
        (flow.state_change, -D @ gradient, D.norm() * gradient.norm()),
    ]:
        gap = torch.from_numpy(ours.values).reshape(-1) - theirs
        assert float(gap.norm()) <= TOLERANCE * max(float(size), 1e-4), lin
    through = case.jacobian(outputs, [*learning, *readout.parameters()])
    through = case.valid.repeat_interleave(outputs.shape[-1], 1).reshape(-1, 1) * through
    compare(tally, lin, [(lin.output_ntk, through @ through.T)])
    tally(cases=1, comparisons=3)
