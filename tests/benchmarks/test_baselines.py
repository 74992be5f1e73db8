"""The baselines of the benchmarks compute what kpops computes."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from benchmarks import cells, floor, peers, stored, torch_func
from benchmarks.cases import OPERATORS, Case
from benchmarks.contenders import Contender, build, engine

pytestmark = [
    # PyTorch's own, at the first use of forward mode and of torch.func.linearize
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]


@pytest.fixture(params=["RNN", "GRU", "LSTM"])
def case(request):
    return Case(request.param, 6, trials=3, steps=7, inputs="noise", dtype=torch.float64)


def assert_agrees(contender, case, operators, block=3):
    lin = kpops.linearize(case.module(), case.drive(), engine="autodiff")
    q = case.block(block)
    if contender.hidden_only:
        q[..., case.hidden :] = 0
    ours = {"P": lin.P, "P*": lin.P.H, "K": lin.K, "flow": lin.flow}
    for operator in operators:
        for vectors in (q, q[:1]):
            expected = ours[operator] @ vectors
            if contender.hidden_only:
                expected[..., case.hidden :] = 0
            got = contender.products[operator](vectors)
            assert float((got - expected).norm() / expected.norm()) < 1e-10, operator


def test_plain_cells_run_as_the_module_does(case):
    module = case.module()
    states = cells.trajectory(case.kind, cells.weights_of(module), case.drive())
    expected = module(case.drive())[0].detach()
    torch.testing.assert_close(states[..., : case.hidden], expected, rtol=1e-12, atol=1e-13)


def test_torch_func_unrolled(case):
    assert_agrees(torch_func.unrolled(case), case, OPERATORS)


def test_torch_func_traced(case):
    assert_agrees(torch_func.unrolled(case, traced=True), case, OPERATORS)


def test_torch_func_fused(case):
    contender = torch_func.fused(case)
    assert contender.hidden_only == (case.kind == "LSTM")
    assert_agrees(contender, case, ["flow"])


def test_stored_jacobians(case):
    assert_agrees(stored.stored(case, rate=1e9, most_setup_s=10), case, OPERATORS)


def test_curvlinops(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the import of what curvlinops depends on
        pytest.importorskip("curvlinops")
    assert_agrees(peers.curvlinops(case), case, ["flow"])


def test_curvlinops_may_be_missing(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    made = build("curvlinops", lambda: peers.curvlinops(case), case)
    assert made.dashes == dict.fromkeys(OPERATORS, "not installed")


def test_what_is_too_large_or_too_slow_to_store_is_left_out(case):
    made = build("stored", lambda: stored.stored(case, rate=1.0, most_setup_s=10), case)
    assert set(made.dashes) == set(OPERATORS)
    assert made.dashes["P"] == "left out: making its matrices would take over 10 s"
    huge = replace(case, hidden=10**6)
    made = build("stored", lambda: stored.stored(huge, rate=1e30, most_setup_s=10), case)
    assert made.dashes["P"] == "left out: its stored matrices do not fit in memory"


def test_what_pytorch_cannot_differentiate_is_a_dash_but_an_error_of_kpops_is_an_error(case):
    def fails(q):
        raise NotImplementedError("no forward mode here. Please write to us")

    made = build("other", lambda: Contender("other", {"P": fails}), case)
    assert made.dashes == {"P": "no forward mode here"}
    with pytest.raises(NotImplementedError):
        build("kpops x", lambda: Contender("kpops x", {"P": fails}), case)


def test_engines_are_contenders(case):
    assert_agrees(engine(case, "autodiff"), case, OPERATORS)


def test_floor_does_the_operations_that_it_stands_for(case):
    """2 m n k operations for each product of an m x k and a k x n matrix."""
    q = case.block(2)
    products = floor.floor(case).products
    counted = {}
    for operator, product in products.items():
        with FlopCounterMode(display=False) as counter:
            product(q)
        counted[operator] = counter.get_total_flops()
    one_way = 2 * len(q) * case.rows * case.hidden * case.gates * case.hidden
    assert counted["P"] == counted["P*"] == one_way
    assert counted["K"] == 2 * one_way // case.hidden * (case.hidden + 3 + 2)
