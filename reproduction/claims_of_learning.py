"""Claims about what learning does: its speed, its tasks, its steps."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from reproduction.claims import CELLS, Claim, K, P, Quantity, listed, rank_of
from reproduction.results import Results, iterations_to
from reproduction.verdicts import STRONG, Check, check, number, rises, settled, spread

THRESHOLDS = (0.1, 0.03, 0.01)
STATES = {
    "state_tuning_cosine": "cosine of the tuning of states",
    "state_cosine": "cosine of states",
    "state_cka": "CKA of states",
}
OPERATORS = {
    "trace_alignment": "trace alignment",
    "gauss_newton_alignment": "Gauss-Newton alignment",
    "kernel_alignment": "kernel alignment",
    "gradient_cosine": "cosine of gradients",
    "gradient_tuning_cosine": "cosine of the tuning of gradients",
}

_JUDGED = {
    "trace_alignment": "operators alone",
    "gradient_tuning_cosine": "operators between errors",
}


def over_g(found: Results) -> Claim:
    """Ranks and speed of learning against the scale of the recurrent weights."""
    of = {cell: found.of(task="memory_pro", cell=cell) for cell in CELLS}
    checks = [c for cell in CELLS for c in _trends(of[cell], cell.upper())]
    columns: dict[str, Quantity] = {
        "spectral radius": lambda r: float(r.initial_spectral_radius),
        "P before training": lambda r: rank_of(r, P)[0],
        **_RANKS,
        **{f"iterations to {name}": f for name, f in _SPEED.items()},
        "accuracy": lambda r: float(r.accuracy[-1]),
    }
    rows = [
        [
            f"{cell.upper()}, {g:g}",
            *(spread([f(r) for r in of[cell].of(g=g)]) for f in columns.values()),
        ]
        for cell in CELLS
        for g in of[cell].values("g")
    ]
    scales = found.of(task="memory_pro").values("g")
    return Claim(
        title="The scale g of the recurrent weights",
        paper="With larger g the rank of K is higher, there is less collapse, and learning is "
        "faster.",
        number="rank correlation with g: "
        + "; ".join(
            f"{c.text.split(': rank')[0]} {c.found}"
            for c in checks
            if any(name in c.text for name in ("K before", "least P over training", "loss 0.03"))
        ),
        checks=checks,
        results=of["gru"] + of["rnn"],
        notes=[
            f"Networks on Memory-Pro with g = {listed([f'{g:g}' for g in scales])}; the rank "
            "correlation over these is taken for each seed. Ranks are the variance ranks over "
            "time. g multiplies PyTorch's own recurrent weights, whose spectral radius is about "
            "1/sqrt(3) in an RNN, and in each of the three gates of a GRU. Iterations count to the "
            "first block of 25 iterations whose mean loss is at or below the threshold; never, if "
            "there is none before the end of training. The correlation is 0 where no scale reaches "
            "it, and at least -0.775 where one of four does.",
            *_reached(of),
        ],
        tables=[("Ranks and speed against g", ["g", *columns], rows)],
    )


def _reached(of: dict[str, Results]) -> list[str]:
    """How many networks of each scale reach the middle threshold."""
    threshold = THRESHOLDS[1]
    counts = [
        f"{sum(iterations_to(r, threshold) < np.inf for r in group)} of {len(group)} "
        f"{cell.upper()}s with g = {g:g}"
        for cell in CELLS
        for g in of[cell].values("g")
        if len(group := of[cell].of(g=g))
    ]
    return [f"A loss of {threshold:g} is reached by {listed(counts)}."] if counts else []


_RANKS: dict[str, Quantity] = {
    "K before training": lambda r: rank_of(r, K)[0],
    "K after training": lambda r: rank_of(r, K)[-1],
    "least P over training": lambda r: rank_of(r, P).min(),
    "least P over first P": lambda r: rank_of(r, P).min() / rank_of(r, P)[0],
}
_SPEED: dict[str, Quantity] = {
    f"loss {t:g}": partial(iterations_to, threshold=t) for t in THRESHOLDS
}


def _trends(of: Results, cell: str) -> list[Check]:
    """Whether ranks rise, and times fall, with g, in seeds with all scales measured."""
    scales = of.values("g")
    whole = [s for s in of.values("seed") if len(of.of(seed=s)) == len(of.of(seed=s).planned)]

    def correlations(quantity: Quantity) -> list[float]:
        return [
            rises(scales, [quantity(r) for g in scales for r in of.of(seed=seed, g=g)])
            for seed in whole
        ]

    text = "rank correlation with g at"
    rising = [
        check(f"{cell}, {name}: {text} least {STRONG}", correlations(f), lambda c: c >= STRONG)
        for name, f in _RANKS.items()
    ]
    falling = [
        check(
            f"{cell}, iterations to {name}: {text} most -{STRONG}",
            correlations(f),
            lambda c: c <= -STRONG,
        )
        for name, f in _SPEED.items()
    ]
    return rising + falling


def tasks(found: Results) -> Claim:
    """Whether tasks are similar by their response or by their timing."""
    of = found.of(task="four_tasks")
    at = {name: [onset(r, name) for r in of] for name in (*STATES, *OPERATORS)}
    first = {name: [float(contrast(r, name)[0]) for r in of] for name in at}
    states = "state_tuning_cosine"
    checks = [
        check("states: Delay/Memory before training (contrast below 0)", first[states], _negative),
        check("states: Pro/Anti from some iteration to the end", at[states], np.isfinite),
        _same_iteration(at[states]),
    ]
    for name, what in _JUDGED.items():
        before = [a < b for a, b in zip(at[name], at[states], strict=True)]
        checks += [
            check(f"{what}: Pro/Anti from the start (contrast)", first[name], lambda c: c > 0),
            Check(f"{what}: before states", _pairs(at[name], at[states]), sum(before), len(before)),
        ]
    rows = [
        [
            text,
            spread(first[name]),
            spread([float(contrast(r, name)[-1]) for r in of]),
            spread(at[name]),
            _earlier(at[name], at[states]) if name in OPERATORS else "",
        ]
        for name, text in (STATES | OPERATORS).items()
    ]
    header = ["", "before training", "after training", "above 0 from", "before states"]
    return Claim(
        title="Pro/Anti against Delay/Memory",
        paper="In GRUs on four tasks the alignment of hidden states reorganises from Delay/Memory "
        "to Pro/Anti blocks at about the same iteration in all runs, while the alignment of the "
        "operators P_i K_ij P_j* prefers Pro/Anti from the start.",
        number=f"states turn at iteration {spread(at[states])}; "
        + "; ".join(f"{what} at {spread(at[name])}" for name, what in _JUDGED.items()),
        checks=checks,
        results=of,
        notes=_of_tasks(of, at, first),
        tables=[
            ("Contrast of Pro/Anti over Delay/Memory: median (least to largest)", header, rows)
        ],
    )


def contrast(result: xr.Dataset, name: str) -> np.ndarray:
    """Mean alignment within Pro and within Anti, less that within Delay and within Memory (step).

    Memory-Pro and Delay-Pro share the response, Memory-Pro and Memory-Anti the timing.
    """
    matrix = result[name].transpose("step", "task", "task_in")

    def pair(one: str, two: str) -> np.ndarray:
        return matrix.sel(task=one, task_in=two).values.astype(float)

    response = pair("memory_pro", "delay_pro") + pair("memory_anti", "delay_anti")
    timing = pair("memory_pro", "memory_anti") + pair("delay_pro", "delay_anti")
    return (response - timing) / 2


def onset(result: xr.Dataset, name: str) -> float:
    """Iteration of the checkpoint from which on the contrast stays above 0."""
    return settled(result.step.values.tolist(), contrast(result, name).tolist())


def _negative(value: float) -> bool:
    return value < 0


def _same_iteration(at: list[float]) -> Check:
    """Whether all runs turn within a factor of two of their median."""
    middle = np.median(at) if at else np.nan
    near = [bool(np.isfinite(s) and middle / 2 <= s <= 2 * middle) for s in at]
    text = "states: within a factor of 2 of the median iteration of all runs"
    return Check(text, spread(at), sum(near), len(near))


def _pairs(first: list[float], second: list[float]) -> str:
    return "; ".join(f"{number(a)} against {number(b)}" for a, b in zip(first, second, strict=True))


def _earlier(first: list[float], second: list[float]) -> str:
    return f"{sum(a < b for a, b in zip(first, second, strict=True))} of {len(first)}"


def _of_tasks(of: Results, at: dict[str, list[float]], first: dict[str, list[float]]) -> list[str]:
    """Definitions, and which quantities show the claim."""
    notes = [
        "The contrast is the mean of the alignments of Memory-Pro with Delay-Pro and of "
        "Memory-Anti with Delay-Anti, less that of Memory-Pro with Memory-Anti and of Delay-Pro "
        "with Delay-Anti: above 0 tasks are similar by their response, below 0 by their timing. "
        "An alignment has turned at the first checkpoint from which on it stays above 0.",
        "We have not found how exactly the paper makes a number of P_i K_ij P_j*. The table has "
        "all alignments of ``kpops.interference``, and the verdict is on two of them: the trace "
        "alignment, of operators by themselves, and the cosine of the tuning of gradients, of "
        "operators between the errors of two tasks. The latter was chosen after all five had been "
        "seen, as the one closest to the claim.",
    ]
    if not len(of):
        return notes
    error = max(float(v.max()) for r in of for n, v in r.items() if str(n).endswith("_stderr"))
    shows = [t for n, t in OPERATORS.items() if all(step == 0 for step in at[n])]
    starts = [t for n, t in OPERATORS.items() if all(c > 0 for c in first[n]) and t not in shows]
    rest = [t for t in OPERATORS.values() if t not in shows + starts]
    if shows:
        notes.append(f"In all runs Pro/Anti at every checkpoint: {listed(shows)}.")
    if starts:
        notes.append(f"In all runs Pro/Anti before training, but not to the end: {listed(starts)}.")
    if rest:
        notes.append(f"Not Pro/Anti before training in every run: {listed(rest)}.")
    return [
        *notes,
        "Trace, Gauss-Newton and kernel alignment do not depend on the targets: before training, "
        "Memory-Pro and Memory-Anti differ for them only by the rule input of the context. "
        "Gradients depend on the errors. The three alignments are estimated with 16 random "
        "vectors; "
        f"the largest standard error of an entry is {number(error)}.",
    ]
