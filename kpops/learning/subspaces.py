"""Subspaces of the parameters: operators restricted to one, and training in one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call

from kpops.arrays import as_tensor, numpy_dtype
from kpops.engines.memory import check_allocation
from kpops.engines.random_vectors import RandomVectors
from kpops.kinds import described
from kpops.labels import Space, disagreeing
from kpops.learning.required import require_linearization
from kpops.linalg.orthonormal import orthonormal
from kpops.linearization import Linearization
from kpops.operators import DenseOperator, Restriction, TrajectoryOperator
from kpops.scalars import check_count, generator


def subspace(lin: Linearization, basis: Any, *, rng: Any = None) -> TrajectoryOperator:
    """R: from coordinates in a subspace of the parameters to the parameters.

    ``J = lin.J @ R`` is the parameter Jacobian of a model that learns within the subspace only,
    ``J @ J.H`` its K, ``lin.P @ J @ J.H @ lin.P.H`` its flow operator P J R R* J* P*, and
    ``lin.sensitivity @ R`` the derivative of its states.

    Parameters
    ----------
    lin : Linearization
    basis : int, str, sequence of str, array_like or DataArray
        The dimension of a random subspace; or names of parameters; or vectors (parameter, d), of
        rank d, that span the subspace, in a DataArray with the dimension ``parameter``.
    rng : int, Generator or None
        Source of a random subspace.

    Returns
    -------
    TrajectoryOperator
        From (coordinate,), or from the named entries (parameter,), to (parameter,). Its columns are
        orthonormal, so ``R @ R.H`` is the orthogonal projection on the subspace.

    Raises
    ------
    ValueError
        If the dimension is out of range, a name is unknown, or vectors have the wrong shape, are
        not finite, or are linearly dependent to rounding.
    TypeError
        If `lin` is no linearization.
    MemoryError
        If the basis does not fit.

    Notes
    -----
    A random subspace is uniformly distributed: the span of d normal vectors. It depends on the seed
    and on the numbers of parameters and dimensions alone. For vectors as they are, without
    orthonormalisation, multiply by them: ``lin.J @ scipy.sparse.linalg.aslinearoperator(a)``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> J = lin.J @ kpops.subspace(lin, 20, rng=0)
    >>> J @ J.H
    <J R R* J* (trial: 5, time: 10, unit: 8), float32 on cpu, PSD>
    >>> recurrent = kpops.subspace(lin, "weight_hh_l0")
    >>> recurrent.domain
    (parameter: 192)
    """
    space = require_linearization(lin).parameter_space
    names = [basis] if isinstance(basis, str) else basis
    if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
        restriction = Restriction(space, {"parameter": names}, lin.dtype, lin.device)
        extension = restriction.H
        restriction.symbol, extension.symbol = "R*", "R"
        return extension
    like = torch.empty((), dtype=lin.dtype, device=lin.device)
    if isinstance(basis, int | np.integer):
        columns = random_basis(space.size, basis, generator(rng), like, "basis")
    else:
        columns = _orthonormal_columns(basis, space, like)
    coordinates = Space(("coordinate",), (columns.shape[1],))
    return DenseOperator(columns, coordinates, space, symbol="R", attrs=lin.attrs)


def random_basis(n: int, d: Any, rng: Any, like: Tensor, name: str) -> Tensor:
    """Orthonormal columns (n, d) that span a random subspace."""
    check_count(name, d, 1, n)
    check_allocation(f"a basis of {d} vectors", 2 * n * d * like.element_size(), like.device)
    return orthonormal(RandomVectors(rng).normal(int(d), range(n), like))[0].mT


def _orthonormal_columns(basis: Any, space: Space, like: Tensor) -> Tensor:
    """An orthonormal basis of the span of a user's vectors."""
    if isinstance(basis, xr.DataArray):
        if basis.ndim != 2 or "parameter" not in basis.dims:
            raise ValueError(f"basis has dims {basis.dims}, expected parameter and one other")
        wrong = disagreeing(basis, space)
        if wrong:
            raise ValueError(f"basis and the parameters disagree on the labels of {wrong}")
        basis = basis.transpose("parameter", ...).data
    given = as_tensor(basis, "basis").to(like)
    if given.ndim != 2 or len(given) != space.size or not 1 <= given.shape[1] <= space.size:
        raise ValueError(
            f"basis has shape {tuple(given.shape)}, expected (parameter, d) = ({space.size}, d) "
            f"with d from 1 to {space.size}"
        )
    if not given.isfinite().all():
        raise ValueError("basis is not finite: pass vectors of finite numbers")
    rows = given.mT / given.norm(dim=0).clamp_min(torch.finfo(like.dtype).tiny)[:, None]
    columns, coordinates = orthonormal(rows)
    floor = space.size**0.5 * torch.finfo(like.dtype).eps
    singular = torch.linalg.svdvals(coordinates)
    if singular[-1] <= floor * singular[0]:
        rank = int((singular > floor * singular[0]).sum())
        raise ValueError(f"basis has {len(rows)} columns of rank {rank}: leave dependent ones out")
    return columns.mT


