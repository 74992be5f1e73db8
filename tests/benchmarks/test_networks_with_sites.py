"""The benchmark of networks without recurrence, on problems of almost nothing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from benchmarks import sites
from benchmarks.sites import MLP, TRANSFORMER, Problem
from benchmarks.timing import Limits
from kpops.models.sites import plain

LIMITS = Limits(at_least=2, enough_s=0.0, at_most=2, few=2)
SMALL = {"MLP": Problem("MLP", 8, 2, 6), "transformer": Problem("transformer", 16, 1, 3)}


@pytest.mark.parametrize("kind", SMALL)
def test_all_contenders_are_timed_on_both_kernels(kind):
    records = sites.matvecs(SMALL[kind], LIMITS, (1, 2))
    assert [(r["operator"], r["block"]) for r in records] == [
        (operator, block) for operator in ("NTK", "P K P*") for block in (1, 2)
    ]
    for record in records:
        assert {"kpops", "torch.func vjp, jvp", "torch.func vjp of vjp"} <= set(record["ratio"])
        assert record["ratio"]["kpops"] == 1
        for name, ms in record["ms_per_vector"].items():
            assert record["ratio"][name] == ms / record["ms_per_vector"]["kpops"] > 0
        assert "curvlinops" not in record["ratio"] or record["operator"] == "NTK"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of others
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("operator", ["NTK", "P K P*"])
def test_kpops_does_no_more_operations_than_the_others(kind, operator):
    problem, counted = SMALL[kind], {}
    lin = kpops.linearize(problem.module(), problem.inputs())
    space = lin.output_space if operator == "NTK" else lin.space
    with plain():
        for name, product in sites.contenders(problem, operator).items():
            product(torch.ones(1, *space.shape))
            with FlopCounterMode(display=False) as counter:
                product(torch.ones(1, *space.shape))
            counted[name] = counter.get_total_flops()
    assert 0 < counted["kpops"] == min(counted.values())


def test_a_wrong_product_stops_the_run():
    right = torch.ones(2, 3)
    sites.agree({"kpops": right, "other": 1.0005 * right})
    with pytest.raises(AssertionError, match=r"product of other differs .* by 2\.0e-03"):
        sites.agree({"kpops": right, "other": 1.002 * right})


def test_the_whole_spectrum_is_that_of_the_dense_matrix(monkeypatch):
    record = sites.spectrum(SMALL["MLP"])
    assert record["size"] == 6 * (8 + 8 + 10)
    assert record["ratio"] == record["dense_s"] / record["kpops_s"]
    right = sites.kpops.eigvalsh
    monkeypatch.setattr(sites.kpops, "eigvalsh", lambda K: 1.001 * right(K))
    with pytest.raises(AssertionError, match=r"spectra of K differ by 1\.0e-03"):
        sites.spectrum(SMALL["MLP"])


def test_the_problems_are_those_that_the_project_promises():
    hidden = [p for p in MLP.module() if isinstance(p, torch.nn.Linear)][:-1]
    assert [p.out_features for p in hidden] == [512] * 4
    assert MLP.inputs().shape == (1000, 64)
    parameters = sum(p.numel() for p in TRANSFORMER.module().parameters())
    assert 9.5e6 < parameters < 10.5e6
    assert TRANSFORMER.inputs().shape == (64, sites.TOKENS)


@pytest.mark.slow
def test_memory_does_not_grow_with_parameters_times_samples():
    few, many = (sites.memory(replace(MLP, samples=n)) for n in (250, 1000))
    assert many["parameters"] == few["parameters"] > 8e5
    added = many["growth"] - few["growth"]
    assert added < 0.1 * 4 * many["parameters"] * 750
