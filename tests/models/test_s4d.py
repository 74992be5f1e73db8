"""S4D: the modes of its starts, exactness of the hold, and channels that stay apart."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, unrolled
from dense import relative

import kpops
from kpops.models import s4d

FORMULAS = {
    "lin": lambda n, M: complex(-0.5, np.pi * n),
    "inv": lambda n, M: complex(-0.5, 2 * M / np.pi * (2 * M / (2 * n + 1) - 1)),
    "real": lambda n, M: -(n + 1.0),
}


@pytest.fixture(autouse=True)
def float64():
    """Layers are drawn in float64 and kept there."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def modes(layer):
    """Radius and angle of every mode of a layer, as the complex a."""
    radius = torch.exp(-layer.log_rate.exp()).detach().numpy()
    return radius * np.exp(1j * layer.phase.detach().numpy() if layer.form == "complex" else 0j)


@pytest.mark.parametrize("start", FORMULAS)
def test_modes_are_those_of_the_continuous_system(start):
    layer = s4d(1, 5, start=start, dt=(0.02, 0.02), rng=0)
    expected = [np.exp(0.02 * FORMULAS[start](n, 5)) for n in range(5)]
    np.testing.assert_allclose(modes(layer), expected, rtol=1e-13)


@pytest.mark.parametrize("start", FORMULAS)
def test_states_under_a_constant_input_are_those_of_the_continuous_system(start):
    # z(t) = (exp(lambda t) - 1) / lambda for x = 1, exactly, since the hold is exact.
    layer = s4d(1, 5, start=start, dt=(0.1, 0.1), rng=0)
    lin = kpops.linearize(layer, torch.ones(1, 30, 1))
    states = lin.states.values[0]
    if layer.form == "complex":
        states = states[:, :5] + 1j * states[:, 5:]
    t = 0.1 * np.arange(1, 31)[:, None]
    rates = np.array([FORMULAS[start](n, 5) for n in range(5)])
    np.testing.assert_allclose(states, np.expm1(rates * t) / rates, rtol=1e-11)


def test_outputs_are_the_convolution_with_the_kernel():
    layer, x = s4d(1, 4, dt=(0.05, 0.05), rng=0), normal(1, 25, 1)
    weights = normal(4, seed=3).numpy() + 1j * normal(4, seed=4).numpy()
    readout = torch.nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        readout.weight.copy_(torch.from_numpy(np.concatenate([weights.real, -weights.imag])))
    lin = kpops.linearize(layer, x, readout=readout)
    rates = np.array([FORMULAS["lin"](n, 4) for n in range(4)])
    lags = np.exp(0.05 * rates * np.arange(25)[:, None])
    kernel = (lags * (np.expm1(0.05 * rates) / rates) @ weights).real
    expected = np.convolve(kernel, x[0, :, 0].numpy())[:25]
    assert relative(lin.outputs.values[0, :, 0], expected) < 1e-12


def test_the_operators_of_several_channels_are_those_of_autograd():
    layer = s4d(2, 2, start="inv", dt=(0.2, 0.5), rng=0)
    x, h0 = normal(2, 4, 2), normal(2, 8)
    assert_contract(layer, x, unrolled(layer, x, h0), engine="scan", h0=h0)


@pytest.mark.parametrize("start", ["lin", "real"])
def test_channels_see_their_own_input_alone_also_as_they_learn(start):
    layer, x = s4d(2, 3, start=start, rng=0), normal(2, 6, 2)
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    other = x.clone()
    other[..., 1] = 7
    h = torch.zeros(2, layer.state_size)
    moved = layer(other[:, 0], h) != layer(x[:, 0], h)
    per_part = moved.unflatten(1, (-1, 2, 3)).any(0)
    assert not per_part[:, 0].any()
    assert per_part[:, 1].all()


def test_steps_are_drawn_log_uniformly_in_their_range():
    layer = s4d(2000, 1, start="real", rng=0)
    steps = layer.log_rate.exp().detach().numpy()  # lambda = -1
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 1.001e-1
    assert abs(np.log(steps).mean() - np.log(1e-2)) < 0.1


def test_the_same_seed_gives_the_same_layer():
    once, again = (s4d(2, 3, rng=5).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"input_size": 0}, "input_size=0: pass an int"),
        ({"n_modes": 0}, "n_modes=0: pass an int"),
        ({"start": "legs"}, "start='legs': choose one of"),
        ({"dt": (0.1, 0.01)}, r"dt=\(0.1, 0.01\): pass a rising pair above 0"),
        ({"dt": 0.1}, r"dt=0.1: pass a rising pair above 0"),
        ({"dt": ("a", "b")}, r"dt=\('a', 'b'\): pass a rising pair above 0"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        s4d(**{"input_size": 2, "n_modes": 3, **options})
