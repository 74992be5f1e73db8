"""The same measurement at every checkpoint, in a store from which it goes on."""

import concurrent.futures
import copy
import functools
import multiprocessing
import pickle
import signal

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.studies.store import PointStore
from kpops.training import Watch

STEPS = (0, 10, 20, 30)


def make(size=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.GRU(2, size, batch_first=True)


MODEL = make()
INPUTS = torch.ones(2, 5, 2)
STATES = [(s, {k: v * (1 + s / 50) for k, v in MODEL.state_dict().items()}) for s in STEPS]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "followed.zarr"


def follow(measure, checkpoints=STATES, **settings):
    return kpops.over_training(MODEL, checkpoints, INPUTS, measure, **settings)


def gain(lin):
    """Variables and coordinates of many kinds."""
    norm = float(np.linalg.norm(lin.states))
    states = lin.states.assign_coords(size=lin.space.size, norm=norm, name="GRU", where="here")
    return states.to_dataset(name="states").assign(
        rank=int(100 * norm) % 7, norm32=np.float32(norm), above=norm > 1, text=f"{norm:.2f}"
    )


ODD = ValueError("odd")


class Counter:
    """A measure that counts its calls, beside what tells which function it is."""

    calls = 0

    def __init__(self, fails_at=(), error=ODD):
        self.fails_at, self.error = fails_at, error

    def __call__(self, lin):
        Counter.calls += 1
        if Counter.calls in self.fails_at:
            if self.error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise self.error
        return {"norm": float(np.linalg.norm(lin.states))}


@pytest.fixture(autouse=True)
def _no_calls():
    Counter.calls = 0


def modes(lin, previous):
    v0 = None if previous is None else previous.eigenfunction
    found = kpops.eigsh(lin.flow, 2, v0=v0, rng=0)
    return found.assign(
        before=np.float32(-1) if previous is None else previous.eigenvalue[0].values
    )


@pytest.mark.parametrize(
    "measure",
    [
        gain,
        modes,
        functools.partial(kpops.collapse, rng=0),
        lambda lin: {"number": 3, "flags": [True, False], "names": ["a", "b"]},
    ],
)
def test_the_result_is_that_without_a_store(store, measure):
    expected = follow(measure)
    for _ in range(2):
        result = follow(measure, store=store)
        xr.testing.assert_identical(result, expected)
        assert {n: v.dtype for n, v in result.variables.items() if v.dtype.kind != "O"} == {
            n: v.dtype for n, v in expected.variables.items() if v.dtype.kind not in "OU"
        }


def test_modes_after_an_interruption_are_those_of_one_run_to_the_bit(store):
    def started(lin, previous):
        v0 = None if previous is None else previous.eigenfunction
        return kpops.eigsh(lin.flow, 3, v0=v0, method="block-krylov", rng=0)

    for n in (1, 3, len(STATES)):
        result = follow(started, STATES[:n], store=store)
    xr.testing.assert_identical(result, follow(started))
    alone = follow(lambda lin: kpops.eigsh(lin.flow, 3, method="block-krylov", rng=0))
    assert not result.eigenfunction.equals(alone.eigenfunction)  # the last bits show the start
    np.testing.assert_allclose(result.eigenvalue, alone.eigenvalue, rtol=1e-5)


def test_nothing_is_measured_twice_and_new_checkpoints_are_added(store):
    measure = Counter()
    follow(measure, STATES[1:3], store=store)
    assert Counter.calls == 2
    result = follow(measure, STATES[::-1], store=store)
    assert Counter.calls == 4
    assert result.step.values.tolist() == list(STEPS)
    xr.testing.assert_identical(result, follow(measure))
    part = follow(measure, iter(STATES[:2]), store=store)
    assert part.step.values.tolist() == [0, 10] and Counter.calls == 8


def test_a_longer_training_in_the_same_folder_measures_only_its_new_checkpoints(tmp_path, store):
    task = kpops.tasks.memory_pro(6, angles="even", noise=0, steps=(2, 2, 2))
    measure = Counter()
    for number, max_steps in enumerate((4, 8)):
        torch.manual_seed(0)
        network = kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))
        kpops.training.train(
            network,
            task,
            folder=tmp_path / "run",
            max_steps=max_steps,
            batch_size=3,
            checkpoint_every=2,
            rng=0,
        )
        result = kpops.over_training(network, tmp_path / "run", task.inputs, measure, store=store)
        assert Counter.calls == 3 + 2 * number
    assert result.step.values.tolist() == [0, 2, 4, 6, 8]


