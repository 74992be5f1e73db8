"""Two standard errors hold the truth as often with few products as with many."""

import numpy as np
import pytest
import scipy.sparse

import kpops
from kpops.linalg.probes import widened
from kpops.operators.foreign import ForeignOperator

N, SEEDS = 120, 100
SPECTRA = {
    "geometric": 0.8 ** np.arange(N),
    "step": np.r_[np.ones(20), np.full(N - 20, 1e-3)],
}
CASES = [
    (kpops.trace, "hutchinson", 8),
    (kpops.trace, "hutchinson", 16),
    (kpops.trace, "xnystrace", 8),
    (kpops.trace, "xtrace", 8),
    (kpops.frobenius_norm, "xnystrace", 8),
    (kpops.frobenius_norm, "xnystrace", 16),
]


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(("function", "method", "num_matvecs"), CASES)
def test_two_standard_errors_hold_the_truth(spectrum, function, method, num_matvecs, monkeypatch):
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)
    op = ForeignOperator(scipy.sparse.diags(spectrum).tocsr())
    op.self_adjoint = op.positive = True
    exact = spectrum.sum() if function is kpops.trace else np.linalg.norm(spectrum)
    held = 0
    for seed in range(SEEDS):
        result = function(op, method=method, num_matvecs=num_matvecs, rng=seed)
        held += abs(float(result.estimate) - exact) <= 2 * float(result.stderr)
    # 95 % are meant; of 100 seeds, three binomial standard deviations below 93 % are no accident.
    assert held / SEEDS >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / SEEDS)


def test_the_widening_is_students_and_vanishes_for_many():
    # Quantiles of t at 97.725 % over 2: 13.968 at one degree of freedom, 2.0425 at 49.5.
    assert widened(2) == widened(3) == pytest.approx(13.968 / 2, rel=1e-3)
    assert widened(100) == pytest.approx(2.0425 / 2, rel=1e-2)
    assert widened(10**6) == pytest.approx(1, abs=1e-5)
