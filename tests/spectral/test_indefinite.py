"""Formulas for positive operators give no number for one that is seen not to be positive."""

import numpy as np
import pytest
import scipy.sparse
import torch

import kpops
from kpops.linalg.exact import DENSE_SIZE

KINDS = ["participation", "variance", "entropy", "stable", "numerical"]


def one_negative(n, least=-30.0):
    """One negative eigenvalue, of which the quadratic forms of random vectors see little."""
    return scipy.sparse.diags(np.r_[least, np.ones(n - 1)]).tocsr()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("least", [-30.0, -0.5])
def test_one_negative_eigenvalue_in_a_large_operator_is_seen(kind, least):
    for seed in range(3):
        with pytest.raises(ValueError, match="is not positive semi-definite: an eigenvalue is at"):
            kpops.effective_rank(one_negative(2000, least), kind, rng=seed)


def flow_less_K(hidden):
    torch.manual_seed(0)
    model = torch.nn.GRU(2, hidden, batch_first=True).double()
    lin = kpops.linearize(model, torch.randn(12, 10, 2).double())
    return lin.flow - 0.2 * lin.K


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [3, 10])
def test_a_difference_of_flow_and_K_is_refused(kind, hidden):
    op = flow_less_K(hidden)
    assert (op.shape[0] > DENSE_SIZE) == (hidden == 10)
    for scale in (1, 1e-150):
        with pytest.raises(ValueError, match="is not positive semi-definite"):
            kpops.effective_rank(scale * op, kind, rng=0)


def test_reductions_of_an_indefinite_operator_are_refused():
    op = flow_less_K(10) - 5 * flow_less_K(10)
    for reduction in ("expand_average", "partial_trace"):
        with pytest.raises(ValueError, match="is not positive semi-definite"):
            kpops.effective_rank(op, keep="time", reduction=reduction, rng=0)


@pytest.mark.parametrize("least", [-30.0, -0.5])
def test_xnystrace_of_an_indefinite_operator_is_refused(least):
    for seed in range(3):
        with pytest.raises(ValueError, match=r"is not positive semi-definite: .* use method='xtr"):
            kpops.trace(one_negative(2000, least), method="xnystrace", num_matvecs=16, rng=seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positive_operators_of_low_rank_are_not_refused(dtype):
    factor = np.random.default_rng(0).standard_normal((300, 5))
    matrix = (factor @ factor.T).astype(dtype)  # its zeros are rounding of either sign
    values = np.linalg.svd(factor, compute_uv=False) ** 2
    for kind, method, exact in (
        ("participation", "hutchinson", values.sum() ** 2 / (values**2).sum()),
        ("stable", "hutchinson", (values**2).sum() / values[0] ** 2),
        ("entropy", "lanczos", np.exp(-(p := values / values.sum()) @ np.log(p))),
        ("numerical", "lanczos", 5),
    ):
        for seed in range(3):
            options = {"method": method, "tol": 1e-2, "rng": seed}
            result = kpops.effective_rank(matrix, kind, **options)
            assert abs(float(result.estimate) - exact) <= 4 * float(result.stderr) + 1e-2 * exact
    assert float(kpops.trace(matrix, method="xnystrace", rng=0).estimate) == pytest.approx(
        values.sum(), rel=1e-3
    )


def test_what_needs_no_positive_operator_takes_an_indefinite_one():
    op = one_negative(2000)
    assert float(kpops.spectral_norm(op, rng=0).estimate) == pytest.approx(30, rel=1e-9)
    exact = np.sqrt(900 + 1999)
    result = kpops.frobenius_norm(op, num_matvecs=400, rng=0)
    assert abs(float(result.estimate) - exact) <= 3 * float(result.stderr)
    result = kpops.trace(op, num_matvecs=400, rng=0)
    assert abs(float(result.estimate) - 1969) <= 3 * float(result.stderr)
    density = kpops.spectral_density(op, outliers=1, rng=0)
    assert float(density.outlier[0]) == pytest.approx(-30, rel=1e-9)
