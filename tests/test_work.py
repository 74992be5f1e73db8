"""Long work says what it will take, shows how far it is, and refuses what would take too long."""

import inspect

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

import kpops
from kpops import work
from kpops.engines import memory

LONG_FUNCTIONS = {
    "eigvalsh": lambda lin, **o: kpops.eigvalsh(lin.flow, **o),
    "eigsh": lambda lin, **o: kpops.eigsh(lin.flow, 2, method="block-krylov", rng=0, **o),
    "svds": lambda lin, **o: kpops.svds(lin.P, 2, method="block-krylov", rng=0, **o),
    "effective_rank": lambda lin, **o: kpops.effective_rank(
        lin.flow, method="hutchinson", rng=0, **o
    ),
    "spectral_density": lambda lin, **o: kpops.spectral_density(
        lin.flow, method="lanczos", rng=0, **o
    ),
    "trace": lambda lin, **o: kpops.trace(lin.flow, method="hutchinson", rng=0, **o),
    "diagonal": lambda lin, **o: kpops.diagonal(lin.flow, method="hutchinson", rng=0, **o),
    "frobenius_norm": lambda lin, **o: kpops.frobenius_norm(
        lin.flow, method="hutchinson", rng=0, **o
    ),
    "schatten_norm": lambda lin, **o: kpops.schatten_norm(lin.flow, 3, method="lanczos", **o),
    "spectral_norm": lambda lin, **o: kpops.spectral_norm(lin.flow, **o),
    "alignment": lambda lin, **o: kpops.alignment(lin.flow, lin.K, method="hutchinson", **o),
    "frobenius_map": lambda lin, **o: kpops.frobenius_map(lin.flow, "time", method="probes", **o),
    "truncate": lambda lin, **o: kpops.truncate(lin.flow, 2, **o),
    "observability_gramian": kpops.observability_gramian,
    "controllability_gramian": kpops.controllability_gramian,
    "greens_map": kpops.greens_map,
    "predictive_information": kpops.predictive_information,
    "collapse": lambda lin, **o: kpops.collapse(lin, rng=0, **o),
    "rank_bounds": lambda lin, **o: kpops.rank_bounds(lin, rng=0, **o),
    "lyapunov_spectrum": lambda lin, **o: kpops.lyapunov_spectrum(lin, k=2, **o),
    "covariant_lyapunov_vectors": lambda lin, **o: kpops.covariant_lyapunov_vectors(
        lin, k=2, transient=1, **o
    ),
}
TOTALS = {
    "eigvalsh": "60/60 ",
    "trace": "/128 ",
    "alignment": "130/130 ",
    "frobenius_map": "81/81 ",
    "lyapunov_spectrum": "5/5 ",
    "observability_gramian": "5/5 ",
    "greens_map": "5/5 ",
}


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 4, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 5, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", LONG_FUNCTIONS)
def test_long_functions_show_a_bar_where_it_is_asked_for(lin, name, capsys):
    plain = LONG_FUNCTIONS[name](lin)
    assert capsys.readouterr().err == ""
    shown = LONG_FUNCTIONS[name](lin, progress=True)
    bar = capsys.readouterr().err
    assert f"{name}: " in bar
    assert TOTALS.get(name, "") in bar
    assert type(shown) is type(plain)


def test_every_function_that_may_be_long_can_show_it():
    for name in (
        *LONG_FUNCTIONS,
        "interference",
        "truncated_flow",
        "fixed_points",
        "over_training",
    ):
        parameter = inspect.signature(getattr(kpops, name)).parameters["progress"]
        assert parameter.default is False
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert "progress" in inspect.signature(kpops.training.train).parameters


def test_bars_of_solvers_show_modes_and_residuals(capsys):
    matrix = np.diag(np.linspace(0.1, 1, 60))
    kpops.eigsh(matrix, 3, method="block-krylov", rng=0, progress=True)
    assert "3 of 3 modes, residual" in capsys.readouterr().err


