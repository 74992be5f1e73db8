"""Numbers with error bars: over training, beside one another, or as a matrix."""

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
_MARKER = 4
_DASHES = (("-", "."), ("--", "x"), (":", "+"), ("-.", "1"))


def over_training(values: Result, ax: Any = None, *, log: bool | None = None, **style: Any) -> Any:
    """Plot values against the training iteration, a line for each entry of the other dims.

    Parameters
    ----------
    values : DataArray or Dataset
        Dims ``step`` and at most two others: the first has the colours, the second the dashes. A
        Dataset has the variable ``estimate`` or ``effective_rank`` and, for a band of one standard
        error, ``stderr``: of :func:`kpops.over_training` with a measure such as
        :func:`kpops.effective_rank`.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    log : bool, optional
        Whether the values have a logarithmic axis; default: if they are effective ranks that span
        1.5 decades or more.
    **style
        Passed to ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `values` has other dims, or is complex.

    Notes
    -----
    More than seven entries of the first dim have the colours of a scale, with its bar.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import xarray as xr, kpops
    >>> loss = xr.DataArray([1.0, 0.5], dims="step", attrs={"long_name": "loss"})
    >>> kpops.plot.over_training(loss).get_ylabel()
    'loss'
    """
    estimate, stderr = _with_error(values, _OVER)
    estimate = look.with_dims(estimate, ("step",), others=2)
    ax = look.get_axes(ax)
    _lines(ax, estimate, None if stderr is None else stderr.transpose(*estimate.dims), style)
    name = _name(estimate)
    ax.set_ylabel(name)
    look.legend_outside(ax)
    if log is None:
        log = name.startswith("effective rank") and look.spans_decades(estimate.values)
    if log:
        look.log_values(ax)
    return look.plain(ax)


def effective_rank(
    result: Result | Mapping[str, Any], ax: Any = None, *, log: bool | None = None, **style: Any
) -> Any:
    """Plot effective ranks with their error bars: as points, or as lines over training.

    Parameters
    ----------
    result : Dataset, DataArray, or mapping of labels to them
        ``estimate`` and ``stderr`` of :func:`kpops.effective_rank`, or ``effective_rank`` of
        :func:`kpops.collapse`, without dims, with one dim (for example ``operator``), or with two.
        The first dim, or the labels of the mapping, stand on the horizontal axis, the second dim
        has the colours. With ``step``, of :func:`kpops.over_training`, they are lines with bands of
        one standard error: see :func:`kpops.plot.over_training`.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    log : bool, optional
        Whether the ranks have a logarithmic axis; default: if they span 1.5 decades or more.
    **style
        Passed to ``Axes.errorbar``, or to ``Axes.plot`` over training.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no ranks, or more dims.

    Notes
    -----
    A point whose standard error is not known (NaN) is hollow. An error of zero, that of an exact
    result, has no bar to be seen.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, kpops
    >>> ranks = {name: kpops.effective_rank(np.eye(n)) for name, n in {"K": 3, "P": 100}.items()}
    >>> ax = kpops.plot.effective_rank(ranks)
    >>> ax.get_ylabel(), ax.get_yscale()
    ('effective rank (participation)', 'log')
    """
    estimate, stderr = _with_error(result, _RANKS)
    if log is None:
        log = look.spans_decades(estimate.values)
    return _points_or_lines(ax, estimate, stderr, log, style)


