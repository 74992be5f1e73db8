"""Initial recurrent weights of scale g, and the spectral radius that a training writes down."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kpops.models.cells import LeakyCell
from kpops.models.initial import initialize_recurrent, spectral_radius
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, train

TASK = memory_pro(24, rng=0, steps=(3, 2, 3))
SETTINGS = {"max_steps": 6, "batch_size": 8, "checkpoint_every": 2, "rng": 1}
SQRT3 = math.sqrt(3)


def blocks_of(weight):
    return weight.detach().split(weight.shape[1])


def radius(block):
    return np.abs(np.linalg.eigvals(block.detach().numpy())).max()


# The draw


@pytest.mark.parametrize("g", [0.5, 1.0, 1.8])
@pytest.mark.parametrize(("distribution", "expected"), [("normal", 1.0), ("uniform", 1 / SQRT3)])
def test_entries_have_the_variance_that_the_scale_says(g, distribution, expected):
    rnn = initialize_recurrent(nn.RNN(2, 300), g, distribution=distribution, rng=0)
    entries = math.sqrt(300) / (g * expected) * rnn.weight_hh_l0.detach().double()
    n = entries.numel()
    assert abs(entries.mean()) < 5 / math.sqrt(n)
    assert abs(entries.square().mean() - 1) < 5 * math.sqrt(2 / n)
    kurtosis = 3.0 if distribution == "normal" else 1.8
    assert abs(entries.pow(4).mean() - kurtosis) < 5 * math.sqrt(96 / n)
    if distribution == "uniform":
        assert entries.abs().max() <= SQRT3 * (1 + 1e-6)


@pytest.mark.parametrize(("distribution", "expected"), [("normal", 1.0), ("uniform", 1 / SQRT3)])
def test_spectral_radius_follows_the_circular_law(distribution, expected):
    lstm = initialize_recurrent(nn.LSTM(2, 300), 1.5, distribution=distribution, rng=0)
    np.testing.assert_allclose(spectral_radius(lstm), 1.5 * expected, rtol=0.1)


def test_uniform_scale_one_is_the_initialisation_of_pytorch():
    drawn = initialize_recurrent(nn.GRU(2, 200), 1.0, distribution="uniform", rng=0)
    default = nn.GRU(2, 200)
    ratio = drawn.weight_hh_l0.std() / default.weight_hh_l0.std()
    assert abs(ratio.item() - 1) < 0.02
    assert drawn.weight_hh_l0.abs().max() <= 1 / math.sqrt(200)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_weights_of_one_seed_are_proportional_to_g(distribution):
    one, two = (
        initialize_recurrent(nn.GRU(3, 5).double(), g, distribution=distribution, rng=4)
        for g in (0.7, 1.4)
    )
    torch.testing.assert_close(2 * one.weight_hh_l0, two.weight_hh_l0, rtol=1e-14, atol=0)


def test_gates_and_layers_are_drawn_independently():
    gru = initialize_recurrent(nn.GRU(3, 60, num_layers=2), 1.0, rng=0)
    blocks = [b for w in (gru.weight_hh_l0, gru.weight_hh_l1) for b in blocks_of(w)]
    correlation = np.corrcoef([block.numpy().ravel() for block in blocks])
    assert np.abs(correlation - np.eye(6)).max() < 5 / 60


MODULES = {
    "rnn": lambda: nn.RNN(3, 5, num_layers=2),
    "gru": lambda: nn.GRU(3, 5, bidirectional=True),
    "lstm": lambda: nn.LSTM(3, 5, batch_first=True),
    "cell": lambda: nn.GRUCell(3, 5),
    "leaky": lambda: LeakyCell(3, 5, alpha=0.2),
    "network": lambda: Network(nn.GRU(3, 5, num_layers=3), nn.Linear(5, 2)),
    "list": lambda: nn.ModuleList([nn.RNNCell(3, 5), nn.LSTM(5, 7)]),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_recurrent_weights_change_and_the_module_is_returned(name, dtype):
    model = MODULES[name]().to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert initialize_recurrent(model, 1.2, rng=0) is model
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != ("weight_hh" in key), key
        assert value.dtype == dtype
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_seed_decides_the_weights_and_the_global_state_does_not_matter():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights = [
        initialize_recurrent(m, 1.0, rng=s).weight_hh_l0
        for m, s in zip([nn.RNN(1, 4) for _ in range(3)], [1, 1, 2], strict=True)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.set_rng_state(state)
    generator = np.random.default_rng(1)
    assert torch.equal(
        initialize_recurrent(nn.RNN(1, 4), 1.0, rng=generator).weight_hh_l0, weights[0]
    )


def test_initialisation_leaves_the_random_states_alone():
    model = nn.RNN(1, 4)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[2]
    initialize_recurrent(model, 1.0, rng=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[2] == numpy_before


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.RNN(1, 2), {"g": -1.0}, "g=-1.0"),
        (nn.RNN(1, 2), {"g": math.nan}, "g=nan"),
        (nn.RNN(1, 2), {"g": 1, "distribution": "orthogonal"}, "distribution='orthogonal'"),
        (nn.Linear(2, 2), {"g": 1}, "Linear has no recurrent weights"),
        (nn.LSTM(3, 6, proj_size=2), {"g": 1}, r"shape \(24, 2\) and a projection"),
    ],
)
def test_wrong_use_of_the_initialisation_is_named(model, options, message):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_recurrent(model, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# The spectral radius


def test_spectral_radius_is_the_largest_eigenvalue_of_each_block():
    model = MODULES["list"]().double()
    radii = spectral_radius(model)
    lstm = [f"1.weight_hh_l0[{gate}]" for gate in "ifgo"]
    assert radii.parameter.values.tolist() == ["0.weight_hh", *lstm]
    assert radii.dtype == np.float64
    wanted = [radius(b) for b in (model[0].weight_hh, *blocks_of(model[1].weight_hh_l0))]
    np.testing.assert_allclose(radii, wanted, rtol=1e-12)


def test_gates_of_a_gru_are_in_the_order_of_pytorch():
    gru = nn.GRU(1, 3)
    with torch.no_grad():
        for number, block in enumerate(gru.weight_hh_l0.split(3), start=1):
            block.copy_(number * torch.eye(3))
    radii = spectral_radius(gru)
    found = {gate: radii.sel(parameter=f"weight_hh_l0[{gate}]").item() for gate in "rzn"}
    assert found == {"r": 1.0, "z": 2.0, "n": 3.0}


def test_spectral_radius_of_a_state_dict_is_that_of_its_model():
    model = MODULES["network"]()
    xr.testing.assert_identical(spectral_radius(model.state_dict()), spectral_radius(model))


def test_wrong_use_of_the_spectral_radius_is_named():
    with pytest.raises(ValueError, match="there are no recurrent weights"):
        spectral_radius(nn.Linear(2, 2))
    rnn = nn.RNN(1, 2)
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = math.inf
    with pytest.raises(ValueError, match="weight_hh_l0 is not finite"):
        spectral_radius(rnn)


# What a training writes down


def make(g=1.5, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(nn.GRU(3, 6), nn.Linear(6, 3))
    return network if g is None else initialize_recurrent(network, g, rng=0)


def test_history_holds_the_radii_of_the_first_and_the_last_checkpoint(tmp_path):
    history = train(make(), TASK, folder=tmp_path, **SETTINGS)
    saved = checkpoints(tmp_path)
    for name, (_, state) in [("initial_spectral_radius", saved[0]), ("spectral_radius", saved[-1])]:
        wanted = spectral_radius(state)
        np.testing.assert_array_equal(history[name], wanted)
        np.testing.assert_array_equal(history.parameter, wanted.parameter)
        assert history[name].dtype == np.float32
    assert not np.array_equal(history.initial_spectral_radius, history.spectral_radius)


def test_radii_of_the_first_step_are_kept_when_a_training_resumes(tmp_path):
    whole = train(make(), TASK, folder=tmp_path / "whole", **SETTINGS)
    for max_steps in (3, SETTINGS["max_steps"]):
        settings = {**SETTINGS, "max_steps": max_steps, "folder": tmp_path / "parts"}
        history = train(make(seed=max_steps if max_steps > 3 else 0), TASK, **settings)
    xr.testing.assert_identical(history, whole)


def test_scale_is_part_of_the_configuration(tmp_path):
    history = train(make(g=1.5), TASK, folder=tmp_path, **SETTINGS)
    configuration = json.loads(history.attrs["configuration"])
    wanted = {"g": 1.5, "distribution": "normal"}
    assert configuration["recurrent: recurrent_init"] == wanted
    with pytest.raises(ValueError, match=r"recurrent: recurrent_init is .*1\.5.* there and .*1\.2"):
        train(make(g=1.2), TASK, folder=tmp_path, **SETTINGS)
    plain = train(make(g=None), TASK, folder=tmp_path / "plain", **SETTINGS)
    assert "recurrent_init" not in plain.attrs["configuration"]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", ["projected", "by another name"])
def test_models_without_square_recurrent_weights_have_a_loss_alone(tmp_path, case):
    class OwnRNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.U = nn.Linear(4, 4), nn.Linear(3, 4)
            self.C = nn.Linear(4, 3)

        def forward(self, inputs):
            h, outputs = inputs.new_zeros(len(inputs), 4), []
            for x in inputs.unbind(1):
                h = torch.tanh(self.W(h) + self.U(x))
                outputs.append(self.C(h))
            return torch.stack(outputs, 1)

    model = (
        OwnRNN() if case != "projected" else Network(nn.LSTM(3, 6, proj_size=2), nn.Linear(2, 3))
    )
    history = train(model, TASK, folder=tmp_path, **SETTINGS)
    assert set(history.variables) == {"loss", "step"}


def test_radii_of_checkpoints_written_before_they_were_recorded_are_nan(tmp_path):
    history = train(make(), TASK, folder=tmp_path, **SETTINGS)
    path = tmp_path / "step_00000006.pt"
    content = torch.load(path, weights_only=True)
    del content["initial_spectral_radius"]
    torch.save(content, path)
    again = train(make(), TASK, folder=tmp_path, **SETTINGS)
    assert np.isnan(again.initial_spectral_radius).all()
    xr.testing.assert_identical(
        again.drop_vars("initial_spectral_radius"), history.drop_vars("initial_spectral_radius")
    )
