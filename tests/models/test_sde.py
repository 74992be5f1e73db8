"""Neural SDEs along a fixed path: the step, the flow of a path, and convergence to solutions."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, unrolled
from dense import relative
from torch import nn

import kpops
from kpops.models.ode import NeuralODE
from kpops.models.sde import NeuralSDE


class Drift(nn.Module):
    def __init__(self, order="th"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.order = order

    def forward(self, *given):
        now = dict(zip(self.order, given, strict=True))
        h = now["h"]
        drive = now["x"].sum(-1, keepdim=True) if "x" in now else 0.0
        clock = torch.cos(now["t"]) if "t" in now else 1.0
        return torch.tanh(h @ self.weight.T + drive) * clock - h


class Diffusion(nn.Module):
    def __init__(self, order="th"):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.scale = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))

    def forward(self, *given):
        return self.scale * torch.sqrt(1 + given[-1] ** 2)


class Multiple(nn.Module):
    """A multiple of the state."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, t, h):
        return self.factor * h


def external():
    rng = torch.Generator().manual_seed(2)
    return torch.randn(2, 4, 2, generator=rng, dtype=torch.float64)


def start():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, generator=rng, dtype=torch.float64)


CASES = {
    "in_time": lambda: NeuralSDE(Drift(), Diffusion(), 0.1),
    "driven": lambda: NeuralSDE(Drift("xh"), Diffusion(), 0.1, arguments="xh"),
    "unequal": lambda: NeuralSDE(Drift("txh"), Diffusion(), None, arguments="txh"),
}


def inputs_of(sde, rng=0):
    times = [0.0, 0.1, 0.3, 0.6, 0.7] if sde.dt is None else sde.dt * np.arange(5)
    x = external().to(next(sde.parameters())) if "x" in sde.arguments else None
    return sde.inputs(times, 3, x, n_trials=2, rng=rng)


@pytest.mark.parametrize("name", CASES)
def test_the_operators_are_those_of_autograd_on_the_unrolled_path(name):
    sde = CASES[name]()
    inputs, h0 = inputs_of(sde), start()
    assert_contract(sde, inputs, unrolled(sde, inputs, h0), h0=h0)


@pytest.mark.parametrize("name", CASES)
def test_inputs_come_in_the_dtype_of_the_parameters(name):
    assert inputs_of(CASES[name]().float()).dtype == torch.float32


def test_a_step_is_drift_and_diffusion_at_its_start():
    sde, h = CASES["unequal"](), start()
    dt, t, x, dW = inputs_of(sde)[:, 2].split([1, 1, 2, 3], -1)
    assert dt[0].item() == pytest.approx(0.3)
    assert t[0].item() == pytest.approx(0.3)
    assert torch.equal(x, external()[:, 2])
    expected = h + sde.drift(t, x, h) * dt + sde.diffusion(t, x, h) * dW
    assert relative(sde(inputs_of(sde)[:, 2], h).detach(), expected.detach()) < 1e-15


def test_without_noise_it_is_eulers_method():
    sde = NeuralSDE(Drift(), lambda t, h: torch.zeros_like(h), 0.1)
    ode = NeuralODE(Drift(), 0.1)
    noisy, quiet = inputs_of(sde), ode.inputs(0.1 * np.arange(5), n_trials=2)
    ours, theirs = (kpops.linearize(m, x, h0=start()) for m, x in ((sde, noisy), (ode, quiet)))
    assert np.array_equal(ours.states.values, theirs.states.values)
    assert relative(ours.flow.to_dense(), theirs.flow.to_dense()) < 1e-15


def test_P_of_a_multiplicative_path_is_the_product_of_its_steps():
    sde = NeuralSDE(Multiple(0.5), Multiple(0.8), 0.1)
    inputs = sde.inputs(0.1 * np.arange(7), 1, rng=4)
    lin = kpops.linearize(sde, inputs, h0=torch.ones(1, dtype=torch.float64))
    growth = (1 + 0.5 * 0.1 + 0.8 * inputs[0, :, 1]).numpy()
    P = np.array([[growth[s + 1 : t + 1].prod() * (t >= s) for s in range(6)] for t in range(6)])
    assert relative(lin.P.to_dense(), P) < 1e-14
    before = np.concatenate([[1.0], lin.states.values[0, :-1, 0]])
    J = before[:, None] * np.stack([np.full(6, 0.1), inputs[0, :, 1].numpy()], 1)
    assert relative(lin.J.to_dense(), J) < 1e-14


