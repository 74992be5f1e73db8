"""Curves over training iterations and over modes."""

from __future__ import annotations

from typing import Any

import xarray as xr


def over_training(values: xr.DataArray, ax: Any = None, **style: Any) -> Any:
    """Plot values against the training iteration, a line for each entry of the other dim.

    Parameters
    ----------
    values : DataArray
        Dims ``step`` and at most one other, whose labels become the legend.
    ax : matplotlib Axes, optional
        Where to draw; default: the current Axes.
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
    if "step" not in values.dims or values.ndim > 2:
        raise ValueError(f"values has dims {values.dims}, expected step and at most one other")
    ax = _axes(ax)
    others = [d for d in values.dims if d != "step"]
    steps = values.coords.get("step", values["step"])
    if others:
        for entry in values.transpose(others[0], "step"):
            label = entry.coords[others[0]].item() if others[0] in entry.coords else None
            ax.plot(steps, entry, **{"marker": ".", "label": label, **style})
        ax.legend(frameon=False)
    else:
        ax.plot(steps, values, **style)
    ax.set_xlabel("training iteration")
    ax.set_ylabel(values.attrs.get("long_name", values.name or ""))
    return _plain(ax)


def spectrum(values: xr.DataArray, ax: Any = None, **style: Any) -> Any:
    """Plot eigenvalues or singular values against the mode, on logarithmic axes.

    Parameters
    ----------
    values : DataArray
        Dim ``mode``, for example ``kpops.eigsh(op).eigenvalue``; magnitudes are shown.
    ax : matplotlib Axes, optional
        Where to draw; default: the current Axes.
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
    >>> import numpy as np, kpops
    >>> kpops.plot.spectrum(kpops.eigsh(np.diag([3.0, 1.0]), k=2).eigenvalue).get_xlabel()
    'mode'
    """
    if values.dims != ("mode",):
        raise ValueError(f"values has dims {values.dims}, expected ('mode',)")
    ax = _axes(ax)
    ax.plot(values["mode"], abs(values), **{"marker": ".", **style})
    ax.set(xscale="log", yscale="log", xlabel="mode")
    ax.set_ylabel(values.attrs.get("long_name", values.name or ""))
    return _plain(ax)


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def _plain(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
