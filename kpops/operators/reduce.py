"""Maps from a space to fewer of its entries or dimensions: restriction and averaging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.shapes import InCodomain, InDomain


class Restriction(TrajectoryOperator):
    """R: keep some positions along some dimensions. Its adjoint puts zeros elsewhere.

    Parameters
    ----------
    space : Space
        The space that is restricted.
    positions : mapping
        As for :meth:`kpops.TrajectoryOperator.select`. Dimensions of which labels are chosen become
        those of the labels, where what is left is a grid of them.
    dtype, device
        Of the operators to multiply it with.

    Raises
    ------
    ValueError
        If a selection is empty, out of range, repeats a position or names an unknown parameter.

    Notes
    -----
    ``R_i @ op @ R_j.H`` is the block of `op` from part j to part i.
    """

    def __init__(
        self, space: Space, positions: Mapping[str, Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        by_label = {n: p for n, p in positions.items() if n not in space.dims}
        labelled = {d: _with_labels(space, d, by_label) for d in _along(space, by_label)}
        of_dims = {d: p for d, p in positions.items() if d in space.dims}
        both = sorted(set(labelled) & set(of_dims))
        if both:
            raise ValueError(f"positions along {both} and labels of them are given: choose one")
        self.positions = labelled | {d: _positions(space, d, p) for d, p in of_dims.items()}
        self._taken = part = space.take(self.positions)
        for dim in labelled:
            part = part.unstacked(dim)
        super().__init__(space, part, dtype=dtype, device=device, symbol="R")
        self.block_diagonal_dims = tuple(d for d in space.dims if d not in self.positions)
        self._index = [
            (1 + space.dims.index(d), torch.from_numpy(p).to(device))
            for d, p in self.positions.items()
        ]

    def _apply(self, q: InDomain) -> InCodomain:
        for axis, index in self._index:
            q = q.index_select(axis, index)
        return q.reshape(len(q), *self.codomain.shape)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        q = q.reshape(len(q), *self._taken.shape)
        for axis, index in self._index:
            shape = list(q.shape)
            shape[axis] = self.domain.shape[axis - 1]
            q = q.new_zeros(shape).index_copy(axis, index, q)
        return q


class Average(TrajectoryOperator):
    """E: average over all dimensions of `space` but those in `keep`.

    Its adjoint copies, divided by the number of copies. `dtype` and `device` as for
    :class:`Restriction`.
    """

    pools_trials = True

    def __init__(self, space: Space, keep: Any, dtype: torch.dtype, device: torch.device) -> None:
        keep = (keep,) if isinstance(keep, str) else tuple(keep)
        super().__init__(space, space.keep(keep), dtype=dtype, device=device, symbol="E")
        self.block_diagonal_dims = keep
        self._axes = [1 + i for i, d in enumerate(space.dims) if d not in keep]
        self._copies = self.domain.total // self.codomain.total

    def _apply(self, q: InDomain) -> InCodomain:
        return q.sum(self._axes) / self._copies if self._axes else q

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        for axis in self._axes:
            q = q.unsqueeze(axis)
        return (q / self._copies).expand(-1, *self.domain.shape).contiguous()


@as_method
def select(op: TrajectoryOperator, **positions: Any) -> TrajectoryOperator:
    """Restrict the operator to a part of its domain and codomain.

    Parameters
    ----------
    **positions
        Dimension name to positions along it (as in ``xarray.Dataset.isel``): an int, a slice, an
        array of ints or a boolean mask. For ``parameter`` also one or more parameter names.
        Or the name of a coordinate along one dimension, such as ``site``, ``layer`` or ``task``,
        to one or more of its labels. A side that lacks the dimension stays whole.

    Returns
    -------
    TrajectoryOperator
        ``R op R*`` with R the restriction; all dimensions remain, also those of size 1. If labels
        are chosen, and those left make a grid, they are the dimensions: a site of an image has
        (trial, channel, row, column).

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
    >>> lin.P.select(trial=0, time=slice(2, 5))
    <R P R* (trial: 1, time: 3, unit: 4), float32 on cpu>
    """
    known = list(dict.fromkeys((*_names(op.domain), *_names(op.codomain))))
    unknown = sorted(set(positions) - set(known))
    if unknown:
        raise ValueError(f"no dim {unknown} in {op!r}: choose from {known}")

    def restriction(space: Space) -> Restriction | None:
        here = {d: p for d, p in positions.items() if d in _names(space)}
        return Restriction(space, here, op.torch_dtype, op.device) if here else None

    left = restriction(op.codomain)
    right = left if op.domain == op.codomain else restriction(op.domain)
    result = op if left is None else left @ op
    return result if right is None else result @ right.H


@as_method
def expand_average(op: TrajectoryOperator, keep: Any) -> TrajectoryOperator:
    """Reduce to fewer dimensions by copying in and averaging out.

    The input is copied along the dimensions that are not kept, and the image averaged over them:
    what the figures of the KPFlow paper show. This is no partial trace.

    Parameters
    ----------
    keep : tuple of str
        Dimensions to keep, for example ``("time",)``.

    Returns
    -------
    TrajectoryOperator
    """
    left = right = Average(op.codomain, keep, op.torch_dtype, op.device)
    if op.domain != op.codomain:
        right = Average(op.domain, keep, op.torch_dtype, op.device)
    return right._copies * (left @ op @ right.H)


def _names(space: Space) -> list[str]:
    """Dimensions, and labels along one of them."""
    labels = [k for k, c in space.coords.items() if len(c.dims) == 1 and k not in space.dims]
    return [*space.dims, *labels]


def _along(space: Space, labels: Mapping[str, Any]) -> set[str]:
    return {space.coords[name].dims[0] for name in labels}


def _with_labels(space: Space, dim: str, labels: Mapping[str, Any]) -> np.ndarray:
    """Positions along `dim` that have one of the given values of every label of it."""
    chosen = np.ones(space.sizes[dim], dtype=bool)
    for name, wanted in labels.items():
        there = space.coords[name]
        if there.dims == (dim,):
            asked = [wanted] if np.ndim(wanted) == 0 else list(np.asarray(wanted).tolist())
            known = there.values.tolist()
            unknown = [label for label in asked if label not in known]
            if unknown or not asked:
                choices = list(dict.fromkeys(known))[:20]
                raise ValueError(f"{name}={wanted!r}: choose one or more of {choices}")
            chosen &= np.isin(there.values.astype(object), np.array(asked, dtype=object))
    if not chosen.any():
        raise ValueError(f"no position along {dim} has all labels {dict(labels)}")
    return np.flatnonzero(chosen)


def _positions(space: Space, dim: str, wanted: Any) -> np.ndarray:
    """Positions along `dim` as an array of valid ints."""
    size = space.sizes[dim]
    chosen = wanted if isinstance(wanted, slice) else _read(space, dim, wanted)
    try:
        index = np.atleast_1d(np.arange(size)[chosen])
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{dim}={wanted!r} does not fit the dimension of size {size} ({error}): choose "
            f"positions from 0 to {size - 1}"
        ) from None
    if index.size == 0:
        raise ValueError(f"{dim}={wanted!r} selects nothing of the dimension of size {size}")
    if len(np.unique(index)) != len(index):
        raise ValueError(f"{dim}={wanted!r} selects a position twice: a restriction cannot")
    return np.ascontiguousarray(index)  # torch takes no negative strides, as of a reversed slice


def _read(space: Space, dim: str, wanted: Any) -> np.ndarray:
    """Positions as ints or a boolean mask."""
    size = space.sizes[dim]
    values = np.asarray(wanted)
    if not values.size:
        return np.empty(0, dtype=int)
    if values.dtype.kind in "OUT" and "parameter_name" in space.coords and dim == "parameter":
        names = space.coords["parameter_name"][1]
        unknown = sorted(set(map(str, values.ravel())) - set(names))
        if unknown:
            raise ValueError(f"no parameter {unknown}: choose from {sorted(set(names))}")
        return np.isin(names, values)
    if values.dtype.kind not in "iub" or values.ndim > 1:
        raise TypeError(
            f"{dim}={wanted!r} is no selection of positions: pass an int, a slice, ints, or a "
            f"boolean mask of length {size}"
        )
    if values.dtype.kind == "b":
        along = getattr(wanted, "dims", (dim,))
        if values.shape != (size,) or along != (dim,):
            raise ValueError(
                f"{dim}={wanted!r} is a mask of shape {values.shape} along {along}: it does not "
                f"fit the dimension of size {size}"
            )
    return values
