"""The operators at fixed points, and what parameters do to them."""

import numpy as np
import pytest
import torch
from cases import BY_NAME, HIDDEN, INPUTS
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

import kpops
import kpops.testing
from kpops.dynamics.at_points import linearize_at, stationary_response
from kpops.dynamics.fixed_points import fixed_points

X = torch.tensor([0.3, -0.2], dtype=torch.float64)
T = 4


def gru(scale=0.5, seed=0):
    """A GRU with a stable fixed point."""
    torch.manual_seed(seed)
    model = nn.GRU(INPUTS, HIDDEN, batch_first=True).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


def bistable(w=1.5):
    """An RNN of three bistable units, in a turned basis."""
    Q = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3))))[0]
    model = nn.RNNCell(2, 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.weight_hh.copy_(w * torch.eye(3) + 0.1 * Q)
        model.weight_ih.copy_(0.1 * Q[:, :2])
    return model


def points_of(model, n_units, **options):
    """Points inside the range of the states."""
    starts = torch.cartesian_prod(*[torch.tensor([-0.8, 0, 0.8]).double()] * n_units)
    points = fixed_points(model, starts, **options)
    return points.isel(point=((points.kind == "fixed") & ~points.outlier).values)


@pytest.mark.parametrize("name", ["gru", "lstm_two_layers", "shared_norm_cell", "gru_two_layers"])
def test_blocks_of_P_are_powers_of_A_and_all_blocks_of_K_are_one(name):
    case = BY_NAME[name]
    model = case.model()
    h = torch.randn(2, case.state_size, generator=torch.Generator().manual_seed(0)).double()
    lin = linearize_at(model, h, T, input=X)
    P = lin.P.to_dense().reshape(2, T, case.state_size, 2, T, case.state_size)
    K = lin.K.to_dense().reshape(P.shape)
    parameters = dict(model.named_parameters())
    for i, state in enumerate(h):
        A = jacobian(lambda s: case.own_step(model, X[None], s[None])[0], state).numpy()
        for t in range(T):
            for s in range(t + 1):
                expected = np.linalg.matrix_power(A, t - s)
                np.testing.assert_allclose(P[i, t, :, i, s], expected, atol=1e-11)
        new = case.own_step(model, X[None], state[None])[0]
        J = np.stack(
            [
                torch.cat([g.flatten() for g in grads]).numpy()
                for grads in (
                    torch.autograd.grad(u, list(parameters.values()), retain_graph=True)
                    for u in new
                )
            ]
        )
        np.testing.assert_allclose(
            K[i, :, :, i], np.broadcast_to((J @ J.T)[None, :, None], (T, len(A), T, len(A))),
            atol=1e-11,
        )  # fmt: skip


def test_an_unstable_point_is_not_left():
    model = bistable(1.8)
    points = points_of(model, 3)
    saddle = points.isel(point=(points.n_unstable == 3).values)
    lin = linearize_at(model, saddle, 200)
    for state in lin.states.values[0]:
        np.testing.assert_allclose(state, saddle.state.values[0], atol=1e-14)
    growth = kpops.svds(lin.P.select(time=[0, 199]), k=1).singular_value.item()
    assert growth > 0.5 * saddle.spectral_radius.item() ** 199


def test_the_operators_keep_their_contract():
    figures = kpops.testing.check_linearization(linearize_at(gru(), torch.zeros(2, 4).double(), 3))
    assert max(figures["laws"].values()) < 1e-13
    response = stationary_response(gru(), points_of(gru(), HIDDEN))
    assert max(kpops.testing.check_operator(response).values()) < 1e-12
    R, J = response.factors
    kernel = R @ J @ J.H @ R.H
    assert kernel.self_adjoint and kernel.positive
    assert max(kpops.testing.check_operator(kernel).values()) < 1e-12


def test_points_of_a_dataset_come_with_their_input_and_their_labels():
    model = bistable()
    points = points_of(model, 3, input=X)
    chosen = points.isel(point=[3, 1])
    lin = linearize_at(model, chosen, T)
    assert lin.states.trial.values.tolist() == [3, 1]
    np.testing.assert_array_equal(lin.trajectory.inputs, X.expand(2, T, 2))
    assert (linearize_at(model, chosen, T, input=[0.0, 0.0]).trajectory.inputs == 0).all()
    np.testing.assert_allclose(lin.states[:, -1], chosen.state, atol=1e-14)
    same = linearize_at(model, chosen.state, T, input=X)
    assert same.states.equals(lin.states)
    np.testing.assert_array_equal(same.P.to_dense(), lin.P.to_dense())


def test_a_linearization_passes_on_what_it_is():
    model, readout = nn.GRU(2, 4).double(), nn.Linear(4, 1).double()
    options = {"readout": readout, "parameters": ["weight_hh_l0"], "measure": "mean"}
    inputs = torch.zeros(3, 5, 2, dtype=torch.float64)
    whole = kpops.linearize(kpops.Network(model, readout), inputs, parameters=["weight_hh_l0"])
    lin = kpops.linearize(model, inputs, engine="jacobian", **options)
    h = torch.full((2, 4), 0.3).double()
    direct = linearize_at(model, h, T, engine="jacobian", **options)
    passed = linearize_at(lin, h, T)
    assert passed.engine.name == "jacobian" and passed.measure == "mean"
    assert passed.recurrence is lin.recurrence and lin.space.sizes["time"] == 3
    np.testing.assert_allclose(
        passed.output_ntk.to_dense(), direct.output_ntk.to_dense(), atol=1e-14
    )
    assert linearize_at(whole, h, 1).output_space.sizes["output"] == 1
    assert linearize_at(kpops.Network(model, readout), h, T).readout is not None


@pytest.mark.parametrize("name", ["model", "linearization"])
def test_float64_of_a_float32_model_is_asked_for_where_the_model_is_read(name):
    model = nn.GRU(2, 4)
    lin = kpops.linearize(model, torch.zeros(1, 1, 2))
    h = torch.zeros(1, 4).double()
    assert linearize_at(model, h, 2, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match="float64"):
        linearize_at(model if name == "model" else lin, h, 2)


def test_points_of_a_model_that_has_learned_to_start_are_those_of_the_model():
    model = gru()
    learned = kpops.models.LearnedStart(model, torch.full((HIDDEN,), 0.4).double())
    lin = kpops.linearize(learned, torch.zeros(1, 2, INPUTS).double())
    points = points_of(model, HIDDEN, input=X)
    expected = linearize_at(model, points, T)
    response = stationary_response(model, points).to_dense()
    for other in (learned, lin):
        found = linearize_at(other, points, T)
        assert torch.equal(found.trajectory.states, expected.trajectory.states)
        np.testing.assert_allclose(found.P.to_dense(), expected.P.to_dense(), atol=1e-14)
        R = stationary_response(other, points)
        of_start = R.domain.coords["parameter_name"][1] == "h0"
        assert of_start.sum() == HIDDEN and not R.to_dense()[:, of_start].any()
        np.testing.assert_allclose(R.to_dense()[:, ~of_start], response, atol=1e-13)


def test_response_is_the_difference_of_points_that_are_found_anew():
    model = gru()
    points = points_of(model, HIDDEN, input=X)
    response = stationary_response(model, points)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(len(theta)))
    step = 1e-4

    def moved(by):
        nn.utils.vector_to_parameters(theta + by * direction, model.parameters())
        return fixed_points(model, points.state, input=X).state.values

    # Richardson's extrapolation of central differences: the error is of fourth order.
    near, far = ((moved(k * step) - moved(-k * step)) / (2 * k * step) for k in (1, 2))
    found = (response @ direction).reshape(near.shape)
    np.testing.assert_allclose(found, (4 * near - far) / 3, atol=1e-9)


