"""The benchmarks of spectra: baselines and bookkeeping against independent references."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from benchmarks import certainty, estimators, one_vector, shares, spectra
from benchmarks.cases import Case, quick
from benchmarks.equal import LENIENCE, Solver, loosened, side_by_side
from benchmarks.stored import StoredJacobians

# PyTorch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

BASE = Case("GRU", 5, trials=2, steps=6)


def symmetric(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (Q * values) @ Q.T


def counted(matrix, cost=1):
    return one_vector.Counted(lambda q: matrix @ q, len(matrix), str(matrix.dtype), cost)


def test_the_baseline_finds_leading_modes_and_counts_products():
    values = 0.8 ** np.arange(60)
    operator = counted(symmetric(values), cost=2)
    found, vectors = one_vector.arpack(operator, 5, 1e-10, np.ones(60))
    np.testing.assert_allclose(found, values[:5], rtol=1e-9)
    assert spectra.residual(operator.act, found, vectors) < 1e-8
    assert operator.products > 0
    assert operator.products % 2 == 0


def test_residuals_are_relative_to_the_largest_value():
    matrix = np.diag([4.0, 2.0, 1.0])
    off = np.array([[1.0, 0, 0], [0, np.cos(0.1), np.sin(0.1)]])
    gap = np.linalg.norm(matrix @ off[1] - 2 * off[1]) / 4
    found = spectra.residual(lambda q: matrix @ q, np.array([4.0, 2.0]), off)
    assert found == pytest.approx(gap, rel=1e-12)


def fake(reach):
    """A solver whose residual is a function of the tolerance, with fewer products the looser."""
    asked = []

    def solve(tol):
        asked.append(tol)
        return tol

    solver = Solver(solve, lambda tol: np.ones(1), reach, lambda tol: -100 * np.log10(tol))
    return solver, asked


def test_a_solver_that_went_too_far_is_loosened_to_the_residual_of_the_other():
    solver, asked = fake(lambda tol: 0.01 * tol)
    first = solver.run(1e-5)
    last = loosened(solver, first, 2e-6)
    assert 2e-6 <= last.residual <= LENIENCE * 2e-6
    assert last.products < first.products
    assert len(asked) <= 4


def test_no_solver_is_let_off_with_more_than_three_times_the_residual():
    solver, _ = fake(lambda tol: 1e-7 if tol < 5e-5 else 1e-3)  # all or nothing
    last = loosened(solver, solver.run(1e-5), 1e-6)
    assert last.residual == 1e-7
    assert 1e-5 <= last.tol < 5e-5


@pytest.mark.parametrize(("ours", "theirs"), [(0.01, 1.0), (1.0, 0.01), (1.0, 2.0)])
def test_residuals_side_by_side_are_equal(ours, theirs):
    mine, my_tols = fake(lambda tol: ours * tol)
    his, his_tols = fake(lambda tol: theirs * tol)
    found = side_by_side(mine, his, 1e-5)
    ratio = found["stored"].residual / found["kpops"].residual
    assert 1 <= ratio <= LENIENCE * (1 + 1e-12)
    assert found["kpops_at_tol"].tol == found["stored_at_tol"].tol == 1e-5
    assert min(my_tols + his_tols) == 1e-5  # neither was tightened


def test_the_baseline_of_the_participation_ratio_is_unbiased_with_an_honest_error():
    matrix = symmetric(1.0 / (1 + np.arange(80)))
    exact = np.trace(matrix) ** 2 / (matrix**2).sum()
    found = [
        one_vector.participation(counted(matrix), 40, np.random.default_rng(seed))
        for seed in range(300)
    ]
    estimates, errors = np.array(found).T
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(300)
    assert np.sqrt((errors**2).mean()) == pytest.approx(estimates.std(), rel=0.2)


def test_both_sides_find_the_same_modes_of_a_network():
    record = spectra.compare(replace(BASE, kind="RNN"), lambda text: None)
    by_task = {task["task"]: task for task in record["tasks"]}
    assert list(by_task) == ["K", "P", "flow", "participation"]
    for name in ("K", "P", "flow"):
        task = by_task[name]
        assert task["difference"] < 1e-5
        assert task["stored"]["residual"] < 1e-4
        assert min(task["kpops"]["seconds"], task["stored"]["seconds"]) > 0
    assert by_task["K"]["kpops"]["residual"] is None
    assert 0 < by_task["P"]["kpops"]["residual"] < 1e-5
    ranks = by_task["participation"]
    assert ranks["stored"]["products"] == spectra.PROBES
    assert ranks["kpops"]["stderr"] <= ranks["stored"]["stderr"]


def test_modes_that_differ_stop_the_run():
    lin = kpops.linearize(BASE.module(), BASE.drive())
    baseline = StoredJacobians(BASE)
    right = baseline.flow
    pair = spectra.Pair(BASE, lin, baseline)
    baseline.flow = lambda q: 1.01 * right(q)
    with pytest.raises(AssertionError, match=r"modes differ by 0\.0099 of the largest"):
        pair.flow()


def test_shares_of_a_call_are_those_of_its_products(monkeypatch):
    now = [0.0]  # a clock of our own, that a busy machine does not delay
    monkeypatch.setattr(shares, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(estimators.Diagonal):
        def _apply(self, block):
            now[0] += 4.0
            return block * self.values

    twice = Slow(np.ones(4)) @ Slow(np.ones(4))  # products within a product count once

    def call():
        twice.apply(torch.ones(1, 4, dtype=torch.float64))
        now[0] += 2.0

    found = shares.of(call)
    assert found["seconds"] == 10
    assert (found["products"], found["orthogonalisation"]) == (0.8, 0)
    assert found["rest"] == pytest.approx(0.2)


def test_orthogonalisation_has_its_share_and_the_library_is_left_as_it_was():
    from kpops.linalg.basis import Basis
    from kpops.operators.base import TrajectoryOperator

    before = TrajectoryOperator._counted, Basis.remove
    op = estimators.Diagonal(0.9 ** np.arange(1500))
    found = shares.of(lambda: kpops.eigsh(op, 3, rng=0))
    assert found["orthogonalisation"] > 0
    assert (TrajectoryOperator._counted, Basis.remove) == before


def test_known_spectra_of_the_estimators_are_those_of_the_operators():
    grid = replace(quick(BASE), estimators=(("GRU", 5),))
    for problem in estimators.problems(grid):
        if problem.name not in estimators.SPECTRA:
            expected = np.linalg.eigvalsh(problem.op.to_dense().astype(float))[::-1]
            n = min(len(expected), len(problem.spectrum))
            found = np.sort(problem.spectrum)[::-1]
            np.testing.assert_allclose(found[:n], expected[:n], atol=1e-5 * expected[0])
            assert np.abs(expected[n:]).max(initial=0) < 1e-5 * expected[0]


def test_errors_are_relative_and_coverage_counts_two_sigma():
    gaps = np.array([0.5, -1.0, 3.0, 0.0])

    def estimate(rng):
        values = {"estimate": 10 * (1 + 0.1 * gaps[rng]), "stderr": 1.0}
        return xr.Dataset(values, attrs={"method": "hutchinson", "num_matvecs": 7 + rng})

    found = estimators.errors(estimate, 10.0, 4, 0.0)
    assert found["rms"] == pytest.approx(0.1 * np.sqrt((gaps**2).mean()))
    assert found["claimed"] == pytest.approx(0.1)
    assert found["coverage"] == 0.75
    assert found["products"] == 10
    assert found["chosen"] == {"hutchinson": 4}


def test_auto_is_compared_with_the_best_of_the_others():
    records = [
        {"operator": name, "quantity": quantity, "method": method, "rms": rms}
        for name, quantity, method, rms in [
            ("A", "trace", "hutchinson", 0.2),
            ("A", "trace", "xtrace", 0.1),
            ("A", "trace", "auto", 0.15),
            ("A", "participation", "hutchinson", 0.001),
            ("B", "trace", "hutchinson", 0.001),
        ]
    ]
    assert estimators.against_best(records, "A") == pytest.approx(1.5)


def test_wrong_calls_stand_out_in_the_terminal():
    outcomes = {m: {"flat": {"right": 2}, "zero": {"right": 1}} for m in certainty.METHODS}
    outcomes["arpack"]["flat"] = {"right": 1, "wrong": 3, "unsure": 4}
    part = {
        "cases": 14,
        "tolerance": 1e-6,
        "outcomes": outcomes,
        "worst": dict.fromkeys(certainty.METHODS, 2e-7),
    }
    text = certainty.outcomes_as_text(part)
    assert [line.split() for line in text if line.startswith("arpack")] == [
        ["arpack", "2", "4", "3", "2.0e-07"]
    ]
    assert any(line.startswith("flat") and line.endswith("1 / 4 / 3") for line in text)
