"""Blocks of the propagator, from each time to each later one, and two numbers of each.

With A[t] the state Jacobian, the block ``P[t, s] = A[t] ... A[s+1]`` maps a perturbation at time s
to that of the state at time t. The recursion ``P[t, s] = A[t] P[t-1, s]`` carries the blocks of
some sources s side by side, so that all of P is never held, and a step is one matrix product for
each trial.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.base import Engine
from kpops.engines.memory import check_allocation

# Of the blocks that are carried together.
_BYTES = 2**28

Pairs = Float[Tensor, "trial time source"]


def responses(engine: Engine, valid: Float[Tensor, "trial time unit"]) -> tuple[Pairs, Pairs]:
    """``||P[t, s] - I d_ts||_F^2 / S`` and ``1^T (P[t, s] - I d_ts) 1 / S``, in float64.

    S is the number of state variables, d_ts is 1 if t = s. Both are zero for ``t <= s``. They take
    about ``T^2 S^3`` operations for each trial.
    """
    n_trials, n_steps, n_units = valid.shape
    of_source = n_trials * n_units**2 * valid.element_size()
    count = min(n_steps, max(1, _BYTES // of_source))
    check_allocation("blocks of the propagator", 3 * count * of_source, valid.device)
    energy = valid.new_zeros(n_trials, n_steps, n_steps, dtype=torch.float64)
    projection = torch.zeros_like(energy)
    starts = range(0, n_steps, count)
    work.expect(sum(n_steps - start for start in starts), "steps")
    for start in starts:
        blocks = valid.new_zeros(n_trials, n_units, 0)
        for t in range(start, n_steps):
            work.advance(1)
            if t > start:
                blocks = (engine.step_jacobians(t) * valid[:, t, :, None]) @ blocks
                apart = blocks.unflatten(2, (-1, n_units))
                here = slice(start, start + apart.shape[2])
                lengths = torch.linalg.vector_norm(apart, dim=(1, 3), dtype=torch.float64)
                energy[:, t, here] = lengths.square() / n_units
                projection[:, t, here] = apart.sum((1, 3), dtype=torch.float64) / n_units
            if t < start + count:
                blocks = torch.cat([blocks, torch.diag_embed(valid[:, t])], 2)
    return energy, projection
