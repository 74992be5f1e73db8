"""Neural ODEs: the solver's step, forcing as a rate, grids of times, and the limit dt -> 0."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
import xarray as xr
from cell_contract import assert_contract, unrolled
from dense import relative
from torch import nn

import kpops
import kpops.testing
from kpops.models.ode import NeuralODE

METHODS = {"euler": 1, "midpoint": 2, "rk4": 4}


class TimeField(nn.Module):
    """A vector field as torchdiffeq has it, that depends on time."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.shift = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))

    def forward(self, t, h):
        return torch.tanh(h @ self.weight.T + self.shift * torch.sin(3 * t)) - h


class DrivenField(TimeField):
    """The same with external inputs, whatever the order of its arguments."""

    def __init__(self, order):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.drive = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.order = order

    def forward(self, *given):
        now = dict(zip(self.order, given, strict=True))
        t = now.get("t", torch.zeros((), dtype=torch.float64))
        return super().forward(t, now["h"]) + torch.sin(now["x"] @ self.drive.T)


class LinearField(nn.Module):
    """dh/dt = A h."""

    def __init__(self, A):
        super().__init__()
        self.A = nn.Parameter(torch.as_tensor(A, dtype=torch.float64))

    def forward(self, t, h):
        return h @ self.A.T


def external(n_trials=2, n_steps=4):
    rng = torch.Generator().manual_seed(2)
    return torch.randn(n_trials, n_steps, 2, generator=rng, dtype=torch.float64)


def start(n_trials=2, size=3):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(n_trials, size, generator=rng, dtype=torch.float64)


UNEQUAL = [0.0, 0.1, 0.4, 0.5, 0.8]

CASES = {
    **{m: (lambda m=m: NeuralODE(TimeField(), 0.2, m)) for m in METHODS},
    "rate": lambda: NeuralODE(TimeField(), 0.2, "rk4", forcing="rate"),
    "substeps": lambda: NeuralODE(TimeField(), 0.2, "midpoint", n_substeps=3),
    "unequal": lambda: NeuralODE(TimeField(), None, "rk4"),
    "driven": lambda: NeuralODE(DrivenField("xh"), 0.2, "rk4", arguments="xh"),
    "driven_in_time": lambda: NeuralODE(DrivenField("txh"), None, "midpoint", arguments="txh"),
}


def inputs_of(ode):
    times = 0.3 + (np.array(UNEQUAL) if ode.dt is None else ode.dt * np.arange(5))
    x = external().to(next(ode.parameters())) if "x" in ode.arguments else None
    return ode.inputs(times, x, n_trials=2)


@pytest.mark.parametrize("name", CASES)
def test_the_operators_are_those_of_autograd_on_the_unrolled_solver(name):
    ode = CASES[name]()
    inputs, h0 = inputs_of(ode), start()
    assert_contract(ode, inputs, unrolled(ode, inputs, h0), h0=h0)


@pytest.mark.parametrize("name", CASES)
def test_inputs_come_in_the_dtype_of_the_parameters(name):
    assert inputs_of(CASES[name]().float()).dtype == torch.float32


# The solver.


@pytest.mark.parametrize(("method", "order"), METHODS.items())
def test_states_converge_to_the_solution_at_the_solvers_order(method, order):
    # dh/dt = -2 t h^2 has the solution 1 / (1/h0 + t^2).
    errors = []
    for n_steps in (20, 40, 80):
        ode = NeuralODE(lambda t, h: -2 * t * h**2, 1 / n_steps, method)
        h = torch.tensor([[2.0]], dtype=torch.float64)
        for t in range(n_steps):
            h = ode(torch.tensor([[t / n_steps]], dtype=torch.float64), h)
        errors.append(abs(float(h) - 1 / 1.5))
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_linear_field_is_the_taylor_polynomial(method):
    A = torch.tensor([[-0.3, 2.0], [0.1, -0.7]], dtype=torch.float64)
    ode, h = NeuralODE(LinearField(A), 0.3, method, n_substeps=2), start(size=2)
    terms = [torch.linalg.matrix_power(0.15 * A, k) / math.factorial(k) for k in range(5)]
    step = sum(terms[: METHODS[method] + 1])
    assert relative(ode(torch.zeros(2, 1), h).detach(), h @ (step @ step).T) < 1e-14


