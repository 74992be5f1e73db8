"""Eigenfunctions: which part of a mode stands where."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import kpops
from kpops.plot.style import heat_map

RNG = np.random.default_rng(5)
FIELD = RNG.standard_normal((7, 3, 5, 4))


def modes(field=FIELD, dims=("mode", "trial", "time", "unit"), name="eigenfunction"):
    """A result of eigsh, as far as it is drawn."""
    coords = {"mode": np.arange(1, 1 + len(field))}
    if "time" in dims:
        time = np.arange(1, 6)
        coords |= {"time": time, "epoch": ("time", np.where(time < 3, "stimulus", "memory"))}
    return xr.Dataset(
        {
            "eigenvalue": ("mode", 10.0 ** -np.arange(len(field))),
            name: (dims, field, {"long_name": name, "units": "1"}),
        },
        coords,
    )


def image(ax):
    return ax.images[0].get_array()


def test_the_first_six_modes_are_shown_at_their_strongest_units():
    axes = kpops.plot.eigenfunctions(modes())
    assert axes.shape == (6, 2)
    for field, (heat, courses) in zip(FIELD, axes, strict=False):
        unit = (field**2).sum((0, 1)).argmax()
        np.testing.assert_array_equal(image(heat), field[:, :, unit])
        assert heat.get_title().endswith(f"\nunit {unit}")
        lines = [line for line in courses.lines if len(line.get_xdata()) == 5]
        np.testing.assert_array_equal([line.get_ydata() for line in lines], field[:, :, unit])
        np.testing.assert_array_equal(lines[0].get_xdata(), np.arange(1, 6))
    assert axes[0, 0].get_title().startswith(r"mode 1: $\lambda$ = 1")
    assert (axes[0, 0].get_ylabel(), axes[3, 1].get_xlabel()) == ("trial", "time")


def test_modes_without_labels_count_from_one_and_keep_their_eigenvalues():
    unlabelled = kpops.plot.eigenfunctions(modes().drop_vars("mode"), [1, 7], unit=0)
    labelled = kpops.plot.eigenfunctions(modes(), [1, 7], unit=0)
    assert [a.get_title() for a in unlabelled[:, 0]] == [a.get_title() for a in labelled[:, 0]]


def test_all_panels_share_one_symmetric_scale():
    axes = kpops.plot.eigenfunctions(modes(), unit=0)
    largest = np.abs(FIELD[:6, :, :, 0]).max()
    for heat, courses in axes:
        assert heat.images[0].get_clim() == (-largest, largest)
        assert courses.get_ylim() == pytest.approx((-1.05 * largest, 1.05 * largest))


def test_a_unit_or_a_trial_can_be_chosen_and_either_can_be_the_vertical_axis():
    axes = kpops.plot.eigenfunctions(modes(), [2, 5], unit=3)
    np.testing.assert_array_equal(image(axes[1, 0]), FIELD[4, :, :, 3])
    axes = kpops.plot.eigenfunctions(modes(), 2, over="unit", trial=1)
    np.testing.assert_array_equal(image(axes[1, 0]), FIELD[1, 1].T)
    assert axes[0, 0].get_ylabel() == "unit"
    axes = kpops.plot.eigenfunctions(modes(), 1, trial=slice(1, 3), unit=0)
    np.testing.assert_array_equal(image(axes[0, 0]), FIELD[0, 1:3, :, 0])


def test_the_root_mean_square_over_units_starts_from_zero():
    axes = kpops.plot.eigenfunctions(modes(), 3, unit="rms")
    rms = np.sqrt((FIELD[:3] ** 2).mean(-1))
    np.testing.assert_allclose(image(axes[2, 0]), rms[2])
    assert axes[2, 0].images[0].get_clim() == pytest.approx((0, rms.max()))
    assert axes[2, 0].get_title().endswith("rms over unit")


def test_epochs_are_told_apart_by_lines():
    (_, courses) = kpops.plot.eigenfunctions(modes(), 1)[0]
    dotted = [line.get_xdata()[0] for line in courses.lines if line.get_linestyle() == ":"]
    assert dotted == [2.5]


def test_of_many_units_the_strongest_have_courses():
    field = RNG.standard_normal((1, 1, 5, 40))
    (_, courses) = kpops.plot.eigenfunctions(modes(field), over="unit")[0]
    drawn = {tuple(line.get_ydata()) for line in courses.lines if len(line.get_xdata()) == 5}
    strongest = np.argsort(-(field[0, 0] ** 2).sum(0))[:12]
    assert drawn == {tuple(field[0, 0, :, i]) for i in strongest}


@pytest.mark.parametrize("dims", [("mode", "time"), ("mode", "index")])
def test_modes_of_one_dim_are_lines(dims):
    axes = kpops.plot.eigenfunctions(modes(FIELD[:, 0, :, 0], dims), 4)
    assert axes.shape == (4, 1)
    for values, (ax,) in zip(FIELD[:, 0, :, 0], axes, strict=False):
        (line,) = (line for line in ax.lines if len(line.get_xdata()) == 5)
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert axes[-1, 0].get_xlabel() == dims[1]


def test_either_side_of_a_singular_triplet_is_drawn():
    lin = kpops.linearize(nn_gru(), np.ones((2, 6, 3), np.float32))
    triplets = kpops.svds(lin.P, k=2)
    axes = kpops.plot.eigenfunctions(triplets, variable="right", unit=1)
    np.testing.assert_array_equal(image(axes[1, 0]), triplets.right[1, :, :, 1])
    assert r"\sigma" in axes[0, 0].get_title()
    left = kpops.plot.eigenfunctions(triplets, unit=1)
    np.testing.assert_array_equal(image(left[0, 0]), triplets.left[0, :, :, 1])


def nn_gru():
    import torch

    torch.manual_seed(0)
    return torch.nn.GRU(3, 4, batch_first=True)


def test_a_mode_that_was_not_found_says_so():
    field = FIELD.copy()
    field[1] = np.nan
    axes = kpops.plot.eigenfunctions(modes(field), 2)
    assert [text.get_text() for text in axes[1, 1].texts] == ["not found"]
    assert not axes[0, 1].texts
    plt.gcf().canvas.draw()


def test_a_figure_of_the_caller_is_used():
    part = plt.figure(layout="constrained").subfigures(1, 2)[1]
    axes = kpops.plot.eigenfunctions(modes(), 2, figure=part)
    assert all(ax.figure is part for ax in axes.flat)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": [1, 9]}, r"modes=\[1, 9\]: choose among 1 to 7"),
        ({"modes": 0}, "modes=0: choose a positive number"),
        ({"variable": "left"}, "expected left"),
        ({"over": "layer"}, r"eigenfunction has no dimension 'layer': choose among \['trial'"),
        ({"over": "time"}, "over='time' is the horizontal axis"),
        ({"layer": 0}, "no dimension 'layer'"),
        ({"unit": "mean"}, "unit='mean': choose a position, a slice or 'rms'"),
        ({"unit": 4}, "unit=4 is out of range: choose 0 to 3"),
    ],
)
def test_wrong_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kpops.plot.eigenfunctions(modes(), **options)


def test_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match="eigenvalue has the dimension mode alone"):
        kpops.plot.eigenfunctions(modes().eigenvalue)
    with pytest.raises(ValueError, match=r"a ndarray: pass what kpops\.eigsh or kpops\.svds"):
        kpops.plot.eigenfunctions(FIELD)


def test_maps_of_names_can_share_axes():
    tasks = {"task": list("abcde"), "task_in": list("wxyz")}
    field = xr.DataArray(FIELD[0, 0], tasks, ("task", "task_in"))
    figure, axes = plt.subplots(1, 2, sharex=True, sharey=True)
    for ax in axes:
        heat_map(ax, field)
    figure.canvas.draw()
    assert [t.get_text() for t in axes[1].get_xticklabels()] == list("wxyz")
    assert [t.get_text() for t in axes[0].get_yticklabels()] == list("abcde")
