"""Similarity of tasks by a map of each trial, how reliable it is, and whether it shows families."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.kinds import described
from kpops.labels import Space, coordinates_of
from kpops.learning.pair_scores import average_precision, roc_auc
from kpops.learning.required import labelled
from kpops.learning.task_alignment import Groups, gram, groups_in, of_sums
from kpops.linalg.rounding import noise_floor
from kpops.scalars import check_count, generator

_SCORES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], str]] = {
    "auc": (roc_auc, "area under the ROC curve of pairs within families"),
    "average_precision": (average_precision, "average precision of pairs within families"),
}


def task_similarity(
    maps: xr.DataArray | Mapping[Any, xr.DataArray],
    by: Any = "task",
    *,
    families: Mapping[Any, Any] | None = None,
    kind: str = "cosine",
    n_splits: int = 100,
    n_permutations: int = 999,
    rng: int | np.random.Generator | None = None,
) -> xr.Dataset:
    """Compare tasks by a map of each trial, such as their Green's maps.

    Parameters
    ----------
    maps : DataArray, or mapping of task to DataArray
        A map for each trial: dimension ``trial`` and any others, such as ``energy`` or
        ``projection`` of :func:`kpops.greens_map`, or the states of a Linearization. A mapping has
        the trials of one task in each entry, all with the same other dimensions.
    by : str or array_like
        Coordinate of trials that names the task, or a label for each trial. A mapping has its own.
    families : mapping, optional
        Task to the label of its family. The similarity is then scored by how well it tells pairs of
        tasks within a family from all other pairs.
    kind : {"cosine", "correlation"}
        Of the tasks' mean maps, as vectors; a correlation is the cosine of vectors less their own
        mean.
    n_splits : int
        Random splits of each task's trials into halves, for the reliability. 0 leaves it out.
    n_permutations : int
        Random exchanges of families between tasks, for the p-values.
    rng : int, Generator or None
        Source of the splits and of the permutations, in this order.

    Returns
    -------
    Dataset
        ``similarity`` (task, task_in), tasks in the order in which they first appear.

        With splits, if each task has two trials or more: ``own_similarity`` (task), of the two
        halves of a task; and from three tasks on ``split_half`` (), the correlation over pairs of
        tasks of the similarities in the two halves, and ``reliability`` (), its Spearman-Brown
        correction ``2 r / (1 + r)``. All are means over splits; the correction is that of the mean.
        NaN if all pairs are equally similar.

        With families: ``auc``, ``average_precision``; with permutations also ``..._null_mean``,
        ``..._null_std`` and ``..._p``, the probability of a score as high.

    Raises
    ------
    TypeError
        If `maps` is no DataArray or mapping of them by strings or numbers, or `families` no
        mapping.
    ValueError
        If maps differ in their dimensions, are not finite, or are zero (for a correlation,
        constant) in the mean of a task; if there is only one task; if families lack a task, or make
        no pair within, or none between them; if an option is unknown or out of range.

    Notes
    -----
    With G_i the mean map of task i, ``S_ij = <G_i, G_j>_F / (|G_i|_F |G_j|_F)``, equation 4 of the
    Green's-operator paper (Hazelden 2026, arXiv 2609.40292), which also reports the areas, the
    precisions and the reliability. Maps without negative entries have large cosines with each
    other; correlations, or the signed projection, separate them better.

    The area is the probability that a pair within a family is more similar than another, with ties
    counted by half; the precision is that of scikit-learn, where tied pairs enter together. As
    ``p = (1 + k) / (1 + n_permutations)``, where k permutations score as high (Phipson and Smyth
    2010), it is valid under the null hypothesis that families say nothing about the maps. Few
    tasks have few distinct permutations, and p is no smaller than the share of those that change
    no pair.

    Spearman (1910) and Brown (1910): the reliability of all trials from that of half of them.

    Examples
    --------
    >>> import numpy as np, xarray as xr, kpops
    >>> rng = np.random.default_rng(0)
    >>> base = rng.standard_normal((2, 1, 50)) + 0.3 * rng.standard_normal((2, 3, 50))
    >>> noise = 0.1 * rng.standard_normal((6, 4, 50))
    >>> trials = base.reshape(6, 1, 50) + noise
    >>> maps = {name: xr.DataArray(m, dims=("trial", "lag")) for name, m in zip("abcdef", trials)}
    >>> result = kpops.task_similarity(maps, families=dict(zip("abcdef", "AAABBB")), rng=0)
    >>> float(result.auc), float(result.average_precision)
    (1.0, 1.0)
    >>> bool(result.reliability > 0.9)
    True
    """
    if kind not in ("cosine", "correlation"):
        raise ValueError(f"kind={kind!r}: choose 'cosine' or 'correlation'")
    check_count("n_splits", n_splits, 0)
    check_count("n_permutations", n_permutations, 0)
    vectors, groups, name = _read(maps, by)
    if kind == "correlation":
        vectors = vectors - vectors.mean(1, keepdim=True)
    source = generator(rng)
    inner = gram(vectors)
    similarity = of_sums(inner, groups)
    _refuse_zero(vectors, groups, kind)
    within = None if families is None else _codes(families, groups.names)
    text = f"{kind} of the maps of {name}"
    variables = {"similarity": labelled(("task", "task_in"), similarity.numpy(), text)}
    if n_splits and min(map(len, groups.members)) > 1:
        variables |= _reliability(inner, groups, n_splits, source, text)
    if within is not None:
        variables |= _scores(similarity.numpy(), within, n_permutations, source)
    coords = {dim: labelled(dim, groups.names, "task") for dim in ("task", "task_in")}
    attrs = {
        "kind": kind,
        "configuration": json.dumps(
            {"by": by if isinstance(by, str) else "given", "n_splits": int(n_splits)}
            | {"n_permutations": int(n_permutations), "families": families is not None}
        ),
    }
    return xr.Dataset(variables, coords, attrs)


def _read(maps: Any, by: Any) -> tuple[Tensor, Groups, str]:
    """Vectors (trial, entry) in float64, the tasks, and what the maps are called."""
    if isinstance(maps, Mapping) and not isinstance(maps, xr.Dataset) and maps:
        if not any(all(isinstance(task, kind) for task in maps) for kind in (str, Real)):
            raise TypeError(f"maps has the tasks {list(maps)}: name all by strings, or by numbers")
        arrays = {task: _trials(array, f"maps[{task!r}]") for task, array in maps.items()}
        first_task, first = next(iter(arrays.items()))
        for task, array in arrays.items():
            if set(array.dims) != set(first.dims) or array.shape[1:] != _like(array, first):
                raise ValueError(
                    f"maps[{task!r}] has dims {dict(array.sizes)}, maps[{first_task!r}] "
                    f"{dict(first.sizes)}: compare maps of the same dims and sizes besides trial, "
                    "for example of the epochs that the tasks share"
                )
        whole = np.concatenate([a.transpose(*first.dims).values for a in arrays.values()])
        by = np.repeat(np.array(list(arrays), dtype=object), [len(a) for a in arrays.values()])
        space = Space(("trial",), (len(whole),))
    else:
        first = _trials(maps, "maps")
        whole = first.values
        space = Space(("trial",), (len(whole),), coordinates_of(first, ("trial",)))
    if whole.dtype.kind not in "fiu":
        raise TypeError(f"maps has the dtype {whole.dtype}: pass real numbers")
    vectors = whole.reshape(len(whole), -1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if bad.size:
        raise ValueError(f"maps is not finite in trial {bad[0]}: drop that trial, or mend its map")
    name = str(first.attrs.get("long_name", first.name or "trials"))
    return torch.from_numpy(vectors), groups_in(space, by), name


def _trials(array: Any, argument: str) -> xr.DataArray:
    """The array with its trials first."""
    if not isinstance(array, xr.DataArray):
        choice = ", such as maps.energy" if isinstance(array, xr.Dataset) else ""
        raise TypeError(
            f"{argument} is {described(array)}: pass a DataArray with the dim trial{choice}, or a "
            "mapping of task to such arrays"
        )
    if "trial" not in array.dims or array.ndim < 2 or not array.size:
        raise ValueError(
            f"{argument} has dims {dict(array.sizes)}: pass a map for each trial, with the dim "
            "trial and at least one other"
        )
    return array.transpose("trial", ...)


def _like(array: xr.DataArray, first: xr.DataArray) -> tuple[int, ...]:
    """Sizes of the first array besides trials, in the order of another."""
    return tuple(first.sizes[d] for d in array.dims[1:])


def _refuse_zero(vectors: Tensor, groups: Groups, kind: str) -> None:
    floor = noise_floor(torch.float64) * float(vectors.norm(dim=1).max())
    for name, members in zip(groups.names, groups.members, strict=True):
        if float(vectors[torch.as_tensor(members)].mean(0).norm()) <= floor:
            what = "zero" if kind == "cosine" else "constant"
            raise ValueError(f"the mean map of task {name!r} is {what}: it has no {kind}")


def _codes(families: Any, names: np.ndarray) -> np.ndarray:
    """A number for the family of each task."""
    if not isinstance(families, Mapping):
        raise TypeError(f"families is {described(families)}: pass a mapping of task to family")
    missing = [name for name in names.tolist() if name not in families]
    if missing:
        raise ValueError(f"families lacks the tasks {missing}: give each task a family")
    labels = [families[name] for name in names.tolist()]
    distinct = list(dict.fromkeys(labels))
    if not 1 < len(distinct) < len(labels):
        what = "all tasks are of one family" if len(distinct) == 1 else "no two tasks share one"
        raise ValueError(f"families={dict(families)}: {what}, so there are no pairs to tell apart")
    return np.array([distinct.index(label) for label in labels])


def _reliability(
    inner: Tensor, groups: Groups, n_splits: int, rng: np.random.Generator, text: str
) -> dict[str, Any]:
    """Similarities of halves, from the inner products of trials."""
    n = len(groups)
    names = np.concatenate([groups.names, groups.names])
    pairs = np.triu_indices(n, 1)
    own, between = [], []
    for _ in range(n_splits):
        shuffled = [rng.permutation(members) for members in groups.members]
        halves = [[m[: len(m) // 2] for m in shuffled], [m[len(m) // 2 :] for m in shuffled]]
        both = of_sums(inner, Groups(names, (*halves[0], *halves[1]), False)).numpy()
        own.append(both[:n, n:].diagonal())
        between.append((both[:n, :n][pairs], both[n:, n:][pairs]))
    found = {"own_similarity": labelled("task", np.mean(own, 0), f"{text}, of two halves")}
    if n > 2:
        r = float(np.mean([_correlation(*halves) for halves in between]))
        corrected = 2 * r / (1 + r) if r > -1 else np.nan
        found["split_half"] = labelled((), r, "correlation of similarities in two halves")
        found["reliability"] = labelled((), corrected, "Spearman-Brown reliability")
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN where either does not vary beyond rounding."""
    a, b = a - a.mean(), b - b.mean()
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if min(lengths) <= noise_floor(torch.float64) * np.sqrt(len(a)):
        return float("nan")
    return float(np.clip(a @ b / (lengths[0] * lengths[1]), -1, 1))


def _scores(
    similarity: np.ndarray, codes: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    first, second = np.triu_indices(len(codes), 1)
    scores = similarity[first, second]

    def within(families: np.ndarray) -> np.ndarray:
        return families[first] == families[second]

    shuffled = [within(rng.permutation(codes)) for _ in range(n_permutations)]
    found = {}
    for name, (score, text) in _SCORES.items():
        observed = score(scores, within(codes))
        found[name] = labelled((), observed, text)
        if shuffled:
            null = np.array([score(scores, pairs) for pairs in shuffled])
            p = (1 + int((null >= observed - 1e-12).sum())) / (1 + n_permutations)
            found[f"{name}_null_mean"] = labelled((), null.mean(), f"{text}, mean of permutations")
            found[f"{name}_null_std"] = labelled((), null.std(), f"{text}, their deviation")
            found[f"{name}_p"] = labelled((), p, f"{text}, p-value")
    return found
