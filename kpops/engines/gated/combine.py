"""What is pointwise in a gated cell: sums of diagonals times vectors, unit by unit.

Every derivative of :mod:`kpops.engines.gated.gates` is a matrix product and one such sum,

    into_v = base_v + sum of d_p * source_i over the terms (v, source, i, p).

On a GPU with Triton it is one kernel, else an operation of PyTorch for each term.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

Terms = tuple[tuple[int, int, int, int], ...]
"""(variable of the result, source, part of the source, position of the diagonal); -1 stands for the
identity."""
Diagonals = Float[Tensor, "diagonal *steps hidden"]
Units = Float[Tensor, "block *steps unit"]


def combine(
    terms: Terms,
    d: Diagonals,
    sources: tuple[Tensor, ...],
    into: Units,
    base: Units | None,
) -> None:
    """Write the sum of `base` (None: zero) and of the terms into `into`, which may be `base`.

    Diagonals are those of the same trials and steps as the vectors, (trial, time), or of one step,
    (trial,).
    """
    fused = _fused(into.device) if into.is_cuda and into.stride(-1) == 1 else None
    if fused is not None:
        fused(terms, d, sources, into, base)
        return
    hidden = d.shape[-1]
    if base is None:
        into.zero_()
    elif base is not into:
        into.copy_(base)
    new = into.split(hidden, dim=-1)
    parts = [source.split(hidden, dim=-1) for source in sources]
    for v, source, i, p in terms:
        if p < 0:
            new[v].add_(parts[source][i])
        else:
            new[v].addcmul_(d[p], parts[source][i])


@cache
def _fused(device: torch.device) -> Callable[..., None] | None:
    """The kernel, where Triton works: it may lack a compiler, and the device may be too old."""
    if not torch.backends.cuda.is_built():  # the device is simulated
        return None
    try:
        from kpops.engines.cuda.combine_kernel import combine

        one = torch.ones(1, 1, 1, device=device)
        combine(((0, 0, 0, 0),), one, (one,), torch.empty_like(one), None)
    except ImportError:
        return None
    except Exception as error:
        warnings.warn(
            f"no fused kernel on {device}: {type(error).__name__}: {error}. Matvecs are right, and "
            "slower: they take an operation of PyTorch for each diagonal",
            stacklevel=2,
        )
        return None
    return combine
