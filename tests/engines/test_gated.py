"""The gated engines: their structure, their options, and what they keep."""

import multiprocessing
import os
import pickle
import threading
import time
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES
from dense import relative
from torch import nn

import kpops
from kpops.engines import memory, threads
from kpops.engines.cpu import gated as gated_numba
from kpops.engines.cpu.tangents import TangentEngine
from kpops.engines.gated import layer as gated_layer
from kpops.engines.gated.features import numerical_rank, thin_factor

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


class Plain(nn.Module):
    """Weights for the cells below."""

    def __init__(self):
        super().__init__()
        self.W, self.U = nn.Linear(4, 4, bias=False), nn.Linear(2, 4)
        self.tau = nn.Parameter(torch.tensor(0.5))
        self.phi = nn.PReLU(4)


class Structured(kpops.models.GatedRecurrence):
    def __init__(self, module):
        maps = kpops.models.Affine("W.weight", "U.weight", input_bias="U.bias")
        super().__init__(module, [maps])


def test_a_weight_that_gates_use_too_is_refused():
    class Twice(Structured):
        def gates(self, from_x, from_h, state):
            twice = self.module.W.weight.diagonal() * state[0]
            return (torch.tanh(from_x[0] + from_h[0]) + self.module.tau * twice,)

    x, h0 = torch.randn(2, 3, 2), torch.randn(2, 4)
    with pytest.raises(ValueError, match="use no weight of the affine maps"):
        kpops.linearize(Twice(Plain()), x, h0=h0, engine="gated")


def test_features_may_have_parameters_of_each_unit():
    class PerUnit(Structured):
        def features(self, state):
            return self.module.phi(state[0])

        def gates(self, from_x, from_h, state):
            return (state[0] + self.module.tau * (torch.tanh(from_x[0] + from_h[0]) - state[0]),)

    torch.manual_seed(0)
    model, x = PerUnit(Plain()).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    reference = kpops.linearize(model, x, engine="autodiff")
    for engine in GATED:  # phi and tau learn, too: J and K are by autodiff, K_j of W is not
        lin = kpops.linearize(model, x, engine=engine)
        assert_same(lin, reference, 1e-13)
        q = torch.randn(2, *lin.space.shape, dtype=torch.float64)
        for name, K_j in lin.K_by_parameter.items():
            assert relative(K_j.apply(q), reference.K_by_parameter[name].apply(q)) < 1e-13


def test_features_may_depend_on_no_state():
    class Constant(Structured):
        def features(self, state):
            return torch.full_like(state[0], 0.3)

        def gates(self, from_x, from_h, state):
            return (0.5 * state[0] + torch.tanh(self.module.phi(from_x[0]) + from_h[0]),)

    torch.manual_seed(0)
    model, x = Constant(Plain()).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    reference = kpops.linearize(model, x, engine="autodiff")
    for engine in GATED:
        assert_same(kpops.linearize(model, x, engine=engine), reference, 1e-13)


def test_gates_must_return_the_variables():
    class Bare(Structured):
        def gates(self, from_x, from_h, state):
            return torch.tanh(from_x[0] + from_h[0])

    class Two(Structured):
        def gates(self, from_x, from_h, state):
            return from_x[0], from_h[0]

    for cell, got in ((Bare, "a tensor"), (Two, "2 of them")):
        with pytest.raises(ValueError, match=rf"{cell.__name__}.gates returned {got}, expected"):
            kpops.linearize(cell(Plain()), torch.randn(2, 3, 2))
    with pytest.raises(ValueError, match="need input maps"):
        kpops.models.GatedRecurrence(Plain(), [kpops.models.Affine("W.weight")] * 2)


def test_a_leaky_cell_of_another_forward_is_taken_as_it_is():
    class Halved(kpops.models.LeakyCell):
        def forward(self, x, h):
            return 0.5 * super().forward(x, h)

    cell, x = Halved(2, 4, alpha=0.5).double(), torch.randn(3, 1, 2, dtype=torch.float64)
    h0 = torch.randn(3, 4, dtype=torch.float64)
    lin = kpops.linearize(cell, x, h0=h0)
    assert relative(lin.states.values[:, 0], cell(x[:, 0], h0).detach()) < 1e-15
    assert lin.engine.name == "jacobian"


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


# Stacks.


