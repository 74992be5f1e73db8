"""What leading modes carry of a gradient step, against dense matrices from autograd."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.learning.gradient_flow import truncated_flow

B, T, S, OUT = 3, 4, 3, 2
N = B * T * S


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(2, S, batch_first=True), nn.Linear(S, OUT)).double()
    inputs = torch.randn(B, T, 2, dtype=torch.float64)
    targets = torch.randn(B, T, OUT, dtype=torch.float64)
    return network, inputs, targets


@pytest.fixture(scope="module")
def by_autograd(problem):
    """The flow operator as D D^T, Err, and the gradient of the loss, from the module alone."""
    network, inputs, targets = problem
    parameters = list(network.recurrent.parameters())

    def flat(gradients):
        return torch.cat([g.reshape(-1) for g in gradients])

    states = network.recurrent(inputs)[0]
    rows = [torch.autograd.grad(s, parameters, retain_graph=True) for s in states.flatten()]
    D = torch.stack([flat(row) for row in rows])
    fixed = states.detach().requires_grad_()
    loss = nn.functional.mse_loss(network.readout(fixed), targets)
    error = torch.autograd.grad(loss, fixed)[0].flatten()
    loss = nn.functional.mse_loss(network(inputs), targets)
    gradient = flat(torch.autograd.grad(loss, parameters))
    return (D @ D.T).numpy(), error.numpy(), gradient.numpy()


@pytest.fixture(scope="module")
def carried(problem):
    network, inputs, targets = problem
    return truncated_flow(kpops.linearize(network, inputs), targets, k=N)


def test_every_number_is_that_of_the_dense_flow_operator(by_autograd, carried):
    Phi, error, gradient = by_autograd
    values, vectors = np.linalg.eigh(Phi)
    values, vectors = values[::-1], vectors[:, ::-1]
    change = -Phi @ error
    np.testing.assert_allclose(carried.eigenvalue, values, atol=1e-12 * values[0])
    assert float(carried.total_state_change) == pytest.approx(np.linalg.norm(change), rel=1e-10)
    assert float(carried.total_loss_decrease) == pytest.approx(gradient @ gradient, rel=1e-10)
    shown = values > 1e-6 * values[0]  # vectors of lesser values are any basis of their span
    assert shown.sum() > 15
    for i in range(shown.sum()):
        v = vectors[:, : i + 1]
        through = v @ (v.T @ change)
        at = carried.isel(mode=i)
        assert abs(float(at.coefficient)) == pytest.approx(abs(v[:, i] @ error), rel=1e-8)
        assert float(at.coefficient * at.state_change) == pytest.approx(
            (v[:, i] @ error) * (v[:, i] @ change), rel=1e-8
        )
        assert float(at.error_captured) == pytest.approx(
            np.sum((v.T @ error) ** 2) / (error @ error), rel=1e-10
        )
        assert float(at.state_change_captured) == pytest.approx(
            through @ through / (change @ change), rel=1e-10
        )
        assert float(at.cosine) == pytest.approx(
            through @ change / np.linalg.norm(through) / np.linalg.norm(change), rel=1e-10
        )
        assert float(at.loss_decrease_captured) == pytest.approx(
            -(error @ through) / (gradient @ gradient), rel=1e-10
        )


def test_all_modes_carry_all(carried):
    last = carried.isel(mode=-1)
    for name in ("error_captured", "state_change_captured", "loss_decrease_captured", "cosine"):
        assert float(last[name]) == pytest.approx(1, rel=1e-10)
    decrease = float(carried.loss_decrease.sum())
    assert decrease == pytest.approx(float(carried.total_loss_decrease), rel=1e-10)


@pytest.mark.parametrize("k", [1, 5, 11])
def test_the_step_is_that_of_the_truncated_operator(problem, k):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs)
    flow = kpops.gradient_flow(lin, targets)
    top = kpops.truncate(lin.flow, k)
    through = -(top @ flow.error)
    result = truncated_flow(lin, targets, k=k)
    whole = np.linalg.norm(flow.state_change)
    missed = np.linalg.norm(flow.state_change - through) / whole
    assert missed == pytest.approx(np.sqrt(1 - float(result.cosine[-1]) ** 2), rel=1e-8)
    parts = (result.state_change * top.modes.eigenfunction).sum("mode")
    np.testing.assert_allclose(parts, through, atol=1e-12 * whole)


def test_the_loss_falls_by_what_all_modes_take_off_it(problem, carried):
    network, inputs, targets = problem
    readout = network.readout
    parameters = {k: p.detach() for k, p in network.recurrent.named_parameters()}

    def loss(weights):
        states = torch.func.functional_call(network.recurrent, weights, (inputs,))[0]
        return nn.functional.mse_loss(readout(states), targets)

    gradient = torch.func.grad(loss)(parameters)
    etas, gaps = np.array([1e-2, 1e-3, 1e-4]), []
    for eta in etas:
        stepped = {k: p - eta * gradient[k] for k, p in parameters.items()}
        fallen = float((loss(parameters) - loss(stepped)).detach()) / eta
        gaps.append(abs(fallen - float(carried.total_loss_decrease)))
    slopes = np.diff(np.log10(gaps)) / np.diff(np.log10(etas))
    np.testing.assert_allclose(slopes, 1, atol=0.05)


def test_the_measure_scales_eigenvalues_and_nothing_that_is_carried(problem, carried):
    network, inputs, targets = problem
    mean = truncated_flow(kpops.linearize(network, inputs, measure="mean"), targets, k=8)
    total = carried.isel(mode=slice(8))
    np.testing.assert_allclose(mean.eigenvalue * B * T, total.eigenvalue, rtol=1e-10)
    for name in ("coefficient", "state_change", "loss_decrease", "cosine"):
        np.testing.assert_allclose(abs(mean[name]), abs(total[name]), rtol=1e-8)
    assert mean.attrs["measure"] == "mean"


def test_modes_found_before_cost_no_search(problem):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs)
    modes = kpops.eigsh(lin.flow, 6, rng=0)
    before = lin.P.num_matvecs
    result = truncated_flow(lin, targets, k=4, modes=modes)
    # P* and P of the gradient flow, and of two modes, to make sure that they are those of flow.
    assert lin.P.num_matvecs - before == 6
    xr.testing.assert_allclose(
        result.drop_attrs(), truncated_flow(lin, targets, k=4, rng=0).drop_attrs()
    )


def test_masked_steps_carry_nothing(problem):
    network, inputs, targets = problem
    mask = torch.arange(T) < torch.tensor([[T], [2], [3]])
    result = truncated_flow(kpops.linearize(network, inputs, mask=mask), targets, k=N)
    loss = (network(inputs) - targets)[mask].square().mean()
    gradient = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    squared = sum(float(g.square().sum()) for g in gradient)
    assert float(result.total_loss_decrease) == pytest.approx(squared, rel=1e-10)
    assert float(result.loss_decrease_captured[-1]) == pytest.approx(1, rel=1e-10)


def test_no_gradient_has_no_fractions(problem):
    network, inputs, _ = problem
    lin = kpops.linearize(network, inputs)
    result = truncated_flow(lin, lin.outputs, k=3)
    assert float(result.total_state_change) == float(result.total_loss_decrease) == 0
    for name in ("error_captured", "state_change_captured", "loss_decrease_captured", "cosine"):
        assert result[name].isnull().all()


def test_float32_stays_and_agrees_with_float64(problem, carried):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs.float(), dtype=torch.float32)
    result = truncated_flow(lin, targets.float(), k=5, rng=0)
    floats = [v for v in result.data_vars.values() if v.dtype.kind == "f"]
    assert all(v.dtype == np.float32 for v in floats) and len(floats) == 11
    np.testing.assert_allclose(
        result.state_change_captured, carried.state_change_captured[:5], rtol=1e-4
    )


def test_the_result_is_reproducible_labelled_and_can_be_saved(problem, tmp_path):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs)
    result = truncated_flow(lin, targets, k=5, rng=3)
    xr.testing.assert_identical(result, truncated_flow(lin, targets, k=5, rng=3))
    labelled = [*result.data_vars.values(), result.mode]
    assert all({"long_name", "units"} <= set(v.attrs) for v in labelled)
    result.to_netcdf(tmp_path / "flow.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "flow.nc", engine="h5netcdf"), result)
    result.to_zarr(tmp_path / "flow.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "flow.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, result)


def test_on_the_device(problem, carried, device):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs, device=device)
    result = truncated_flow(lin, targets, k=5)
    np.testing.assert_allclose(result.cosine, carried.cosine[:5], rtol=1e-9)


def test_wrong_use_is_refused(problem):
    network, inputs, targets = problem
    lin = kpops.linearize(network, inputs)
    with pytest.raises(ValueError, match=f"k=0: choose an int from 1 to {N}"):
        truncated_flow(lin, targets, k=0)
    with pytest.raises(ValueError, match=r"targets has shape \(3, 4, 1\)"):
        truncated_flow(lin, targets[..., :1])
    with pytest.raises(ValueError, match="k=3, but modes holds 2"):
        truncated_flow(lin, targets, k=3, modes=kpops.eigsh(lin.flow, 2))
