"""The same measurement at every checkpoint."""

import copy
import functools
import pickle
import signal

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.learning import collapse


@pytest.fixture
def network():
    torch.manual_seed(0)
    return kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))


@pytest.fixture
def task():
    return kpops.tasks.memory_pro(6, angles="even", noise=0, steps=(2, 2, 2))


@pytest.fixture
def follow(network, task):
    """`over_training` of a measure, by default over three checkpoints of the same weights."""

    def run(measure, checkpoints=None, **settings):
        if checkpoints is None:
            checkpoints = [(s, copy.deepcopy(network.state_dict())) for s in (0, 10, 20)]
        return kpops.over_training(network, checkpoints, task.inputs, measure, **settings)

    return run


def size(lin):
    return {"size": lin.space.size}


class Counter:
    """A measure that returns how often it was called, and fails as it is told."""

    def __init__(self, fails_at=None, error=None):
        self.calls, self.fails_at, self.error = 0, fails_at, error

    def __call__(self, lin):
        self.calls += 1
        if self.calls == self.fails_at:
            if self.error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise self.error
        return {"calls": self.calls}


def test_each_checkpoint_is_measured_with_its_own_weights(network, task, tmp_path):
    kpops.training.train(
        network, task, folder=tmp_path, max_steps=4, batch_size=3, checkpoint_every=2, rng=0
    )
    result = kpops.over_training(
        network, tmp_path, task.inputs, lambda lin: {"norm": float(abs(lin.states).sum())}
    )
    assert result.step.values.tolist() == [0, 2, 4]
    last = kpops.linearize(network, task.inputs)
    assert float(result.norm[-1]) == float(abs(last.states).sum())
    assert len(set(result.norm.values.tolist())) == 3


def test_the_model_itself_is_left_alone(network, follow):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    follow(lambda lin: lin.states, [(0, {k: v + 1 for k, v in before.items()})])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_options_of_linearize_are_passed_on_whatever_their_names(follow):
    measures = follow(lambda lin: {"measure": lin.measure}, options={"measure": "mean"})
    assert measures.measure.values.tolist() == ["mean"] * 3
    traces = [
        follow(lambda lin: kpops.trace(lin.K), options={"measure": m}).estimate.values
        for m in ("sum", "mean")
    ]
    np.testing.assert_allclose(traces[0], 36 * traces[1], rtol=1e-6)


def test_a_linearizer_of_ones_own_finds_the_parts_of_any_model(task):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.out = nn.RNN(3, 4), nn.Linear(4, 3)

    model = Mine()

    def linearizer(model, inputs, **options):
        return kpops.linearize(model.core, inputs, readout=model.out, **options)

    result = kpops.over_training(
        model,
        [(3, model.state_dict())],
        task.inputs,
        lambda lin: lin.outputs,
        linearizer=linearizer,
        options={"engine": "autodiff"},
    )
    assert result.outputs.shape == (1, 6, 6, 3)
    xr.testing.assert_allclose(
        result.outputs.isel(step=0, drop=True), linearizer(model, task.inputs).outputs
    )


# What a measure returns


def test_labelled_results_keep_their_dims(follow):
    result = follow(lambda lin: lin.states)
    assert result.states.dims == ("step", "trial", "time", "unit")
    assert result.states.epoch.dims == ("time",)
    assert result.step.attrs["long_name"] == "training iteration"
    spectra = follow(lambda lin: kpops.eigsh(lin.K, k=2))
    assert spectra.eigenvalue.dims == ("step", "mode")
    assert spectra.operator == "K"


@pytest.mark.parametrize(
    ("value", "dims"),
    [
        (1.5, ()),
        (np.float32(2), ()),
        (torch.tensor(3.0), ()),
        (True, ()),
        ("text", ()),
        ([1, 2, 3], ("v_dim_0",)),
        ((1.0, 2.0), ("v_dim_0",)),
        (range(4), ("v_dim_0",)),
        (np.ones((2, 3)), ("v_dim_0", "v_dim_1")),
        (torch.ones(3, requires_grad=True), ("v_dim_0",)),
        (["a", "b"], ("v_dim_0",)),
        (("mode", [1.0, 2.0]), ("mode",)),
        (xr.DataArray([1.0, 2.0], dims="mode"), ("mode",)),
    ],
    ids=str,
)
def test_values_of_a_mapping_become_variables(follow, value, dims):
    result = follow(lambda lin: {"v": value})
    assert result.v.dims == ("step", *dims)
    plain = value[1] if dims == ("mode",) and isinstance(value, tuple) else value
    plain = plain.detach() if isinstance(plain, torch.Tensor) else plain
    for step in (0, 10, 20):
        np.testing.assert_array_equal(result.v.sel(step=step), np.asarray(plain))


