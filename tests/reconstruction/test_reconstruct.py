"""Training by teacher forcing: it learns, resumes exactly, and refuses what it cannot use."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from random_cells import normal, randomised
from torch import nn

import kpops
from kpops.models import PLRNNCell, ShallowPLRNNCell
from kpops.reconstruction.teacher_forcing import Forced
from kpops.training import checkpoints, reconstruct


def circle(n_steps=300, step=0.2, dtype=np.float32):
    angle = step * np.arange(n_steps)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(dtype)


def cell(units=5, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return PLRNNCell(0, units, rectified=2)


SHORT = {"length": 12, "batch_size": 8, "interval": 4, "rng": 0}


def test_a_rotation_is_learned_by_sparse_forcing(tmp_path):
    model = cell()
    with torch.no_grad():  # near the identity
        model.A[:2] = 1
        model.W *= 0.1
    history = reconstruct(
        model, circle(), folder=tmp_path, max_steps=300, learning_rate=2e-2, **SHORT
    )
    assert float(history.loss[-1]) < 0.02 * float(history.loss[0])


def test_a_rotation_is_learned_by_generalised_forcing(tmp_path):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = ShallowPLRNNCell(0, 2, 16)
    options = SHORT | {"interval": 1}
    history = reconstruct(
        model, circle(), folder=tmp_path, alpha=0.3, max_steps=200, learning_rate=2e-2, **options
    )
    assert float(history.loss[-1]) < 0.02 * float(history.loss[0])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell])
def test_any_cell_with_one_state_is_trained(kind, tmp_path):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = kind(1, 4)
    history = reconstruct(
        model, circle(), folder=tmp_path, max_steps=60, learning_rate=3e-2, **SHORT
    )
    assert float(history.loss[-1]) < 0.7 * float(history.loss[0])


def test_the_loss_is_the_mean_squared_error_of_the_next_observations(tmp_path):
    series, model = normal(13, 2), randomised(PLRNNCell(0, 4), 0.3)
    options = SHORT | {"batch_size": 1}
    history = reconstruct(model, series, folder=tmp_path, max_steps=0, **options)
    h, errors = torch.zeros(1, 4, dtype=torch.float64), []
    for t in range(12):
        if t % 4 == 0:
            h = torch.cat([series[None, t], h[:, 2:]], dim=1)
        h = model(torch.zeros(1, 0, dtype=torch.float64), h)
        errors.append(float(((h[0, :2] - series[t + 1]) ** 2).mean().detach()))
    np.testing.assert_allclose(history.loss, np.mean(errors), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_that_of_the_model(dtype, tmp_path):
    model = cell().to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    history = reconstruct(model, circle(dtype=np.float64), folder=tmp_path, max_steps=2, **SHORT)
    assert history.loss.dtype == dtype
    assert kpops.reconstruction.forecast(model, circle(3), 2).dtype == dtype


def test_an_interrupted_training_ends_at_the_same_bits(tmp_path):
    class Interrupted(Exception):
        pass

    def stop(step, losses):
        if step == 11:
            raise Interrupted
        return False

    options = SHORT | {"noise": 0.1, "max_steps": 20, "checkpoint_every": 5}
    whole, broken = cell(), cell()
    expected = reconstruct(whole, circle(), folder=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        reconstruct(broken, circle(), folder=tmp_path / "broken", stop=stop, **options)
    again = cell()
    history = reconstruct(again, circle(), folder=tmp_path / "broken", **options)
    assert history.identical(expected)
    pairs = zip(again.state_dict().values(), whole.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpoints_hold_the_weights_of_the_cell(tmp_path):
    model = cell()
    reconstruct(model, circle(), folder=tmp_path, max_steps=3, **SHORT)
    step, state = checkpoints(tmp_path, prefix="cell.")[-1]
    assert step == 3
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_learning_rate_ends_at_the_final_one(tmp_path):
    reconstruct(
        cell(),
        circle(),
        folder=tmp_path,
        max_steps=9,
        learning_rate=1e-2,
        final_learning_rate=1e-4,
        **SHORT,
    )
    saved = torch.load(tmp_path / "step_00000009.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-4, rel=1e-12)


def test_a_gradient_is_scaled_down_to_the_clip(tmp_path):
    moved = {}
    for clip in (1e-3, None):
        model = cell()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        reconstruct(
            model,
            circle(),
            folder=tmp_path / str(clip),
            max_steps=1,
            clip=clip,
            learning_rate=0.1,
            final_learning_rate=0.1,
            optimizer=torch.optim.SGD,
            **SHORT,
        )
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved[clip] = float((after - before).norm())
    assert moved[1e-3] == pytest.approx(1e-4, rel=1e-3)
    assert moved[None] > 10 * moved[1e-3]


def test_noise_is_on_what_forces_and_in_training_alone():
    model, data = randomised(PLRNNCell(0, 4), 0.3), normal(200, 9, 2)
    noisy, plain = (Forced(model, 2, 1.0, 3, noise, None) for noise in (0.5, 0.0))
    torch.manual_seed(0)
    deviation = (noisy(data) - plain(data)).detach()
    Jacobian = torch.autograd.functional.jacobian(plain, data[:1])[0, :, :, 0]
    # Of the first prediction, which is affine in the first observation away from the kinks.
    assert 0.5 < float(deviation[:, 0].std()) / (0.5 * float(Jacobian[0, :, 0].norm()) / 2**0.5) < 2
    assert torch.equal(noisy.eval()(data), plain(data))


def test_the_gradient_sees_no_observation_between_two_forcings():
    model, data = randomised(PLRNNCell(0, 4), 0.3), normal(1, 9, 2)
    jacobian = torch.autograd.functional.jacobian(Forced(model, 2, 1.0, 3, 0.0, None), data)
    by_observation = jacobian.abs().amax(dim=(0, 1, 2, 3, 5))
    assert [bool(v > 0) for v in by_observation] == [True, False, False] * 3


def test_labels_and_trials_of_the_series_are_read(tmp_path):
    two = np.stack([circle(60), circle(60)])
    labelled = xr.DataArray(two, dims=("trial", "time", "unit"))
    losses = [
        reconstruct(cell(), series, folder=tmp_path / str(i), max_steps=2, **SHORT).loss.values
        for i, series in enumerate((two, labelled, labelled.transpose("unit", "time", "trial")))
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


def test_the_settings_are_in_the_attributes(tmp_path):
    history = reconstruct(cell(), circle(), folder=tmp_path, max_steps=1, alpha=0.5, **SHORT)
    configuration = json.loads(history.attrs["configuration"])
    assert configuration["model: alpha"] == 0.5
    assert configuration["model: interval"] == 4
    history.to_netcdf(tmp_path / "history.nc")
    history.to_zarr(tmp_path / "history.zarr", consolidated=False)


def test_numbers_of_numpy_are_options(tmp_path):
    options = SHORT | {"max_steps": np.int64(2), "length": np.int64(12), "alpha": np.float32(0.5)}
    history = reconstruct(
        cell(), circle(), folder=tmp_path, learning_rate=np.float64(1e-2), **options
    )
    assert history.sizes["step"] == 3


def test_another_forcing_in_the_same_folder_is_refused(tmp_path):
    reconstruct(cell(), circle(), folder=tmp_path, max_steps=1, **SHORT)
    with pytest.raises(ValueError, match=r"another training.*interval is 4 there and 2 here"):
        reconstruct(cell(), circle(), folder=tmp_path, max_steps=1, **(SHORT | {"interval": 2}))


NAN = circle()
NAN[7, 1] = np.nan
FLAT = circle()
FLAT[:, 0] = 3


@pytest.mark.parametrize(
    ("series", "options", "error", "told"),
    [
        (circle(12), {}, ValueError, "series has 12 steps, and 13 are needed"),
        (NAN, {}, ValueError, r"series is nan at trial 0, time 7, unit 1"),
        (FLAT, {}, ValueError, "series is constant in unit 0"),
        (circle()[:, 0], {}, ValueError, r"series has shape \(300,\), expected"),
        (np.zeros((9, 0)), {}, ValueError, r"series has shape \(9, 0\), expected"),
        (1j * circle(), {}, TypeError, "series is complex"),
        (normal(50, 6), {}, ValueError, "series has 6 units, the model 5"),
        (
            xr.DataArray(circle(), dims=("time", "space")),
            {},
            ValueError,
            r"series has the dims .*rename\(space='unit'\)",
        ),
        (circle(), {"alpha": 0.0}, ValueError, r"alpha=0.0: the strength .* \(0, 1\]"),
        (circle(), {"alpha": 1.1}, ValueError, r"alpha=1.1: the strength .* \(0, 1\]"),
        (circle(), {"interval": 0}, ValueError, "interval=0: choose an int of 1 or more"),
        (circle(), {"length": 0}, ValueError, "length=0: choose"),
        (circle(), {"every": 0}, ValueError, "every=0: choose"),
        (circle(), {"noise": -1.0}, ValueError, "noise=-1.0: pass a standard deviation"),
        (circle(), {"clip": 0}, ValueError, "clip=0: pass a positive norm, or None"),
        (circle(), {"batch_size": 1000}, ValueError, "batch_size=1000, and the task has 96"),
        (circle(), {"learning_rate": 0.0}, ValueError, "learning_rate=0.0"),
        (circle(), {"final_learning_rate": 1.0}, ValueError, "final_learning_rate=1.0: choose"),
    ],
)
def test_wrong_use_is_refused_before_any_step(series, options, error, told, tmp_path):
    model = cell()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=told):
        reconstruct(model, series, folder=tmp_path / "new", **(SHORT | options))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model", [nn.GRU(1, 4), nn.LSTMCell(1, 4)])
def test_a_model_that_is_no_cell_is_refused(model, tmp_path):
    with pytest.raises(TypeError, match="is no cell whose state is one tensor"):
        reconstruct(model, circle(), folder=tmp_path, **SHORT)
