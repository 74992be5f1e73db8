"""The sum of linearised steps against the true change of the trajectories."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from dense import relative
from real_steps import loss_of, problem
from torch import nn

import kpops
from kpops.training import train


def trained(rate, steps, make=torch.optim.SGD, every=1, **options):
    network, inputs, targets = problem()
    optimizer = make(network.parameters(), rate, **options)
    saved = [(0, copy.deepcopy(network.state_dict()))]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(network, inputs, targets).backward()
        optimizer.step()
        if step % every == 0:
            saved.append((step, copy.deepcopy(network.state_dict())))
    return network, saved, inputs, targets


def at(network, state):
    other = copy.deepcopy(network)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_the_error_of_the_sum_is_linear_in_the_step_for_any_optimizer(make):
    errors = []
    for halved in range(3):
        rate = 4e-3 / 2**halved
        network, saved, inputs, _ = trained(rate, 10 * 2**halved, make)
        told = kpops.telescope(network, saved, inputs)
        first, last = (at(network, saved[i][1]) for i in (0, -1))
        true = last.recurrent(inputs)[0] - first.recurrent(inputs)[0]
        assert relative(told.state_change[-1].values, true.detach()) < 1e-12
        true = last(inputs) - first(inputs)
        assert relative(told.output_change[-1].values, true.detach()) < 1e-12
        for kind in ("state", "output"):
            gap = told[f"telescoped_{kind}_change"] - told[f"{kind}_change"]
            size = np.linalg.norm(told[f"{kind}_change"][-1])
            assert float(told[f"{kind}_relative_error"][-1]) == pytest.approx(
                np.linalg.norm(gap[-1]) / size, rel=1e-9
            )
        errors.append([float(told.state_relative_error[-1]), float(told.output_relative_error[-1])])
    errors = np.array(errors)
    if make is torch.optim.SGD:
        np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.1)
    else:  # the trajectories of others depend on the number of steps, too
        assert (errors[-1] < 0.7 * errors[0]).all()
    assert (errors[-1] < 0.1).all()


def test_every_summand_is_the_sensitivity_times_the_step():
    network, saved, inputs, _ = trained(0.1, 6, torch.optim.Adam, every=3)
    told = kpops.telescope(network, saved, inputs)
    summed = 0
    for (_, before), (_, after) in pairwise(saved):
        lin = kpops.linearize(at(network, before), inputs)
        names = list(lin.parameters)
        steps = [(after[f"recurrent.{n}"] - before[f"recurrent.{n}"]).flatten() for n in names]
        moved = lin.sensitivity @ torch.cat(steps)
        summed = summed + moved
    assert relative(told.telescoped_state_change[-1].values.ravel(), summed) < 1e-13
    step = told.state_change.diff("step")[-1].values.ravel()
    assert float(told.state_step_relative_error[-1]) == pytest.approx(
        relative(moved, step), rel=1e-9
    )
    assert told.step.values.tolist() == [0, 3, 6]
    assert np.isnan(told.state_relative_error[0]) and not told.telescoped_state_change[0].any()


@pytest.mark.parametrize("every", [1, 2])
def test_the_sum_by_gradient_descent_follows_its_operator(every):
    network, saved, inputs, targets = trained(1e-2, 20, every=every)
    by_rule = kpops.telescope(network, saved, inputs, targets, learning_rate=1e-2)
    by_step = kpops.telescope(network, saved, inputs)
    a, b = (told.telescoped_state_change[-1].values for told in (by_rule, by_step))
    if every == 1:  # the step is that of the rule
        assert relative(a, b) < 1e-12
    else:  # two iterations are taken as twice the first
        assert 1e-6 < relative(a, b) < 0.05
    assert "output_change" not in by_rule
    assert json.loads(by_rule.configuration) == {"learning_rate": 0.01, "rule": "gradient descent"}


def test_a_rule_may_be_a_function_and_take_errors_of_the_outputs():
    network, saved, inputs, targets = trained(1e-2, 2)

    def feedback(lin):
        return kpops.learning_rule(
            lin, "output feedback", weights=network.readout.weight.T.detach()
        )

    told = kpops.telescope(network, saved[:2], inputs, targets, learning_rate=0.5, rule=feedback)
    lin = kpops.linearize(at(network, saved[0][1]), inputs)
    flow = kpops.gradient_flow(lin, targets)
    expected = -0.5 * (feedback(lin) @ flow.output_error.values)
    assert relative(told.telescoped_state_change[-1].values, expected) < 1e-13


def test_a_folder_of_checkpoints_and_labels(tmp_path):
    network = kpops.Network(nn.GRU(3, 5), nn.Linear(5, 3))
    task = kpops.tasks.memory_pro(8, steps=(2, 2, 2), rng=0)
    settings = {"max_steps": 4, "batch_size": 4, "checkpoint_every": 2, "rng": 0}
    train(network, task, folder=tmp_path, **settings)
    told = kpops.telescope(network, tmp_path, task.inputs)
    assert told.step.values.tolist() == [0, 2, 4]
    assert told.telescoped_output_change.dims == ("step", "trial", "time", "output")
    assert told.telescoped_state_change.epoch.values.tolist() == task.epoch.values.tolist()
    assert all(v.dtype == np.float32 for v in told.data_vars.values())
    assert all("long_name" in v.attrs for v in told.data_vars.values())
    told.to_netcdf(tmp_path / "told.nc", engine="h5netcdf")
    told.to_zarr(tmp_path / "told.zarr", consolidated=False)


def test_wrong_use_is_refused():
    network, saved, inputs, targets = trained(1e-2, 2)
    with pytest.raises(ValueError, match="targets and learning_rate go together"):
        kpops.telescope(network, saved, inputs, targets)
    with pytest.raises(ValueError, match="rule is for the steps of a rule"):
        kpops.telescope(network, saved, inputs, rule="functional gradient")
    with pytest.raises(TypeError, match="rule=3: pass the name"):
        kpops.telescope(network, saved, inputs, targets, learning_rate=1, rule=3)
    with pytest.raises(kpops.MeasureError, match="step 0 comes after step 2: sort"):
        kpops.telescope(network, [saved[2], saved[0]], inputs)
