"""Trials of environments with neurogym's interface, by a small stand-in for it."""

import importlib
import json
import sys
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.tasks import accuracy, from_neurogym


class _Space:
    def __init__(self, shape=None, n=None, name=None):
        self.shape = () if n is not None else shape
        if n is not None:
            self.n = n
        if name is not None:
            self.name = name


class _Go:
    """Fixation, then a stimulus of random length whose side is the action to choose."""

    observation_space = _Space(shape=(3,), name={"fixation": 0, "stimulus": range(1, 3)})
    action_space = _Space(n=3, name={"fixation": 0, "choice": range(1, 3)})

    def __init__(self):
        self.rng = np.random.RandomState()
        self.unseeded = 3
        # as in neurogym, where some durations are lambdas that hold the environment
        self.duration = lambda: self.rng.randint(2, 6)

    @property
    def unwrapped(self):
        return self

    def seed(self, seed=None):
        self.rng = np.random.RandomState(seed)

    def reset(self, seed=None, options=None):
        self.unseeded = 0
        self.new_trial()
        return np.zeros(3), {}

    def new_trial(self, **kwargs):
        side, length = int(self.rng.randint(2)), int(self.duration())
        self.start_ind, self.end_ind = {"fixation": 0, "stimulus": 2}, {}
        self.end_ind = {"fixation": 2, "stimulus": 2 + length}
        self.ob = np.zeros((2 + length, 3), dtype=np.float32)
        self.ob[:2, 0] = 1
        self.ob[2:, 1 + side] = 1 + 0.1 * self.rng.randn(length)
        self.gt = np.zeros(2 + length, dtype=np.int64)
        self.gt[2:] = 1 + side
        self.unseeded += 1
        return {
            "ground_truth": side,
            "coh": 0.1 * side,
            "side": "lr"[side],
            "order": self.unseeded,
            "array": np.zeros(2),
        }


class _Wrapper:
    """Hides all but the wrapped environment, as gymnasium's wrappers may."""

    def __init__(self, env):
        self.env = env

    @property
    def unwrapped(self):
        return self.env.unwrapped

    def reset(self, **options):
        return self.env.reset(**options)


class _Forwarding(_Wrapper):
    """Forwards attributes, but complains, as gymnasium 0.29 does."""

    def __getattr__(self, name):
        warnings.warn(f"{name} is forwarded", stacklevel=2)
        return getattr(self.env, name)


class _Alternate(_Wrapper):
    """Two environments in turn, like neurogym's schedules."""

    def __init__(self, envs):
        super().__init__(envs[0])
        self.envs, self.turn = envs, 0

    def seed(self, seed=None):
        for env in self.envs:
            env.seed(seed)

    def reset(self, **options):
        self.turn = 0
        return super().reset(**options)

    def new_trial(self):
        self.env = self.envs[self.turn % 2]
        self.turn += 1
        return self.env.new_trial()


class _Track(_Go):
    """Continuous actions, and observations of which only one has a name."""

    observation_space = _Space(shape=(3,), name={"fixation": 0})
    action_space = _Space(shape=(1,))

    def new_trial(self, **kwargs):
        super().new_trial()
        self.gt = self.ob[:, 1:2] - self.ob[:, 2:3]
        return None


def test_trials_are_those_of_the_environment_one_by_one():
    task = from_neurogym(_Go(), 20, rng=0, dtype="float64")
    env = _Go()
    env.seed(int(np.random.default_rng(0).integers(2**31)))
    env.reset()
    for i in range(20):
        conditions = env.new_trial()
        n = len(env.ob)
        np.testing.assert_array_equal(task.inputs[i, :n], env.ob)
        np.testing.assert_array_equal(task.targets[i, :n].argmax("output"), env.gt)
        np.testing.assert_array_equal(task.mask[i], np.arange(task.sizes["time"]) < n)
        assert not task.inputs[i, n:].any() and not task.targets[i, n:].any()
        assert task.ground_truth[i] == conditions["ground_truth"]
        assert task.coh[i] == conditions["coh"] and task.side[i] == conditions["side"]
        epoch = ["fixation"] * 2 + ["stimulus"] * (n - 2)
        assert task.epoch.values[i].tolist() == epoch + ["padding"] * (task.sizes["time"] - n)
    assert "array" not in task.coords
    np.testing.assert_array_equal(task.targets.sum("output"), task.mask)


def test_same_seed_gives_the_same_trials_whatever_the_environment_did_before():
    used = _Go()
    for _ in range(7):
        used.new_trial()
    first = from_neurogym(_Go(), 6, rng=3)
    xr.testing.assert_identical(first, from_neurogym(used, 6, rng=3))
    xr.testing.assert_identical(first, from_neurogym(used, 6, rng=3))
    assert not first.equals(from_neurogym(used, 6, rng=4))


