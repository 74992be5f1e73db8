"""Lyapunov exponents of a driven tanh RNN, compared with a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kpops
from benchmarks.cases import Case, Grid
from benchmarks.timing import median, take_turns
from kpops.dynamics.lyapunov_source import COMPILED_FROM
from kpops.engines.random_vectors import RandomVectors

KPOPS, BY_HAND = "kpops", "by hand"
_TOLERANCE = 1e-9


def measure(grid: Grid, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for every number of exponents; the loop is timed on fewer steps and scaled up."""
    steps, fewer = grid.exponent_steps
    hidden = max(k for _, k in grid.exponents)
    base = replace(grid.base, kind="RNN", hidden=hidden, steps=steps, inputs="noise")
    say("exponents: in float64")
    compiled = max(fewer, COMPILED_FROM)
    apart = agreement(replace(base, trials=2, steps=compiled, dtype=torch.float64))
    records = []
    for trials, k in grid.exponents:
        say(f"exponents: {k} of {hidden}, {trials} trials")
        case = replace(base, trials=trials)
        module, drive = case.module(), case.drive()
        acts: dict[str, Callable[[], Any]] = {
            KPOPS: partial(kpops.lyapunov_spectrum, module, k, inputs=drive, rng=0),
            BY_HAND: partial(by_hand, module, drive[:, :fewer], k, 0),
        }
        seconds = {n: median(t) for n, t in take_turns(acts, case.device, grid.limits).items()}
        ours, theirs = seconds[KPOPS], seconds[BY_HAND] * steps / fewer
        both = {"kpops_s": ours, "by_hand_s": theirs, "ratio": theirs / ours}
        records.append({"trials": trials, "k": k, **both})
    sizes = {"hidden": hidden, "steps": steps, "by_hand_steps": fewer}
    return {**sizes, "agreement": apart, "records": records}


def by_hand(module: nn.RNN, drive: Tensor, k: int, rng: int) -> Tensor:
    """The k leading exponents of every trial, by the Jacobians and a QR at every step."""
    W, U = module.weight_hh_l0.detach(), module.weight_ih_l0.detach()
    bias = (module.bias_hh_l0 + module.bias_ih_l0).detach()
    h = W.new_zeros(len(drive), len(W))
    start = RandomVectors(rng).normal(k, range(h.numel()), W)
    frames = torch.linalg.qr(start.reshape(k, *h.shape).permute(1, 2, 0)).Q
    growth = W.new_zeros(len(drive), k)
    for x in drive.unbind(1):
        h = torch.tanh(h @ W.T + x @ U.T + bias)
        jacobians = (1 - h**2)[:, :, None] * W
        frames, triangles = torch.linalg.qr(jacobians @ frames)
        growth += triangles.diagonal(dim1=1, dim2=2).abs().log()
    return growth / drive.shape[1]


def agreement(case: Case) -> float:
    """Largest difference of any exponent, from the same frames and without a transient.

    Raises
    ------
    AssertionError
        If it is larger than a rounding error.
    """
    module, drive = case.module(), case.drive()
    whole = {"frame_transient": 0, "window": case.steps}
    ours = kpops.lyapunov_spectrum(module, inputs=drive, rng=0, **whole).trial_exponent
    theirs = by_hand(module, drive, case.hidden, 0).cpu().numpy()
    error = float(np.abs(ours.values - theirs).max())
    if not error <= _TOLERANCE:  # also NaN
        raise AssertionError(f"{case.name}: exponents differ by {error:.2g}")
    return error
