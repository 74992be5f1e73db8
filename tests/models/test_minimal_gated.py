"""minGRU and MGU: their formulas, and how little the state does in a minGRU."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch.nn import functional as F

import kpops
from kpops.models import Affine, GatedRecurrence, MGUCell, MinGRUCell


def test_the_steps_are_their_formulas():
    x, h = normal(7, 3), normal(7, 4)
    cell = randomised(MinGRUCell(3, 4))
    z = torch.sigmoid(F.linear(x, cell.weight_ih[:4], cell.bias_ih[:4]))
    c = F.linear(x, cell.weight_ih[4:], cell.bias_ih[4:])
    assert relative(cell(x, h).detach(), ((1 - z) * h + z * c).detach()) < 1e-15
    cell = randomised(MGUCell(3, 4))
    (W_f, W_c), (U_f, U_c), (b_f, b_c) = (
        w.chunk(2) for w in (cell.weight_hh, cell.weight_ih, cell.bias)
    )
    f = torch.sigmoid(h @ W_f.T + x @ U_f.T + b_f)
    c = torch.tanh((f * h) @ W_c.T + x @ U_c.T + b_c)
    assert relative(cell(x, h).detach(), ((1 - f) * h + f * c).detach()) < 1e-15


@pytest.mark.parametrize(
    ("build", "engine"),
    [
        (lambda: MinGRUCell(2, 4), "gated_numba"),
        (lambda: MinGRUCell(2, 4, bias=False), "gated_numba"),
        (lambda: MGUCell(2, 4), "jacobian"),
    ],
    ids=["min_gru", "min_gru_without_bias", "mgu"],
)
def test_the_operators_are_those_of_autograd(build, engine):
    cell, x, h0 = randomised(build()), normal(3, 4, 2), normal(3, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), engine=engine, h0=h0)


@pytest.mark.parametrize("engine", ["gated", "gated_numba"])
def test_P_of_a_min_gru_multiplies_what_the_gates_let_through(engine):
    cell, x = randomised(MinGRUCell(3, 4)), normal(2, 6, 3)
    lin = kpops.linearize(cell, x, engine=engine)
    keeps = 1 - torch.sigmoid(F.linear(x, cell.weight_ih[:4], cell.bias_ih[:4])).detach()
    P = torch.from_numpy(lin.P.to_dense()).reshape(2, 6, 4, 2, 6, 4)
    for b in range(2):
        for s in range(6):
            for t in range(s, 6):
                expected = torch.diag(keeps[b, s + 1 : t + 1].prod(0))
                assert relative(P[b, t, :, b, s], expected) < 1e-14


def test_the_jacobian_of_a_min_gru_does_not_depend_on_the_state():
    cell, x = randomised(MinGRUCell(3, 4)), normal(2, 6, 3)
    here, there = (kpops.linearize(cell, x, h0=h0) for h0 in (normal(2, 4), 10 * normal(2, 4)))
    assert relative(here.P.to_dense(), there.P.to_dense()) < 1e-15
    # z and 1 - z, and the slope of h' in the gate
    assert here.engine.layers[0].pattern.size == 3
    assert here.engine.layers[0].pattern.recurrent == ()


def test_the_whole_spectrum_of_K_of_a_min_gru_is_that_of_its_blocks():
    lin = kpops.linearize(randomised(MinGRUCell(3, 4)), normal(3, 5, 3))
    expected = torch.linalg.eigvalsh(torch.from_numpy(lin.K.to_dense()))
    blocks = lin.engine.unit_blocks(tuple(lin.parameters)).eigenvalues().flatten().sort().values
    assert relative(blocks, expected[-len(blocks) :]) < 1e-12


@pytest.mark.parametrize("block", [1, 40])
@pytest.mark.parametrize("gates", ["stored", "recomputed", "float32"])
def test_layers_without_recurrent_maps_work_however_gates_are_kept(gates, block):
    cell, x = randomised(MinGRUCell(3, 4)), normal(3, 5, 3)
    reference = kpops.linearize(cell, x, engine="autodiff")
    q = normal(block, 3, 5, 4)
    for engine in ("gated", "gated_numba"):
        lin = kpops.linearize(cell, x, engine=engine, gates=gates)
        bound = 1e-6 if gates == "float32" else 1e-14
        assert relative(lin.P.apply(q), reference.P.apply(q)) < bound
        assert relative(lin.P.apply_adjoint(q), reference.P.apply_adjoint(q)) < bound
        assert relative(lin.K.apply(q), reference.K.apply(q)) < bound


def test_a_gated_recurrence_without_any_size_is_refused():
    class Sizeless(GatedRecurrence):
        def __init__(self, module):
            super().__init__(module, [Affine(None, input="weight_ih")])

    with pytest.raises(ValueError, match=r"no recurrent maps.*: pass hidden_size="):
        Sizeless(MinGRUCell(3, 4))