def test_steps_of_given_lengths_are_those_of_models_of_that_dt():
    unequal, h = NeuralODE(TimeField(), None, "rk4"), start()
    found = kpops.linearize(unequal, unequal.inputs(UNEQUAL, n_trials=2), h0=h).states
    for k, (begin, end) in enumerate(itertools.pairwise(UNEQUAL)):
        one = NeuralODE(TimeField(), end - begin, "rk4")
        h = one(one.inputs([begin, end], n_trials=2)[:, 0], h).detach()
        assert relative(found.values[:, k], h) < 1e-14


def test_every_trial_may_have_a_grid_of_its_own():
    ode, h0 = NeuralODE(TimeField(), None), start()
    grids = np.array([UNEQUAL, [0.0, 0.3, 0.4, 0.45, 0.5]])
    both = kpops.linearize(ode, ode.inputs(grids), h0=h0).states.values
    for trial in range(2):
        alone = kpops.linearize(ode, ode.inputs(grids[trial]), h0=h0[trial]).states.values
        assert relative(both[trial], alone[0]) < 1e-15


# Forcing as a rate.

NON_NORMAL = np.array([[-1.0, 4.0], [0.0, -2.0]])


def linear(A, n_steps, method="rk4", forcing="rate", **options):
    A = np.atleast_2d(A)
    dt = 1 / n_steps
    ode = NeuralODE(LinearField(A), dt, method, forcing=forcing)
    h0 = torch.ones(len(A), dtype=torch.float64)
    return kpops.linearize(ode, ode.inputs(dt * np.arange(n_steps + 1)), h0=h0, **options)


def leading(matrix, k=3):
    return np.linalg.svd(matrix, compute_uv=False)[:k]


@pytest.mark.parametrize("n_steps", [1, 3, 10, 80])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("forcing", ["state", "rate"])
def test_adjoints_are_exact_at_every_dt(forcing, method, n_steps):
    lin = linear(NON_NORMAL, n_steps, method, forcing)
    for op in (lin.P, lin.P_inv, lin.J, lin.K, lin.flow, lin.sensitivity):
        figures = kpops.testing.check_operator(op)
        assert figures["adjoint"] < 1e-14
        assert figures.get("dense", 0) < 1e-13


def test_rates_scale_the_operators_and_leave_the_flow():
    ode = NeuralODE(TimeField(), 0.05, "rk4", forcing="rate")
    kick = NeuralODE(TimeField(), 0.05, "rk4")
    inputs = inputs_of(ode)
    options = {"h0": start(), "readout": nn.Linear(3, 2).double(), "measure": "mean"}
    rate, state = (kpops.linearize(m, inputs, **options) for m in (ode, kick))
    pairs = {
        0.05: ("P",),
        20.0: ("P_inv", "J"),
        400.0: ("K",),
        1.0: ("flow", "sensitivity", "output_ntk"),
    }
    for factor, names in pairs.items():
        for name in names:
            ours, theirs = (getattr(lin, name).to_dense() for lin in (rate, state))
            assert relative(ours, factor * theirs) < 1e-13
    for name, K in rate.K_by_parameter.items():
        assert relative(K.to_dense(), 400 * state.K_by_parameter[name].to_dense()) < 1e-13
    assert rate.K.positive and rate.flow.positive and rate.flow.self_adjoint
    identity = rate.P.to_dense() @ rate.P_inv.to_dense()
    assert relative(identity, torch.eye(len(identity))) < 1e-13


def test_rates_are_told_in_the_repr_and_in_the_results():
    rate, state = (linear(NON_NORMAL, 4, forcing=f) for f in ("rate", "state"))
    assert "measure sum, forcing rate, dt 0.25, float64" in repr(rate)
    assert kpops.svds(rate.P, k=1).attrs["forcing"] == "rate, dt 0.25"
    assert repr(rate.P).startswith("<0.25 P (trial: 1")
    assert "forcing" not in repr(state)
    assert "forcing" not in state.P.attrs


def test_exact_norms_and_traces_know_of_rates():
    lin = linear(NON_NORMAL, 12)
    P = torch.from_numpy(lin.P.to_dense())
    assert float(kpops.frobenius_norm(lin.P).estimate) == pytest.approx(float(P.norm()), rel=1e-12)
    assert float(kpops.trace(lin.P).estimate) == pytest.approx(2 * 12 / 12, rel=1e-12)


def test_gradient_flow_predicts_the_same_change_of_states():
    targets = torch.zeros(1, 12, 2, dtype=torch.float64)
    kick, rate = (
        kpops.gradient_flow(linear(NON_NORMAL, 12, forcing=f, readout=lambda h: h), targets)
        for f in ("state", "rate")
    )
    assert relative(rate.state_change.values, kick.state_change.values) < 1e-13
    assert relative(rate.forcing.values, 12 * kick.forcing.values) < 1e-13
    assert relative(rate.adjoint.values, kick.adjoint.values / 12) < 1e-13


