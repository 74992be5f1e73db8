"""Claims about effective ranks and eigenfunctions of single networks."""

from __future__ import annotations

import numpy as np
import xarray as xr

from reproduction.claims import (
    CELLS,
    FLOW,
    PARTICIPATION,
    TASKS,
    VARIANCE,
    Claim,
    K,
    P,
    rank_of,
    without_success,
)
from reproduction.results import Results
from reproduction.verdicts import between, check, number, spread

ABOUT_ONE = 1.5
"""Ranks up to this count as about 1: one mode holds about 95 % of the sum of squares."""

_BEFORE_COLLAPSE = between(500, 1500)


def initial(found: Results) -> Claim:
    """Ranks before training."""
    of = {cell: found.of(task="memory_pro", cell=cell, g=1.0) for cell in CELLS}

    def first(cell: str, operator: str) -> list[float]:
        return [rank_of(result, operator)[0] for result in of[cell]]

    checks = [
        check("RNN: K within 0.01 of 0.96", first("rnn", K), between(0.95, 0.97)),
        check("RNN: P P* within 5 of 82 (of 90)", first("rnn", P), between(77, 87)),
        check("RNN: P K P* within 0.01 of 0.96", first("rnn", FLOW), between(0.95, 0.97)),
        check("GRU: P P* from 36 to 40", first("gru", P), between(36, 40)),
    ]
    rnn, gru = first("rnn", P), first("gru", P)
    header = ["", *(f"{o}, {k}" for k in ("variance", "participation") for o in (K, P, FLOW))]
    rows = [
        [
            cell.upper(),
            *(
                spread([rank_of(result, operator, kind)[0] for result in of[cell]])
                for kind in (VARIANCE, PARTICIPATION)
                for operator in (K, P, FLOW)
            ),
        ]
        for cell in CELLS
    ]
    return Claim(
        title="Ranks before training",
        paper="At initialisation with g = 1 on Memory-Pro, the time-reduced ranks of an RNN are "
        "about 0.96 for K, 82 of 90 for P and 0.96 for P K P*; that of P in a GRU is 36 to 40.",
        number=f"P: RNN {spread(rnn)}, GRU {spread(gru)}; K: RNN {spread(first('rnn', K))}",
        checks=checks,
        results=of["gru"] + of["rnn"],
        tables=[("Ranks before training: median (least to largest)", header, rows)],
    )


def memory(found: Results) -> Claim:
    """Ranks over training on Memory-Pro."""
    of = {cell: found.of(task="memory_pro", cell=cell, g=1.0) for cell in CELLS}
    checks = []
    for cell in CELLS:
        low = [rank_of(result, P).min() for result in of[cell]]
        at = [float(result.step[rank_of(result, P).argmin()]) for result in of[cell]]
        end = [rank_of(result, P)[-1] for result in of[cell]]
        most = [rank_of(result, K).max() for result in of[cell]]
        name = cell.upper()
        checks += [
            check(f"{name}: P falls to 1.5 or less", low, lambda rank: rank <= ABOUT_ONE),
            check(f"{name}: it is lowest at iterations 500 to 1,500", at, _BEFORE_COLLAPSE),
            check(f"{name}: P ends from 1.5 to 3.5", end, between(1.5, 3.5)),
            check(f"{name}: K is never above 1.5", most, lambda rank: rank <= ABOUT_ONE),
        ]
    gru = checks[:4]
    return Claim(
        title="Collapse on Memory-Pro",
        paper="In GRUs that learn Memory-Pro, P collapses to about 1 around the tenth checkpoint "
        "(iteration 1,000) and then has a rank of 2 to 3, while K stays about 1.",
        number=f"GRU: P falls to {gru[0].found}, ends at {gru[2].found}; K at most {gru[3].found}",
        checks=checks,
        results=of["gru"] + of["rnn"],
        notes=[
            "The paper shows GRUs; here RNNs face the same criteria.",
            *without_success(of),
        ],
    )


def flip_flop(found: Results) -> Claim:
    """Ranks over training on the flip-flop."""
    of = {cell: found.of(task="flip_flop", cell=cell) for cell in CELLS}
    checks = []
    for cell in CELLS:
        end = [rank_of(result, P)[-1] for result in of[cell]]
        most = [rank_of(result, K).max() for result in of[cell]]
        name = cell.upper()
        checks += [
            check(f"{name}: P ends from 44 to 64", end, between(44, 64)),
            check(f"{name}: K is never above 1.5", most, lambda rank: rank <= ABOUT_ONE),
        ]
    return Claim(
        title="Flip-flop",
        paper="On the three-bit flip-flop P ends near 54, while K stays about 1.",
        number=f"P ends at GRU {checks[0].found}, RNN {checks[2].found}; "
        f"K at most GRU {checks[1].found}, RNN {checks[3].found}",
        checks=checks,
        results=of["gru"] + of["rnn"],
        notes=without_success(of),
    )