def test_a_coordinate_that_moves_over_training_is_kept_for_every_step(follow):
    calls = iter([0.5, 0.25, 0.125])
    result = follow(lambda lin: xr.DataArray([1.0, 2.0], {"loss": next(calls)}, "x", name="v"))
    assert result.loss.dims == ("step",)
    assert result.loss.values.tolist() == [0.5, 0.25, 0.125]


def test_a_coordinate_that_is_a_dim_of_one_value_stays_beside_a_scalar_of_another(follow):
    def measure(lin):
        ranks = [kpops.effective_rank(op).estimate for op in (lin.K, lin.flow)]
        mode = kpops.eigsh(lin.flow, k=1, rng=0).eigenvalue
        return {"rank": xr.concat(ranks, "operator"), "eigenvalue": mode}

    assert follow(measure)["rank"].operator.values.tolist() == ["K", "P K P*"]


def test_a_scalar_coordinate_stays_where_it_holds_of_all_values(follow):
    def of(operator, subject=3):
        return xr.DataArray(1.0, {"operator": operator, "subject": subject})

    assert follow(lambda lin: {"a": of("K"), "b": of("K")}).operator.item() == "K"
    mixed = follow(lambda lin: {"a": of("K"), "b": of("P K P*")})
    assert "operator" not in mixed.coords and mixed.subject.item() == 3
    assert not follow(lambda lin: {"a": of("K"), "b": 1.0}).drop_vars("step").coords


def test_results_are_saved_and_read_back(follow, tmp_path):
    for number, measure in enumerate([lambda lin: lin.states, lambda lin: {"a": "b", "v": [1, 2]}]):
        result, path = follow(measure), tmp_path / f"{number}.zarr"
        result.to_zarr(path, consolidated=False)
        xr.testing.assert_identical(xr.open_zarr(path, consolidated=False).load(), result)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda lin: None, "measure returned None, expected a Dataset.*is there a return missing"),
        (lambda lin: lin.flow, r"measure returned the operator <P K P\*.*expected a Dataset"),
        (lambda lin: 0.5, "measure returned the number 0.5, expected"),
        (lambda lin: [1, 2], "measure returned a list of 2, expected"),
        (lambda lin: {}, "measure returned no variable"),
        (lambda lin: {"v": None}, "measure returned v, None: return numbers"),
        (lambda lin: {"v": lin}, "measure returned v, a Linearization"),
        (lambda lin: {"v": lin.flow}, "measure returned v, the operator <P K P"),
        (lambda lin: {"v": [[1], [1, 2]]}, "measure returned v, which is no array"),
        (lambda lin: {1: 2.0}, "under the name 1: use a string"),
        (lambda lin: {"step": 2.0}, "variable or dim step"),
        (
            lambda lin: {n: xr.DataArray([0.0], {"x": [n]}, "x") for n in "ab"},
            "cannot align objects with join='exact'.*'x'",
        ),
        (lambda lin: xr.DataArray([1.0], dims="step"), "variable or dim step"),
    ],
)
def test_other_results_are_refused_by_name(follow, returned, told):
    with pytest.raises(kpops.MeasureError, match=f"at step 0: .*{told}"):
        follow(returned)


@pytest.mark.parametrize(
    ("third", "told"),
    [
        ({"v": [1.0, 2.0, 3.0]}, r"v of sizes {'v_dim_0': 3}, at step 0 {'v_dim_0': 2}"),
        ({"w": [1.0, 2.0]}, r"the variables \['w'\], at step 0 \['v'\]"),
        ({"v": ("mode", [1.0, 2.0])}, r"v of sizes {'mode': 2}"),
        (
            xr.Dataset({"v": ("v_dim_0", [1.0, 2.0])}, {"x": 1}),
            r"the coordinates \['x'\], at step 0 \[\]",
        ),
    ],
)
def test_results_that_differ_in_shape_are_refused_by_name(follow, third, told):
    results = iter([{"v": [1.0, 2.0]}] * 2 + [third])
    with pytest.raises(kpops.MeasureError, match=f"at step 20: .*{told}") as caught:
        follow(lambda lin: next(results))
    assert caught.value.finished.v.values.tolist() == [[1.0, 2.0]] * 2


def test_labels_that_differ_are_refused_by_name(follow):
    labels = iter([[1, 2], [1, 3]])
    with pytest.raises(kpops.MeasureError, match=r"at step 10: .*other labels of x than at step 0"):
        follow(lambda lin: xr.DataArray([0.0, 0.0], {"x": next(labels)}, "x", name="v"))


# Steps


def test_steps_are_whole_numbers_in_increasing_order(network, follow):
    state = network.state_dict()
    steps = [20, 0.0, np.int64(5), torch.tensor(7), np.float32(10)]
    result = follow(Counter(), [(step, copy.deepcopy(state)) for step in steps])
    assert result.step.dtype == np.int64
    assert result.step.values.tolist() == [0, 5, 7, 10, 20]
    assert result.calls.values.tolist() == [2, 3, 4, 5, 1]
    one_by_one = follow(Counter(), ((step, state) for step in steps))
    xr.testing.assert_identical(one_by_one, result)