def alignment(result: Result | Mapping[str, Any], ax: Any = None, **style: Any) -> Any:
    """Plot alignments of operators: as a matrix, as points, or as lines over training.

    Parameters
    ----------
    result : Dataset, DataArray, or mapping of labels to them
        ``estimate`` and ``stderr`` of :func:`kpops.alignment`, cosines from -1 to 1. Two dims of
        equal size, for example ``(task, task_in)`` or ``(step, step_in)``, are a matrix; else
        points or lines as in :func:`kpops.plot.effective_rank`.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    **style
        Passed to ``Axes.imshow``, ``Axes.errorbar`` or ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there is no ``estimate``, more than two dims, or values beyond -1 and 1.

    Notes
    -----
    A matrix of up to eight rows shows its values. Its colours run from 0 to 1, or from -1 to 1 if
    anything is negative, so that figures can be compared.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, xarray as xr, kpops
    >>> tasks = {"task": ["Pro", "Anti"], "task_in": ["Pro", "Anti"]}
    >>> cosines = xr.DataArray([[1.0, 0.2], [0.2, 1.0]], tasks, ("task", "task_in"))
    >>> [text.get_text() for text in kpops.plot.alignment(cosines).texts]
    ['1.00', '0.20', '0.20', '1.00']
    """
    estimate, stderr = _with_error(result, _ALIGNMENTS)
    worst = np.nanmax(np.abs(estimate.values), initial=0)
    if worst > 1 + 1e-5:
        raise ValueError(f"an alignment is {worst:g}: pass cosines, which lie between -1 and 1")
    if _is_matrix(estimate):
        return _matrix(look.get_axes(ax), estimate, style)
    ax = _points_or_lines(ax, estimate, stderr, False, style)
    ax.axhline(0, color=look.GREY, linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05 if (estimate < 0).any() else 0, 1.05)
    return ax