def test_additive_noise_leaves_P_of_a_linear_drift_alone():
    sde = NeuralSDE(Multiple(-1.0), lambda t, h: torch.ones_like(h), 0.1)
    P = [
        kpops.linearize(sde, sde.inputs(0.1 * np.arange(7), 2, rng=seed), h0=np.ones(2)).P
        for seed in (0, 1)
    ]
    assert relative(P[0].to_dense(), P[1].to_dense()) < 1e-15


def test_multiplicative_noise_converges_along_its_path_at_order_one_half():
    # Ito: h(t) = exp((a - b^2/2) t + b W(t)); Stratonovich's solution lacks the b^2/2.
    a, b, finest, n_paths = 0.3, 0.9, 512, 2000
    sde = NeuralSDE(Multiple(a), Multiple(b), None)
    fine = sde.inputs(np.linspace(0, 1, finest + 1), 1, n_trials=n_paths, rng=0)
    exact = torch.exp((a - b**2 / 2) + b * fine[:, :, 2].sum(1))
    errors = []
    for n_steps in (32, 64, 128):
        inputs = sde.inputs(np.linspace(0, 1, n_steps + 1), 1, n_trials=n_paths)
        inputs[:, :, 2] = fine[:, :, 2].unflatten(1, (n_steps, -1)).sum(2)
        h = torch.ones(n_paths, 1, dtype=torch.float64)
        with torch.no_grad():
            for t in range(n_steps):
                h = sde(inputs[:, t], h)
        errors.append(float((h[:, 0] - exact).square().mean().sqrt()))
    assert errors[-1] < 0.15
    assert np.log2(errors[0] / errors[-1]) / 2 == pytest.approx(0.5, abs=0.1)


def test_increments_have_the_length_of_their_step_as_variance():
    sde = NeuralSDE(Multiple(1.0), Multiple(1.0), None)
    dW = sde.inputs([0.0, 0.1, 2.1], 3, n_trials=20000, rng=0)[..., 2:]
    assert dW.mean((0, 2)).abs().max() < 0.03
    np.testing.assert_allclose(dW.var((0, 2)), [0.1, 2.0], rtol=0.03)
    correlation = torch.corrcoef(dW.flatten(1).T) - torch.eye(6)
    assert correlation.abs().max() < 0.03


def test_the_same_seed_gives_the_same_path():
    sde = CASES["in_time"]()
    assert torch.equal(inputs_of(sde, 5), inputs_of(sde, np.random.default_rng(5)))
    assert not torch.equal(inputs_of(sde, 5), inputs_of(sde, 6))


@pytest.mark.parametrize(
    ("drift", "diffusion", "dt", "error", "told"),
    [
        (None, Diffusion(), 0.1, TypeError, "drift is a NoneType, expected an nn.Module or a"),
        (Drift(), 0.1, 0.1, TypeError, "diffusion is a float, expected"),
        (Drift(), Diffusion().forward, 0.1, ValueError, "diffusion is a method of Diffusion"),
        (Drift(), Diffusion(), -0.1, ValueError, "dt=-0.1: pass the length of a step"),
    ],
)
def test_wrong_options_are_refused(drift, diffusion, dt, error, told):
    with pytest.raises(error, match=told):
        NeuralSDE(drift, diffusion, dt)


@pytest.mark.parametrize("n_features", [3, 5])
def test_inputs_without_a_path_are_refused(n_features):
    wanted = f"inputs has {n_features - 1} features after those of time, NeuralSDE takes .* 3 incr"
    with pytest.raises(ValueError, match=wanted):
        CASES["in_time"]()(torch.zeros(2, n_features, dtype=torch.float64), start())


def test_a_diffusion_of_another_shape_is_refused():
    sde = NeuralSDE(Drift(), lambda t, h: torch.eye(3), 0.1)
    with pytest.raises(ValueError, match=r"the field returned \(3, 3\) for h of shape \(2, 3\)"):
        sde(inputs_of(sde)[:, 0], start())
