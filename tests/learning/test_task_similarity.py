"""Similarity of tasks: definitions, reliability, and scores beside those of scikit-learn."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import kpops
from kpops.learning.pair_scores import average_precision, roc_auc
from kpops.learning.task_similarity import task_similarity

NAMES = list("abcdef")
FAMILIES = dict(zip(NAMES, [0, 0, 0, 1, 1, 1], strict=True))


def maps_of(centres, n_trials=4, noise=0.1, seed=0):
    """Trials of each task about its centre (task, entry)."""
    rng = np.random.default_rng(seed)
    trials = centres[:, None] + noise * rng.standard_normal(
        (len(centres), n_trials, *centres[0].shape)
    )
    task = np.repeat(np.array(NAMES[: len(centres)], dtype=object), n_trials)
    values = trials.reshape(-1, *centres[0].shape)
    dims = ("trial", "time", "time_in")[: values.ndim]
    return xr.DataArray(values, dims=dims, coords={"task": ("trial", task)}, name="maps")


def two_families(seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((2, 5, 6)), 3, 0)
    return centres + spread * rng.standard_normal(centres.shape)


@pytest.mark.parametrize("n_levels", [3, 12, 10**6], ids=["many ties", "ties", "no ties"])
def test_scores_are_those_of_scikit_learn(n_levels):
    metrics = pytest.importorskip("sklearn.metrics", exc_type=ImportError)
    rng = np.random.default_rng(n_levels)
    for _ in range(50):
        scores = rng.integers(n_levels, size=40) / n_levels - 0.3
        positive = rng.permutation(np.arange(40) < rng.integers(1, 40))
        assert roc_auc(scores, positive) == pytest.approx(
            metrics.roc_auc_score(positive, scores), abs=1e-14
        )
        assert average_precision(scores, positive) == pytest.approx(
            metrics.average_precision_score(positive, scores), abs=1e-14
        )


def test_scores_of_few_pairs_are_counted_by_hand():
    scores, positive = np.array([3.0, 2, 2, 1]), np.array([True, True, False, False])
    assert roc_auc(scores, positive) == 3.5 / 4
    assert average_precision(scores, positive) == (1 + 2 / 3) / 2


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_similarity_is_that_of_the_mean_maps(kind):
    maps = maps_of(two_families() + 1)
    result = task_similarity(maps, kind=kind, n_splits=0)
    means = np.stack([maps[maps.task == t].mean("trial").values.ravel() for t in NAMES])
    if kind == "correlation":
        exact = np.corrcoef(means)
    else:
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        exact = unit @ unit.T
    np.testing.assert_allclose(result.similarity, exact, atol=1e-13)
    assert result.task.values.tolist() == result.task_in.values.tolist() == NAMES
    assert set(result) == {"similarity"}


def test_a_mapping_is_the_same_as_labelled_trials():
    maps = maps_of(two_families())
    by_task = {t: maps[maps.task == t].drop_vars("task") for t in NAMES}
    by_task["b"] = by_task["b"].transpose("time_in", "trial", "time")
    labels = maps.task.values.tolist()
    results = [
        task_similarity(*args, families=FAMILIES, rng=0)
        for args in ((maps,), (by_task,), (maps.drop_vars("task"), labels))
    ]
    for other in results[1:]:
        xr.testing.assert_allclose(other, results[0], rtol=1e-13)


def test_families_are_found():
    result = task_similarity(maps_of(two_families()), families=FAMILIES, rng=0)
    assert float(result.auc) == float(result.average_precision) == 1
    # 2 of the 20 ways to choose a family leave all pairs as they are.
    assert float(result.auc_p) == pytest.approx(0.1, abs=0.03)
    assert float(result.auc_null_mean) == pytest.approx(0.5, abs=0.03)


def test_p_is_valid_and_near_uniform_without_families():
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(10)]
    families = {name: i % 3 for i, name in enumerate(names)}
    found = []
    for _ in range(200):
        maps = {
            name: xr.DataArray(rng.standard_normal((1, 8)), dims=("trial", "x")) for name in names
        }
        result = task_similarity(maps, families=families, n_permutations=99, rng=rng)
        found.append([float(result.auc_p), float(result.average_precision_p)])
    for p in np.transpose(found):
        assert stats.kstest(p, "uniform").pvalue > 0.01
        for level in (0.05, 0.2, 0.5):
            assert np.mean(p <= level) < level + 3 * np.sqrt(level * (1 - level) / len(p))


def test_identical_trials_are_perfectly_reliable():
    result = task_similarity(maps_of(two_families(), noise=0), n_splits=20, rng=0)
    assert float(result.split_half) == pytest.approx(1, abs=1e-12)
    assert float(result.reliability) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(result.own_similarity, 1, atol=1e-12)


def test_reliability_is_that_of_spearman_and_brown():
    result = task_similarity(maps_of(two_families(), noise=2.0), n_splits=50, rng=0)
    r = float(result.split_half)
    assert 0.1 < r < 0.95
    assert float(result.reliability) == pytest.approx(2 * r / (1 + r), rel=1e-14)


def test_reliability_is_that_of_splits_made_by_hand():
    maps = maps_of(two_families(), n_trials=2, noise=1.0)  # one split, but for the order
    result = task_similarity(maps, n_splits=1, rng=5)
    rng = np.random.default_rng(5)
    chosen = [rng.permutation(np.arange(2 * i, 2 * i + 2)) for i in range(6)]
    flat = maps.values.reshape(12, -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    first, second = (unit[[m[half] for m in chosen]] for half in (0, 1))
    pairs = np.triu_indices(6, 1)
    exact = np.corrcoef((first @ first.T)[pairs], (second @ second.T)[pairs])[0, 1]
    assert float(result.split_half) == pytest.approx(exact, abs=1e-12)
    np.testing.assert_allclose(result.own_similarity, (first * second).sum(1), atol=1e-12)


def test_what_cannot_be_computed_is_left_out():
    single = task_similarity(maps_of(two_families(), n_trials=1))
    assert set(single) == {"similarity"}
    pair = task_similarity(maps_of(two_families()[:2]))
    assert set(pair) == {"similarity", "own_similarity"}
    plain = task_similarity(maps_of(two_families()), families=FAMILIES, n_permutations=0)
    assert "auc" in plain
    assert "auc_p" not in plain


def test_results_are_fixed_by_their_seed():
    maps = maps_of(two_families(), noise=1.0)
    first, again, other = (
        task_similarity(maps, families=FAMILIES, n_splits=5, rng=seed) for seed in (0, 0, 1)
    )
    assert first.identical(again)
    assert float(other.split_half) != float(first.split_half)


def test_greens_maps_of_tasks_are_compared_by_their_labels():
    torch.manual_seed(0)
    task = kpops.tasks.four_task_mix(8, steps=(3, 3, 3, 3), rng=0)
    lin = kpops.linearize(torch.nn.GRU(7, 5, batch_first=True), task.inputs)
    result = task_similarity(kpops.greens_map(lin).projection, n_splits=3, rng=0)
    assert result.task.values.tolist() == ["memory_pro", "memory_anti", "delay_pro", "delay_anti"]
    text = "cosine of the maps of response projected on equal units"
    assert result.similarity.long_name == text
    (ax,) = kpops.plot.interference(result, names=["similarity"])
    np.testing.assert_array_equal(ax.images[0].get_array(), result.similarity)


def test_results_survive_files(tmp_path):
    result = task_similarity(maps_of(two_families()), families=FAMILIES, rng=0)
    result.to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "r.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again, result)
        assert again.attrs == result.attrs
    result.to_zarr(tmp_path / "r.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "r.zarr", consolidated=False) as again:
        xr.testing.assert_equal(again.load(), result)


MAPS = maps_of(two_families())


def spoiled(value):
    maps = MAPS.copy(deep=True)
    maps[8:12] = value
    return maps


@pytest.mark.parametrize(
    ("maps", "options", "told"),
    [
        (MAPS[:4], {}, "all trials are of 'a', a comparison needs two groups"),
        (MAPS, {"by": "family"}, "by='family' is no coordinate of trials"),
        (MAPS, {"by": ["a", "b"]}, r"by has shape \(2,\), expected \(24,\)"),
        (MAPS, {"kind": "euclidean"}, "kind='euclidean': choose 'cosine' or 'correlation'"),
        (MAPS, {"n_splits": -1}, "n_splits=-1"),
        (MAPS, {"families": {"a": 0}}, r"families lacks the tasks \['b', 'c', 'd', 'e', 'f'\]"),
        (MAPS, {"families": dict.fromkeys(NAMES, 0)}, "all tasks are of one family"),
        (MAPS, {"families": {n: n for n in NAMES}}, "no two tasks share one"),
        (spoiled(np.nan), {}, "maps is not finite in trial 8"),
        (spoiled(0.0), {}, "the mean map of task 'c' is zero: it has no cosine"),
        (spoiled(3.0), {"kind": "correlation"}, "task 'c' is constant: it has no correlation"),
        ({"a": MAPS, "b": MAPS[:, :3]}, {}, r"maps\['b'\] has dims .* compare maps of the same"),
        ({"a": MAPS, "b": MAPS[:, :, 0]}, {}, r"maps\['b'\] has dims .* compare maps of the same"),
        ({"a": MAPS}, {}, "a comparison needs two groups"),
        (MAPS[:, 0, 0], {}, "pass a map for each trial"),
        (MAPS.rename(trial="seed"), {}, "with the dim trial and at least one other"),
    ],
)
def test_wrong_use_is_refused(maps, options, told):
    with pytest.raises(ValueError, match=told):
        task_similarity(maps, **options)


@pytest.mark.parametrize(
    ("maps", "options", "told"),
    [
        (MAPS.values, {}, "maps is an array of shape .*: pass a DataArray with the dim trial"),
        (xr.Dataset({"energy": MAPS}), {}, "maps is a Dataset of energy: .* such as maps.energy"),
        ({"a": MAPS, "b": 3}, {}, r"maps\['b'\] is the number 3"),
        ({"a": MAPS, 1: MAPS}, {}, r"the tasks \['a', 1\]: name all by strings, or by numbers"),
        ({("a", 0): MAPS, ("a", 1): MAPS}, {}, "name all by strings, or by numbers"),
        (1j * MAPS, {}, "maps has the dtype complex128: pass real numbers"),
        (MAPS, {"families": [0, 0, 0, 1, 1, 1]}, "families is a list of 6: pass a mapping"),
    ],
)
def test_other_things_are_refused(maps, options, told):
    with pytest.raises(TypeError, match=told):
        task_similarity(maps, **options)