class InSubspace(nn.Module):
    """A model whose parameters learn in a random subspace through their present values.

    ``theta = theta_0 + R c``, with the orthonormal columns of R fixed and the ``dimension``
    coordinates c, zero at first, as the one parameter that learns. It is trained like the model
    itself, by any optimizer; :func:`kpops.training.train` keeps c in its checkpoints, beside
    theta_0. R is drawn again from the seed.

    The intrinsic dimension of a task, for a model, is the smallest one at which such a training
    reaches 90 % of the performance of a training of all parameters (Li, Farkhoor, Liu and Yosinski,
    ICLR 2018, Measuring the intrinsic dimension of objective landscapes).

    Parameters
    ----------
    model : nn.Module
        It is copied. Its parameters that require grad learn.
    dimension : int
        Dimension d of the subspace, from 1 to the number p of parameters.
    rng : int, Generator or None
        Source of R.

    Raises
    ------
    ValueError
        If `dimension` is out of range, or no parameter requires grad.
    TypeError
        If `model` is no module, or its parameters are of several dtypes.
    MemoryError
        If R, p times d numbers, does not fit.

    See Also
    --------
    kpops.subspace : the operators of a linearization, restricted in the same way.

    Examples
    --------
    >>> import torch, kpops
    >>> network = kpops.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 3))
    >>> few = kpops.training.InSubspace(network, 10, rng=0)
    >>> [(name, p.numel()) for name, p in few.named_parameters() if p.requires_grad]
    [('coordinates', 10)]
    >>> bool((few(torch.ones(2, 5, 3)) == network(torch.ones(2, 5, 3))).all())
    True
    >>> kpops.linearize(few.network(), torch.ones(2, 5, 3)).flow.shape
    (80, 80)
    """

    basis: Tensor

    def __init__(self, model: nn.Module, dimension: int, *, rng: Any = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {described(model)}: pass the network to train")
        self.model = copy.deepcopy(model)
        learning = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not learning:
            raise ValueError("model has no parameter that requires grad: unfreeze some")
        dtypes = sorted({str(p.dtype) for p in learning.values()})
        like = next(iter(learning.values())).detach()
        numpy_dtype(like.dtype)
        if len(dtypes) > 1:
            raise TypeError(f"model mixes the dtypes {dtypes}: use model.to({like.dtype})")
        self.learning = list(learning)
        total = sum(p.numel() for p in learning.values())
        basis = random_basis(total, dimension, generator(rng), like, "dimension")
        self.register_buffer("basis", basis, persistent=False)
        self.model.requires_grad_(False)
        self.coordinates = nn.Parameter(like.new_zeros(int(dimension)))

    def weights(self) -> dict[str, Tensor]:
        """The parameters theta_0 + R c of the model, by their names."""
        start = {name: self.model.get_parameter(name) for name in self.learning}
        parts = (self.basis @ self.coordinates).split([p.numel() for p in start.values()])
        return {
            name: p + part.view_as(p) for (name, p), part in zip(start.items(), parts, strict=True)
        }

    def forward(self, *inputs: Any) -> Any:
        """Return what the model returns at these parameters."""
        return functional_call(self.model, self.weights(), inputs)

    @torch.no_grad()
    def network(self) -> nn.Module:
        """Return a copy of the model with these parameters, for example to linearise it."""
        network = copy.deepcopy(self.model)
        for name, value in self.weights().items():
            network.get_parameter(name).copy_(value).requires_grad_()
        return network
