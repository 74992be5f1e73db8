"""What linearize takes, keeps, refuses and leaves alone."""

import copy
import pickle
import weakref
from collections import defaultdict

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, CASES, ENGINES
from dense import relative
from torch import nn

import kpops


def gru(**options):
    torch.manual_seed(0)
    return nn.GRU(2, 4, batch_first=True, **options)


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*(shape or (3, 5, 2)), generator=torch.Generator().manual_seed(1)).to(dtype)


# A snapshot, with no side effects.


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_model_is_left_as_it_was(case):
    model, (x, h0) = case.model(), case.data()
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()
    lin = kpops.linearize(model, case.as_module_takes(model, x), h0=h0, engine="jacobian")
    lin.flow @ np.zeros(lin.flow.shape[1])
    kpops.effective_rank(lin.K)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert (parameter.grad == 1).all()
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_random)


def test_a_step_that_changes_buffers_is_refused_and_the_users_stay():
    torch.manual_seed(0)
    rnn = nn.utils.parametrizations.spectral_norm(gru(), "weight_hh_l0")
    before = copy.deepcopy(rnn.state_dict())
    with pytest.raises(ValueError, match=r"changes its buffers .*call model.eval\(\)"):
        kpops.linearize(rnn, inputs(3, 4, 2))
    assert all(torch.equal(value, before[name]) for name, value in rnn.state_dict().items())
    kpops.linearize(rnn.eval(), inputs(3, 4, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_training_the_model_further_changes_nothing(engine):
    model, x = gru(), inputs()
    readout = nn.Linear(4, 2)
    lin = kpops.linearize(model, x, readout=readout, engine=engine)
    expected = kpops.linearize(copy.deepcopy(model), x.clone(), readout=copy.deepcopy(readout))
    with torch.no_grad():
        for parameter in [*model.parameters(), *readout.parameters()]:
            parameter.add_(1)
    x.add_(1)
    assert relative(lin.output_ntk.to_dense(), expected.output_ntk.to_dense()) < 1e-5
    assert np.array_equal(lin.states, expected.states)


def test_results_carry_no_autograd_graph():
    x = inputs().requires_grad_()
    lin = kpops.linearize(gru(), x, parameters=["weight_hh_l0"], readout=lambda h: h[:, :2] ** 2)
    q = torch.zeros(3, 5, 4, requires_grad=True)
    for result in (lin.flow @ q, lin.C @ q, lin.J.H @ q, lin.trajectory.states):
        assert not result.requires_grad


def test_a_linearization_survives_pickling():
    lin = kpops.linearize(gru(), inputs(), readout=nn.Linear(4, 2), engine="jacobian")
    q = inputs(3, 5, 4)
    expected = lin.flow @ q
    again = pickle.loads(pickle.dumps(lin))
    assert torch.equal(again.flow @ q, expected)
    assert repr(again) == repr(lin)


def test_inference_mode_changes_nothing():
    expected = kpops.linearize(gru(), inputs()).flow @ inputs(3, 5, 4)
    with torch.inference_mode():
        found = kpops.linearize(gru(), inputs()).flow @ inputs(3, 5, 4)
    assert relative(found, expected) < 1e-6


def test_editing_the_states_changes_no_operator():
    lin = kpops.linearize(gru(), inputs(), readout=lambda h: h**2)
    q = inputs(3, 5, 4)
    expected = lin.C @ q
    lin.states.values[:] = 0
    assert torch.equal(lin.C @ q, expected)


def test_a_linearization_is_freed_when_it_is_dropped():
    lin = kpops.linearize(gru(), inputs(), readout=nn.Linear(4, 2))
    kpops.gradient_flow(lin, torch.zeros(3, 5, 2))
    gone = weakref.ref(lin)
    del lin
    assert gone() is None


def test_h0_is_converted_where_dtype_is_given():
    lin = kpops.linearize(
        gru(), inputs(dtype=torch.float64), h0=np.ones((3, 4)), dtype=torch.float32
    )
    assert lin.dtype == torch.float32


# What learns.


def test_frozen_parameters_do_not_learn():
    model = gru()
    model.weight_ih_l0.requires_grad_(False)
    model.bias_hh_l0.requires_grad_(False)
    lin = kpops.linearize(model, inputs())
    assert list(lin.parameters) == ["weight_hh_l0", "bias_ih_l0"]
    assert lin.J.shape[1] == 12 * 4 + 12
    assert list(lin.K_by_parameter) == list(lin.parameters)


def test_parameters_are_chosen_by_predicate():
    lin = kpops.linearize(gru(), inputs(), parameters=lambda name: name.startswith("weight"))
    assert list(lin.parameters) == ["weight_ih_l0", "weight_hh_l0"]


def test_a_weight_with_two_names_counts_once():
    case = BY_NAME["shared_norm_cell"]
    inputs, h0 = case.data()
    lin = kpops.linearize(case.model(), inputs, h0=h0)
    assert "recurrent.weight" in lin.parameters
    assert "again.weight" not in lin.parameters


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of weight norm
@pytest.mark.parametrize("engine", ENGINES)
def test_parametrized_weights_learn_through_their_parametrization(engine):
    model = gru().double()
    # Weight norm has no forward mode in torch, so this sees the way around it too.
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    x = inputs(dtype=torch.float64)
    lin = kpops.linearize(model, x, engine=engine)
    assert "parametrizations.weight_hh_l0.original1" in lin.parameters
    rows = []
    for state in model(x)[0].flatten():
        gradients = torch.autograd.grad(state, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    assert relative(lin.sensitivity.to_dense(), torch.stack(rows)) < 1e-10


# Inputs, initial states and measures.


def test_time_major_modules_take_time_major_inputs():
    first, second = gru(), nn.GRU(2, 4)
    second.load_state_dict(first.state_dict())
    x = inputs()
    expected = kpops.linearize(first, x).states
    xr.testing.assert_equal(kpops.linearize(second, x.transpose(0, 1)).states, expected)
    labelled = xr.DataArray(x.numpy(), dims=("trial", "time", "feature"))
    np.testing.assert_array_equal(kpops.linearize(second, labelled).states, expected)
    np.testing.assert_array_equal(
        kpops.linearize(second, labelled.transpose("time", "feature", "trial")).states, expected
    )


def test_a_network_brings_its_readout_and_takes_trials_first():
    network = kpops.Network(nn.GRU(2, 4), nn.Linear(4, 3))
    x = inputs()
    lin = kpops.linearize(network, x)
    assert relative(lin.outputs.values, network(x).detach()) < 1e-6
    assert lin.output_ntk.shape == (45, 45)


@pytest.mark.parametrize("name", ["gru_two_layers", "lstm", "lstm_two_layers", "lstm_cell"])
def test_initial_states_are_taken_as_the_module_takes_them(name):
    case = BY_NAME[name]
    model, (x, h0) = case.model(), case.data()
    x = case.as_module_takes(model, x)
    expected = kpops.linearize(model, x, h0=h0).states
    parts = h0.reshape(3, case.layers, -1, 4).permute(2, 1, 0, 3).contiguous()
    if name.endswith("cell"):
        parts = parts[:, 0]
    own = tuple(parts) if case.gated_with_cell else parts[0]
    xr.testing.assert_equal(kpops.linearize(model, x, h0=own).states, expected)
    same = h0[:1].expand(3, -1)
    xr.testing.assert_equal(
        kpops.linearize(model, x, h0=h0[0]).states, kpops.linearize(model, x, h0=same).states
    )


def test_the_mean_measure_divides_K_by_the_valid_steps():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    for valid, count in [(None, 15), (mask, 10)]:
        total = kpops.linearize(gru(), inputs(), mask=valid)
        mean = kpops.linearize(gru(), inputs(), mask=valid, measure="mean")
        assert relative(mean.K.to_dense() * count, total.K.to_dense()) < 1e-6
        assert relative(mean.flow.to_dense() * count, total.flow.to_dense()) < 1e-6
        assert relative(mean.P.to_dense(), total.P.to_dense()) == 0
        assert mean.attrs["measure"] == "mean"


def test_padding_is_never_looked_at():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    clean, spoilt = inputs(), inputs()
    spoilt[~mask] = torch.nan
    q = inputs(3, 5, 4)
    dirty_q = q.clone()
    dirty_q[~mask] = torch.nan
    for engine in ENGINES:
        expected = kpops.linearize(gru(), clean, mask=mask, engine=engine)
        lin = kpops.linearize(gru(), spoilt, mask=mask.numpy(), engine=engine)
        assert relative(lin.flow @ dirty_q, expected.flow @ q) < 1e-6
        assert ((lin.flow @ dirty_q)[~mask] == 0).all()
        assert (lin.states.values[~mask.numpy()] == 0).all()
        alone = kpops.linearize(gru(), clean[1:2, :2], engine=engine)
        short = lin.P.select(trial=1, time=slice(0, 2))
        assert relative(short.to_dense(), alone.P.to_dense()) < 1e-6


def test_a_mask_of_ones_is_no_mask():
    assert kpops.linearize(gru(), inputs(), mask=np.ones((3, 5))).trajectory.mask is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_converts_model_and_inputs(dtype):
    lin = kpops.linearize(gru(), inputs(dtype=torch.float64), dtype=dtype)
    assert lin.dtype == dtype
    assert lin.flow.to_dense().dtype == lin.states.dtype
    assert lin.states.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert all(p.dtype == dtype for p in lin.parameters.values())


def test_integer_inputs_are_taken():
    one_hot = np.eye(2, dtype=int)[np.zeros((3, 5), dtype=int)]
    assert kpops.linearize(gru(), one_hot).dtype == torch.float32


# The choice of the engine.


def user_cell():
    """A cell that no engine knows more of than its forward."""
    model = BY_NAME["shared_norm_cell"].model(torch.float32)
    model.hidden_size = 4
    return model


def test_memory_estimate_of_stored_jacobians_is_what_is_stored():
    lin = kpops.linearize(user_cell(), inputs(3, 5, 2), engine="jacobian")
    stored = lin.engine.jacobians
    extra = 3 * 5 * 4 * 24 * 4  # the maps J and J*
    assert lin.memory_estimate() == {"jacobian": stored.nbytes + extra, "autodiff": 0}


def test_the_automatic_engine_follows_model_and_memory(monkeypatch):
    lin = kpops.linearize(gru(), inputs())
    assert lin.engine.name == "gated_numba"
    assert "engine gated_numba: a gated cell; keeps 0.00" in repr(lin)
    assert "gates stored" in repr(lin)
    lin = kpops.linearize(user_cell(), inputs(3, 5, 2))
    assert lin.engine.name == "jacobian"
    assert "engine jacobian: not a gated cell; keeps 0.0064" in repr(lin)
    monkeypatch.setattr("kpops.engines.select.free_bytes", lambda device: 1500)
    lin = kpops.linearize(user_cell(), inputs(3, 5, 2))
    assert lin.engine.name == "autodiff"
    assert "jacobian would keep 0.0064" in repr(lin)
    with pytest.raises(MemoryError, match=r"needs .* MiB, .* are free on cpu: use engine='autod"):
        kpops.linearize(gru(), inputs(), engine="jacobian")


def test_gates_are_recomputed_where_they_do_not_fit(monkeypatch):
    x = inputs(30, 200, 2)
    stored = kpops.linearize(gru(), x)
    monkeypatch.setattr("kpops.engines.gated.layer._SEGMENT_BYTES", defaultdict(lambda: 2**16))
    needed = stored.memory_estimate()["gated_numba"]
    monkeypatch.setattr("kpops.engines.select.free_bytes", lambda device: needed)
    lin = kpops.linearize(gru(), x)
    assert lin.engine.gates == "recomputed"
    assert "gated_numba, gates stored would keep" in repr(lin)
    assert len(lin.engine.layers[0].segments()) > 5
    q = inputs(30, 200, 4)
    assert relative(lin.flow @ q, stored.flow @ q) < 1e-5


def test_gates_are_for_the_gated_engines():
    with pytest.raises(ValueError, match="gates='float32' is for the gated engines: Shared"):
        kpops.linearize(user_cell(), inputs(3, 5, 2), gates="float32")
    with pytest.raises(ValueError, match="engine='gated': SharedNormCell is not known as a gated"):
        kpops.linearize(user_cell(), inputs(3, 5, 2), engine="gated")
    with pytest.raises(ValueError, match="gates='kept': choose one of"):
        kpops.linearize(gru(), inputs(), gates="kept")


# Errors.


class InPlace(nn.Module):
    """A cell that halves the state it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x, h):
        h *= 0.5
        return h + torch.tanh(self.weight + x.sum(-1, keepdim=True))


class Quiet(nn.Module):
    """A user's cell whose fault is a function."""

    def __init__(self, fault=lambda x, h: h):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.hidden_size = 4
        self.fault = fault

    def forward(self, x, h):
        return self.fault(x, torch.tanh(self.weight * h + x.sum(-1, keepdim=True)))


class MyNetwork(kpops.Network):
    def forward(self, inputs, h0=None):
        return super().forward(2 * inputs, h0)


class First(nn.Module):
    def forward(self, result):
        return result[0]


def hooked():
    model = gru()
    model.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    return model


def counting():
    calls = []

    def fault(x, h):
        calls.append(1)
        return h * (1 + (len(calls) > 8))

    return Quiet(fault)


def tied():
    network = kpops.Network(nn.RNN(2, 4, batch_first=True), nn.Linear(4, 4))
    network.readout.weight = network.recurrent.weight_hh_l0
    return network


class MyGRU(nn.GRU):
    def forward(self, x, h=None):
        return super().forward(2 * x, h)


def spoilt(value, trial, step):
    x = inputs()
    x[trial, step] = value
    return x


def nonfinite_from(step):
    model = nn.RNN(2, 4, batch_first=True, nonlinearity="relu")
    x = torch.zeros(3, 5, 2)
    x[1, step:] = 3e38
    nn.init.ones_(model.weight_ih_l0)
    return model, x


NAN_IN_TRIAL_1 = torch.zeros(3, 4).index_fill(0, torch.tensor([1]), torch.nan)

REFUSED = {
    "not a module": (
        lambda: kpops.linearize("gru", inputs()),
        TypeError,
        "is the string 'gru'",
    ),
    "rank of inputs": (
        lambda: kpops.linearize(gru(), inputs(5, 2)),
        ValueError,
        r"shape \(5, 2\), expected \(trial, time, feature\)",
    ),
    "rank of time-major inputs": (
        lambda: kpops.linearize(nn.GRU(2, 4), inputs(5, 2)),
        ValueError,
        r"expected \(time, trial, feature\)",
    ),
    "features of inputs": (
        lambda: kpops.linearize(gru(), inputs(3, 5, 7)),
        ValueError,
        "shape \\(3, 5, 7\\).*the model takes 2 features",
    ),
    "empty inputs": (
        lambda: kpops.linearize(gru(), inputs(3, 0, 2)),
        ValueError,
        "pass one trial and one step or more",
    ),
    "dims of a DataArray": (
        lambda: kpops.linearize(gru(), xr.DataArray(np.zeros((3, 5, 2)), dims=("a", "b", "c"))),
        ValueError,
        r"dims \('a', 'b', 'c'\), expected trial, time",
    ),
    "size of h0": (
        lambda: kpops.linearize(gru(), inputs(), h0=torch.zeros(3, 5)),
        ValueError,
        r"h0 has shape \(3, 5\), expected \(trial, unit\) = \(3, 4\)",
    ),
    "parts of h0": (
        lambda: kpops.linearize(nn.LSTM(2, 4), inputs(), h0=(torch.zeros(1, 5, 4),)),
        ValueError,
        r"1 part\(s\), expected 2: h0, c0",
    ),
    "layers of h0": (
        lambda: kpops.linearize(gru(), inputs(), h0=torch.zeros(2, 3, 4)),
        ValueError,
        r"\(2, 3, 4\), expected \(layer, trial, hidden\) = \(1, 3, 4\)",
    ),
    "unknown state size": (
        lambda: (
            kpops.linearize(BY_NAME["shared_norm_cell"].model().float(), inputs()).P
            and kpops.linearize(nn.Sequential(nn.Linear(2, 2)), inputs())
        ),
        ValueError,
        "state size of",
    ),
    "shape of mask": (
        lambda: kpops.linearize(gru(), inputs(), mask=np.ones((5, 3))),
        ValueError,
        r"mask has shape \(5, 3\), expected \(trial, time\) = \(3, 5\)",
    ),
    "holes in mask": (
        lambda: kpops.linearize(gru(), inputs(), mask=np.array([[1, 0, 1, 1, 1]] * 3)),
        ValueError,
        "trial 0 is True after a False",
    ),
    "weights as mask": (
        lambda: kpops.linearize(gru(), inputs(), mask=np.full((3, 5), 0.5)),
        ValueError,
        "values other than 0 and 1",
    ),
    "empty trial in mask": (
        lambda: kpops.linearize(gru(), inputs(), mask=np.array([[1] * 5, [0] * 5, [1] * 5])),
        ValueError,
        "no valid first step in trial 1",
    ),
    "bidirectional": (
        lambda: kpops.linearize(gru(bidirectional=True), inputs()),
        ValueError,
        "bidirectional=True",
    ),
    "projected": (
        lambda: kpops.linearize(nn.LSTM(2, 4, proj_size=2), inputs()),
        ValueError,
        "proj_size=2",
    ),
    "own forward": (
        lambda: kpops.linearize(MyGRU(2, 4, batch_first=True), inputs()),
        ValueError,
        "MyGRU overrides the forward of GRU",
    ),
    "own forward of a Network": (
        lambda: kpops.linearize(MyNetwork(gru(), nn.Linear(4, 2)), inputs()),
        ValueError,
        "MyNetwork.forward changes the inputs before recurrent reads them",
    ),
    "hooks": (lambda: kpops.linearize(hooked(), inputs()), ValueError, "GRU has hooks"),
    "weight tied to the readout": (
        lambda: kpops.linearize(tied(), inputs()),
        ValueError,
        "the readout's weight is the recurrence's weight_hh_l0: untie them",
    ),
    "noise that h = 0 hides": (
        lambda: kpops.linearize(
            Quiet(lambda x, h: h + 0 * torch.rand(1) if not h.any() else h * torch.rand(1)),
            inputs(),
        ),
        ValueError,
        "two steps of Quiet from the same state differ",
    ),
    "memory beside h": (
        lambda: kpops.linearize(counting(), inputs()),
        ValueError,
        "remembers something beside h",
    ),
    "h changed in place": (
        lambda: kpops.linearize(InPlace(), inputs(), h0=torch.ones(3, 4)),
        ValueError,
        "InPlace changes h in place or returns it as it is",
    ),
    "dtype of the next state": (
        lambda: kpops.linearize(Quiet(lambda x, h: h.double()), inputs()),
        TypeError,
        "Quiet returned torch.float64 for a state of torch.float32",
    ),
    "dtype of the outputs": (
        lambda: kpops.linearize(gru(), inputs(), readout=lambda h: h.double()),
        TypeError,
        "readout returned torch.float64 for torch.float32",
    ),
    "random readout": (
        lambda: kpops.linearize(gru(), inputs(), readout=lambda h: h * torch.rand_like(h)),
        ValueError,
        "readout is random or mixes rows",
    ),
    "labels of mask": (
        lambda: kpops.linearize(
            gru(),
            xr.DataArray(
                inputs().numpy(), dims=("trial", "time", "x"), coords={"trial": [5, 6, 7]}
            ),
            mask=xr.DataArray(np.ones((3, 5)), dims=("trial", "time"), coords={"trial": [7, 6, 5]}),
        ),
        ValueError,
        r"mask and the inputs disagree on the labels of \['trial'\]",
    ),
    "dropout between layers": (
        lambda: kpops.linearize(gru(num_layers=2, dropout=0.5), inputs()),
        ValueError,
        r"dropout=0.5 and is in training mode.*model.eval\(\)",
    ),
    "dropout in a cell": (
        lambda: kpops.linearize(nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 4)), inputs()),
        ValueError,
        r"Dropout\(p=0.1.*in training mode.*model.eval\(\)",
    ),
    "noise in a cell": (
        lambda: kpops.linearize(Quiet(lambda x, h: h + torch.randn_like(h)), inputs()),
        ValueError,
        "two steps of Quiet from the same state differ",
    ),
    "trials mixed": (
        lambda: kpops.linearize(Quiet(lambda x, h: h - h.mean(0)), inputs()),
        ValueError,
        "Quiet mixes trials",
    ),
    "wrong return": (
        lambda: kpops.linearize(Quiet(lambda x, h: (h, h)), inputs()),
        ValueError,
        "returned tuple, expected the next state alone",
    ),
    "wrong signature": (
        lambda: kpops.linearize(nn.Linear(2, 4), inputs(), h0=torch.zeros(3, 4)),
        ValueError,
        "Linear.forward takes no state, and calls no part that is recurrent",
    ),
    "nothing learns": (
        lambda: kpops.linearize(gru().requires_grad_(False), inputs()),
        ValueError,
        r"no parameter requires grad: name those that learn by parameters=",
    ),
    "unknown parameter": (
        lambda: kpops.linearize(gru(), inputs(), parameters=["weight_hh"]),
        ValueError,
        r"no parameter \['weight_hh'\] in the model: choose from \['weight_ih_l0'",
    ),
    "predicate accepts nothing": (
        lambda: kpops.linearize(gru(), inputs(), parameters=lambda name: False),
        ValueError,
        "predicate parameters= accepts no name",
    ),
    "dtype mix": (
        lambda: kpops.linearize(gru(), inputs(dtype=torch.float64)),
        TypeError,
        r"inputs is torch.float64, the model torch.float32.*dtype=torch.float32",
    ),
    "dtype mix in h0": (
        lambda: kpops.linearize(gru(), inputs(), h0=np.zeros((3, 4))),
        TypeError,
        "h0 is torch.float64, the computation torch.float32",
    ),
    "dtype mix in the model": (
        lambda: kpops.linearize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), inputs()),
        TypeError,
        "parameters mix dtypes",
    ),
    "dtype mix in the readout": (
        lambda: kpops.linearize(gru(), inputs(), readout=nn.Linear(4, 2).double()),
        TypeError,
        "readout is torch.float64, the model torch.float32",
    ),
    "half precision": (
        lambda: kpops.linearize(gru(), inputs(), dtype=torch.float16),
        TypeError,
        "float16 is not supported",
    ),
    "complex inputs": (
        lambda: kpops.linearize(gru(), inputs().numpy() * 1j),
        TypeError,
        "inputs is complex: .*two real arrays",
    ),
    "non-finite inputs": (
        lambda: kpops.linearize(gru(), spoilt(torch.inf, 2, 3)),
        ValueError,
        "inputs is not finite, first in trial 2, time step 4",
    ),
    "non-finite h0": (
        lambda: kpops.linearize(gru(), inputs(), h0=NAN_IN_TRIAL_1),
        ValueError,
        "h0 is not finite, first in trial 1",
    ),
    "non-finite state": (
        lambda: kpops.linearize(*nonfinite_from(2)),
        ValueError,
        "the state is not finite, first in trial 1, time step 3",
    ),
    "unknown measure": (
        lambda: kpops.linearize(gru(), inputs(), measure="average"),
        ValueError,
        "measure='average': choose 'sum' or 'mean'",
    ),
    "unknown engine": (
        lambda: kpops.linearize(gru(), inputs(), engine="fast"),
        ValueError,
        "engine='fast': choose 'auto' or one of",
    ),
    "parameters instead of names": (
        lambda: kpops.linearize(gru(), inputs(), parameters=gru().parameters()),
        TypeError,
        r"parameters= holds Parameter objects, expected names: choose from \['weight_ih_l0', ",
    ),
    "named parameters instead of names": (
        lambda: kpops.linearize(gru(), inputs(), parameters=gru().named_parameters()),
        TypeError,
        "parameters= holds tuple objects, expected names: choose from",
    ),
    "a number instead of names": (
        lambda: kpops.linearize(gru(), inputs(), parameters=3),
        TypeError,
        "parameters= holds int objects, expected names",
    ),
    "task instead of inputs": (
        lambda: kpops.linearize(nn.GRU(3, 4), kpops.tasks.memory_pro(2)),
        TypeError,
        r"inputs is a Dataset of inputs, targets, mask: pass one variable, such as task\.inputs",
    ),
    "task instead of inputs of a whole model": (
        lambda: kpops.linearize(nn.Sequential(nn.GRU(3, 4), First()), kpops.tasks.memory_pro(2)),
        TypeError,
        r"inputs is a Dataset of .*: pass one variable, such as task\.inputs",
    ),
    "task instead of mask": (
        lambda: kpops.linearize(nn.GRU(2, 4), inputs(), mask=kpops.tasks.memory_pro(2)),
        TypeError,
        r"mask is a Dataset of .*: pass one variable, such as task\.mask",
    ),
    "linearization as model": (
        lambda: kpops.linearize(kpops.linearize(gru(), inputs()), inputs()),
        TypeError,
        "model is a Linearization already",
    ),
    "state dict as model": (
        lambda: kpops.linearize(gru().state_dict(), inputs()),
        TypeError,
        r"model is a dict, expected an nn.Module: .*network.load_state_dict\(",
    ),
    "class as model": (
        lambda: kpops.linearize(nn.GRU, inputs()),
        TypeError,
        r"model is the class GRU, expected an nn.Module: make one, for example GRU\(...\)",
    ),
    "class as readout": (
        lambda: kpops.linearize(gru(), inputs(), readout=nn.Linear),
        TypeError,
        "readout is the class Linear, expected an nn.Module or a callable",
    ),
    "recurrent readout": (
        lambda: kpops.linearize(gru(), inputs(), readout=nn.Sequential(nn.LSTM(4, 2))),
        ValueError,
        "readout contains a LSTM, which has a state of its own: make it a layer of the model",
    ),
    "readout of a wrong kind": (
        lambda: kpops.linearize(gru(), inputs(), readout="linear"),
        TypeError,
        "readout is the string 'linear', expected an nn.Module or a callable",
    ),
    "readout of a wrong size": (
        lambda: kpops.linearize(gru(), inputs(), readout=nn.Linear(5, 2)),
        ValueError,
        r"readout cannot take hidden states of shape \(row, hidden\) = \(15, 4\)",
    ),
    "readout missing": (
        lambda: kpops.linearize(gru(), inputs()).output_ntk,
        ValueError,
        "needs a readout: pass readout=",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_use_is_refused_with_the_remedy(what):
    act, error, told = REFUSED[what]
    with pytest.raises(error, match=told):
        act()


def test_outputs_and_targets_can_be_subtracted_whatever_the_channels_are_called():
    task = kpops.tasks.memory_pro(3, rng=0)
    network = kpops.Network(
        torch.nn.GRU(task.sizes["input"], 4, batch_first=True), torch.nn.Linear(4, 3)
    )
    lin = kpops.linearize(network, task.inputs)
    difference = lin.outputs - task.targets
    assert difference.sizes == task.targets.sizes
    np.testing.assert_array_equal(difference, lin.outputs.values - task.targets.values)


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequences_are_inputs_with_their_mask(batch_first):
    model = torch.nn.GRU(3, 4, batch_first=batch_first).double()
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (3, 5, 2)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    lin = kpops.linearize(model, packed)
    assert lin.trajectory.n_valid == 10
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(model(packed)[0], batch_first=True)
    np.testing.assert_allclose(lin.states, expected.detach(), rtol=0, atol=1e-15)
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=batch_first)
    mask = torch.tensor([[n > t for t in range(5)] for n in (3, 5, 2)])
    q = torch.randn(3, 5, 4, dtype=torch.float64)
    masked = kpops.linearize(model, padded, mask=mask if batch_first else mask.T)
    torch.testing.assert_close(lin.flow @ q, masked.flow @ q, rtol=0, atol=0)
    with pytest.raises(ValueError, match="have their own lengths"):
        kpops.linearize(model, packed, mask=mask)