@pytest.mark.parametrize("gates", ["stored", "recomputed"])
@pytest.mark.parametrize("engine", GATED)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_flow_of_a_stack_is_the_product_of_its_factors(kind, engine, gates, monkeypatch):
    monkeypatch.setattr(gated_layer, "_SEGMENT_BYTES", defaultdict(lambda: 500))
    torch.manual_seed(0)
    model = kind(2, 4, num_layers=3, batch_first=True).double()
    x, mask = (
        torch.randn(3, 7, 2, dtype=torch.float64),
        torch.arange(7) < torch.tensor([[7], [4], [1]]),
    )
    reference = kpops.linearize(model, x, mask=mask, engine="autodiff")
    learning = ["weight_ih_l1", "bias_hh_l2", "weight_hh_l0"]
    for names in (None, learning):
        options = {"mask": mask, "engine": engine, "gates": gates, "parameters": names}
        lin = kpops.linearize(model, x, **options, measure="mean")
        q = torch.randn(5, *lin.space.shape, dtype=torch.float64)
        factors = lin.P.apply(lin.K.apply(lin.P.H.apply(q)))
        assert relative(lin.flow.apply(q), factors) < 1e-14
        if names is None:
            expected = reference.flow.apply(q) / int(mask.sum())
            assert relative(lin.flow.apply(q), expected) < 1e-13


def test_input_maps_that_no_gate_reads_are_left_aside():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            shapes = {"W0": (4, 4), "U0": (8, 3), "W1": (4, 4), "U1": (8, 4)}
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape).double() / 2))

    class Recurrence(kpops.models.GatedRecurrence):
        def __init__(self, module):
            affine = kpops.models.Affine
            super().__init__(module, [affine("W0", input="U0"), affine("W1", input="U1")])

        def gates(self, from_x, from_h, state):
            return (torch.tanh(from_x[0] + from_h[0]),)

    torch.manual_seed(0)
    model, x = Recurrence(Stack()), torch.randn(3, 5, 3, dtype=torch.float64)
    reference = kpops.linearize(model, x, engine="autodiff")
    for engine in GATED:
        assert_same(kpops.linearize(model, x, engine=engine), reference, 1e-13)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_tangents_are_moved_by_the_jacobians_of_their_steps(kind, n_layers):
    torch.manual_seed(0)
    model = kind(2, 5, num_layers=n_layers, batch_first=True).double()
    x = torch.randn(4, 9, 2, dtype=torch.float64)
    lin = kpops.linearize(model, x)
    engine = TangentEngine(lin.recurrence, {}, lin.trajectory)
    for modes in (1, 3, 140):  # plain, and by assembled Jacobians
        v = torch.randn(4, modes, model.hidden_size * n_layers * (1 + (kind is nn.LSTM))).double()
        for first, stop in ((0, 1), (0, 4), (3, 9), (5, 6)):
            expected = v.mT
            for t in range(first, stop):
                expected = engine.step_jacobians(t) @ expected
            assert relative(engine.move(v, slice(first, stop)), expected.mT) < 1e-13


def test_rows_of_few_vectors_are_shared_out():
    torch.manual_seed(0)
    model = nn.GRU(2, 40, batch_first=True)
    x = torch.randn(30, 20, 2)
    reference = kpops.linearize(model, x, engine="gated")
    lin = kpops.linearize(model, x, engine="gated_numba")
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for block in (1, 2, 3, 13):
                q = torch.randn(block, *lin.space.shape)
                assert relative(lin.K.apply(q), reference.K.apply(q)) < 1e-6
                root, other = lin.K.root, reference.K.root
                assert relative(root.apply_adjoint(q), other.apply_adjoint(q)) < 1e-6
                w = torch.randn(block, *root.domain.shape)
                assert relative(root.apply(w), other.apply(w)) < 1e-6
    finally:
        torch.set_num_threads(before)


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
    single = len(lin.engine.layers) == 1
    fewer = layer.pattern.n_recurrent > layer.variables and len(layer.pattern.slopes) == 1
    fewer = fewer and single
    assert lin.engine._assembles(layer, 4, 3) == fewer  # GRU and LSTM, not in stacks
    assert ("\n in blocks from 4 vectors by assembled Jacobians\n" in repr(lin)) == fewer
    assert relative(lin.P.apply(q), plain[0]) < 1e-14
    assert relative(lin.P.apply_adjoint(q), plain[1]) < 1e-14
    monkeypatch.setattr(gated_layer, "_SEGMENT_BYTES", defaultdict(lambda: 1))
    lin = linearize(case, "gated_numba", gates="recomputed")
    assert relative(lin.P.apply(q), plain[0]) < 1e-14
    assert relative(lin.P.apply_adjoint(q), plain[1]) < 1e-14


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("block", [1, 40])
def test_a_single_unit_works(kind, block):
    torch.manual_seed(0)
    model, x = kind(2, 1, batch_first=True).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    reference = kpops.linearize(model, x, engine="autodiff")
    for engine in GATED:
        lin = kpops.linearize(model, x, engine=engine)
        for name, op in operators(lin).items():
            q = torch.randn(block, *op.domain.shape, dtype=torch.float64)
            assert relative(op.apply(q), operators(reference)[name].apply(q)) < 1e-14, name


