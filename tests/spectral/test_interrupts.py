"""Ctrl-C: the best so far, where it is asked for, whatever was under way."""

import os
import signal
import warnings

import numpy as np
import pytest
import scipy.sparse.linalg as sla
from cases import slow_but

import kpops
from kpops.linalg import lanczos

N = 300
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]


class Interrupting(sla.LinearOperator):
    """A matrix whose product number `at` is interrupted, as by Ctrl-C."""

    def __init__(self, matrix, at=None, press=False):
        super().__init__(float, matrix.shape)
        self.matrix, self.at, self.press, self.seen = matrix, at, press, 0

    def act(self, matrix, X):
        self.seen += X.shape[1]
        if self.at is not None and self.seen >= self.at:
            self.at = None
            if not self.press:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return matrix @ X

    def _matmat(self, X):
        return self.act(self.matrix, X)

    def _rmatmat(self, X):
        return self.act(self.matrix.T, X)


def slow():
    """Takes about 300 products for 6 modes, with restarts, and a second search."""
    return (Q * np.linspace(0.2, 1, N)) @ Q.T


@pytest.mark.parametrize("press", [False, True])
@pytest.mark.parametrize("at", [3, 4, 6, 9, 40, 100, 150])
@pytest.mark.parametrize("method", ["block-krylov", "lobpcg", "arpack"])
def test_eigsh_gives_the_best_so_far(method, at, press):
    op = Interrupting(slow(), at, press)
    with pytest.warns(kpops.ConvergenceWarning, match=f"eigsh by {method} was interrupted"):
        result = kpops.eigsh(op, 6, method=method, rng=0, on_interrupt="return")
    assert op.at is None  # it was interrupted
    assert op.seen < at + 60  # and did not go on
    assert not result.converged.all()
    found = result.eigenvalue.dropna("mode").values
    assert (np.abs(found) <= 1 + 1e-12).all()
    vectors = result.eigenfunction.dropna("mode").values
    gaps = np.linalg.norm(slow() @ vectors.T - vectors.T * found, axis=0)
    said = result.residual.dropna("mode").values
    largest = np.abs(found).max() if len(found) else 1.0
    np.testing.assert_allclose(gaps, said * largest, rtol=0.5, atol=1e-12)


def test_finished_steps_are_not_lost():
    """The later, the nearer to what there is: of 40 products and of 150."""
    with pytest.warns(kpops.ConvergenceWarning):
        few, many = (
            kpops.eigsh(
                Interrupting(slow(), at), 3, method="block-krylov", rng=0, on_interrupt="return"
            )
            for at in (40, 150)
        )
    assert many.residual.max() < 1e-2 * few.residual.max()
    assert abs(many.eigenvalue[0] - 1) < 1e-6


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_stage_can_be_interrupted(monkeypatch, stride):
    """Runs over all matvecs, so that restarts, the second search and the end are among them."""
    monkeypatch.setattr(lanczos, "_BLOCKS", 8)
    monkeypatch.setattr(lanczos, "_VECTORS", 16)
    matrix = (Q[:40, :40] + Q[:40, :40].T) / 2
    values = np.linalg.eigvalsh(matrix)
    largest = np.abs(values).max()
    for press in (False, True):
        whole = Interrupting(matrix)
        kpops.eigsh(whole, 3, method="block-krylov", rng=0, tol=1e-8)
        for at in range(whole.seen, 2, -stride):
            op = Interrupting(matrix, at, press)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                result = kpops.eigsh(
                    op, 3, method="block-krylov", rng=0, tol=1e-8, on_interrupt="return"
                )
            assert bool(told) == (not result.converged.all())
            near = np.abs(result.eigenvalue.values[:, None] - values).min(1)
            allowed = result.residual.values * np.abs(result.eigenvalue.values[0]) + 1e-12
            assert (near <= allowed)[~np.isnan(near)].all()
            if result.converged.all():  # only the last block and the residuals were left to do
                assert at > whole.seen - 2 - 3
                assert abs(result.eigenvalue[0]) == pytest.approx(largest, rel=1e-10)


@pytest.mark.parametrize("at", [1, 5, 30, 90])
@pytest.mark.parametrize("method", ["block-krylov", "lobpcg"])
def test_svds_gives_the_best_so_far(method, at):
    op = Interrupting(slow() @ Q, at)
    with pytest.warns(kpops.ConvergenceWarning, match=f"svds by {method} was interrupted"):
        result = kpops.svds(op, 4, method=method, rng=0, on_interrupt="return")
    assert op.seen < at + 100
    assert not result.converged.all()
    found = result.singular_value.dropna("mode")
    assert (found <= 1 + 1e-12).all() and (found > 0).all()


@pytest.mark.parametrize("kind", ["participation", "variance", "entropy", "stable", "numerical"])
@pytest.mark.parametrize("at", slow_but([20, 300], [4, 20, 70, 300]))
def test_effective_rank_gives_the_best_so_far(kind, at):
    positive = np.diag(np.exp(-np.arange(1200) / 90))
    op = Interrupting(positive, at)
    asked = {"num_matvecs": 512, "rng": 0, "on_interrupt": "return", "rtol": 1e-4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        with pytest.warns(kpops.InterruptWarning, match="effective_rank was interrupted after"):
            result = kpops.effective_rank(op, kind, **asked)
    assert result.attrs["converged"] == 0
    exact = float(kpops.effective_rank(positive, kind, method="exact").estimate)
    if np.isfinite(result.estimate):
        assert abs(float(result.estimate) - exact) < 5 * float(result.stderr) + 0.1 * exact


def test_ctrl_c_raises_unless_told_otherwise():
    for press in (False, True):
        for function in (kpops.eigsh, kpops.svds):
            with pytest.raises(KeyboardInterrupt):
                function(Interrupting(slow(), 20, press), 3, method="block-krylov", rng=0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_raises():
    class Twice(Interrupting):
        def act(self, matrix, X):
            if self.seen > 20:
                raise KeyboardInterrupt
            self.seen += X.shape[1]
            return matrix @ X

    with pytest.raises(KeyboardInterrupt):
        kpops.eigsh(Twice(slow()), 3, method="block-krylov", rng=0, on_interrupt="return")


def test_the_handler_of_ctrl_c_is_given_back():
    kpops.eigsh(slow(), 3, method="block-krylov", rng=0, on_interrupt="return")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unknown_answer_is_refused():
    for function in (kpops.eigsh, kpops.svds):
        with pytest.raises(ValueError, match="on_interrupt='stop': choose 'raise' or 'return'"):
            function(np.eye(3), 1, on_interrupt="stop")
    with pytest.raises(ValueError, match="on_interrupt='stop'"):
        kpops.effective_rank(np.eye(3), on_interrupt="stop")
