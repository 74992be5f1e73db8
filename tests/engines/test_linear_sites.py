"""K of linear layers, layer by layer, against dense matrices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kpops


class Looped(nn.Module):
    """A linear layer that is called three times, at several positions."""

    def __init__(self):
        super().__init__()
        self.into, self.block = nn.Linear(3, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x):
        h = self.into(x)
        for _ in range(3):
            h = torch.tanh(self.block(h))
        return h


class Twice(nn.Module):
    """A weight that is used once more, where no part is called."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.one(x))
        return self.other(F.linear(h, self.one.weight))


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


CASES = {
    "mlp": (mlp, (4, 3)),
    "many rows": (mlp, (9, 3)),
    "positions": (mlp, (3, 2, 3)),
    "looped": (Looped, (3, 2, 3)),
}


@pytest.fixture(params=CASES)
def lin(request, monkeypatch):
    """A linearization in float64, in which nothing counts as small."""
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)
    return kpops.linearize(make().double(), torch.randn(shape).double(), sites="auto")


def test_the_whole_spectrum(lin):
    found = kpops.eigvalsh(lin.K)
    dense = np.sort(np.linalg.eigvalsh(lin.K.to_dense()))[::-1]
    assert "K couples no two" in found.attrs["chosen"]
    n = found.sizes["mode"]
    np.testing.assert_allclose(found.eigenvalue, dense[:n], rtol=1e-10, atol=1e-12 * dense[0])
    assert np.abs(dense[n:]).max(initial=0) < 1e-12 * dense[0]
    assert n + found.attrs["n_zeros"] == lin.K.shape[0]
    assert lin.K.num_matvecs == lin.K.shape[0]  # of the dense matrix alone


def test_scalars(lin):
    K = lin.K.to_dense()
    scalars = kpops.trace(lin.K), kpops.frobenius_norm(lin.K), kpops.effective_rank(lin.K)
    exact = np.trace(K), np.linalg.norm(K), np.trace(K) ** 2 / np.linalg.norm(K) ** 2
    for found, reference in zip(scalars, exact, strict=True):
        assert float(found.estimate) == pytest.approx(reference, rel=1e-12)
        assert float(found.stderr) == 0
    diagonal = kpops.diagonal(lin.K).estimate.values.ravel()
    np.testing.assert_allclose(diagonal, K.diagonal(), rtol=1e-12)


def test_leading_modes(lin):
    modes = kpops.eigsh(lin.K, 7, rng=0)
    dense = np.sort(np.linalg.eigvalsh(lin.K.to_dense()))[::-1]
    np.testing.assert_allclose(modes.eigenvalue, dense[:7], rtol=1e-10)
    assert float(modes.residual.max()) < 1e-12
    flat = modes.eigenfunction.values.reshape(7, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(7), atol=1e-12)


def test_some_parameters_and_alignment(lin):
    by_name = {name: K.to_dense() for name, K in lin.K_by_parameter.items()}
    np.testing.assert_allclose(sum(by_name.values()), lin.K.to_dense(), atol=1e-12)
    for name, K in lin.K_by_parameter.items():
        found = kpops.eigvalsh(K).eigenvalue
        dense = np.sort(np.linalg.eigvalsh(by_name[name]))[::-1][: found.size]
        np.testing.assert_allclose(found, dense, rtol=1e-10, atol=1e-12 * dense[0])
    a, b = by_name["0.weight" if "0.weight" in by_name else "block.weight"], lin.K.to_dense()
    name = "0.weight" if "0.weight" in by_name else "block.weight"
    found = kpops.alignment(lin.K_by_parameter[name], lin.K, rng=0)
    exact = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(found.estimate) == pytest.approx(exact, abs=4 * float(found.stderr) + 1e-12)


def test_matvecs_by_the_gram_matrix_and_by_features_agree(lin):
    q = np.random.default_rng(0).normal(size=(lin.K.shape[1], 3))
    J = lin.J.to_dense()
    np.testing.assert_allclose(lin.K @ q, J @ (J.T @ q), rtol=1e-11, atol=1e-12)


def test_a_weight_with_another_use_has_no_such_structure():
    torch.manual_seed(0)
    lin = kpops.linearize(Twice().double(), torch.randn(4, 3).double())
    assert lin.K.unit_blocks() is None
    J = lin.J.to_dense()
    np.testing.assert_allclose(lin.K.to_dense(), J @ J.T, atol=1e-12)
    dense = np.linalg.eigvalsh(J @ J.T)[::-1]
    np.testing.assert_allclose(kpops.eigvalsh(lin.K).eigenvalue[:8], dense[:8], rtol=1e-10)
