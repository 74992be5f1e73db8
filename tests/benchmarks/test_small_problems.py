"""The benchmarks of small problems and of threads, on almost nothing."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import small, threads
from benchmarks.cases import OPERATORS, Case
from benchmarks.timing import Limits

CASE = Case("GRU", 2, trials=1, steps=3)
ONCE = Limits(at_least=1, enough_s=0.0, at_most=1)


def test_every_call_of_a_small_problem_is_measured(monkeypatch):
    monkeypatch.setattr(small, "TURNS", 1)
    monkeypatch.setattr(small, "LEAST_S", 0.0)
    (found,) = small.measure(CASE)
    assert list(found) == list(small.calls(CASE))
    assert {"forward", "flow @ DataArray", "effective_rank(flow)", "collapse"} <= set(found)


def test_scaling_is_measured_for_each_operator_and_block_and_leaves_the_threads(capsys):
    before = torch.get_num_threads()
    try:
        records = threads.scaling(CASE, (1, 2), 2, ONCE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    cells = [(r["operator"], r["block"]) for r in records]
    assert cells == [(name, size) for size in (1, 2) for name in (*OPERATORS, "GEMM")]
    threads.show(records, 2)
    assert len(capsys.readouterr().out.splitlines()) == 4
