"""The exact results of theory, section 7: oracles 1 to 6 and 13."""

import numpy as np
import pytest
import torch
from cases import ENGINES
from dense import relative
from torch import nn

import kpops


def linear_rnn(W, U=None, bias=None, engine="jacobian"):
    """h' = W h + U x (+ b) as a user's cell; for the gated engines with its structure."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.as_tensor(W, dtype=torch.float64))
            size = self.W.shape[0]
            self.hidden_size = size
            self.U = nn.Parameter(torch.zeros(size, 1) if U is None else torch.as_tensor(U))
            self.U.data = self.U.data.double()
            self.b = None if bias is None else nn.Parameter(torch.as_tensor(bias).double())

        def forward(self, x, h):
            new = h @ self.W.T + x @ self.U.T
            return new if self.b is None else new + self.b

    class Structure(kpops.models.GatedRecurrence):
        def __init__(self, module):
            maps = kpops.models.Affine("W", "U", input_bias=None if bias is None else "b")
            super().__init__(module, [maps])

        def gates(self, from_x, from_h, state):
            return (from_x[0] + from_h[0],)

    return Structure(Linear()) if engine.startswith("gated") else Linear()


def scalar(a, steps, engine="jacobian"):
    x = torch.zeros(1, steps, 1, dtype=torch.float64)
    return kpops.linearize(linear_rnn([[a]], engine=engine), x, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_oracle_1_scalar_propagator_at_the_unit_root(engine):
    T = 50
    values = kpops.svds(scalar(1.0, T, engine).P, k=T).singular_value.values
    k = np.arange(1, T + 1)
    expected = 1 / (2 * np.sin((2 * k - 1) * np.pi / (4 * T + 2)))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert values[0] == pytest.approx(32.1506, abs=5e-5)
    P = scalar(1.0, T, engine).P
    assert float(kpops.effective_rank(P @ P.H).estimate) == pytest.approx(1.4994, abs=5e-5)
    assert float(kpops.effective_rank(P).estimate) == pytest.approx(1.4994, abs=5e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_oracle_1_scalar_propagator_below_the_unit_root(engine):
    a, T = 0.9, 50
    P = scalar(a, T, engine).P
    values = kpops.svds(P, k=T).singular_value.values
    j = np.arange(T)
    assert (values**2).sum() == pytest.approx(((T - j) * a ** (2.0 * j)).sum(), rel=1e-12)
    assert (values**2).sum() == pytest.approx(240.7208, abs=5e-5)
    assert values[0] == pytest.approx(8.9353, abs=5e-5)


def normal_matrix(rng):
    """A 2 x 2 rotation with shrinking, and two real eigenvalues, in a random orthogonal basis."""
    angle, radius = 0.7, 0.95
    rotation = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    blocks = np.zeros((4, 4))
    blocks[:2, :2] = rotation
    blocks[2, 2], blocks[3, 3] = -0.8, 0.3
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    return Q @ blocks @ Q.T, [radius, radius, 0.8, 0.3]


@pytest.mark.parametrize("engine", ENGINES)
def test_oracle_2_normal_weights_split_into_scalar_propagators(engine):
    T = 12
    W, radii = normal_matrix(np.random.default_rng(0))
    x = torch.zeros(2, T, 1, dtype=torch.float64)
    lin = kpops.linearize(linear_rnn(W, engine=engine), x, engine=engine)
    values = kpops.svds(lin.P, k=2 * T * 4).singular_value.values
    each = [kpops.svds(scalar(r, T).P, k=T).singular_value.values for r in radii]
    expected = np.sort(np.concatenate([*each, *each]))[::-1]  # two trials
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_oracle_2_orthogonal_weights_give_the_norm_in_closed_form():
    S, T, B = 5, 9, 2
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((S, S)))[0]
    lin = kpops.linearize(linear_rnn(Q), torch.zeros(B, T, 1, dtype=torch.float64))
    assert (lin.P.to_dense() ** 2).sum() == pytest.approx(B * S * T * (T + 1) / 2, rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_oracle_3_linear_rnn_has_a_kronecker_parameter_operator(engine):
    rng = np.random.default_rng(0)
    S, features, T, B = 4, 2, 3, 2
    W, U, b = (rng.standard_normal(s) for s in [(S, S), (S, features), (S,)])
    x = torch.from_numpy(rng.standard_normal((B, T, features)))
    h0 = torch.from_numpy(rng.standard_normal((B, S)))
    lin = kpops.linearize(linear_rnn(W, U, b, engine), x, h0=h0, engine=engine)
    previous = np.concatenate([h0[:, None], lin.states.values[:, :-1]], axis=1)
    M = np.concatenate([previous, x, np.ones((B, T, 1))], axis=-1).reshape(B * T, -1)
    gram = M @ M.T
    assert relative(lin.K.to_dense(), np.kron(gram, np.eye(S))) < 1e-12
    rank = np.linalg.matrix_rank(lin.K.to_dense(), tol=1e-8)
    assert rank == S * np.linalg.matrix_rank(M)
    participation = np.trace(gram) ** 2 / (gram**2).sum()
    estimate = float(kpops.effective_rank(lin.K).estimate)
    assert estimate == pytest.approx(S * participation, rel=1e-10)


# Oracle 4, P against the inverse of the block-bidiagonal matrix and Phi = D D^T with D by autograd
# through time, is tests/engines/test_dense_agreement.py.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_oracle_5_adjoint_is_backpropagation_and_J_star_gives_the_gradient(kind, engine):
    torch.manual_seed(0)
    network = kpops.Network(kind(3, 6, batch_first=True), nn.Linear(6, 2)).double()
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    targets = torch.randn(4, 7, 2, dtype=torch.float64)
    loss = nn.functional.mse_loss(network(x), targets)
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    flat = torch.cat([g.reshape(-1) for g in gradient])

    lin = kpops.linearize(network, x, engine=engine)
    flow = kpops.gradient_flow(lin, targets)
    assert float(flow.loss) == pytest.approx(float(loss.detach()), rel=1e-13)
    assert relative(-flow.parameter_step.values, flat) < 1e-12

    # BPTT: the total derivative of the loss with respect to each state.
    states = [torch.zeros(4, lin.space.shape[2], dtype=torch.float64, requires_grad=True)]
    for t in range(7):
        states.append(lin.recurrence(x[:, t], states[-1]))
        states[-1].retain_grad()
    outputs = torch.stack([network.readout(lin.recurrence.output(h)) for h in states[1:]], 1)
    nn.functional.mse_loss(outputs, targets).backward()
    adjoint = torch.stack([h.grad for h in states[1:]], 1)
    assert relative(flow.adjoint.values, adjoint) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_oracle_6_a_real_gradient_step_moves_the_states_as_the_flow_operator_says(kind, engine):
    torch.manual_seed(1)
    network = kpops.Network(kind(3, 6, batch_first=True), nn.Linear(6, 2)).double()
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    targets = torch.randn(4, 7, 2, dtype=torch.float64)
    lin = kpops.linearize(network, x, engine=engine)
    predicted = kpops.gradient_flow(lin, targets)
    np.testing.assert_allclose(
        -(lin.flow @ predicted.error), predicted.state_change, rtol=0, atol=1e-14
    )
    before = lin.states.values
    weights = [p.detach().clone() for p in network.recurrent.parameters()]
    etas = np.array([1e-1, 1e-2, 1e-3, 1e-4])
    errors = []
    for eta in etas:
        for p, w in zip(network.recurrent.parameters(), weights, strict=True):
            p.data, p.grad = w.clone(), None
        nn.functional.mse_loss(network(x), targets).backward()
        with torch.no_grad():
            for p in network.recurrent.parameters():
                p -= eta * p.grad
        moved = kpops.linearize(network, x).states.values
        errors.append(np.linalg.norm((moved - before) / eta - predicted.state_change.values))
    slopes = np.diff(np.log10(errors)) / np.diff(np.log10(etas))
    np.testing.assert_allclose(slopes, 1, atol=0.05)


def test_oracle_13_trace_of_the_gauss_newton_matrix_is_that_of_the_output_ntk():
    torch.manual_seed(2)
    network = kpops.Network(nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)).double()
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    rows = []
    for output in network(x).flatten():
        gradients = torch.autograd.grad(output, list(network.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    D = torch.stack(rows)
    ntk = kpops.linearize(network, x).output_ntk
    assert relative(ntk.to_dense(), D @ D.T) < 1e-12
    gauss_newton = D.T @ D
    assert np.trace(ntk.to_dense()) == pytest.approx(float(gauss_newton.trace()), rel=1e-12)
