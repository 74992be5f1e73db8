"""Derivatives of matrix exponentials that are prepared, and J of weights that are made by them."""

import pytest
import torch
from dense import relative
from torch import nn
from torch.func import vmap
from torch.nn.utils import parametrizations, parametrize

import kpops
from kpops.engines.differential import Differential
from kpops.engines.matrix_exponential import PreparedExponentials

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's
UNITS = 40


def by_blocks(A, E):
    """The derivative of exp at A towards E, from the exponential of a matrix with both."""
    return torch.matrix_exp(torch.cat([torch.cat([A, E], 1), torch.cat([0 * A, A], 1)]))[
        : len(A), len(A) :
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("skew", [True, False])
@pytest.mark.parametrize("norm", [0.0, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("function", [torch.matrix_exp, torch.linalg.matrix_exp, torch.Tensor.exp])
def test_the_derivative_is_that_of_the_function(dtype, skew, norm, function):
    generator = torch.Generator().manual_seed(0)
    A, *E = torch.randn(4, 12, 12, dtype=dtype, generator=generator)
    A = A - A.mH if skew else A
    A, E = norm * A / torch.linalg.matrix_norm(A, 1), torch.stack(E)
    with PreparedExponentials():
        d = Differential(function, A)
    assert torch.equal(d.value, function(A))
    if function is torch.Tensor.exp:  # of the entries, left as it is
        expected, pulled = E * A.exp(), E * A.exp().conj()
    else:
        expected = torch.stack([by_blocks(A, e) for e in E])
        pulled = torch.stack([by_blocks(A.mH, e) for e in E])
    tolerance = 1e3 * torch.finfo(dtype).eps
    assert relative(vmap(d.jvp)(E), expected) < tolerance
    assert relative(vmap(d.vjp)(E), pulled) < tolerance
    assert relative(d.jvp(E[0]), expected[0]) < tolerance


def test_matrices_of_every_row_are_left_to_torch():
    A = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with PreparedExponentials():
        d = Differential(torch.matrix_exp, A)
    expected = torch.stack([by_blocks(a, torch.ones_like(a)) for a in A])
    assert relative(d.jvp(torch.ones_like(A)), expected) < 1e-12


class Symmetric(nn.Module):
    """A weight as tutorials make it."""

    def forward(self, X):
        return torch.matrix_exp(0.1 * (X.triu() + X.triu(1).T)) / 2


def symmetric(model, name):
    parametrize.register_parametrization(model, name, Symmetric())
    return model


@pytest.mark.parametrize("engine", ["gated", "gated_numba", "jacobian"])
@pytest.mark.parametrize("make", [parametrizations.orthogonal, symmetric])
def test_J_K_and_flow_equal_dense_autograd(engine, make):
    torch.manual_seed(0)
    model = make(nn.RNN(2, UNITS, batch_first=True), "weight_hh_l0").double()
    (original,) = model.parametrizations["weight_hh_l0"].parameters()
    original.data += 0.2 * torch.randn_like(original)
    inputs = torch.randn(2, 3, 2, dtype=torch.float64)
    name = "parametrizations.weight_hh_l0.original"
    lin = kpops.linearize(model, inputs, engine=engine, parameters=[name])
    states = torch.from_numpy(lin.states.values)
    before = torch.cat([0 * states[:, :1], states[:, :-1]], 1)

    def steps(theta):
        W = model.parametrizations["weight_hh_l0"][0](theta)
        from_x = inputs @ model.weight_ih_l0.T + model.bias_ih_l0 + model.bias_hh_l0
        return torch.tanh(from_x + before @ W.T)

    slope = torch.autograd.functional.jacobian(steps, original.detach())
    J, P = slope.reshape(states.numel(), -1), torch.from_numpy(lin.P.to_dense())
    q, dtheta = torch.randn(3, *states.shape).double(), torch.randn(3, J.shape[1]).double()
    for op, v, matrix in (
        (lin.J, dtheta, J),
        (lin.J.H, q, J.T),
        (lin.K, q, J @ J.T),
        (lin.flow, q, P @ J @ J.T @ P.T),
    ):
        assert relative(op.apply(v).flatten(1), v.flatten(1) @ matrix.T) < 1e-12


@pytest.mark.parametrize("engine", ["gated", "jacobian", "autodiff"])
def test_J_in_float32_is_linear_and_has_its_adjoint(engine):
    torch.manual_seed(0)
    model = parametrizations.orthogonal(nn.RNN(3, UNITS, batch_first=True), "weight_hh_l0")
    original = model.parametrizations["weight_hh_l0"].original
    original.data += torch.randn(UNITS, UNITS).tril(-1) / 8
    J = kpops.linearize(model, torch.randn(2, 4, 3), engine=engine).J
    q = torch.randn(2, *J.codomain.shape)
    u = torch.randn(1, *J.domain.shape)
    image = J.H.apply(q)
    assert relative(J.H.apply(1e3 * q), 1e3 * image) < 1e-5
    gap = (J.apply(u)[0] * q).sum((1, 2, 3)) - image @ u[0]
    assert (gap.abs() < 1e-5 * image.norm(dim=1) * u.norm()).all()
