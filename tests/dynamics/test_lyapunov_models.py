"""Lyapunov exponents of any model, against textbook loops over dense Jacobians."""

import math

import numpy as np
import pytest
import torch
from systems import (
    RK4,
    Henon,
    Linear,
    Residual,
    dense_jacobians,
    lorenz,
    normal,
    random_cell,
    textbook,
    with_eigenvalues,
)
from torch import nn

import kpops
from kpops.dynamics import lyapunov_source, lyapunov_steps, lyapunov_tangent
from kpops.dynamics.lyapunov import lyapunov_spectrum
from kpops.dynamics.lyapunov_source import read_source
from kpops.engines import threads as engine_threads
from kpops.models.torch_rnn import TorchRecurrence

MODELS = {
    "small gru": (lambda: nn.GRUCell(2, 4), 4, 4, "JacobianSteps"),
    "lstm": (lambda: nn.LSTMCell(2, 10), 20, 2, "CompiledSteps"),
    "stack": (lambda: nn.GRU(2, 12, num_layers=2, batch_first=True), 24, 2, "CompiledSteps"),
    "wide rnn": (lambda: nn.RNN(2, 66, batch_first=True), 66, 66, "CompiledSteps"),
    "own gates": (lambda: kpops.models.PLRNNCell(2, 20), 20, 2, "CompiledSteps"),
    "own cell, all": (lambda: Residual(20), 20, 20, "JacobianSteps"),
    "own cell, few": (lambda: Residual(20), 20, 2, "Steps"),
}


@pytest.fixture(params=MODELS)
def case(request):
    build, n_units, k, kind = MODELS[request.param]
    return random_cell(build(), scale=1.2), n_units, k, kind


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    """Short runs are compiled, too."""
    monkeypatch.setattr(lyapunov_source, "COMPILED_FROM", 1)


def driven(model, n_units, n_trials=3, n_steps=12):
    """Inputs, initial states and dense Jacobians of the model's recurrence."""
    inputs, h0 = normal(n_trials, n_steps, 2, seed=1), normal(n_trials, n_units, seed=2)
    step = kpops.models.as_recurrence(model)
    return inputs, h0, dense_jacobians(step, h0, inputs)[1]


def test_exponents_are_those_of_a_plain_loop_over_dense_jacobians(case):
    model, n_units, k, kind = case
    inputs, h0, jacobians = driven(model, n_units)
    source, _ = read_source(model, k, inputs, h0, None, None, None)
    assert lyapunov_steps.kind_of_steps(source, k).__name__ == kind
    result = lyapunov_spectrum(model, k, inputs=inputs, h0=h0, frame_transient=3, rng=5)
    expected = textbook(jacobians, k, 5, begin=3)
    np.testing.assert_allclose(result.trial_exponent, expected, atol=1e-10)
    np.testing.assert_allclose(result.exponent, expected.mean(0), atol=1e-10)
    assert result.attrs["dynamics"] == "driven"
    if kind == "JacobianSteps" and k == n_units:
        log_det = np.linalg.slogdet(jacobians[:, 3:])[1].mean()
        assert float(result.mean_log_det) == pytest.approx(log_det, abs=1e-10)
        assert float(result.exponent.sum()) == pytest.approx(log_det, abs=1e-10)
    else:
        assert "mean_log_det" not in result


