"""Symbolic codes: regions, transitions, entropies with closed forms, exponents."""

import numpy as np
import pytest
import torch
import xarray as xr
from hand_built import GOLDEN, assert_saved, drawn, filled, lozi, run, tent

import kpops
from kpops.models import PLRNNCell, ShallowPLRNNCell
from kpops.reconstruction import symbolic_code


def one_unit(*trials):
    """States (trial, time, unit) of a single relu, open where the letter is '1'."""
    return np.array([[[1.0] if letter == "1" else [-1.0] for letter in trial] for trial in trials])


def tent_orbits(n_trials, n_steps, seed):
    """Orbits of the full tent map, from random last states backwards: that way errors shrink."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-1, 1], (n_trials, n_steps))
    x = np.empty((n_trials, n_steps, 1))
    x[:, -1, 0] = rng.uniform(-1, 1, n_trials)
    for t in range(n_steps - 2, -1, -1):
        x[:, t, 0] = side[:, t] * (1 - x[:, t + 1, 0]) / 2
    return x


def test_regions_and_transitions_are_counted():
    code = symbolic_code(tent(), one_unit("0010110", "0000000"))
    assert code.bits.values.tolist() == ["0", "1"] and int(code.n_regions) == 2
    assert code.symbol.values[0].tolist() == [0, 0, 1, 0, 1, 1, 0]
    assert code.visits.values.tolist() == [11, 3]
    assert code.transitions.values.tolist() == [[7, 2], [2, 1]]  # none from trial to trial
    assert code.probability.values.tolist() == [[7 / 9, 2 / 9], [2 / 3, 1 / 3]]


def test_masked_steps_have_no_symbol_and_no_transition():
    mask = np.array([[1, 1, 1, 0, 1, 1, 0]], bool)
    code = symbolic_code(tent(), one_unit("0010110"), mask=mask)
    assert code.bits.values.tolist() == ["1", "0"]
    assert code.symbol.values[0].tolist() == [1, 1, 0, -1, 0, 0, -1]
    assert int(code.transitions.sum()) == 3 and int(code.visits.sum()) == 5
    assert code.n_windows.values.tolist() == [5, 3, 1, 0]
    assert np.isnan(code.entropy_rate[3])


def test_a_region_that_is_not_left_has_no_probabilities():
    code = symbolic_code(tent(), one_unit("0001"))
    assert np.isnan(code.probability[1]).all() and code.probability[0].sum() == 1


def test_the_golden_tent_map_has_the_entropy_of_its_slope():
    # No state left of 0 maps to the left, so words are counted by Fibonacci's numbers. The measure
    # of a map of constant slope is that of largest entropy: all three entropies are log g.
    cell = tent(GOLDEN)
    code = symbolic_code(cell, run(cell, np.linspace(-0.4, 0.9, 20)[:, None], 4000), longest_word=7)
    assert code.bits.values.tolist() == ["1", "0"] and int(code.transitions[1, 1]) == 0
    assert code.n_words.values.tolist() == [2, 3, 5, 8, 13, 21, 34]
    assert abs(float(code.topological_entropy) - np.log(GOLDEN)) < 1e-14
    # 80,000 steps: the plug-in estimate has a standard error near 1e-3
    assert abs(code.entropy_rate[1:] - np.log(GOLDEN)).max() < 5e-3
    assert abs(code.share[0] - GOLDEN**2 / (1 + GOLDEN**2)) < 5e-3


def test_the_full_tent_map_is_a_fair_coin():
    code = symbolic_code(tent(), tent_orbits(50, 1000, 0), longest_word=5)
    assert code.n_words.values.tolist() == [2, 4, 8, 16, 32]
    assert abs(float(code.topological_entropy) - np.log(2)) < 1e-15
    assert (abs(code.entropy_rate - np.log(2)) < 1e-3).all()
    assert (abs(code.block_entropy - code.length * np.log(2)) < 5e-3).all()


def test_entropies_are_those_of_the_words_by_their_formulas():
    letters = "0110100110010110100101100"
    code = symbolic_code(tent(), one_unit(letters), longest_word=3)
    for n in (1, 2, 3):
        words = [letters[i : i + n] for i in range(len(letters) - n + 1)]
        p = np.unique(words, return_counts=True)[1] / len(words)
        assert abs(float(code.block_entropy.sel(length=n)) + (p * np.log(p)).sum()) < 1e-14
    rows = code.transitions.values
    row = rows / rows.sum(1, keepdims=True)
    markov = -(rows.sum(1) / rows.sum() * (row * np.log(row)).sum(1)).sum()
    assert abs(float(code.entropy_rate.sel(length=2)) - markov) < 1e-14
    assert (np.diff(code.entropy_rate) < 0).all()


@pytest.mark.parametrize("letters", ["010101010", "0000000", "0001111", "01"])
def test_transitions_without_a_choice_on_any_circle_have_no_entropy(letters):
    assert float(symbolic_code(tent(), one_unit(letters)).topological_entropy) == 0


def test_log_determinants_add_up_to_the_exponents():
    # The piece that acts at step t is that of the state before it.
    cell = drawn(PLRNNCell(1, 4, rectified=3), 2, 1.0)
    with torch.no_grad():
        cell.W.mul_(0.7)
    h0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    spectrum = kpops.lyapunov_spectrum(cell, h0=h0, n_steps=600, frame_transient=0, rng=0)
    code = symbolic_code(cell, run(cell, h0, 599))
    assert int(code.visits.sum()) == 1800 and int(code.n_regions) > 1
    mean = float((code.share * code.log_determinant).sum())
    assert abs(mean - float(spectrum.mean_log_det)) < 1e-12
    assert abs(mean - float(spectrum.exponent.sum())) < 1e-10


def test_regions_of_a_shallow_network_are_those_of_its_hidden_layer():
    for clipped in (False, True):
        cell = drawn(ShallowPLRNNCell(1, 3, 5, clipped=clipped), 4)
        h = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0)).double()
        code = symbolic_code(cell, h)
        seen = h @ cell.W2.detach().T
        open_ = torch.cat([seen + cell.b2.detach(), seen][: 1 + clipped], -1) > 0
        assert (code.pattern.values[code.symbol.values] == open_.numpy()).all()
        assert code.attrs["n_relus"] == 5 * (1 + clipped)
        region = int(code.symbol[2, 7])
        A = torch.autograd.functional.jacobian(cell, (torch.zeros(1).double(), h[2, 7]))[1]
        assert abs(float(code.log_determinant[region]) - float(A.det().abs().log())) < 1e-12


def test_many_relus_are_told_apart():
    cell = filled(PLRNNCell(1, 70), A=0.5)
    h = torch.where(torch.eye(70, dtype=torch.bool), 1.0, -1.0).double()[None]
    code = symbolic_code(cell, h)
    assert int(code.n_regions) == 70
    assert set(code.bits.values) == {f"{1 << i:070b}" for i in range(70)}
    assert (code.pattern.values[code.symbol.values[0]] == np.eye(70, dtype=bool)).all()


def test_a_relu_at_its_kink_is_closed_and_without_relus_there_is_one_region():
    assert symbolic_code(tent(), np.zeros((1, 3, 1))).bits.values.tolist() == ["0"]
    plain = symbolic_code(drawn(PLRNNCell(1, 3, rectified=0), 0), np.ones((2, 5, 3)))
    assert plain.bits.values.tolist() == [""] and float(plain.entropy_rate[0]) == 0


def test_labels_of_the_states_are_kept():
    cell = drawn(PLRNNCell(2, 4), 0)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]])
    lin = kpops.linearize(cell, torch.ones(3, 5, 2, dtype=torch.float64), mask=mask)
    code = symbolic_code(lin)
    xr.testing.assert_identical(code, symbolic_code(cell, lin))
    xr.testing.assert_identical(code, symbolic_code(cell, lin.states))
    assert ((code.symbol == -1) == ~lin.states["mask"]).all()
    xr.testing.assert_identical(code.symbol["time"], lin.states["time"])


def test_float32_states_have_the_same_code():
    cell = drawn(PLRNNCell(2, 4), 0)
    h = np.random.default_rng(0).normal(size=(2, 60, 4)).astype(np.float32)
    single, double = symbolic_code(cell.float(), h), symbolic_code(cell, h, dtype=torch.float64)
    assert single.log_determinant.dtype == np.float32 and single.attrs["dtype"] == "float32"
    assert (single.symbol == double.symbol).all()


def test_results_are_saved(tmp_path):
    assert_saved(symbolic_code(lozi(), run(lozi(), [[0.1, 0.1, 0.1]], 50)), tmp_path)


WRONG = [
    (lambda: symbolic_code(torch.nn.GRU(1, 2), np.ones((1, 2, 2))), TypeError, "PLRNNCell"),
    (lambda: symbolic_code(tent()), TypeError, "states=None: pass states"),
    (lambda: symbolic_code(tent(), np.ones((1, 2, 3))), ValueError, "3 units, the model 1"),
    (lambda: symbolic_code(tent(), np.ones((2, 1))), ValueError, r"expected \(trial, time, unit"),
    (lambda: symbolic_code(tent(), np.full((1, 2, 1), np.nan)), ValueError, "not finite"),
    (lambda: symbolic_code(tent(), np.ones((1, 2, 1), "f")), TypeError, "by dtype=torch.float32"),
    (
        lambda: symbolic_code(tent(), np.ones((1, 2, 1)), mask=np.zeros((1, 2))),
        ValueError,
        "no valid step",
    ),
    (
        lambda: symbolic_code(tent(), np.ones((1, 2, 1)), longest_word=0),
        ValueError,
        "longest_word=0: choose an int of 1 or more",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong_uses_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
