"""The arrays of users: what is not real or not there is refused by name, and orders are told."""

import numpy as np
import pytest
import scipy.sparse
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.arrays import as_tensor

TRIALS, STEPS = 4, 6


def gru(batch_first=True, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.GRU(3, 5, batch_first=batch_first, dtype=dtype)


def readout():
    torch.manual_seed(1)
    return nn.Linear(5, 2, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(tensor, *dims):
    return xr.DataArray(tensor.numpy(), dims=dims)


class ComplexCell(nn.Module):
    """h' = tanh(Re(w (x + h))) with w a complex parameter, buffer, or none."""

    input_size = hidden_size = 3

    def __init__(self, kind=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        w = torch.tensor([1j, 1 + 1j, 1], dtype=torch.complex128)
        if kind == "parameter":
            self.w = nn.Parameter(w)
        elif kind == "frozen":
            self.w = nn.Parameter(w, requires_grad=False)
        else:
            self.register_buffer("w", w, persistent=kind == "buffer")

    def forward(self, x, h):
        return torch.tanh(self.scale * (self.w * (x + h)).real)


class ComplexReadout(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, dtype=torch.complex128))

    def forward(self, h):
        return (h * self.weight).real


# Complex numbers are never cast.


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["parameter", "frozen", "buffer", "buffer that is not saved"])
def test_complex_weights_are_refused_and_never_cast(kind, dtype):
    told = r"w of ComplexCell is complex \(torch.complex128\).*two real tensors"
    with pytest.raises(TypeError, match=told):
        kpops.linearize(ComplexCell(kind), draw(TRIALS, STEPS, 3), dtype=dtype)
    with pytest.raises(TypeError, match=told):
        kpops.lyapunov_spectrum(ComplexCell(kind), k=1, n_steps=5, dtype=dtype)
    with pytest.raises(TypeError, match=told):
        kpops.fixed_points(ComplexCell(kind), draw(TRIALS, 3), dtype=dtype)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_complex_readouts_are_refused(dtype):
    with pytest.raises(TypeError, match="weight of ComplexReadout is complex"):
        kpops.linearize(gru(), draw(TRIALS, STEPS, 3), readout=ComplexReadout(), dtype=dtype)


def test_complex_checkpoints_are_refused():
    model = gru()
    states = {name: value * 1j for name, value in model.state_dict().items()}
    with pytest.raises(kpops.MeasureError, match=r"at step 7: weight_ih_l0 .* is complex"):
        kpops.over_training(model, [(7, states)], draw(2, 3, 3), lambda lin: {"a": 1.0})


KINDS = {
    "tensor": lambda tensor, *dims: tensor * 1j,
    "NumPy": lambda tensor, *dims: tensor.numpy() * 1j,
    "list": lambda tensor, *dims: (tensor.numpy() * 1j).tolist(),
    "DataArray": lambda tensor, *dims: labelled(tensor, *dims) * 1j,
}


@pytest.mark.filterwarnings("error::UserWarning")  # torch's, where it drops an imaginary part
@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_complex_arrays_are_refused_by_name(kind, dtype):
    cast = KINDS[kind]
    x, options = draw(TRIALS, STEPS, 3), {"dtype": dtype}

    def refused(name):
        return pytest.raises(TypeError, match=f"{name}.* complex.*two real arrays")

    with refused("inputs"):
        kpops.linearize(gru(), cast(x, "trial", "time", "f"), **options)
    with refused("h0"):
        kpops.linearize(gru(), x, h0=cast(draw(TRIALS, 5), "trial", "unit"), **options)
    with refused("mask"):
        kpops.linearize(gru(), x, mask=cast(torch.ones(TRIALS, STEPS), "trial", "time"), **options)
    with refused("inputs"):
        kpops.lyapunov_spectrum(gru(), k=1, inputs=cast(x, "trial", "time", "f"), **options)
    lin = kpops.linearize(gru(), x, readout=readout())
    with refused("targets"):
        kpops.gradient_flow(lin, cast(draw(TRIALS, STEPS, 2), "trial", "time", "output"))
    task = kpops.tasks.memory_pro(TRIALS, steps=(2, 2, 2), rng=0)
    with refused("outputs"):
        outputs = torch.from_numpy(task.targets.values)
        kpops.tasks.accuracy(task, cast(outputs, "trial", "time", "output"))
    with refused("task.targets"):
        kpops.tasks.accuracy(task.assign(targets=task.targets * 1j), task.targets)


def test_complex_parts_of_other_arguments_are_refused(tmp_path):
    x = draw(TRIALS, STEPS, 3)
    with pytest.raises(TypeError, match="inputs is complex"):
        kpops.linearize(gru(), nn.utils.rnn.pack_sequence([x[0] * 1j]))
    with pytest.raises(TypeError, match=r"inputs\[1\] is complex"):
        kpops.linearize(gru(), [x[0], x[1, :3] * 1j])
    lstm = nn.LSTM(3, 5, batch_first=True, dtype=torch.float64)
    with pytest.raises(TypeError, match="h0 is complex"):
        kpops.linearize(lstm, x, h0=(draw(1, TRIALS, 5), draw(1, TRIALS, 5) * 1j))
    task = kpops.tasks.memory_pro(TRIALS, steps=(2, 2, 2), rng=0)
    network = kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))
    for name in ("inputs", "targets", "mask"):
        with pytest.raises(TypeError, match=f"{name} is complex"):
            kpops.training.train(
                network, task.assign({name: task[name] * 1j}), folder=tmp_path, batch_size=2
            )
    with pytest.raises(TypeError, match="times is complex"):
        kpops.models.NeuralODE(lambda t, h: -h, dt=None).inputs(np.arange(3) * 1j)
    with pytest.raises(TypeError, match="angles is complex"):
        kpops.tasks.memory_pro(2, angles=np.array([1j, 2j]))


