"""A measure as a training goes: the training does not notice, and nothing is lost."""

import copy
import functools
import types

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.utils import parametrizations

import kpops
from kpops.training import Measured, lightning_callback, logarithmic

INPUTS = torch.linspace(-1, 1, 40).reshape(4, 5, 2)


class Net(nn.Module):
    """A model that draws random numbers and changes its buffers in training."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.rnn = nn.GRU(2, 4, num_layers=2, dropout=0.3, batch_first=True)
            parametrizations.spectral_norm(self.rnn, "weight_hh_l0")
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        y = self.rnn(x)[0]
        return self.out(self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]))


def of_rnn(model, inputs, **options):
    return kpops.linearize(model.rnn, inputs, **options)


def gain(lin):
    torch.rand(3)  # a measure may draw from torch's generator
    return {"gain": kpops.spectral_norm(lin.P, rng=0).estimate, "steps": lin.space.size}


def learn(n_steps, during=None, model=None, start=0):
    """Train by a plain loop; returns all that a training may depend on afterwards."""
    torch.manual_seed(start)
    model = Net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    seen = []
    model.train()

    def run(step):
        for _ in range(n_steps):
            optimizer.zero_grad()
            (model(INPUTS) - 1).square().mean().backward()
            optimizer.step()
            seen.append(copy.deepcopy(model.state_dict()))
            step()

    if during is None:
        run(lambda: None)
    else:
        with during(model) as measured:
            run(measured.step)
    gradients = {f"grad {name}": p.grad for name, p in model.named_parameters()}
    modes = {f"mode {name}": torch.tensor(m.training) for name, m in model.named_modules()}
    state = {**model.state_dict(), **gradients, **modes, "random": torch.get_rng_state()}
    return (state, seen) if during is None else (state, seen, measured)


def measured(model, measure=gain, **settings):
    settings = {"every": 2, "linearizer": of_rnn, **settings}
    return Measured(model, INPUTS, measure, **settings)


@pytest.fixture(autouse=True)
def _random_state():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("stored", [False, True])
def test_the_training_is_the_same_to_the_bit_and_the_result_that_of_over_training(tmp_path, stored):
    store = tmp_path / "during.zarr" if stored else None
    expected, states = learn(5)
    state, _, during = learn(5, functools.partial(measured, store=store))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    pairs = [(0, Net().state_dict()), (2, states[1]), (4, states[3])]
    followed = kpops.over_training(Net().eval(), pairs, INPUTS, gain, linearizer=of_rnn)
    xr.testing.assert_identical(during.result(), followed)
    if stored:  # and one can go on with the checkpoints of the training
        again = kpops.over_training(
            Net().eval(), [*pairs, (5, states[4])], INPUTS, gain, linearizer=of_rnn, store=store
        )
        assert again.step.values.tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize(
    ("every", "steps"),
    [(3, [0, 3, 6]), ([1, 5, 99], [1, 5]), (logarithmic(1), [1]), (lambda s: s > 4, [5, 6])],
)
def test_it_measures_at_the_steps_that_are_named(every, steps):
    *_, during = learn(6, functools.partial(measured, every=every))
    assert during.result().step.values.tolist() == steps
    assert during.steps == 6


def test_numbers_of_steps_may_be_given(tmp_path):
    model = Net()
    with measured(model, start=7, every=[7, 12]) as during:
        during.step(9)
        during.step(12)
        with pytest.raises(ValueError, match="step=12: choose an int of 13 or more"):
            during.step(12)
    result = during.result()
    assert result.step.values.tolist() == [7, 12]
    assert result.gain[0] == result.gain[1]


def test_a_measure_gets_its_result_before(tmp_path):
    def count(lin, previous):
        return {"calls": 1 if previous is None else 1 + previous.calls.item()}

    for store in (None, tmp_path / "during.zarr"):
        *_, during = learn(4, functools.partial(measured, measure=count, store=store))
        assert during.result().calls.values.tolist() == [1, 2, 3]


def test_a_training_that_was_killed_measures_what_is_missing(tmp_path):
    store, calls = tmp_path / "during.zarr", []

    class Counting:
        def __call__(self, lin):
            calls.append(1)
            return {"norm": float(np.linalg.norm(lin.states))}

    measure = Counting()
    _, states, during = learn(3, functools.partial(measured, measure=measure, store=store))
    assert len(calls) == 2 and during.result().step.values.tolist() == [0, 2]
    model, other = Net(), Net()
    model.load_state_dict(states[1])
    other.load_state_dict(states[1])
    settings = {"measure": measure, "store": store, "start": 2}
    *_, during = learn(4, functools.partial(measured, **settings), model, start=2)
    assert len(calls) == 4
    assert during.result().step.values.tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="was computed at other weights at step 2: it belongs to"):
        learn(4, functools.partial(measured, **settings), model)
    with pytest.warns(kpops.FailedPointsWarning, match="computed at other weights at step 4: it"):
        *_, during = learn(2, functools.partial(measured, **settings), other, start=3)
    with pytest.raises(kpops.MeasureError, match="other weights at step 4"):
        during.result()


class Failing:
    def __init__(self, at):
        self.at = at

    def __call__(self, lin):
        norm = float(np.linalg.norm(lin.states))
        if norm in self.at:
            raise ZeroDivisionError("odd")
        return {"norm": norm}


@pytest.mark.parametrize("stored", [False, True])
def test_a_failure_does_not_stop_the_training(tmp_path, stored):
    store = tmp_path / "during.zarr" if stored else None
    expected, _, good = learn(4, functools.partial(measured, measure=Failing([])))
    failing = Failing([good.result().norm[1].item()])
    with pytest.warns(kpops.FailedPointsWarning, match="failed at step 2: ZeroDivisionError: odd"):
        state, _, during = learn(4, functools.partial(measured, measure=failing, store=store))
    assert all(torch.equal(state[name], expected[name]) for name in state)
    with pytest.raises(kpops.MeasureError, match="at step 2: ZeroDivisionError: odd") as caught:
        during.result()
    xr.testing.assert_identical(caught.value.finished, good.result().isel(step=[0, 2]))


def test_a_result_of_another_form_is_a_failure():
    sizes = iter([1, 2, 1])
    with pytest.warns(kpops.FailedPointsWarning, match="v of sizes {'v_dim_0': 2}, at step 0"):
        *_, during = learn(
            4, functools.partial(measured, measure=lambda lin: {"v": np.ones(next(sizes))})
        )
    with pytest.raises(kpops.MeasureError) as caught:
        during.result()
    assert caught.value.finished.step.values.tolist() == [0, 4]


def test_nothing_measured_is_told():
    *_, during = learn(2, functools.partial(measured, every=[50]))
    with pytest.raises(ValueError, match="nothing is measured up to step 2: pass smaller steps"):
        during.result()


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"every": 0}, ValueError, "^every=0: pass 1 or more"),
        ({"every": 2.5}, TypeError, "every=2.5: pass a distance"),
        ({"start": -1}, ValueError, "start=-1"),
        ({"measure": "mean"}, TypeError, "measure is the string 'mean'"),
        ({"store": 3}, TypeError, "store is the number 3"),
    ],
)
def test_wrong_use_is_refused(settings, error, told):
    with pytest.raises(error, match=told):
        measured(Net(), **settings)


# Lightning


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_lightning_measures_as_the_training_goes(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, index):
            return (self.net(batch[0]) - 1).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(callbacks):
        torch.manual_seed(1)
        module = Training()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS), 2)
        lightning.Trainer(
            max_epochs=4,
            accumulate_grad_batches=2,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(module, loader)
        return module.state_dict()

    during = lightning_callback(
        INPUTS, gain, every=2, linearizer=lambda m, x: of_rnn(m.net, x), store=tmp_path / "a.zarr"
    )
    one, other = fit([during]), fit([])
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert during.result().step.values.tolist() == [0, 2, 4]


class Trainer:
    """What the callback sees of a trainer of Lightning."""

    global_step, is_global_zero = 0, True


@pytest.fixture
def without_lightning(monkeypatch):
    """Any class stands for Lightning's own Callback."""

    def find(name):
        if name == "lightning.pytorch":
            raise ModuleNotFoundError(name)
        return types.SimpleNamespace(Callback=object)

    monkeypatch.setattr("kpops.learning.measured.importlib.import_module", find)


