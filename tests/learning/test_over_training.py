"""The same measurement at every checkpoint."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops


@pytest.fixture
def network():
    torch.manual_seed(0)
    return kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))


@pytest.fixture
def task():
    return kpops.tasks.memory_pro(6, angles="even", noise=0, steps=(2, 2, 2))


def test_each_checkpoint_is_measured_with_its_own_weights(network, task, tmp_path):
    kpops.training.train(
        network, task, folder=tmp_path, max_steps=4, batch_size=3, checkpoint_every=2, rng=0
    )
    result = kpops.over_training(
        network, tmp_path, task.inputs, lambda lin: {"norm": float(abs(lin.states).sum())}
    )
    assert result.step.values.tolist() == [0, 2, 4]
    last = kpops.linearize(network, task.inputs)
    assert float(result.norm[-1]) == float(abs(last.states).sum())
    assert len(set(result.norm.values.tolist())) == 3


def test_the_model_itself_is_left_alone(network, task):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    other = {k: v + 1 for k, v in before.items()}
    kpops.over_training(network, [(0, other)], task.inputs, lambda lin: lin.states)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_labelled_results_keep_their_dims(network, task):
    state = network.state_dict()
    result = kpops.over_training(
        network, [(0, state), (7, state)], task.inputs, lambda lin: lin.states
    )
    assert result.states.dims == ("step", "trial", "time", "unit")
    assert result.states.epoch.dims == ("time",)
    assert result.step.attrs["long_name"] == "training iteration"
    spectra = kpops.over_training(
        network, [(0, state)], task.inputs, lambda lin: kpops.eigsh(lin.K, k=2)
    )
    assert spectra.eigenvalue.dims == ("step", "mode")
    assert spectra.operator == "K"


def test_a_linearizer_of_ones_own_finds_the_parts_of_any_model(task):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.out = nn.RNN(3, 4), nn.Linear(4, 3)

    model = Mine()

    def linearizer(model, inputs, **options):
        return kpops.linearize(model.core, inputs, readout=model.out, **options)

    result = kpops.over_training(
        model,
        [(3, model.state_dict())],
        task.inputs,
        lambda lin: lin.outputs,
        linearizer=linearizer,
        engine="autodiff",
    )
    assert result.outputs.shape == (1, 6, 6, 3)
    xr.testing.assert_allclose(
        result.outputs.isel(step=0, drop=True), linearizer(model, task.inputs).outputs
    )


def test_results_are_saved_and_read_back(network, task, tmp_path):
    state = network.state_dict()
    result = kpops.over_training(
        network, [(0, state), (5, state)], task.inputs, lambda lin: lin.states
    )
    result.to_zarr(tmp_path / "r.zarr", consolidated=False)
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "r.zarr", consolidated=False).load(), result
    )


@pytest.mark.parametrize(
    ("checkpoints", "told"),
    [
        ([], "checkpoints is empty"),
        ([(0, None), (0, None)], r"checkpoints repeat a step: \[0, 0\]"),
        ([(2, {"weight": torch.zeros(1)})], "the checkpoint of step 2 does not fit"),
    ],
)
def test_wrong_checkpoints_are_refused(network, task, checkpoints, told):
    checkpoints = [(s, network.state_dict() if c is None else c) for s, c in checkpoints]
    with pytest.raises(ValueError, match=told):
        kpops.over_training(
            network, checkpoints, task.inputs, lambda lin: {"n": np.float64(lin.space.size)}
        )
