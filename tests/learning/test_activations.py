"""Collapsed softmax, massive activations and updates of features, against closed forms."""

import numpy as np
import pytest
import torch
import xarray as xr
from one_step import OneStep
from torch import nn

import kpops
from kpops.training import activation_ratio, feature_updates, fit_activation_ratio, softmax_collapse


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_softmax_collapses_where_the_rest_is_below_half_a_rounding_unit(dtype):
    half = torch.finfo(dtype).eps / 2
    gaps = -np.log(half) + np.array([-0.1, 0.1])
    logits = torch.tensor([[0, -gap] for gap in gaps], dtype=dtype) + 3
    result = softmax_collapse(logits)
    assert result.collapsed.values.tolist() == [False, True]
    assert float(result.share) == 0.5


def test_a_collapsed_sample_that_is_right_has_neither_loss_nor_gradient():
    logits = (20 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels = logits.argmax(-1)
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    collapsed = softmax_collapse(logits).collapsed.values
    of_label = gradient.gather(1, labels[:, None])[:, 0]
    assert 20 < collapsed.sum() < 180
    np.testing.assert_array_equal(collapsed, (loss == 0).numpy())
    np.testing.assert_array_equal(collapsed, (of_label == 0).numpy())


def test_a_linearization_stands_for_its_outputs_in_the_dtype_of_training():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 5), nn.Linear(5, 4))
    with torch.no_grad():
        network.readout.weight *= 60
    mask = torch.arange(7) < torch.arange(2, 8)[:, None]
    inputs = xr.DataArray(
        np.random.default_rng(0).standard_normal((6, 7, 3)),
        {"angle": ("trial", np.arange(6.0))},
        ("trial", "time", "input"),
    )
    lin = kpops.linearize(network, inputs, mask=mask, dtype=torch.float64)
    result = softmax_collapse(lin, dtype=torch.float16)
    logits = torch.from_numpy(lin.outputs.values).half()
    sums = (logits - logits.amax(-1, keepdim=True)).exp().sum(-1)
    expected = (sums == 1).numpy() & mask.numpy()
    np.testing.assert_array_equal(result.collapsed, expected)
    assert 0 < float(result.share) == expected.sum() / mask.sum() < 1
    assert float(softmax_collapse(lin).share) == 0
    np.testing.assert_array_equal(result.collapsed.angle, np.arange(6))
    assert result.collapsed.dims == ("trial", "time")


def test_the_ratio_is_of_the_absolute_states_at_valid_steps():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 5, 2, batch_first=True)
    mask = torch.arange(7) < torch.arange(2, 8)[:, None]
    lin = kpops.linearize(lstm, 3 * torch.randn(6, 7, 3), mask=mask)
    states = lin.states.values
    for by in ("layer", "variable"):
        result = activation_ratio(lin, by)
        for label in result[by].values:
            mine = abs(states[..., (lin.states[by] == label).values][mask.numpy()])
            here = result.sel({by: label})
            assert float(here.largest) == mine.max()
            assert float(here["median"]) == np.median(mine)
            assert float(here.ratio) == mine.max() / np.median(mine)
    assert float(activation_ratio(lin).largest) == abs(states).max()


def test_a_course_made_of_the_formula_is_fitted_exactly():
    step = np.arange(0, 3000, 50)
    numbers = {"amplitude": 300.0, "decay": 0.15, "offset": 20.0, "rate": 0.01, "start": 1.5}
    x = numbers["rate"] * step + numbers["start"]
    y = numbers["amplitude"] * np.exp(-numbers["decay"] * x) * np.log(x) + numbers["offset"]
    fit = fit_activation_ratio(xr.Dataset({"ratio": ("step", y)}, {"step": step}))
    np.testing.assert_allclose(fit.fitted, y, rtol=1e-7)
    for name, value in numbers.items():
        assert float(fit[name]) == pytest.approx(value, rel=1e-3), name
    assert float(fit.r2) == pytest.approx(1, abs=1e-12)
    later = fit_activation_ratio(xr.DataArray(y, {"step": step + 500}, "step"))
    assert float(later.start) == pytest.approx(1.5 - 5, rel=1e-2)