def _with_error(
    result: Result | Mapping[str, Any], source: str
) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Estimate and standard error, if there is one, of whatever form."""
    if isinstance(result, xr.DataArray):
        return look.real(result), None
    if isinstance(result, xr.Dataset) or not isinstance(result, Mapping):
        return look.variable(result, _VARIABLES, source, arrays=True), result.get("stderr")
    if not result:
        raise ValueError(f"the mapping is empty: pass labels and what {source} returns")
    pairs = [_with_error(_wrapped(entry), source) for entry in result.values()]
    labels = xr.DataArray(np.array([str(k) for k in result], object), dims="label", name="label")
    estimate = _joined([e for e, _ in pairs], labels)
    errors = [xr.full_like(e, np.nan) if s is None else s for e, s in pairs]
    known = any(s is not None for _, s in pairs)
    return estimate, _joined(errors, labels) if known else None


def _wrapped(entry: Any) -> Result:
    if isinstance(entry, xr.Dataset | xr.DataArray):
        return entry
    return xr.DataArray(np.asarray(entry, float))


def _joined(entries: list[xr.DataArray], labels: xr.DataArray) -> xr.DataArray:
    # The operator and the kind of each entry stay beside its label, where they differ.
    joined = xr.concat(
        [entry.rename("estimate") for entry in entries],
        dim=labels,
        combine_attrs="drop_conflicts",
        join="exact",
        coords="different",
        compat="equals",
    )
    joined["label"].attrs["long_name"] = ""  # the labels speak for themselves
    return joined


def _name(estimate: xr.DataArray) -> str:
    """What is estimated: its long name, with the kind of rank if that is one for all."""
    if "long_name" not in estimate.attrs and "kind" in estimate.coords:
        estimate = estimate.assign_attrs(long_name="effective rank")  # of kinds that differ
    kind = estimate.coords.get("kind")
    if kind is not None and not kind.ndim and str(kind.item()) not in wording.label_of(estimate):
        name = f"{estimate.attrs['long_name']} ({kind.item()})"
        estimate = estimate.assign_attrs(long_name=name)
    return wording.label_of(estimate)


def _points_or_lines(
    ax: Any,
    estimate: xr.DataArray,
    stderr: xr.DataArray | None,
    log: bool,
    style: dict[str, Any],
) -> Any:
    if "step" in estimate.dims:
        both = xr.Dataset({"estimate": estimate.rename("estimate")})
        if stderr is not None:
            both["stderr"] = stderr
        return over_training(both, ax, log=log, **style)
    estimate = look.with_dims(estimate, (), others=2)
    ax = look.get_axes(ax)
    _points(ax, estimate, stderr, style)
    if log:
        look.log_values(ax)
    return look.plain(ax)


def _points(
    ax: Any, estimate: xr.DataArray, stderr: xr.DataArray | None, style: dict[str, Any]
) -> None:
    from kpops.plot.ticks import name_ticks

    if estimate.ndim == 0:
        symbol = wording.operator_of(estimate)
        estimate = estimate.expand_dims(label=[symbol or ""])
        estimate["label"].attrs["long_name"] = ""
        stderr = None if stderr is None else stderr.expand_dims("label")
    horizontal, *series = map(str, estimate.dims)
    labels = _labels(estimate, series[0]) if series else [None]
    names = _labels(estimate, horizontal)
    colours = look.colours(ax, estimate, series[0]) if series else [look.free_colour(ax)]
    for j, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        at = {series[0]: j} if series else {}
        x = np.arange(len(names)) + 0.6 * ((j + 0.5) / len(labels) - 0.5)
        error = None if stderr is None else stderr.isel(at).values
        mine = {"color": colour, "label": label if len(labels) <= len(look.COLOURS) else None}
        _points_of(ax, x, estimate.isel(at).values, error, {**mine, **style})
    name_ticks(ax.xaxis, np.arange(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(wording.coordinate_label(estimate, horizontal))
    ax.set_ylabel(_name(estimate))
    look.legend_outside(ax)


def _points_of(
    ax: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray | None, style: dict[str, Any]
) -> None:
    style = {"fmt": "o", "markersize": 4, "capsize": 2, **style}
    label = style["label"]
    known = np.ones(len(x), bool) if error is None else np.isfinite(error)
    if known.any():
        ax.errorbar(x[known], y[known], None if error is None else error[known], **style)
        label = None
    if not known.all():
        hollow = {"color": style["color"], "markerfacecolor": "white", "label": label}
        ax.plot(x[~known], y[~known], "o", markersize=style["markersize"], **hollow)


def _lines(
    ax: Any, estimate: xr.DataArray, stderr: xr.DataArray | None, style: dict[str, Any]
) -> None:
    """A line for each entry of the dims (colour, dashes, step), of which the first may lack."""
    from kpops.plot.ticks import places

    style = look.long_names(style)
    steps = places(ax.xaxis, estimate, "step")
    if estimate.ndim == 1:
        mine = {"color": look.free_colour(ax), "label": wording.operator_of(estimate), **style}
        _line(ax, steps, estimate, stderr, mine)
        return
    coloured, *dashed = map(str, estimate.dims[:-1])
    dashes = _dashes(estimate, dashed[0]) if dashed else [_DASHES[0]]
    names = _labels(estimate, coloured)
    few = len(names) <= len(look.COLOURS)
    colours = look.colours(ax, estimate, coloured)
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        for j, (dash, marker) in enumerate(dashes):
            at = {coloured: i} | {d: j for d in dashed}
            label = name if few and j == 0 else None
            mine = {"color": colour, "linestyle": dash, "marker": marker, "label": label}
            mine |= {"markersize": _MARKER, **style}
            _line(ax, steps, estimate.isel(at), None if stderr is None else stderr.isel(at), mine)
    for name, both in zip(_labels(estimate, dashed[0]) if dashed else [], dashes, strict=False):
        looks = dict(zip(("linestyle", "marker"), both, strict=True))
        ax.plot([], [], color=look.GREY, label=look.once(ax, name), markersize=_MARKER, **looks)


def _line(ax: Any, x: Any, y: xr.DataArray, error: xr.DataArray | None, style: Any) -> None:
    (line,) = ax.plot(x, y.values, **style)
    if error is not None:
        look.band(ax, x, y.values, error.values, line.get_color())


def _dashes(estimate: xr.DataArray, dim: str) -> list[tuple[str, str]]:
    """Dashes and markers of the entries of a dim."""
    n = estimate.sizes[dim]
    if n > len(_DASHES):
        raise ValueError(
            f"{dim} has {n} entries, of which {len(_DASHES)} can be told apart by their dashes: "
            f"choose some, for example by .isel({dim}=slice({len(_DASHES)}))"
        )
    return list(_DASHES[:n])


def _labels(values: xr.DataArray, dim: str) -> list[str]:
    """Names of the entries of a dim; of one without labels, operators and kinds if it has any."""
    beside = [values[c] for c in (*wording.OPERATORS, "kind") if c in values.coords]
    beside = [c for c in beside if c.dims == (dim,)]
    if dim in values.coords or not beside:
        return wording.names(values[dim])
    return [", ".join(parts) for parts in zip(*map(wording.names, beside), strict=True)]


def _is_matrix(values: xr.DataArray) -> bool:
    """Whether both dims run over the same things."""
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
        ax.text(
            left + (j + 0.5) * (right - left) / columns,
            top + (i + 0.5) * (bottom - top) / rows,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="black" if light else "white",
            fontsize=look.small(ax),
        )
