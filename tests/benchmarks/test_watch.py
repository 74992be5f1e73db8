"""The watch over ratios, and the tasks beside the method of the paper."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from benchmarks import collapse_by_hand, one_vector, paper, watch
from benchmarks.cases import Case
from benchmarks.stored import StoredJacobians

# PyTorch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

TINY = Case("GRU", 5, trials=3, steps=9)


def test_a_loss_above_a_quarter_is_named():
    before = {"P": 4.0, "K": 4.0, "flow": 4.0, "gone": 1.0}
    lost = watch.losses({"P": 3.01, "K": 2.99, "flow": 9.0, "new": 1.0}, before)
    assert lost == ["K: 2.99, was 4.00", "gone: 0.00, was 1.00"]


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "RESULTS", tmp_path / "watch.json")
    monkeypatch.setattr(watch, "measure", lambda: {"P": 4.0})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return watch.RESULTS


def test_ratios_are_kept_for_each_processor(kept):
    kept.write_text(json.dumps({"another": {"P": 9.0}}))
    watch.main([])
    assert json.loads(kept.read_text()) == {"another": {"P": 9.0}}
    watch.main(["--keep"])
    assert sorted(json.loads(kept.read_text()).values(), key=str) == [{"P": 4.0}, {"P": 9.0}]
    watch.main([])


def test_a_loss_ends_in_an_error(kept, monkeypatch):
    watch.main(["--keep"])
    monkeypatch.setattr(watch, "measure", lambda: {"P": 2.0})
    with pytest.raises(SystemExit, match=r"slower than it was:\nP: 2.00, was 4.00"):
        watch.main([])


def test_there_are_fifteen_ratios_of_calls_that_run(monkeypatch):
    monkeypatch.setattr(watch, "LARGE", replace(TINY, kind="GRU"))
    monkeypatch.setattr(watch, "PLAIN", replace(TINY, kind="RNN"))
    monkeypatch.setattr(watch, "SMALL", replace(TINY, kind="LSTM"))
    monkeypatch.setattr(watch, "MODES", 2)
    names = []
    for name, ours, theirs, _ in watch.pairs():
        names.append(name)
        if "exponents" not in name:  # thousands of steps
            ours()
            theirs()
    assert len(set(names)) == len(names) == 15


def test_the_collapse_by_hand_is_of_the_same_operators():
    case = replace(TINY, dtype=torch.float64)
    baseline, lin = StoredJacobians(case), kpops.linearize(case.module(), case.drive())
    ours = {"K": lin.K, "P P*": lin.P @ lin.P.H, "P K P*": lin.flow}
    for name, act in collapse_by_hand.operators(baseline).items():
        operator = one_vector.Counted(act, lin.space.size, "float64")
        expected = ours[name].expand_average("time").to_dense()
        found = collapse_by_hand.averaged(operator, baseline.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_ranks_by_hand_are_those_of_kpops():
    found = paper.checkpoints(replace(TINY, dtype=torch.float64))
    assert min(found.values()) > 0