def test_a_noisy_course_is_fitted_to_its_noise():
    step = np.arange(0, 3000, 20)
    x = 0.005 * step + 1
    y = -40 * np.exp(-0.3 * x) * np.log(x) + 60
    noisy = y + np.random.default_rng(0).normal(size=len(y))
    fit = fit_activation_ratio(xr.DataArray(noisy, {"step": step}, "step"))
    assert float(np.sqrt(((fit.fitted - y) ** 2).mean())) < 0.4
    rest = ((fit.fitted - noisy) ** 2).sum() / ((noisy - noisy.mean()) ** 2).sum()
    assert float(fit.r2) == pytest.approx(1 - float(rest), rel=1e-10)


def network_of_width(n, power):
    """y = a . (W x) / n^power, whose first layer alone learns."""
    generator = torch.Generator().manual_seed(n)
    W, a = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (4, 1))
    net = OneStep(lambda net, x: x @ net.W.mT, n, W=W)
    readout = nn.Linear(n, 1, bias=False).double().requires_grad_(False)
    readout.weight.copy_(a.T / n**power)
    return net, readout, a


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_features_move_less_in_wide_networks_unless_the_output_is_divided_by_the_width(power):
    """dh = -eta a / n^power sum_b err_b x_b . x, so its size is eta |a| n^(-1/2 - power) c."""
    x = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    widths, found = (64, 256, 1024), []
    for n in widths:
        net, readout, a = network_of_width(n, power)
        lin = kpops.linearize(net, x, readout=readout)
        result = feature_updates(lin, lin.outputs.values - 1)  # the same error
        error = 2 / 6 * (x[:, 0] @ x[:, 0].T).sum(0)
        expected = float(a.norm() * error.norm() / n**power / (6 * n) ** 0.5)
        assert float(result.update_size) == pytest.approx(expected, rel=1e-12)
        size = float((lin.states**2).mean() ** 0.5)
        assert float(result.relative) == pytest.approx(expected / size, rel=1e-12)
        rate = 1.0 if power == 0.5 else n
        found.append(rate * float(result.relative))
    exponent = np.polyfit(np.log(widths), np.log(found), 1)[0]
    assert exponent == pytest.approx({0.5: -0.5, 1.0: 0.0}[power], abs=0.05)


def test_updates_by_layer_are_those_of_the_gradient_flow():
    torch.manual_seed(0)
    gru, readout = nn.GRU(3, 5, 2, batch_first=True).double(), nn.Linear(5, 2).double()
    mask = torch.arange(7) < torch.arange(2, 8)[:, None]
    x, y = (torch.randn(6, 7, k, dtype=torch.float64) for k in (3, 2))
    lin = kpops.linearize(gru, x, readout=readout, mask=mask)
    result = feature_updates(lin, y, by="layer")
    change = kpops.gradient_flow(lin, y).state_change
    for layer in result.layer.values:
        rows = change.values[..., (change.layer == layer).values][mask.numpy()]
        assert float(result.update_size.sel(layer=layer)) == pytest.approx(
            np.sqrt((rows**2).mean()), rel=1e-12
        )


def course(values):
    return xr.DataArray(values, {"step": np.arange(len(values))}, "step")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softmax_collapse(torch.zeros(3, 1)), ValueError, "two classes or more"),
        (lambda: softmax_collapse(torch.zeros(3, 2), dtype=torch.int64), TypeError, "pass a float"),
        (lambda: activation_ratio(3), TypeError, "no Linearization"),
        (lambda: fit_activation_ratio(3), TypeError, "ratio is the number 3"),
        (lambda: fit_activation_ratio(course(np.ones(5))), ValueError, "six steps"),
        (lambda: fit_activation_ratio(course(np.full(9, np.inf))), ValueError, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_unknown_coordinate_is_refused_with_those_that_there_are():
    lin = kpops.linearize(nn.GRU(3, 4, batch_first=True), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match=r"by='site': choose a coordinate .*'unit'"):
        activation_ratio(lin, "site")


def test_each_is_a_measure_during_training():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 6), nn.Linear(6, 3))
    task = kpops.tasks.memory_pro(6, rng=0)
    inputs, targets = (torch.from_numpy(task[n].values) for n in ("inputs", "targets"))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def everything(lin):
        update = feature_updates(lin, task.targets)
        return xr.merge(
            [part.drop_attrs() for part in (softmax_collapse(lin), activation_ratio(lin), update)]
        )

    with kpops.training.Measured(network, task.inputs, everything, every=1) as during:
        for _ in range(2):
            optimizer.zero_grad()
            (network(inputs) - targets).square().mean().backward()
            optimizer.step()
            during.step()
    last = everything(kpops.linearize(network, task.inputs))
    for name, values in last.items():
        np.testing.assert_array_equal(during.result()[name].sel(step=2), values)
