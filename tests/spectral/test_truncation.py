"""Truncation to the leading modes: Eckart and Young, and the gradient flow through them."""

import numpy as np
import pytest
import torch
from dense import relative

import kpops
from kpops.labels import Space
from kpops.operators import LowRank
from kpops.spectral.truncation import truncate
from kpops.testing import check_operator


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    lstm, readout = torch.nn.LSTM(2, 3, batch_first=True), torch.nn.Linear(3, 2)
    inputs = torch.randn(3, 6, 2).double()
    return kpops.linearize(lstm.double(), inputs, readout=readout.double())


OPERATORS = {
    "flow": lambda lin: lin.flow,
    "P": lambda lin: lin.P,
    "indefinite": lambda lin: lin.flow - 0.2 * (lin.P @ lin.P.H),
    "J": lambda lin: lin.J,
    "C P": lambda lin: lin.C @ lin.P,
}


@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("which", OPERATORS)
def test_no_operator_of_rank_k_is_nearer(lin, which, k):
    op = OPERATORS[which](lin)
    matrix = op.to_dense()
    singular = np.linalg.svd(matrix, compute_uv=False)
    top = truncate(op, k)
    gap = matrix - top.to_dense()
    assert np.linalg.matrix_rank(top.to_dense(), tol=1e-9 * singular[0]) == k
    assert np.linalg.norm(gap, 2) == pytest.approx(singular[k], rel=1e-10)
    assert np.linalg.norm(gap) == pytest.approx(np.linalg.norm(singular[k:]), rel=1e-10)
    assert (top.domain, top.codomain) == (op.domain, op.codomain)
    assert top.self_adjoint == op.self_adjoint
    assert top.positive or not op.positive


def test_the_gradient_flow_through_the_top_modes_misses_at_most_the_next_one(lin):
    error = np.random.default_rng(0).standard_normal(lin.space.shape)
    full = lin.flow @ error
    values = np.linalg.eigvalsh(lin.flow.to_dense())[::-1]
    missed = []
    for k in (1, 3, 9, 27):
        top = truncate(lin.flow, k)
        gap = full - top @ error
        assert np.linalg.norm(gap) <= values[k] * np.linalg.norm(error)
        functions = top.modes.eigenfunction.values.reshape(k, -1)
        outside = error.ravel() - functions.T @ (functions @ error.ravel())
        np.testing.assert_allclose(gap.ravel(), lin.flow @ outside, atol=1e-10 * values[0])
        missed.append(np.linalg.norm(gap) / np.linalg.norm(full))
    assert missed == sorted(missed, reverse=True)
    assert missed[-1] < 0.1


def test_all_modes_give_the_operator_back(lin):
    for op in (lin.flow, lin.P, lin.J):
        assert relative(truncate(op, min(op.shape)).to_dense(), op.to_dense()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", ["flow", "P", "J"])
def test_truncations_keep_the_contract(which, dtype, device):
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, 2, dtype=dtype)
    gru = torch.nn.GRU(2, 4, batch_first=True).to(dtype)
    op = OPERATORS[which](kpops.linearize(gru, inputs, device=device))
    top = truncate(op, 3, rng=0)
    check_operator(top)
    assert top.torch_dtype == dtype
    assert top.device == op.device
    assert top.attrs == op.attrs


def test_the_root_of_a_positive_truncation_squares_to_it(lin):
    top = truncate(lin.flow, 4)
    assert top.root.shape == (lin.space.size, 4)
    assert relative((top.root @ top.root.H).to_dense(), top.to_dense()) < 1e-13
    assert truncate(lin.P, 4).root is None
    indefinite = truncate(lin.flow - 5 * (lin.P @ lin.P.H), 40)
    assert indefinite.self_adjoint and not indefinite.positive
    assert indefinite.root is None


@pytest.mark.parametrize("which", ["flow", "P", "J", "C P"])
def test_modes_found_before_are_used(lin, which):
    op = OPERATORS[which](lin)
    solver = kpops.eigsh if op.self_adjoint else kpops.svds
    modes = solver(op, 6, rng=0)
    before = op.num_matvecs
    top = truncate(op, 4, modes=modes)
    assert op.num_matvecs == before + 2  # which make sure that they are its modes
    assert relative(top.to_dense(), truncate(op, 4, rng=0).to_dense()) < 1e-10
    assert top.modes.sizes["mode"] == 4


def test_plain_matrices_are_truncated_too():
    matrix = np.random.default_rng(0).standard_normal((6, 4))
    gap = matrix - truncate(matrix, 2).to_dense()
    assert np.linalg.norm(gap, 2) == pytest.approx(np.linalg.svd(matrix)[1][2], rel=1e-12)
    gram = matrix @ matrix.T
    top = truncate(gram, 2)
    assert top.self_adjoint and top.positive
    assert np.linalg.norm(gram - top.to_dense(), 2) == pytest.approx(
        np.linalg.eigvalsh(gram)[-3], rel=1e-12
    )


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scale_does_not_matter(scale, dtype):
    matrix = np.random.default_rng(0).standard_normal((8, 8)).astype(dtype)
    for part in (matrix, matrix @ matrix.T):
        scaled = truncate(part * np.dtype(dtype).type(scale), 3).to_dense() / scale
        tolerance = 1e4 * np.finfo(dtype).eps
        assert relative(scaled, truncate(part, 3).to_dense()) < tolerance


def test_operators_of_lower_rank_are_met_exactly():
    u = np.random.default_rng(0).standard_normal(9)
    assert not truncate(np.zeros((5, 5)), 2).to_dense().any()
    np.testing.assert_allclose(truncate(np.outer(u, u), 3).to_dense(), np.outer(u, u), atol=1e-13)


def test_wrong_modes_and_numbers_are_refused(lin):
    modes = kpops.eigsh(lin.flow, 3)
    with pytest.raises(ValueError, match="k=4, but modes holds 3"):
        truncate(lin.flow, 4, modes=modes)
    with pytest.raises(ValueError, match="k=0"):
        truncate(lin.flow, 0)
    with pytest.raises(ValueError, match="pass what kpops"):
        truncate(lin.flow, 1, modes=modes[["eigenvalue"]])
    with pytest.raises(ValueError, match="eigenfunction of modes has shape"):
        truncate(lin.flow.select(trial=0), 1, modes=modes.drop_vars("trial"))
    with pytest.raises(ValueError, match=r"disagree on the labels of \['time'\]"):
        truncate(lin.flow, 1, modes=modes.assign_coords(time=np.arange(6)))
    with pytest.raises(ValueError, match="expected"):
        truncate(lin.flow, 1, modes=kpops.eigsh(lin.flow.expand_average("time"), 1))
    lost = modes.assign(eigenvalue=modes.eigenvalue.where(modes.mode < 3))
    assert truncate(lin.flow, 2, modes=lost).modes.sizes["mode"] == 2
    with pytest.raises(ValueError, match="1 of the 3 modes were not found"):
        truncate(lin.flow, 3, modes=lost)


def test_vectors_of_other_shapes_are_refused(lin):
    with pytest.raises(ValueError, match="left and right have shapes"):
        LowRank(torch.ones(2, 3), torch.ones(2), None, lin.space, lin.space, symbol="L")


def test_what_follows_from_the_triplets_is_not_an_argument():
    space = Space(("index",), (3,))
    u = torch.eye(3, dtype=torch.float64)[:2]
    for given in ({"positive": True}, {"self_adjoint": True}, {"dtype": torch.float32}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(given))}'"):
            LowRank(u, torch.tensor([1.0, -1.0]).double(), u, space, space, symbol="X", **given)
