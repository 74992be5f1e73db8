"""What Python's operators mean between operators, numbers and arrays."""

from __future__ import annotations

import numbers
from typing import Any, NoReturn

from scipy.sparse.linalg import LinearOperator

from kpops.engines.memory import readable
from kpops.kinds import described


class Arithmetic(LinearOperator):
    """The algebra of a :class:`kpops.TrajectoryOperator`, which inherits it.

    ``A @ B``, ``A + B``, ``A - B``, ``2 * A``, ``A / 2`` and ``A ** 2`` are operators, ``A @ x``
    and, as in SciPy, ``A * x`` apply to an array. Operators of others take part: SciPy's, sparse
    matrices, and whatever has ``shape``, ``matvec`` and ``rmatvec``; see
    :class:`kpops.operators.ForeignOperator`. What an array would be asked for is refused, since an
    operator has no entries.
    """

    # NumPy and torch hand ``array @ op`` and ``tensor @ op`` to this class.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __matmul__(self, other: Any) -> Any:
        if _is_operator(other):
            theirs = self._beside(other, codomain=self.domain)
            if theirs is None:
                return LinearOperator.dot(self, other)
            from kpops.operators.compose import Product

            return Product(self, theirs)
        _refuse_number(other)
        return self._act(other)

    def __rmatmul__(self, other: Any) -> Any:
        if _is_operator(other):
            return self._beside(other, domain=self.codomain) @ self
        _refuse_number(other)
        if getattr(other, "ndim", 1) == 2 and other.shape[-1] == self.shape[0]:
            return (self.T @ other.T).T  # rows are the vectors
        return self.T @ other

    def __call__(self, q: Any) -> Any:
        """Apply to `q`; the same as ``op @ q``."""
        return self @ q

    def __mul__(self, other: Any) -> Any:
        factor = _number(other)
        if factor is None:
            return self @ other
        from kpops.operators.compose import Scaled

        return Scaled(self, factor)

    def __rmul__(self, other: Any) -> Any:
        return other @ self if _number(other) is None else self * other

    def __truediv__(self, other: Any) -> Any:
        divisor = _number(other)
        if not isinstance(divisor, numbers.Real):
            raise TypeError(f"{self!r} is divided by {described(other)}: divide by a real number")
        if divisor == 0:
            raise ZeroDivisionError(f"{self!r} is divided by zero")
        return self * (1 / divisor)

    def __pow__(self, power: Any) -> Any:
        whole = isinstance(power, numbers.Integral) and not isinstance(power, bool)
        if not whole or power < 1:
            raise ValueError(f"{self!r} to the power {power!r}: choose an int of 1 or more")
        from kpops.operators.compose import Product

        return self if power == 1 else Product(*[self] * int(power))

    def __neg__(self) -> Any:
        return self * -1.0

    def __add__(self, other: Any) -> Any:
        return self._plus(other, 1)

    def __radd__(self, other: Any) -> Any:
        return self._plus(other, 1)

    def __sub__(self, other: Any) -> Any:
        return self._plus(other, -1)

    def __rsub__(self, other: Any) -> Any:
        return (-self)._plus(other, 1)

    def _plus(self, other: Any, sign: int) -> Any:
        if not _is_operator(other):
            number = _number(other)
            if isinstance(number, numbers.Real) and number == 0:
                return self  # sum() starts at 0
            raise TypeError(
                f"{self!r} and {described(other)} do not add up: add an operator; a number times "
                "scipy.sparse.eye_array(n), or a matrix as scipy.sparse.linalg.aslinearoperator(a)"
            )
        theirs = self._beside(other, domain=self.domain, codomain=self.codomain)
        if theirs is None:
            return LinearOperator.__add__(self, sign * other)
        from kpops.operators.compose import Sum

        return Sum(self, theirs if sign == 1 else -theirs)

    def dot(self, x: Any) -> Any:
        """Apply, compose or scale, as SciPy's ``LinearOperator.dot`` does."""
        return self * x

    def _beside(self, other: Any, **spaces: Any) -> Any:
        """The operator as one of ours, next to this one; None if it is complex, for SciPy."""
        from kpops.operators.foreign import ForeignOperator, is_complex

        if isinstance(other, Arithmetic):
            return other
        if isinstance(other, LinearOperator) and is_complex(other):
            return None
        return ForeignOperator(other, **spaces, dtype=self.torch_dtype, device=self.device)

    # What only arrays have.

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        self._refuse_entries()

    def __len__(self) -> NoReturn:
        self._refuse_entries()

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse_entries()

    def __bool__(self) -> NoReturn:
        raise TypeError(f"the truth of {self!r} is not defined: use 'op is not None'")

    def __eq__(self, other: object) -> bool:
        """Whether both are the same object; arrays are not compared with."""
        if hasattr(other, "__array__") and not isinstance(other, Arithmetic | type):
            self._refuse_entries()
        return self is other

    __hash__ = object.__hash__

    def _refuse_entries(self) -> NoReturn:
        rows, columns = self.shape
        raise TypeError(
            f"{self!r} is matrix-free, no array and no sequence: op.to_dense() makes the matrix, "
            f"{rows} x {columns}, which takes {readable(rows * columns * self.dtype.itemsize)}; "
            "op.select(...) restricts it; kpops.eigsh, svds, trace and scipy.sparse.linalg take it "
            "as it is, and op @ x applies it"
        )


def _is_operator(thing: Any) -> bool:
    from kpops.operators.foreign import acts

    return isinstance(thing, Arithmetic) or acts(thing)


def _number(thing: Any) -> Any:
    """A number, also of an array without dims; None if it is none."""
    if isinstance(thing, numbers.Number | str | bytes):
        return thing
    if getattr(thing, "ndim", None) == 0 and hasattr(thing, "item"):
        return thing.item()
    return None


def _refuse_number(thing: Any) -> None:
    if isinstance(thing, str | bytes):
        raise TypeError(f"an operator is applied to {described(thing)}: apply it to a vector")
    if _number(thing) is not None:
        raise ValueError("Scalar operands are not allowed, use '*' instead")  # as SciPy says
