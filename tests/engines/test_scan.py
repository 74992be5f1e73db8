"""The scan over time: the same P as the loop, in fewer rounds; what it takes and refuses."""

import math
import pickle

import pytest
import torch
from cases import BY_NAME
from dense import relative
from torch import nn

import kpops
import kpops.testing
from kpops.engines import scan
from kpops.models import DiagonalRecurrence, DiagonalSSM, SelectiveSSM

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 31, 64, 100]


def linearize(layer, n_trials=2, n_steps=9, dtype=torch.float64, **options):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(n_trials, n_steps, layer.input_size, generator=rng, dtype=dtype)
    return kpops.linearize(layer.to(dtype), inputs, **options)


def block(lin, n_vectors=3):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n_vectors, *lin.space.shape, generator=rng, dtype=lin.dtype)


def by_loop(blocks, q):
    """P q and P* q by the definition; blocks: (row, column, trial, time, unit)."""
    forth, back = (q.unflatten(-1, (len(blocks), -1)).clone() for _ in range(2))
    for t in range(1, q.shape[2]):
        forth[:, :, t] += torch.einsum("rcbn,kbcn->kbrn", blocks[:, :, :, t], forth[:, :, t - 1])
    for t in reversed(range(q.shape[2] - 1)):
        A = blocks[:, :, :, t + 1]
        back[:, :, t] += torch.einsum("rcbn,kbrn->kbcn", A, back[:, :, t + 1])
    return forth.flatten(-2), back.flatten(-2)


@pytest.mark.parametrize("n_steps", LENGTHS)
@pytest.mark.parametrize("n_variables", [1, 2, 3])
def test_scan_and_compiled_pass_equal_the_loop_for_any_blocks(n_variables, n_steps):
    rng = torch.Generator().manual_seed(n_steps)
    blocks = torch.randn(
        n_variables, n_variables, 2, n_steps, 4, generator=rng, dtype=torch.float64
    )
    blocks /= n_variables
    q = torch.randn(3, 2, n_steps, n_variables * 4, generator=rng, dtype=torch.float64)
    forth, back = by_loop(blocks, q)
    before = q.clone()
    rounds = scan.paired(blocks)
    assert len(rounds) == 1 + math.floor(math.log2(n_steps))
    assert relative(scan.recur(rounds, q, backwards=False), forth) < 1e-13
    assert relative(scan.recur(rounds, q, backwards=True), back) < 1e-13
    from kpops.engines.cpu import scan_kernels

    assert relative(scan_kernels.recur(blocks, q, backwards=False), forth) < 1e-14
    assert relative(scan_kernels.recur(blocks, q, backwards=True), back) < 1e-14
    assert torch.equal(q, before)


@pytest.mark.parametrize(
    "layer",
    [
        DiagonalSSM(3, 4, form="real", radius=(0.9, 0.9999), rng=0),
        DiagonalSSM(3, 2, form="complex", radius=(0.9, 0.9999), rng=0),
        SelectiveSSM(3, 2, rng=0),
    ],
    ids=["real", "complex", "selective"],
)
def test_scan_engine_and_loop_engine_agree_over_a_thousand_steps(layer, device):
    lin = linearize(layer, n_steps=1000, device=device)
    loop = linearize(layer, n_steps=1000, device=device, engine="jacobian")
    assert lin.engine.name == "scan"
    q = block(lin).to(device)
    for ours, theirs in [(lin.P, loop.P), (lin.P.H, loop.P.H), (lin.P_inv, loop.P_inv)]:
        assert relative(ours.apply(q), theirs.apply(q)) < 1e-12
    assert relative(lin.P_inv.H.apply(q), loop.P_inv.H.apply(q)) < 1e-12
    rounds = lin.engine.rounds  # on the CPU too
    assert relative(scan.recur(rounds, q, backwards=False), loop.P.apply(q)) < 1e-12
    assert relative(scan.recur(rounds, q, backwards=True), loop.P.H.apply(q)) < 1e-12


