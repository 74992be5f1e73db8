"""Gramians of the propagator: laws, closed forms, and dense matrices."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CASES_AND_ENGINES, STEPS, TRIALS, skip_compiled_elsewhere
from dense import dense, relative
from linear_networks import linear_rnn

import kpops
from kpops.linalg.gramians import propagator_norm
from kpops.operators import Restriction
from kpops.spectral.gramian import controllability_gramian, observability_gramian

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


@pytest.mark.parametrize(("a", "expected"), [(1.0, 50 * 51 / 2), (0.9, 240.7208), (-0.5, None)])
def test_scalar_propagators_have_their_closed_form(a, expected):
    n_steps = 50
    exact = sum((n_steps - j) * a ** (2 * j) for j in range(n_steps))
    value = propagator_norm(linear_rnn([[a]], n_steps).P) ** 2
    assert value == pytest.approx(exact, rel=1e-13)
    if expected is not None:
        assert value == pytest.approx(expected, abs=1e-4)


def test_orthogonal_weights_give_a_triangular_number():
    W = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    value = propagator_norm(linear_rnn(W, n_steps=7, n_trials=3).P) ** 2
    assert value == pytest.approx(3 * 5 * 7 * 8 / 2, rel=1e-12)


def test_normal_weights_add_up_over_their_eigenvalues():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    core = np.zeros((4, 4))
    core[:2, :2] = [[0.6, -0.5], [0.5, 0.6]]
    core[2:, 2:] = np.diag([-0.9, 0.3])
    W = rotation @ core @ rotation.T
    squares = np.abs(np.linalg.eigvals(W)) ** 2
    exact = sum((9 - j) * (squares**j).sum() for j in range(9))
    assert propagator_norm(linear_rnn(W, 9).P) ** 2 == pytest.approx(exact, rel=1e-12)


def test_a_long_horizon_solves_the_lyapunov_equation():
    W = np.random.default_rng(1).standard_normal((3, 3)) * 0.3
    gramian = observability_gramian(linear_rnn(W, 200)).gramian.values[0, 0]
    assert relative(W.T @ gramian @ W + np.eye(3), gramian) < 1e-13


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
@pytest.mark.parametrize(
    ("case", "engine"), CASES_AND_ENGINES, ids=lambda value: getattr(value, "name", value)
)
def test_gramians_of_every_model_are_those_of_its_dense_propagator(case, engine, mask, device):
    skip_compiled_elsewhere(engine, device)
    model, (inputs, h0) = case.model(), case.data()
    options = {"h0": h0, "engine": engine, "device": device}
    options["mask"] = case.as_module_takes(model, mask)
    lin = kpops.linearize(model, case.as_module_takes(model, inputs), **options)
    exact = dense(case, model, inputs, h0, mask=mask).P
    assert propagator_norm(lin.P) ** 2 == pytest.approx(float(exact.square().sum()), rel=1e-12)
    P = exact.reshape(TRIALS, STEPS, case.state_size, TRIALS, STEPS, case.state_size)
    within = torch.stack([P[b, :, :, b] for b in range(TRIALS)])
    forth = torch.einsum("bsitj,bsitk->btjk", within, within)
    back = torch.einsum("btisj,btksj->btik", within, within)
    for function, gramians in ((observability_gramian, forth), (controllability_gramian, back)):
        result = function(lin, times=range(STEPS))
        assert relative(result.gramian.values, gramians) < 1e-12
        traces = gramians.diagonal(dim1=2, dim2=3).sum(-1)
        assert relative(result.trace.values, traces) < 1e-12


def test_adjoints_multiples_selections_and_blocks_are_exact_too():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 4, batch_first=True).double()
    mask = torch.arange(6) < torch.tensor([[6], [4], [6]])
    lin = kpops.linearize(gru, torch.randn(3, 6, 2).double(), mask=mask)
    first, second = (
        Restriction(lin.space, {"time": t}, lin.dtype, lin.device)
        for t in (slice(3, 6), slice(0, 2))
    )
    for op in (
        lin.P.H,
        -3 * lin.P.H,
        lin.P.select(trial=[2, 0]),
        lin.P.select(time=slice(1, 4), unit=[0, 3]),
        lin.P.select(time=slice(1, 6)).select(time=[2, 0], trial=1),
        first @ lin.P @ second.H,
        0.5 * (second @ lin.P.H @ first.H),
        (first @ (2 * lin.P)).H,
    ):
        exact = np.square(op.to_dense()).sum()
        assert propagator_norm(op) ** 2 == pytest.approx(exact, rel=1e-12), op


def test_other_operators_have_no_gramian_recursion():
    lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.ones(2, 4, 2))
    part = Restriction(lin.space, {"time": 0}, lin.dtype, lin.device)
    for op in (lin.K, lin.flow, lin.P_inv, lin.P @ lin.P, lin.P + lin.P, part @ part.H):
        assert propagator_norm(op) is None


@pytest.mark.parametrize("gates", ["float32", "recomputed"])
def test_other_treatments_of_gates_give_the_same_norm(gates):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(2, 4, batch_first=True).double()
    inputs = torch.randn(3, 6, 2).double()
    exact = propagator_norm(kpops.linearize(lstm, inputs, engine="jacobian").P) ** 2
    lin = kpops.linearize(lstm, inputs, engine="gated", gates=gates)
    assert propagator_norm(lin.P) ** 2 == pytest.approx(exact, rel=1e-5)


def test_norms_beyond_the_range_of_float32_are_found():
    # The squares of the entries of P overflow, P itself does not.
    lin = linear_rnn(np.diag([4.0, 0.5]), 45, dtype=torch.float32)
    exact = sum((45 - j) * (16.0**j + 0.25**j) for j in range(45))
    assert exact > float(np.finfo(np.float32).max)
    assert propagator_norm(lin.P) ** 2 == pytest.approx(exact, rel=1e-5)
    assert propagator_norm(1e-12 * lin.P) ** 2 == pytest.approx(1e-24 * exact, rel=1e-5)


def test_labels_and_dtype_reach_the_result():
    lin = kpops.linearize(torch.nn.LSTM(2, 3, batch_first=True), torch.ones(2, 4, 2))
    result = observability_gramian(lin, times=[-1, 1])
    assert result.gramian.dims == ("trial", "at_time", "unit", "unit_in")
    assert result.gramian.at_time.values.tolist() == [4, 2]
    assert result.gramian.variable_in.values.tolist() == ["h"] * 3 + ["c"] * 3
    assert result.gramian.dtype == result.trace.dtype == np.float32
    assert result.model == "LSTM"
    assert result.trace.attrs == {"long_name": "trace of the observability Gramian", "units": "1"}
    np.testing.assert_array_equal(result.gramian.values[:, 0], np.stack([np.eye(6)] * 2))
    last = controllability_gramian(lin.P).gramian
    assert last.at_time.values.tolist() == [4]
    np.testing.assert_array_equal(last, last.transpose("trial", "at_time", "unit_in", "unit"))


def test_gramians_survive_a_file(tmp_path):
    lin = kpops.linearize(torch.nn.LSTM(2, 3, batch_first=True), torch.ones(2, 4, 2))
    result = observability_gramian(lin, times=[0, 2])
    result.to_netcdf(tmp_path / "gramian.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "gramian.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again, result)
        assert again.attrs == result.attrs


@pytest.mark.parametrize("times", [[4], [-5], [0.5], "last"])
def test_impossible_times_are_refused(times):
    lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.ones(2, 4, 2))
    with pytest.raises(ValueError, match="choose positions from 0 to 3"):
        observability_gramian(lin, times)


def test_what_has_no_propagator_is_refused():
    with pytest.raises(TypeError, match="pass a Linearization, or its P"):
        controllability_gramian(np.eye(3))


@pytest.mark.parametrize("function", [observability_gramian, controllability_gramian])
def test_gramians_work_in_inference_mode(function):
    lin = linear_rnn(0.5 * np.eye(2), 4)
    outside = function(lin), propagator_norm(lin.P) ** 2
    with torch.inference_mode():
        inside = function(lin), propagator_norm(lin.P) ** 2
    assert inside[0].identical(outside[0])
    assert inside[1] == outside[1]