def test_what_a_function_calls_is_a_part_of_its_own_bar(lin, capsys):
    kpops.effective_rank(lin.flow, "stable", method="hutchinson", rng=0, progress=True)
    bar = capsys.readouterr().err
    assert "effective_rank: " in bar and "eigsh" not in bar


def test_starts_of_fixed_points_are_counted(capsys):
    cell = torch.nn.RNNCell(1, 2).double()
    kpops.fixed_points(cell, starts=np.random.default_rng(0).normal(size=(7, 2)), progress=True)
    assert "7/7 " in capsys.readouterr().err


# What takes too long.


class Diagonal(sla.LinearOperator):
    def __init__(self, n):
        super().__init__(float, (n, n))
        self.values, self.seen = np.linspace(1, 2, n), 0

    def _matmat(self, X):
        self.seen += X.shape[1]
        return self.values[:, None] * X

    _rmatmat = _matmat


def test_a_spectrum_that_would_take_hours_is_refused_at_once():
    op = Diagonal(51_000)
    with pytest.raises(ValueError, match=r"1 matrix of shape \(51000, 51000\), 1.8e\+14") as told:
        kpops.eigvalsh(op)
    assert "about 5 hours" in str(told.value)
    for remedy in ("eigsh", "spectral_density", "op.select", "pass anyway=True"):
        assert remedy in str(told.value)
    assert op.seen <= 4  # whether it is self-adjoint


def test_most_modes_of_a_large_operator_are_refused_by_auto():
    op = Diagonal(20_000)
    for solver in (kpops.eigsh, kpops.svds):
        with pytest.raises(ValueError, match="pass method='exact'"):
            solver(op, 15_000)


def test_what_is_insisted_on_is_done_with_a_warning(monkeypatch):
    monkeypatch.setattr(work, "LONG", 1e-9)
    matrix = np.diag([3.0, 2.0, 1.0])
    cases = {
        "eigvalsh": lambda: kpops.eigvalsh(matrix, anyway=True).eigenvalue,
        "eigsh": lambda: kpops.eigsh(matrix, 3, method="exact").eigenvalue,
        "svds": lambda: kpops.svds(matrix, 3, method="exact").singular_value,
    }
    for function in cases.values():
        with pytest.warns(kpops.LongWorkWarning, match="takes the decomposition of 1 matrix"):
            np.testing.assert_allclose(function(), [3, 2, 1], rtol=1e-12)


def test_estimates_follow_from_sizes_alone(monkeypatch, capsys):
    monkeypatch.setattr(work, "WORTH_A_WORD", 0.0)
    matrix = np.diag(np.linspace(1, 2, 300))
    kpops.eigvalsh(matrix, progress=True)
    first = [line for line in capsys.readouterr().err.splitlines() if "operations" in line]
    kpops.eigvalsh(matrix, progress=True)
    assert first == [line for line in capsys.readouterr().err.splitlines() if "operations" in line]
    assert "eigvalsh: 1 matrix of shape (300, 300), 3.6e+07 operations, about 0 seconds" in first[0]
    kpops.eigvalsh(matrix)
    assert capsys.readouterr().err == ""


def test_random_vectors_take_no_basis_beside_them(lin):
    before = lin.flow.num_matvecs
    kpops.alignment(lin.flow, lin.P, method="hutchinson", num_matvecs=16, rng=0)
    assert lin.flow.num_matvecs - before == 16 + 1  # and one for the scale


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "about 40 seconds"), (300, "about 5 minutes"), (17_700, "about 5 hours")],
)
def test_durations_are_for_people(seconds, text):
    assert work.duration(seconds) == text


def test_memory_that_is_not_there_comes_with_what_takes_less(lin, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**10)
    monkeypatch.setattr(memory, "ALWAYS_FITS", 2**10)
    for function in (lin.flow.to_dense, lambda: kpops.eigvalsh(lin.P @ lin.P.H)):
        with pytest.raises(MemoryError, match=r"needs .*, .* are free on cpu: use what") as told:
            function()
        for remedy in ("eigsh", "fewer trials", "select(", "float32"):
            assert remedy in str(told.value)