def test_response_is_the_derivative_of_the_state_that_the_model_relaxes_to():
    case = BY_NAME["lstm"]
    model = case.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    points = fixed_points(model, torch.zeros(1, case.state_size).double(), input=X)
    assert points.spectral_radius.item() < 0.9
    values = {n: p.detach() for n, p in model.named_parameters()}

    def rest(*parameters):
        state = torch.zeros(1, 1, HIDDEN).double()
        inputs = X.expand(1, 300, 2)
        given = dict(zip(values, parameters, strict=True))
        _, (h, c) = functional_call(model, given, (inputs, (state, state)))
        return torch.cat([h, c], -1).flatten()

    expected = torch.cat([g.flatten(1) for g in jacobian(rest, tuple(values.values()))], 1)
    response = stationary_response(model, points).to_dense()
    np.testing.assert_allclose(response, expected, rtol=1e-10, atol=1e-11)


def test_oracle_9_response_is_a_sum_over_modes():
    model = bistable()
    points = points_of(model, 3, input=X)
    assert len(set(points.n_unstable.values)) >= 3
    response = stationary_response(model, points).to_dense().reshape(-1, 3, 21)
    J = linearize_at(model, points, 1).J.to_dense().reshape(-1, 3, 21)
    right, left = (points[n + "_real"] + 1j * points[n + "_imag"] for n in ("right", "left"))
    values = points.eigenvalue_real + 1j * points.eigenvalue_imag
    for i, f_theta in enumerate(J):
        weights = (left[i].values @ f_theta) / (1 - values[i].values)[:, None]
        np.testing.assert_allclose(right[i].values.T @ weights, response[i], atol=1e-10)


