"""What users bring where something else is wanted, in words: the remedy differs by the kind."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NoReturn

import numpy as np
import torch
import xarray as xr
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator
from torch import nn


class Shown:
    """What notebooks show as a small table, and a drawing where there is one."""

    def _noun(self) -> str:
        """What this is, for messages that want something else."""
        return f"a {type(self).__name__}"

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(
            f"{self._noun()} is no array: take what it holds, such as np.asarray(lin.states), or "
            "the matrix of an operator, lin.flow.to_dense()"
        )

    def _repr_html_(self) -> str:
        return table_of(self)


@singledispatch
def table_of(thing: Any) -> str:
    """Return the HTML that shows `thing`; :mod:`kpops.html` knows the kinds."""
    raise TypeError(f"no table is known of a {type(thing).__name__}")


def described(thing: Any) -> str:
    """Return what `thing` is, as a noun.

    Examples
    --------
    >>> import torch
    >>> from kpops.kinds import described
    >>> described(torch.nn.GRU), described(torch.nn.GRU(2, 3)), described("flow")
    ('the class GRU', 'a model (GRU)', "the string 'flow'")
    """
    if thing is None:
        return "None"
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, str):
        return f"the string {thing!r}"
    if isinstance(thing, Shown):
        return thing._noun()
    if isinstance(thing, nn.Module):
        return f"a model ({type(thing).__name__})"
    if isinstance(thing, xr.Dataset):
        return f"a Dataset of {', '.join(map(str, thing.data_vars)) or 'nothing'}"
    if isinstance(thing, xr.DataArray):
        return f"a DataArray with dims {thing.dims}"
    if isinstance(thing, Mapping | list | tuple):
        name = type(thing).__name__
        return f"{_article(name)} {name} of {len(thing)}"
    if callable(thing):
        return f"the function {getattr(thing, '__name__', type(thing).__name__)}"
    if isinstance(thing, int | float | complex):
        return f"the number {thing!r}"
    if isinstance(thing, torch.Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, np.ndarray):
        return f"an array of shape {thing.shape}"
    return f"{_article(type(thing).__name__)} {type(thing).__name__}"


def is_array(thing: Any) -> bool:
    """Whether `thing` is an array, a tensor, a DataArray, or a list that may become one."""
    if isinstance(thing, list | tuple | torch.Tensor):
        return True
    other = isinstance(thing, type | xr.Dataset | Shown)
    return hasattr(thing, "__array__") and not other


def is_operator(thing: Any) -> bool:
    """Whether `thing` is an operator by how it acts, ours or another's, and no dense array."""
    if isinstance(thing, type):
        return False
    duck = hasattr(thing, "shape") and hasattr(thing, "matvec")
    return isinstance(thing, LinearOperator) or issparse(thing) or duck


def number_of(thing: Any) -> Any:
    """A number, also of an array without dims; None if it is none."""
    if isinstance(thing, numbers.Number | str | bytes):
        return thing
    if getattr(thing, "ndim", None) == 0 and hasattr(thing, "item"):
        return thing.item()
    return None


def refuse_number(thing: Any) -> None:
    """Refuse a number, or a string, where a vector is wanted."""
    if isinstance(thing, str | bytes):
        raise TypeError(f"an operator is applied to {described(thing)}: apply it to a vector")
    if number_of(thing) is not None:
        raise ValueError("Scalar operands are not allowed, use '*' instead")  # as SciPy says


def no_operator(thing: Any, argument: str = "op") -> TypeError:
    """Return the error for what is passed where an operator is wanted."""
    return TypeError(f"{argument} is {described(thing)}, no operator: {_operator_remedy(thing)}")


def _operator_remedy(thing: Any) -> str:
    if isinstance(thing, Shown) and hasattr(type(thing), "flow"):  # a Linearization
        return "pass one of those that it hands out, such as lin.flow, lin.K or lin.P"
    if isinstance(thing, nn.Module):
        return "linearise it and pass, for example, kpops.linearize(model, inputs).flow"
    if isinstance(thing, xr.Dataset):
        return "linearise a model, and pass, for example, kpops.linearize(model, task.inputs).flow"
    if isinstance(thing, xr.DataArray):
        return "for a matrix pass its .values"
    if isinstance(thing, Mapping | list | tuple):
        return "pass one operator, or their sum; a matrix as an array"
    if callable(thing) and not isinstance(thing, type):
        return "wrap it, scipy.sparse.linalg.LinearOperator((m, n), matvec=f, rmatvec=f_adjoint)"
    return (
        "pass an operator of a Linearization such as lin.flow, a SciPy LinearOperator, a matrix, "
        "or an object with shape, matvec and rmatvec"
    )


def _article(name: str) -> str:
    return "an" if name[0].lower() in "aeiou" else "a"
