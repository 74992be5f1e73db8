"""Numbers with error bars: points, lines and matrices."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.colors import to_rgb

import kpops
from kpops.plot.style import COLOURS

STEPS = {"step": [0, 10, 20]}
OPERATORS = {"operator": ["K", "P P*"]}


def estimates(dims, coords, values, errors, long_name="effective rank"):
    return xr.Dataset(
        {"estimate": (dims, values, {"long_name": long_name}), "stderr": (dims, errors)}, coords
    )


def rank(value, error):
    return estimates((), {}, value, error, "effective rank (participation)")


def test_one_line_for_each_entry_with_its_label(ax, legend):
    values = xr.DataArray(
        [[1.0, 2, 3], [4, 5, 6]],
        dims=("operator", "step"),
        coords={"operator": ["K", "P"], **STEPS},
        attrs={"long_name": "effective rank"},
    )
    assert kpops.plot.over_training(values, ax) is ax
    assert [line.get_label() for line in ax.lines] == ["K", "P"]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [4, 5, 6])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), STEPS["step"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training iteration", "effective rank")
    assert legend(ax) == ["K", "P"]


def test_a_line_without_errors_takes_the_style_of_the_caller(ax):
    loss = xr.DataArray([1.0, 0.5], dims="step", attrs={"long_name": "loss", "units": "nats"})
    kpops.plot.over_training(loss, ax, color="black", lw=0.8)
    assert (ax.lines[0].get_color(), ax.lines[0].get_linewidth()) == ("black", 0.8)
    assert ax.get_ylabel() == "loss (nats)"
    assert not ax.collections


def test_over_training_a_band_shows_one_standard_error(ax):
    data = estimates("step", STEPS, [5.0, 6, 7], [0.5, 1, 2])
    kpops.plot.effective_rank(data, ax)
    (shade,) = ax.collections
    points = shade.get_paths()[0].vertices
    for x, low, high in ((0, 4.5, 5.5), (10, 5, 7), (20, 5, 9)):
        at = points[points[:, 0] == x, 1]
        assert (at.min(), at.max()) == (low, high)
    np.testing.assert_allclose(to_rgb(shade.get_facecolor()[0][:3]), to_rgb(COLOURS[0]), atol=1e-6)


def test_error_bars_of_points_are_one_standard_error(ax, bars):
    results = {"K": rank(5.0, 0.5), "P P*": rank(100.0, 4.0), "P K P*": rank(3.0, 0.0)}
    assert kpops.plot.effective_rank(results, ax) is ax
    np.testing.assert_allclose(bars(ax), [[4.5, 5.5], [96, 104], [3, 3]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["K", "P P*", "P K P*"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("", "effective rank (participation)")
    assert ax.get_yscale() == "log"


def test_ranks_within_decades_have_a_linear_axis_unless_told_otherwise(ax):
    results = {"K": rank(5.0, 0.5), "P": rank(150.0, 1.0)}
    assert kpops.plot.effective_rank(results, ax).get_yscale() == "linear"
    assert kpops.plot.effective_rank(results, plt.subplots()[1], log=True).get_yscale() == "log"


def test_the_second_dim_has_the_colours_and_a_place_of_its_own(ax, legend):
    dims, coords = ("operator", "kind"), {**OPERATORS, "kind": ["variance", "entropy"]}
    kpops.plot.effective_rank(estimates(dims, coords, [[1.0, 2], [30, 40]], [[0.1] * 2] * 2), ax)
    first, second = ax.containers
    np.testing.assert_array_equal(first.lines[0].get_ydata(), [1, 30])
    np.testing.assert_array_equal(second.lines[0].get_ydata(), [2, 40])
    assert (first.lines[0].get_xdata() < second.lines[0].get_xdata()).all()
    assert [c.lines[0].get_color() for c in ax.containers] == list(COLOURS[:2])
    assert legend(ax) == ["variance", "entropy"]


def test_a_mapping_of_ranks_over_training_is_a_line_each(ax, legend):
    data = {
        name: estimates("step", STEPS, [i, 2 * i, 3 * i], [0.1] * 3)
        for i, name in ((1, "K"), (9, "P"))
    }
    kpops.plot.effective_rank(data, ax)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [9, 18, 27])
    assert len(ax.collections) == 2
    assert legend(ax) == ["K", "P"]


def test_a_point_whose_error_is_unknown_is_hollow(ax, bars):
    kpops.plot.effective_rank({"K": rank(5.0, 0.5), "P": rank(8.0, np.nan)}, ax)
    assert len(bars(ax)) == 1
    hollow = next(line for line in ax.lines if list(line.get_ydata()) == [8])
    assert hollow.get_markerfacecolor() == "white"


def test_a_number_without_an_error_stands_beside_a_labelled_result(ax, bars):
    labelled = rank(5.0, 0.5).assign_coords(operator="K", kind="participation")
    kpops.plot.effective_rank({"K": labelled, "theory": 8.0}, ax)
    np.testing.assert_allclose(bars(ax), [[4.5, 5.5]])
    assert [8] in [list(line.get_ydata()) for line in ax.lines]


def test_a_scalar_is_one_point(ax, bars):
    kpops.plot.effective_rank(rank(7.0, 0.0), ax)
    np.testing.assert_allclose(bars(ax), [[7, 7]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [""]


# Results of collapse, and what results say of themselves.


def collapsed(steps=(0, 100, 200), kinds=("variance over time", "participation")):
    """A result of over_training with collapse, as far as it is drawn."""
    ranks = np.array([[1.0, 90], [40, 5e4], [1, 80]])[:, : len(kinds)]
    ranks = ranks / (1 + np.arange(len(steps)))[:, None, None]
    dims = ("step", "operator", "kind")
    name = {"long_name": "effective rank", "units": "1"}
    coords = {"step": list(steps), "operator": ["K", "P P*", "P K P*"], "kind": list(kinds)}
    return xr.Dataset(
        {"effective_rank": (dims, ranks, name), "stderr": (dims, 0.1 * ranks)}, coords
    )


def test_a_collapse_over_training_has_a_colour_for_operators_and_dashes_for_kinds(ax, legend):
    data = collapsed()
    assert kpops.plot.effective_rank(data, ax) is ax
    lines = [line for line in ax.lines if len(line.get_xdata())]
    drawn = np.array([line.get_ydata() for line in lines]).reshape(3, 2, 3)
    np.testing.assert_array_equal(drawn, data.effective_rank.transpose("operator", "kind", "step"))
    assert [line.get_color() for line in lines] == list(np.repeat(COLOURS[:3], 2))
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 3
    assert legend(ax) == ["K", "P P*", "P K P*", "variance over time", "participation"]
    assert len(ax.collections) == 6
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "effective rank")


def test_the_collapse_of_one_checkpoint_and_of_one_kind(ax, legend):
    kpops.plot.effective_rank(collapsed().isel(step=0), ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["K", "P P*", "P K P*"]
    assert legend(ax) == ["variance over time", "participation"]
    of_one = kpops.plot.effective_rank(collapsed().sel(kind="participation"))
    assert of_one.get_ylabel() == "effective rank (participation)"
    assert legend(of_one) == ["K", "P P*", "P K P*"]
    alone = kpops.plot.effective_rank(collapsed(steps=[7]))
    np.testing.assert_array_equal(alone.lines[0].get_xdata(), [7])


def test_a_collapse_of_a_network_is_drawn(ax, legend):
    lin = kpops.linearize(torch.nn.RNN(2, 3, batch_first=True), torch.ones(2, 4, 2))
    kpops.plot.effective_rank(kpops.collapse(lin, num_modes=2, rng=0), ax)
    assert legend(ax) == ["variance over time", "participation"]


@pytest.mark.parametrize(("highest", "scale"), [(30.0, "linear"), (32.0, "log")])
def test_ranks_over_training_are_logarithmic_from_one_decade_and_a_half_on(ax, highest, scale):
    ranks = estimates("step", STEPS, [1.0, 0.0, highest], [0.0] * 3)
    assert kpops.plot.over_training(ranks, ax).get_yscale() == scale
    assert kpops.plot.effective_rank(ranks).get_yscale() == scale
    assert kpops.plot.over_training(ranks, plt.subplots()[1], log=False).get_yscale() == "linear"
    assert kpops.plot.alignment(ranks.estimate / 100).get_yscale() == "linear"


def test_what_is_no_rank_or_not_positive_stays_linear(ax):
    loss = xr.DataArray([1.0, 0.01, 100.0], STEPS, ("step",), attrs={"long_name": "loss"})
    assert kpops.plot.over_training(loss, ax).get_yscale() == "linear"
    assert kpops.plot.over_training(loss, plt.subplots()[1], log=True).get_yscale() == "log"
    assert kpops.plot.effective_rank(loss).get_yscale() == "log"
    assert kpops.plot.effective_rank(-loss).get_yscale() == "linear"


def test_a_result_without_a_label_is_named_by_its_operator(ax, legend):
    one = rank(7.0, 1.0).assign_coords(operator="P P*")
    kpops.plot.effective_rank(one, ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["P P*"]
    assert legend(kpops.plot.over_training(one.expand_dims(step=[0, 1]))) == ["P P*"]
    of_two = kpops.plot.alignment(rank(0.7, 0.1).assign_coords(operator="P P*", operator2="K"))
    assert [tick.get_text() for tick in of_two.get_xticklabels()] == ["P P*, K"]


def test_joined_results_are_named_by_what_differs(ax, legend):
    ranks = [
        rank(2.0 + i, 0.1).assign_coords(operator=operator, kind="participation")
        for i, operator in enumerate(["K", "P P*"])
    ]
    kpops.plot.effective_rank(xr.concat(ranks, "operator"), ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["K", "P P*"]
    unnamed = kpops.plot.effective_rank(
        xr.concat(ranks, "result", coords="different", compat="equals")
    )
    assert [text.get_text() for text in unnamed.get_xticklabels()] == ["K", "P P*"]
    given = kpops.plot.effective_rank({"before": ranks[0], "after": ranks[1]})
    assert [text.get_text() for text in given.get_xticklabels()] == ["before", "after"]


def test_kinds_that_differ_share_the_name_of_what_they_are(ax):
    kinds = {k: estimates((), {"kind": k}, 3.0, 0.1, f"effective rank ({k})") for k in "ab"}
    kpops.plot.effective_rank(kinds, ax)
    assert ax.get_ylabel() == "effective rank"


def test_many_entries_over_training_have_a_scale():
    values = xr.DataArray(np.ones((2, 9)), {"step": [0, 5], "seed": np.arange(9)}, ("step", "seed"))
    ax = kpops.plot.over_training(values)
    assert (ax.get_legend(), ax.figure.axes[1].get_ylabel()) == (None, "seed")
    assert len({line.get_color() for line in ax.lines}) == 9


def test_values_that_are_not_known_are_left_out(ax):
    nothing = estimates("step", STEPS, [np.nan] * 3, [np.nan] * 3)
    kpops.plot.effective_rank(nothing, ax)
    assert ax.get_yscale() == "linear"
    ax.figure.canvas.draw()


# Alignments.

TASKS = ["Pro", "Anti"]


def matrix(values, dims=("task", "task_in"), labels=TASKS):
    return xr.DataArray(values, dict.fromkeys(dims, labels), dims, attrs={"long_name": "alignment"})


def test_a_matrix_is_an_image_with_its_values_written_in_the_cells(ax):
    kpops.plot.alignment(matrix([[1.0, 0.25], [0.25, 1.0]]), ax)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), [[1, 0.25], [0.25, 1]])
    assert image.get_clim() == (0, 1)
    at = {text.get_position(): text.get_text() for text in ax.texts}
    assert at == {(0, 0): "1.00", (1, 0): "0.25", (0, 1): "0.25", (1, 1): "1.00"}
    assert [tick.get_text() for tick in ax.get_yticklabels()] == TASKS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("task", "task")
    assert ax.figure.axes[1].get_ylabel() == "alignment"


def test_colours_are_symmetric_where_an_alignment_is_negative(ax):
    kpops.plot.alignment(matrix([[1.0, -0.1], [-0.1, 1.0]]), ax)
    assert (ax.images[0].get_clim(), ax.images[0].get_cmap().name) == ((-1, 1), "RdBu_r")


def test_steps_against_steps_are_a_matrix_on_a_numbered_axis(ax):
    steps = np.arange(0, 500, 50)
    data = matrix(np.eye(10), ("step", "step_in"), steps)
    kpops.plot.alignment(data, ax)
    assert ax.images[0].get_extent() == [-25, 475, 475, -25]
    assert not ax.texts  # ten by ten numbers could not be read
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training iteration", "training iteration")


def test_entries_over_training_are_lines_even_if_there_are_as_many_as_steps(ax):
    data = xr.DataArray(np.full((2, 2), 0.5), {"step": [0, 9], **OPERATORS}, ("step", "operator"))
    kpops.plot.alignment(data, ax)
    assert not ax.images
    assert [line.get_label() for line in ax.lines[:2]] == ["K", "P P*"]


def test_alignments_of_pairs_are_points_between_zero_and_one(ax, bars):
    pairs = {"flow, P P*": rank(0.7, 0.1), "flow, K": rank(0.9, 0.0)}
    kpops.plot.alignment(pairs, ax)
    np.testing.assert_allclose(bars(ax), [[0.6, 0.8], [0.9, 0.9]])
    assert ax.get_ylim() == (0, 1.05)


@pytest.mark.parametrize(
    ("draw", "wrong", "message"),
    [
        (
            "over_training",
            xr.DataArray(np.zeros(3), dims="time"),
            "expected step and at most 2 others: step is missing",
        ),
        ("effective_rank", xr.Dataset({"loss": 1.0}), r"\['loss'\], expected estimate"),
        (
            "effective_rank",
            xr.DataArray(np.zeros((1, 1, 1))),
            r"at most 2 others: .*\.isel\(dim_2=0\)",
        ),
        ("effective_rank", {}, "the mapping is empty"),
        ("effective_rank", xr.DataArray([1j]), "values is complex: draw its parts, values.real"),
        ("effective_rank", xr.Dataset({"loss": 1.0}), "pass what kpops.effective_rank, kpops.coll"),
        (
            "over_training",
            xr.Dataset({"loss": 1.0}),
            r"returns, or one variable, as result\['loss'\]",
        ),
        ("alignment", xr.Dataset({"loss": 1.0}), "pass what kpops.alignment returns"),
        ("over_training", collapsed(kinds="abcde"[:2]).effective_rank.expand_dims("seed"), "seed"),
        ("effective_rank", [1.0], "cannot plot a list"),
        ("alignment", xr.DataArray([1.0, 3.0], dims="pair"), "an alignment is 3: pass cosines"),
    ],
)
def test_wrong_input_is_refused(ax, draw, wrong, message):
    with pytest.raises(ValueError, match=message):
        getattr(kpops.plot, draw)(wrong, ax)
