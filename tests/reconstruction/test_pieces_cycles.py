"""Fixed points and cycles of piecewise-linear networks: closed forms, counts, other searches."""

import numpy as np
import pytest
import torch
import xarray as xr
from hand_built import GOLDEN, assert_saved, drawn, filled, lozi, lozi_step, run, shallow_lozi, tent

import kpops
from kpops.models import PLRNNCell, ShallowPLRNNCell
from kpops.reconstruction import cycles

CELLS = {
    "plrnn": lambda seed: drawn(PLRNNCell(2, 4), seed, 1.5),
    "al_rnn": lambda seed: drawn(PLRNNCell(2, 6, rectified=3), seed, 1.2),
    "shallow": lambda seed: drawn(ShallowPLRNNCell(2, 3, 5), seed, 1.5),
    "clipped": lambda seed: drawn(ShallowPLRNNCell(2, 3, 4, clipped=True), seed, 2.0),
}


def test_the_kth_iterate_of_the_full_tent_map_has_two_to_the_k_fixed_points():
    n_cycles = {k: cycles(tent(), k).sizes["point"] for k in range(1, 11)}
    for k in n_cycles:
        assert sum(d * n_cycles[d] for d in n_cycles if k % d == 0) == 2**k


def test_cycles_of_the_tent_map_are_where_arithmetic_puts_them():
    # x' = 1 - 2 |x|: -5/9, -1/9, 7/9 and -3/7, 1/7, 5/7
    found = cycles(tent(), 3)
    expected = np.array([[-5, -1, 7], [-3, 1, 5]]) / np.array([[9], [7]])
    assert abs(found.orbit.values[..., 0] - expected).max() < 1e-15
    assert found.bits.values.tolist() == [["0", "0", "1"], ["0", "1", "1"]]
    assert found.eigenvalue_real.values.ravel().tolist() == [-8.0, 8.0]
    assert (found.n_unstable == 1).all() and not found.is_stable.any()


@pytest.mark.parametrize(("cell", "unit"), [(lozi(), [2, 0]), (shallow_lozi(), [0, 1])])
def test_the_lozi_map_has_its_two_fixed_points(cell, unit):
    # x = 1 - a |x| + b x; there the eigenvalues solve l^2 + a sign(x) l - b = 0
    found = cycles(cell)
    a, b = 1.7, 0.5
    x = np.array([1 / (1 - a - b), 1 / (1 + a - b)])
    assert abs(found.state.values[:, unit] - np.stack([x, b * x], 1)).max() < 1e-14
    for i, sign in enumerate((-1, 1)):
        roots = np.roots([1, a * sign, -b])
        roots = roots[np.argsort(-abs(roots))]
        assert abs(found.eigenvalue_real.values[i, :2] - roots).max() < 1e-14
    assert found.n_unstable.values.tolist() == [1, 1]


def test_both_forms_of_the_lozi_map_have_the_same_cycles_and_the_map_returns_there():
    for period in (2, 4, 6, 7):
        one, other = cycles(lozi(), period), cycles(shallow_lozi(), period, starts=400, rng=0)
        plane = one.orbit.values[..., [2, 0]]
        assert one.sizes["point"] == other.sizes["point"] > 0
        apart = abs(plane[:, :, None, None] - other.orbit.values).max(-1)  # any phase may be first
        assert (apart.min((1, 3)) < 1e-12).any(1).all()
        again = plane[:, 0]
        for phase in range(period):
            assert abs(plane[:, phase] - again).max() < 1e-11
            again = lozi_step(again)
        assert abs(plane[:, 0] - again).max() < 1e-11


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")  # some starts end nowhere
@pytest.mark.parametrize("name", CELLS)
def test_a_numerical_search_finds_the_same_fixed_points(name):
    n_found = 0
    for seed in range(5):
        cell, x, rng = CELLS[name](seed), [0.3, -0.5], np.random.default_rng(seed)
        exact = cycles(cell, input=x)
        size, shape = exact.sizes["unit"], (exact.sizes["point"], 5, exact.sizes["unit"])
        assert exact.attrs["starts"] == "all" and (exact.speed < 1e-12).all()
        near = exact.state.values[:, None] + 1e-3 * rng.normal(size=shape)
        starts = np.concatenate([near.reshape(-1, size), 3 * rng.normal(size=(30, size))])
        searched = kpops.fixed_points(cell, starts, input=x, merge_distance=1e-6)
        numerical = searched.isel(point=(searched.kind == "fixed").values)
        assert numerical.sizes["point"] == exact.sizes["point"]
        for point in range(exact.sizes["point"]):
            apart = abs(numerical.state.values - exact.state.values[point]).max(1)
            assert apart.min() < 1e-8
            radius = numerical.spectral_radius.values[apart.argmin()]
            assert abs(radius / exact.spectral_radius.values[point] - 1) < 1e-8
        n_found += exact.sizes["point"]
    assert n_found >= 3


