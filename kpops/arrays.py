"""The one door for the arrays of users, which must be real numbers, and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse import issparse
from torch import Tensor

from kpops.kinds import described


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """NumPy dtype of a torch dtype, which must be float32 or float64."""
    if dtype not in _DTYPES:
        raise TypeError(
            f"dtype {dtype} is not supported: use torch.float32 or torch.float64, "
            "for example by dtype=torch.float32 in kpops.linearize"
        )
    return _DTYPES[dtype]


_DTYPES: dict[torch.dtype, np.dtype] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """NumPy array of a tensor, which shares its memory on the host."""
    return tensor.detach().cpu().numpy()


def is_cupy(array: Any) -> bool:
    """Whether `array` is a CuPy array, without importing CuPy."""
    return type(array).__module__.partition(".")[0] == "cupy"


@contextmanager
def current_gpu(index: int | None) -> Iterator[None]:
    """Make a GPU the current one of CuPy and of torch, which exchange arrays on no other."""
    import cupy

    with cupy.cuda.Device(index), torch.cuda.device(index):
        yield


def as_cupy(tensor: Tensor) -> Any:
    """CuPy array of a tensor on a GPU, which shares its memory."""
    import cupy

    with current_gpu(tensor.device.index):
        return cupy.from_dlpack(tensor.contiguous())


def as_tensor(array: Any, name: str) -> Tensor:
    """Detached tensor of real numbers, which shares the memory of the array where possible.

    Anything else is refused by `name`.
    """
    if isinstance(array, list | tuple) and array and all(isinstance(a, Tensor) for a in array):
        if len({a.shape for a in array}) > 1:
            raise ValueError(f"{name} is a list of tensors of different shapes: {_RAGGED}")
        array = torch.stack([a.detach() for a in array])
    if isinstance(array, Tensor):
        return _checked(array, name)
    if is_cupy(array):
        with current_gpu(array.device.id):
            tensor = torch.utils.dlpack.from_dlpack(array)
        return _checked(tensor, name)
    if isinstance(array, xr.Dataset):
        one = name if name in array else next(iter(array), name)
        raise TypeError(f"{name} is {described(array)}: pass one variable, such as task.{one}")
    if issparse(array):
        raise TypeError(f"{name} is a sparse {type(array).__name__}: pass {name}.toarray()")
    if np.ma.is_masked(array):
        raise TypeError(f"{name} has masked entries, which would be lost: pass a plain array")
    try:
        values = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array of one shape ({error}): {_RAGGED}") from None
    except TypeError:  # from __array__
        raise TypeError(f"{name} is {described(array)}: pass an array of real numbers") from None
    if values.dtype.kind == "c":
        raise TypeError(f"{name} is {_COMPLEX}")
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
        what = f"of dtype {values.dtype}" if values.ndim else described(array)
        hint = _NOT_REAL.get(values.dtype.kind, "pass an array of real numbers")
        raise TypeError(f"{name} is {what}: {hint}")
    backwards = min(values.strides, default=0) < 0
    if backwards or not values.flags.writeable or not values.dtype.isnative:  # torch takes none
        values = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(values)


def refuse_complex(named: Iterable[tuple[str, Any]], owner: str) -> None:
    """Refuse complex tensors among the named ones of `owner`; a cast would change them."""
    for name, tensor in named:
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise TypeError(
                f"{name} of {owner} is complex ({tensor.dtype}), and kpops computes with real "
                "numbers: keep real and imaginary part as two real tensors, and join them by "
                "torch.complex in the forward"
            )


_RAGGED = "pad it to one length, and give kpops.linearize its mask"
_COMPLEX = "complex: pass real and imaginary part as two real arrays"
_NOT_REAL = {
    "f": "convert it to float64",
    "U": "strings are no numbers; label them, for example by torch.nn.functional.one_hot",
    "M": "dates are no numbers; pass them as the coordinate of a DataArray",
    "m": "durations are no numbers; divide by a unit, such as np.timedelta64(1, 's')",
}


def _checked(tensor: Tensor, name: str) -> Tensor:
    if tensor.is_complex():
        raise TypeError(f"{name} is {_COMPLEX}")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise TypeError(f"{name} is a nested or sparse tensor: pass a dense one, by to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name} is quantized ({tensor.dtype}): pass {name}.dequantize()")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the device meta, where there are no numbers: load them")
    return tensor.detach()