def test_operators_act_on_complex_vectors_by_linearity():
    op = kpops.linearize(gru(), draw(2, 3, 3)).P
    q = torch.complex(draw(2, 3, 5), draw(2, 3, 5, seed=1))
    expected = op.to_dense() @ q.numpy().ravel()
    got = op @ q
    assert got.dtype == torch.complex128
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(op @ q.numpy().ravel(), expected, rtol=0, atol=1e-13)


# What else is no array of real numbers.

NO_ARRAYS = {
    "strings": ([["a", "b"]], TypeError, "dtype <U1: strings are no numbers"),
    "nothing": (None, TypeError, "a is None: pass an array of real numbers"),
    "objects": (np.array([None, 1]), TypeError, "a is of dtype object: pass an array"),
    "ragged lists": ([[1.0], [1.0, 2.0]], ValueError, "a is no array of one shape.*pad it"),
    "ragged tensors": ([torch.ones(1), torch.ones(2)], ValueError, "different shapes: pad it"),
    "a Dataset": (xr.Dataset(), TypeError, "a is a Dataset of nothing: pass one variable"),
    "dates": (np.zeros(2, "datetime64[s]"), TypeError, "dates are no numbers; pass them as the"),
    "durations": (np.zeros(2, "timedelta64[s]"), TypeError, "durations are no numbers; divide"),
    "long doubles": (np.zeros(2, np.longdouble), TypeError, "convert it to float64"),
    "a sparse matrix": (scipy.sparse.eye_array(2), TypeError, r"a is a sparse dia_array.*toarray"),
    "a sparse tensor": (torch.eye(2).to_sparse(), TypeError, "sparse tensor.*to_dense"),
    "meta": (torch.empty(2, device="meta"), ValueError, "a is on the device meta"),
    "masked entries": (
        np.ma.masked_array([1.0, 2.0], mask=[True, False]),
        TypeError,
        "a has masked entries, which would be lost",
    ),
}


@pytest.mark.parametrize("what", NO_ARRAYS)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(what):
    array, error, told = NO_ARRAYS[what]
    with pytest.raises(error, match=told):
        as_tensor(array, "a")


def test_inputs_that_require_grad_come_detached():
    x = draw(TRIALS, STEPS, 3).requires_grad_()
    lin = kpops.linearize(gru(), x)
    assert not lin.trajectory.inputs.requires_grad and x.grad is None
    both = kpops.linearize(gru(), [x[0], x[1]])
    np.testing.assert_allclose(both.states, lin.states[:2], rtol=0, atol=1e-15)


def test_models_and_parameters_without_numbers_are_refused():
    with pytest.raises(ValueError, match="weight_ih_l0 of GRU is on the device meta"):
        kpops.linearize(nn.GRU(3, 5, device="meta"), draw(STEPS, TRIALS, 3))
    cell = kpops.models.PLRNNCell(0, 4, rectified=2)
    with pytest.raises(ValueError, match=r"the parameters \['C'\] have no entries"):
        kpops.linearize(cell, torch.zeros(2, 3, 0), h0=torch.zeros(4), parameters=["C"])
    assert kpops.linearize(cell, torch.zeros(2, 3, 0), h0=torch.ones(4)).J.shape == (24, 24)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3)])
