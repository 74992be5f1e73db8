"""Numbers with error bars: over training, side by side, or as a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording

Result = xr.Dataset | xr.DataArray

_VARIABLES = ("estimate", "effective_rank")
_RANKS = "kpops.effective_rank, kpops.collapse or kpops.over_training with one of them"
_ALIGNMENTS = "kpops.alignment"
_OVER = "kpops.over_training with kpops.effective_rank or kpops.collapse"
_DASHES = [
    {"linestyle": dashes, "marker": marker, "markersize": 4}
    for dashes, marker in (("-", "."), ("--", "x"), (":", "+"), ("-.", "1"))
]
_STDERR = "_stderr"
"""Coordinate of an estimate for its standard error, if that is known."""


def over_training(values: Result, ax: Any = None, *, log: bool | None = None, **style: Any) -> Any:
    """Plot values against the training iteration, a line for each entry of the other dimensions.

    Parameters
    ----------
    values : DataArray or Dataset
        Dimension ``step`` and at most two others: the first has the colours, the second the
        dashes. A Dataset has the variable ``estimate`` or ``effective_rank`` and, for a band of one
        standard error, ``stderr``, as from :func:`kpops.over_training` with a measure such as
        :func:`kpops.effective_rank`.
    ax : matplotlib Axes, default: in a new figure
    log : bool, optional
        Whether the axis of the values is logarithmic; default: for effective ranks that span 1.5
        decades or more.
    **style
        Passed to ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `values` has other dimensions, or is complex.

    Notes
    -----
    More than seven entries of the first dimension take the colours of a scale, with a colour bar.

    Examples
    --------
    >>> import xarray as xr, kpops
    >>> loss = xr.DataArray([1.0, 0.5], dims="step", attrs={"long_name": "loss"})
    >>> kpops.plot.over_training(loss).get_ylabel()
    'loss'
    """
    return _lines(_with_error(values, _OVER), ax, log, style)


def effective_rank(
    result: Result | Mapping[str, Any], ax: Any = None, *, log: bool | None = None, **style: Any
) -> Any:
    """Plot effective ranks with their error bars: as points, or as lines over training.

    Parameters
    ----------
    result : Dataset, DataArray, or mapping of labels to them
        ``estimate`` and ``stderr`` of :func:`kpops.effective_rank`, or ``effective_rank`` of
        :func:`kpops.collapse`, with at most two dimensions. The first, such as ``operator``, or the
        labels of the mapping, lie on the horizontal axis; the second has the colours. With
        ``step``, they are lines as in :func:`kpops.plot.over_training`.
    ax : matplotlib Axes, default: in a new figure
    log : bool, optional
        Whether the axis of the ranks is logarithmic; default: if they span 1.5 decades or more.
    **style
        Passed to ``Axes.errorbar``, or to ``Axes.plot`` over training.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no ranks, or more dimensions.

    Notes
    -----
    A point of unknown standard error (NaN) is hollow. An exact result has no visible bar.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> ranks = {name: kpops.effective_rank(np.eye(n)) for name, n in {"K": 3, "P": 100}.items()}
    >>> ax = kpops.plot.effective_rank(ranks)
    >>> ax.get_ylabel(), ax.get_yscale()
    ('effective rank (participation)', 'log')
    """
    estimate = _with_error(result, _RANKS)
    if log is None:
        log = look.spans_decades(estimate.values)
    return _points_or_lines(estimate, ax, log, style)


def alignment(result: Result | Mapping[str, Any], ax: Any = None, **style: Any) -> Any:
    """Plot alignments of operators: as a matrix, as points, or as lines over training.

    Parameters
    ----------
    result : Dataset, DataArray, or mapping of labels to them
        ``estimate`` and ``stderr`` of :func:`kpops.alignment`, cosines from -1 to 1. Two dimensions
        over the same entries, such as ``(task, task_in)`` or ``(step, step_in)``, make a matrix;
        otherwise points or lines as in :func:`kpops.plot.effective_rank`.
    ax : matplotlib Axes, default: in a new figure
    **style
        Passed to ``Axes.imshow``, ``Axes.errorbar`` or ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there is no ``estimate``, more than two dimensions, or a value beyond -1 and 1.

    Notes
    -----
    A matrix of up to eight rows shows its values. Its colours run from 0 to 1, or from -1 to 1 if
    anything is negative, so that figures can be compared.

    Examples
    --------
    >>> import xarray as xr, kpops
    >>> tasks = {"task": ["Pro", "Anti"], "task_in": ["Pro", "Anti"]}
    >>> cosines = xr.DataArray([[1.0, 0.2], [0.2, 1.0]], tasks, ("task", "task_in"))
    >>> [text.get_text() for text in kpops.plot.alignment(cosines).texts]
    ['1.00', '0.20', '0.20', '1.00']
    """
    estimate = _with_error(result, _ALIGNMENTS)
    worst = np.nanmax(np.abs(estimate.values), initial=0)
    if worst > 1 + 1e-5:
        raise ValueError(f"an alignment is {worst:g}: pass cosines, which lie between -1 and 1")
    if _is_matrix(estimate):
        return _matrix(look.get_axes(ax), estimate, style)
    ax = _points_or_lines(estimate, ax, False, style)
    look.zero_line(ax)
    ax.set_ylim(-1.05 if (estimate < 0).any() else 0, 1.05)
    return ax


def _with_error(result: Result | Mapping[str, Any], source: str) -> xr.DataArray:
    """The estimate, with its standard error as a coordinate if there is one."""
    if isinstance(result, xr.Dataset | xr.DataArray) or not isinstance(result, Mapping):
        estimate = look.variable(result, _VARIABLES, source, arrays=True)
        error = result.get("stderr") if isinstance(result, xr.Dataset) else None
        return estimate if error is None else estimate.assign_coords({_STDERR: error})
    if not result:
        raise ValueError(f"the mapping is empty: pass labels and what {source} returns")
    entries = []
    for entry in result.values():
        if not isinstance(entry, Result):
            entry = xr.DataArray(np.asarray(entry, float))
        entries.append(_with_error(entry, source).rename("estimate"))
    known = [_STDERR] if any(_STDERR in entry.coords for entry in entries) else []
    variables = []
    for entry in entries:
        if known and _STDERR not in entry.coords:
            entry = entry.assign_coords({_STDERR: xr.full_like(entry, np.nan)})
        variables.append(entry.reset_coords(known))
    labels = xr.DataArray(np.array([str(k) for k in result], object), dims="label", name="label")
    alike: dict[str, Any] = {"combine_attrs": "drop_conflicts", "join": "exact", "compat": "equals"}
    # Where the operators and kinds of the entries differ, they stay beside the labels.
    joined = xr.concat(variables, labels, data_vars="all", coords="different", **alike)
    joined["label"].attrs["long_name"] = ""  # the labels speak for themselves
    return joined.set_coords(known)["estimate"]


def _error(estimate: xr.DataArray) -> np.ndarray | None:
    """Standard errors in the shape of the estimate."""
    if _STDERR not in estimate.coords:
        return None
    return estimate[_STDERR].broadcast_like(estimate).transpose(*estimate.dims).values


def _name(estimate: xr.DataArray) -> str:
    """What is estimated: its long name, with the kind of rank if all have the same."""
    if "long_name" not in estimate.attrs and "kind" in estimate.coords:
        estimate = estimate.assign_attrs(long_name="effective rank")  # of kinds that differ
    kind = estimate.coords.get("kind")
    if kind is not None and not kind.ndim and str(kind.item()) not in wording.label_of(estimate):
        name = f"{estimate.attrs['long_name']} ({kind.item()})"
        estimate = estimate.assign_attrs(long_name=name)
    return wording.label_of(estimate)


def _points_or_lines(estimate: xr.DataArray, ax: Any, log: bool, style: dict[str, Any]) -> Any:
    if "step" in estimate.dims:
        return _lines(estimate.rename("estimate"), ax, log, style)
    estimate = look.with_dims(estimate, (), others=2)
    ax = look.get_axes(ax)
    _points(ax, estimate, style)
    if log:
        look.log_values(ax)
    return look.finished(ax)


def _points(ax: Any, estimate: xr.DataArray, style: dict[str, Any]) -> None:
    if estimate.ndim == 0:
        estimate = estimate.expand_dims(label=[wording.operator_of(estimate) or ""])
        estimate["label"].attrs["long_name"] = ""
    horizontal, *series = map(str, estimate.dims)
    names = _labels(estimate, horizontal)
    labels = _labels(estimate, series[0]) if series else [None]
    looks = look.entries(ax, estimate, str(estimate.dims[-1]), labels)
    for j, (colour, label) in enumerate(looks):
        x = np.arange(len(names)) + 0.6 * ((j + 0.5) / len(looks) - 0.5)
        each = estimate.isel({series[0]: j}) if series else estimate
        mine = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour, "label": label}
        _points_of(ax, x, each.values, _error(each), {**mine, **style})
    wording.name_ticks(ax.xaxis, np.arange(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(wording.coordinate_label(estimate, horizontal))
    ax.set_ylabel(_name(estimate))


def _points_of(
    ax: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray | None, style: dict[str, Any]
) -> None:
    label = style["label"]
    known = np.ones(len(x), bool) if error is None else np.isfinite(error)
    if known.any():
        ax.errorbar(x[known], y[known], None if error is None else error[known], **style)
        label = None
    if not known.all():
        hollow = {"color": style["color"], "markerfacecolor": "white", "label": label}
        ax.plot(x[~known], y[~known], "o", markersize=style["markersize"], **hollow)


def _lines(estimate: xr.DataArray, ax: Any, log: bool | None, style: dict[str, Any]) -> Any:
    """A line over ``step`` for each entry of at most two other dimensions."""
    estimate = look.with_dims(estimate, ("step",), others=2)
    ax = look.get_axes(ax)
    style = look.long_names(style)
    steps = wording.positions(ax.xaxis, estimate, "step")
    if estimate.ndim == 1:
        mine = {"color": look.free_colour(ax), "label": wording.operator_of(estimate), **style}
        look.curve(ax, steps, estimate.values, _error(estimate), **mine)
    else:
        _many_lines(ax, steps, estimate, style)
    name = _name(estimate)
    ax.set_ylabel(name)
    if log is None:
        log = name.startswith("effective rank") and look.spans_decades(estimate.values)
    if log:
        look.log_values(ax)
    return look.finished(ax)


def _many_lines(ax: Any, steps: np.ndarray, estimate: xr.DataArray, style: dict[str, Any]) -> None:
    """Lines (colour, dashes, step), where the dashes may be missing."""
    coloured, *dashed = map(str, estimate.dims[:-1])
    kinds = _labels(estimate, dashed[0]) if dashed else [""]
    if len(kinds) > len(_DASHES):
        raise ValueError(
            f"{dashed[0]} has {len(kinds)} entries, but only {len(_DASHES)} kinds of dashes can be "
            f"told apart: choose some, for example by .isel({dashed[0]}=slice({len(_DASHES)}))"
        )
    looks = look.entries(ax, estimate, coloured, _labels(estimate, coloured))
    for i, (colour, label) in enumerate(looks):
        for j in range(len(kinds)):
            each = estimate.isel({coloured: i} | {dim: j for dim in dashed})
            mine = {"color": colour, "label": None if j else label, **_DASHES[j], **style}
            look.curve(ax, steps, each.values, _error(each), **mine)
    for j, kind in enumerate(kinds if dashed else []):
        look.legend_entry(ax, kind, color=look.GREY, **_DASHES[j])


def _labels(values: xr.DataArray, dim: str) -> list[str]:
    """Names of the entries of a dimension; without a coordinate, their operators and kinds."""
    beside = [values[c] for c in (*wording.OPERATORS, "kind") if c in values.coords]
    beside = [c for c in beside if c.dims == (dim,)]
    if dim in values.coords or not beside:
        return wording.names(values[dim])
    return [", ".join(parts) for parts in zip(*map(wording.names, beside), strict=True)]


def _is_matrix(values: xr.DataArray) -> bool:
    """Whether two dimensions have the same entries."""
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        return False
    a, b = map(str, values.dims)
    return a.startswith(b) or b.startswith(a) or np.array_equal(values[a], values[b])


def _matrix(ax: Any, values: xr.DataArray, style: dict[str, Any]) -> Any:
    signed = bool((values < 0).any())
    colours = {"cmap": look.SIGNED if signed else look.UNSIGNED, "vmin": -signed, "vmax": 1}
    image = look.heat_map(ax, values, **{"aspect": "equal", **colours, **style})
    if "".join(map(str, values.dims)).endswith("_in"):  # a list against itself: neither is input
        ax.set_xlabel(ax.get_ylabel())
    if len(values) <= 8:
        _write_values(ax, image, values)
    look.colour_bar(image, ax, wording.label_of(values) or "alignment")
    return ax


def _write_values(ax: Any, image: Any, values: xr.DataArray) -> None:
    left, right, bottom, top = image.get_extent()
    rows, columns = values.shape
    for i, j in np.ndindex(rows, columns):
        value = float(values[i, j])
        light = sum(image.cmap(image.norm(value))[:3]) > 1.5
        x = left + (j + 0.5) * (right - left) / columns
        y = top + (i + 0.5) * (bottom - top) / rows
        place = {"ha": "center", "va": "center", "fontsize": look.small(ax)}
        ax.text(x, y, f"{value:.2f}", color="black" if light else "white", **place)
