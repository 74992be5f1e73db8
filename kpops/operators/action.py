"""What an operator does to arrays: a counted action on tensors, and the arrays of users."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from kpops import work
from kpops.arrays import is_cupy, numpy_dtype
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.memory import ALWAYS_FITS, free_bytes, named_allocations, readable
from kpops.kinds import Shown, described, is_array
from kpops.labels import Space, enter
from kpops.maturity import warn_renamed
from kpops.operators.shapes import Given, Image, InCodomain, InDomain
from kpops.precision import remark


class Action(LinearOperator, Shown):
    """A linear map between labelled spaces, before any algebra.

    :class:`kpops.TrajectoryOperator`, which users hold, inherits it. Vectors come as NumPy, torch
    or CuPy arrays or as DataArrays, and results are of the same kind; inside there are tensors
    ``(block, *dims)``. An operator has no entries, so whatever reads them is refused.
    """

    # NumPy and torch hand ``array @ op`` and ``tensor @ op`` to this class.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(
        self,
        domain: Space,
        codomain: Space,
        *,
        dtype: torch.dtype,
        device: torch.device,
        symbol: str,
        self_adjoint: bool = False,
        positive: bool = False,
        attrs: Mapping[str, str] | None = None,
        precision: str | None = None,
    ) -> None:
        super().__init__(numpy_dtype(dtype), (codomain.total, domain.total))
        self.domain = domain
        self.codomain = codomain
        self.torch_dtype = dtype
        self.device = torch.device(device)
        self.precision = precision
        self.symbol = symbol
        self.self_adjoint = self_adjoint
        self.positive = positive
        self.attrs = dict(attrs or {})
        self.block_diagonal_dims: tuple[str, ...] = ()
        self.parts = codomain.parts if codomain.parts.many else domain.parts  # processes in step
        self._count = 0

    def alike(self, *others: Action) -> dict[str, Any]:
        """Arguments of an operator made of this one and others: the provenance they agree on.

        Operators of different precisions are refused.
        """
        pairs = dict.fromkeys(pair for op in (self, *others) for pair in op.attrs.items())
        names = [name for name, _ in pairs]
        common = {name: value for name, value in pairs if names.count(name) == 1}
        by_precision = {op.precision: op for op in (self, *others) if op.precision is not None}
        if len(by_precision) > 1:
            (p, a), (q, b) = by_precision.items()
            raise ValueError(
                f"{a!r} computes at precision={p!r}, {b!r} at {q!r}: linearise both with the same "
                "precision="
            )
        known = {"dtype": self.torch_dtype, "device": self.device, "attrs": common}
        return {**known, "precision": next(iter(by_precision), None)}

    @property
    def uncoupled(self) -> tuple[str, ...]:
        """The old name of `block_diagonal_dims`."""
        warn_renamed("uncoupled", "block_diagonal_dims")
        return self.block_diagonal_dims

    # What a subclass implements.

    pools_trials = False
    """Whether the side of the action that has no trials is a sum over them, and so over processes;
    compositions leave that to their factors."""
    is_composed = False
    """Whether the action is that of other operators."""

    def _apply(self, q: InDomain) -> InCodomain:
        raise NotImplementedError

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        if self.self_adjoint:
            return self._apply(q)
        raise NotImplementedError

    # What composition and solvers call: tensors in, tensors out, counted.

    @property
    def num_matvecs(self) -> int:
        """Number of vectors that the operator or its adjoint has been applied to."""
        return self._count

    def count(self, n_vectors: int) -> None:
        """Add to :attr:`num_matvecs`."""
        self._count += n_vectors

    def apply(self, block: InDomain) -> InCodomain:
        """Map a block of vectors on the device to ``(block, *codomain.shape)``."""
        return self._pooled(self._counted(self._apply, block, self.codomain), self.codomain)

    def apply_adjoint(self, block: InCodomain) -> InDomain:
        """Map a block of vectors on the device to ``(block, *domain.shape)`` by the adjoint."""
        return self._pooled(self._counted(self._apply_adjoint, block, self.domain), self.domain)

    def _pooled(self, image: Image, space: Space) -> Image:
        """Add up what the processes have of an image in a space without trials."""
        return self.parts.sum(image) if self.pools_trials and not space.parts.many else image

    def _counted(self, act: Callable[[Tensor], Tensor], block: Given, space: Space) -> Image:
        if block.dtype != self.torch_dtype:  # a compiled kernel would read other bytes
            raise TypeError(
                f"a block of {block.dtype} for {self!r}: convert it by block.to({self.torch_dtype})"
            )
        if len(block) == 0:
            return block.new_empty(0, *space.shape)
        # Processes must not split a block into pieces by their own free memory while they add up:
        # factors, each of which computes before it adds up, split theirs.
        splits = not (self.is_composed and self.parts.many)
        needed = splits * self._numbers_per_vector() * self.dtype.itemsize
        results = (self.domain.size + self.codomain.size) * self.dtype.itemsize
        what = named_allocations(lambda: f"applying {self!r} to {len(block)} vectors")
        with exclusive_compute(self.device, self.precision or "highest"), what:
            self.count(len(block))
            if block.is_inference():  # torch.func could not save it for a backward pass
                block = block.clone()
            block = block.contiguous()
            return work.product(lambda: _chunked(act, block, needed, results), len(block))

    def _numbers_per_vector(self) -> int:
        """Numbers that the action holds at once for each vector, beside argument and result."""
        return self.domain.size + self.codomain.size

    # The boundary.

    def _act(self, q: Any) -> Any:
        if not is_array(q) and not is_cupy(q):
            raise TypeError(
                f"{self!r} is applied to {described(q)}: pass a vector as an array, tensor or "
                "DataArray, or an operator"
            )
        if isinstance(q, Tensor) and q.is_complex():
            return torch.complex(self @ q.real, self @ q.imag)
        if not isinstance(q, Tensor) and not is_cupy(q) and np.iscomplexobj(q):
            return self @ np.real(q) + 1j * (self @ np.imag(q))
        block, restore = enter(q, self.domain, self.torch_dtype, self.device)
        return restore(self.apply(block), self.codomain)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        self._refuse_scipy()
        return self._act(X)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self._refuse_scipy()
        # SciPy passes (n,), (n, 1) or, from 1.18 on, rows (..., n), and reshapes the result.
        rows = np.reshape(x, (-1, self.shape[1]))
        return self._act(rows.T).T

    def _refuse_scipy(self) -> None:
        if self.parts.many:
            raise ValueError(
                f"{self!r} is spread over {len(self.parts.counts)} processes, whose vectors SciPy "
                "cannot add up: use kpops.eigsh, svds, trace and the like, or op @ q"
            )

    # What only arrays have.

    def __bool__(self) -> NoReturn:
        raise TypeError(f"the truth of {self!r} is not defined: use 'op is not None'")

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object; a comparison with an array is refused."""
        if hasattr(other, "__array__") and not isinstance(other, Action | type):
            self._refuse_entries()
        return self is other

    __hash__ = object.__hash__

    def _refuse_entries(self, *_: Any, **__: Any) -> NoReturn:
        rows, columns = self.shape
        raise TypeError(
            f"{self!r} is matrix-free, neither array nor sequence: op.to_dense() makes the matrix, "
            f"{rows} x {columns}, which takes {readable(rows * columns * self.dtype.itemsize)}; "
            "op.select(...) restricts it; kpops.eigsh, svds, trace and scipy.sparse.linalg take it "
            "as it is, and op @ x applies it"
        )

    __array__ = __len__ = __getitem__ = _refuse_entries

    def _noun(self) -> str:
        return f"the operator {self!r}"

    def __repr__(self) -> str:
        spaces = repr(self.domain)
        if self.codomain != self.domain:
            spaces += f" -> {self.codomain!r}"
        kind = ", PSD" if self.positive else ", self-adjoint" if self.self_adjoint else ""
        dtype = str(self.torch_dtype).removeprefix("torch.")
        dtype += remark(self.precision)
        return f"<{self.symbol} {spaces}, {dtype} on {self.device}{kind}>"


