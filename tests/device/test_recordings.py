"""Recorded loops over time: the same as plain ones, and never with a wait inside."""

import pytest
import simulated
import torch
from dense import relative
from linearized import MODELS, linearized

from kpops.engines.cuda_graph import _RefuseWaits

GATED = [name for name, (_, engines) in MODELS.items() if "gated" in engines]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's


@pytest.mark.parametrize("name", GATED)
def test_recorded_loops_equal_plain_ones(name, monkeypatch):
    lin = linearized(name, "gated")
    rng = torch.Generator().manual_seed(2)
    blocks = [torch.randn(n, *lin.space.shape, generator=rng, dtype=lin.dtype) for n in (1, 3)]
    arguments = [block.to(lin.device) for block in blocks * 2]
    operators = (lin.P, lin.P.H, lin.flow)
    recorded = [op.apply(q) for q in arguments for op in operators]
    assert lin.engine._recorder._recordings
    monkeypatch.setattr(lin.engine, "_record", lambda name, action, q: action(q))
    plain = [op.apply(q) for q in arguments for op in operators]
    assert all(torch.equal(a, b) for a, b in zip(recorded, plain, strict=True))


def test_loops_that_run_autograd_are_not_recorded():
    lin = linearized("gru", "gated recomputed")
    q = torch.ones(1, *lin.space.shape, dtype=lin.dtype, device=lin.device)
    for _ in range(3):
        lin.flow.apply(q)
    assert not lin.engine._recorder._recordings


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x * torch.tensor(0.9, device=x.device),
        lambda x: x * x.new_tensor([0.9]),
        lambda x: x[:, [1, 0]],
        lambda x: x.index_select(1, torch.tensor([1, 0]).to(x.device)),
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
    ],
)
def test_copies_from_and_to_the_host_are_refused_before_a_recording(act):
    x = torch.eye(2).to(simulated.NAME)
    with pytest.raises(RuntimeError, match="waits for the device"), _RefuseWaits():
        act(x)


def test_a_weight_whose_parametrisation_waits_is_computed_outside_of_the_loop():
    lin, on_cpu = (linearized("orthogonal_square", "gated", d) for d in (simulated.NAME, "cpu"))
    q = torch.randn(
        3, *lin.space.shape, dtype=lin.dtype, generator=torch.Generator().manual_seed(3)
    )
    for op, expected in ((lin.P, on_cpu.P), (lin.P.H, on_cpu.P.H), (lin.P_inv, on_cpu.P_inv)):
        argument = q.to(lin.device)
        op.apply(argument)
        with simulated.watched(forbidden=True):
            images = [op.apply(argument) for _ in range(3)]
        assert all(relative(image.cpu(), expected.apply(q)) < 1e-12 for image in images)
    assert lin.engine._recorder._recordings