@pytest.mark.parametrize("step", [0.5, "10", "final", None, True, np.nan, np.inf, [1]])
def test_other_steps_are_refused_by_name(network, follow, step):
    measure = Counter()
    pairs = [(s, copy.deepcopy(network.state_dict())) for s in (0, step)]
    with pytest.raises(ValueError, match=r"step .* is no whole number: number the checkpoints"):
        follow(measure, pairs)
    assert not measure.calls
    told = "checkpoint after step 0: step .* is no whole number"
    with pytest.raises(kpops.MeasureError, match=told) as caught:
        follow(measure, iter(pairs))
    assert caught.value.finished.step.values.tolist() == [0]


@pytest.mark.parametrize(
    ("checkpoints", "error", "told"),
    [
        ([], ValueError, "checkpoints is empty"),
        (iter([]), ValueError, "checkpoints is empty"),
        ([(0, None), (5, None), (0, None)], ValueError, r"checkpoints repeat a step: \[0, 0, 5\]"),
        ({0: None}, TypeError, r"is a dict of 1: pass .* pairs .* \.items\(\)"),
        ([{"weight": 1}], TypeError, "checkpoint number 0 is a dict of 1, expected"),
        (nn.Linear(1, 1), TypeError, r"checkpoints is a model \(Linear\): pass a folder, or pairs"),
        (3, TypeError, "checkpoints is the number 3"),
        ("nowhere", FileNotFoundError, "folder 'nowhere' does not exist"),
    ],
)
def test_wrong_checkpoints_are_refused_before_anything_is_measured(
    follow, checkpoints, error, told
):
    measure = Counter()
    with pytest.raises(error, match=told):
        follow(measure, checkpoints)
    assert not measure.calls


