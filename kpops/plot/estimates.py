"""Numbers with error bars: over training, beside one another, or as a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look

Result = xr.Dataset | xr.DataArray


def over_training(values: Result, ax: Any = None, **style: Any) -> Any:
    """Plot values against the training iteration, a line for each entry of the other dim.

    Parameters
    ----------
    values : DataArray or Dataset
        Dims ``step`` and at most one other, whose labels become the legend. A Dataset has the
        variable ``estimate`` and, for a band of one standard error, ``stderr``.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    **style
        Passed to ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `values` has other dims.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import xarray as xr, kpops
    >>> loss = xr.DataArray([1.0, 0.5], dims="step", attrs={"long_name": "loss"})
    >>> kpops.plot.over_training(loss).get_ylabel()
    'loss'
    """
    estimate, stderr = _with_error(values)
    if "step" not in estimate.dims or estimate.ndim > 2:
        look.refuse_dims(estimate, "step and at most one other")
    ax = look.get_axes(ax)
    others = [d for d in estimate.dims if d != "step"]
    steps = estimate["step"].values
    if others:
        labels = _labels(estimate, others[0])
        for i, label in enumerate(labels):
            at = {others[0]: i}
            error = None if stderr is None else stderr.isel(at).values
            mine = {"marker": ".", "label": label, **look.long_names(style)}
            _line(ax, steps, estimate.isel(at).values, error, mine)
        look.legend_outside(ax)
    else:
        _line(ax, steps, estimate.values, None if stderr is None else stderr.values, style)
    ax.set_xlabel(look.coordinate_label(estimate, "step"))
    ax.set_ylabel(look.label_of(estimate))
    return look.plain(ax)


def effective_rank(
    result: Result | Mapping[str, Any], ax: Any = None, *, log: bool | None = None, **style: Any
) -> Any:
    """Plot effective ranks with their error bars: as points, or as lines over training.

    Parameters
    ----------
    result : Dataset, DataArray, or mapping of labels to them
        ``estimate`` and ``stderr`` of :func:`kpops.effective_rank`, without dims, with one dim
        (for example ``operator`` or ``step``), or with two. The first dim, or the labels of the
        mapping, stand on the horizontal axis, the second dim has the colours; ``step`` always
        stands on the horizontal axis, as lines with a band of one standard error.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    log : bool, optional
        Whether the ranks have a logarithmic axis; default: if they span a decade or more.
    **style
        Passed to ``Axes.errorbar``, or to ``Axes.plot`` over training.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there is no ``estimate``, more than two dims, or nothing at all.

    Notes
    -----
    A point whose standard error is not known (NaN) is hollow. An error of zero, that of an exact
    result, has no bar to be seen.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, kpops
    >>> ranks = {name: kpops.effective_rank(np.eye(n)) for name, n in {"K": 3, "P": 50}.items()}
    >>> ax = kpops.plot.effective_rank(ranks)
    >>> ax.get_ylabel(), ax.get_yscale()
    ('effective rank (participation)', 'log')
    """
    estimate, stderr = _with_error(result)
    ax = look.get_axes(ax)
    ax = _points_or_lines(ax, estimate, stderr, style)
    if look.spans_decades(estimate.values) if log is None else log:
        look.log_values(ax)
    return ax


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
    estimate, stderr = _with_error(result)
    worst = np.nanmax(np.abs(estimate.values), initial=0)
    if worst > 1 + 1e-5:
        raise ValueError(f"an alignment is {worst:g}: pass cosines, which lie between -1 and 1")
    ax = look.get_axes(ax)
    if _is_matrix(estimate):
        return _matrix(ax, estimate, style)
    ax = _points_or_lines(ax, estimate, stderr, style)
    ax.axhline(0, color=look.GREY, linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05 if (estimate < 0).any() else 0, 1.05)
    return ax


def _with_error(result: Result | Mapping[str, Any]) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Estimate and standard error, if there is one, of whatever form."""
    if isinstance(result, xr.DataArray):
        return result, None
    if isinstance(result, xr.Dataset):
        return look.variable(result, ("estimate", "effective_rank")), result.get("stderr")
    if not isinstance(result, Mapping):
        raise ValueError(
            f"cannot plot a {type(result).__name__}: pass a Dataset, a DataArray, or a mapping of "
            "labels to them"
        )
    if not result:
        raise ValueError("the mapping is empty: pass at least one label with its Dataset")
    pairs = [_with_error(_wrapped(entry)) for entry in result.values()]
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
    joined = xr.concat(
        [entry.rename("estimate") for entry in entries],
        dim=labels,
        combine_attrs="drop_conflicts",
        join="exact",
        coords="minimal",
        compat="override",
    )
    labels_at = {"long_name": ""}  # the labels speak for themselves
    joined["label"].attrs.update(labels_at)
    return joined


def _points_or_lines(
    ax: Any, estimate: xr.DataArray, stderr: xr.DataArray | None, style: dict[str, Any]
) -> Any:
    if "step" in estimate.dims:
        both = xr.Dataset({"estimate": estimate.rename("estimate")})
        if stderr is not None:
            both["stderr"] = stderr
        return over_training(both, ax, **style)
    if estimate.ndim > 2:
        look.refuse_dims(estimate, "at most two")
    return _points(ax, estimate, stderr, style)


def _points(
    ax: Any, estimate: xr.DataArray, stderr: xr.DataArray | None, style: dict[str, Any]
) -> Any:
    if estimate.ndim == 0:
        estimate = estimate.expand_dims("label")
        stderr = None if stderr is None else stderr.expand_dims("label")
    horizontal, *series = map(str, estimate.dims)
    names = _labels(estimate, horizontal)
    labels = _labels(estimate, series[0]) if series else [None]
    for j, label in enumerate(labels):
        at = {series[0]: j} if series else {}
        x = np.arange(len(names)) + 0.6 * ((j + 0.5) / len(labels) - 0.5)
        error = None if stderr is None else stderr.isel(at).values
        _points_of(ax, x, estimate.isel(at).values, error, {"label": label, **style})
    written = horizontal in estimate.coords
    ax.set_xticks(range(len(names)), names if written else [""] * len(names))
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(look.coordinate_label(estimate, horizontal) if written else "")
    ax.set_ylabel(look.label_of(estimate))
    look.legend_outside(ax)
    return look.plain(ax)


def _points_of(
    ax: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray | None, style: dict[str, Any]
) -> None:
    style = {"color": look.free_colour(ax), "fmt": "o", "markersize": 4, "capsize": 2, **style}
    label = style["label"]
    known = np.ones(len(x), bool) if error is None else np.isfinite(error)
    if known.any():
        ax.errorbar(x[known], y[known], None if error is None else error[known], **style)
        label = None
    if not known.all():
        hollow = {"color": style["color"], "markerfacecolor": "white", "label": label}
        ax.plot(x[~known], y[~known], "o", markersize=style["markersize"], **hollow)


def _line(ax: Any, x: Any, y: Any, error: Any, style: dict[str, Any]) -> None:
    (line,) = ax.plot(x, y, **{"color": look.free_colour(ax), **look.long_names(style)})
    if error is not None:
        look.band(ax, x, y, error, line.get_color())


def _labels(values: xr.DataArray, dim: Any) -> list[str]:
    return [str(label) for label in values[dim].values]


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
    look.colour_bar(image, ax, look.label_of(values) or "alignment")
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