@pytest.mark.parametrize("name", ["gru", "lstm_two_layers", "oscillator"])
def test_scipys_blas_takes_over_where_torch_exports_none(name, monkeypatch):
    from kpops.engines.cpu import blas

    reference = linearize(BY_NAME[name], "autodiff")
    monkeypatch.setattr(blas, "_torch_blas", lambda: None)
    blas.gemm_address.cache_clear()
    try:
        for engine in ("gated_numba", "jacobian"):
            assert_same(linearize(BY_NAME[name], engine), reference, 1e-13)
    finally:
        blas.gemm_address.cache_clear()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_features_where_gates_are_shut_hide_no_others(dtype):
    # In the first trial the inputs are huge and all units saturated: what they add to K is zero.
    torch.manual_seed(0)
    rnn = nn.RNN(2, 8, batch_first=True).to(dtype)
    x = torch.randn(4, 6, 2, dtype=dtype)
    x[..., 0] = 0
    x[0] = torch.tensor([1e4, 0])
    reference = kpops.linearize(rnn, x, engine="autodiff")
    q = torch.randn(2, *reference.space.shape, dtype=dtype)
    for engine in GATED:
        lin = kpops.linearize(rnn, x, engine=engine)
        bound = 20 * torch.finfo(dtype).eps
        assert relative(lin.K.apply(q), reference.K.apply(q)) < bound
        for name, K_j in lin.K_by_parameter.items():
            assert relative(K_j.apply(q), reference.K_by_parameter[name].apply(q)) < bound


def test_zero_features_have_no_columns():
    assert thin_factor([torch.zeros(6, 3)]).shape == (6, 0)
    rnn = nn.RNN(2, 4, batch_first=True, bias=False).double()
    for engine in GATED:  # no input and no state: nothing to learn from
        lin = kpops.linearize(rnn, torch.zeros(3, 5, 2, dtype=torch.float64), engine=engine)
        assert lin.engine.feature_ranks() == [0]
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
    assert estimate["gated"] == kept
    transposed = [p.weights for (_, back), p in lin.engine._passages.items() if not back]
    assert len(transposed) == len(lin.engine.layers)
    assert estimate["gated_numba"] == kept + sum(w.nbytes for pair in transposed for w in pair)


@pytest.mark.parametrize("name", ["rnn_tanh", "gru_two_layers", "lstm"])
def test_flow_takes_the_memory_of_its_result_alone(name, monkeypatch):
    lin, rooms, make = linearize(BY_NAME[name], "gated_numba"), [], memory.room
    monkeypatch.setattr(memory, "room", lambda *of: rooms.append(make(*of)) or rooms[-1])
    q = torch.randn(3, *lin.space.shape, dtype=torch.float64)
    before = q.clone()
    image = lin.flow.apply(q)
    assert [new.data_ptr() for new in rooms] == [image.data_ptr()]
    assert torch.equal(q, before) and image.data_ptr() != q.data_ptr()
    assert relative(image, (lin.P @ lin.K @ lin.P.H).apply(q)) < 1e-14


def test_threads_do_not_share_the_memory_of_a_matvec():
    lin = linearize(BY_NAME["gru"], "gated_numba")
    blocks = torch.randn(8, 20, 3, *lin.space.shape, dtype=torch.float64)
    expected = [[lin.flow.apply(q) for q in some] for some in blocks]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda some: [lin.flow.apply(q) for q in some], blocks)
    for some, others in zip(expected, found, strict=True):
        assert all(map(torch.equal, some, others))


