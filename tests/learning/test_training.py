"""Training: the loss falls, and an interrupted training ends as an uninterrupted one."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kpops.learning.training import _draw
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import checkpoints, train

TASK = memory_pro(24, rng=0, steps=(3, 2, 3))
SETTINGS = {"max_steps": 12, "batch_size": 8, "checkpoint_every": 4, "rng": 1}


def make(seed=0, module=nn.GRU, dtype=torch.float32, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(module(3, 6, **options), nn.Linear(6, 3)).to(dtype)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Crash(Exception):
    """Stands for a process that is killed."""


class CrashAt(nn.Module):
    """A model that dies in its n-th forward pass."""

    def __init__(self, n):
        super().__init__()
        self.n, self.calls = n, 0

    def forward(self, module, arguments):
        self.calls += 1
        if self.calls == self.n:
            raise Crash


def train_and_crash(model, calls, **settings):
    """Train until the forward pass number `calls`, counted from 1, which dies."""
    handle = model.register_forward_pre_hook(CrashAt(calls).forward)
    with pytest.raises(Crash):
        train(model, **settings)
    handle.remove()


# What is learned


def test_training_lowers_the_loss_of_memory_pro(tmp_path):
    task = memory_pro(64, rng=0, steps=(5, 5, 5))
    history = train(
        make(), task, folder=tmp_path, max_steps=150, batch_size=32, learning_rate=1e-2, rng=0
    )
    assert float(history.loss[-1]) < 0.5 * float(history.loss[0])


def test_one_step_of_gradient_descent_is_the_gradient_step(tmp_path):
    task = TASK.copy(deep=True)
    task["mask"][:, 5:] = False
    task["mask"][3, 2:] = False
    model, reference = make(dtype=torch.float64), make(dtype=torch.float64)
    history = train(
        model,
        task,
        folder=tmp_path,
        max_steps=1,
        batch_size=24,
        learning_rate=0.1,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        rng=0,
    )
    inputs = torch.tensor(task.inputs.values, dtype=torch.float64)
    targets = torch.tensor(task.targets.values, dtype=torch.float64)
    mask = torch.tensor(task.mask.values)
    loss = (reference(inputs) - targets)[mask].square().mean()
    loss.backward()
    np.testing.assert_allclose(history.loss[0], loss.item(), rtol=1e-13)
    for new, old in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-12, atol=1e-14)


def test_padding_does_not_matter_to_the_loss(tmp_path):
    padded = TASK.copy(deep=True)
    padded["mask"][:, 6:] = False
    other = padded.copy(deep=True)
    other["targets"][:, 6:] = np.nan
    other["inputs"][:, 6:] = 100.0
    losses = [
        train(make(), task, folder=tmp_path / name, **SETTINGS).loss
        for name, task in [("padded", padded), ("other", other)]
    ]
    np.testing.assert_array_equal(*losses)


def test_loss_of_a_step_is_that_of_its_batch_at_its_checkpoint(tmp_path):
    history = train(make(), TASK, folder=tmp_path, **SETTINGS)
    model = make()
    for step, state in checkpoints(tmp_path):
        model.load_state_dict(state)
        trials = _draw(SETTINGS["rng"], step, 24, 8)[0].numpy()
        batch = TASK.isel(trial=trials)
        error = model(torch.tensor(batch.inputs.values)) - torch.tensor(batch.targets.values)
        loss = error.square().mean().item()
        np.testing.assert_allclose(float(history.loss.sel(step=step)), loss, rtol=1e-6)


def test_stop_loss_stops_at_the_first_step_that_reaches_it(tmp_path):
    full = train(make(), TASK, folder=tmp_path / "full", **SETTINGS).loss.values
    bound = float(full[7])
    first = int(np.flatnonzero(full <= bound)[0])
    stopped = train(make(), TASK, folder=tmp_path / "stopped", stop_loss=bound, **SETTINGS)
    np.testing.assert_array_equal(stopped.loss, full[: first + 1])
    assert checkpoints(tmp_path / "stopped").steps[-1] == first


# Batches


def test_batch_depends_on_seed_and_step_alone():
    forward = [_draw(5, step, 100, 10) for step in range(6)]
    backward = [_draw(5, step, 100, 10) for step in reversed(range(6))][::-1]
    for (one, one_seed), (other, other_seed) in zip(forward, backward, strict=True):
        assert torch.equal(one, other)
        assert one_seed == other_seed
    assert len({tuple(batch.tolist()) for batch, _ in forward}) == 6
    assert not torch.equal(forward[0][0], _draw(6, 0, 100, 10)[0])


def test_batch_has_no_trial_twice_and_all_trials_are_drawn_equally_often():
    n_steps = 2000
    batches = [_draw(0, step, 20, 5)[0] for step in range(n_steps)]
    assert all(len(batch.unique()) == 5 for batch in batches)
    counts = torch.cat(batches).bincount(minlength=20)
    deviation = (counts - n_steps / 4) / np.sqrt(n_steps * 0.25 * 0.75)
    assert deviation.abs().max() < 5


# Resumption


@pytest.mark.parametrize("calls", [1, 2, 4, 5, 6, 9, 13])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.4}])
def test_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, calls, options):
    whole = make(**options)
    expected = train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)

    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS}
    train_and_crash(make(**options), calls, **settings)
    resumed = make(seed=9, **options)  # its own initial weights do not matter
    if calls == 1:  # nothing was written, so here they do
        resumed = make(**options)
    history = train(resumed, **settings)

    assert_same_state(state_of(resumed), state_of(whole))
    xr.testing.assert_identical(history, expected)
    pairs = zip(checkpoints(tmp_path / "parts"), checkpoints(tmp_path / "whole"), strict=True)
    for (step, state), (expected_step, expected_state) in pairs:
        assert step == expected_step
        assert_same_state(state, expected_state)


def test_training_interrupted_many_times_ends_as_an_uninterrupted_one(tmp_path):
    whole = make()
    expected = train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)
    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS, "checkpoint_every": 1}
    for _ in range(5):
        train_and_crash(make(), 3, **settings)
    resumed = make()
    xr.testing.assert_identical(train(resumed, **settings), expected)
    assert_same_state(state_of(resumed), state_of(whole))


def test_finished_training_continues_when_max_steps_is_raised(tmp_path):
    whole, parts = make(), make()
    expected = train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)
    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS}
    for max_steps in (0, 5, 12):
        history = train(parts, **{**settings, "max_steps": max_steps})
        assert history.sizes["step"] == max_steps + 1
    assert_same_state(state_of(parts), state_of(whole))
    xr.testing.assert_identical(history, expected)


def test_finished_training_is_read_back_unchanged(tmp_path):
    model, again = make(), make(seed=2)
    history = train(model, TASK, folder=tmp_path, **SETTINGS)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    xr.testing.assert_identical(train(again, TASK, folder=tmp_path, **SETTINGS), history)
    assert_same_state(state_of(again), state_of(model))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_training_stopped_by_stop_loss_continues_when_it_is_lowered(tmp_path):
    whole, parts = make(), make()
    expected = train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)
    bound = float(expected.loss[6])
    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS}
    assert train(parts, stop_loss=bound, **settings).sizes["step"] <= 7
    xr.testing.assert_identical(train(parts, **settings), expected)
    assert_same_state(state_of(parts), state_of(whole))


def test_running_statistics_resume_exactly(tmp_path):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.norm = make(), nn.BatchNorm1d(3)

        def forward(self, inputs):
            return self.norm(self.network(inputs).transpose(1, 2)).transpose(1, 2)

    whole, resumed = Normalised(), Normalised()
    train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)
    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS}
    train_and_crash(Normalised(), 7, **settings)
    train(resumed, **settings)
    assert_same_state(state_of(resumed), state_of(whole))
    assert int(resumed.norm.num_batches_tracked) == SETTINGS["max_steps"]


def test_rng_none_takes_the_seed_of_the_checkpoints(tmp_path):
    settings = {"task": TASK, "folder": tmp_path, **SETTINGS, "rng": None}
    train_and_crash(make(), 7, **settings)
    history = train(make(), **settings)
    seed = json.loads(history.attrs["configuration"])["seed"]
    expected = train(make(), TASK, **{**SETTINGS, "folder": tmp_path / "whole", "rng": seed})
    xr.testing.assert_identical(history, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rng": 2}, "seed is 1 there and 2 here"),
        ({"batch_size": 9}, "batch_size is 8 there and 9 here"),
        ({"learning_rate": 1e-2}, "learning_rate is 0.001 there and 0.01 here"),
        ({"optimizer": lambda p, lr: torch.optim.SGD(p, lr)}, "optimizer is Adam there and SGD"),
        (
            {"optimizer": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.8, 0.999))},
            r"betas is \[0.9, 0.999\] there and \[0.8, 0.999\] here",
        ),
        (
            {"task": TASK.isel(time=slice(1, None))},
            r"task inputs is \[24, 8, 3\] there and \[24, 7",
        ),
        ({"task": TASK.assign(targets=TASK.targets + 1e-3)}, "task fingerprint"),
        ({"model": make(module=nn.RNN)}, "model recurrent.weight_ih_l0 is torch.float32"),
        ({"model": make(dtype=torch.float64)}, "float32.* there and torch.float64"),
        ({"model": make(num_layers=2)}, "weight_ih_l1 is absent there"),
        ({"max_steps": 8}, "max_steps=8, .* holds step 12"),
    ],
)
def test_another_training_is_refused_by_what_differs(tmp_path, change, named):
    settings = {"task": TASK, "folder": tmp_path, **SETTINGS}
    train(make(), **settings)
    files = sorted(tmp_path.iterdir())
    model = change.get("model", make())
    before = state_of(model)
    with pytest.raises(ValueError, match=named):
        train(model, **{**settings, **{k: v for k, v in change.items() if k != "model"}})
    assert_same_state(state_of(model), before)
    assert sorted(tmp_path.iterdir()) == files


def test_frozen_parameters_are_part_of_the_configuration(tmp_path):
    train(make(), TASK, folder=tmp_path, **SETTINGS)
    frozen = make()
    frozen.readout.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"readout.bias is .* learns there and .* fixed here"):
        train(frozen, TASK, folder=tmp_path, **SETTINGS)


def test_another_model_with_the_same_parameters_is_refused(tmp_path):
    tanh, relu = make(module=nn.RNN), make(module=nn.RNN, nonlinearity="relu")
    train(tanh, TASK, folder=tmp_path, **{**SETTINGS, "learning_rate": 0.1})
    with pytest.raises(ValueError, match="recurrent: nonlinearity is tanh there and relu here"):
        train(relu, TASK, folder=tmp_path, **{**SETTINGS, "learning_rate": 0.1})


# Files


def test_checkpoint_is_plain_and_complete(tmp_path):
    model = make()
    history = train(model, TASK, folder=tmp_path, **SETTINGS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["finished", *(f"step_{step:08d}.pt" for step in (0, 4, 8, 12))]
    content = torch.load(tmp_path / names[-1], weights_only=True)
    assert content["step"] == 12 and content["seed"] == 1
    assert_same_state(content["model"], state_of(model))
    np.testing.assert_array_equal(np.float32(content["loss"]), history.loss)
    assert content["optimizer"]["state"][0]["step"] == 12
    assert content["configuration"] == json.loads(history.attrs["configuration"])


def test_first_checkpoint_is_the_untrained_model_and_the_last_the_trained(tmp_path):
    model = make()
    untrained = state_of(model)
    train(model, TASK, folder=tmp_path, **{**SETTINGS, "max_steps": 6})
    saved = checkpoints(tmp_path)
    assert saved.steps == (0, 4, 6)
    assert_same_state(saved[0][1], untrained)
    assert_same_state(saved[-1][1], state_of(model))


def test_steps_to_keep_may_be_listed(tmp_path):
    train(make(), TASK, folder=tmp_path, **{**SETTINGS, "checkpoint_every": iter([1, 2, 5, 99])})
    assert checkpoints(tmp_path).steps == (0, 1, 2, 5, 12)


def test_checkpoints_are_reiterable_and_sliceable(tmp_path):
    train(make(), TASK, folder=tmp_path, **SETTINGS)
    saved = checkpoints(tmp_path)
    assert [step for step, _ in saved] == [step for step, _ in saved] == [0, 4, 8, 12]
    assert len(saved) == 4
    assert saved[-1][0] == 12
    assert saved[::2].steps == (0, 8)
    assert checkpoints(tmp_path, "step_*4.pt").steps == (4,)
    with pytest.raises(IndexError):
        saved[4]


def test_checkpoints_of_others_are_ordered_by_number(tmp_path):
    for step in (10, 9, 100):
        torch.save({"bias": torch.full((2,), step)}, tmp_path / f"run1_{step}.pth")
    read = [(step, state["bias"][0].item()) for step, state in checkpoints(tmp_path, "*.pth")]
    assert read == [(9, 9), (10, 10), (100, 100)]


def test_checkpoints_that_are_missing_or_ambiguous_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist"):
        checkpoints(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file that matches pattern='step_\*.pt'"):
        checkpoints(tmp_path)
    torch.save({}, tmp_path / "a_1.pt")
    torch.save({}, tmp_path / "b_01.pt")
    with pytest.raises(ValueError, match="both of step 1"):
        checkpoints(tmp_path, "*.pt")
    torch.save({}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="no number"):
        checkpoints(tmp_path, "l*.pt")


def test_crash_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    whole = make()
    expected = train(whole, TASK, folder=tmp_path / "whole", **SETTINGS)
    settings = {"task": TASK, "folder": tmp_path / "parts", **SETTINGS}
    save = torch.save

    def die_at_step_8(content, file):
        if content.get("step") == 8:
            file.write(b"half")
            raise Crash
        save(content, file)

    monkeypatch.setattr(torch, "save", die_at_step_8)
    with pytest.raises(Crash):
        train(make(), **settings)
    monkeypatch.undo()
    assert checkpoints(tmp_path / "parts").steps == (0, 4)
    assert [step for step, _ in checkpoints(tmp_path / "parts")] == [0, 4]
    resumed = make()
    xr.testing.assert_identical(train(resumed, **settings), expected)
    assert_same_state(state_of(resumed), state_of(whole))


def test_power_cut_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    settings = {"task": TASK, "folder": tmp_path, **SETTINGS}

    def die(*_):
        raise Crash

    monkeypatch.setattr("os.replace", die)
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # nothing is cleaned up
    with pytest.raises(Crash):
        train(make(), **settings)
    monkeypatch.undo()
    left = [path.suffix for path in tmp_path.iterdir() if path.name != ".lock"]
    assert left == [".tmp"]
    train(make(), **settings)
    assert checkpoints(tmp_path).steps == (0, 4, 8, 12)
    assert {path.suffix for path in tmp_path.iterdir() if path.name != "finished"} == {".pt"}


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])  # of the file is left
def test_unreadable_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, part):
    whole, resumed = make(), make()
    expected = train(whole, TASK, folder=tmp_path, **SETTINGS)
    path = tmp_path / "step_00000012.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(OSError, match=r"step_00000012.pt' cannot be read"):
        checkpoints(tmp_path)[-1]
    with pytest.warns(UserWarning, match="step_00000012.pt' cannot be read"):
        history = train(resumed, TASK, folder=tmp_path, **SETTINGS)
    xr.testing.assert_identical(history, expected)
    assert_same_state(checkpoints(tmp_path)[-1][1], state_of(whole))


def test_damaged_pickle_counts_as_unreadable(tmp_path):
    train(make(), TASK, folder=tmp_path, **SETTINGS)
    path = tmp_path / "step_00000012.pt"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"readout.weight", b"readout.\xff\xff\xff\xff\xff\xff", 1))
    with pytest.warns(UserWarning, match=r"step_00000012.pt' cannot be read"):
        train(make(), TASK, folder=tmp_path, **SETTINGS)


def test_folder_of_foreign_checkpoints_is_refused(tmp_path):
    torch.save(make().state_dict(), tmp_path / "step_3.pt")
    with pytest.raises(ValueError, match="not written by train"):
        train(make(), TASK, folder=tmp_path, **SETTINGS)


def test_non_finite_loss_names_the_step_and_keeps_the_earlier_checkpoints(tmp_path):
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.calls = make(), 0

        def forward(self, inputs):
            self.calls += 1
            return self.network(inputs) * (np.nan if self.calls == 6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"loss is nan at step 5: .* 0\.001"):
        train(Explodes(), TASK, folder=tmp_path, **SETTINGS)
    assert [step for step, _ in checkpoints(tmp_path)] == [0, 4]


def test_loss_dataset_survives_netcdf_and_zarr(tmp_path):
    history = train(make(), TASK, folder=tmp_path / "run", **SETTINGS)
    history.to_netcdf(tmp_path / "loss.nc")
    with xr.open_dataset(tmp_path / "loss.nc") as back:
        xr.testing.assert_identical(history, back.load())
    history.to_zarr(tmp_path / "loss.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "loss.zarr", engine="zarr", consolidated=False) as back:
        xr.testing.assert_identical(history, back.load())


# No side effects


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_keeps_its_dtype(tmp_path, dtype):
    model = make(dtype=dtype)
    history = train(model, TASK, folder=tmp_path, **SETTINGS)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}
    assert {value.dtype for value in checkpoints(tmp_path)[-1][1].values()} == {dtype}
    assert history.loss.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("crashes", [False, True])
def test_flags_gradients_and_modes_are_as_they_were(tmp_path, crashes):
    model = make(num_layers=2, dropout=0.1)
    model.recurrent.weight_hh_l0.requires_grad_(False)
    frozen = model.recurrent.weight_hh_l0.clone()
    model.eval()
    model.readout.train()
    gradient = torch.ones_like(model.readout.bias)
    model.readout.bias.grad = gradient
    flags = [parameter.requires_grad for parameter in model.parameters()]

    settings = {"task": TASK, "folder": tmp_path, **SETTINGS}
    train_and_crash(model, 6, **settings) if crashes else train(model, **settings)

    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(model.recurrent.weight_hh_l0, frozen)
    assert not model.training and not model.recurrent.training and model.readout.training
    assert model.readout.bias.grad is gradient and bool((gradient == 1).all())
    assert model.readout.weight.grad is None


@pytest.mark.parametrize("rng", [1, None])
def test_global_random_state_is_untouched(tmp_path, rng):
    model = make(num_layers=2, dropout=0.1)
    np.random.seed(0)
    torch.manual_seed(0)
    before, torch_before = np.random.get_state(), torch.get_rng_state()
    train(model, TASK, folder=tmp_path, **{**SETTINGS, "rng": rng})
    after = np.random.get_state()
    assert before[2] == after[2]
    np.testing.assert_array_equal(before[1], after[1])
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_dropout_is_active_whatever_the_mode_at_the_call(tmp_path):
    models = {mode: make(num_layers=2, dropout=0.4).train(mode) for mode in (True, False)}
    for mode, model in models.items():
        train(model, TASK, folder=tmp_path / str(mode), **SETTINGS)
    assert_same_state(state_of(models[True]), state_of(models[False]))


def test_task_is_unchanged(tmp_path):
    task = TASK.copy(deep=True)
    train(make(dtype=torch.float64), task, folder=tmp_path, **SETTINGS)
    xr.testing.assert_identical(task, TASK)


def test_seed_decides_the_training(tmp_path):
    models = [make(), make(), make()]
    for number, (model, rng) in enumerate(zip(models, [1, 1, 2], strict=True)):
        train(model, TASK, folder=tmp_path / str(number), **{**SETTINGS, "rng": rng})
    assert_same_state(state_of(models[0]), state_of(models[1]))
    assert not torch.equal(models[0].readout.weight, models[2].readout.weight)


def test_progress_bar_counts_to_the_last_step(tmp_path, capsys):
    train(make(), TASK, folder=tmp_path, progress=True, **SETTINGS)
    assert "12/12" in capsys.readouterr().err


# Wrong use


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 25}, "batch_size=25, and the task has 24 trials"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"optimizer": "gradient"}, "optimizer is the string 'gradient': use one of .*'adam'"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"rng": -1}, "rng is the number -1: pass a seed"),
        ({"task": TASK.drop_vars("mask")}, r"task\['mask'\] is missing"),
        ({"task": TASK.isel(time=0)}, r"expected the dims \('trial', 'time', 'input'\)"),
        ({"task": TASK.assign(mask=TASK.mask & (TASK.trial != 2))}, "no step of trial 2 counts"),
        (
            {"task": TASK.assign(inputs=TASK.inputs / (TASK.trial != 2))},
            "inputs .* trial 2, time 0",
        ),
        ({"task": TASK.assign(targets=TASK.targets + np.nan)}, "targets is not finite at trial 0"),
        ({"task": TASK.isel(output=[0])}, r"shape \(24, 8, 1\), expected \(24, 8, 3\)"),
    ],
)
def test_wrong_use_raises_and_names_the_value(tmp_path, change, message):
    settings = {"task": TASK, "folder": tmp_path, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
        train(make(), **settings)
    assert not list(tmp_path.iterdir())


def test_unsuitable_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="model is the class GRU, expected"):
        train(nn.GRU, TASK, folder=tmp_path, **SETTINGS)
    with pytest.raises(TypeError, match="model returns a tuple"):
        train(nn.GRU(3, 3, batch_first=True), TASK, folder=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        train(make().requires_grad_(False), TASK, folder=tmp_path, **SETTINGS)
    mixed = make()
    mixed.readout.double()
    with pytest.raises(TypeError, match="mixes the dtypes"):
        train(mixed, TASK, folder=tmp_path, **SETTINGS)
    with pytest.raises(TypeError, match=r"torch\.float16"):
        train(make().half(), TASK, folder=tmp_path, **SETTINGS)
