"""Sizes of activations and logits: collapsed softmax, massive activations, updates of features."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.kinds import described
from kpops.labels import Space
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.losses import Loss
from kpops.learning.required import labelled, require_linearization
from kpops.linearization import Linearization
from kpops.maturity import experimental


def softmax_collapse(outputs: Any, *, dtype: torch.dtype | None = None) -> xr.Dataset:
    """Share of samples whose softmax is exactly one class in floating point.

    Parameters
    ----------
    outputs : Linearization, or Tensor, array_like or DataArray of shape (..., class)
        A linearization stands for its outputs at the valid steps.
    dtype : torch.dtype, optional
        In which the training computes its loss, such as ``torch.float16``. Default: that of the
        outputs. Give it if the model was linearised in another.

    Returns
    -------
    Dataset
        ``collapsed`` (...), for each sample, False at steps that are not valid; ``share`` of the
        valid samples.

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    TypeError
        If `dtype` is no floating-point type.

    Notes
    -----
    With the logits z of a sample, the softmax is ``exp(z_k - max z) / sum_j exp(z_j - max z)``. One
    term of the sum is 1. Once the others together are below half the distance from 1 to the next
    number (6e-8 in float32, 5e-4 in float16), the sum rounds to exactly 1: the loss of a sample
    that is classified correctly is zero, and so is its gradient with respect to that logit. Prieto,
    Barsbey, Mediano and Birdal (ICLR 2025, Grokking at the edge of numerical stability) show that
    this softmax collapse stops learning before networks without weight decay generalise.

    Examples
    --------
    >>> import torch, kpops
    >>> logits = torch.tensor([[0.0, 10.0], [0.0, 20.0]])
    >>> kpops.training.softmax_collapse(logits).collapsed.values
    array([False,  True])
    >>> float(kpops.training.softmax_collapse(logits, dtype=torch.float16).share)
    1.0
    """
    valid, attrs = None, {}
    if isinstance(outputs, Linearization):
        valid = _valid(require_linearization(outputs), outputs.output_space)[..., 0]
        outputs, attrs = outputs.outputs, outputs.attrs
    values = as_tensor(outputs.data if isinstance(outputs, xr.DataArray) else outputs, "outputs")
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(
            f"outputs has shape {tuple(values.shape)}, expected (..., class) with two classes or "
            "more"
        )
    dtype = values.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype}: pass a floating-point type, such as torch.float32")
    values = values.to(dtype)
    largest = values.max(-1, keepdim=True).values
    collapsed = to_numpy((values - largest).exp().sum(-1) == 1)
    valid = np.ones(collapsed.shape, bool) if valid is None else valid
    collapsed &= valid
    if isinstance(outputs, xr.DataArray):
        labels = outputs.isel({outputs.dims[-1]: 0}, drop=True).copy(data=collapsed)
    else:
        labels = xr.DataArray(collapsed, dims=("trial", "time")[2 - collapsed.ndim :])
    text = "whether the softmax is exactly one class"
    share = labelled((), collapsed.sum() / max(1, valid.sum()), "share of collapsed samples")
    settings = {"dtype": str(dtype).removeprefix("torch.")}
    return xr.Dataset(
        {"collapsed": labels.assign_attrs(long_name=text, units="1"), "share": share},
        attrs={**attrs, "configuration": json.dumps(settings)},
    )


@experimental
def activation_ratio(lin: Linearization, by: str | None = None) -> xr.Dataset:
    """Largest and median activation: whether some are massive.

    Parameters
    ----------
    lin : Linearization
    by : str, optional
        Coordinate of the states, along one dimension, whose values are measured apart, such as
        ``"layer"``. Default: all states together.

    Returns
    -------
    Dataset
        ``largest``, ``median`` and their ``ratio``, of the absolute states at valid steps, with the
        dimension `by`, if it is given. A ratio over a median of zero is infinite.

    Raises
    ------
    ValueError
        If the states have no coordinate `by`, along one dimension.
    TypeError
        If `lin` is no linearization.

    Notes
    -----
    Sun, Chen, Kolter and Liu (2024), Massive activations in large language models, call an
    activation massive if it is about a thousand times the median of its hidden state. The course of
    the ratio over training is fitted by :func:`kpops.training.fit_activation_ratio`.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, 2, batch_first=True), torch.randn(5, 10, 3))
    >>> kpops.training.activation_ratio(lin, "layer").ratio.sizes
    Frozen({'layer': 2})
    """
    parts = _parts(require_linearization(lin), abs(lin.states.values), by)
    values = {
        "largest": [part.max() for part in parts.values()],
        "median": [np.median(part) for part in parts.values()],
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        values["ratio"] = [np.divide(*pair) for pair in zip(*values.values(), strict=True)]
    texts = ("largest absolute activation", "median absolute activation", "largest over median")
    return _by_part(lin, values, texts, by, parts)


@experimental
def feature_updates(
    lin: Linearization,
    targets: Any,
    loss: Loss = "mse",
    *,
    loss_mask: Any = None,
    by: str | None = None,
) -> xr.Dataset:
    """Size of the change of states by a step of gradient descent, against that of the states.

    Parameters
    ----------
    lin, targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`.
    by : str, optional
        As for :func:`kpops.training.activation_ratio`.

    Returns
    -------
    Dataset
        ``state_size`` and ``update_size``, the root mean square over valid trials, times and units
        of the states and of their change -P K P* Err per learning rate, and ``relative``, their
        ratio; with the dimension `by`, if it is given.

    Raises
    ------
    ValueError, TypeError
        As for :func:`kpops.gradient_flow` and :func:`kpops.training.activation_ratio`.

    Notes
    -----
    The step is that of the parameters of the recurrence, to first order in the learning rate.
    Measured in networks of several widths N, the exponent of ``relative`` against N distinguishes
    the lazy from the rich regime: for y = a . h / sqrt(N), features move by 1 / sqrt(N), and the
    larger the network, the less it learns features; for y = a . h / N with a learning rate times N,
    they move by as much at every width (Yang and Hu, ICML 2021, Tensor programs IV; Chizat, Oyallon
    and Bach, NeurIPS 2019, On lazy training).

    Examples
    --------
    >>> import torch, kpops
    >>> network = kpops.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 2))
    >>> lin = kpops.linearize(network, torch.randn(5, 10, 3))
    >>> bool(kpops.training.feature_updates(lin, torch.zeros(5, 10, 2)).relative > 0)
    True
    """
    flow = gradient_flow(lin, targets, loss, loss_mask=loss_mask)
    values: dict[str, list[Any]] = {}
    for name, field in (("state_size", lin.states), ("update_size", flow.state_change)):
        parts = _parts(lin, field.values.astype(float), by)
        values[name] = [np.sqrt(np.square(part).mean()) for part in parts.values()]
    with np.errstate(divide="ignore", invalid="ignore"):
        values["relative"] = [np.divide(b, a) for a, b in zip(*values.values(), strict=True)]
    texts = (
        "root mean square of the states",
        "root mean square of the state change per learning rate",
        "relative size of the state change per learning rate",
    )
    return _by_part(lin, values, texts, by, parts).assign_attrs(configuration=flow.configuration)


def _valid(lin: Linearization, space: Space) -> np.ndarray:
    """Which entries of a vector of `space` are at valid steps."""
    ones = torch.ones(1, *space.shape, dtype=torch.bool, device=lin.device)
    return to_numpy(lin.trajectory.restrict(ones)[0])


def _parts(lin: Linearization, values: np.ndarray, by: str | None) -> dict[Any, np.ndarray]:
    """Entries of states at valid steps, flat: all, or for each value of a coordinate."""
    valid = _valid(lin, lin.space)
    if by is None:
        return {None: values[valid]}
    coordinate = lin.space.coords.get(by)
    if coordinate is None or len(coordinate.dims) != 1:
        known = [name for name, c in lin.space.coords.items() if len(c.dims) == 1]
        raise ValueError(f"by={by!r}: choose a coordinate of the states along one dim, {known}")
    axis = lin.space.dims.index(coordinate.dims[0])
    parts = {}
    for label in dict.fromkeys(coordinate.values.tolist()):
        here = coordinate.values == label
        parts[label] = np.compress(here, values, axis)[np.compress(here, valid, axis)]
    return parts


def _by_part(
    lin: Linearization,
    values: dict[str, list[Any]],
    texts: tuple[str, ...],
    by: str | None,
    parts: dict[Any, np.ndarray],
) -> xr.Dataset:
    """Label numbers of each part."""
    dtype = numpy_dtype(lin.dtype)
    dims = () if by is None else (by,)
    variables = {
        name: labelled(dims, np.array(v, dtype)[... if dims else 0], text)
        for (name, v), text in zip(values.items(), texts, strict=True)
    }
    coords = {} if by is None else {by: labelled(by, _labels(parts), by.replace("_", " "))}
    return xr.Dataset(variables, coords, lin.attrs)


def _labels(parts: dict[Any, np.ndarray]) -> np.ndarray:
    labels = np.array(list(parts))
    return labels.astype(object) if labels.dtype.kind == "U" else labels  # as files can hold


@experimental
def fit_activation_ratio(ratio: Any) -> xr.Dataset:
    """Fit the course of massive activations over training, A exp(-lambda x) log x + K.

    Parameters
    ----------
    ratio : DataArray or Dataset
        ``ratio`` (step) of at least six steps, as :func:`kpops.over_training` collects it from
        :func:`kpops.training.activation_ratio`.

    Returns
    -------
    Dataset
        ``amplitude`` A, ``decay`` lambda, ``offset`` K, ``rate`` gamma and ``start`` t_0, with
        x = gamma step + t_0; ``r2``, the fraction of the variance that the fit holds; and
        ``fitted`` (step).

    Raises
    ------
    TypeError
        If `ratio` is neither.
    ValueError
        If it has other dims than step, fewer than six steps, or values that are not finite.

    Notes
    -----
    The five numbers are those of Gallego-Feliciano, McClendon, Morinelli, Zervoudakis and
    Saravanos (2025), Hidden dynamics of massive activations in transformer training, arXiv
    2508.03616. Given lambda, gamma and t_0, all positive, the fit is linear in A and K, which are
    eliminated by least squares (variable projection); the three others come from
    ``scipy.optimize.least_squares``, started on a fixed grid. A course that is far from its peak
    determines the curve, but hardly the single numbers.

    Examples
    --------
    >>> import numpy as np, xarray as xr, kpops
    >>> step = np.arange(0, 2000, 50)
    >>> x = 0.01 * step + 1
    >>> course = xr.DataArray(300 * np.exp(-0.1 * x) * np.log(x) + 20, {"step": step}, "step")
    >>> fit = kpops.training.fit_activation_ratio(course)
    >>> round(float(fit.decay), 3), round(float(fit.offset), 1)
    (0.1, 20.0)
    """
    # Imported here, since it adds a filter to those of warnings.
    from scipy.optimize import least_squares

    course = ratio.get("ratio") if isinstance(ratio, xr.Dataset) else ratio
    if not isinstance(course, xr.DataArray):
        raise TypeError(
            f"ratio is {described(ratio)}: pass what kpops.over_training makes of "
            "kpops.training.activation_ratio"
        )
    if course.dims != ("step",) or course.sizes["step"] < 6:
        raise ValueError(f"ratio has sizes {dict(course.sizes)}, expected six steps or more")
    y = course.values.astype(float)
    if not np.isfinite(y).all():
        raise ValueError("ratio is not finite: leave out the steps whose median is zero")
    span = float(np.ptp(course["step"].values)) or 1.0
    time = (course["step"].values - course["step"].values.min()) / span
    scale = np.abs(y).max() or 1.0

    def linear(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decay, rate, start = np.exp(logs)
        x = rate * time + start
        columns = np.stack([np.exp(-decay * (x - start)) * np.log(x), np.ones_like(x)], 1)
        return columns, np.linalg.lstsq(columns, y / scale, rcond=None)[0]

    def rest(logs: np.ndarray) -> np.ndarray:
        columns, weights = linear(logs)
        return columns @ weights - y / scale

    starts = np.log([(d / r, r, s) for d in (0.3, 3) for r in (3, 30) for s in (0.3, 1, 3)])
    fits = [least_squares(rest, s, bounds=(-12, 12), xtol=1e-15, ftol=1e-15) for s in starts]
    best = min(fits, key=lambda fit: fit.cost)
    columns, (amplitude, offset) = linear(best.x)
    decay, rate, start = np.exp(best.x)
    fitted = scale * (columns @ [amplitude, offset])
    spread = np.square(y - y.mean()).sum()
    r2 = 1 - np.square(y - fitted).sum() / spread if spread else np.nan
    first = course["step"].values.min()
    numbers = {
        "amplitude": (scale * amplitude * np.exp(decay * start), "amplitude A"),
        "decay": (decay, "decay lambda"),
        "offset": (scale * offset, "offset K"),
        "rate": (rate / span, "rate gamma of x per step"),
        "start": (start - rate / span * first, "x at step 0"),
        "r2": (r2, "fraction of the variance"),
    }
    variables = {name: labelled((), value, text) for name, (value, text) in numbers.items()}
    text = "fitted largest over median absolute activation"
    return xr.Dataset({**variables, "fitted": labelled("step", fitted, text)}, course.coords)
