"""The 15 tasks of Driscoll et al. against a slow account of each, step by step."""

import numpy as np
import pytest

from kpops.tasks import DRISCOLL_TASKS, driscoll, make

EVALUATION = {
    "Delay": {"context": 25, "stimulus1": 50, "response": 25},
    "Memory": {"context": 25, "stimulus1": 25, "memory1": 50, "response": 25},
    "React": {"context": 100, "response": 25},
    "Int": {
        "context": 25,
        "stimulus1": 25,
        "memory1": 50,
        "stimulus2": 25,
        "memory2": 25,
        "response": 25,
    },
    "Two": {"context": 25, "stimulus1": 25, "memory1": 60, "response": 25},
}
TRAINING = {
    "Delay": {"context": (15, 35), "stimulus1": (10, 75), "response": (15, 35)},
    "Memory": {
        "context": (15, 35),
        "stimulus1": (10, 80),
        "memory1": (10, 80),
        "response": (15, 35),
    },
    "React": {"context": (25, 125), "response": (15, 85)},
    "Int": {
        "context": (10, 30),
        "stimulus1": (10, 80),
        "memory1": (10, 80),
        "stimulus2": (10, 80),
        "memory2": (5, 15),
        "response": (15, 35),
    },
    "Two": {
        "context": (10, 30),
        "stimulus1": (10, 80),
        "memory1": (10, 80),
        "response": (15, 35),
    },
}
ONE_STIMULUS = ("DelayPro", "DelayAnti", "MemoryPro", "MemoryAnti", "ReactPro", "ReactAnti")
INTEGRATION = DRISCOLL_TASKS[6:11]
COMPARISON = DRISCOLL_TASKS[11:]


def family(name):
    if name in COMPARISON:
        return "Two"
    return next(f for f in ("Delay", "Memory", "React", "Int") if f in name)


def strengths(trial):
    """Strength of each stimulus in each modality, read off the clean inputs."""
    found = {}
    for number, epoch in [(1, "stimulus1"), (2, "stimulus2")]:
        shown = trial.inputs.values[trial.epoch.values == epoch][0]
        found[number] = [np.hypot(*shown[1:3]), np.hypot(*shown[3:5])]
    return found


def wanted_response(name, trial):
    """Direction of the response, or None, from the conditions of the trial."""
    first = float(trial.angle)
    if name in ONE_STIMULUS:
        return first + np.pi if name.endswith("Anti") else first
    second = float(trial.angle2)
    if name in INTEGRATION:
        counts = {"1": [0], "2": [1], "l": [0, 1]}[name[-1]]
        s = strengths(trial)
        return first if sum(s[1][m] for m in counts) > sum(s[2][m] for m in counts) else second
    if "Category" in name:
        same = (first < np.pi) == (second < np.pi)
        return second if same == name.endswith("Pro") else None
    same = np.isclose(first, second, rtol=0, atol=1e-9)
    return second if same == (name == "ReactMatch2Sample") else None


def expected(name, trial):
    """Inputs (without the rule) and targets of a trial, step by step."""
    response = wanted_response(name, trial)
    s = strengths(trial) if name in INTEGRATION else None
    inputs, targets = [], []
    for epoch in trial.epoch.values:
        x, y = np.zeros(5), np.zeros(3)
        if epoch != "padding":
            fixates = epoch != "response"
            x[0] = 1 if fixates or name.startswith("React") else 0
            shown = []
            if name in ONE_STIMULUS:
                on = {"Delay": ("stimulus1", "response"), "Memory": ("stimulus1",)}
                if epoch in on.get(family(name), ("response",)):
                    shown = [(float(trial.angle), int(trial.modality), 1)]
            elif name in INTEGRATION:
                for number, angle in [(1, "angle"), (2, "angle2")]:
                    if epoch == f"stimulus{number}":
                        pairs = zip((1, 2), s[number], strict=True)
                        shown = [(float(trial[angle]), m, strength) for m, strength in pairs]
            elif epoch == "stimulus1":
                shown = [(float(trial.angle), int(trial.modality), 1)]
            elif epoch == "response":
                shown = [(float(trial.angle2), int(trial.modality2), 1)]
            for angle, modality, strength in shown:
                place = 2 * modality - 1
                x[place : place + 2] += strength * np.array([np.cos(angle), np.sin(angle)])
            if fixates or response is None:
                y[0] = 1
            else:
                y[1:] = np.cos(response), np.sin(response)
        inputs.append(x)
        targets.append(y)
    return np.array(inputs), np.array(targets)