STRUCTURES = {
    "P in blocks of trials, K in blocks of units, gated": lambda: torch.nn.LSTM(3, 4),
    "P in blocks of trials, gated": lambda: torch.nn.GRU(3, 4, num_layers=2),
    "P in blocks of trials, P in blocks of units, K in blocks of units, gated": (
        lambda: kpops.models.MinGRUCell(3, 4)
    ),
    "P in blocks of trials, P in blocks of units, scan": (
        lambda: kpops.models.SelectiveSSM(3, 4, rng=0)
    ),
    "P in blocks of trials": lambda: kpops.models.MGUCell(3, 4),
}


@pytest.mark.parametrize("told", STRUCTURES)
def test_structure_is_told_and_true(told):
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = STRUCTURES[told]()
    x = x.transpose(0, 1) if isinstance(model, torch.nn.RNNBase) else x
    lin = kpops.linearize(model.double(), x)
    assert repr(lin).endswith(f" structure: {told}>")
    named = "variable" in lin.states.coords
    variables = len(set(lin.states["variable"].values)) if named else 1
    for name, op in (("P", lin.P), ("K", lin.K)):
        # (trial, time, variable, unit) on both sides: which units are coupled at all?
        shape = (2, 6, variables, -1)
        if "layer" in lin.states.coords:
            continue  # a stack passes up from layer to layer
        dense = op.to_dense().reshape(*shape, *lin.states.values.reshape(shape).shape)
        coupled = abs(dense).sum((0, 1, 2, 4, 5, 6))
        between = coupled - np.diag(np.diag(coupled))
        if lin.structure[f"{name} in blocks of units"]:
            assert not between.any()
        elif name == "P":
            assert between.any()
    assert not lin.P.to_dense().reshape(2, -1, 2, lin.P.shape[0] // 2)[0, :, 1].any()


@pytest.mark.parametrize("gates", ["stored", "float32", "recomputed"])
def test_memory_of_many_trials_is_estimated_from_few(gates):
    gru, x = nn.GRU(3, 16, batch_first=True), torch.randn(40, 12, 3)
    few = kpops.linearize(gru, x[:2], gates=gates)
    lin = kpops.linearize(gru, x, gates=gates)
    for name, n_bytes in lin.memory_estimate().items():
        states = lin.trajectory.states.nbytes
        held = lin.trajectory.inputs.nbytes + 2 * states  # with the states that steps start from
        estimate = few.memory_estimate(trials=40, vectors=0)[name] - held
        assert n_bytes <= estimate <= 1.5 * n_bytes + 1000, name
        of_vectors = few.memory_estimate(trials=40, vectors=3)[name] - estimate - held
        assert of_vectors == 12 * states
        half = few.memory_estimate(trials=40, processes=2)[name]
        assert half == few.memory_estimate(trials=20)[name]


def test_memory_of_many_trials_needs_their_number():
    lin = kpops.linearize(nn.GRU(3, 4, batch_first=True), torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="pass trials="):
        lin.memory_estimate(processes=2)
    with pytest.raises(ValueError, match="trials=0"):
        lin.memory_estimate(trials=0)
