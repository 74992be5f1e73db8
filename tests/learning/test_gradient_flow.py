"""The pipeline Err -> P* -> J* -> J -> P against autograd; the real step is oracle 6."""

import numpy as np
import pytest
import torch
import xarray as xr
from dense import relative
from torch import nn

import kpops


@pytest.fixture
def problem():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)).double()
    inputs = torch.randn(4, 7, 3, dtype=torch.float64)
    targets = torch.randn(4, 7, 2, dtype=torch.float64)
    return network, inputs, targets


def test_error_holds_the_trajectory_fixed(problem):
    network, inputs, targets = problem
    flow = kpops.gradient_flow(kpops.linearize(network, inputs), targets)
    states = network.recurrent(inputs)[0].detach().requires_grad_()
    loss = nn.functional.mse_loss(network.readout(states), targets)
    (expected,) = torch.autograd.grad(loss, states)
    assert relative(flow.error.values, expected) < 1e-13


def test_each_stage_is_the_operator_of_its_name(problem, device):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs, device=device)
    flow = kpops.gradient_flow(lin, targets)
    np.testing.assert_allclose(flow.adjoint, lin.P.H @ flow.error, rtol=1e-12)
    np.testing.assert_allclose(flow.parameter_step, -(lin.J.H @ flow.adjoint), rtol=1e-12)
    np.testing.assert_allclose(flow.forcing, lin.J @ flow.parameter_step, rtol=1e-12)
    np.testing.assert_allclose(flow.state_change, lin.P @ flow.forcing, rtol=1e-12)
    change = lin.sensitivity @ flow.parameter_step.values
    np.testing.assert_allclose(flow.state_change.values.ravel(), change, rtol=1e-10, atol=1e-15)


def test_the_step_does_not_depend_on_the_measure(problem):
    network, inputs, targets = problem
    total, mean = (
        kpops.gradient_flow(kpops.linearize(network, inputs, measure=m), targets)
        for m in ("sum", "mean")
    )
    xr.testing.assert_equal(total, mean)
    assert mean.attrs["measure"] == "mean"


def test_the_loss_counts_valid_steps_only(problem):
    network, inputs, targets = problem
    mask = torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    targets = targets.masked_fill(~mask[..., None], torch.nan)
    flow = kpops.gradient_flow(kpops.linearize(network, inputs, mask=mask), targets)
    outputs = network(inputs)
    loss = (outputs - targets)[mask].square().mean()
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    assert float(flow.loss) == pytest.approx(loss.item(), rel=1e-13)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    assert relative(-flow.parameter_step.values, flat) < 1e-12


def test_any_loss_and_no_readout(problem):
    network, inputs, _ = problem
    targets = torch.randn(4, 7, 6, dtype=torch.float64)

    def huber(y, target):
        return nn.functional.huber_loss(y, target, reduction="sum")

    flow = kpops.gradient_flow(kpops.linearize(network.recurrent, inputs), targets, loss=huber)
    loss = huber(network.recurrent(inputs)[0], targets)
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    flat = torch.cat([g.reshape(-1) for g in gradient])
    assert relative(-flow.parameter_step.values, flat) < 1e-12


def test_a_nonlinear_readout_is_linearised_at_the_states(problem):
    network, inputs, targets = problem
    readout = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    lin = kpops.linearize(network.recurrent, inputs, readout=readout)
    flow = kpops.gradient_flow(lin, targets)
    loss = nn.functional.mse_loss(readout(network.recurrent(inputs)[0]), targets)
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    flat = torch.cat([g.reshape(-1) for g in gradient])
    assert relative(-flow.parameter_step.values, flat) < 1e-12


def test_results_are_labelled_and_keep_the_dtype():
    task = kpops.tasks.memory_pro(4, angles="even", noise=0, steps=(2, 2, 2))
    network = kpops.Network(nn.LSTM(3, 5), nn.Linear(5, 3))
    lin = kpops.linearize(network, task.inputs)
    flow = kpops.gradient_flow(lin, task.targets)
    assert flow.state_change.epoch.values.tolist() == lin.states.epoch.values.tolist()
    assert flow.state_change.angle.size == 4
    assert flow.parameter_step.parameter_name.values[0] == "weight_ih_l0"
    assert all(v.dtype == np.float32 for v in flow.data_vars.values())
    assert all("long_name" in v.attrs for v in flow.data_vars.values())


def test_the_result_can_be_saved(problem, tmp_path):
    network, inputs, targets = problem
    flow = kpops.gradient_flow(kpops.linearize(network, inputs), targets)
    flow.to_netcdf(tmp_path / "flow.nc", engine="h5netcdf")
    flow.to_zarr(tmp_path / "flow.zarr", consolidated=False)
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "flow.nc", engine="h5netcdf"), flow)
    again = xr.open_zarr(tmp_path / "flow.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, flow)


@pytest.mark.parametrize(
    ("act", "error", "told"),
    [
        (lambda lin, y: (lin, y[:, :5]), ValueError, r"shape \(4, 5, 2\), expected \(4, 7, 2\)"),
        (lambda lin, y: (lin, y.float()), TypeError, "targets is torch.float32"),
        (lambda lin, y: (lin, y * torch.nan), ValueError, "targets is not finite"),
        (lambda lin, y: (lin.flow, y), TypeError, "lin is the operator .*, no Linearization"),
    ],
)
def test_wrong_use_is_refused(problem, act, error, told):
    network, inputs, targets = problem
    with pytest.raises(error, match=told):
        kpops.gradient_flow(*act(kpops.linearize(network, inputs), targets))
