"""Every entry of a registry keeps its contract, without a line of test code of its own."""

import warnings

import numpy as np
import pytest

import kpops
from kpops.linalg.ranks.registry import KINDS
from kpops.linalg.traces import registry
from kpops.operators import ForeignOperator

N = 60
SPECTRUM = 0.8 ** np.arange(N)
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
MATRIX = (Q * SPECTRUM) @ Q.T


def rank(op, kind, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        return kpops.effective_rank(op, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_depends_on_the_spectrum_alone(kind):
    exact = float(rank(np.diag(SPECTRUM), kind).estimate)
    assert 0 < exact <= N
    assert float(rank(MATRIX, kind).estimate) == pytest.approx(exact, rel=1e-9)
    assert float(rank(1e3 * MATRIX, kind).estimate) == pytest.approx(exact, rel=1e-9)
    assert float(rank(np.zeros((4, 4)), kind).estimate) == 0
    assert float(rank(np.outer(SPECTRUM, SPECTRUM), kind).estimate) <= 1 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_is_of_the_size_of_the_number_of_equal_values(kind):
    few, many = (float(rank(np.eye(n), kind).estimate) for n in (5, 10))
    assert many == pytest.approx(2 * few, rel=1e-9)


@pytest.mark.parametrize(("kind", "method"), [(k, m) for k in KINDS for m in KINDS[k].methods])
def test_estimates_of_a_rank_hold_it_in_their_error_bars(kind, method):
    exact = float(rank(MATRIX, kind).estimate)
    held = 0
    for seed in range(10):
        found = rank(MATRIX, kind, method=method, num_matvecs=400, rng=seed)
        held += abs(float(found.estimate) - exact) <= 2 * float(found.stderr) + 1e-9 * exact
    assert held >= 7


@pytest.mark.parametrize("with_root", [False, True])
@pytest.mark.parametrize("method", registry.METHODS)
def test_estimates_of_a_trace_hold_it_in_their_error_bars(method, with_root, monkeypatch):
    monkeypatch.setattr("kpops.linalg.exact.DENSE_SIZE", 0)
    factor = ForeignOperator(Q * np.sqrt(SPECTRUM))
    op = factor @ factor.H if with_root else ForeignOperator(MATRIX)
    op.positive = op.self_adjoint = True
    least = registry.METHODS[method].least
    for budget in (least, 4 * least):
        held = 0
        for seed in range(20):
            found = kpops.trace(op, method=method, num_matvecs=budget, rng=seed)
            error = abs(float(found.estimate) - SPECTRUM.sum())
            held += error <= 2 * float(found.stderr) + 1e-12
            assert found.num_matvecs <= budget
        assert held >= 16


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'guess': choose one of 'auto', 'exact', 'hutchinson'"):
        kpops.trace(MATRIX, method="guess")


def test_an_unknown_kind_is_refused_with_the_list():
    with pytest.raises(ValueError, match=f"'sharpness': choose from {', '.join(map(repr, KINDS))}"):
        kpops.effective_rank(MATRIX, "sharpness")
