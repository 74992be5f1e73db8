"""The training of the KPFlow paper, and what is measured of its networks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from reproduction import protocol
from reproduction.rows import batches, collapse, pro_anti, scales

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def test_gradients_are_scaled_down_before_adam_sees_them():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = protocol.clipped_adam([weight], 0.1, clip=1e-4)
    weight.grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step()
    assert float(weight.grad.norm()) == pytest.approx(1e-4, rel=1e-3)
    free = protocol.clipped_adam([weight], 0.1)
    weight.grad = torch.tensor([3.0, 0.0, 4.0])
    free.step()
    assert float(weight.grad.norm()) == 5


def test_training_ends_by_the_mean_of_a_loss_and_that_of_the_last_twentieth():
    losses = [1.0] * 60 + [0.4] + [1.0] * 20
    assert not protocol.is_learned(60, losses, 0.7)  # against the loss of step 40
    assert not protocol.is_learned(61, losses, 0.7)
    assert protocol.is_learned(61, [*losses[:61], 0.9], 0.7)
    assert not protocol.is_learned(20, [0.0] * 21, 0.7)


def test_a_training_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol.networks, "CACHE", tmp_path)
    settings = {"units": 5, "batch_size": 4, "n_trials": 8, "checkpoint_every": 2}
    short = protocol.Protocol("memory_pro", max_steps=2, **settings)
    long = protocol.Protocol("memory_pro", max_steps=4, **settings)
    assert [step for step, _ in short.train(0)] == [0, 2]
    assert [step for step, _ in long.train(0)] == [0, 2, 4]
    assert len(long.losses(0)) == 5
    assert [step for step, _ in short.train(0)] == [0, 2]  # of the longer one
    assert short.folder(0) == long.folder(0) != long.folder(1)


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    network = kpops.Network(torch.nn.GRU(3, 6), torch.nn.Linear(6, 3)).double()
    task = kpops.tasks.memory_pro(4, angles="even", noise=0, steps=(8, 8, 8), dtype="float64")
    return kpops.linearize(network, task.inputs)


def share_rank(values, top, threshold=0.95):
    """Count of the leading values that hold a fraction of the squares, with interpolation."""
    squares = np.sort(values)[::-1][:top] ** 2
    held = np.concatenate([[0], np.cumsum(squares)]) / squares.sum()
    return np.interp(threshold, held, np.arange(len(held)))


def test_ranks_of_the_figure_are_those_of_dense_matrices(lin):
    P, K = (op.to_dense() for op in (lin.P, lin.K))

    def over_time(matrix):
        parts = matrix.reshape(4, 24, 6, 4, 24, 6).sum((3, 5)).mean((0, 2))
        return np.linalg.eigvalsh(parts)

    found = collapse.ranks(lin)
    for operator, rule, values, top in (
        ("P", 0, over_time(P @ P.T), 60),
        ("K", 0, over_time(K @ K.T), 20),
        ("P", 1, over_time(P @ P.T), None),
        ("K", 1, over_time(K), None),
    ):
        ours = found.sel(operator=operator, rule=collapse.RULES[rule])
        assert float(ours) == pytest.approx(share_rank(values, top), rel=1e-8)
    dense = K.reshape(96, 6, 96, 6).sum((1, 3)) / 6
    held = np.cumsum(np.linalg.eigvalsh(dense)[::-1]) / np.trace(dense)
    needed = collapse.modes_needed(lin).modes_needed.sel(reduction="trial, time")
    assert needed.sel(weight="eigenvalue") == np.argmax(held >= 0.9) + 1


def course(P, K, iterations):
    """A file of ranks (seed, cell, checkpoint, operator, rule) with two equal seeds."""
    values = np.stack([P, K], 1)[None, None, :, :, None] * np.ones((2, 1, 1, 1, 2))
    dims = ("seed", "cell", "checkpoint", "operator", "rule")
    steps = np.array(iterations, float)[None, None] * np.ones((2, 1, 1))
    return xr.Dataset(
        {"rank": (dims, values), "iteration": (("seed", "cell", "checkpoint"), steps)},
        {"cell": ["gru"], "operator": ["P", "K"], "rule": list(collapse.RULES)},
    )


@pytest.mark.parametrize("task", ["memory_pro", "flip_flop"])
def test_the_course_of_the_figure_is_reproduced_and_another_is_not(task):
    known = collapse.FIGURE[task]
    steps = 100 * np.arange(len(known))
    row = {"memory_pro": collapse.MEMORY_PRO, "flip_flop": collapse.FLIP_FLOP}[task]
    found = course(known, np.ones(len(known)), steps)
    assert row.verdict(found) == "reproduced"
    assert collapse.collapsed(found) == [{"memory_pro": 1000, "flip_flop": 400}[task]] * 2
    ended = course([*known, np.nan], [*np.ones(len(known)), np.nan], [*steps, np.nan])
    assert row.verdict(ended) == "reproduced"
    if task == "memory_pro":  # on the flip-flop P is at K too often
        assert collapse.ORDER.verdict(ended) == "reproduced"
    never = course(known[:1] * len(known), 9 * np.ones(len(known)), steps)
    assert [c.holds for c in row.judge(never)] == [True, False, False, False, False]
    swapped = course(np.ones(len(known)), known, steps)
    assert collapse.ORDER.verdict(swapped) == "not reproduced"


def test_state_changes_are_compared_in_all_trials():
    torch.manual_seed(0)
    network = kpops.Network(torch.nn.GRU(7, 5), torch.nn.Linear(5, 3)).double()
    task = kpops.tasks.four_task_mix(8, angles="even", noise=0, steps=(2, 2, 2, 2), dtype="float64")
    lin = kpops.linearize(network, task.inputs)
    found = pro_anti.between_changes(lin, task)
    inputs = torch.from_numpy(task.inputs.values)
    outputs = network(inputs)
    targets = torch.from_numpy(task.targets.values)
    weights = list(network.recurrent.parameters())
    changes = []
    for name in found.task.values:
        mine = torch.from_numpy(task.task.values == name)
        loss = ((outputs - targets)[mine] ** 2).sum()
        gradient = torch.autograd.grad(loss, weights, retain_graph=True)
        moved = torch.func.jvp(
            lambda *w: torch.func.functional_call(
                network.recurrent,
                dict(zip(dict(network.recurrent.named_parameters()), w, strict=True)),
                (inputs.transpose(0, 1),),
            )[0],
            tuple(weights),
            gradient,
        )[1]
        changes.append(moved.flatten() / moved.norm())
    expected = torch.stack(changes) @ torch.stack(changes).T
    np.testing.assert_allclose(found.values, expected.detach().numpy(), atol=1e-10)
    cosine = pro_anti.cosines(lin, task).sel(quantity="all trials", pair="Pro/Anti")
    both = [found.sel(task=i, task_in=j) for i, j in pro_anti.PAIRS["Pro/Anti"]]
    assert float(cosine) == pytest.approx(float(sum(both)) / 2, rel=1e-12)


def alike(all_trials, states, gradients):
    """A file of cosines of Pro/Anti over 500 checkpoints; Delay/Memory has half of them, or 0."""
    values = {"all trials": all_trials, "own trials": 0.5, "states": states, "gradients": gradients}
    cosine = np.zeros((2, 500, 2, 4))
    for place, value in enumerate(values.values()):
        cosine[:, :, 0, place] = value
        cosine[:, :, 1, place] = 0.5 * np.asarray(value) if place == 0 else 0
    steps = 10 * np.arange(500.0) * np.ones((2, 1))
    return xr.Dataset(
        {
            "cosine": (("seed", "checkpoint", "pair", "quantity"), cosine),
            "iteration": (("seed", "checkpoint"), steps),
        },
        {"pair": list(pro_anti.PAIRS), "quantity": list(values)},
    )


def test_sums_of_cosines_are_those_of_the_figure():
    turning = np.where(np.arange(500) < 60, -0.3, 0.8)
    found = alike(0.76, turning, 0.5)
    assert pro_anti.ROW.verdict(found) == "reproduced"
    assert pro_anti.turns(found, "states") == [600.0, 600.0]
    assert pro_anti.TURN.verdict(found) == "reproduced"
    assert pro_anti.ROW.verdict(alike(0.3, turning, 0.5)) == "reproduced in part"
    late = pro_anti.TURN.judge(alike(0.76, turning, turning))
    assert [c.holds for c in late] == [True, True, True, False, False]


def test_what_moves_the_collapse_is_told():
    rank = np.full((2, 2, 2, 13), 40.0)
    for clip, first in enumerate(((4, 8), (10, 9))):
        for size, place in enumerate(first):
            rank[:, clip, size, place:] = 1
    found = xr.Dataset(
        {"rank": (("seed", "max_norm", "batch_size", "iteration"), rank)},
        {"max_norm": [0.0, 1e-4], "batch_size": [64, 200], "iteration": 100 * np.arange(13)},
    )
    assert batches.ROW.verdict(found) == "reproduced"
    assert [c.found for c in batches.judge(found)] == ["400", "1,000"]
    found["rank"][:, 0, 1] = found["rank"][:, 0, 0]
    assert [c.holds for c in batches.judge(found)] == [False, True]


def test_a_threshold_is_reached_in_the_first_block_below_it():
    losses = [1.0] * 25 + [0.05] * 25 + [0.02] * 3
    assert scales.reached(losses, 0.06) == 25
    assert scales.reached(losses, 0.03) == 50
    assert scales.reached(losses, 0.01) == np.inf


def test_more_rank_and_more_speed_with_g_is_reproduced_and_the_reverse_is_not():
    names = list(scales.QUANTITIES)
    rising = np.arange(1.0, 5)
    values = np.stack([rising, rising, rising, -rising], 1) * np.ones((3, 2, 1, 1))
    found = xr.Dataset(
        {"quantity": (("seed", "cell", "g", "name"), values)},
        {"cell": ["gru", "rnn"], "g": [0.5, 1, 2, 3], "name": names},
    )
    assert scales.ROW.verdict(found) == "reproduced"
    assert scales.ROW.verdict(-found) == "not reproduced"
    found.quantity[0, 0, :, 3] = np.inf  # never: no relation
    assert [c.passed for c in scales.judge(found)][:4] == [3, 3, 3, 2]
