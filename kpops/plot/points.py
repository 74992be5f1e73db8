"""Fixed points: where they lie among the trajectories, and their eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.arrays import to_numpy
from kpops.learning.trajectories import read_states, trajectory_dimension
from kpops.plot import style as look

_SOURCE = "kpops.fixed_points"
_MANY = 5
"""Points with this many unstable directions, or more, share a colour."""
_HALF_LENGTH = 0.08
"""Half the length of an eigenvector, relative to the extent of the data."""
_MARKERS = "osD^vP*"
_PATH = "0.55"
_INSIDE = {"markerfacecolor": "white", "markeredgewidth": 0.7, "markersize": 3.0}
_OUTSIDE = {"markeredgecolor": "black", "markeredgewidth": 0.5, "markersize": 5.0}
"""Looks of eigenvalues inside and outside the unit circle: distinct in grey, too."""


def fixed_points(
    points: xr.Dataset, ax: Any = None, *, states: Any = None, components: Sequence[int] = (1, 2)
) -> Any:
    """Plot fixed points in a plane of principal components, by their number of unstable directions.

    Parameters
    ----------
    points : Dataset
        What :func:`kpops.fixed_points` returns.
    ax : matplotlib Axes, default: in a new figure
    states : Linearization, or Tensor, array_like or DataArray (trial, time, unit), optional
        Trajectories, drawn in grey behind the points up to where a linearization's mask, or the
        coordinate ``mask`` of a DataArray, ends them. Their principal components span the plane;
        default: those of the points shown.
    components : two ints
        The components on the horizontal and on the vertical axis; the first is 1.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        If `points` are something else, `states` are wrong (see :func:`kpops.trajectory_dimension`)
        or of another model, no point is left to show, or a component does not exist.

    Notes
    -----
    Stable and marginal points are circles, others diamonds; slow points are hollow. Marginal points
    have no unstable direction and an eigenvalue of magnitude 1, to rounding. Outliers, and points
    that have not converged, are not drawn, but counted in the legend.

    The unstable eigenvectors of each point are lines through it, all of one length in the state
    space: those that look short leave the plane. A complex pair has two lines, the real and the
    imaginary part, which span the plane of rotation.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> ax = kpops.plot.fixed_points(kpops.fixed_points(lin, 20), states=lin)
    >>> ax.get_xlabel().split(" (")[0]
    'principal component 1'
    """
    shown = _shown(points)
    at = _of_points(shown, "state", "unit").values.astype(float)
    if states is None and len(at) < 2:
        raise ValueError("one point has no principal components: pass states of trajectories")
    given = at[None] if states is None else states
    mean, axes, shares, paths = _plane(given, at.shape[1], components)
    ax = look.get_axes(ax)
    courses, places = (paths - mean) @ axes.T, (at - mean) @ axes.T
    if states is not None:
        # A few trajectories are distinct lines, many are a cloud from which points stand out.
        n = len(courses)
        style = {"linewidth": 1.0 if n <= 10 else 0.6, "alpha": float(np.clip(20 / n, 0.15, 0.9))}
        for course in courses:
            ax.plot(*course.T, color=_PATH, zorder=0, **style)
    both = np.concatenate([places, *courses])
    half = _HALF_LENGTH * float(np.nanmax(np.nanmax(both, 0) - np.nanmin(both, 0)))
    for name, colour, chosen in _classes(shown):
        _draw_directions(ax, shown.isel(point=chosen), places[chosen], axes * half, colour)
        _draw_points(ax, shown.isel(point=chosen), places[chosen], name, colour)
    if (shown["kind"] == "slow").any():
        hollow = {"marker": "o", "markerfacecolor": "white", "markersize": 4}
        look.legend_entry(ax, "slow point", color=look.GREY, **hollow)
    _count_hidden(ax, points, shown)
    ax.set_aspect("equal", "datalim")  # lengths of eigenvectors compare in all directions
    for axis, component, share in zip((ax.xaxis, ax.yaxis), components, shares, strict=True):
        axis.set_label_text(f"principal component {component} ({100 * share:.0f} %)")
    return look.finished(ax)


def fixed_point_eigenvalues(points: xr.Dataset, ax: Any = None) -> Any:
    """Plot the eigenvalues of the state Jacobian at fixed points, with the unit circle.

    Parameters
    ----------
    points : Dataset
        What :func:`kpops.fixed_points` returns, or ``.isel(point=[0, 8])`` of it.
    ax : matplotlib Axes, default: in a new figure

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `points` are something else, or no point is left to show.

    Notes
    -----
    Unstable eigenvalues, outside the unit circle, are large and filled, others small and hollow.
    Colours are those of :func:`kpops.plot.fixed_points`. Up to seven points have their own markers
    and lines in the legend. Outliers, and points that have not converged, are counted there.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> _ = torch.nn.init.constant_(cell.weight_hh, 1.5)
    >>> points = kpops.fixed_points(cell, torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None])
    >>> ax = kpops.plot.fixed_point_eigenvalues(points)
    >>> [text.get_text() for text in ax.get_legend().get_texts()][:3]
    ['point 0: stable', 'point 1: stable', 'point 2: 1 unstable']
    """
    shown = _shown(points)
    real = _of_points(shown, "eigenvalue_real", "mode").values
    imaginary = _of_points(shown, "eigenvalue_imag", "mode").values
    # Modes count from 1, by decreasing magnitude; a magnitude of 1, to rounding, is not unstable.
    unstable = shown["mode"].values <= shown["n_unstable"].values[:, None]
    ax = look.get_axes(ax)
    angle = np.linspace(0, 2 * np.pi, 361)
    circle = np.cos(angle), np.sin(angle)
    ax.fill(*circle, color="0.95", linewidth=0, zorder=-1)
    ax.plot(*circle, color=look.GREY, linewidth=0.8, zorder=0)
    ax.axhline(0, color="0.85", linewidth=0.6, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    each = shown.sizes["point"] <= len(_MARKERS)
    for name, colour, chosen in _classes(shown):
        for group in np.split(chosen, len(chosen)) if each else [chosen]:
            marker = _MARKERS[group[0]] if each else "o"
            label: str | None = f"point {shown['point'].values[group[0]]}: {name}" if each else name
            style = {"color": colour, "marker": marker, "linestyle": "none"}
            for part, looks in ((unstable, _OUTSIDE), (~unstable, _INSIDE)):
                x, y = real[group][part[group]], imaginary[group][part[group]]
                if x.size:
                    ax.plot(x, y, label=label, **style, **looks)
                    label = None
    for text, looks in ((r"$|\lambda| > 1$", _OUTSIDE), (r"$|\lambda| \leq 1$", _INSIDE)):
        look.legend_entry(ax, text, color=look.GREY, marker="o", **looks)
    _count_hidden(ax, points, shown)
    ax.set_aspect("equal", "datalim")
    ax.set_xlabel("eigenvalue, real part")
    ax.set_ylabel("imaginary part")
    return look.finished(ax)


def _shown(points: Any) -> xr.Dataset:
    """Points that have converged and are no outliers."""
    for name in ("state", "kind", "converged", "outlier", "n_unstable", "is_stable"):
        look.variable(points, (name,), _SOURCE)
    keep = (points["converged"].astype(bool) & ~points["outlier"].astype(bool)).values
    if not keep.any():
        raise ValueError(
            f"each of the {keep.size} points is an outlier or has not converged, so there is none "
            "to show: search from states of the trajectories, or with more max_iterations"
        )
    return points.isel(point=keep)


def _of_points(points: Any, name: str, *dims: str) -> xr.DataArray:
    """A variable over the points and these further dimensions."""
    return look.variable(points, (name,), _SOURCE, ("point", *dims))


def _classes(points: xr.Dataset) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and positions of the points of each number of unstable directions."""
    n_unstable = np.minimum(points["n_unstable"].values, _MANY)
    stable = points["is_stable"].values.astype(bool)
    marginal = (n_unstable == 0) & ~stable
    classes = [("stable", look.COLOURS[0], stable), ("marginal", look.COLOURS[-1], marginal)]
    for n in range(1, _MANY + 1):
        name = f"{n} unstable" if n < _MANY else f"{n} or more unstable"
        classes.append((name, look.COLOURS[n], n_unstable == n))
    return [(name, c, np.flatnonzero(chosen)) for name, c, chosen in classes if chosen.any()]


