"""Matrix products for compiled code: the BLAS that PyTorch brings, callable from Numba.

Numba's own ``np.dot`` calls the OpenBLAS of SciPy, which needs many rows to be fast. The recursion
through time multiplies few rows at a time, where the MKL inside PyTorch is two to three times
faster. It is used where PyTorch exports it. Matrices are row-major.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import ThreadpoolController


@cache
def _torch_blas() -> ctypes.CDLL | None:
    """PyTorch's library, if it holds an MKL whose threads can be limited from the outside."""
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob("*torch_cpu*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        if all(hasattr(library, n) for n in ("sgemm_", "dgemm_", "MKL_Set_Num_Threads_Local")):
            return library
    return None


@cache
def gemm_address(dtype: np.dtype) -> int:
    """Address of a Fortran ``sgemm`` or ``dgemm``."""
    letter = {"float32": "s", "float64": "d"}[np.dtype(dtype).name]
    library = _torch_blas()
    if library is None:
        return get_cython_function_address("scipy.linalg.cython_blas", f"{letter}gemm")
    pointer = ctypes.cast(getattr(library, f"{letter}gemm_"), ctypes.c_void_p).value
    assert pointer is not None
    return pointer


@contextmanager
def process_limited(threads: int) -> Iterator[None]:
    """Limit SciPy's BLAS to so many threads, where it is the one that is called."""
    if _torch_blas() is not None:
        yield
    else:
        with _scipy_blas().limit(limits=threads, user_api="blas"):
            yield


@cache
def _scipy_blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def thread_limited(threads: int) -> Iterator[None]:
    """Limit PyTorch's BLAS to so many threads when it is called from this thread."""
    library = _torch_blas()
    if library is None:
        yield
        return
    before = library.MKL_Set_Num_Threads_Local(threads)
    try:
        yield
    finally:
        library.MKL_Set_Num_Threads_Local(before)


@intrinsic
def _call(typing, address, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """Call the Fortran routine at `address`, which takes everything by reference."""
    signature = types.void(address, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc = values
        integer, byte = ir.IntType(32), ir.IntType(8)

        def by_reference(value: Any, kind: Any = None) -> Any:
            value = value if kind is None else builder.trunc(value, kind)
            slot = cgutils.alloca_once_value(builder, value)
            return builder.bitcast(slot, byte.as_pointer())

        def pointer(value: Any) -> Any:
            return builder.inttoptr(value, byte.as_pointer())

        m, n, k, lda, ldb, ldc = (by_reference(v, integer) for v in (m, n, k, lda, ldb, ldc))
        ta, tb = by_reference(ta, byte), by_reference(tb, byte)
        alpha, beta = by_reference(ir.Constant(beta.type, 1.0)), by_reference(beta)
        arguments = (ta, tb, m, n, k, alpha, pointer(a), lda, pointer(b), ldb, beta, pointer(c))
        function_type = ir.FunctionType(ir.VoidType(), [byte.as_pointer()] * 13)
        function = builder.inttoptr(address, function_type.as_pointer())
        builder.call(function, (*arguments, ldc))
        return context.get_dummy_value()

    return signature, codegen


_N, _T = ord("N"), ord("T")


@numba.njit(nogil=True, cache=True)
def _leading(matrix):
    """Distance of the rows. A single row or column may have any stride; BLAS wants the width."""
    return max(matrix.strides[0] // matrix.itemsize, matrix.shape[1], 1)


@numba.njit(nogil=True, cache=True)
def product(gemm, a, b, c, beta, transpose_a=False, transpose_b=False):
    """C = A B + beta C, with A^T or B^T if so said; rows may be strided, columns not.

    `gemm` is the address of the routine.
    """
    # A row-major matrix is the transpose of a column-major one: C^T = B^T A^T.
    _call(  # type: ignore[call-arg]  # the first argument is Numba's
        gemm, _T if transpose_b else _N, _T if transpose_a else _N, c.shape[1], c.shape[0],
        a.shape[0] if transpose_a else a.shape[1], b.ctypes.data, _leading(b), a.ctypes.data,
        _leading(a), beta, c.ctypes.data, _leading(c),
    )  # fmt: skip