def test_memory_estimate_knows_which_parameters_learn():
    rnn, x = nn.RNN(2, 8, batch_first=True), torch.randn(3, 5, 2)
    full = kpops.linearize(rnn, x).memory_estimate()["gated"]
    bias = kpops.linearize(rnn, x, parameters=["bias_hh_l0"]).memory_estimate()["gated"]
    assert bias == 4 * 15 * (8 + 1)  # f', and one column
    assert full == 4 * 15 * (8 + 11)  # h, x and one column for both biases
    recomputed = kpops.linearize(rnn, x, gates="recomputed").memory_estimate()
    assert recomputed["gated"] == full  # one segment holds it all


def test_a_pickle_holds_the_trajectory_once():
    rnn = nn.RNN(2, 32, num_layers=4, batch_first=True)
    sizes = [
        len(pickle.dumps(kpops.linearize(rnn, torch.randn(10, 50, 2), engine=engine)))
        for engine in ("autodiff", "gated", "gated_numba")
    ]
    assert max(sizes) < 1.05 * sizes[0]


def test_empty_blocks_give_empty_blocks():
    for engine in (*GATED, "jacobian", "autodiff"):
        lin = linearize(BY_NAME["gru"], engine)
        for op in (*operators(lin).values(), lin.flow):
            empty = torch.empty(0, *op.domain.shape, dtype=torch.float64)
            assert op.apply(empty).shape == (0, *op.codomain.shape)


def test_a_failing_task_waits_for_the_others():
    from kpops.engines import threads

    done, begun = [], threading.Event()

    def task(i):
        if i == 0:
            assert begun.wait(30)  # a task that has not begun would be cancelled
            raise KeyError("task 0")
        begun.set()
        time.sleep(0.2)
        done.append(i)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError, match="task 0"):
            threads.each(task, 2)
    finally:
        torch.set_num_threads(before)
    assert done == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_products_work_in_a_forked_process():
    lin = linearize(BY_NAME["gru"], "gated_numba")
    q = np.ones(lin.space.shape)
    expected = lin.flow @ q
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, that forking beside threads is risky
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda: queue.put(lin.flow @ q))
        child.start()
    assert relative(queue.get(), expected) < 1e-14
    child.join()


def test_blocks_that_do_not_fit_are_taken_in_pieces(monkeypatch):
    lin = linearize(BY_NAME["gru"], "gated_numba")
    q = torch.randn(7, *lin.space.shape, dtype=torch.float64)
    whole = [op.apply(q) for op in (lin.P, lin.K, lin.flow, lin.J.H)]
    sizes = []
    propagate = lin.engine.propagate
    monkeypatch.setattr(lin.engine, "propagate", lambda b: (sizes.append(len(b)), propagate(b))[1])
    monkeypatch.setattr("kpops.operators.action.ALWAYS_FITS", 0)
    monkeypatch.setattr("kpops.operators.action.free_bytes", lambda device: 50 * 480)
    for op, image in zip((lin.P, lin.K, lin.flow, lin.J.H), whole, strict=True):
        assert relative(op.apply(q), image) < 1e-14
    assert max(sizes) < 7
    assert len(set(sizes)) <= 2  # one size for P, one for the flow operator, which needs more
    assert lin.P.num_matvecs > 0


def test_tasks_share_work_evenly():
    for size, n_threads in [(20, 2), (320, 2), (1280, 2), (5, 2), (1, 4), (7, 3)]:
        bounds = threads.split(size, n_threads, 192)
        parts = np.diff(bounds)
        assert bounds[0] == 0
        assert bounds[-1] == size
        assert max(parts) <= 192
        assert max(parts) - min(parts) <= 1
        assert len(parts) % n_threads == 0 or len(parts) == size


def test_temporaries_take_a_part_of_a_large_gpu(monkeypatch):
    monkeypatch.setattr(gated_layer, "device_bytes", lambda device: (2**33, 2**37)[device.index])
    sizes = [gated_layer.slice_bytes(torch.device(d)) for d in ("cpu", "cuda:0", "cuda:1")]
    assert sizes == [2**22, 2**28, 2**31]


def test_a_layer_in_which_nothing_learns_keeps_no_diagonals():
    model = nn.GRU(2, 4, num_layers=2, batch_first=True).double()
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    names = [n for n, _ in model.named_parameters() if n.endswith("l1")]
    lin = kpops.linearize(model, x, parameters=names, engine="gated")
    lin.K.apply(torch.randn(1, *lin.space.shape, dtype=torch.float64))
    assert ["_stored" in vars(layer) for layer in lin.engine.layers] == [False, True]