def _plane(
    states: Any, n_units: int, components: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, two principal axes, their shares of the variance, and paths, NaN where masked."""
    mask = states.coords.get("mask") if isinstance(states, xr.DataArray) else None
    pca = trajectory_dimension(states, mask=mask)
    if pca.sizes["unit"] != n_units:
        raise ValueError(
            f"the states have {pca.sizes['unit']} units, the points {n_units}: pass trajectories "
            "of the model whose points these are"
        )
    n_axes = pca.sizes["mode"]
    if n_axes < 2:
        raise ValueError(
            "the states have one principal component, and no plane: draw the variable 'state', or "
            "the eigenvalues by kpops.plot.fixed_point_eigenvalues"
        )
    wanted = list(components)
    if len(wanted) != 2 or not all(c in range(1, n_axes + 1) for c in wanted):
        raise ValueError(f"components={components!r}: choose two from 1 to {n_axes}")
    chosen = pca.sel(mode=wanted)
    values, valid, *_ = read_states(states, mask)
    paths = to_numpy(values.double().masked_fill(~valid[..., None], torch.nan))
    mean = np.nanmean(paths, (0, 1))
    return mean, chosen["axis"].values.astype(float), chosen["explained"].values, paths


def _draw_points(ax: Any, points: xr.Dataset, places: np.ndarray, name: str, colour: str) -> None:
    slow = (points["kind"] == "slow").values
    marker, size = ("o", 5.5) if name in ("stable", "marginal") else ("D", 4)
    style = {"color": colour, "markersize": size, "zorder": 3}
    for chosen, face in ((~slow, colour), (slow, "white")):
        if chosen.any():
            label = look.once(ax, name)
            ax.plot(*places[chosen].T, marker, markerfacecolor=face, label=label, **style)


def _draw_directions(
    ax: Any, points: xr.Dataset, places: np.ndarray, axes: np.ndarray, colour: str
) -> None:
    """Draw lines along the unstable eigenvectors, which come first among the modes."""
    from matplotlib.collections import LineCollection

    real = _of_points(points, "right_real", "mode", "unit").values
    imaginary = _of_points(points, "right_imag", "mode", "unit").values
    segments: list[np.ndarray] = []
    for i, n in enumerate(points["n_unstable"].values):
        second = (points["eigenvalue_imag"].values[i, :n] < 0)[:, None]
        vectors = np.where(second, imaginary[i, :n], real[i, :n])
        arms = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ axes.T
        segments.extend(np.stack([places[i] - arms, places[i] + arms], 1))
    if segments:
        ax.add_collection(LineCollection(segments, colors=colour, linewidths=1, zorder=2))


def _count_hidden(ax: Any, points: xr.Dataset, shown: xr.Dataset) -> None:
    n = points.sizes["point"] - shown.sizes["point"]
    if n:
        look.legend_entry(ax, f"{n} not shown:\noutlier or\nnot converged")
