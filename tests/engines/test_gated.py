"""The gated engines: their structure, their options, and what they keep."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES
from dense import relative
from torch import nn

import kpops
from kpops.engines import gated_layer, gated_numba
from kpops.engines.cuda_graph import Recorder, Recording
from kpops.engines.features import numerical_rank, thin_factor

GATED = ["gated", "gated_numba"]
GATED_CASES = [c for c in CASES if c.name != "shared_norm_cell"]


def linearize(case, engine, **options):
    model, (inputs, h0) = case.model(), case.data()
    inputs = case.as_module_takes(model, inputs)
    return kpops.linearize(model, inputs, h0=h0, engine=engine, **options)


def operators(lin):
    return {"P": lin.P, "P*": lin.P.H, "P_inv": lin.P_inv, "J": lin.J, "J*": lin.J.H, "K": lin.K}


def assert_same(lin, reference, bound):
    rng = torch.Generator().manual_seed(0)
    for name, op in operators(lin).items():
        q = torch.randn(3, *op.domain.shape, generator=rng, dtype=torch.float64)
        assert relative(op.apply(q), operators(reference)[name].apply(q)) < bound, name


# Structure.


@pytest.mark.parametrize(
    ("name", "size"), [("rnn_tanh", 1), ("gru", 5), ("lstm", 9), ("leaky_rate", 2)]
)
def test_only_the_diagonals_that_differ_are_kept(name, size):
    # RNN: f'. GRU: z and the gains of r, z, n from h, n from x. LSTM: four gains of h, three of c
    # and two carries. Leaky: the gain and 1 - alpha.
    lin = linearize(BY_NAME[name], "gated")
    assert lin.engine.layers[0].pattern.size == size


def test_the_diagonals_of_a_gru_are_its_gates():
    lin = linearize(BY_NAME["gru"], "gated")
    weights = dict(lin.recurrence.module.named_parameters())
    x, h = lin.trajectory.inputs, lin.trajectory.previous
    from_x = (x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]).chunk(3, -1)
    from_h = (h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]).chunk(3, -1)
    r, z = (torch.sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
    n = torch.tanh(from_x[2] + r * from_h[2])
    inner = (1 - z) * (1 - n**2)
    layer = lin.engine.layers[0]
    d = layer.diagonals(slice(0, 5))
    expected = {0: inner * from_h[2] * r * (1 - r), 1: (h - n) * z * (1 - z), 2: inner * r}
    for _, g, place in layer.pattern.recurrent:
        assert relative(d[place], expected[g]) < 1e-14
    assert relative(d[layer.pattern.carry[0][2]], z) < 1e-14
    assert relative(d[layer.pattern.inputs[2][2]], inner) < 1e-14


def test_a_cell_that_is_not_what_it_says_is_refused():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.U = nn.Linear(4, 4), nn.Linear(2, 4)

    class MixingRecurrence(kpops.models.GatedRecurrence):
        def __init__(self, module):
            super().__init__(module, [kpops.models.Affine("W.weight", "U.weight")])

        def gates(self, from_x, from_h, state):
            return (torch.softmax(from_x[0] + from_h[0], dim=-1),)  # over units

    with pytest.raises(ValueError, match=r"Mixing is not the gated cell that its MixingRecurrence"):
        kpops.linearize(MixingRecurrence(Mixing()), torch.randn(2, 3, 2), engine="gated")


def test_a_cell_without_input_maps_works():
    class Autonomous(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Linear(4, 4)

        def forward(self, x, h):
            return torch.tanh(self.W(h))

    class Structure(kpops.models.GatedRecurrence):
        def __init__(self, module):
            super().__init__(module, [kpops.models.Affine("W.weight", recurrent_bias="W.bias")])

        def gates(self, from_x, from_h, state):
            return (torch.tanh(from_h[0]),)

    torch.manual_seed(0)
    model = Autonomous().double()
    x, h0 = torch.zeros(3, 5, 1, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    reference = kpops.linearize(model, x, h0=h0, engine="autodiff")
    for engine in GATED:
        assert_same(kpops.linearize(Structure(model), x, h0=h0, engine=engine), reference, 1e-14)


# Parameters that are not simply the weights of affine maps.


@pytest.mark.parametrize("engine", GATED)
def test_tied_layers_and_parametrized_weights_learn_as_by_autodiff(engine):
    torch.manual_seed(0)
    tied = nn.RNN(4, 4, num_layers=2, batch_first=True).double()
    tied.weight_hh_l1 = tied.weight_hh_l0
    masked = nn.GRU(4, 4, batch_first=True).double()
    mask = torch.rand(12, 4, dtype=torch.float64) < 0.5

    class Masked(nn.Module):
        def forward(self, weight):
            return weight * mask

    nn.utils.parametrize.register_parametrization(masked, "weight_hh_l0", Masked())
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    for model in (tied, masked):
        lin = kpops.linearize(model, x, engine=engine)
        assert_same(lin, kpops.linearize(model, x, engine="autodiff"), 1e-13)
        untouched = kpops.linearize(model, x, engine=engine, parameters=["bias_ih_l0"])
        expected = kpops.linearize(model, x, engine="autodiff", parameters=["bias_ih_l0"])
        assert_same(untouched, expected, 1e-13)


# What becomes of the gates.


@pytest.mark.parametrize("engine", GATED)
@pytest.mark.parametrize("case", GATED_CASES, ids=lambda c: c.name)
def test_recomputed_gates_in_segments_change_nothing(case, engine, monkeypatch):
    reference = linearize(case, engine)
    monkeypatch.setattr(gated_layer, "_SEGMENT_BYTES", defaultdict(lambda: 1))
    monkeypatch.setattr(gated_layer, "_SLICE_BYTES", defaultdict(lambda: 1))
    lin = linearize(case, engine, gates="recomputed")
    assert len(lin.engine.layers[0].segments()) == 5
    assert_same(lin, reference, 1e-14)
    assert all("_stored" not in vars(layer) for layer in lin.engine.layers)


@pytest.mark.parametrize("engine", GATED)
@pytest.mark.parametrize("name", ["gru_two_layers", "lstm", "oscillator"])
def test_gates_in_float32_halve_the_memory_and_cost_seven_digits(name, engine):
    lin = linearize(BY_NAME[name], engine, gates="float32")
    reference = linearize(BY_NAME[name], engine)
    assert lin.P.torch_dtype == torch.float64
    assert_same(lin, reference, 1e-6)
    layer, full = lin.engine.layers[0], reference.engine.layers[0]
    assert 2 * layer._stored.nbytes == full._stored.nbytes
    q = torch.randn(1, *lin.space.shape, dtype=torch.float64)
    assert relative(lin.P.apply(q), reference.P.apply(q)) > 1e-12  # it is not the same thing
    back, image = lin.P.apply_adjoint(q), lin.P.apply(q)
    assert abs(float((image * q).sum() - (q * back).sum())) < 1e-13 * float(image.norm() * q.norm())


# Wide blocks.


@pytest.mark.parametrize("case", GATED_CASES, ids=lambda c: c.name)
def test_assembled_jacobians_change_nothing(case, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    lin = linearize(case, "gated_numba")
    q = torch.randn(4, *lin.space.shape, generator=rng, dtype=torch.float64)
    plain = lin.P.apply(q), lin.P.apply_adjoint(q)
    layer = lin.engine.layers[0]
    assert not lin.engine._assembles(layer, 4, 3)
    monkeypatch.setattr(gated_numba, "_WIDE", 4)
    fewer = layer.pattern.n_recurrent > layer.variables and len(layer.pattern.slopes) == 1
    assert lin.engine._assembles(layer, 4, 3) == fewer  # GRU and LSTM
    assert relative(lin.P.apply(q), plain[0]) < 1e-14
    assert relative(lin.P.apply_adjoint(q), plain[1]) < 1e-14
    monkeypatch.setattr(gated_layer, "_SEGMENT_BYTES", defaultdict(lambda: 1))
    lin = linearize(case, "gated_numba", gates="recomputed")
    assert relative(lin.P.apply(q), plain[0]) < 1e-14
    assert relative(lin.P.apply_adjoint(q), plain[1]) < 1e-14


# Thin factors.


def test_a_thin_factor_has_the_gram_matrix_of_the_features():
    rng = torch.Generator().manual_seed(0)
    for rows, width, rank in [(60, 20, 20), (60, 20, 7), (10, 20, 10), (10, 20, 3)]:
        left = torch.randn(rows, rank, generator=rng, dtype=torch.float64)
        u = left @ torch.randn(rank, width, generator=rng, dtype=torch.float64)
        z = thin_factor([u[:, :5], u[:, 5:]])
        assert z.shape == (rows, rank)
        assert numerical_rank([u[:, :5], u[:, 5:]]) == rank
        assert relative(z @ z.T, u @ u.T) < 1e-14


def test_zero_features_have_no_columns():
    assert thin_factor([torch.zeros(6, 3)]).shape == (6, 0)
    rnn = nn.RNN(2, 4, batch_first=True, bias=False).double()
    for engine in GATED:  # no input and no state: nothing to learn from
        lin = kpops.linearize(rnn, torch.zeros(3, 5, 2, dtype=torch.float64), engine=engine)
        assert lin.engine.feature_ranks() == [0, 0]
        assert not (lin.K @ np.ones(lin.K.shape[0])).any()


# Memory.


@pytest.mark.parametrize("gates", ["stored", "float32"])
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_two_layers", "lstm", "leaky_rate"])
def test_memory_estimate_is_what_is_kept(name, gates):
    lin = linearize(BY_NAME[name], "gated_numba", gates=gates)
    estimate = lin.memory_estimate()
    lin.flow @ np.ones(lin.space.shape)
    grams = lin.engine._grams_of(tuple(lin.parameters))
    kept = sum(layer._stored.nbytes for layer in lin.engine.layers)
    kept += sum(z.nbytes for gram in grams for z in gram.factors)
    assert estimate["gated_numba"] == estimate["gated"] == kept


def test_blocks_that_do_not_fit_are_taken_in_pieces(monkeypatch):
    lin = linearize(BY_NAME["gru"], "gated_numba")
    q = torch.randn(7, *lin.space.shape, dtype=torch.float64)
    whole = [op.apply(q) for op in (lin.P, lin.K, lin.flow, lin.J.H)]
    sizes = []
    propagate = lin.engine.propagate
    monkeypatch.setattr(lin.engine, "propagate", lambda b: (sizes.append(len(b)), propagate(b))[1])
    monkeypatch.setattr("kpops.operators.base._ALWAYS_FITS", 0)
    monkeypatch.setattr("kpops.operators.base.free_bytes", lambda device: 50 * 480)
    for op, image in zip((lin.P, lin.K, lin.flow, lin.J.H), whole, strict=True):
        assert relative(op.apply(q), image) < 1e-14
    assert max(sizes) < 7
    assert lin.P.num_matvecs > 0


def test_tasks_share_work_evenly():
    for size, threads in [(20, 2), (320, 2), (1280, 2), (5, 2), (1, 4), (7, 3)]:
        bounds = gated_numba._split(size, threads, 192)
        parts = np.diff(bounds)
        assert bounds[0] == 0
        assert bounds[-1] == size
        assert max(parts) <= 192
        assert max(parts) - min(parts) <= 1
        assert len(parts) % threads == 0 or len(parts) == size


# Recording, which on a GPU is a CUDA graph.


def record_on_cpu(action, argument):
    """A stand-in for a CUDA graph: it, too, reads and writes fixed memory."""
    result = action(argument).clone()
    return Recording(argument, result, lambda: result.copy_(action(argument)))


def test_recorded_recursions_equal_plain_ones(monkeypatch):
    lin = linearize(BY_NAME["gru_two_layers"], "gated")
    plain = linearize(BY_NAME["gru_two_layers"], "gated")
    recorder = Recorder(record_on_cpu)
    monkeypatch.setattr(lin.engine, "_record", recorder)
    rng = torch.Generator().manual_seed(0)
    for block in (1, 3, 3, 2):  # another size is another recording
        q = torch.randn(block, *lin.space.shape, generator=rng, dtype=torch.float64)
        kept = q.clone()
        assert relative(lin.flow.apply(q), plain.flow.apply(q)) < 1e-14
        assert torch.equal(q, kept)
        first, second = lin.P.apply(q), lin.P.apply(2 * q)  # results share no memory
        assert relative(first, plain.P.apply(q)) < 1e-14
        assert relative(second, 2 * first) < 1e-14
    assert set(recorder._recordings) == {"P", "P*"}
