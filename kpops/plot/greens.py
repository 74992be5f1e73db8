"""Green's maps of one or more networks, tasks or checkpoints, on one scale of colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording
from kpops.spectral.greens_maps import mean_response

_SOURCE = "kpops.greens_map"
_NAMES = {"energy": "rms response E", "projection": "mean response projected on equal units"}


def greens_map(
    maps: xr.Dataset | Mapping[Any, xr.Dataset], figure: Any = None, *, name: str = "energy"
) -> np.ndarray:
    """Plot the response at each time to a perturbation at each earlier time, as heat maps.

    Parameters
    ----------
    maps : Dataset, or mapping of title to Dataset
        What :func:`kpops.greens_map` returns, or some of its trials. Several are drawn side by side
        on one scale.
    figure : matplotlib Figure or SubFigure, default: a new Figure
    name : {"energy", "projection"}
        Which map: E, the root mean square over trials, on logarithmic colours over at most six
        decades; or the mean over trials of the signed projection on equal units.

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (maps,).

    Raises
    ------
    ValueError
        If there is nothing to draw, or a Dataset lacks the variable.

    Notes
    -----
    Where all trials share the coordinate ``epoch``, its changes are dotted lines. Pairs without a
    response are blank, as on and above the diagonal.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> maps = kpops.greens_map(lin)
    >>> kpops.plot.greens_map({"first": maps.isel(trial=[0]), "all": maps}).shape
    (2,)
    """
    if name not in _NAMES:
        raise ValueError(f"name={name!r}: choose one of {', '.join(map(repr, _NAMES))}")
    several = isinstance(maps, Mapping) and not isinstance(maps, xr.Dataset)
    titled = maps if several else {"": maps}
    if not titled:
        raise ValueError(f"maps is empty: pass what {_SOURCE} returns, one or more by title")
    panels = [_mean(each, name) for each in titled.values()]
    low, largest, extend = look.decades(np.abs(np.concatenate([p.values.ravel() for p in panels])))
    if name == "energy":
        from matplotlib.colors import LogNorm

        colours: dict[str, Any] = {"cmap": look.UNSIGNED, "norm": LogNorm(low, largest)}
    else:
        extend = "neither"
        colours = {"cmap": look.SIGNED, "vmin": -largest, "vmax": largest}
    width = look.COLUMN * (0.25 + 0.65 * len(panels))
    (axes,) = look.new_axes(figure, width, 2.8, 1, len(panels))
    for ax, panel, title in zip(axes, panels, titled, strict=True):
        image = look.heat_map(ax, panel.where(panel != 0), aspect="equal", **colours)
        _mark_epochs(ax, panel)
        if several:
            ax.set_title(str(title), size=ax.xaxis.label.get_size())
        if ax is not axes[0]:
            ax.set_ylabel("")
    bar = look.colour_bar(image, axes, wording.label_of(panels[0]), extend=extend)
    if name == "energy":
        look.plain_numbers(bar.ax.yaxis, low, largest)
    return axes


def _mean(maps: Any, name: str) -> xr.DataArray:
    """E or the mean projection, with the epochs that all trials share."""
    values = look.variable(maps, (name,), _SOURCE, ("trial", "time", "time_in"))
    mean = mean_response(maps, name)
    mean = mean**0.5 if name == "energy" else mean
    epochs = values.coords.get("epoch")
    if epochs is not None and set(epochs.dims) == {"trial", "time"}:
        epochs = epochs.transpose("trial", "time")
        if (epochs == epochs[0]).all():
            mean = mean.assign_coords(epoch=("time", epochs.values[0]))
    return mean.assign_attrs(long_name=_NAMES[name], units="1")


def _mark_epochs(ax: Any, panel: xr.DataArray) -> None:
    """Dotted lines where epochs change."""
    if "epoch" not in panel.coords or panel["epoch"].dims != ("time",):
        return
    epochs, size = panel["epoch"].values, panel.sizes["time"]
    left, right = ax.get_xlim()
    step = (right - left) / size
    for i in np.flatnonzero(epochs[1:] != epochs[:-1]):
        for line in (ax.axvline, ax.axhline):
            line(left + (i + 1) * step, color=look.GREY, linewidth=0.6, linestyle=":")
