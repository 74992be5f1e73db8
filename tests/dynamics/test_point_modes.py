"""Eigenvalues and eigenvectors at fixed points, of every cell, against autograd on its own step."""

import numpy as np
import pytest
import torch
from cases import BY_NAME
from torch.autograd.functional import jacobian

from kpops.dynamics.fixed_points import fixed_points
from kpops.dynamics.stability import modes, stability

MODELS = [
    "rnn_tanh",
    "rnn_relu_time_major",
    "gru_two_layers",
    "gru_cell",
    "lstm",
    "lstm_two_layers",
    "leaky_rate",
    "leaky_current_relu",
    "oscillator",
    "shared_norm_cell",
]


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")  # gates saturate: see Notes
@pytest.mark.parametrize("name", MODELS)
def test_points_are_fixed_and_modes_are_those_of_the_modules_own_step(name):
    case = BY_NAME[name]
    model = case.model()
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    starts = torch.randn(20, case.state_size, generator=torch.Generator().manual_seed(0)).double()
    starts[:10] *= 3
    points = fixed_points(model, starts, input=x)
    points = points.isel(point=(points.kind == "fixed").values)
    assert points.sizes["point"] >= 1
    right, left = (points[n + "_real"] + 1j * points[n + "_imag"] for n in ("right", "left"))
    for i, state in enumerate(torch.from_numpy(points.state.values)):
        step = lambda h: case.own_step(model, x[None], h[None])[0]  # noqa: E731
        assert float((step(state) - state).detach().abs().max()) < 1e-12
        A = jacobian(step, state).numpy()
        values = points.eigenvalue_real[i].values + 1j * points.eigenvalue_imag[i].values
        expected = np.linalg.eigvals(A)
        gaps = np.abs(values[:, None] - expected)
        assert max(gaps.min(0).max(), gaps.min(1).max()) < 1e-9
        assert values.sum() == pytest.approx(np.trace(A), abs=1e-12)
        assert (np.diff(np.abs(values)) < 1e-12).all()
        R, L = right[i].values, left[i].values
        np.testing.assert_allclose(R @ A.T, values[:, None] * R, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(R, axis=1), 1, atol=1e-14)
        condition = points.eigenvector_condition[i].item()
        if np.isfinite(condition):  # of units that are off, A may lack eigenvectors
            scale = 1e-14 * condition
            np.testing.assert_allclose(L @ R.T, np.eye(len(A)), atol=scale)
            np.testing.assert_allclose(L @ A, values[:, None] * L, atol=scale * condition)
        else:
            assert "relu" in name


@pytest.mark.parametrize(
    ("name", "variables", "layers"),
    [("lstm_two_layers", "hhhhcccchhhhcccc", [0] * 8 + [1] * 8), ("gru", "hhhh", [0] * 4)],
)
def test_units_carry_their_variables_and_layers(name, variables, layers):
    case = BY_NAME[name]
    points = fixed_points(case.model(), torch.zeros(1, case.state_size).double())
    assert "".join(points["variable"].values) == variables
    assert points.layer.values.tolist() == layers
    assert points.right_real["variable"].dims == ("unit",)


def test_pairs_come_with_the_positive_imaginary_part_first():
    A = torch.block_diag(
        torch.tensor([[0.6, -0.8], [0.8, 0.6]]), torch.tensor([[-2.0]]), torch.tensor([[0.1]])
    ).double()
    values = modes(A[None]).values[0].numpy()
    np.testing.assert_allclose(values, [-2, 0.6 + 0.8j, 0.6 - 0.8j, 0.1], atol=1e-15)


def test_of_a_normal_matrix_left_and_right_are_conjugate():
    A = torch.tensor([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 0.5]]).double()
    found = modes(A[None])
    np.testing.assert_allclose(found.left, found.right.conj().resolve_conj(), atol=1e-14)
    assert found.condition.item() == pytest.approx(3, rel=1e-14)


def test_where_eigenvectors_are_missing_there_are_no_left_ones():
    A = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 1.0]]]).double()
    found = modes(A)
    assert found.left[0].isnan().all() and found.condition[0] == torch.inf
    np.testing.assert_allclose(found.values[0], [1, 1], atol=1e-15)
    left = found.left[1].real.numpy()
    np.testing.assert_allclose(left @ A[1].numpy(), [[2], [1]] * left, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitudes_of_one_are_neither_stable_nor_unstable(dtype):
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=dtype)
    A = torch.stack([turn, 1.01 * turn, 0.99 * turn])
    found = stability(A, modes(A).values)
    assert found.n_unstable.tolist() == [0, 2, 0]
    assert found.is_stable.tolist() == [False, False, True]
    expected = -1 / np.log([[1.01, 1.01], [0.99, 0.99]])
    np.testing.assert_allclose(found.time_constant[1:], expected, rtol=1e-4)