@pytest.mark.parametrize(("seed", "period"), [(1, 1), (2, 2), (5, 3)])
def test_the_search_finds_what_all_sequences_have(seed, period):
    cell = drawn(PLRNNCell(1, 4), seed, 1.6)
    everything = cycles(cell, period)
    assert everything.sizes["point"] == 2
    searched = cycles(cell, period, starts=400, rng=1)
    assert everything.attrs["starts"] == "all" and searched.attrs["starts"] == "random"
    assert searched.attrs["n_solved"] <= everything.attrs["n_solved"] + 16
    assert everything.bits.values.tolist() == searched.bits.values.tolist()
    assert abs(everything.orbit - searched.orbit).max() < 1e-11


def test_the_search_reaches_the_fixed_points_of_very_many_regions():
    # h' = 2 h + 2 relu(h) + b, unit by unit, rests at -b if that is negative, else at -b/3: one
    # of 2^60 patterns has its solution in its region.
    b = np.linspace(-1, 1, 60)
    found = cycles(filled(PLRNNCell(1, 60), A=2.0, W=2 * torch.eye(60), b=b), starts=50, rng=0)
    assert found.sizes["point"] == 1 and int(found.basin_count[0]) == 50
    assert abs(found.state.values[0] - np.where(b > 0, -b, -b / 3)).max() < 1e-14


def test_long_unstable_cycles_are_as_exact_as_short_ones():
    # Every sequence of the tent map's regions is visited. Eliminating to one state would multiply
    # rounding by 2^60.
    found = cycles(tent(), 60, starts=20, rng=0)
    assert found.sizes["point"] == 20
    assert float(found.speed.max()) < 1e-14
    assert abs(found.spectral_radius / 2.0**60 - 1).max() < 1e-12
    assert (found.basin_count == 1).all()


def test_states_of_a_stable_cycle_lead_to_it():
    # slopes 0.5 and -1.6: the fixed point right of 0 is unstable, the cycle over both is not
    cell = filled(PLRNNCell(1, 1), A=0.5, W=-2.1, b=1.0)
    late = run(cell, [[0.1]], 2000)[:, -4:]
    found = cycles(cell, 2, late)
    assert found.attrs["starts"] == "states" and found.sizes["point"] == 1
    ends = late[0, -2:, 0].numpy()
    assert abs(np.sort(found.orbit.values[0, :, 0]) - np.sort(ends)).max() < 1e-12
    assert abs(float(found.eigenvalue_real[0, 0]) + 0.8) < 1e-14 and found.is_stable.all()
    assert abs(float(found.time_constant[0, 0]) + 2 / np.log(0.8)) < 1e-12


def test_a_shorter_period_is_not_repeated():
    cell = filled(PLRNNCell(1, 2), A=[0.5, 0.5], b=[1, -1])
    assert cycles(cell).sizes["point"] == 1
    assert cycles(cell, 2, starts=20, rng=0).sizes["point"] == 0


def test_virtual_solutions_are_reported_apart_and_only_if_wanted():
    cell = tent(top=-1.0)  # below the diagonal: each piece meets it outside its region
    assert cycles(cell).sizes["point"] == 0
    found = cycles(cell, virtual=True)
    assert found.kind.values.tolist() == ["virtual", "virtual"] and not found.converged.any()
    assert abs(np.sort(found.state.values[:, 0]) - [-1 / 3, 1]).max() < 1e-15
    assert found.basin_count.values.tolist() == [0, 0]
    assert (found.speed > 0.1).all()  # no fixed points of the network


def test_a_point_on_the_border_of_two_regions_counts_once_as_closed():
    cell = filled(PLRNNCell(1, 1), A=0.5, W=-2.0, b=0.0)
    found = cycles(cell)
    assert found.bits.values.tolist() == [["0"]] and found.basin_count.values.tolist() == [2]
    assert found.eigenvalue_real.values.tolist() == [[0.5]]


def test_cycles_through_a_kink_are_found_once():
    # The peak of the golden tent map has period 3, and is in both regions to rounding. Without 00
    # in words, Lucas' numbers 1, 3, 4, ... count points of period k; left of them is a fixed point.
    n_cycles = {k: cycles(tent(GOLDEN), k).sizes["point"] for k in range(1, 13)}
    n_cycles[1] -= 1
    lucas = [1, 3, 4, 7, 11, 18, 29, 47, 76, 123, 199, 322]
    for k in n_cycles:
        assert sum(d * n_cycles[d] for d in n_cycles if k % d == 0) == lucas[k - 1]
    assert abs(cycles(tent(GOLDEN), 3).orbit.values.ravel() - [1 - GOLDEN, 0, 1]).max() < 1e-15


