"""The machinery of the benchmarks, on a grid of almost nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import __main__ as command
from benchmarks import certainty, growth, large, machine, memory, products, suite
from benchmarks.cases import OPERATORS, Case, Grid, quick
from benchmarks.contenders import Contender
from benchmarks.reference import Reference
from benchmarks.timing import Limits, take_turns

pytestmark = [
    # PyTorch's own, at the first use of forward mode, of torch.func.linearize and of vmap
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

BASE = Case("GRU", 5, trials=2, steps=6)


@pytest.fixture
def micro(monkeypatch):
    # A process of its own takes seconds to start: run what it would run here.
    def here(case, engine):
        names = ("kind", "hidden", "trials", "steps", "inputs", "device")
        arguments = {name: getattr(case, name) for name in names}
        return memory.main({**arguments, "dtype": "float32", "engine": engine})

    monkeypatch.setattr(memory, "in_process", here)
    monkeypatch.setattr(machine, "import_seconds", lambda repetitions: 0.1)
    grid = quick(BASE)
    return replace(
        grid,
        kinds=("GRU",),
        hidden=(5,),
        base=BASE,
        large=((5, 2, 6),),
        stacks=(("LSTM", 2, 4),),
        scan_steps=(4,),
        exponents=((1, 3), (2, 5)),
        spectra=(("RNN", 4),),
        certainty_cases=14,
        estimators=(("RNN", 4),),
        estimator_repetitions=(2, 2),
    )


@pytest.mark.slow
def test_a_run_writes_numbers(micro, tmp_path):
    speed, accuracy = suite.run(micro, tmp_path)
    assert [speed.name, accuracy.name] == ["cpu.json", "cpu_accuracy.json"]
    found, judged = (json.loads(path.read_text()) for path in (speed, accuracy))
    parts = {"device", "environment", "settings"}
    assert set(judged) == parts | set(suite.ACCURACY)
    assert set(found) == {*parts, "machine", *suite.PARTS} - {"large", *suite.ACCURACY}
    assert {"python", "torch", "numpy", "scipy", "numba", "processor", "threads"} <= set(
        found["environment"]
    )
    (case,) = found["products"]
    timed = {(r["contender"], r["operator"]) for r in case["products"] if "ms_per_vector" in r}
    for name in ("kpops autodiff", "torch.func unrolled", "stored Jacobians", "floor"):
        assert {(name, operator) for operator in OPERATORS} <= timed
    for record in case["products"]:
        assert ("dash" in record) != ("ms_per_vector" in record)
        assert "dash" in record or "fraction_of_floor" in record
    assert len(found["growth"]["slopes"]) == 12
    assert {r["operator"] for r in found["stacks"]} == set(OPERATORS)
    assert len(found["scan"]["agreement"]) == 3
    assert [r["k"] for r in found["exponents"]["records"]] == [3, 5]
    (spectrum,) = found["spectra"]
    assert [task["task"] for task in spectrum["tasks"]] == ["K", "P", "flow", "participation"]
    by_spectrum = [n for m in judged["certainty"]["outcomes"].values() for n in m.values()]
    assert sum(sum(n.values()) for n in by_spectrum) == 14 * 2 * len(certainty.METHODS)
    assert sum(n.get("wrong", 0) for n in by_spectrum) == 0
    operators = {r["operator"] for r in judged["estimators"]}
    assert {"flat, from 3 to 1", "K, RNN 4", "flow, RNN 4"} <= operators


@pytest.mark.slow
def test_parts_of_the_same_circumstances_are_kept(micro, tmp_path):
    suite.run(micro, tmp_path, ["spectra"])
    (path,) = suite.run(micro, tmp_path, ["growth"])
    assert {"spectra", "growth"} <= set(json.loads(path.read_text()))
    noisy = replace(micro, base=replace(BASE, inputs="noise"))
    suite.run(noisy, tmp_path, ["spectra"])
    assert "growth" not in json.loads(path.read_text())


def test_products_that_would_take_too_long_are_left_out():
    grid = replace(quick(BASE), kinds=("GRU",), limits=Limits(1, 0.0, 1, few=1, most_s=1e-9))
    found = products.measure(BASE, grid, {"gemm_flops": 1e12, "copy_bytes_per_s": 1e10}, print)
    dashes = {r["dash"] for r in found["products"] if r["contender"] == "kpops autodiff"}
    assert dashes == {"left out: one product would take more than 1e-09 s"}
    floors = [r for r in found["products"] if r["contender"] == "floor"]
    assert [r["ms_per_vector"] > 0 for r in floors] == [True] * 8


def test_a_block_is_taken_in_parts_where_that_is_faster():
    contender = Contender("other", {"P": lambda q: q}, divisible=True)
    table = products.Table(BASE, replace(Grid(), base=BASE), [contender])
    assert table.result("other", "P", 1, [0.004]) == {"ms_per_vector": 4.0}
    assert table.result("other", "P", 4, [0.008]) == {"ms_per_vector": 2.0, "how": "vmap"}
    assert table.result("other", "P", 16, [0.048]) == {
        "ms_per_vector": 2.0,
        "how": "faster in parts",
        "at_a_time": 4,
        "at_once_ms_per_vector": 3.0,
    }


def test_a_wrong_product_stops_the_run():
    block = BASE.block(1)
    reference = Reference(BASE, block)
    right = reference.products["P"](block)
    assert reference.check(Contender("right"), "P", right) == 0
    with pytest.raises(AssertionError, match=r"wrong: P of GRU 5, block of 1, differs .* by 0\.01"):
        reference.check(Contender("wrong"), "P", 1.01 * right)
    with pytest.raises(AssertionError):
        reference.check(Contender("nan"), "P", torch.nan * right)


def test_turns_are_taken_until_all_have_enough():
    calls = []
    acts = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = take_turns(acts, "cpu", Limits(at_least=3, enough_s=0.0))
    # Each begins with a call untimed, and none always follows the same one.
    assert "".join(calls) == "aabb" + "bbaa" + "aabb"
    assert [len(t) for t in times.values()] == [3, 3]
    assert Limits().reached([2.5] * 3)
    assert not Limits().reached([0.01] * 5)
    assert Limits().reached([0.1] * 5)


def test_shares_of_the_rate_of_products():
    case = replace(BASE, kind="GRU", hidden=8, trials=4, steps=6)
    records = large.of_case(case, 3, quick(BASE), lambda text: None)
    assert [r["operator"] for r in records] == ["P", "P*", "flow"]
    for r in records[:2]:
        assert r["flops"] == 2 * 3 * 4 * 6 * 3 * 8 * 8
        assert r["fraction_of_gemm"] == pytest.approx(
            r["flops"] / (r["ms"] / 1e3) / r["gemm_flops_per_s"]
        )


def test_slopes_of_a_power_law():
    points = [
        {"axis": axis, "at": n, "operator": o, "block": b, "ms_per_vector": 3.0 * n**1.5}
        for axis in ("trials", "steps", "hidden")
        for n in (2, 4, 8)
        for o in ("P", "flow")
        for b in (1, 16)
    ]
    slopes = growth.slopes(points, replace(Grid(), hidden_from=4))
    assert [round(s["slope"], 12) for s in slopes] == [1.5] * 12


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_peaks_do_not_start_from_the_size_of_the_parent():
    alone = memory.in_process(BASE, None)["peak"]
    memory.in_process.cache_clear()
    ballast = torch.ones(2**28)  # 1 GiB
    assert memory.peak_bytes("cpu") > ballast.nbytes
    assert abs(memory.in_process(BASE, None)["peak"] - alone) < ballast.nbytes / 8


def test_partial_runs_do_not_overwrite_the_results(capsys):
    for arguments in (["--quick"], ["--inputs", "noise"], ["--models", "GRU"]):
        with pytest.raises(SystemExit):
            command.options(arguments)
    assert "--out" in capsys.readouterr().err
