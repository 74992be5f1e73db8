"""The row on the Kronecker core tells a right Gram matrix from a wrong one."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction.rows import kronecker_core as row

SMALL = {"trials": 2, "time": 3, "units": 4, "inputs": 2, "heads": 2, "scales": [1.0]}


def test_the_theorem_holds_for_all_networks():
    found = row.measure(0, **SMALL)
    assert float(found.difference.max()) < 1e-12
    assert all(check.holds for check in row.judge(found.expand_dims(seed=[0])))


@pytest.mark.parametrize("name", row.NETWORKS)
def test_the_gram_matrix_is_that_of_one_step_by_autograd(name):
    """J J^T, at sites that nothing precedes, where J is dh/dtheta."""
    data = np.random.default_rng(1).normal(size=(2, 3, 2))
    model, _ = row.linearize(name, data, 0, 4, 2, 1.0)
    D = row.jacobian(name, model, data)
    K = row.grams(name, model, data)
    first = data.shape[0] * data.shape[1]
    if name == "RNN":
        units = 4
        at = [trial * 3 * units + u for trial in range(2) for u in range(units)]
    else:  # the first site, which no other part precedes
        size, width = len(K) // 2, first // 2 * 4
        at = [trial * size + i for trial in range(2) for i in range(width)]
    np.testing.assert_allclose(K[np.ix_(at, at)], D[at] @ D[at].T, rtol=1e-10, atol=1e-14)


def test_a_wrong_gram_matrix_is_told(monkeypatch):
    right = row.grams

    def too_large(name, model, data):
        return right(name, model, data) * (1 + 1e-6 * (name == "MLP"))

    monkeypatch.setattr(row, "grams", too_large)
    found = row.measure(0, **SMALL)
    failed = [c.text for c in row.judge(found.expand_dims(seed=[0])) if not c.holds]
    assert len(failed) == 2 and all(text.startswith("MLP") for text in failed)