def ordering(found: Results) -> Claim:
    """Whether the rank of P is above that of K."""
    of = found.of(task="memory_pro") + found.of(task="flip_flop")
    above = {kind: [rank_of(r, P, kind) > rank_of(r, K, kind) for r in of] for kind in _KINDS}
    ratios = [float((rank_of(result, P) / rank_of(result, K)).min()) for result in of]
    total = {kind: (int(sum(map(np.sum, a))), sum(map(len, a))) for kind, a in above.items()}
    (by_variance, count), (by_participation, _) = total[VARIANCE], total[PARTICIPATION]
    return Claim(
        title="P above K",
        paper="Throughout training the rank of P is above that of K.",
        number=f"variance over time: P above K at {by_variance} of {count} checkpoints; "
        f"participation: at {by_participation} of {count}",
        checks=[
            check(
                "rank of P P* above that of K at every checkpoint, by the paper's definition "
                "(least ratio of the two over training)",
                ratios,
                lambda ratio: ratio > 1,
            )
        ],
        results=of,
        notes=_disagreement(by_variance, by_participation, count),
        tables=[_by_group(found)],
    )


def eigenfunctions(found: Results) -> Claim:
    """How many eigenfunctions of K dominate."""
    of = {cell: found.of(task="memory_pro", cell=cell, g=1.0) for cell in CELLS}
    moments = {"before": 0, "after": -1}
    checks = [
        check(
            f"{cell.upper()}, {when} training: 2 to 4 modes hold 90 % of the trace",
            [_needed(result, "trial, time", at) for result in of[cell]],
            between(2, 4),
        )
        for cell in CELLS
        for when, at in moments.items()
    ]
    rows = [
        [
            f"{TASKS[task]}, {cell.upper()}, {when}",
            *(
                text
                for reduction in _REDUCTIONS
                for text in (
                    spread([_needed(r, reduction, at) for r in group]),
                    spread([float(r.share.sel(reduction=reduction)[at].sum()) for r in group]),
                )
            ),
        ]
        for task in ("memory_pro", "flip_flop")
        for cell in CELLS
        for when, at in moments.items()
        if len(group := found.of(task=task, cell=cell, g=1.0))
    ]
    header = ["", *(f"{r}: {what}" for r in _REDUCTIONS.values() for what in ("90 %", "first six"))]
    return Claim(
        title="Eigenfunctions of K",
        paper="Two to four of six leading eigenfunctions of K dominate, before and after training.",
        number="modes that hold 90 % of the trace: "
        + "; ".join(f"{c.text.split(' training')[0]} {c.found}" for c in checks),
        checks=checks,
        results=of["gru"] + of["rnn"],
        notes=[
            "The verdict is on K averaged over units, which leaves functions of trial and time. "
            "The figure of the paper does not say how K was reduced, and the answer depends on it: "
            "K itself couples no two units, so its spectrum is that of 256 similar blocks, and "
            "many modes share the trace; averaging over trials and units leaves functions of time. "
            "The table has all three: the number of modes that hold 90 % of the trace, and the "
            "share of the first six.",
            *without_success(of),
        ],
        tables=[("Eigenvalues of K under three reductions", header, rows)],
    )


_KINDS = (VARIANCE, PARTICIPATION)
_REDUCTIONS = {"none": "K", "trial, time": "over trial and time", "time": "over time"}


def _needed(result: xr.Dataset, reduction: str, at: int) -> float:
    return float(result.modes_needed.sel(reduction=reduction)[at])


def _disagreement(by_variance: int, by_participation: int, count: int) -> list[str]:
    """A note on the order of P and K by the participation ratio."""
    if not count:
        return []
    meaning = (
        "Of the whole operators on (trial, time, unit), without a reduction, the participation "
        "ratio"
    )
    if by_participation == count:
        return [f"{meaning} puts P above K at every checkpoint, too."]
    below = count - by_participation
    return [
        f"{meaning} puts K above P at {below} of {count} checkpoints, and the variance rank "
        f"at {count - by_variance}. The table shows where."
    ]


def _by_group(found: Results) -> tuple[str, list[str], list[list[str]]]:
    header = ["", "checkpoints", "P above K: variance", "least ratio", "P above K: participation",
              "iterations with K above P by participation"]  # fmt: skip
    rows = []
    for task in ("memory_pro", "flip_flop"):
        for cell in CELLS:
            for g in found.of(task=task, cell=cell).values("g"):
                group = found.of(task=task, cell=cell, g=g)
                if len(group):
                    rows.append([f"{TASKS[task]}, {cell.upper()}, g = {g:g}", *_compared(group)])
    return "Where the rank of P is above that of K", header, rows


def _compared(group: Results) -> list[str]:
    above = {k: [rank_of(r, P, k) > rank_of(r, K, k) for r in group] for k in _KINDS}
    count = sum(map(len, above[VARIANCE]))
    ratio = min(float((rank_of(r, P) / rank_of(r, K)).min()) for r in group)
    below = [r.step.values[~a] for r, a in zip(group, above[PARTICIPATION], strict=True)]
    steps = np.concatenate(below)
    where = f"{steps.min():,} to {steps.max():,}" if steps.size else "none"
    counts = [str(int(sum(map(np.sum, above[kind])))) for kind in _KINDS]
    return [str(count), counts[0], number(ratio), counts[1], where]