# The limit dt -> 0. The singular values s of (Vq)(t) = int_0^t exp(A (t - r)) q(r) dr on [0, 1]
# solve V*V q = s^2 q. With u = Vq and w = q this is the boundary value problem
#     u' = A u + w,    w' = -A^T w - u / s^2,    u(0) = 0,    w(1) = 0,
# so that s is one where the map from w(0) to w(1) is singular.


def exact_singular_values(A, count):
    A = np.atleast_2d(A)
    n = len(A)

    def miss(log_s):
        field = np.block([[A, np.eye(n)], [-np.eye(n) * np.exp(-2 * log_s), -A.T]])
        return np.linalg.det(scipy.linalg.expm(field)[n:, n:])

    brackets = itertools.pairwise(np.linspace(2, -5, 1500))
    roots = [scipy.optimize.brentq(miss, a, b) for a, b in brackets if miss(a) * miss(b) < 0]
    return np.exp(roots[:count])


def test_the_reference_knows_the_integrator():
    expected = [1 / ((k - 0.5) * math.pi) for k in (1, 2, 3)]
    assert exact_singular_values(0.0, 3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_integrators_singular_values_are_those_of_a_time_half_a_step_longer(method):
    # Forcing behind the step is a rectangle rule: 1 / (2 sin((2k - 1) pi / (4 N + 2))) of dt.
    n_steps, k = 40, np.arange(1, 4)
    found = n_steps * leading(linear(0.0, n_steps, method).P.to_dense())
    assert found == pytest.approx(1 / (2 * np.sin((2 * k - 1) * np.pi / (4 * n_steps + 2))))
    assert abs(found / ((n_steps + 0.5) / ((k - 0.5) * np.pi)) - 1).max() < 3 / n_steps**2


def slopes_of(error, counts=(20, 40, 80, 160)):
    errors = np.array([error(n) for n in counts])
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize("A", [-1.0, NON_NORMAL], ids=["scalar", "non_normal"])
@pytest.mark.parametrize(("method", "order"), METHODS.items())
def test_blocks_of_P_converge_at_the_solvers_order(method, order, A):
    def error(n_steps):
        P, size = linear(A, n_steps, method, forcing="state").P.to_dense(), len(np.atleast_2d(A))
        last = scipy.linalg.expm(np.atleast_2d(A) * (1 - 1 / n_steps))
        return np.linalg.norm(P[-size:, :size] - last)

    assert slopes_of(error)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("forcing", ["state", "rate"])
@pytest.mark.parametrize(("method", "order"), METHODS.items())
def test_the_sensitivity_of_the_last_state_converges_at_the_solvers_order(method, order, forcing):
    # d/dA exp(A T) h0 along every entry of A.
    basis = np.eye(4).reshape(4, 2, 2)
    exact = [scipy.linalg.expm_frechet(NON_NORMAL, E, compute_expm=False) for E in basis]
    exact = np.stack([D @ np.ones(2) for D in exact], axis=1)

    def error(n_steps):
        lin = linear(NON_NORMAL, n_steps, method, forcing)
        return np.linalg.norm(lin.sensitivity.to_dense()[-2:] - exact)

    assert slopes_of(error)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("A", [-1.0, NON_NORMAL], ids=["scalar", "non_normal"])
@pytest.mark.parametrize(("method", "order"), METHODS.items())
def test_the_solvers_part_of_the_error_of_singular_values_has_its_order(method, order, A):
    # Against the exact flow of each step under the same rectangle rule.
    def error(n_steps):
        dt, A_ = 1 / n_steps, np.atleast_2d(A)
        step, size = scipy.linalg.expm(dt * A_), len(A_)
        inverse = np.eye(n_steps * size) - np.kron(np.eye(n_steps, k=-1), step)
        exact = leading(dt * np.linalg.inv(inverse))
        return abs(leading(linear(A, n_steps, method).P.to_dense()) - exact).max()

    assert slopes_of(error)[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("A", [-1.0, NON_NORMAL], ids=["scalar", "non_normal"])
@pytest.mark.parametrize("method", METHODS)
def test_singular_values_of_rates_converge_to_the_integral_operators_at_first_order(method, A):
    exact = exact_singular_values(A, 3)

    def error(n_steps):
        return abs(leading(linear(A, n_steps, method).P.to_dense()) / exact - 1).max()

    assert slopes_of(error)[-1] == pytest.approx(1, abs=0.08)
    assert error(160) < 0.05


@pytest.mark.parametrize("A", [-1.0, NON_NORMAL], ids=["scalar", "non_normal"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 2)])
def test_half_of_the_own_step_off_is_the_midpoint_rule(method, order, A):
    exact = exact_singular_values(A, 3)

    def error(n_steps):
        return abs(by_the_midpoint_rule(A, n_steps, method) / exact - 1).max()

    assert slopes_of(error)[-1] == pytest.approx(order, abs=0.12)


def by_the_midpoint_rule(A, n_steps, method):
    """Singular values of dt (P - I/2)."""
    P = linear(A, n_steps, method).P.to_dense()
    return leading(P - np.eye(len(P)) / (2 * n_steps))


@pytest.mark.parametrize("A", [-1.0, NON_NORMAL], ids=["scalar", "non_normal"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_two_step_sizes_give_singular_values_at_the_solvers_order(method, order, A):
    exact = exact_singular_values(A, 3)

    def error(n_steps):
        coarse, fine = (by_the_midpoint_rule(A, n, method) for n in (n_steps, 2 * n_steps))
        return abs((4 * fine - coarse) / 3 / exact - 1).max()

    # The midpoint method, of order 2, has its leading error removed as well.
    slope = slopes_of(error, (10, 20, 40, 80))[-1]
    assert slope > order - 0.05 if method == "midpoint" else slope == pytest.approx(order, abs=0.05)


# What is refused.


@pytest.mark.parametrize(
    ("build", "error", "told"),
    [
        (lambda f: NeuralODE(f, 0.0), ValueError, "dt=0.0: pass the length of a step, above 0"),
        (lambda f: NeuralODE(f, 0.1, "dopri5"), ValueError, "method='dopri5': choose one of"),
        (lambda f: NeuralODE(f, 0.1, n_substeps=0), ValueError, "n_substeps=0: pass an int"),
        (lambda f: NeuralODE(f, 0.1, forcing="kick"), ValueError, "forcing='kick': choose 'state'"),
        (lambda f: NeuralODE(f, None, forcing="rate"), ValueError, "forcing='rate' with dt=None"),
        (lambda f: NeuralODE(f, 0.1, arguments="ht"), ValueError, "arguments='ht': choose one of"),
        (lambda f: NeuralODE(0.5, 0.1), TypeError, "field is a float, expected an nn.Module"),
        (lambda f: NeuralODE(f.forward, 0.1), ValueError, "field is a method of TimeField, whose"),
    ],
)
def test_wrong_options_are_refused(build, error, told):
    with pytest.raises(error, match=told):
        build(TimeField())


@pytest.mark.parametrize(
    ("arguments", "times", "x", "told"),
    [
        ("th", [0.0], None, r"times has shape \(1,\): pass"),
        ("th", [0.0, 0.2, 0.1], None, "finite, rising times"),
        ("th", [0.0, math.nan, 0.4], None, "finite, rising times"),
        ("th", [0.0, 0.2, 0.5], None, "times has steps from 0.2 to 0.3, the model dt=0.2"),
        ("th", [0.0, 0.2], external(), "arguments='th': a field of this form takes no x"),
        ("txh", [0.0, 0.2], None, "arguments='txh': a field of this form needs x"),
        ("txh", [0.0, 0.2, 0.4], external(), r"disagree: expected x of shape .* with 2 steps"),
    ],
)
def test_wrong_grids_are_refused(arguments, times, x, told):
    ode = NeuralODE(DrivenField(arguments), 0.2, arguments=arguments)
    with pytest.raises(ValueError, match=told):
        ode.inputs(times, x)


def test_external_inputs_of_another_dtype_are_refused():
    ode = NeuralODE(DrivenField("txh"), None, arguments="txh")
    with pytest.raises(TypeError, match=r"x is torch\.float32, the computation torch\.float64"):
        ode.inputs(UNEQUAL, external().float())


def test_inputs_without_time_are_refused():
    ode = NeuralODE(DrivenField("txh"), None, arguments="txh")
    with pytest.raises(ValueError, match="inputs has 1 features, NeuralODE takes 2 of time first"):
        ode(torch.zeros(2, 1, dtype=torch.float64), start())
    ode = NeuralODE(TimeField(), 0.1)
    with pytest.raises(ValueError, match=r"inputs has shape .*, the model takes 1 features"):
        kpops.linearize(ode, external(), h0=start())


def test_a_field_of_another_shape_is_refused():
    ode = NeuralODE(lambda t, h: h[:, :1], 0.1)
    with pytest.raises(ValueError, match=r"field returned \(2, 1\) for h of shape \(2, 3\)"):
        ode(torch.zeros(2, 1), torch.zeros(2, 3))


def test_no_start_is_refused():
    ode = NeuralODE(TimeField(), 0.1)
    with pytest.raises(ValueError, match=r"pass h0 of shape \(trial, unit\)"):
        kpops.linearize(ode, inputs_of(ode))


# Times label the results.


def decay(dt=0.1, arguments="th"):
    field = {"th": lambda t, h: -t * h, "xh": lambda x, h: x - h, "txh": lambda t, x, h: x - t * h}
    return NeuralODE(field[arguments], dt=dt, arguments=arguments)


def labelled_times(model, inputs, **options):
    dtype = inputs.dtype if isinstance(inputs, torch.Tensor) else torch.float32
    model.weight = nn.Parameter(torch.zeros(1, dtype=dtype))  # something to learn
    return kpops.linearize(model, inputs, h0=torch.ones(2, dtype=dtype), **options).states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_times_at_which_steps_end(dtype):
    grid = 2 + 0.1 * torch.arange(6, dtype=dtype)
    states = labelled_times(decay(), decay().inputs(grid, n_trials=3).to(dtype))
    np.testing.assert_allclose(states.time, grid[1:], rtol=1e-6)
    assert states.time.attrs == {"long_name": "time", "units": "1"}
    assert states.sel(time=2.3, method="nearest").time.item() == pytest.approx(2.3)
    uneven = torch.tensor([0.0, 0.5, 0.75, 4.0], dtype=dtype)
    states = labelled_times(decay(None), decay(None).inputs(uneven).to(dtype))
    np.testing.assert_array_equal(states.time, [0.5, 0.75, 4])
    driven = torch.zeros(2, 4, 2, dtype=dtype)  # no time among the features: it starts at 0
    states = labelled_times(decay(0.25, "xh"), driven)
    np.testing.assert_array_equal(states.time, [0.25, 0.5, 0.75, 1])
    lengths = torch.tensor([[1.0, 2, 3]], dtype=dtype)[..., None].expand(2, -1, 3)
    states = labelled_times(decay(None, "xh"), lengths)
    np.testing.assert_array_equal(states.time, [1, 3, 6])


def test_a_field_that_ignores_time_may_be_given_any():
    states = labelled_times(decay(0.5), torch.zeros(2, 3, 1))
    np.testing.assert_array_equal(states.time, [0.5, 1, 1.5])


def test_times_of_the_users_stay():
    inputs = decay().inputs(0.1 * torch.arange(4))
    clock = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[ns]")
    given = xr.DataArray(inputs.numpy(), dims=("trial", "time", "feature"), coords={"time": clock})
    np.testing.assert_array_equal(labelled_times(decay(), given).time, clock)


def test_trials_on_grids_of_their_own_have_a_time_each():
    grids = torch.tensor([[0.0, 0.5, 1.0], [3.0, 3.5, 4.0]])
    states = labelled_times(decay(0.5), decay(0.5).inputs(grids))
    assert states.time.values.tolist() == [1, 2]
    np.testing.assert_array_equal(states.trial_time, grids[:, 1:])


def test_times_of_masked_trials_are_those_of_the_longest():
    inputs = decay(0.5).inputs(1 + 0.5 * torch.arange(4), n_trials=2)
    inputs[0, 2:] = 0
    mask = torch.tensor([[True, True, False], [True, True, True]])
    states = labelled_times(decay(0.5), inputs, mask=mask)
    np.testing.assert_array_equal(states.time, [1.5, 2, 2.5])


def test_models_around_differential_equations_know_the_times():
    start = kpops.models.LearnedStart(decay(0.5), torch.ones(2))
    states = kpops.linearize(start, decay(0.5).inputs(0.5 * torch.arange(4))).states
    np.testing.assert_array_equal(states.time, [0.5, 1, 1.5])
    sde = kpops.models.NeuralSDE(lambda t, h: -h, lambda t, h: 0 * h, dt=0.5)
    inputs = sde.inputs(0.5 * torch.arange(4), n_units=2, rng=0)
    np.testing.assert_array_equal(labelled_times(sde, inputs).time, [0.5, 1, 1.5])