def test_inputs_without_trials_or_steps_are_refused(shape):
    with pytest.raises(ValueError, match="pass one trial and one step or more"):
        kpops.linearize(gru(), torch.zeros(shape, dtype=torch.float64))


# Integers, classes, lists.


def test_the_repr_tells_what_has_become_of_integers_and_booleans():
    x = nn.functional.one_hot(torch.randint(3, (TRIALS, STEPS), generator=torch.Generator()), 3)
    lin = kpops.linearize(gru(), x)
    assert "measure sum, inputs int64 -> float64, float64 on cpu" in repr(lin)
    of_bool = kpops.linearize(gru(), x.bool())
    assert "inputs bool -> float64" in repr(of_bool)
    plain = kpops.linearize(gru(), x.double())
    assert "inputs" not in repr(plain)
    np.testing.assert_array_equal(lin.states, plain.states)
    np.testing.assert_array_equal(of_bool.states, plain.states)


def test_integers_that_would_be_rounded_are_refused():
    x = torch.full((2, 3, 3), 2**24 + 1)
    with pytest.raises(ValueError, match="int64 with integers that float32 does not hold"):
        kpops.linearize(gru(dtype=torch.float32), x)
    assert kpops.linearize(gru(), x).trajectory.inputs[0, 0, 0] == 2**24 + 1


def test_indices_of_classes_are_answered_with_one_hot():
    classes = torch.zeros(TRIALS, STEPS, dtype=torch.int64)
    told = r"torch.nn.functional.one_hot\(inputs, 3\)"
    for given in (classes, classes[..., None], classes.numpy()):
        with pytest.raises(ValueError, match=told):
            kpops.linearize(gru(), given)
    with pytest.raises(ValueError, match=r"inputs\[0\] has shape \(6,\).*one_hot"):
        kpops.linearize(gru(), list(classes))
    with pytest.raises(ValueError, match=r"expected \(trial, time, feature\)") as error:
        kpops.linearize(gru(), draw(TRIALS, STEPS))
    assert "one_hot" not in str(error.value)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [list, tuple])
def test_trials_of_several_lengths_become_padded_inputs_and_a_mask(batch_first, kind):
    model = gru(batch_first)
    trials = [draw(n, 3, seed=n) for n in (3, 6, 1)]
    lin = kpops.linearize(model, kind(trials))
    assert lin.space.shape == (3, 6, 5) and lin.trajectory.n_valid == 10
    np.testing.assert_array_equal(lin.states["mask"].sum("time"), [3, 6, 1])
    for i, trial in enumerate(trials):
        own, _ = gru()(trial[None])
        np.testing.assert_allclose(lin.states[i, : len(trial)], own[0].detach(), atol=1e-15)
    same = kpops.linearize(model, [trial.numpy() for trial in trials])
    np.testing.assert_array_equal(same.states, lin.states)
    found = kpops.gradient_flow(lin, torch.zeros(3, 6, 5, dtype=torch.float64))
    assert found.loss.item() == pytest.approx(float((lin.states**2).sum()) / 50)
    with pytest.raises(ValueError, match="trials of different lengths: pass"):
        kpops.lyapunov_spectrum(model, k=1, inputs=trials)


