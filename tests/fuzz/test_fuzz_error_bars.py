"""Error bars at any budget: `estimate +- 2 stderr` holds the truth as often as it says."""

import warnings

import numpy as np
from drawn import Symmetric, cases, symmetric
from hypothesis import assume, given
from hypothesis import strategies as st

import kpops

SPECTRA = ("flat", "geometric", "harmonic", "cluster", "low rank", "one small")
SEEDS = 40


def entropy(values):
    p = values[values > 0] / values.sum()
    return np.exp(-(p * np.log(p)).sum())


ESTIMATES = {
    **{
        f"trace by {method}": (kpops.trace, {"method": method}, np.sum)
        for method in ("hutchinson", "xtrace", "xnystrace")
    },
    **{
        f"Frobenius norm by {method}": (kpops.frobenius_norm, {"method": method}, np.linalg.norm)
        for method in ("hutchinson", "xtrace", "xnystrace")
    },
    "participation": (
        kpops.effective_rank,
        {"kind": "participation", "method": "hutchinson"},
        lambda values: values.sum() ** 2 / (values**2).sum(),
    ),
    "entropy": (kpops.effective_rank, {"kind": "entropy", "method": "lanczos"}, entropy),
}


@cases(5)
@given(
    drawn=symmetric(kinds=SPECTRA, smallest=20, largest=150),
    name=st.sampled_from(sorted(ESTIMATES)),
    budget=st.sampled_from([8, 16, 32, 64]),
    first=st.integers(0, 2**31),
)
def test_intervals_hold_the_truth(tally, drawn: Symmetric, name, budget, first):
    estimate, options, exact = ESTIMATES[name]
    assume((drawn.values >= 0).all())
    truth = exact(drawn.values)
    held = 0
    for seed in range(first, first + SEEDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kpops.ConvergenceWarning)
            found = estimate(drawn.matrix, num_matvecs=budget, rng=seed, **options)
        gap = abs(float(found.estimate) - truth)
        held += gap <= 2 * float(found.stderr) + 1e-9 * truth
    # Of 40 intervals that hold with a chance of 0.9, less than 27 do so once in 100,000 cases.
    assert held >= 27, (drawn.kind, len(drawn.values), truth)
    tally(cases=1, error_bars=SEEDS, error_bars_that_hold=held)