def test_products_of_jacobians_may_underflow():
    layer = DiagonalSSM(1, 2, form="real", rng=0)
    with torch.no_grad():
        layer.log_rate.fill_(math.log(50.0))  # a = exp(-50), whose products are 0 in no time
    lin = linearize(layer, n_trials=1, n_steps=100)
    q = block(lin)
    assert lin.engine.rounds[-1].abs().max() == 0
    expected = q.clone()
    expected[:, :, 1:] += math.exp(-50) * q[:, :, :-1]
    assert relative(scan.recur(lin.engine.rounds, q, backwards=False), expected) < 1e-15
    assert relative(lin.P.apply(q), expected) < 1e-15


def test_masked_steps_are_left_out():
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    lin = linearize(DiagonalSSM(3, 2, rng=0), mask=mask)
    loop = linearize(DiagonalSSM(3, 2, rng=0), mask=mask, engine="jacobian")
    kpops.testing.check_linearization(lin)
    for ours, theirs in [(lin.P, loop.P), (lin.flow, loop.flow)]:
        assert relative(ours.to_dense(), theirs.to_dense()) < 1e-12


@pytest.mark.parametrize("form", ["real", "complex"])
def test_gramians_see_the_same_jacobians(form):
    lin = linearize(DiagonalSSM(3, 4, form=form, rng=0))
    norm = float(kpops.frobenius_norm(lin.P).estimate)
    assert abs(norm / float(torch.from_numpy(lin.P.to_dense()).norm()) - 1) < 1e-12


def test_repr_and_memory_estimate_tell_of_the_scan():
    lin = linearize(DiagonalSSM(3, 4, rng=0))
    assert "engine scan: no two units are coupled; keeps" in repr(lin)
    # Two numbers for each variable and variable of its unit, 24 for J: of 2 * 9 * 8 in float64.
    assert lin.memory_estimate()["scan"] == 2 * 9 * 8 * 8 * (4 + 24)
    assert list(lin.memory_estimate()) == ["scan", "jacobian", "autodiff"]


def test_stored_blocks_are_no_larger_than_announced():
    lin = linearize(DiagonalSSM(3, 4, rng=0), n_steps=64)
    kept = sum(A.nbytes for A in lin.engine.rounds)
    assert kept <= lin.trajectory.states.nbytes * 4
    q = block(lin)
    again = pickle.loads(pickle.dumps(lin))
    assert "rounds" not in vars(again.engine) and "blocks" not in vars(again.engine)
    assert torch.equal(again.P.apply(q), lin.P.apply(q))


class IndependentCell(nn.Module):
    """A nonlinear recurrence of each unit on its own; with `coupling`, not quite."""

    input_size, state_size = 3, 4

    def __init__(self, coupling=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.gain = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
        self.drive = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.coupling = coupling

    def forward(self, x, h):
        others = self.coupling * h.roll(1, dims=-1)
        return torch.tanh(self.gain * h + x @ self.drive.T + others)


def test_a_users_nonlinear_unitwise_cell_scans():
    recurrence = DiagonalRecurrence(IndependentCell())
    lin = kpops.linearize(recurrence, torch.randn(2, 9, 3, dtype=torch.float64))
    loop = kpops.linearize(IndependentCell(), lin.trajectory.inputs, engine="jacobian")
    assert lin.engine.name == "scan"
    assert loop.engine_reason.startswith("asked for")
    assert relative(lin.flow.to_dense(), loop.flow.to_dense()) < 1e-12
    kpops.testing.check_linearization(lin)


def test_units_that_are_coupled_after_all_are_refused():
    recurrence = DiagonalRecurrence(IndependentCell(coupling=0.1))
    with pytest.raises(ValueError, match="IndependentCell couples units, which its DiagonalRec"):
        kpops.linearize(recurrence, torch.randn(2, 9, 3, dtype=torch.float64))


def test_a_state_that_is_no_whole_number_of_variables_is_refused():
    recurrence = DiagonalRecurrence(IndependentCell(), ("a", "b", "c"))
    with pytest.raises(ValueError, match="IndependentCell has 4 units, which are not 3 variables"):
        kpops.linearize(recurrence, torch.randn(2, 9, 3, dtype=torch.float64))


def test_models_not_known_to_be_diagonal_are_refused():
    case = BY_NAME["shared_norm_cell"]
    inputs, h0 = case.data()
    with pytest.raises(ValueError, match="SharedNormCell is not known to couple no two units"):
        kpops.linearize(case.model(), inputs, h0=h0, engine="scan")
