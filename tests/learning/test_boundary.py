"""What users bring to learning that would give other numbers than they think is refused by name."""

import copy

import numpy as np
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


def test_modes_of_another_operator_are_no_truncation_of_this_one(gru):
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6, 4)
    lin = kpops.linearize(gru, x)
    mean = kpops.linearize(gru, x, measure="mean")
    right = kpops.eigsh(lin.flow, 3, rng=0)
    whole = kpops.truncated_flow(lin, y, k=3, rng=0)
    given = kpops.truncated_flow(lin, y, k=3, modes=right)
    xr.testing.assert_allclose(given.state_change_captured, whole.state_change_captured)
    for modes in (kpops.eigsh(lin.K, 3, rng=0), kpops.eigsh(mean.flow, 3, rng=0)):
        with pytest.raises(ValueError, match="modes are not those of <P K P"):
            kpops.truncated_flow(lin, y, k=3, modes=modes)
        with pytest.raises(ValueError, match="modes are not those of <P K P"):
            kpops.truncate(lin.flow, 3, modes=modes)
    for modes in (
        right.isel(mode=[2, 1, 0]),
        right.isel(mode=[1, 2]),
        kpops.eigsh(lin.flow, 3, which="SA", rng=0),
    ):
        with pytest.raises(ValueError, match=r"modes begins with \[.*pass the leading ones"):
            kpops.truncated_flow(lin, y, k=2, modes=modes)


def test_harm_that_is_not_known_is_no_absence_of_harm():
    names = list("abc")
    change = xr.DataArray(
        np.ones((3, 3, 3)),
        {"step": [0, 5, 20], "task": names, "task_in": names},
        ("step", "task", "task_in"),
    )
    change[1, 0, 1] = np.nan
    total = kpops.accumulate_interference(xr.Dataset({"loss_change": change}))
    others = total.accumulated_from_others
    np.testing.assert_array_equal(others.sel(task="a"), [0, np.nan, np.nan])
    np.testing.assert_array_equal(others.sel(task="b"), [0, 10, 40])
    renamed = change.assign_coords(task_in=["a", "b", "d"])
    with pytest.raises(ValueError, match=r"task is \['a', 'b', 'c'\] and task_in"):
        kpops.accumulate_interference(xr.Dataset({"loss_change": renamed}))


def test_outputs_are_read_by_their_names():
    task = kpops.tasks.memory_pro(4, rng=0)
    perfect = task.targets.sel(output=["cos", "sin", "fixation"])
    assert kpops.tasks.accuracy(task, perfect).correct.all()
    other = perfect.assign_coords(output=["cos", "sin", "fix"])
    with pytest.raises(ValueError, match=r"outputs has the outputs \['cos', 'sin', 'fix'\]"):
        kpops.tasks.accuracy(task, other)


def test_targets_of_other_names_are_not_read_by_position(gru):
    lin = kpops.linearize(gru, torch.randn(2, 5, 3))
    targets = xr.DataArray(np.zeros((2, 5, 4), np.float32), dims=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"targets has dims \('a', 'b', 'c'\)"):
        kpops.gradient_flow(lin, targets)


class Power:
    def __init__(self, power):
        self.power = power

    def __call__(self, outputs, targets):
        return ((outputs - targets).abs() ** self.power).mean()

    def method(self, outputs, targets):
        return self(outputs, targets)


def weighted(weights):
    return lambda outputs, targets: (weights * (outputs - targets) ** 2).mean()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Power(2.0), Power(2.1)),
        (Power(2.0).method, Power(2.1).method),
        (weighted(torch.tensor([1.0, 1, 1])), weighted(torch.tensor([1.0, 1.1, 1]))),
    ],
    ids=["object", "method", "closure"],
)
def test_no_training_goes_on_with_another_loss(tmp_path, before, after):
    task = kpops.tasks.memory_pro(8, rng=0, steps=(3, 3, 3))

    def train(loss, steps):
        torch.manual_seed(0)
        net = kpops.Network(nn.GRU(3, 6, batch_first=True), nn.Linear(6, 3))
        options = {"max_steps": steps, "batch_size": 8, "rng": 3, "checkpoint_every": 2}
        return kpops.training.train(net, task, folder=tmp_path, loss=loss, **options)

    train(before, 4)
    train(before, 6)
    with pytest.raises(ValueError, match="loss"):
        train(after, 8)


def test_weights_that_are_not_finite_are_named(gru):
    with torch.no_grad():
        gru.weight_hh_l0[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight_hh_l0 is not finite"):
        kpops.linearize(gru, torch.randn(2, 5, 3))
