"""Trajectories of the weights over training: their principal components and correlated modes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, numpy_dtype, refuse_complex, to_numpy
from kpops.kinds import described
from kpops.labels import parameter_space
from kpops.learning.analysis import checked_steps, pairs_of
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.required import labelled
from kpops.learning.trajectories import trajectory_dimension
from kpops.precision import in_full_precision
from kpops.scalars import check_count
from kpops.scalars import generator as seeded
from kpops.spectral._result import mode_variables


def weight_trajectories(
    checkpoints: str | os.PathLike[str] | Iterable[tuple[int, Mapping[str, Any]]],
    parameters: Iterable[str] | Callable[[str], bool] | None = None,
) -> xr.DataArray:
    """The weights at every checkpoint, side by side.

    Parameters
    ----------
    checkpoints : path, or iterable of (step, state_dict)
        As for :func:`kpops.over_training`.
    parameters : iterable of str or callable, optional
        Names in the state dicts, or a predicate on names. Default: all floating-point entries,
        which include running statistics of normalisations.

    Returns
    -------
    DataArray
        Dims (step, parameter), in the order of the steps and of the state dicts, with the
        coordinate ``parameter_name``.

    Raises
    ------
    ValueError
        If a name is unknown, nothing is chosen, steps repeat, or state dicts differ in shapes.
    TypeError
        If `checkpoints` has the wrong type, or entries are of several dtypes.

    Examples
    --------
    >>> import copy, torch
    >>> from kpops.training import weight_trajectories
    >>> gru = torch.nn.GRU(3, 4)
    >>> saved = [(step, copy.deepcopy(gru.state_dict())) for step in (0, 10)]
    >>> weight_trajectories(saved, ["weight_hh_l0"]).sizes
    Frozen({'step': 2, 'parameter': 48})
    """
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    checked_steps(checkpoints)
    rows: dict[int, Tensor] = {}
    sizes: dict[str, int] = {}
    for step, state in pairs_of(checkpoints):
        if step in rows:
            raise ValueError(f"step {step} is there twice: number the checkpoints")
        chosen = _chosen(state, parameters)
        mine = {name: value.numel() for name, value in chosen.items()}
        if rows and mine != sizes:
            raise ValueError(
                f"the weights at step {step} have other names or sizes than those before: pass the "
                "checkpoints of one training"
            )
        sizes = mine
        dtypes = sorted({str(value.dtype) for value in chosen.values()})
        if len(dtypes) > 1:
            raise TypeError(f"the weights mix the dtypes {dtypes}: name some as parameters=")
        rows[step] = torch.cat([value.detach().flatten() for value in chosen.values()]).cpu()
    if not rows:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    steps = sorted(rows)
    values = torch.stack([rows[step] for step in steps])
    numpy_dtype(values.dtype)
    return parameter_space(sizes).label(
        to_numpy(values),
        block_dims=("step",),
        block_coords={"step": labelled("step", np.array(steps), "training iteration")},
        name="weights",
        long_name="weight",
    )


def _chosen(
    state: Any, parameters: Iterable[str] | Callable[[str], bool] | None
) -> dict[str, Tensor]:
    """Floating-point entries of a state dict, or those that are named."""
    if not isinstance(state, Mapping):
        raise TypeError(f"the checkpoint is {described(state)}, expected a state dict")
    refuse_complex(state.items(), "the checkpoint")
    entries = {n: v for n, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if callable(parameters):
        entries = {n: v for n, v in entries.items() if parameters(n)}
    elif parameters is not None:
        names = [parameters] if isinstance(parameters, str) else list(parameters)
        unknown = sorted(set(names) - set(entries))
        if unknown:
            raise ValueError(f"no weights {unknown}: choose from {list(entries)}")
        entries = {n: v for n, v in entries.items() if n in names}
    if not entries:
        raise ValueError("parameters chooses no weights: name some of the state dict")
    return entries


def _read(weights: Any) -> xr.DataArray:
    """Weights (step, parameter), from what the user has."""
    if not isinstance(weights, xr.DataArray):
        weights = weight_trajectories(weights)
    if set(weights.dims) != {"step", "parameter"}:
        raise ValueError(f"weights has dims {weights.dims}, expected (step, parameter)")
    weights = weights.transpose("step", "parameter")
    if weights.sizes["step"] < 2:
        raise ValueError("weights are those of one checkpoint: pass at least two")
    if not np.isfinite(weights.values).all():
        raise ValueError("weights are not finite: leave out the checkpoints after a divergence")
    return weights


def weight_pca(weights: Any, *, threshold: float = 0.95) -> xr.Dataset:
    """Principal components of the path of the weights over training.

    Parameters
    ----------
    weights : DataArray (step, parameter), or checkpoints
        As :func:`kpops.training.weight_trajectories` returns or takes them.
    threshold : float
        Fraction of the variance that ``n_components`` axes hold, between 0 and 1.

    Returns
    -------
    Dataset
        As of :func:`kpops.trajectory_dimension`, with the steps as samples: ``variance(mode)``,
        ``explained(mode)``, ``axis(mode, parameter)``, ``participation_ratio``, ``n_components``;
        and ``score(step, mode)``, the weights less their mean over steps along each axis.

    Raises
    ------
    ValueError
        If there is one checkpoint only, weights are not finite or do not change, or `threshold` is
        out of range.

    Notes
    -----
    A random walk in many dimensions has the same few leading components as a training would, with
    scores that are cosines of the step (Antognini and Sohl-Dickstein, NeurIPS 2018, PCA of high
    dimensional random walks with comparison to neural network training). Compare the fractions
    before taking few components for structure.

    Examples
    --------
    >>> import torch
    >>> from kpops.training import weight_pca
    >>> line = [(t, {"w": torch.tensor([1.0, 2.0]) * t}) for t in range(4)]
    >>> pca = weight_pca(line)
    >>> int(pca.n_components), pca.explained.values.round(6).tolist()
    (1, [1.0, 0.0])
    """
    weights = _read(weights)
    as_states = weights.drop_vars(list(weights.coords)).rename(step="time", parameter="unit")
    pca = trajectory_dimension(as_states.expand_dims("trial"), threshold=threshold)
    pca = pca.drop_vars([c for c in pca.coords if c != "mode"]).rename(unit="parameter")
    pca = pca.assign_coords(weights.drop_vars("step").coords)
    pca.participation_ratio.attrs["long_name"] = "participation ratio of the weights"
    score = (weights - weights.mean("step")) @ pca.axis
    return pca.assign(score=score.assign_attrs(long_name="score of the weights", units="1"))


@in_full_precision
def correlated_modes(
    weights: Any, n_modes: int, *, sample: int = 1000, rng: Any = None
) -> xr.Dataset:
    """Correlated modes of the weights over training: few courses, of which all are multiples.

    Parameters
    ----------
    weights : DataArray (step, parameter), or checkpoints
        As :func:`kpops.training.weight_trajectories` returns or takes them.
    n_modes : int
        Number of modes M.
    sample : int
        Number of weights, drawn at random, from which the modes are found; at least `n_modes`.
    rng : int, Generator or None
        Source of that draw, if there are more weights.

    Returns
    -------
    Dataset
        ``course(step, mode)``: the course m_c of each mode, of mean 0 and mean square 1;
        ``cluster(parameter)``: the mode of each weight, from 1, 0 if it never changes;
        ``slope(parameter)`` and ``offset(parameter)``: a_i and b_i of the fit
        ``w_i(t) = a_i m_c(t) + b_i``; ``correlation(parameter)`` of both sides;
        ``n_weights(mode)``; ``explained``: the fraction of the variance over steps, summed over
        weights, that the fit holds.

    Raises
    ------
    ValueError
        If `n_modes` or `sample` is out of range, weights are not finite, or too few change.

    Notes
    -----
    Correlation mode decomposition: Brokman, Betser, Turjeman, Berkov, Cohen and Gilboa (2022), The
    underlying correlated dynamics in neural training, arXiv 2212.09040. The courses of the sample
    are clustered by average linkage with the distance ``1 - |corr|``. The mode of a cluster is the
    member whose absolute correlations with the others are largest on average. Each weight then
    joins the mode with which it is most correlated, of either sign, and a_i, b_i are least squares:
    with the course normalised, ``a_i = <w_i m_c>`` and ``b_i = <w_i>``, means over steps, and the
    part of the variance that the fit leaves is ``1 - corr^2``.

    Modes are sorted by their number of weights. Courses are weighted equally however little they
    move, so ``explained`` may stay below that of as many principal components
    (:func:`kpops.training.weight_pca`), which any M courses cannot exceed.

    Examples
    --------
    >>> import torch
    >>> from kpops.training import correlated_modes
    >>> def weights(t):
    ...     return {"a": t * torch.ones(3), "b": torch.tensor([t**2, 3 - 2 * t**2])}
    >>> modes = correlated_modes([(t, weights(float(t))) for t in range(-2, 3)], 2)
    >>> modes.cluster.values.tolist(), round(float(modes.explained), 6)
    ([1, 1, 1, 2, 2], 1.0)
    """
    weights = _read(weights)
    values = as_tensor(weights.values, "weights").double().mT  # (parameter, step)
    mean = values.mean(1)
    size = values.abs().amax(1)
    centred = values - mean[:, None]
    spread = centred.square().mean(1).sqrt()
    moves = spread > 8 * torch.finfo(torch.float64).eps * size
    candidates = moves.nonzero()[:, 0]
    check_count("n_modes", n_modes, 1)
    check_count("sample", sample, n_modes)
    if len(candidates) < n_modes:
        raise ValueError(
            f"n_modes={n_modes}, but {len(candidates)} weights change: choose fewer modes"
        )
    if len(candidates) > sample:
        drawn = seeded(rng).choice(len(candidates), sample, replace=False)
        candidates = candidates[torch.from_numpy(np.sort(drawn))]
    normal = torch.where(moves[:, None], centred / spread.clamp_min(1e-300)[:, None], 0)
    course = normal[candidates[_centres(normal[candidates], n_modes)]]
    correlation = (normal @ course.mT / len(course[0])).clamp(-1, 1)
    cluster = correlation.abs().argmax(1)
    counts = torch.bincount(cluster[moves], minlength=n_modes)
    order = counts.argsort(descending=True, stable=True)
    rank = order.argsort()
    best = correlation.gather(1, cluster[:, None])[:, 0]
    slope = best * spread
    explained = slope.square().sum() / spread.square().sum()
    dtype = weights.dtype
    per_weight = {
        "slope": (slope, "slope on the course of the mode"),
        "offset": (mean, "mean over steps"),
        "correlation": (best, "correlation with the course of the mode"),
    }
    joined = to_numpy(torch.where(moves, rank[cluster] + 1, 0))
    courses = to_numpy(course[order].mT).astype(dtype)
    settings = {"n_modes": int(n_modes), "sample": int(sample)}
    return xr.Dataset(
        {
            **mode_variables({"n_weights": (to_numpy(counts[order]), "number of weights")}),
            "course": labelled(("step", "mode"), courses, "course of the mode, normalised"),
            "cluster": labelled("parameter", joined, "mode of the weight"),
            **{
                name: labelled("parameter", to_numpy(tensor).astype(dtype), text)
                for name, (tensor, text) in per_weight.items()
            },
            "explained": labelled((), dtype.type(explained), "fraction of the variance over steps"),
        },
        weights.coords,
        {"configuration": json.dumps(settings)},
    )


def _centres(normal: Tensor, n_modes: int) -> Tensor:
    """Positions of the most typical courses, one of each cluster, among (course, step)."""
    # Imported here, since they add filters to those of warnings.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    near = (normal @ normal.mT / normal.shape[1]).abs().clamp_max(1)
    if len(normal) == 1:
        return torch.zeros(1, dtype=torch.long)
    apart = to_numpy(1 - near)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average")
    labels = torch.from_numpy(fcluster(tree, n_modes, "maxclust"))
    found = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        found.append(members[near[members][:, members].sum(1).argmax()])
    if len(found) < n_modes:
        raise ValueError(
            f"n_modes={n_modes}, but the courses form {len(found)} clusters: choose fewer modes"
        )
    return torch.stack(found)
