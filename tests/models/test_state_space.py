"""State-space layers: their formulas, their operators, their starts."""

import math

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, unrolled
from dense import relative
from torch.nn import functional as F

import kpops
import kpops.testing
from kpops.models import DiagonalSSM, LinearTimeVarying, SelectiveSSM

LAYERS = {
    "real": lambda: DiagonalSSM(2, 4, form="real", rng=0),
    "complex": lambda: DiagonalSSM(2, 2, rng=0),
    "selective": lambda: SelectiveSSM(2, 3, rng=0),
    "varying": lambda: LinearTimeVarying(2, 4, rng=0),
}


def data(size, n_trials=3, n_steps=5, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(n_trials, n_steps, 2, generator=rng, dtype=dtype)
    return inputs, torch.randn(n_trials, size, generator=rng, dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_the_operators_are_those_of_autograd(name):
    layer = LAYERS[name]().double()
    inputs, h0 = data(layer.state_size)
    engine = "jacobian" if name == "varying" else "scan"
    assert_contract(layer, inputs, unrolled(layer, inputs, h0), engine=engine, h0=h0)


def test_the_real_form_is_its_formula_and_P_its_powers():
    layer = LAYERS["real"]().double()
    (x, h), a = data(4), torch.exp(-layer.log_rate.exp()).detach()
    step = layer(x[:, 0], h).detach()
    assert relative(step, a * h + x[:, 0] @ layer.weight.detach().T) < 1e-15
    P = torch.from_numpy(kpops.linearize(layer, x).P.select(trial=0).to_dense())
    P = P.reshape(5, 4, 5, 4)
    for unit in range(4):
        powers = torch.tensor([[a[unit] ** (t - s) * (t >= s) for s in range(5)] for t in range(5)])
        assert relative(P[:, unit, :, unit], powers) < 1e-14


def test_the_complex_form_is_complex_arithmetic():
    layer = LAYERS["complex"]().double()
    x, h = data(4)
    a = torch.polar(torch.exp(-layer.log_rate.exp()), layer.phase).detach()
    B = torch.complex(*layer.weight.detach().chunk(2))
    z = a * torch.complex(*h.chunk(2, -1)) + x[:, 0].to(B) @ B.T
    assert relative(layer(x[:, 0], h).detach(), torch.cat([z.real, z.imag], -1)) < 1e-15


def test_singular_values_of_a_complex_mode_are_those_of_its_radius():
    # Rotations of every state undo the phases, so that P is unitarily that of the real mode.
    layer = DiagonalSSM(2, 1, radius=(0.9, 0.9), rng=3).double()
    x = data(2, n_trials=1, n_steps=50)[0]
    found = np.linalg.svd(kpops.linearize(layer, x).P.to_dense(), compute_uv=False)
    assert abs(found[0] - 8.9353) < 1e-4  # theory: a = 0.9, T = 50
    assert abs(found[0] / found[1] - 1) < 1e-12
    assert abs((found**2).sum() / 2 - 240.7208) < 1e-4


def test_the_selective_form_is_its_formula_channel_by_channel():
    layer = LAYERS["selective"]().double()
    x, h = data(6)
    x = x[:, 0]
    delta = F.softplus(x @ layer.step_weight.T + layer.step_bias)
    expected = torch.empty_like(h)
    for c in range(2):
        for n in range(3):
            decay = torch.exp(-delta[:, c] * layer.log_rate[c, n].exp())
            drive = delta[:, c] * (x @ layer.drive_weight[n]) * x[:, c]
            expected[:, 3 * c + n] = decay * h[:, 3 * c + n] + drive
    assert relative(layer(x, h).detach(), expected.detach()) < 1e-14


def test_one_hot_features_choose_the_matrix_of_a_step():
    layer = LinearTimeVarying(5, 3, rng=0).double()
    x = torch.eye(5, dtype=torch.float64)[None]
    P = torch.from_numpy(kpops.linearize(layer, x).P.to_dense()).reshape(5, 3, 5, 3)
    product = torch.eye(3, dtype=torch.float64)
    for t in range(1, 5):
        product = (layer.recurrent + layer.modulation[t]).detach() @ product
        assert relative(P[t, :, 0], product) < 1e-13


def test_variables_and_channels_are_labelled():
    inputs, _ = data(4)
    lin = kpops.linearize(LAYERS["complex"]().double(), inputs)
    assert lin.states["variable"].values.tolist() == ["re", "re", "im", "im"]
    lin = kpops.linearize(LAYERS["selective"]().double(), inputs)
    assert lin.states.channel.values.tolist() == [0, 0, 0, 1, 1, 1]
    lin = kpops.linearize(LAYERS["real"]().double(), inputs)
    assert set(lin.states.coords) == {"trial", "time", "unit"}


def test_radii_start_in_the_ring_and_states_at_unit_variance():
    layer = DiagonalSSM(3, 400, radius=(0.8, 0.95), rng=0).double()
    radius = torch.exp(-layer.log_rate.exp())
    assert 0.8 <= radius.min() < 0.81
    assert 0.94 < radius.max() <= 0.95
    assert 0 <= layer.phase.min() < 0.1
    assert 3.0 < layer.phase.max() <= math.pi
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 100, 3, generator=rng, dtype=torch.float64)
    states = kpops.linearize(layer, x, engine="autodiff").trajectory.states[:, -20:]
    re, im = states.chunk(2, -1)
    assert abs(float((re**2 + im**2).mean()) - 1) < 0.05


def test_selective_steps_start_in_their_range():
    layer = SelectiveSSM(200, 2, rng=0)
    step = F.softplus(layer.step_bias)
    assert step.min() >= 0.999e-3
    assert step.max() <= 1.001e-1
    assert torch.allclose(layer.log_rate.exp(), torch.tensor([1.0, 2.0]).expand(200, 2))


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_seed_gives_the_same_layer(name):
    once, again = LAYERS[name]().state_dict(), LAYERS[name]().state_dict()
    assert all(torch.equal(once[key], again[key]) for key in once)


def test_a_subclass_with_a_step_of_its_own_is_not_taken_for_diagonal():
    class Coupled(DiagonalSSM):
        def forward(self, x, h):
            return super().forward(x, h) + 0.1 * h.mean(-1, keepdim=True)

    class Weighted(SelectiveSSM):
        def forward(self, x, h):
            return super().forward(x, h.roll(1, -1))

    x, _ = data(4)
    for layer in (Coupled(2, 4, rng=0), Weighted(2, 2, rng=0)):
        lin = kpops.linearize(layer.double(), x)
        assert lin.engine.name == "jacobian"
        kpops.testing.check_linearization(lin)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: DiagonalSSM(2, 0), "n_modes=0: pass an int, 1 or more"),
        (lambda: DiagonalSSM(2, 3, form="imaginary"), "form='imaginary': choose"),
        (lambda: DiagonalSSM(2, 3, radius=(0.5, 1.0)), r"radius=\(0.5, 1.0\): pass a rising pair"),
        (lambda: SelectiveSSM(0, 3), "input_size=0: pass an int"),
        (lambda: LinearTimeVarying(2, 2.5), "state_size=2.5: pass an int"),
    ],
)
def test_wrong_options_are_refused(build, told):
    with pytest.raises(ValueError, match=told):
        build()