def test_oracle_9_near_a_bifurcation_the_kernel_tends_to_rank_one():
    strength, rest = [], []
    for d in (1e-2, 1e-3, 1e-4):
        # A at the origin, in a basis that is not orthogonal: 1 - d, 0.5, -0.3.
        S = torch.tensor([[1, 0.4, 0], [0, 1, 0.3], [0.2, 0, 1]]).double()
        cell = nn.RNNCell(1, 3).double()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.zero_()
            values = torch.tensor([1 - d, 0.5, -0.3]).double()
            cell.weight_hh.copy_(S @ torch.diag(values) @ torch.linalg.inv(S))
        response = stationary_response(cell, torch.zeros(1, 3).double(), input=[1.0])
        kernel = np.linalg.eigvalsh((response @ response.H).to_dense())[::-1]
        strength.append(kernel[0] * d**2)
        rest.append(np.sqrt(kernel[1] / kernel[0]) / d)
    assert strength[2] == pytest.approx(strength[1], rel=5e-3)
    assert rest[2] == pytest.approx(rest[1], rel=5e-3)  # falls linearly in d
    # In the limit: r (l . f_theta) with |f_theta|^2 = |x|^2 + 2 biases = 3 for every unit.
    r, left = S[:, 0] / S[:, 0].norm(), torch.linalg.inv(S)[0] * S[:, 0].norm()
    assert strength[2] == pytest.approx(3 * float(r @ r * (left @ left)), rel=5e-3)


def test_where_there_is_no_response_it_is_refused():
    slow = torch.full((1, HIDDEN), 0.5).double()
    with pytest.raises(ValueError, match=r"point 0 moves by .* in a step: pass fixed points"):
        stationary_response(gru(), slow)
    cell = nn.RNNCell(1, 2, nonlinearity="relu", bias=False).double()
    with torch.no_grad():
        cell.weight_hh.copy_(torch.diag(torch.tensor([0.5, 1])))
    points = torch.tensor([[0.0, -1], [0, 1]]).double().relu()
    with pytest.raises(ValueError, match="eigenvalue of 1, to rounding, at point 1"):
        linearize_at(cell, points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps=0"),
        ({"points": torch.zeros(4).double()}, r"points has shape \(4,\), expected \(point, unit\)"),
        ({"points": torch.zeros(1, 5).double()}, r"\(1, 5\)"),
        ({"h0": torch.zeros(1, 4)}, r"\['h0'\] given: points are the states"),
    ],
)
@pytest.mark.parametrize("of_lin", [False, True])
def test_wrong_arguments_are_refused(options, message, of_lin):
    model = gru()
    if of_lin:
        model = kpops.linearize(model, torch.zeros(1, 2, INPUTS).double())
    options = {"points": torch.zeros(1, 4).double(), "n_steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        linearize_at(model, **options)


def test_results_of_another_kind_are_refused():
    points = points_of(gru(), HIDDEN)
    with pytest.raises(ValueError, match=r"no \['input'\]: pass the result of kpops.fixed_points"):
        linearize_at(gru(), points.drop_vars("input"), 2)
    with pytest.raises(ValueError, match=r"expected \('point', 'unit'\)"):
        linearize_at(gru(), points.state.rename(point="trial"), 2)
    lin = kpops.linearize(gru(), torch.zeros(1, 2, INPUTS).double())
    with pytest.raises(ValueError, match="measure"):
        linearize_at(lin, points, 2, measure="mean")
