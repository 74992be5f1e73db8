"""What the figures of the KPFlow paper show at initialisation, and how other definitions differ."""

import pytest
import torch

import kpops


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    rnn = torch.nn.RNN(3, 256, batch_first=True)  # PyTorch's weights: g = 1
    task = kpops.tasks.memory_pro(20, angles="even", noise=0)
    return kpops.linearize(rnn, task.inputs)


def over_time(op, kind):
    return float(kpops.effective_rank(op, kind, keep=("time",)).estimate)


def test_initial_ranks_over_time_are_those_of_the_poster(lin):
    assert over_time(lin.K, "variance") == pytest.approx(0.96, abs=0.01)
    assert 82 < over_time(lin.P @ lin.P.H, "variance") < 86
    assert 82 < over_time(lin.P, "variance") < 86
    assert over_time(lin.flow, "variance") == pytest.approx(0.96, abs=0.01)


def test_without_reduction_the_participation_ratio_tells_another_story(lin):
    ranks = {
        name: float(kpops.effective_rank(op, rng=0).estimate)
        for name, op in {"K": lin.K, "P": lin.P, "flow": lin.flow}.items()
    }
    # K and the flow operator have a direction per unit, about; P has half of its 460,800.
    assert 300 < ranks["K"] < 450
    assert 130 < ranks["flow"] < 220
    assert 180_000 < ranks["P"] < 240_000
