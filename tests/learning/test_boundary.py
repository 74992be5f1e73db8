"""What users bring to learning that would give other numbers than they think is refused by name."""

import copy

import pytest
import torch
import xarray as xr
from torch import nn

import kpops


@pytest.fixture
def gru():
    torch.manual_seed(0)
    return nn.GRU(3, 4, batch_first=True)


LENGTHS = (2, 5)


@pytest.fixture
def padded(gru):
    """Trials of 2 and of 5 steps."""
    readout = nn.Linear(4, 2)
    return kpops.linearize(gru, [torch.randn(n, 3) for n in LENGTHS], readout=readout)


def test_a_loss_that_reads_padding_is_refused(padded):
    labels = torch.tensor([0, 1])

    def last(y, label):
        return nn.functional.cross_entropy(y[:, -1], label)

    with pytest.raises(ValueError, match=r"padded steps, first of trial 0 at step 4.*weights"):
        kpops.gradient_flow(padded, labels, last)


def test_the_last_valid_step_is_read_as_the_message_says(padded):
    labels = torch.tensor([0, 1])

    def last(y, label, weights):
        ends = y[range(len(y)), (weights > 0).sum(1) - 1]
        return nn.functional.cross_entropy(ends, label)

    flow = kpops.gradient_flow(padded, labels, last)
    outputs = torch.from_numpy(padded.outputs.values)
    own = torch.stack([outputs[i, n - 1] for i, n in enumerate(LENGTHS)])
    assert float(flow.loss) == pytest.approx(float(nn.functional.cross_entropy(own, labels)))
    assert flow.error[0, 1].any()
    assert not flow.error[0, 2:].any()


def test_a_loss_of_parameters_is_refused(gru):
    lin = kpops.linearize(gru, torch.randn(2, 5, 3))

    def decayed(y, target):
        return (y - target).square().mean() + gru.weight_hh_l0.square().sum()

    with pytest.raises(ValueError, match=r"requires grad, of shape \(12, 4\).*weight decay"):
        kpops.gradient_flow(lin, torch.zeros(2, 5, 4), decayed)


def test_a_loss_that_takes_time_for_classes_is_refused(gru):
    lin = kpops.linearize(gru, torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match=r"model \(CrossEntropyLoss\).*loss='cross_entropy'"):
        kpops.gradient_flow(lin, torch.zeros(2, 4, dtype=torch.long), nn.CrossEntropyLoss())


def test_a_random_loss_is_refused(gru):
    lin = kpops.linearize(gru, torch.randn(2, 5, 3))

    def dropped(y, target):
        return (nn.functional.dropout(y, 0.5) - target).square().mean()

    with pytest.raises(ValueError, match="draws random numbers"):
        kpops.gradient_flow(lin, torch.zeros(2, 5, 4), dropped)


def test_targets_of_a_list_of_trials_need_labels_where_sizes_are_equal():
    torch.manual_seed(0)
    gru = nn.GRU(3, 5)  # reads (time, trial, feature)
    trials = [torch.randn(n, 3) for n in (4, 3, 4, 2)]
    lin = kpops.linearize(gru, trials)
    targets = torch.randn(4, 4, 5)
    assert "a list of trials" in repr(lin)
    with pytest.raises(ValueError, match=r"targets has shape \(4, 4, 5\).*a list of trials"):
        kpops.gradient_flow(lin, targets)
    flow = kpops.gradient_flow(lin, xr.DataArray(targets.numpy(), dims=("trial", "time", "unit")))
    states = torch.stack([nn.functional.pad(gru(x)[0], (0, 0, 0, 4 - len(x))) for x in trials])
    valid = torch.tensor([[t < len(x) for t in range(4)] for x in trials])
    own = ((states - targets)[valid] ** 2).mean()
    assert float(flow.loss) == pytest.approx(own.item(), rel=1e-5)


def test_checkpoints_that_share_their_memory_are_refused(gru):
    live = [(step, gru.state_dict()) for step in (0, 10)]
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"steps 0 and 10 are the same tensors.*deepcopy"):
        kpops.over_training(gru, live, x, lambda lin: {"v": 1.0})
    kept = [(step, copy.deepcopy(state)) for step, state in live]
    assert kpops.over_training(gru, kept, x, lambda lin: {"v": 1.0}).sizes == {"step": 2}


def test_what_holds_of_one_variable_stays_with_it(gru):
    x = xr.DataArray(torch.zeros(2, 5, 3).numpy(), {"subject": "m1"}, ("trial", "time", "input"))

    def measure(lin):
        ranks = {
            kind: kpops.effective_rank(lin.flow, kind).estimate
            for kind in ("participation", "entropy")
        }
        return {**ranks, "n": 1.0}

    followed = kpops.over_training(gru, [(0, gru.state_dict())], x, measure)
    for kind in ("participation", "entropy"):
        attrs = followed[kind].attrs
        assert (attrs["kind"], attrs["operator"], attrs["subject"]) == (kind, "P K P*", "m1")


def test_bounds_keep_the_scalar_coordinates_of_the_inputs(gru):
    values = torch.randn(2, 5, 3).numpy()
    x = xr.DataArray(values, {"subject": "m1"}, ("trial", "time", "input"))
    assert kpops.rank_bounds(kpops.linearize(gru, x)).subject.item() == "m1"
