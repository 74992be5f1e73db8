"""The operator a user holds: a SciPy LinearOperator that computes in torch and keeps labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import is_cupy
from kpops.engines.base import ONE_AT_A_TIME
from kpops.engines.memory import named_allocations
from kpops.kinds import described, is_array
from kpops.labels import Shown, Space, enter, numpy_dtype, to_numpy
from kpops.operators.arithmetic import Arithmetic
from kpops.operators.pieces import in_pieces

if TYPE_CHECKING:
    from kpops.engines.unit_blocks import UnitBlocks


class TrajectoryOperator(Arithmetic, Shown):
    """A linear operator between labelled spaces.

    It is a :class:`scipy.sparse.linalg.LinearOperator` and goes into any SciPy solver as it is.
    ``op @ q`` also takes torch and CuPy arrays, arrays with the dims of the space and labelled
    DataArrays, and gives back the kind it was given. ``A @ B``, ``A + B``, ``A - B`` and
    ``2 * A`` of two such operators stay on the device and keep labels.

    A subclass implements :meth:`_apply` and :meth:`_apply_adjoint` on tensors of shape
    ``(block, *dims)``; everything else is here.

    Parameters
    ----------
    domain, codomain : Space
        What the operator maps from and to.
    dtype : torch.dtype
        float32 or float64, in which it computes.
    device : torch.device
        Where it computes.
    symbol : str
        How the operator is written in theory, for the repr.
    self_adjoint, positive : bool
        Whether it is known to be self-adjoint, and known to be positive semi-definite.
    attrs : mapping, optional
        Provenance, which results made from the operator carry.

    Attributes
    ----------
    domain, codomain : Space
        What the operator maps from and to.
    dtype : numpy.dtype
        In which it computes, as SciPy wants to know it.
    torch_dtype : torch.dtype
        The same for torch.
    device : torch.device
        Where it computes.
    self_adjoint, positive : bool
        What is known of its structure.
    attrs : dict of str to str
        Provenance: model, measure, engine.
    uncoupled : tuple of str
        Dims whose positions are known not to be coupled: the operator is block diagonal over them.
    """

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
    ) -> None:
        super().__init__(numpy_dtype(dtype), (codomain.size, domain.size))
        self.domain = domain
        self.codomain = codomain
        self.torch_dtype = dtype
        self.device = torch.device(device)
        self.symbol = symbol
        self.self_adjoint = self_adjoint
        self.positive = positive
        self.attrs = dict(attrs or {})
        self.uncoupled: tuple[str, ...] = ()
        self._count = 0

    # What a subclass implements.

    def _apply(self, block: Tensor) -> Tensor:
        """Map (block, *domain.shape) to (block, *codomain.shape)."""
        raise NotImplementedError

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        """Map (block, *codomain.shape) to (block, *domain.shape)."""
        raise NotImplementedError

    # What composition and solvers call: tensors in, tensors out, counted.

    @property
    def num_matvecs(self) -> int:
        """Number of vectors that the operator or its adjoint has been applied to."""
        return self._count

    def count(self, n_vectors: int) -> None:
        """Take note that the operator has been applied to so many vectors."""
        self._count += n_vectors

    def apply(self, block: Tensor) -> Tensor:
        """Apply to a block of vectors on the device.

        Parameters
        ----------
        block : Tensor
            Of shape ``(block, *domain.shape)``.

        Returns
        -------
        Tensor
            Of shape ``(block, *codomain.shape)``.
        """
        return self._counted(self._apply, block, self.codomain)

    def apply_adjoint(self, block: Tensor) -> Tensor:
        """Apply the adjoint to a block of vectors on the device; see :meth:`apply`."""
        return self._counted(self._apply_adjoint, block, self.domain)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _counted(self, act: Callable[[Tensor], Tensor], block: Tensor, space: Space) -> Tensor:
        if len(block) == 0:
            return block.new_empty(0, *space.shape)
        if block.is_inference():  # torch.func could not save it for a backward pass
            block = block.clone()
        # Autocast would compute in a lower precision than the dtype says.
        needed = self._numbers_per_vector() * self.dtype.itemsize
        results = (self.domain.size + self.codomain.size) * self.dtype.itemsize
        what = named_allocations(lambda: f"a product of {self!r} with {len(block)} vectors")
        with ONE_AT_A_TIME, torch.autocast(self.device.type, enabled=False), what:
            self.count(len(block))
            block = block.contiguous()
            return work.product(lambda: in_pieces(act, block, needed, results), len(block))

    def _numbers_per_vector(self) -> int:
        """Numbers that the action needs at once for each vector, beside argument and result."""
        return self.domain.size + self.codomain.size

    # Structure, for those who can use it.

    @cached_property
    def root(self) -> TrajectoryOperator | None:
        """R with ``op = R R*``, where it is known of a positive operator; else None."""
        return self._make_root() if self.positive else None

    def _make_root(self) -> TrajectoryOperator | None:
        return None

    def unit_blocks(self) -> UnitBlocks | None:
        """Return the operator unit by unit, where it is known to couple no two; else None."""
        return None

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
            return self @ np.real(q) + 1j * (self @ np.imag(q))  # real operator, by linearity
        block, restore = enter(q, self.domain, self.torch_dtype, self.device)
        return restore(self.apply(block), self.codomain)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._act(X)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        # SciPy passes (n,), (n, 1) or, from 1.18 on, rows (..., n), and reshapes what it gets.
        rows = np.reshape(x, (-1, self.shape[1]))
        return self._act(rows.T).T

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return self.H._matmat(X)

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self.H._matvec(x)

    def _adjoint(self) -> TrajectoryOperator:
        if self.self_adjoint:
            return self
        from kpops.operators.compose import Adjoint

        return Adjoint(self)

    def _transpose(self) -> TrajectoryOperator:
        return self._adjoint()  # real operators

    # Views.

    def select(self, **positions: Any) -> TrajectoryOperator:
        """Restrict the operator to a part of its domain and codomain.

        Parameters
        ----------
        **positions
            Dim name to positions along it (as in ``xarray.Dataset.isel``): an int, a slice, an
            array of ints or a boolean mask. For ``parameter`` also one or more parameter names.
            A side that lacks the dim stays whole.

        Returns
        -------
        TrajectoryOperator
            ``R op R*`` with R the restriction; the selected dims all remain, so that a single
            trial keeps a trial dim of size 1.

        Examples
        --------
        >>> import torch, kpops
        >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
        >>> lin.P.select(trial=0, time=slice(2, 5))
        <R P R* (trial: 1, time: 3, unit: 4), float32 on cpu>
        """
        from kpops.operators.reduce import Restriction

        unknown = sorted(set(positions) - set(self.domain.dims) - set(self.codomain.dims))
        if unknown:
            known = list(dict.fromkeys((*self.domain.dims, *self.codomain.dims)))
            raise ValueError(f"no dim {unknown} in {self!r}: choose from {known}")

        def restriction(space: Space) -> Restriction | None:
            here = {d: p for d, p in positions.items() if d in space.dims}
            return Restriction(space, here, self.torch_dtype, self.device) if here else None

        left = restriction(self.codomain)
        right = left if self.domain == self.codomain else restriction(self.domain)
        result = self if left is None else left @ self
        return result if right is None else result @ right.H

    def expand_average(self, keep: tuple[str, ...]) -> TrajectoryOperator:
        """Reduce to fewer dims by copying in and averaging out.

        The input is copied along the dims that are not kept, and what the operator makes of it is
        averaged over them: what the figures of the KPFlow paper show, and no partial trace.

        Parameters
        ----------
        keep : tuple of str
            Dims to keep, for example ``("time",)``.

        Returns
        -------
        TrajectoryOperator
        """
        from kpops.operators.reduce import expand_average

        return expand_average(self, keep)

    def partial_trace(
        self, keep: tuple[str, ...], *, num_probes: int | None = None, rng: Any = None
    ) -> TrajectoryOperator:
        """Reduce to fewer dims by summing over equal positions of the others.

        Parameters
        ----------
        keep : tuple of str
            Dims to keep, for example ``("time",)``.
        num_probes : int, optional
            Estimate the sum without bias with so many random probes, drawn once: as a
            :class:`kpops.operators.ProbedTrace` or :class:`kpops.operators.ProbedGram`. Default:
            :class:`kpops.operators.PartialTrace`, exact, a product for each coupled position.
        rng : int, Generator or None
            Source of the probes.

        Returns
        -------
        TrajectoryOperator
            On the kept dims; as symmetric, and as positive, as this operator.

        Examples
        --------
        >>> import torch, kpops
        >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
        >>> float(lin.P.partial_trace(keep=("time",)).to_dense()[0, 0])  # 5 trials of 4 units
        20.0
        """
        from kpops.operators.partial_trace import partial_trace

        return partial_trace(self, keep, num_probes, rng)

    def to_dense(self) -> np.ndarray:
        """Return the matrix, shape (codomain.size, domain.size), as a NumPy array.

        Raises
        ------
        MemoryError
            If it would not fit.
        """
        return to_numpy(self.dense_tensor())

    def dense_tensor(self) -> Tensor:
        """Return the matrix as a tensor on the operator's device; see :meth:`to_dense`."""
        from kpops.operators.dense import dense_blocks

        return dense_blocks(self, ())[0]

    def to_cupy(self) -> Any:
        """Export to ``cupyx.scipy.sparse.linalg.LinearOperator`` without copying.

        Raises
        ------
        ValueError, ImportError
            If the operator is not on a CUDA device; if CuPy is not installed.
        """
        from kpops.operators.cupy import to_cupy

        return to_cupy(self)

    # The functions of kpops.spectral, as methods.

    def eigsh(self, k: int = 6, **options: Any) -> xr.Dataset:
        """Leading eigenvalues and eigenfunctions: :func:`kpops.eigsh` of this operator.

        Examples
        --------
        >>> import torch, kpops
        >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
        >>> lin.flow.eigsh(k=2, rng=0).eigenvalue.sizes
        Frozen({'mode': 2})
        """
        return _spectral("eigsh")(self, k, **options)

    def svds(self, k: int = 6, **options: Any) -> xr.Dataset:
        """Leading singular values and functions: :func:`kpops.svds` of this operator."""
        return _spectral("svds")(self, k, **options)

    def trace(self, **options: Any) -> xr.Dataset:
        """Trace, with its standard error: :func:`kpops.trace` of this operator."""
        return _spectral("trace")(self, **options)

    def norm(self, kind: str = "frobenius", **options: Any) -> xr.Dataset:
        """Norm of this operator, by its name.

        Parameters
        ----------
        kind : {"frobenius", "spectral"}
            :func:`kpops.frobenius_norm` or :func:`kpops.spectral_norm`;
            :func:`kpops.schatten_norm` has the others.
        **options
            Of that function.

        Returns
        -------
        Dataset
        """
        if kind not in ("frobenius", "spectral"):
            raise ValueError(
                f"kind={kind!r}: choose 'frobenius' or 'spectral'; see also kpops.schatten_norm"
            )
        return _spectral(f"{kind}_norm")(self, **options)

    def _noun(self) -> str:
        return f"the operator {self!r}"

    def __getstate__(self) -> dict:
        return {**self.__dict__}  # at once: other threads may add to it while it is pickled

    def __repr__(self) -> str:
        spaces = repr(self.domain)
        if self.codomain != self.domain:
            spaces += f" -> {self.codomain!r}"
        kind = ", PSD" if self.positive else ", self-adjoint" if self.self_adjoint else ""
        dtype = str(self.torch_dtype).removeprefix("torch.")
        return f"<{self.symbol} {spaces}, {dtype} on {self.device}{kind}>"


def _spectral(name: str) -> Callable[..., xr.Dataset]:
    """A function of the room to the right, of which operators know nothing else."""
    from kpops import spectral

    return getattr(spectral, name)
