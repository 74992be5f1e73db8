"""Low-rank connectivity: its step, what learns in it, and truncation of a full cell."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative

import kpops
from kpops.models import LeakyCell, LowRankCell


def cell(**options):
    return randomised(LowRankCell(3, 5, 2, **{"alpha": 0.4, **options}))


def test_the_step_is_its_formula():
    x, h, model = normal(4, 3), normal(4, 5), cell()
    connectivity = model.M @ model.N.T / 5
    drive = torch.tanh(h) @ connectivity.T + x @ model.weight_ih.T + model.bias
    assert relative(model(x, h).detach(), (0.6 * h + 0.4 * drive).detach()) < 1e-15
    assert relative(model.weight_hh.detach(), connectivity.detach()) < 1e-15


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "relu", "bias": False}, {"form": "rate"}],
    ids=["current", "relu_without_bias", "rate"],
)
def test_the_operators_are_those_of_learning_the_thin_matrices(options):
    model, x, h0 = cell(**options), normal(3, 4, 3), normal(3, 5)
    assert_contract(model, x, unrolled(model, x, h0), engine="gated_numba", h0=h0)


def test_K_of_the_thin_matrices_is_not_that_of_their_product():
    # Through M the weights move within the span of N, so that K[M] <= K[W] ||N||^2 / S^2.
    low, x, h0 = cell(), normal(3, 4, 3), normal(3, 5)
    full = LeakyCell(3, 5, alpha=0.4, form="current").double()
    full.load_state_dict({"weight_ih": low.weight_ih, "weight_hh": low.weight_hh, "bias": low.bias})
    thin = kpops.linearize(low, x, h0=h0).K_by_parameter["M"].to_dense()
    wide = kpops.linearize(full, x, h0=h0).K_by_parameter["weight_hh"].to_dense()
    bound = torch.linalg.matrix_norm(low.N.detach() / 5, ord=2).item() ** 2
    assert torch.linalg.eigvalsh(torch.from_numpy(bound * wide - thin)).min() > -1e-12
    assert torch.linalg.matrix_rank(torch.from_numpy(thin)) == 2 * 5  # rank of the cell times S
    assert torch.linalg.matrix_rank(torch.from_numpy(wide)) == 5 * 5


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_keeps_the_leading_singular_values(rank):
    full = randomised(LeakyCell(3, 5, alpha=0.4, form="current", noise=True))
    low = LowRankCell.from_leaky(full, rank)
    left, values, right = torch.linalg.svd(full.weight_hh.detach())
    expected = left[:, :rank] * values[:rank] @ right[:rank]
    assert relative(low.weight_hh.detach(), expected) < 1e-14
    assert relative(low.M.T.detach() @ low.M.detach(), 5 * torch.diag(values[:rank])) < 1e-14
    assert torch.equal(low.weight_ih, full.weight_ih)
    assert torch.equal(low.bias, full.bias)
    assert low.weight_ih is not full.weight_ih


def test_truncation_at_full_rank_changes_no_step():
    for options in ({"form": "rate"}, {"form": "current", "bias": False, "activation": "relu"}):
        full = randomised(LeakyCell(3, 5, alpha=0.4, **options))
        x, h = normal(4, 3), normal(4, 5)
        low = LowRankCell.from_leaky(full, 5)
        assert relative(low(x, h).detach(), full(x, h).detach()) < 1e-14


def test_thin_matrices_start_standard_normal():
    torch.manual_seed(0)
    model = LowRankCell(3, 400, 5, alpha=0.4)
    for thin in (model.M, model.N):
        assert abs(float(thin.detach().std()) - 1) < 0.05
    assert float(model.weight_ih.detach().abs().max()) <= 400**-0.5


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}: choose from 1 to hidden_size=5"):
        LowRankCell(3, 5, rank, alpha=0.4)
    with pytest.raises(ValueError, match=rf"rank={rank}: choose from 1"):
        LowRankCell.from_leaky(LeakyCell(3, 5, alpha=0.4), rank)


def test_options_of_the_leaky_cell_are_checked():
    with pytest.raises(ValueError, match=r"alpha=2: .* in \(0, 1\]"):
        LowRankCell(3, 5, 2, alpha=2)