@pytest.mark.parametrize("wrapper", [_Wrapper, _Forwarding])
def test_methods_are_found_through_wrappers(wrapper):
    bare = from_neurogym(_Go(), 4, rng=0)
    wrapped = from_neurogym(wrapper(wrapper(_Go())), 4, rng=0)
    xr.testing.assert_identical(bare, wrapped)


def test_a_schedule_of_environments_is_followed():
    task = from_neurogym(_Wrapper(_Alternate([_Go(), _Go()])), 6, rng=0)
    # both have one seed, so each makes the same trials, which alternate
    reference, again = _Go(), _Go()
    seed = int(np.random.default_rng(0).integers(2**31))
    for env in (reference, again):
        env.seed(seed)
    reference.reset()
    for i in range(6):
        env = (reference, again)[i % 2]
        env.new_trial()
        np.testing.assert_array_equal(task.inputs[i, : len(env.ob)], env.ob)


def test_channels_have_the_names_of_the_spaces_where_all_are_named():
    named, unnamed = from_neurogym(_Go(), 2, rng=0), from_neurogym(_Track(), 2, rng=0)
    assert named.input.values.tolist() == ["fixation", "stimulus 1", "stimulus 2"]
    assert named.output.values.tolist() == ["fixation", "choice 1", "choice 2"]
    assert unnamed.input.values.tolist() == [f"observation {i}" for i in (1, 2, 3)]
    assert unnamed.output.values.tolist() == ["action 1"]


def test_continuous_ground_truth_is_the_target():
    task = from_neurogym(_Track(), 5, rng=0)
    difference = task.inputs[..., 1] - task.inputs[..., 2]
    np.testing.assert_array_equal(task.targets[..., 0], difference)
    assert task.attrs["criterion"] == "relative error"


def test_accuracy_is_that_of_the_chosen_actions():
    task = from_neurogym(_Go(), 10, rng=0)
    outputs = task.targets.copy(deep=True)
    outputs[0, :, 0] = 5  # always fixates
    correct = accuracy(task, outputs).correct.values
    assert correct.tolist() == [False] + [True] * 9


def test_result_is_labelled_and_can_be_stored(tmp_path):
    task = from_neurogym(_Go(), 4, rng=0)
    for variable in task.variables.values():
        assert variable.attrs["long_name"] and variable.attrs["units"]
    assert json.loads(task.attrs["configuration"])["task"] == "_Go"
    task.to_netcdf(tmp_path / "task.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "task.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(task, back.load())
    task.to_zarr(tmp_path / "task.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "task.zarr", engine="zarr", consolidated=False) as back:
        xr.testing.assert_identical(task, back.load())


def test_names_are_made_by_neurogym(monkeypatch):
    class Module:
        @staticmethod
        def make(name):
            assert name == "Go-v0"
            return _Go()

    monkeypatch.setitem(sys.modules, "neurogym", Module)
    task = from_neurogym("Go-v0", 3, rng=0)
    assert task.task.values.tolist() == ["Go-v0"] * 3
    np.testing.assert_array_equal(task.inputs, from_neurogym(_Go(), 3, rng=0).inputs)


def test_missing_neurogym_raises_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurogym", None)
    with pytest.raises(ImportError, match="pip install neurogym"):
        from_neurogym("Go-v0", 3)
    importlib.reload(importlib.import_module("kpops.tasks.neurogym"))  # imports without it


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_trials": 0}, ValueError, "n_trials=0: choose an int of 1 or more"),
        ({"dtype": "int8"}, ValueError, "dtype='int8'"),
        ({"env": object()}, TypeError, "object has no method 'seed'"),
    ],
)
def test_wrong_use_raises(arguments, error, message):
    with pytest.raises(error, match=message):
        from_neurogym(**{"env": _Go(), "n_trials": 2, **arguments})


def test_an_environment_without_ground_truth_is_refused():
    env = _Go()
    env.new_trial = lambda: None
    env.reset = lambda: None
    with pytest.raises(TypeError, match="_Go has no ob and gt"):
        from_neurogym(env, 2)


ENVIRONMENTS = [
    "PerceptualDecisionMaking-v0",
    "DelayMatchSample-v0",
    "ContextDecisionMaking-v0",
    "GoNogo-v0",
    "ReadySetGo-v0",  # trials of unequal length
    "yang19.dms-v0",
]


@pytest.mark.filterwarnings("ignore")  # neurogym's own
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments_of_neurogym_itself(name):
    pytest.importorskip("neurogym")
    task, again = (from_neurogym(name, 5, rng=0) for _ in range(2))
    xr.testing.assert_identical(task, again)
    gru = torch.nn.GRU(task.sizes["input"], 4, batch_first=True)
    lin = kpops.linearize(
        gru, task.inputs, mask=task.mask, readout=torch.nn.Linear(4, task.sizes["output"])
    )
    flow = kpops.gradient_flow(lin, task.targets)
    assert not flow.state_change.values[~task.mask.values].any()
    assert float(abs(flow.state_change).max()) > 0
