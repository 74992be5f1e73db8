"""Sums of diagonals times vectors, in one launch; see :mod:`kpops.engines.gated.combine`.

Bytes are what a step of P costs beside its matrix product. Each number is read once and written
once here, where one operation for each diagonal would read and write the sums again every time.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024  # of a program at most


def combine(
    terms: tuple[tuple[int, int, int, int], ...],
    d: Tensor,
    sources: tuple[Tensor, ...],
    into: Tensor,
    base: Tensor | None,
) -> None:
    """Write the sum of `terms` and of `base` into `into`, whose units lie side by side."""
    tensors = [into, into if base is None else base, sources[0], sources[-1]]
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    if d.ndim == 3:  # one step
        d, tensors = d.unsqueeze(2), [x.unsqueeze(2) for x in tensors]
    n_block, n_trials, n_steps, n_units = tensors[0].shape
    hidden = d.shape[-1]
    columns = min(_COLUMNS, triton.next_power_of_2(hidden))
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    grid = n_block * n_trials * n_steps, triton.cdiv(hidden, columns)
    with torch.cuda.device(into.device) if into.is_cuda else nullcontext():
        _combine[grid](
            *tensors, d, *strides, *d.stride()[:3], n_trials, n_steps, hidden,
            terms=terms, variables=n_units // hidden, has_base=base is not None, columns=columns,
        )  # fmt: skip


@triton.jit
def _combine(
    into, base, first, second, d,
    into_block, into_trial, into_time, base_block, base_trial, base_time,
    first_block, first_trial, first_time, second_block, second_trial, second_time,
    d_place, d_trial, d_time, n_trials, n_steps, hidden,
    terms: tl.constexpr, variables: tl.constexpr, has_base: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One row (block, trial, time), and some of its columns."""
    row = tl.program_id(0).to(tl.int64)
    time, trial, block = row % n_steps, row // n_steps % n_trials, row // n_steps // n_trials
    unit = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = unit < hidden
    into += block * into_block + trial * into_trial + time * into_time + unit
    base += block * base_block + trial * base_trial + time * base_time + unit
    first += block * first_block + trial * first_trial + time * first_time + unit
    second += block * second_block + trial * second_trial + time * second_time + unit
    d += trial * d_trial + time * d_time + unit
    for v in tl.static_range(variables):
        if has_base:
            total = tl.load(base + v * hidden, mask=inside)
        else:
            total = tl.full((columns,), 0.0, into.dtype.element_ty)
        for i in tl.static_range(len(terms)):
            if terms[i][0] == v:
                if terms[i][1] == 0:
                    x = tl.load(first + terms[i][2] * hidden, mask=inside)
                else:
                    x = tl.load(second + terms[i][2] * hidden, mask=inside)
                if terms[i][3] >= 0:
                    x = x * tl.load(d + terms[i][3] * d_place, mask=inside)
                total += x
        tl.store(into + v * hidden, total, mask=inside)
