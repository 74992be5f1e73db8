"""Tasks against tasks: alignments of states, operators and gradients, also over training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import estimates, wording
from kpops.plot import style as look

_SHOWN = ("state_tuning_cosine", "trace_alignment", "gradient_tuning_cosine")
_SOURCE = "kpops.interference, or kpops.over_training with it,"
_TITLE_WIDTH = 20
"""Characters of a title that fit above a panel."""
_UNMATCHED = ("gauss_newton_alignment", "gradient_cosine")


def interference(
    result: xr.Dataset, figure: Any = None, names: Sequence[str] | None = None
) -> np.ndarray:
    r"""Plot how tasks align: a matrix for each variable, or over training a line for each pair.

    Parameters
    ----------
    result : Dataset
        From :func:`kpops.interference`, or from :func:`kpops.over_training` with it. Over a
        dimension ``seed``, the mean is drawn with its standard error.
    figure : matplotlib Figure or SubFigure, default: a new Figure
    names : sequence of str, optional
        Variables over ``task`` and ``task_in``, all of them cosines. Default: the alignments of
        states, of operators and of gradients, as far as they are there.

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (variables,).

    Raises
    ------
    ValueError
        If there is nothing to draw, or a variable has other dimensions.

    Notes
    -----
    Where `result` has p-values of permutations, a star in a matrix marks a cosine beyond their null
    distribution: twice the smaller p-value is at most 0.05, uncorrected for the number of pairs.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(4, 6, 3))
    >>> result = kpops.interference(lin, ["Pro", "Pro", "Anti", "Anti"])
    >>> [ax.get_title() for ax in kpops.plot.interference(result)]
    ['cosine of the tuning\nof states', 'trace alignment of\noperators']
    """
    if names is None:
        look.variable(result, (*_SHOWN, *_UNMATCHED), _SOURCE)  # refuses what has none of them
        present = [name for name in _SHOWN if name in result]
        names = present or [name for name in _UNMATCHED if name in result]
    if not len(names):
        raise ValueError(f"names={names!r}: name at least one variable")
    panels = [_panel(result, name) for name in names]
    over_training = any("step" in panel.dims for panel in panels)
    signed = any(bool((panel.estimate < 0).any()) for panel in panels)
    colours = {"cmap": look.SIGNED if signed else look.UNSIGNED, "vmin": -signed}  # for all panels
    width, height = (1.6, 1.8) if over_training else (0.8 * look.COLUMN, 0.75 * look.COLUMN)
    axes = look.new_axes(figure, width * len(panels) + over_training, height, 1, len(panels))[0]
    for ax, panel, name in zip(axes, panels, names, strict=True):
        if over_training:
            _draw_lines(ax, panel)
        else:
            _draw_matrix(ax, panel, result, name, colours)
        title = textwrap.fill(" ".join(wording.label_of(result[name]).split()), _TITLE_WIDTH)
        ax.set_title(title, size=ax.xaxis.label.get_size())
    for ax in axes[:-1]:
        if ax.get_legend():
            ax.get_legend().remove()
    return axes


def _panel(result: xr.Dataset, name: str) -> xr.Dataset:
    """The estimate of a variable and, if it is known, its standard error."""
    values = look.variable(result, (name,), _SOURCE, ("task", "task_in"), ("step", "seed"))
    if "seed" in values.dims:
        error = values.std("seed", ddof=1) / np.sqrt(values.sizes["seed"])
        values = values.mean("seed", keep_attrs=True)
    else:
        error = result.get(f"{name}_stderr")
    return xr.Dataset({"estimate": values} | ({} if error is None else {"stderr": error}))


def _draw_matrix(
    ax: Any, panel: xr.Dataset, result: xr.Dataset, name: str, colours: dict[str, Any]
) -> None:
    panel = panel.transpose("task", "task_in")
    estimates.alignment(panel, ax, **colours)
    ax.images[0].colorbar.set_label("")  # the title says it
    ax.set_xlabel("")
    ax.set_ylabel("")
    tails = [f"{name}_p_{tail}" for tail in ("lower", "upper")]
    if not set(tails) <= set(result) or "seed" in result[tails[0]].dims:
        return
    smaller = result[tails].to_dataarray().min("variable").transpose("task", "task_in")
    for text, p in zip(ax.texts, smaller.values.flat, strict=False):  # large ones have no texts
        if 2 * p <= 0.05:
            text.set_text(text.get_text() + "*")


def _draw_lines(ax: Any, panel: xr.Dataset) -> None:
    tasks = wording.names(panel["task"])
    first, second = np.triu_indices(len(tasks), 1)
    if not first.size:
        raise ValueError(f"over training a line stands for two tasks, but {tasks} is one")
    where = {"task": ("pair", first), "task_in": ("pair", second)}
    pairs = panel.drop_vars(list(where)).isel(where)
    names = [f"{tasks[i]}, {tasks[j]}" for i, j in zip(first, second, strict=True)]
    estimates.over_training(pairs.assign_coords(pair=names).transpose("step", "pair"), ax)
    ax.set_ylabel("")
