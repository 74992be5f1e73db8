"""Matrices and lines of the alignment of tasks."""

import numpy as np
import pytest
import xarray as xr

from kpops.plot.interference import interference

TASKS = ["Pro", "Anti", "Delay"]
COSINES = np.array([[1, -0.5, 0.9], [-0.5, 1, 0.2], [0.9, 0.2, 1]])
PAIRS = ("task", "task_in")


def result(step=None, **variables):
    coords = {"task": TASKS, "task_in": TASKS}
    if step is not None:
        coords["step"] = step
    long_name = {"long_name": "cosine of tuning", "units": "1"}
    made = {
        name: (("step", *PAIRS) if np.ndim(v) == 3 else PAIRS, v, long_name)
        for name, v in variables.items()
    }
    return xr.Dataset(made, coords)


def written(ax):
    return [text.get_text() for text in ax.texts]


def test_each_alignment_is_a_matrix_with_its_values():
    axes = interference(result(state_tuning_cosine=abs(COSINES), gradient_tuning_cosine=COSINES))
    assert len(axes) == 2
    assert written(axes[1])[:3] == ["1.00", "-0.50", "0.90"]
    assert [ax.images[0].get_clim() for ax in axes] == [(-1, 1), (-1, 1)]  # to be compared
    (alone,) = interference(result(state_tuning_cosine=abs(COSINES)))
    assert alone.images[0].get_clim() == (0, 1)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), COSINES)
    assert axes[0].get_title() == "cosine of tuning"
    assert [t.get_text() for t in axes[0].get_yticklabels()] == TASKS


def test_stars_mark_what_permutations_do_not_reach():
    p = np.array([[1, 0.02, 0.9], [0.02, 1, 0.03], [0.9, 0.03, 1]])
    both = {"gradient_tuning_cosine_p_lower": p, "gradient_tuning_cosine_p_upper": 1 - 0.9 * p}
    (ax,) = interference(result(gradient_tuning_cosine=COSINES, **both))
    starred = [text.endswith("*") for text in written(ax)]
    assert starred == [False, True, False, True, False, False, False, False, False]


def test_over_training_each_two_tasks_are_a_line(legend):
    values = COSINES * np.array([1.0, 0.5, 0.1])[:, None, None]
    made = result([0, 10, 20], trace_alignment=values, gradient_tuning_cosine=values)
    axes = interference(made)
    assert axes[0].get_legend() is None
    assert legend(axes[1]) == ["Pro, Anti", "Pro, Delay", "Anti, Delay"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), values[:, 0, 1])
    np.testing.assert_array_equal(axes[1].lines[2].get_ydata(), values[:, 1, 2])
    np.testing.assert_array_equal(axes[0].lines[1].get_xdata(), [0, 10, 20])


def test_seeds_are_averaged_with_the_error_of_their_mean():
    seeds = np.stack([COSINES, 0.5 * COSINES, 0.75 * COSINES])
    values = np.stack([seeds, seeds])
    made = xr.Dataset(
        {"state_tuning_cosine": (("step", "seed", *PAIRS), values)},
        {"task": TASKS, "task_in": TASKS, "step": [0, 5]},
    )
    (ax,) = interference(made)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0.75 * COSINES[0, 1])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    error = 0.25 * 0.5 / np.sqrt(3)  # deviation of 1, 1/2, 3/4 is 1/4
    assert band.min() == pytest.approx(0.75 * -0.5 - error)
    assert band.max() == pytest.approx(0.75 * -0.5 + error)


def test_names_choose_and_tasks_that_do_not_correspond_have_their_own():
    made = result(gauss_newton_alignment=abs(COSINES), gradient_cosine=COSINES, other=COSINES)
    assert len(interference(made)) == 2
    (ax,) = interference(made, names=["other"])
    assert written(ax)[1] == "-0.50"


@pytest.mark.parametrize(
    ("given", "names", "told"),
    [
        (result(other=COSINES), None, "expected state_tuning_cosine or trace_alignment"),
        (result(other=COSINES), ["gradient_cosine"], "expected gradient_cosine"),
        (
            result(other=COSINES).isel(task=0),
            ["other"],
            "expected task, task_in, with or without step and seed: task is",
        ),
        (xr.DataArray(COSINES), None, "cannot plot a DataArray: pass what kpops.interference"),
        (result(trace_alignment=COSINES), [], r"names=\[\]: name at least one variable"),
        (result([0], trace_alignment=COSINES[None]).isel(task=[0], task_in=[0]), None, "is one"),
        (result(trace_alignment=1j * COSINES), None, "trace_alignment is complex"),
    ],
)
def test_wrong_use_is_refused(given, names, told):
    with pytest.raises(ValueError, match=told):
        interference(given, names=names)