def test_a_line_of_fixed_points_is_named():
    # (h1, 0) with h1 < 0 rests, on the border of the second relu, which is closed there
    cell = filled(PLRNNCell(1, 2), A=[1, 0.5], W=[[1, 0], [0, 0]])
    with pytest.warns(kpops.ConvergenceWarning, match=r"continuum, in 1 of 4 .* relus 00; these"):
        found = cycles(cell)
    assert found.attrs["n_singular"] == 2 and found.attrs["continua"] == "00"
    assert found.state.values.tolist() == [[0.0, 0.0]]


def test_singular_equations_without_solutions_are_no_continuum():
    found = cycles(filled(PLRNNCell(1, 2), A=[1, 0.5], W=[[1, 0], [0, 0]], b=[1, 0]))
    assert found.attrs["n_singular"] == 2 and found.attrs["continua"] == ""
    assert found.sizes["point"] == 0  # h1' = 2 h1 + 1 rests at -1, where the relu is closed


def test_without_relus_there_is_the_fixed_point_of_the_linear_map():
    cell = drawn(PLRNNCell(1, 3, rectified=0), 0, 0.5)
    found = cycles(cell)
    M = (torch.diag(cell.A) + cell.W).detach().numpy()
    expected = np.linalg.solve(np.eye(3) - M, cell.b.detach().numpy())
    assert abs(found.state.values[0] - expected).max() < 1e-13
    assert cycles(cell, 4).sizes["point"] == 0


def test_float32_stays_and_is_solved_from_the_same_weights():
    cell = CELLS["al_rnn"](1).float()
    single, double = cycles(cell), cycles(cell, dtype=torch.float64)
    assert single.state.dtype == np.float32 and double.state.dtype == np.float64
    assert single.attrs["dtype"] == "float32" and single.sizes["point"] > 0
    assert abs(single.state - double.state).max() < 1e-6 * abs(double.state).max()


def test_a_linearization_stands_for_its_model():
    cell = CELLS["al_rnn"](1)
    lin = kpops.linearize(cell, torch.zeros(1, 3, 2, dtype=torch.float64))
    xr.testing.assert_identical(cycles(cell), cycles(lin))


def test_masked_weights_are_those_of_the_map():
    cell = drawn(PLRNNCell(1, 4), 5)
    diagonal = 1 - torch.eye(4, dtype=torch.float64)
    plain = drawn(PLRNNCell(1, 4), 5)
    with torch.no_grad():
        plain.W.mul_(diagonal)
    torch.nn.utils.parametrize.register_parametrization(
        cell, "W", kpops.models.Masked(diagonal.bool())
    )
    assert abs(cycles(cell).state - cycles(plain).state).max() < 1e-14


def test_equations_that_do_not_fit_are_refused():
    with pytest.raises(MemoryError, match=r"equations of a cycle needs .*: choose a shorter"):
        cycles(tent(), 3_000_000, starts=1, rng=0)


def test_the_same_seed_gives_the_same_result_and_the_model_stays():
    cell = CELLS["shallow"](2)
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    first, second = (cycles(cell, 3, starts=30, rng=4) for _ in range(2))
    xr.testing.assert_identical(first, second)
    assert all(torch.equal(before[name], value) for name, value in cell.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in cell.parameters())


@pytest.mark.parametrize("period", [1, 2, 3])  # there is no cycle of 3
def test_results_are_saved(tmp_path, period):
    found = cycles(lozi(), period)
    assert found.sizes["point"] == {1: 2, 2: 1, 3: 0}[period]
    assert_saved(found, tmp_path)


def test_the_plots_of_fixed_points_draw_them():
    pytest.importorskip("matplotlib").use("agg")
    ax = kpops.plot.fixed_points(cycles(lozi()), states=run(lozi(), [[0.1, 0.1, 0.1]], 100)[:, 2:])
    assert "1 unstable" in ax.get_legend_handles_labels()[1]
    pytest.importorskip("matplotlib.pyplot").close("all")


WRONG = [
    (lambda: cycles(torch.nn.RNNCell(1, 2)), TypeError, "model is a model .*PLRNNCell"),
    (
        lambda: cycles(type("Mine", (PLRNNCell,), {"forward": lambda *a: a[2]})(1, 2)),
        TypeError,
        "Mine changes the step of PLRNNCell",
    ),
    (lambda: cycles(tent(), 0), ValueError, "period=0: choose an int of 1 or more"),
    (lambda: cycles(tent(), starts=0), ValueError, "starts=0: choose an int of 1 or more"),
    (lambda: cycles(tent(), starts=np.zeros((1, 2, 3))), ValueError, "3 units, the model 1"),
    (lambda: cycles(tent(), starts=np.zeros((2, 1))), ValueError, r"expected \(trial, time, unit"),
    (lambda: cycles(tent(), max_iterations=0), ValueError, "max_iterations=0"),
    (lambda: cycles(tent(), input=[1.0, 2.0]), ValueError, r"input has shape \(2,\), expected"),
    (lambda: cycles(tent(), input=[np.nan]), ValueError, "input is not finite"),
    (lambda: cycles(tent(), rng="seed"), TypeError, "rng is the string"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong_uses_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