def damaged(state):
    name = next(iter(state))
    return {**state, name: torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damaged, "the checkpoint does not fit: .*size mismatch for recurrent.weight_ih_l0"),
        (lambda s: {}, "the checkpoint does not fit: .*Missing key"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "begin with 'module.*prefix='module."),
        (
            lambda s: {k: v.to(torch.complex64) for k, v in s.items()},
            "weight_ih_l0 of the checkpoint is complex",
        ),
        (lambda s: {k: v.double() for k, v in s.items()}, r"torch.float64.*by model.double\(\)"),
        (lambda s: 3, "the checkpoint is the number 3, expected a state dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_loses_none(network, follow, change, told):
    pairs = [(0, network.state_dict()), (7, change(network.state_dict()))]
    with pytest.raises(kpops.MeasureError, match=f"(?s)at step 7: .*{told}") as caught:
        follow(size, pairs)
    assert caught.value.finished.step.values.tolist() == [0]


def test_weights_of_less_precision_are_taken_as_they_are(network, follow):
    halves = {k: v.half() for k, v in network.state_dict().items()}
    result = follow(lambda lin: {"w": lin.parameters["weight_hh_l0"]}, [(0, halves)])
    np.testing.assert_array_equal(result.w[0], halves["recurrent.weight_hh_l0"].float())


def test_a_file_that_cannot_be_read_is_named_and_loses_none(network, follow, tmp_path):
    for step in (0, 10, 20):
        torch.save(network.state_dict(), tmp_path / f"step_{step}.pt")
    (tmp_path / "step_20.pt").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(
        kpops.MeasureError, match=r"after step 10: .*step_20.pt' cannot be read"
    ) as e:
        follow(size, tmp_path)
    assert e.value.finished.step.values.tolist() == [0, 10]


# Errors and interrupts


@pytest.mark.parametrize("error", [ValueError("odd"), ZeroDivisionError("odd"), KeyError("odd")])
def test_an_error_names_the_step_and_keeps_the_finished_ones(follow, error):
    with pytest.raises(kpops.MeasureError, match=r"at step 20: .*odd") as caught:
        follow(Counter(3, error))
    assert caught.value.__cause__ is error
    xr.testing.assert_identical(caught.value.finished, follow(Counter()).isel(step=[0, 1]))
    again = pickle.loads(pickle.dumps(caught.value))  # as from another process
    xr.testing.assert_identical(again.finished, caught.value.finished)
    with pytest.raises(kpops.MeasureError, match="at step 0: ") as caught:
        follow(Counter(1, error))
    assert caught.value.finished is None


def test_what_cannot_be_linearised_names_the_step(follow):
    with pytest.raises(kpops.MeasureError, match=r"at step 0: .*enginge"):
        follow(size, options={"enginge": "auto"})


def test_ctrl_c_loses_no_finished_step(follow):
    expected = follow(Counter()).isel(step=[0, 1])
    result = follow(Counter(3, KeyboardInterrupt), on_interrupt="return")
    xr.testing.assert_identical(result, expected)
    with pytest.raises(KeyboardInterrupt) as caught:
        follow(Counter(3, KeyboardInterrupt))
    xr.testing.assert_identical(caught.value.finished, expected)
    with pytest.raises(KeyboardInterrupt):
        follow(Counter(1, KeyboardInterrupt), on_interrupt="return")


@pytest.mark.parametrize(
    ("measure", "settings", "error", "told"),
    [
        ("mean", {}, TypeError, "measure is the string 'mean': pass a function; .*options={'mea"),
        (size, {"linearizer": nn.Linear}, kpops.MeasureError, "at step 0"),
        (size, {"linearizer": None}, TypeError, "linearizer is None: pass a function"),
        (size, {"options": "mean"}, TypeError, "options is the string 'mean': pass a dict"),
        (size, {"on_interrupt": "stop"}, ValueError, "on_interrupt='stop': choose 'raise' or"),
    ],
)
def test_wrong_use_is_refused(follow, measure, settings, error, told):
    with pytest.raises(error, match=told):
        follow(measure, **settings)


def test_the_bar_counts_checkpoints_and_names_the_step(follow, capsys):
    follow(size, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "step 20" in shown


def test_a_linearization_in_the_place_of_the_model_is_named(network, task):
    lin = kpops.linearize(network, task.inputs)
    with pytest.raises(TypeError, match="model is a Linearization: pass the module whose check"):
        kpops.over_training(lin, [(0, network.state_dict())], task.inputs, size)


# The result before


def test_a_measure_gets_its_previous_result_if_it_takes_it(follow):
    seen = []

    def measure(lin, factor=2, *, previous):
        seen.append(previous)
        return {"v": [factor * (1 if previous is None else 1 + float(previous.v[0]))]}

    result = follow(functools.partial(measure, factor=3))
    assert result.v.values.ravel().tolist() == [3, 12, 39]
    assert seen[0] is None and [p.v.item() for p in seen[1:]] == [3, 12]


def test_collapse_starts_from_the_modes_before(monkeypatch):
    starts = []
    start_vectors = collapse.start_vectors

    def recorded(op, v0):
        starts.append(v0)
        return start_vectors(op, v0)

    monkeypatch.setattr(collapse, "start_vectors", recorded)
    torch.manual_seed(0)
    rnn = nn.RNN(2, 6, batch_first=True).double()
    inputs = torch.randn(10, 18, 2, dtype=torch.float64)  # 1,080 positions: no matrix is made
    states = [(s, {k: v * (1 + s / 1e4) for k, v in rnn.state_dict().items()}) for s in (0, 1)]
    measure = functools.partial(
        kpops.collapse, keep=("trial", "time", "unit"), of_whole=(), num_modes=3, rng=0
    )
    followed = kpops.over_training(rnn, states, inputs, measure)
    assert starts[:3] == [None] * 3
    for symbol, v0 in zip(("K", "P P*", "P K P*"), starts[3:], strict=True):
        expected = followed.eigenfunction.sel(operator=symbol, step=0, drop=True)
        xr.testing.assert_equal(v0, expected)
    rnn.load_state_dict(states[1][1])
    fresh = measure(kpops.linearize(rnn, inputs))
    one, other = followed.eigenvalue.isel(step=1)[:3], fresh.eigenvalue[:3]
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_a_network_without_recurrence_is_followed_by_its_sites(tmp_path, kept):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    checkpoints = []
    for step in (0, 7):
        checkpoints.append((step, copy.deepcopy(net.state_dict())))
        nn.init.normal_(net[1].weight)
    tokens = torch.tensor([[0, 3], [1, 4], [2, 2]])

    def kernels(lin):
        traces = {"hidden": lin.flow.select(site="1"), "outputs": lin.output_ntk}
        return {name: float(kpops.trace(op).estimate) for name, op in traces.items()}

    store = tmp_path / "kernels.zarr" if kept else None
    options = {"sites": ["1", "3"]}
    result = kpops.over_training(net, checkpoints, tokens, kernels, options=options, store=store)
    for step, state in checkpoints:
        net.load_state_dict(state)
        rows = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, tokens))(
            dict(net.named_parameters())
        )
        expected = sum(float(x.detach().square().sum()) for x in rows.values())
        assert float(result.outputs.sel(step=step)) == pytest.approx(expected, rel=1e-12)
    assert result.hidden[0] != result.hidden[1]
    if kept:
        again = {"sites": ["3"]}
        with pytest.raises(ValueError, match="option sites"):
            kpops.over_training(net, checkpoints, tokens, kernels, options=again, store=store)