def test_results_of_other_lengths_are_padded(store):
    lengths = iter([1, 3, 2, 3])

    def measure(lin):
        return {"v": ("mode", np.ones(next(lengths)))}

    result = follow(measure, store=store)
    assert result.mode_length.values.tolist() == [1, 3, 2, 3]
    np.testing.assert_array_equal(result.v.count("mode"), [1, 3, 2, 3])


# What goes wrong


@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_after_ctrl_c_it_goes_on_where_it_was(store, on_interrupt):
    measure = Counter(fails_at=[3], error=KeyboardInterrupt)
    expected = follow(lambda lin: {"norm": float(np.linalg.norm(lin.states))})
    if on_interrupt == "return":
        first = follow(measure, store=store, on_interrupt="return")
    else:
        with pytest.raises(KeyboardInterrupt) as caught:
            follow(measure, store=store)
        first = caught.value.finished
    xr.testing.assert_identical(first, expected.isel(step=[0, 1]))
    xr.testing.assert_identical(follow(measure, store=store), expected)
    assert Counter.calls == 5


def test_ctrl_c_before_the_first_result_is_raised(store):
    measure = Counter(fails_at=[1], error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        follow(measure, store=store, on_interrupt="return")
    assert caught.value.finished is None


def test_failures_are_recorded_raised_at_the_end_and_tried_again(store):
    measure = Counter(fails_at=[2, 3])
    with pytest.raises(
        kpops.MeasureError, match=r"at step 10, and at 1 more: ValueError: odd. The o"
    ) as e:
        follow(measure, store=store)
    assert Counter.calls == 4
    assert e.value.finished.step.values.tolist() == [0, 30]
    assert "Traceback" in str(e.value.__cause__)
    pickle.loads(pickle.dumps(e.value))
    assert follow(measure, store=store).step.values.tolist() == list(STEPS)
    assert Counter.calls == 6


seen = []


def numbered(lin, previous):
    seen.append(None if previous is None else previous.number.item())
    if len(seen) == 3:
        raise ValueError("odd")
    return {"number": len(seen)}


def test_with_the_result_before_a_failure_stops(store):
    with pytest.raises(kpops.MeasureError, match="at step 20: ValueError: odd") as caught:
        follow(numbered, store=store)
    assert caught.value.finished.number.values.tolist() == [1, 2]
    follow(numbered, store=store)
    assert seen == [None, 1, 2, 2, 4]


def test_the_result_before_must_come_before(store):
    follow(modes, STATES[2:], store=store)
    with pytest.raises(
        ValueError, match=r"step 0 comes before step 30, which is done in .*another s"
    ):
        follow(modes, STATES, store=store)


def test_a_damaged_file_is_named_and_keeps_the_others(tmp_path, store):
    for step, state in STATES:
        torch.save(state, tmp_path / f"step_{step}.pt")
    (tmp_path / "step_10.pt").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(kpops.MeasureError, match=r"at step 10: .*step_10.pt' cannot be read") as e:
        follow(gain, tmp_path, store=store)
    assert e.value.finished.step.values.tolist() == [0, 20, 30]
    torch.save(STATES[1][1], tmp_path / "step_10.pt")
    xr.testing.assert_identical(follow(gain, tmp_path, store=store), follow(gain))


def test_an_error_of_several_lines_is_told_in_full(store):
    with pytest.raises(kpops.MeasureError) as caught:
        kpops.over_training(make(5), STATES, INPUTS, gain, store=store)
    for part in ("at step 0, and at 3 more: ValueError: the checkpoint does not fit", "weight_ih"):
        assert part in str(caught.value)


def other(lin):
    return gain(lin)


def linearizer(model, inputs, **options):
    return kpops.linearize(model, inputs, **options)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"measure": other}, "measure is gain .* there and other .* here"),
        ({"measure": functools.partial(gain)}, "measure is gain"),
        ({"model": make(5)}, r"model weight_ih_l0 is torch.float32 \(12, 2\) learns there and"),
        ({"model": make().double()}, "model weight_ih_l0 is torch.float32 .* torch.float64"),
        ({"inputs": INPUTS + 1e-6}, "fingerprint of inputs is"),
        ({"options": {"measure": "mean"}}, "option measure is absent there and mean here"),
        ({"options": {"mask": np.ones((2, 5), bool)}}, "option mask is absent there and"),
        ({"linearizer": linearizer}, "linearizer is linearize .* there and linearizer .* here"),
    ],
)
def test_another_analysis_is_refused_by_name(store, changed, told):
    given = {"model": MODEL, "checkpoints": STATES, "inputs": INPUTS, "measure": gain}
    kpops.over_training(**given, store=store)
    told = f"holds results of another analysis: {told}.*Pass the same, or another store"
    with pytest.raises(ValueError, match=told):
        kpops.over_training(**{**given, **changed}, store=store)


