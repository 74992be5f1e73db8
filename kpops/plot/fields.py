"""Heat maps: eigenfunctions and singular functions as fields, and the energy of operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.plot import style as look
from kpops.plot import wording

_VARIABLES = ("eigenfunction", "left", "right")
_MAX_COURSES = 12
_MAPS = "kpops.frobenius_map"


def eigenfunctions(
    result: xr.Dataset | xr.DataArray,
    modes: int | Sequence[int] = 6,
    *,
    variable: str | None = None,
    over: str | None = None,
    figure: Any = None,
    **positions: Any,
) -> np.ndarray:
    """Plot the leading modes, each as a heat map against time with its time courses below.

    Parameters
    ----------
    result : Dataset or DataArray
        What :func:`kpops.eigsh` or :func:`kpops.svds` returns, or one field
        ``(mode, trial, time, unit)``, with any dimensions in place of the last three.
    modes : int or sequence of int
        How many of the leading modes, or which, by their labels from 1.
    variable : {"eigenfunction", "left", "right"}, optional
        Default: the first of these that the Dataset has.
    over : str, optional
        Dimension of the heat map's vertical axis; default: ``"trial"``, else the first besides
        time.
    figure : matplotlib Figure or SubFigure, default: a new Figure
    **positions
        What to show of a dimension: a position or a slice (as in ``xarray.Dataset.isel``), or
        ``"rms"``, the root mean square over it. A further dimension that is neither named nor on an
        axis is shown where the mode is strongest, with that label in the title.

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (mode, 2), heat map and time courses; (mode, 1) if there is only one dimension besides
        ``mode``: each mode is then a line.

    Raises
    ------
    ValueError
        If there is no such variable, dimension or mode.

    Notes
    -----
    Modes have unit norm, so all panels share one scale: diverging and symmetric about zero, or
    from zero on if root mean squares are shown. The courses are those of the strongest entries of
    `over`, at most twelve. Where time has the coordinate ``epoch``, its changes are vertical lines.
    A mode that the solver did not find (NaN) says so.

    Steps that the coordinate ``mask(trial, time)`` excludes are grey, have no courses, and do not
    count in root mean squares. Times that are not evenly spaced are counted and named.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> modes = kpops.eigsh(lin.flow, k=3)
    >>> kpops.plot.eigenfunctions(modes).shape
    (3, 2)
    >>> axes = kpops.plot.eigenfunctions(modes, 2, over="unit", trial=0)
    >>> axes[0, 0].get_ylabel()
    'unit'
    """
    if "mode" in getattr(result, "dims", ()) and "mode" not in result.coords:
        result = result.assign_coords(mode=np.arange(1, result.sizes["mode"] + 1))
    field = _chosen(_field(result, variable), modes)
    _check_dims(field, over, positions)
    for dim, position in positions.items():
        if isinstance(position, int | np.integer):
            field = field.isel({dim: [int(position)]})  # its label stays for the title
        elif not isinstance(position, str):
            field = field.isel({dim: position})
    across = _across(field)
    rest = [str(d) for d in field.dims if d not in ("mode", across)]
    if not rest:
        return _draw_lines(field, figure, result)
    vertical = over or ("trial" if "trial" in rest else rest[0])
    rest.remove(vertical)
    averaged = [d for d in rest if positions.get(d) == "rms"]
    strongest = [d for d in rest if d not in averaged]
    fields = field.transpose("mode", ...)
    panels = [_reduced(entry, vertical, across, strongest, averaged) for entry in fields]
    return _draw_panels(panels, not averaged, figure, result)


def _field(result: Any, variable: str | None) -> xr.DataArray:
    names = (variable,) if variable else _VARIABLES
    field = look.variable(result, names, "kpops.eigsh or kpops.svds", arrays=True)
    field = look.with_dims(field, ("mode",), others=field.ndim)
    if field.ndim < 2:
        name = field.name or "the field"
        raise ValueError(f"{name} has the dimension mode alone: pass fields, such as over time")
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
            name = field.name or "the field"
            raise ValueError(f"{name} has no dimension {dim!r}: choose among {dims}")
    if over is not None and over == _across(field):
        raise ValueError(f"over={over!r} is the horizontal axis: choose another of {dims}")
    for dim, position in positions.items():
        if isinstance(position, str) and position != "rms":
            raise ValueError(f"{dim}={position!r}: choose a position, a slice or 'rms'")
        size = field.sizes[dim]
        if isinstance(position, int | np.integer) and not -size <= position < size:
            raise ValueError(f"{dim}={position} is out of range: choose 0 to {size - 1}")


def _across(field: xr.DataArray) -> str:
    """Dimension of the horizontal axis: time, else the last."""
    dims = [str(d) for d in field.dims if d != "mode"]
    return next((d for d in dims if d.startswith("time")), dims[-1])


def _reduced(
    entry: xr.DataArray, vertical: str, across: str, strongest: list[str], averaged: list[str]
) -> tuple[xr.DataArray, str]:
    """One mode on (vertical, across), NaN where masked, and a note on the other dimensions."""
    notes = []
    valid = entry.coords.get("mask", xr.DataArray(True)).astype(bool)
    if strongest:
        others = [d for d in entry.dims if d not in strongest]
        energy = (entry.where(valid).fillna(0) ** 2).sum(others)
        for dim, at in energy.argmax(strongest).items():
            notes.append(f"{dim} {wording.names(entry[dim])[int(at)]}")
            entry = entry.isel({dim: int(at)})
            valid = valid.isel({dim: int(at)}, missing_dims="ignore")
    if averaged:
        n_valid = xr.ones_like(entry).where(valid, 0).sum(averaged)
        squares = (entry.where(valid, 0) ** 2).sum(averaged, skipna=False)
        entry, valid = (squares / n_valid.clip(1)) ** 0.5, n_valid > 0
        notes.append(f"rms over {', '.join(averaged)}")
    return entry.where(valid).transpose(vertical, across), ", ".join(notes)


def _draw_panels(
    panels: list[tuple[xr.DataArray, str]], signed: bool, figure: Any, result: Any
) -> np.ndarray:
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 2 * look.COLUMN * (columns + 0.4) / 3.4
    layout = {"sharex": True, "height_ratios": [3, 2] * rows}
    grid = look.new_axes(figure, width, 1.9 * rows + 0.2, 2 * rows, columns, **layout)
    largest = max(float(np.nanmax(np.abs(panel.values), initial=0)) for panel, _ in panels) or 1
    colours = {"cmap": look.SIGNED if signed else look.UNSIGNED, "vmax": largest}
    colours["vmin"] = -largest if signed else 0
    axes = np.empty((len(panels), 2), object)
    for i, (panel, note) in enumerate(panels):
        row, column = divmod(i, columns)
        upper, lower = grid[2 * row : 2 * row + 2, column]
        axes[i] = upper, lower
        image = look.heat_map(upper, panel, **colours)
        upper.set_facecolor(look.PADDING)
        _draw_courses(lower, panel, largest, signed)
        upper.set_title(_title(panel, note, result), fontsize=upper.xaxis.label.get_size())
        lowest = i + columns >= len(panels)
        upper.set_xlabel("")
        upper.tick_params(labelbottom=False)
        lower.tick_params(labelbottom=lowest)
        if not lowest:
            lower.set_xlabel("")
        if column > 0:
            upper.set_ylabel("")
            upper.tick_params(labelleft=False)
            lower.tick_params(labelleft=False)
    for spare in grid[-2:, (len(panels) - 1) % columns + 1 :].ravel():
        spare.remove()
    name = wording.label_of(result if isinstance(result, xr.DataArray) else panels[0][0])
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

    across = str(panel.dims[1])
    energy = (panel.fillna(0) ** 2).sum(across).values
    strongest = np.sort(np.argsort(-energy, kind="stable")[:_MAX_COURSES])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(energy)))
    x = wording.positions(ax.xaxis, panel, across, even=True)
    for i in strongest:
        ax.plot(x, panel.values[i], color=colours[i], linewidth=0.7)
    ax.set_ylim(-1.05 * largest if signed else 0, 1.05 * largest)
    if signed:
        look.zero_line(ax, 0.5)
    look.plain(ax)
    _mark(ax, panel, x)


def _mark(ax: Any, panel: xr.DataArray, x: np.ndarray) -> None:
    """Mark a mode that was not found, and the changes of epochs."""
    if panel.isnull().all():
        ax.text(0.5, 0.5, "not found", ha="center", va="center", transform=ax.transAxes)
    if "epoch" in panel.coords and panel["epoch"].dims == panel.dims[-1:]:
        epochs = panel["epoch"].values
        for i in np.flatnonzero(epochs[1:] != epochs[:-1]):
            ax.axvline((x[i] + x[i + 1]) / 2, color=look.GREY, linewidth=0.6, linestyle=":")


def _draw_lines(field: xr.DataArray, figure: Any, result: Any) -> np.ndarray:
    """Draw modes of one dimension in panels, one above the other."""
    modes = field.sizes["mode"]
    shared = {"sharex": True, "sharey": True}
    axes = look.new_axes(figure, look.COLUMN, 0.65 * modes + 0.4, modes, 1, **shared)
    for ax, entry in zip(axes[:, 0], field.transpose("mode", ...), strict=True):
        look.zero_line(ax, 0.5)
        x = wording.positions(ax.xaxis, field, _across(field))
        ax.plot(x, entry.values, color=look.COLOURS[0], linewidth=1)
        ax.set_title(_title(entry, "", result), loc="left", fontsize=look.small(ax), pad=2)
        _mark(ax, entry, x)
        look.plain(ax)
        ax.label_outer()
    axes[0, 0].figure.supylabel(wording.label_of(field), fontsize=axes[0, 0].yaxis.label.get_size())
    return axes


@experimental
def frobenius_map(result: xr.Dataset, figure: Any = None) -> np.ndarray:
    """Plot the energy between positions as a heat map, and against the lag.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.frobenius_map` returns: ``energy(dim, dim_in)``, and for time
        ``energy_by_lag(lag)`` and ``near_diagonal(lag)``.
    figure : matplotlib Figure or SubFigure, default: a new Figure

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (1,), (2,) or (3,): map, energy by lag, fraction of it near the diagonal.

    Raises
    ------
    ValueError
        If there is no energy, or it has other dimensions.

    Notes
    -----
    Colours are logarithmic over at most six decades. Cells without energy are blank, as above the
    diagonal for a causal operator.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> len(kpops.plot.frobenius_map(kpops.frobenius_map(lin.P, "time")))
    3
    """
    energy = look.variable(result, ("energy",), _MAPS)
    pair = [str(d) for d in energy.dims if f"{d}_in" in energy.dims][:1] or ["dim"]
    energy = look.with_dims(energy, (*pair, f"{pair[0]}_in"))
    curves = [name for name in ("energy_by_lag", "near_diagonal") if name in result]
    width = (1, 1.7, 2.2)[len(curves)] * look.COLUMN
    ratios = [1.2, *[1] * len(curves)]
    (axes,) = look.new_axes(figure, width, 2.1, 1, len(ratios), width_ratios=ratios)
    _draw_map(axes[0], energy)
    for ax, name in zip(axes[1:], curves, strict=True):
        _draw_by_lag(ax, result, name)
    return axes


def _draw_map(ax: Any, energy: xr.DataArray) -> None:
    from matplotlib.colors import LogNorm

    low, largest, extend = look.decades(energy.values)
    style = {"aspect": "equal", "cmap": look.UNSIGNED, "norm": LogNorm(low, largest)}
    image = look.heat_map(ax, energy.where(energy > 0), **style)
    bar = look.colour_bar(image, ax, wording.label_of(energy), extend=extend)
    look.plain_numbers(bar.ax.yaxis, low, largest)


def _draw_by_lag(ax: Any, result: xr.Dataset, name: str) -> None:
    values = look.variable(result, (name,), _MAPS, ("lag",))
    style = {"color": look.COLOURS[0], "marker": ".", "markersize": 3, "linewidth": 1}
    error = result.get(f"{name}_stderr")
    look.curve(ax, wording.positions(ax.xaxis, values, "lag"), values.values, error, **style)
    if name == "energy_by_lag":
        if (values > 0).any():
            ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.05)
    ax.set_ylabel(wording.label_of(values))
    look.plain(ax)
