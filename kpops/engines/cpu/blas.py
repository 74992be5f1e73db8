"""Matrix products for compiled code: the BLAS that PyTorch brings, callable from Numba.

Numba's own ``np.dot`` calls the OpenBLAS of SciPy, which needs many rows to be fast. The recursion
through time multiplies few rows at a time, where the MKL inside PyTorch is two to three times
faster. It is used where PyTorch exports it. Matrices are row-major.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import get_cython_function_address, intrinsic
from numba.np.arrayobj import make_array
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


def process_limited(threads: int) -> AbstractContextManager[object]:
    """Limit SciPy's BLAS to so many threads, where it is the one that is called."""
    if _torch_blas() is not None:
        return nullcontext()
    return _scipy_blas().limit(limits=threads, user_api="blas")


@cache
def _scipy_blas() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def limiter() -> Callable[[int], int]:
    """Limit PyTorch's BLAS to so many threads when called from this thread; returns the last."""
    library = _torch_blas()
    return (lambda threads: threads) if library is None else library.MKL_Set_Num_Threads_Local


def _product(typing, gemm, a, b, c, beta, transpose_a=False, transpose_b=False):
    """C = A B + beta C, with A^T or B^T if so said; rows may be strided, columns not.

    Of more than two dimensions, all but the first are the columns, side by side. `gemm` is the
    address of the routine. An intrinsic, since a compiled function would be compiled anew for each
    layout of the three.
    """
    # A row-major matrix is the transpose of a column-major one: C^T = B^T A^T.
    flags = [types.Omitted(f) if isinstance(f, bool) else f for f in (transpose_a, transpose_b)]
    signature = types.void(gemm, a, b, c, beta, *flags)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        integer, byte = ir.IntType(32), ir.IntType(8)

        def by_reference(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), byte.as_pointer())

        def largest(first: Any, second: Any) -> Any:
            return builder.select(builder.icmp_signed(">", first, second), first, second)

        def matrix(i: int) -> tuple[Any, tuple[Any, Any], Any]:
            """Address, sizes and leading dimension, which BLAS wants also of a single row."""
            array = make_array(signature.args[i])(context, builder, values[i])
            rows, *others = cgutils.unpack_tuple(builder, array.shape)
            columns = reduce(builder.mul, others)
            apart = builder.sdiv(builder.extract_value(array.strides, 0), array.itemsize)
            leading = largest(largest(apart, columns), ir.Constant(apart.type, 1))
            data = builder.bitcast(array.data, byte.as_pointer())
            return data, (rows, columns), by_reference(builder.trunc(leading, integer))

        def flag(i: int) -> Any:
            given = signature.args[i]
            known = isinstance(given, types.Omitted)
            return ir.Constant(ir.IntType(1), given.value) if known else values[i]

        (a, size_a, lda), (b, _, ldb), (c, size_c, ldc) = map(matrix, (1, 2, 3))
        of_a, of_b = flag(5), flag(6)
        inner = builder.select(of_a, *size_a)
        m, n, k = (by_reference(builder.trunc(x, integer)) for x in (*size_c[::-1], inner))
        letters = [
            builder.select(f, *(ir.Constant(byte, ord(x)) for x in "TN")) for f in (of_b, of_a)
        ]
        ta, tb = map(by_reference, letters)
        alpha, beta = by_reference(ir.Constant(values[4].type, 1.0)), by_reference(values[4])
        function_type = ir.FunctionType(ir.VoidType(), [byte.as_pointer()] * 13)
        function = builder.inttoptr(values[0], function_type.as_pointer())
        builder.call(function, (ta, tb, m, n, k, alpha, b, ldb, a, lda, beta, c, ldc))
        return context.get_dummy_value()

    return signature, codegen


product: Any = intrinsic(_product)