def test_the_callback_follows_the_global_step_of_the_first_process(without_lightning):
    for is_first in (True, False):
        trainer, model = Trainer(), Net()
        trainer.is_global_zero = is_first
        during = lightning_callback(INPUTS, gain, every=2, linearizer=of_rnn)
        with pytest.raises(ValueError, match="the training has not begun: fit the model first"):
            during.result()
        during.on_train_start(trainer, model)
        for trainer.global_step in (0, 1, 1, 2, 2, 3, 4):  # two batches for an update
            during.on_train_batch_end(trainer, model, None, None, 0)
        during.on_train_start(trainer, model)  # a second fit goes on
        if is_first:
            assert during.result().step.values.tolist() == [0, 2, 4]
        else:
            assert during.during is None


def test_what_lightning_keeps_in_a_module_is_no_part_of_the_analysis(without_lightning, tmp_path):
    class LightningModule(nn.Module):
        _current_fx_name = None

    class Training(LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn = Net().rnn

    model, store = Training(), tmp_path / "during.zarr"
    model._current_fx_name = "on_train_start"
    during = lightning_callback(INPUTS, gain, every=2, linearizer=of_rnn, store=store)
    during.on_train_start(Trainer(), model)
    pairs, settings = [(0, model.state_dict())], {"linearizer": of_rnn, "store": store}
    later = kpops.over_training(Training().eval(), pairs, INPUTS, gain, **settings)
    xr.testing.assert_identical(during.result(), later)


def test_without_lightning_the_remedy_is_named(monkeypatch):
    def find(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("kpops.learning.measured.importlib.import_module", find)
    with pytest.raises(ImportError, match="lightning is not installed: pip install lightning, or"):
        lightning_callback(INPUTS, gain, every=2)