def test_labelled_inputs_are_compared_by_their_values(store):
    inputs = xr.DataArray(np.ones((300, 5, 2), "f4"), dims=("trial", "time", "input"))
    inputs = inputs.assign_coords(trial=[f"trial {i}" for i in range(300)])
    measure = Counter()
    kpops.over_training(MODEL, STATES, inputs, measure, store=store)
    kpops.over_training(MODEL, STATES, copy.deepcopy(inputs), measure, store=store)
    assert Counter.calls == 4
    inputs[150, 2] = 2  # which its repr does not show
    with pytest.raises(ValueError, match="fingerprint of inputs"):
        kpops.over_training(MODEL, STATES, inputs, measure, store=store)


def test_checkpoints_of_another_training_are_refused(store):
    follow(gain, store=store)
    others = [(s, {k: v + 1 for k, v in state.items()}) for s, state in STATES]
    with pytest.raises(
        ValueError, match="at other weights at step 30: it belongs to another train"
    ):
        follow(gain, others, store=store)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"store": 3}, TypeError, "store is the number 3: pass the path"),
        ({"store": None, "executor": 3}, ValueError, "executor needs a place.*pass store="),
        ({"store": None, "watch": True}, ValueError, "watch needs a place.*pass store="),
        ({"watch": 3}, TypeError, "watch is the number 3: pass True or a kpops.training.Watch"),
        ({"watch": True}, TypeError, "watch follows a folder, and checkpoints is a list of 4"),
        ({"executor": 3}, TypeError, "executor is the number 3, without a method submit"),
        ({"executor": 3, "measure": modes}, ValueError, "measure takes the result before"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"checkpoints": []}, ValueError, "checkpoints is empty"),
        ({"checkpoints": iter([])}, ValueError, "checkpoints is empty"),
        ({"checkpoints": STATES[:1] * 2}, ValueError, "checkpoints repeat a step"),
        ({"checkpoints": iter(STATES[:1] * 2)}, ValueError, "step 0 is there twice"),
        ({"checkpoints": {}}, TypeError, "checkpoints is a dict of 0: pass a folder"),
    ],
)
def test_wrong_use_is_refused(store, settings, error, told):
    settings = {"measure": Counter(), "store": store, **settings}
    with pytest.raises(error, match=told):
        follow(**settings)
    assert Counter.calls <= 1


def test_the_store_of_a_study_is_refused_and_the_other_way_round(store):
    other = store.with_name("other.zarr")
    follow(gain, store=other)
    with pytest.raises(ValueError, match=r"holds measures over training: read it by kpops.over_t"):
        kpops.Study(other)
    kpops.Study(store, lambda g: {"v": g}, rng=0, g=[1.0]).run(progress=False)
    with pytest.raises(
        ValueError, match=r"holds a kpops.Study, not measures over training: pass a"
    ):
        follow(gain, store=store)


def test_a_name_that_the_store_uses_is_refused(store):
    with pytest.raises(kpops.MeasureError, match="weights_fingerprint, a name that the store uses"):
        follow(lambda lin: {"weights_fingerprint": 1.0}, store=store)


def test_the_bar_counts_checkpoints(store, capsys):
    follow(gain, STATES[:2], store=store)
    follow(gain, store=store, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "step 30" in shown


# Other processes


def threads(lin):
    return {"threads": torch.get_num_threads(), "norm": float(np.linalg.norm(lin.states))}


@pytest.mark.slow
def test_an_executor_gives_the_same(store, tmp_path):
    for step, state in STATES:
        torch.save(state, tmp_path / f"step_{step}.pt")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        settings = {"store": store, "executor": pool}
        follow(threads, tmp_path, threads=2, **settings)
        result = follow(threads, iter(STATES), **settings)
        assert result.threads.values.tolist() == [2] * 4
        np.testing.assert_array_equal(result.norm, follow(threads).norm)
        watched = follow(threads, tmp_path, watch=Watch(seconds=0), threads=2, **settings)
        xr.testing.assert_identical(watched, result)
        state = PointStore(store).status((0,))
        with pytest.raises(kpops.MeasureError, match=r"at step 0, and at 3 more: .*enginge"):
            follow(gain, executor=pool, store=tmp_path / "b", options={"enginge": "auto"})
        with pytest.raises(TypeError, match="does not pickle"):
            follow(lambda lin: {"v": 1.0}, executor=pool, store=tmp_path / "c")
    assert state["pid"] != multiprocessing.current_process().pid