def wide(task):
    """The task with epochs (trial, time)."""
    return task.assign_coords(epoch=task.epoch.broadcast_like(task.mask))


@pytest.fixture(params=DRISCOLL_TASKS)
def name(request):
    return request.param


@pytest.mark.parametrize("angles", ["random", "even"])
def test_trials_are_those_of_a_slow_account(name, angles):
    task = wide(driscoll(16, tasks=name, angles=angles, noise=0, rng=0, dtype="float64"))
    for i in range(16):
        trial = task.isel(trial=i)
        inputs, targets = expected(name, trial)
        np.testing.assert_allclose(trial.inputs[:, :5], inputs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(trial.targets, targets, rtol=0, atol=1e-12)
        response = wanted_response(name, trial)
        if response is None:
            assert np.isnan(trial.response)
        else:
            np.testing.assert_allclose(trial.response, response % (2 * np.pi), atol=1e-12)


def test_rule_of_the_task_is_on_throughout(name):
    task = driscoll(3, tasks=name, noise=0, rng=0)
    assert task.input.values.tolist() == [
        *("fixation", "cos 1", "sin 1", "cos 2", "sin 2"),
        *(f"rule {other}" for other in DRISCOLL_TASKS),
    ]
    rule = task.inputs.sel(input=f"rule {name}")
    np.testing.assert_array_equal(rule, task.mask)
    assert float(task.inputs.isel(input=slice(5, None)).sum()) == float(task.mask.sum())


def test_evaluation_has_fixed_durations_and_even_directions(name):
    task = driscoll(8, tasks=name, angles="even", noise=0)
    wanted = [e for e, n in EVALUATION[family(name)].items() for _ in range(n)]
    assert task.epoch.dims == ("time",) and task.epoch.values.tolist() == wanted
    assert bool(task.mask.all())
    offset = 0.25 if "Category" in name else 0
    np.testing.assert_allclose(task.angle, 2 * np.pi * (np.arange(8) + offset) / 8, rtol=1e-14)
    # nothing but the noise is drawn
    again = driscoll(8, tasks=name, angles="even", noise=0, rng=7)
    np.testing.assert_array_equal(task.inputs, again.inputs)


def test_training_durations_fill_their_ranges(name):
    task = wide(driscoll(600, tasks=name, noise=0, rng=0))
    epochs = task.epoch.values
    total = np.zeros(600)
    for epoch, (low, high) in TRAINING[family(name)].items():
        lengths = (epochs == epoch).sum(axis=1)
        total += lengths
        assert low <= lengths.min() and lengths.max() <= high
        n_values = high - low + 1
        mean, spread = (low + high) / 2, np.sqrt((n_values**2 - 1) / 12)
        assert abs(lengths.mean() - mean) < 5 * spread / np.sqrt(600)
    np.testing.assert_array_equal(task.mask.sum("time"), total)
    assert task.sizes["time"] == total.max()


@pytest.mark.parametrize("name", ["MemoryPro", "ReactPro", "ReactMatch2Sample", "ReactCategoryPro"])
def test_directions_are_uniform_and_modalities_fair(name):
    task = driscoll(4000, tasks=name, noise=0, steps={"response": 15}, rng=0)
    for angle in [c for c in ("angle", "angle2") if c in task.coords]:
        for harmonic in (1, 2):
            assert abs(np.exp(1j * harmonic * task[angle].values).mean()) < 4 / np.sqrt(4000)
    for modality in [c for c in ("modality", "modality2") if c in task.coords]:
        assert set(task[modality].values) == {1, 2}
        assert abs(float((task[modality] == 1).mean()) - 0.5) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("name", INTEGRATION)
def test_strengths_are_those_of_the_authors(name):
    task = wide(driscoll(1500, tasks=name, noise=0, rng=0, dtype="float64"))
    apart = (task.angle2 - task.angle).values % (2 * np.pi)
    assert apart.min() >= np.pi / 2 and apart.max() <= 3 * np.pi / 2
    s = [strengths(task.isel(trial=i)) for i in range(1500)]
    one, two = (np.array([x[k] for x in s]) for k in (1, 2))
    shown = [0] if name.endswith("ity1") and "Context" not in name else [1]
    shown = shown if "Context" not in name and "Modality" in name else [0, 1]
    assert not np.delete(one, shown, axis=1).any() and not np.delete(two, shown, axis=1).any()
    for modality in (0, 1):
        half = (one - two)[:, modality] / 2
        np.testing.assert_allclose(task[f"coherence{modality + 1}"], half, atol=1e-12)
    if name == "IntegrationMultimodal":
        one, two = one.mean(axis=1, keepdims=True), two.mean(axis=1, keepdims=True)
        shown = [0]
    for modality in shown:
        mean, half = ((one + s * two)[:, modality] / 2 for s in (1, -1))
        assert mean.min() >= 0.8 and mean.max() <= 1.2
        assert abs(half).min() >= 0.005 and abs(half).max() <= 0.8
        assert abs(mean.mean() - 1) < 5 * 0.4 / np.sqrt(12 * 1500)
        assert abs(abs(half).mean() - 0.4025) < 5 * 0.795 / np.sqrt(12 * 1500)
        assert abs((half > 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(1500)


def test_modalities_differ_for_each_stimulus_on_its_own():
    task = wide(driscoll(2000, tasks="IntegrationMultimodal", noise=0, rng=0, dtype="float64"))
    shares = []
    for trial in (task.isel(trial=i) for i in range(2000)):
        s = strengths(trial)
        shares.append([2 * (s[k][0] - s[k][1]) / (s[k][0] + s[k][1]) for k in (1, 2)])
    shares = np.array(shares)
    assert abs(shares).min() >= 0.005 and abs(shares).max() <= 0.8
    assert (abs((shares > 0).mean(axis=0) - 0.5) < 5 * 0.5 / np.sqrt(2000)).all()
    assert abs(np.corrcoef(shares.T)[0, 1]) < 5 / np.sqrt(2000)


def test_context_and_modalities_are_independent():
    task = driscoll(4000, tasks="ContextIntModality1", noise=0, steps={"memory2": 5}, rng=0)
    agree = float((np.sign(task.coherence1) == np.sign(task.coherence2)).mean())
    assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("name", COMPARISON)
def test_half_of_the_comparisons_call_for_a_response(name):
    task = driscoll(4000, tasks=name, noise=0, steps={"response": 15}, rng=0)
    goes = float(np.isfinite(task.response).mean())
    assert abs(goes - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_what_does_not_match_is_at_least_20_degrees_away():
    task = driscoll(2000, tasks="ReactNonMatch2Sample", noise=0, rng=0)
    apart = abs(np.angle(np.exp(1j * (task.angle2 - task.angle).values)))
    differs = np.isfinite(task.response.values)
    np.testing.assert_allclose(apart[~differs], 0, atol=1e-9)
    assert apart[differs].min() >= np.pi / 9 - 1e-12


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("MemoryPro", ["modality"]),
        ("ContextIntModality2", ["coherence1", "coherence2"]),
        ("ReactMatch2Sample", ["modality", "modality2"]),
    ],
)
def test_conditions_of_the_evaluation_set_are_balanced(name, conditions):
    task = driscoll(16, tasks=name, angles="even", noise=0)
    seen = list(zip(*(np.sign(task[c].values - 1.5).tolist() for c in conditions), strict=True))
    if "Context" in name:
        seen = list(zip(*(np.sign(task[c].values).tolist() for c in conditions), strict=True))
    counts = {s: seen.count(s) for s in seen}
    assert len(counts) == 2 ** len(conditions) and set(counts.values()) == {16 // len(counts)}


def test_even_categories_are_never_on_their_border():
    for n in range(1, 41):
        task = driscoll(n, tasks="ReactCategoryPro", angles="even", noise=0, steps={"memory1": 1})
        for angle in (task.angle.values, task.angle2.values):
            assert abs(np.sin(angle)).min() > 1e-3
        goes = np.isfinite(task.response.values)
        np.testing.assert_array_equal(goes, np.arange(n) % 2 == 0)


def test_several_tasks_come_in_equal_numbers_with_a_common_set_of_channels():
    task = driscoll(45, rng=0)
    assert task.sizes["input"] == 20
    np.testing.assert_array_equal(task.task, np.repeat(np.array(DRISCOLL_TASKS, object), 3))
    few = driscoll(4, tasks=["MemoryPro", "DelayPro"], rules=["MemoryPro", "DelayPro"], rng=0)
    assert few.sizes["input"] == 7
    assert few.task.values.tolist() == ["MemoryPro"] * 2 + ["DelayPro"] * 2
    # a condition that a task does not have
    assert (
        np.isnan(task.coherence1.values[:3]).all() and np.isnan(task.modality.values[18:21]).all()
    )


def test_steps_replace_durations_by_the_name_of_the_epoch():
    task = wide(driscoll(300, tasks="MemoryPro", steps={"context": 4, "memory1": [2, 3]}, rng=0))
    epochs = task.epoch.values
    assert set((epochs == "context").sum(axis=1)) == {4}
    assert set((epochs == "memory1").sum(axis=1)) == {2, 3}
    assert (epochs == "stimulus1").sum(axis=1).max() > 70


def test_given_angles_are_kept():
    given = [0.5, 4.0]
    task = driscoll(4, tasks=["MemoryPro", "ReactCategoryAnti"], angles=given, noise=0, rng=0)
    np.testing.assert_array_equal(task.angle, given * 2)


@pytest.mark.parametrize(
    ("aliases", "name"),
    [
        (("fdgo", "go"), "DelayPro"),
        (("fdanti", "anti"), "DelayAnti"),
        (("delaygo", "dlygo"), "MemoryPro"),
        (("delayanti", "dlyanti"), "MemoryAnti"),
        (("reactgo", "rtgo"), "ReactPro"),
        (("reactanti", "rtanti"), "ReactAnti"),
        (("delaydm1", "dlydm1"), "IntegrationModality1"),
        (("delaydm2", "dlydm2"), "IntegrationModality2"),
        (("contextdelaydm1", "ctxdlydm1"), "ContextIntModality1"),
        (("contextdelaydm2", "ctxdlydm2"), "ContextIntModality2"),
        (("multidelaydm", "multidlydm"), "IntegrationMultimodal"),
        (("dmsgo", "dms"), "ReactMatch2Sample"),
        (("dmsnogo", "dnms"), "ReactNonMatch2Sample"),
        (("dmcgo", "dmc"), "ReactCategoryPro"),
        (("dmcnogo", "dnmc"), "ReactCategoryAnti"),
    ],
)
def test_names_of_yang_and_neurogym_are_understood(aliases, name):
    for alias in aliases:
        task = make(alias, 1, angles="even", noise=0)
        assert task.identical(driscoll(1, tasks=name, angles="even", noise=0))
        assert task.task.values.tolist() == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "MemoryNo"}, r"tasks=\['MemoryNo'\]: choose one or more of DelayPro"),
        ({"tasks": []}, "choose one or more"),
        ({"tasks": ["MemoryPro", "DelayPro"], "n_trials": 3}, "n_trials=3: pass a multiple of 2"),
        ({"steps": {"memory2": 3}}, "no epoch 'memory2'"),
        ({"steps": {"memory1": 0}}, r"steps\['memory1'\]=0"),
        ({"steps": {"memory1": (5, 3)}}, r"steps\['memory1'\]=\(5, 3\)"),
        ({"steps": {"memory1": (1, 2, 3)}}, r"steps\['memory1'\]=\(1, 2, 3\)"),
        ({"angles": [0.0]}, r"shape \(1,\), expected \(n_trials,\) = \(4,\)"),
        ({"rules": ["DelayPro"]}, "MemoryPro"),
    ],
)
def test_wrong_use_raises_and_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        driscoll(**{"n_trials": 4, "tasks": "MemoryPro", **arguments})
