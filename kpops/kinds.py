"""Objects that users pass, in words, for messages that want something else."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, NoReturn

import numpy as np
import torch
import xarray as xr
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator
from torch import nn


class Shown:
    """An object that notebooks show as a small table, perhaps with a drawing."""

    def _noun(self) -> str:
        return f"a {type(self).__name__}"

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(
            f"{self._noun()} is no array: take one from it, such as np.asarray(lin.states), or "
            "the matrix of an operator, lin.flow.to_dense()"
        )

    def _repr_html_(self) -> str:
        return table_of(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__}  # a copy: other threads may add to it while it is pickled


@singledispatch
def table_of(thing: Any) -> str:
    """Return the HTML that shows `thing`; :mod:`kpops.html` knows the kinds."""
    raise TypeError(f"no table is known of a {type(thing).__name__}")


def described(thing: Any) -> str:
    """Return what `thing` is, as a noun: "the class GRU", "a model (GRU)", "a tensor of shape"."""
    for kind, noun in _NOUNS:
        if isinstance(thing, kind):
            return noun(thing)
    return _with_article(thing)


def _with_article(thing: Any) -> str:
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


_NOUNS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (type(None), repr),
    (type, lambda thing: f"the class {thing.__name__}"),
    (str, lambda thing: f"the string {thing!r}"),
    (Shown, lambda thing: thing._noun()),
    (nn.Module, lambda thing: f"a model ({type(thing).__name__})"),
    (xr.Dataset, lambda d: f"a Dataset of {', '.join(map(str, d.data_vars)) or 'nothing'}"),
    (xr.DataArray, lambda thing: f"a DataArray with dims {thing.dims}"),
    (Mapping | list | tuple, lambda thing: f"{_with_article(thing)} of {len(thing)}"),
    (Callable, lambda f: f"the function {getattr(f, '__name__', type(f).__name__)}"),
    (int | float | complex, lambda thing: f"the number {thing!r}"),
    (torch.Tensor, lambda thing: f"a tensor of shape {tuple(thing.shape)}"),
    (np.ndarray, lambda thing: f"an array of shape {thing.shape}"),
)


def has_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` accepts a keyword argument of that name."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY


def is_array(thing: Any) -> bool:
    """Whether `thing` is an array, a tensor, a DataArray, or a list that may become one."""
    if isinstance(thing, list | tuple | torch.Tensor):
        return True
    other = isinstance(thing, type | xr.Dataset | Shown)
    return hasattr(thing, "__array__") and not other


def is_operator(thing: Any) -> bool:
    """Whether `thing` acts as an operator, of kpops or another library; a dense array does not."""
    if isinstance(thing, type):
        return False
    duck = hasattr(thing, "shape") and hasattr(thing, "matvec")
    return isinstance(thing, LinearOperator) or issparse(thing) or duck


def number_of(thing: Any) -> Any:
    """A number, also from an array without dimensions; None if `thing` is neither."""
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
    """Return the error for a `thing` that is passed as an operator."""
    return TypeError(f"{argument} is {described(thing)}, no operator: {_operator_remedy(thing)}")


def _operator_remedy(thing: Any) -> str:
    if isinstance(thing, Shown) and hasattr(type(thing), "flow"):  # a Linearization
        return "pass one of its operators, such as lin.flow, lin.K or lin.P"
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