def check_same(a: Action, b: Action, of_a: str, of_b: str) -> None:
    """Refuse two operators whose spaces, dtypes or devices differ."""
    space_a, space_b = getattr(a, of_a), getattr(b, of_b)
    if space_a != space_b:
        labels = space_a.misaligned(space_b) if space_a.dims == space_b.dims else []
        detail = f"; the labels of {labels} differ" if labels else ""
        raise ValueError(
            f"{of_a} of {a!r} is {space_a}, {of_b} of {b!r} is {space_b}: they must be equal"
            + detail
        )
    if (a.torch_dtype, a.device) != (b.torch_dtype, b.device):
        raise ValueError(
            f"{a!r} and {b!r} compute in different dtypes or on different devices: linearise both "
            "with the same dtype= and device="
        )


def _chunked(act: Callable[[Tensor], Tensor], block: Given, needed: int, results: int) -> Image:
    """Apply `act` to as many vectors of a block at a time as memory allows.

    For each vector, argument and result take `results` bytes, and the action `needed` beside.
    """
    if needed * len(block) <= ALWAYS_FITS:
        return act(block)
    room = free_bytes(block.device) // 2 - results * len(block)
    size = max(1, room // needed)
    if size >= len(block):
        return act(block)
    # Pieces of one size, the last of which begins early: a recorded loop has a fixed shape.
    size = math.ceil(len(block) / math.ceil(len(block) / size))
    whole: Tensor | None = None
    for start in range(0, len(block), size):
        first = min(start, len(block) - size)
        part = slice(first, first + size)
        piece = act(block[part])
        if whole is None:
            whole = piece.new_empty(len(block), *piece.shape[1:])
        whole[part] = piece
    assert whole is not None
    return whole
