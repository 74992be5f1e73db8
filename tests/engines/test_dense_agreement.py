"""Every operator equals the dense matrix that autograd makes of the module's own forward."""

import pytest
import torch
from cases import (
    ANY_MODEL,
    BY_NAME,
    CASES,
    CASES_AND_ENGINES,
    ENGINES,
    STEPS,
    TRIALS,
    skip_compiled_elsewhere,
)
from dense import dense, relative

import kpops
from kpops.engines import jacobian

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


SEQUENCES = [c for c in CASES if isinstance(c.build(), torch.nn.RNNBase)]


def ids(value):
    return getattr(value, "name", value)


def linearize(case, engine, device="cpu", mask=None, **options):
    skip_compiled_elsewhere(engine, device)
    model, (inputs, h0) = case.model(), case.data()
    lin = kpops.linearize(
        model,
        case.as_module_takes(model, inputs),
        h0=h0,
        engine=engine,
        device=device,
        mask=case.as_module_takes(model, mask),
        **options,
    )
    return lin, model, inputs, h0


def assert_equal(lin, reference):
    P, J = reference.P, reference.J
    expected = {
        "P": (lin.P, P),
        "J": (lin.J, J),
        "K": (lin.K, J @ J.T),
        "flow": (lin.flow, reference.sensitivity @ reference.sensitivity.T),
        "sensitivity": (lin.sensitivity, reference.sensitivity),
    }
    for name, K_j in lin.K_by_parameter.items():
        J_j = J[:, reference.columns(name)]
        expected[f"K[{name}]"] = (K_j, J_j @ J_j.T)
    errors = {name: relative(op.to_dense(), matrix) for name, (op, matrix) in expected.items()}
    adjoints = {
        f"{name}*": relative(op.H.to_dense(), matrix.T) for name, (op, matrix) in expected.items()
    }
    assert max((errors | adjoints).values()) < 1e-10, errors | adjoints


@pytest.mark.parametrize(("case", "engine"), CASES_AND_ENGINES, ids=ids)
def test_operators_equal_autograd_on_the_modules_own_forward(case, engine, device):
    lin, model, inputs, h0 = linearize(case, engine, device)
    reference = dense(case, model, inputs, h0)
    assert relative(lin.states.values, reference.states) < 1e-12
    assert_equal(lin, reference)
    assert relative(lin.P_inv.to_dense(), torch.linalg.inv(reference.P)) < 1e-10


@pytest.mark.parametrize(
    ("case", "engine"),
    [
        (case, engine)
        for case, engine in CASES_AND_ENGINES
        if case.name in ("rnn_tanh", "gru_two_layers", "lstm", "oscillator", "shared_norm_cell")
    ],
    ids=ids,
)
def test_masked_operators_equal_the_restricted_matrices(case, engine, device):
    lin, model, inputs, h0 = linearize(case, engine, device, mask=MASK)
    reference = dense(case, model, inputs, h0, mask=MASK)
    assert_equal(lin, reference)
    valid = MASK[..., None].expand(lin.space.shape).reshape(-1).double()
    identity = torch.from_numpy(lin.P.to_dense() @ lin.P_inv.to_dense())
    torch.testing.assert_close(identity, torch.diag(valid), rtol=0, atol=1e-12)


SUBSETS = [
    ("gru", ["weight_hh_l0", "bias_ih_l0"]),
    ("gru_two_layers", ["weight_ih_l1"]),
    ("gru_two_layers", ["bias_hh_l0", "weight_hh_l1"]),
    ("lstm_cell", ["weight_ih"]),
    ("lstm_cell", ["bias_hh"]),
    ("oscillator", ["recurrent.weight"]),
    ("shared_norm_cell", ["recurrent.weight", "norm.weight"]),
]


@pytest.mark.parametrize(
    ("case", "subset", "engine"),
    [
        (case, subset, engine)
        for name, subset in SUBSETS
        for case, engine in CASES_AND_ENGINES
        if case.name == name
    ],
    ids=ids,
)
def test_parameter_subsets_equal_the_dense_columns(case, subset, engine):
    lin, model, inputs, h0 = linearize(case, engine, parameters=subset)
    assert list(lin.parameters) == [n for n, _ in model.named_parameters() if n in subset]
    assert_equal(lin, dense(case, model, inputs, h0, names=subset))


@pytest.mark.parametrize("case", SEQUENCES, ids=ids)
def test_trajectory_equals_the_modules_own_forward(case):
    lin, model, inputs, h0 = linearize(case, "autodiff")
    parts = h0.reshape(TRIALS, case.layers, -1, 4).permute(2, 1, 0, 3).contiguous()
    state = (parts[0], parts[1]) if case.gated_with_cell else parts[0]
    own, _ = model(case.as_module_takes(model, inputs), state)
    own = own if model.batch_first else own.transpose(0, 1)
    ours = lin.recurrence.output(lin.trajectory.states)
    assert relative(ours, own.detach()) < 1e-12


def test_recursion_in_torch_equals_the_compiled_one():
    lin, *_ = linearize(BY_NAME["lstm"], "jacobian")
    A = lin.engine.jacobians
    q = torch.randn(3, *lin.space.shape, dtype=torch.float64)
    assert relative(jacobian.recur(A, q, backwards=False), lin.P.apply(q)) < 1e-14
    assert relative(jacobian.recur(A, q, backwards=True), lin.P.H.apply(q)) < 1e-14


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("engine", ["jacobian", "gated_numba"])
def test_compiled_engines_do_not_depend_on_the_number_of_threads(engine, block, threads):
    lin, *_ = linearize(BY_NAME["lstm_two_layers"], engine)
    q = torch.randn(block, *lin.space.shape, dtype=torch.float64)
    operators = (lin.P, lin.P.H, lin.K)
    expected = [op.apply(q) for op in operators]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for op, image in zip(operators, expected, strict=True):
            assert relative(op.apply(q), image) < 1e-14
    finally:
        torch.set_num_threads(before)


def test_one_step_and_one_trial_work():
    gru = torch.nn.GRU(2, 3, batch_first=True).double()
    for shape in [(1, 1, 2), (1, 4, 2), (4, 1, 2)]:
        for engine in ENGINES:
            lin = kpops.linearize(gru, torch.randn(*shape, dtype=torch.float64), engine=engine)
            identity = lin.P.to_dense() @ lin.P_inv.to_dense()
            assert relative(identity, torch.eye(len(identity), dtype=torch.float64)) < 1e-13


@pytest.mark.parametrize("engine", ANY_MODEL)
def test_chunks_of_rows_and_vectors_change_nothing(monkeypatch, engine):
    from collections import defaultdict

    from kpops.engines import rowwise

    lin, *_ = linearize(BY_NAME["gru"], engine)
    q = torch.randn(5, *lin.space.shape, dtype=torch.float64)
    whole = lin.K.apply(q), lin.P_inv.apply(q), lin.P_inv.H.apply(q)
    jacobians = lin.engine.rows.state_jacobians()
    monkeypatch.setattr(rowwise, "_ROW_BYTES", defaultdict(lambda: 2 * 4 * 8))
    monkeypatch.setattr(rowwise, "_BLOCK_BYTES", defaultdict(lambda: 2 * 24 * 2 * 4 * 8))
    lin.engine.rows._kept = None
    assert relative(lin.K.apply(q), whole[0]) < 1e-14
    assert relative(lin.P_inv.apply(q), whole[1]) < 1e-14
    assert relative(lin.P_inv.H.apply(q), whole[2]) < 1e-14
    assert relative(lin.engine.rows.state_jacobians(), jacobians) < 1e-14