LISTS = {
    "another number of features": ([draw(3, 3), draw(4, 2)], r"inputs\[1\] is \(4, 2\).*\(3, 3\)"),
    "another dtype": ([draw(3, 3), draw(4, 3).float()], r"inputs\[1\] is .*float32"),
    "no steps": ([draw(3, 3), draw(0, 3)], r"inputs\[1\] has shape \(0, 3\)"),
    "a mask": ([draw(3, 3), draw(4, 3)], "their own lengths: drop it"),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists_that_make_no_trials_are_refused(what):
    trials, told = LISTS[what]
    mask = torch.ones(2, 4) if what == "a mask" else None
    with pytest.raises(ValueError, match=told):
        kpops.linearize(gru(), trials, mask=mask)


def test_lists_of_data_arrays_are_answered_with_concat():
    with pytest.raises(TypeError, match=r"xarray.concat\(inputs, 'trial'\)"):
        kpops.linearize(gru(), [labelled(draw(3, 3), "time", "f")])


def test_a_list_of_one_length_may_be_of_trials_or_of_steps():
    with pytest.raises(ValueError, match=r"torch.stack\(inputs, dim=1\), if steps"):
        kpops.linearize(gru(False), list(draw(TRIALS, STEPS, 3)))
    np.testing.assert_array_equal(
        kpops.linearize(gru(), list(draw(TRIALS, STEPS, 3))).states,
        kpops.linearize(gru(), draw(TRIALS, STEPS, 3)).states,
    )


# Time first: one order for all arrays of a call.


def test_all_arrays_of_a_time_first_module_come_time_first():
    x, targets = draw(TRIALS, STEPS, 3), draw(TRIALS, STEPS, 2, seed=2)
    mask = torch.arange(STEPS) < torch.tensor([[6], [2], [5], [4]])
    first = kpops.linearize(gru(), x, readout=readout(), mask=mask)
    lin = kpops.linearize(gru(False), x.transpose(0, 1), readout=readout(), mask=mask.T)
    assert "inputs read as (time, trial, feature)" in repr(lin)
    assert "inputs read" not in repr(first)
    np.testing.assert_allclose(lin.states, first.states, rtol=0, atol=1e-15)
    expected = kpops.gradient_flow(first, targets)
    flow = kpops.gradient_flow(lin, targets.transpose(0, 1))
    xr.testing.assert_allclose(flow, expected, rtol=1e-12)
    by_name = kpops.gradient_flow(lin, labelled(targets, "trial", "time", "output"))
    xr.testing.assert_allclose(by_name, expected, rtol=1e-12)
    by = [0, 0, 1, 1]
    np.testing.assert_allclose(
        kpops.interference(lin, by, targets=targets.transpose(0, 1)).loss_change,
        kpops.interference(first, by, targets=targets).loss_change,
        rtol=1e-10,
    )
    told = r"and no labels, the inputs were read as \(time, trial, feature\): give it in the same"
    with pytest.raises(ValueError, match=r"mask has shape \(4, 6\) " + told):
        kpops.linearize(gru(False), x.transpose(0, 1), mask=mask)
    with pytest.raises(ValueError, match=r"targets has shape \(4, 6, 2\) " + told):
        kpops.gradient_flow(lin, targets)
    with pytest.raises(ValueError, match=r"mask has .*, expected \(time, trial\) = \(6, 4\)"):
        kpops.linearize(gru(False), x.transpose(0, 1), mask=mask[:3])


@pytest.mark.parametrize("named", [True, False])
def test_labels_are_required_where_trials_and_steps_are_as_many(named):
    x, targets = draw(5, 5, 3), draw(5, 5, 2, seed=2)
    mask = torch.arange(5) < torch.tensor([[5], [2], [5], [4], [5]])
    given = labelled(x.transpose(0, 1), "time", "trial", "f") if named else x.transpose(0, 1)
    told = r"{} has shape .* and no labels.*both sizes are 5: .*xarray.DataArray\({}, dims="
    with pytest.raises(ValueError, match=told.format("mask", "mask")):
        kpops.linearize(gru(named), given, mask=mask.T)
    lin = kpops.linearize(
        gru(named), given, readout=readout(), mask=labelled(mask, "trial", "time")
    )
    for wrong in (targets, targets.numpy(), targets.transpose(0, 1)):
        with pytest.raises(ValueError, match=told.format("targets", "targets")):
            kpops.gradient_flow(lin, wrong)
    first = kpops.linearize(gru(), x, readout=readout(), mask=mask)
    loss = kpops.gradient_flow(lin, labelled(targets, "trial", "time", "output")).loss
    assert loss.item() == pytest.approx(kpops.gradient_flow(first, targets).loss.item(), rel=1e-12)


class Whole(nn.Module):
    """A user's network over whole sequences, whose layers take time first."""

    def __init__(self, transposes):
        super().__init__()
        self.gru, self.fc, self.transposes = nn.GRU(3, 4), nn.Linear(4, 3), transposes

    def forward(self, x):
        if not self.transposes:
            return self.fc(self.gru(x)[0])
        return self.fc(self.gru(x.transpose(0, 1))[0]).transpose(0, 1)


def test_training_refuses_a_model_that_takes_trials_for_steps(tmp_path):
    task = kpops.tasks.memory_pro(6, steps=(2, 2, 2), rng=0)
    options = {"batch_size": 6, "max_steps": 1, "rng": 0}
    with pytest.raises(ValueError, match="GRU has batch_first=False and takes trials for steps"):
        kpops.training.train(Whole(False), task, folder=tmp_path / "a", **options)
    history = kpops.training.train(Whole(True), task, folder=tmp_path / "b", **options)
    assert history.sizes["step"] == 2
