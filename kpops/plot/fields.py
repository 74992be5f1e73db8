"""Eigenfunctions and singular functions as fields over trials, time and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording

_VARIABLES = ("eigenfunction", "left", "right")
_MAX_COURSES = 12


def eigenfunctions(
    result: xr.Dataset | xr.DataArray,
    modes: int | Sequence[int] = 6,
    *,
    variable: str | None = None,
    over: str | None = None,
    figure: Any = None,
    **positions: Any,
) -> np.ndarray:
    """Plot the leading modes: for each a heat map against time, with its time courses below.

    Parameters
    ----------
    result : Dataset or DataArray
        What :func:`kpops.eigsh` or :func:`kpops.svds` returns, or one field
        ``(mode, trial, time, unit)``, in which any dim but ``mode`` may be missing or another.
    modes : int or sequence of int
        How many of the leading modes, or which, by their label from 1.
    variable : {"eigenfunction", "left", "right"}, optional
        Default: the first of these that the Dataset has.
    over : str, optional
        Dim of the heat map's vertical axis; default: ``"trial"``, else the first there is beside
        time.
    figure : matplotlib Figure or SubFigure, optional
        Where to draw; default: a new Figure.
    **positions
        Dim to what is shown of it: a position or a slice (as in ``xarray.Dataset.isel``), or
        ``"rms"``, the root mean square over the dim. A dim that has no place on the axes and
        is not named is shown where the mode is strongest, with that label in the title.

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (mode, 2), heat map and time courses; (mode, 1) if there is but one dim beside
        ``mode``, which is drawn as a line.

    Raises
    ------
    ValueError
        If there is no such variable, dim or mode.

    Notes
    -----
    Modes have unit norm, so all panels share one scale: symmetric about zero and diverging, or
    from zero on where nothing but root mean squares is shown. The courses are those of at most
    twelve entries of `over`, the strongest. Where time has the coordinate ``epoch``, its
    changes are lines. A mode that the solver did not find (NaN) says so.

    Steps that the coordinate ``mask(trial, time)`` leaves out are grey, their courses end, and no
    root mean square counts them. Times that are not evenly spaced are counted and named.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> modes = kpops.eigsh(lin.flow, k=3)
    >>> kpops.plot.eigenfunctions(modes).shape
    (3, 2)
    >>> axes = kpops.plot.eigenfunctions(modes, 2, over="unit", trial=0)
    >>> axes[0, 0].get_ylabel()
    'unit'
    """
    field = _field(result, variable)
    field = _chosen(field, modes)
    _check_dims(field, over, positions)
    field = field.isel({d: _kept(p) for d, p in positions.items() if _is_position(p)})
    across = _across(field)
    rest = [str(d) for d in field.dims if d not in ("mode", across)]
    if not rest:
        return _draw_lines(field, figure, result)
    vertical = over or ("trial" if "trial" in rest else rest[0])
    hidden = [d for d in rest if d != vertical]
    fields = field.transpose("mode", ...)
    panels = [_reduced(entry, vertical, across, hidden, positions) for entry in fields]
    signed = not any(positions.get(d) == "rms" for d in hidden)
    return _draw_panels([p for p, _ in panels], [n for _, n in panels], signed, figure, result)


def _field(result: Any, name: str | None) -> xr.DataArray:
    if isinstance(result, xr.DataArray):
        field = look.real(result)
    else:
        names = (name,) if name else _VARIABLES
        field = look.variable(result, names, "kpops.eigsh or kpops.svds", arrays=True)
    field = look.with_dims(field, ("mode",), others=field.ndim)
    if field.ndim < 2:
        raise ValueError(f"{field.name or 'the field'} has no dim beside mode: there is no field")
    if "mode" not in field.coords:
        field = field.assign_coords(mode=np.arange(1, field.sizes["mode"] + 1))
    return field


def _chosen(field: xr.DataArray, modes: int | Sequence[int]) -> xr.DataArray:
    if isinstance(modes, int | np.integer):
        if modes < 1:
            raise ValueError(f"modes={modes}: choose a positive number, or labels of modes")
        return field.isel(mode=slice(int(modes)))
    there = field["mode"].values
    if not len(modes) or not set(modes) <= set(there.tolist()):
        raise ValueError(f"modes={modes!r}: choose among {there.min()} to {there.max()}")
    return field.sel(mode=list(modes))


def _check_dims(field: xr.DataArray, over: str | None, positions: dict[str, Any]) -> None:
    dims = [str(d) for d in field.dims if d != "mode"]
    for dim in (*positions, *([over] if over else [])):
        if dim not in dims:
            raise ValueError(f"no dim {dim!r} in {field.name or 'the field'}: choose among {dims}")
    if over is not None and over == _across(field):
        raise ValueError(f"over={over!r} is the horizontal axis: choose another dim of {dims}")
    for dim, position in positions.items():
        if isinstance(position, str) and position != "rms":
            raise ValueError(f"{dim}={position!r}: choose a position, a slice or 'rms'")
        size = field.sizes[dim]
        if isinstance(position, int | np.integer) and not -size <= position < size:
            raise ValueError(f"{dim}={position} is out of range: choose 0 to {size - 1}")


def _is_position(position: Any) -> bool:
    return not isinstance(position, str)


def _kept(position: Any) -> Any:
    """A single position as a list, so that its dim and label stay for the title."""
    return [int(position)] if isinstance(position, int | np.integer) else position


def _across(field: xr.DataArray) -> str:
    """Dim of the horizontal axis: time, else the last."""
    dims = [str(d) for d in field.dims if d != "mode"]
    return next((d for d in dims if d.startswith("time")), dims[-1])


def _reduced(
    entry: xr.DataArray, vertical: str, across: str, hidden: list[str], positions: dict[str, Any]
) -> tuple[xr.DataArray, str]:
    """One mode on (vertical, across), NaN where masked, and what stands for the hidden dims."""
    notes = []
    averaged = [d for d in hidden if positions.get(d) == "rms"]
    shown = [d for d in hidden if d not in averaged]
    valid = entry.coords.get("mask", xr.DataArray(True)).astype(bool)
    if shown:
        energy = (entry.where(valid).fillna(0) ** 2).sum([d for d in entry.dims if d not in shown])
        strongest = energy.argmax(shown)
        for dim in shown:
            at = int(strongest[dim])
            notes.append(f"{dim} {wording.names(entry[dim])[at]}")
            entry = entry.isel({dim: at})
            valid = valid.isel({dim: at}, missing_dims="ignore")
    if averaged:
        n_valid = xr.ones_like(entry).where(valid, 0).sum(averaged)
        squares = (entry.where(valid, 0) ** 2).sum(averaged, skipna=False)
        entry, valid = (squares / n_valid.clip(1)) ** 0.5, n_valid > 0
        notes.append(f"rms over {', '.join(averaged)}")
    return entry.where(valid).transpose(vertical, across), ", ".join(notes)


def _draw_panels(
    panels: list[xr.DataArray], notes: list[str], signed: bool, figure: Any, result: Any
) -> np.ndarray:
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 2 * look.COLUMN * (columns + 0.4) / 3.4
    layout = {"sharex": True, "height_ratios": [3, 2] * rows}
    grid = look.new_axes(figure, width, 1.9 * rows + 0.2, 2 * rows, columns, **layout)
    largest = max((float(np.nanmax(np.abs(p.values), initial=0)) for p in panels), default=0) or 1
    colours = {"cmap": look.SIGNED if signed else look.UNSIGNED, "vmax": largest}
    colours["vmin"] = -largest if signed else 0
    axes = np.empty((len(panels), 2), object)
    for i, (panel, note) in enumerate(zip(panels, notes, strict=True)):
        row, column = divmod(i, columns)
        upper, lower = grid[2 * row : 2 * row + 2, column]
        axes[i] = upper, lower
        image = look.heat_map(upper, panel, **colours)
        upper.set_facecolor(look.PADDING)
        _draw_courses(lower, panel, largest, signed)
        upper.set_title(_title(panel, note, result), fontsize=upper.xaxis.label.get_size())
        _tidy(upper, lower, first=column == 0, last=i + columns >= len(panels))
    for spare in grid[-2:, (len(panels) - 1) % columns + 1 :].ravel():
        spare.remove()
    name = wording.label_of(result if isinstance(result, xr.DataArray) else panels[0])
    look.colour_bar(image, axes, name)
    return axes


def _title(panel: xr.DataArray, note: str, result: Any) -> str:
    mode = panel["mode"].item()
    text = f"mode {mode}"
    if isinstance(result, xr.Dataset):
        for name, symbol in (("eigenvalue", r"\lambda"), ("singular_value", r"\sigma")):
            if name in result:
                position = int(np.flatnonzero(result["mode"].values == mode)[0])
                text += f": ${symbol}$ = {wording.number(float(result[name][position]))}"
    return f"{text}\n{note}" if note else text


def _draw_courses(ax: Any, panel: xr.DataArray, largest: float, signed: bool) -> None:
    import matplotlib

    from kpops.plot.ticks import places

    across = str(panel.dims[1])
    if panel.isnull().all():
        _say_not_found(ax)
    energy = (panel.fillna(0) ** 2).sum(across).values
    strongest = np.sort(np.argsort(-energy, kind="stable")[:_MAX_COURSES])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(energy)))
    x = places(ax.xaxis, panel, across, even=True)
    for i in strongest:
        ax.plot(x, panel.values[i], color=colours[i], linewidth=0.7)
    ax.set_ylim(-1.05 * largest if signed else 0, 1.05 * largest)
    if signed:
        ax.axhline(0, color=look.GREY, linewidth=0.5, zorder=0)
    look.plain(ax)
    _mark_epochs(ax, panel, x)


def _say_not_found(ax: Any) -> None:
    ax.text(0.5, 0.5, "not found", ha="center", va="center", transform=ax.transAxes)


def _mark_epochs(ax: Any, panel: xr.DataArray, x: np.ndarray) -> None:
    if "epoch" in panel.coords and panel["epoch"].dims == panel.dims[-1:]:
        epochs = panel["epoch"].values
        for i in np.flatnonzero(epochs[1:] != epochs[:-1]):
            ax.axvline((x[i] + x[i + 1]) / 2, color=look.GREY, linewidth=0.6, linestyle=":")


def _tidy(upper: Any, lower: Any, *, first: bool, last: bool) -> None:
    upper.set_xlabel("")
    upper.tick_params(labelbottom=False)
    lower.tick_params(labelbottom=last)
    if not last:
        lower.set_xlabel("")
    if not first:
        upper.set_ylabel("")
        for ax in (upper, lower):
            ax.tick_params(labelleft=False)


def _draw_lines(field: xr.DataArray, figure: Any, result: Any) -> np.ndarray:
    """Draw modes of one dim: a panel each, one above the other."""
    from kpops.plot.ticks import places

    modes = field.sizes["mode"]
    axes = look.new_axes(
        figure, look.COLUMN, 0.65 * modes + 0.4, modes, 1, sharex=True, sharey=True
    )
    (across,) = (str(d) for d in field.dims if d != "mode")
    for ax, entry in zip(axes[:, 0], field.transpose("mode", ...), strict=True):
        ax.axhline(0, color=look.GREY, linewidth=0.5, zorder=0)
        x = places(ax.xaxis, field, across)
        ax.plot(x, entry.values, color=look.COLOURS[0], linewidth=1)
        if entry.isnull().all():
            _say_not_found(ax)
        size = look.small(ax)
        ax.set_title(_title(entry, "", result), loc="left", fontsize=size, pad=2)
        _mark_epochs(ax, entry, x)
        look.plain(ax)
        ax.label_outer()
    axes[0, 0].figure.supylabel(wording.label_of(field), fontsize=axes[0, 0].yaxis.label.get_size())
    return axes
