"""The contract that every operator keeps, for our tests and for users' own cells."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.engines.autodiff import AutodiffEngine
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.site_engine import SiteEngine
from kpops.labels import Space
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization
from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import generator as random_generator

_DENSE_SIZE = 600
_BLOCK = 3


@in_full_precision
def check_operator(op: TrajectoryOperator, rng: int | np.random.Generator = 0) -> dict[str, float]:
    """Check the contract of an operator.

    One that is spread over processes is checked by all of them together, which get the same
    figures; it has none for ``pickle`` and ``dense``.

    Parameters
    ----------
    op : TrajectoryOperator
        The operator.
    rng : int or Generator
        Source of the random vectors.

    Returns
    -------
    dict of str to float
        Relative errors: ``adjoint`` (``|<u, Av> - <A*u, v>|`` over ``||Av|| ||u|| + ||A*u||
        ||v||``), ``linearity``, ``block`` (a block against its columns), ``deterministic``,
        ``numpy`` (NumPy against torch), and where they apply ``pickle`` (not for a model that
        Python cannot pickle, such as a lambda), ``dense``, ``self_adjoint``, ``positive``.

    Raises
    ------
    AssertionError
        With all figures, if one of them exceeds rounding, or if a dtype, device or shape is wrong.

    Examples
    --------
    >>> import torch, kpops, kpops.testing
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True).double(),
    ...                       torch.zeros(2, 4, 2, dtype=torch.float64))
    >>> max(kpops.testing.check_operator(lin.flow).values()) < 1e-13
    True
    """
    op = as_operator(op, spread=True)
    rng = random_generator(rng)
    u, w = _random(op, op.domain, rng), _random(op, op.domain, rng)
    v = _random(op, op.codomain, rng)
    image, back = op.apply(u), op.apply_adjoint(v)
    _check_kept(op, image, op.codomain)
    _check_kept(op, back, op.domain)
    matrix = op @ to_numpy(u.reshape(len(u), -1)).T

    gap, gap_back = _gap_in(op.codomain), _gap_in(op.domain)
    figures = {
        "adjoint": _adjoint_gap(op, u, v, image, back),
        "linearity": gap(op.apply(2 * u - 3 * w), 2 * image - 3 * op.apply(w)),
        "block": max(
            gap(image, torch.cat([op.apply(q[None]) for q in u])),
            gap_back(back, torch.cat([op.apply_adjoint(q[None]) for q in v])),
        ),
        "deterministic": gap(op.apply(u), image),
        "numpy": gap(torch.from_numpy(np.ascontiguousarray(matrix.T)).to(op.device), _flat(image)),
    }
    try:
        pickled = pickle.dumps(op)
    except (pickle.PicklingError, AttributeError, RuntimeError, TypeError):
        pass  # the user's model or readout is of a kind that Python cannot pickle
    else:
        figures["pickle"] = gap(pickle.loads(pickled).apply(u), image)
    assert matrix.dtype == op.dtype, f"NumPy result has {matrix.dtype}, expected {op.dtype}"
    if max(op.shape) <= _DENSE_SIZE and not op.parts.many:
        dense = op.dense_tensor()
        figures["dense"] = max(
            gap(_flat(image), _flat(u) @ dense.T),
            gap(_flat(back), _flat(v) @ dense),
            gap(op.H.dense_tensor(), dense.T),
        )
    if op.self_adjoint:
        figures["self_adjoint"] = gap(op.apply_adjoint(u), image)
    if op.positive:
        dots = partial(_dots, space=op.domain)
        scales = dots(u, u).sum().sqrt() * dots(image, image).sum().sqrt()
        quotients = dots(u, image) / (scales + 1e-300)
        figures["positive"] = max(0.0, -float(quotients.min()))
        if "dense" in figures:
            values = torch.linalg.eigvalsh((dense + dense.T) / 2)
            scale = float(values.abs().max().clamp_min(torch.finfo(values.dtype).tiny))
            figures["positive"] = max(figures["positive"], -float(values[0]) / scale)

    bound = 1e3 * torch.finfo(op.torch_dtype).eps
    bad = {name: value for name, value in figures.items() if not value <= bound}
    assert not bad, f"{op!r} breaks {sorted(bad)} (bound {bound:.2g}): {figures}"
    # A few units of rounding: the order of sums in BLAS depends on where memory lies.
    steady = figures["deterministic"] <= 32 * torch.finfo(op.torch_dtype).eps
    assert steady, f"{op!r} is not deterministic: {figures}"
    return figures


@in_full_precision
def check_linearization(
    lin: Linearization, rng: int | np.random.Generator = 0
) -> dict[str, dict[str, float]]:
    """Check every operator of a linearization, and the laws between them.

    Parameters
    ----------
    lin : Linearization
        Of any model.
    rng
        As for :func:`check_operator`.

    Returns
    -------
    dict of str to dict
        The figures of :func:`check_operator` for each operator, and under ``"laws"`` the relative
        errors of ``P P^-1 = I``, ``K = scale J J*``, ``K = sum_j K_j`` and of any other engine
        against ``autodiff``.

    Raises
    ------
    AssertionError
        With the figures, if one of them exceeds rounding.

    Examples
    --------
    >>> import torch, kpops, kpops.testing
    >>> lin = kpops.linearize(torch.nn.RNNCell(2, 3).double(),
    ...                       torch.ones(2, 4, 2, dtype=torch.float64))
    >>> max(kpops.testing.check_linearization(lin)["laws"].values()) < 1e-12
    True
    """
    require_linearization(lin, spread=True)
    rng = random_generator(rng)
    names = ["P", "P_inv", "J", "K", "flow", "sensitivity"]
    names += [] if lin.readout is None else ["output_ntk"]
    figures = {name: check_operator(getattr(lin, name), rng) for name in names}

    gap = _gap_in(lin.space)
    q = lin.trajectory.restrict(_random(lin.P, lin.space, rng))
    scale = 1.0 if lin.measure == "sum" else 1.0 / lin.trajectory.n_valid
    laws = {
        "P P_inv": max(
            gap(lin.P.apply(lin.P_inv.apply(q)), q), gap(lin.P_inv.apply(lin.P.apply(q)), q)
        ),
        "K = J J*": gap(lin.K.apply(q), scale * lin.J.apply(lin.J.apply_adjoint(q))),
        "K = sum K_j": gap(
            lin.K.apply(q), torch.stack([K.apply(q) for K in lin.K_by_parameter.values()]).sum(0)
        ),
    }
    if not isinstance(lin.engine, AutodiffEngine | SiteEngine):
        reference = replace(lin, engine_asked="autodiff", gates_asked="auto")
        laws |= {
            "P by autodiff": gap(lin.P.apply(q), reference.P.apply(q)),
            "P* by autodiff": gap(lin.P.apply_adjoint(q), reference.P.apply_adjoint(q)),
            "K by autodiff": gap(lin.K.apply(q), reference.K.apply(q)),
        }
    bound = 1e3 * torch.finfo(lin.dtype).eps
    bad = {name: value for name, value in laws.items() if not value <= bound}
    assert not bad, f"{lin!r} breaks {sorted(bad)} (bound {bound:.2g}): {laws}"
    return {**figures, "laws": laws}


def _random(op: TrajectoryOperator, space: Space, rng: np.random.Generator) -> Tensor:
    like = torch.empty(0, dtype=op.torch_dtype, device=op.device)
    drawn = RandomVectors(rng).normal(_BLOCK, space.entries, like)
    return drawn.reshape(_BLOCK, *space.shape)


def _check_kept(op: TrajectoryOperator, result: Tensor, space: Space) -> None:
    kept = (result.dtype, result.device, tuple(result.shape[1:]))
    expected = (op.torch_dtype, op.device, space.shape)
    assert kept == expected, f"{op!r} gives (dtype, device, shape) {kept}, expected {expected}"


def _flat(block: Tensor) -> Tensor:
    return block.reshape(len(block), -1)


def _dots(a: Tensor, b: Tensor, space: Space) -> Tensor:
    # In float64: the sum must not add errors of its own to those of the operator.
    return space.parts.sum((_flat(a).double() * _flat(b).double()).sum(1))


def _adjoint_gap(
    op: TrajectoryOperator, u: Tensor, v: Tensor, image: Tensor, back: Tensor
) -> float:
    # Normalised by norms: the dot product itself may be near zero for a correct operator.
    gap = (_dots(image, v, op.codomain) - _dots(u, back, op.domain)).abs()
    squares = [_dots(x, x, op.domain) for x in (u, back)]
    squares += [_dots(x, x, op.codomain) for x in (image, v)]
    norms = [square.sqrt() for square in squares]
    scale = norms[2] * norms[3] + norms[1] * norms[0]
    return float((gap / scale.clamp_min(1e-300)).max())


def _gap_in(space: Space) -> Callable[[Tensor, Tensor], float]:
    """The relative distance of two blocks of vectors of `space`."""

    def gap(a: Tensor, b: Tensor) -> float:
        a, b = a.double(), b.double()
        squares = torch.stack([(a - b).square().sum(), b.square().sum()])
        distance, scale = space.parts.sum(squares).sqrt().tolist()
        return distance / scale if scale > 0 else distance

    return gap