CELLS = {
    "rnn": (lambda: nn.RNN(2, 20, num_layers=2, batch_first=True), 3),
    "relu": (lambda: nn.RNNCell(2, 20, nonlinearity="relu"), 3),
    "gru": (lambda: nn.GRU(2, 12, num_layers=2, batch_first=True), 2),
    "gru, all": (lambda: nn.GRU(2, 66, batch_first=True), 66),
    "lstm": (lambda: nn.LSTM(2, 9, num_layers=3, batch_first=True), 3),
    "lstm, many": (lambda: nn.LSTMCell(2, 40, bias=False), 70),
    "rate": (lambda: kpops.models.LeakyCell(2, 20, alpha=0.3, activation="relu"), 3),
    "current": (lambda: kpops.models.LeakyCell(2, 20, alpha=0.3, form="current"), 3),
    "low rank": (lambda: kpops.models.LowRankCell(2, 20, rank=2, alpha=1), 2),
    "own gates": (lambda: kpops.models.PLRNNCell(2, 20), 3),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_compiled_gives_what_torch_computes(name, threads, monkeypatch):
    build, k = CELLS[name]
    model = random_cell(build(), scale=1.2)
    n_units = kpops.models.as_recurrence(model).state_size
    inputs, h0 = normal(3, 12, 2, seed=1), normal(3, n_units, seed=2)
    mask = torch.arange(12) < torch.tensor([[12], [7], [10]])
    lin = kpops.linearize(model, inputs, h0=h0, mask=mask)
    calls = [lambda: lyapunov_spectrum(lin, k, frame_transient=2, rng=5)]
    calls += [lambda: lyapunov_spectrum(model, k, inputs=inputs, h0=h0, frame_transient=2, rng=5)]
    monkeypatch.setattr(engine_threads, "FEW_FLOPS", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compiled = [call() for call in calls]
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(lyapunov_source, "COMPILED_FROM", math.inf)
    for call, ours in zip(calls, compiled, strict=True):
        np.testing.assert_allclose(ours.trial_exponent, call().trial_exponent, atol=1e-11)


def test_short_runs_compile_nothing(monkeypatch):
    monkeypatch.setattr(lyapunov_source, "COMPILED_FROM", 13)
    model, inputs = random_cell(nn.GRU(2, 20, batch_first=True)), normal(3, 13, 2)
    kinds = []
    for n in (12, 13):
        source, k = read_source(model, 2, inputs[:, :n], None, None, None, None)
        kinds.append(lyapunov_steps.kind_of_steps(source, k).__name__)
        ((_, _, known),) = source.chunks(20)
        assert (known is not None) == (n == 13)
    assert kinds == ["GatedSteps", "CompiledSteps"]


def test_a_changed_subclass_has_no_formula():
    class Slower(TorchRecurrence):
        def gates(self, from_x, from_h, state):
            (new,) = super().gates(from_x, from_h, state)
            return (0.5 * (new + state[0]),)

    model = random_cell(nn.GRU(2, 20, batch_first=True), scale=1.5)
    inputs, h0, jacobians = driven(Slower(model, "GRU"), 20)
    assert Slower(model, "GRU").formula is None
    result = lyapunov_spectrum(Slower(model, "GRU"), 2, inputs=inputs, h0=h0, rng=5)
    expected = textbook(jacobians, 2, 5, begin=1)
    np.testing.assert_allclose(result.trial_exponent, expected, atol=1e-10)


def test_a_linearization_gives_what_its_model_gives(case):
    model, n_units, k, _ = case
    inputs, h0, _ = driven(model, n_units)
    lin = kpops.linearize(model, inputs, h0=h0)
    ours = lyapunov_spectrum(lin, k, rng=5)
    theirs = lyapunov_spectrum(model, k, inputs=inputs, h0=h0, rng=5)
    for name in ("exponent", "finite_time_exponent", "history"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-12)
    assert ours.attrs["dynamics"] == "driven" and ours.attrs["engine"] == lin.engine.name


def test_partial_spectra_are_the_leading_part_of_the_full_one(case):
    model, n_units, k, _ = case
    inputs, h0, _ = driven(model, n_units, n_steps=60)
    full = lyapunov_spectrum(model, inputs=inputs, h0=h0, rng=3)
    for few in {1, k // 2 or 1, k}:
        part = lyapunov_spectrum(model, few, inputs=inputs, h0=h0, rng=3)
        np.testing.assert_allclose(
            part.trial_exponent, full.trial_exponent[:, :few], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("model", [Henon(), RK4(lorenz, 0.01)])
def test_partial_spectra_of_chaos_are_the_leading_part_of_the_full_one(model):
    h0 = 0.1 * normal(4, 2) if isinstance(model, Henon) else normal(4, 3) + 5
    full, part = (lyapunov_spectrum(model, k, h0=h0, n_steps=1000, rng=3) for k in (None, 1))
    np.testing.assert_allclose(part.exponent[0], full.exponent[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.float32, 0.3), (torch.float64, -1.7)])
@pytest.mark.parametrize("k", [1, 3])
def test_growth_in_common_needs_few_qrs_and_stays_within_the_range_of_the_dtype(dtype, rate, k):
    n = 900
    values = np.exp(rate + 0.01 * np.arange(3)[::-1])
    model = Linear(torch.diag(torch.as_tensor(values, dtype=dtype)))
    h0 = torch.zeros(1, 3, dtype=dtype)
    source, _ = read_source(model, k, None, h0, n, None, None)
    pieces = list(lyapunov_tangent.evolve_frames(source, k, [0, n], None, 0))
    growth = sum(piece.growth for piece in pieces)[0]
    range_ = math.log(torch.finfo(dtype).max)
    assert all(float(piece.growth.abs().max()) < range_ / 2 for piece in pieces)
    assert len(pieces) < n * abs(rate) / (range_ / 4) + 8
    if k == 3:  # the volume does not depend on how far the frame has turned
        expected = n * np.log(values).sum()
        assert float(growth.sum()) == pytest.approx(expected, rel=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("interval", [1, 7, 1000])
def test_the_interval_of_the_qr_changes_nothing(interval):
    values = np.exp([2.0, 0.0, -3.0, -9.0])
    for model, h0 in ((Linear(with_eigenvalues(values)), np.zeros(4)), (Henon(), np.full(2, 0.1))):
        options = {"h0": h0, "n_steps": 600, "window": 50, "rng": 0}
        free = lyapunov_spectrum(model, **options)
        given = lyapunov_spectrum(model, interval=interval, **options)
        np.testing.assert_allclose(given.exponent, free.exponent, atol=1e-10)


def test_the_length_of_chunks_changes_nothing(case, monkeypatch):
    model, n_units, k, _ = case
    inputs, h0, _ = driven(model, n_units, n_steps=40)
    whole = lyapunov_spectrum(model, k, inputs=inputs, h0=h0, transient=5, rng=3)
    monkeypatch.setattr(lyapunov_tangent, "_CHUNK_BYTES", 7 * h0.nbytes * 24)
    pieces = lyapunov_spectrum(model, k, inputs=inputs, h0=h0, transient=5, rng=3)
    np.testing.assert_allclose(pieces.history, whole.history, atol=1e-11)


def test_masked_trials_count_their_own_steps():
    model = random_cell(nn.LSTM(2, 3, batch_first=True), scale=1.5)
    inputs, h0, jacobians = driven(model, 6)
    lengths = [12, 7, 4]
    mask = np.arange(12) < np.array(lengths)[:, None]
    lin = kpops.linearize(model, inputs, h0=h0, mask=mask)
    result = lyapunov_spectrum(lin, frame_transient=2, window=2, rng=1)
    expected = textbook(jacobians, 6, 1, begin=2, lengths=lengths)
    np.testing.assert_allclose(result.trial_exponent, expected, atol=1e-10)
    ended = np.isnan(result.finite_time_exponent[:, :, 0])
    np.testing.assert_array_equal(ended, result.time.values > np.array(lengths)[:, None])
    log_dets = np.linalg.slogdet(jacobians)[1]
    means = [log_dets[b, 2:n].mean() for b, n in enumerate(lengths)]
    assert float(result.mean_log_det) == pytest.approx(np.mean(means), abs=1e-10)


def test_any_device_gives_the_same(case, device):
    model, n_units, k, _ = case
    inputs, h0, jacobians = driven(model, n_units)
    result = lyapunov_spectrum(model.to(device), k, inputs=inputs, h0=h0, frame_transient=3, rng=5)
    expected = textbook(jacobians, k, 5, begin=3)
    np.testing.assert_allclose(result.trial_exponent, expected, atol=1e-10)


def test_a_learned_start_is_where_the_trajectories_begin(monkeypatch):
    inner = random_cell(nn.GRU(2, 4, batch_first=True), scale=1.5)
    model = kpops.models.LearnedStart(inner, normal(4))
    inputs = normal(3, 30, 2, seed=1)
    monkeypatch.setattr(lyapunov_tangent, "_CHUNK_BYTES", 7 * 8 * 3 * 4 * 4)
    for options in ({"inputs": inputs}, {"n_steps": 30}):
        learned = lyapunov_spectrum(model, **options, rng=0)
        given = lyapunov_spectrum(inner, **options, h0=normal(4), rng=0)
        np.testing.assert_allclose(learned.trial_exponent, given.trial_exponent, atol=1e-12)
        assert learned.attrs["dynamics"] == given.attrs["dynamics"]


def test_a_learned_start_needs_no_inputs():
    class Free(Residual):
        def forward(self, x, h):
            return super().forward(h.new_ones(len(h), 2), h)

    inner = random_cell(Free(3))
    learned = kpops.models.LearnedStart(inner, normal(3))
    one = lyapunov_spectrum(learned, n_steps=20, rng=0)
    other = lyapunov_spectrum(inner, h0=normal(3), n_steps=20, rng=0)
    np.testing.assert_allclose(one.trial_exponent, other.trial_exponent, atol=1e-12)


def test_a_state_of_several_tensors_is_taken_as_the_module_takes_it():
    lstm = random_cell(nn.LSTMCell(2, 3), scale=1.5)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, x, state):
            return self.lstm(x, state)

    inputs, h, c = normal(4, 25, 2), normal(4, 3, seed=1), normal(4, 3, seed=2)
    ours = lyapunov_spectrum(Own(), inputs=inputs, h0=(h, c), rng=0)
    theirs = lyapunov_spectrum(lstm, inputs=inputs, h0=torch.cat([h, c], -1), rng=0)
    np.testing.assert_allclose(ours.trial_exponent, theirs.trial_exponent, atol=1e-12)
