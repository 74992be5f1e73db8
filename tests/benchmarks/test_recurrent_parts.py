"""Stacks, scans and exponents of the benchmarks: their floors, their baselines, and what is said.

Times are not asserted, but what they are times of is.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from benchmarks import exponents, scan, stacks
from benchmarks.cases import OPERATORS, Case, Grid, quick
from benchmarks.contenders import Contender

BASE = Case("GRU", 5, trials=2, steps=6)
GRID = quick(BASE)


def silent(what):
    pass


# Stacks.


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_floor_of_a_stack_is_the_arithmetic_of_all_its_layers(kind, gates, layers):
    case = Case(kind, 8, trials=3, steps=5, layers=layers)
    rows, inputs = 15, 3
    recurrent, from_below = layers, layers - 1
    through = 2 * rows * 8 * gates * 8 * (recurrent + from_below)
    there = (
        2 * rows * (8 + inputs + 2) * gates * 8 + from_below * 2 * rows * (8 + 8 + 2) * gates * 8
    )
    expected = {"P": through, "P*": through, "K": 2 * there, "flow": 2 * through + 2 * there}
    floor, counted = stacks.floor_of_stack(case), {}
    for operator, product in floor.products.items():
        product(case.block(2))
        with FlopCounterMode(display=False) as counter:
            product(case.block(2))
        counted[operator] = counter.get_total_flops() / 2  # of two vectors
    counted["flow"] = sum(counted.values())
    assert counted == expected
    assert {o: stacks.floor_flops(case, o) for o in OPERATORS} == expected


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_case_of_several_layers_has_the_states_of_all(kind):
    case = Case(kind, 4, trials=2, steps=6, layers=3)
    lin = kpops.linearize(case.module(), case.drive())
    assert (lin.P @ case.block(2)).shape == (2, *lin.states.shape) == (2, 2, 6, case.state_size)
    assert case.name == f"{kind} 4 x 3"
    assert Case(kind, 4).name == f"{kind} 4"


def test_stacks_are_timed_against_the_floor_of_the_same_run():
    case = replace(BASE, kind="LSTM", hidden=8, layers=2)
    records = stacks.of_case(case, GRID, silent)
    assert [(r["block"], r["operator"]) for r in records] == [
        (b, o) for b in GRID.layer_blocks for o in OPERATORS
    ]
    by_cell = {(r["operator"], r["block"]): r for r in records}
    for block in GRID.layer_blocks:
        floors = [by_cell[o, block]["floor_ms_per_vector"] for o in OPERATORS]
        assert floors[3] == pytest.approx(sum(floors[:3]), rel=1e-12)
    assert {r["engine"] for r in records} == {"gated_numba"}


def test_a_wrong_product_of_a_stack_stops_the_run(monkeypatch):
    right = stacks.engine

    def wrong(case, name):
        ours = right(case, name)
        product = ours.products["P*"]
        return replace(ours, products={**ours.products, "P*": lambda q: 1.01 * product(q)})

    monkeypatch.setattr(stacks, "engine", wrong)
    case = replace(BASE, layers=2)
    with pytest.raises(AssertionError, match=r"P\* of GRU 5 x 2, block of 1, differs .* by 0\.01"):
        stacks.of_case(case, GRID, silent)


# Scans.


def layer(model, **options):
    return scan.Layer(model, 8, 2, 33, inputs="noise", dtype=torch.float64, **options)


@pytest.mark.parametrize("model", scan.MODELS)
def test_all_that_compete_compute_the_dense_propagator(model):
    case = layer(model)
    q = case.block(3)
    lin = kpops.linearize(case.module(), case.drive(), engine="autodiff")
    dense = torch.from_numpy(lin.P.to_dense())
    expected = (q.flatten(1) @ dense.T).view(q.shape)
    found = {c.name: c.products["P"](q) for c in scan.contenders(case) if c.products}
    scans = {"kpops scan", scan.SCAN} if model != "LinearTimeVarying" else set()
    assert set(found) == {"kpops jacobian", scan.LOOP} | scans
    for product in found.values():
        assert float((product - expected).norm() / expected.norm()) < 1e-13


def test_a_layer_with_coupled_units_has_no_scan_and_says_so():
    dashes = {
        c.name: c.dashes["P"] for c in scan.contenders(layer("LinearTimeVarying")) if c.dashes
    }
    reason = "its units are coupled, so that its propagator is no scan"
    assert dashes == {"kpops scan": reason, scan.SCAN: reason}


def test_float64_products_agree_and_others_stop_the_run(monkeypatch):
    assert scan.agreement(layer("DiagonalSSM")) < 1e-13
    monkeypatch.setattr(scan, "loop", lambda blocks, q: (1 + 1e-11) * q)
    with pytest.raises(AssertionError, match=r"DiagonalSSM 8: P differs from the loop's by"):
        scan.agreement(layer("DiagonalSSM"))


def test_the_compiled_pass_and_the_scan_in_torch_are_different_code(monkeypatch):
    case = layer("SelectiveSSM")
    by_name = {c.name: c for c in scan.contenders(case)}
    calls = []

    def counted(rounds, q, *, backwards):
        calls.append(len(rounds))
        return q.clone()

    monkeypatch.setattr(scan.scan, "recur", counted)
    by_name["kpops scan"].products["P"](case.block(1))
    assert calls == []
    by_name[scan.SCAN].products["P"](case.block(1))
    assert calls == [6]  # rounds of 33 steps


@pytest.mark.slow
def test_scans_are_timed_at_all_lengths_with_ratios_of_like_to_like():
    found = scan.measure(GRID, silent)
    timed = {
        (r["model"], r["steps"], r["block"], r["contender"]): r["ms_per_vector"]
        for r in found["records"]
        if "ms_per_vector" in r
    }
    cells = [(n, b) for n in GRID.scan_steps for b in GRID.layer_blocks]
    assert len(timed) == len(cells) * (4 + 4 + 2)
    assert len(found["records"]) == len(cells) * 4 * 3
    assert {(r["model"], r["steps"], r["block"]) for r in found["ratios"]} == {
        (m, *cell) for m in ("DiagonalSSM", "SelectiveSSM") for cell in cells
    }
    assert set(found["agreement"]) == set(scan.MODELS)
    assert max(found["agreement"].values()) <= 1e-12


def test_a_product_that_takes_too_long_has_no_ratio():
    def record(contender, **result):
        return {
            "model": "SelectiveSSM",
            "steps": 1000,
            "block": 1,
            "contender": contender,
            **result,
        }

    records = [
        record("kpops scan", ms_per_vector=0.5),
        record("kpops jacobian", dash="left out: one product would take more than 2.5 s"),
        record(scan.SCAN, ms_per_vector=2.0),
        record(scan.LOOP, ms_per_vector=20.0),
    ]
    ratios = scan.ratios(records)
    assert [(r["pair"], r["ratio"]) for r in ratios] == [("torch", 10.0)]


def test_nothing_is_made_of_an_engine_that_did_not_fit():
    absent = Contender("kpops jacobian", dashes={"P": "left out: too large"})
    contender = scan._in_torch(scan.LOOP, absent, lambda engine, q: q)
    assert contender.dashes == {"P": "left out: too large"}
    assert not contender.products


# Exponents.


def test_the_loop_by_hand_gives_the_logarithms_of_a_known_spectrum():
    module = torch.nn.RNN(1, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():  # at rest at zero, with Jacobian W
        for weight in module.parameters():
            weight.zero_()
        module.weight_hh_l0 += torch.diag(torch.tensor([0.9, -0.5, 0.2, 0.05], dtype=torch.float64))
        module.weight_hh_l0[0, 1:] += 0.3
    found = exponents.by_hand(module, torch.zeros(2, 2000, 1, dtype=torch.float64), 3, rng=0)
    expected = np.log([0.9, 0.5, 0.2])
    # From random frames the start is forgotten, which leaves a bias of order 1 / steps.
    np.testing.assert_allclose(found.numpy(), np.stack([expected] * 2), atol=5 / 2000)
    later = exponents.by_hand(module, torch.zeros(1, 4000, 1, dtype=torch.float64), 3, rng=0)
    first = exponents.by_hand(module, torch.zeros(1, 2000, 1, dtype=torch.float64), 3, rng=0)
    second_half = 2 * later - first
    np.testing.assert_allclose(second_half.numpy()[0], expected, atol=1e-12)


def test_the_loop_by_hand_and_kpops_agree_step_by_step():
    case = Case("RNN", 6, trials=3, steps=50, inputs="noise", dtype=torch.float64)
    assert exponents.agreement(case) < 1e-13


def test_exponents_that_differ_stop_the_run(monkeypatch):
    right = exponents.by_hand
    monkeypatch.setattr(exponents, "by_hand", lambda *a: right(*a) + 1e-8)
    case = Case("RNN", 6, trials=1, steps=50, inputs="noise", dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"RNN 6: exponents differ by 1e-08"):
        exponents.agreement(case)


def test_the_loop_by_hand_is_scaled_to_the_steps_of_kpops(monkeypatch):
    monkeypatch.setattr(
        exponents, "take_turns", lambda acts, device, limits: {"kpops": [4.0], "by hand": [3.0]}
    )
    grid = replace(GRID, exponents=((2, 3),), exponent_steps=(100, 20))
    found = exponents.measure(grid, silent)
    (record,) = found["records"]
    assert record == {"trials": 2, "k": 3, "kpops_s": 4.0, "by_hand_s": 15.0, "ratio": 3.75}
    assert (found["hidden"], found["steps"], found["by_hand_steps"]) == (3, 100, 20)


def test_exponents_are_timed_on_what_is_announced(monkeypatch):
    seen = []

    def spectrum(module, k, *, inputs, rng):
        seen.append((k, tuple(inputs.shape)))

    monkeypatch.setattr(exponents, "agreement", lambda case: 0.0)
    monkeypatch.setattr(exponents.kpops, "lyapunov_spectrum", spectrum)
    found = exponents.measure(GRID, silent)
    assert set(seen) == {(k, (trials, 200, 3)) for trials, k in GRID.exponents}
    assert found["hidden"] == 16


def test_the_full_grid_asks_for_what_the_project_promises():
    grid = Grid()
    assert grid.stacks[0] == ("LSTM", 2, 128)
    assert grid.stack_runs == (50, 100)
    assert max(grid.scan_steps) == 10_000
    assert {(1, 10), (1, 256)} <= set(grid.exponents)
