"""Other people's checkpoints: where the step is, where the weights are, what they are called."""

import argparse

import numpy as np
import pytest
import torch
from torch import nn

import kpops
from kpops.models.network import Network
from kpops.training import checkpoints, train


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(nn.GRU(3, 4), nn.Linear(4, 2))


def assert_same(state, model):
    expected = model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def renamed(prefix, model):
    return {prefix + name: value for name, value in model.state_dict().items()}


# Where the weights are


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested_state_dict_is_found_under_the_usual_keys(tmp_path, key):
    model = make()
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    content = {"epoch": torch.tensor(3), "optimizer": optimizer, key: model.state_dict()}
    torch.save(content, tmp_path / "epoch_3.pt")
    ((step, state),) = checkpoints(tmp_path, "*.pt")
    assert step == 3
    assert_same(state, model)


def test_flat_state_dict_is_taken_although_a_layer_has_the_name_of_a_key(tmp_path):
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "net": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "step_1.pt")
    assert_same(checkpoints(tmp_path)[0][1], model)


def test_key_names_the_state_dict_among_several(tmp_path):
    model, average = make(0), make(1)
    content = {"model": model.state_dict(), "ema": average.state_dict()}
    torch.save(content, tmp_path / "step_1.pt")
    assert_same(checkpoints(tmp_path)[0][1], model)
    assert_same(checkpoints(tmp_path, key="ema")[0][1], average)
    with pytest.raises(TypeError, match=r"no state dict under key='emma', .*\['model', 'ema'\]"):
        checkpoints(tmp_path, key="emma")[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a state dict"),
        ({"net": {"weight": torch.ones(2)}}, r"holds no state dict, its entries are \['net'\]"),
        ({"epoch": 3}, "holds no state dict"),
        ({"model": {}}, "holds no state dict"),
    ],
)
def test_files_without_a_state_dict_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "step_1.pt")
    with pytest.raises(TypeError, match=f"step_1.pt' {message}"):
        checkpoints(tmp_path)[0]


def test_files_with_objects_of_other_classes_are_refused_with_the_remedy(tmp_path):
    content = {"state_dict": make().state_dict(), "options": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "step_1.pt")
    with pytest.raises(
        OSError, match=r"(?s)step_1.pt' cannot be read.*add_safe_globals.*Namespace"
    ):
        checkpoints(tmp_path)[0]
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_same(checkpoints(tmp_path)[0][1], make())


# What the weights are called


def test_prefix_of_data_parallel_is_removed(tmp_path):
    model = make()
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "step_1.pt")
    assert_same(checkpoints(tmp_path, prefix="module.")[0][1], model)


def test_prefix_of_a_compiled_model_is_removed(tmp_path):
    model = make()
    torch.save(torch.compile(model, backend="eager").state_dict(), tmp_path / "step_1.pt")
    assert_same(checkpoints(tmp_path, prefix="_orig_mod.")[0][1], model)


def test_only_names_that_start_with_the_prefix_are_taken_and_only_once_cut(tmp_path):
    model = nn.ModuleDict({"net": make()})
    content = {**renamed("net.", model), "metric.total": torch.ones(3)}
    torch.save(content, tmp_path / "step_1.pt")
    assert_same(checkpoints(tmp_path, prefix="net.")[0][1], model)
    with pytest.raises(ValueError, match=r"prefix='model\.' starts no name in .*'net\.net\.rec"):
        checkpoints(tmp_path, prefix="model.")[0]


def test_slices_keep_key_and_prefix(tmp_path):
    for step in range(3):
        torch.save({"ema": renamed("net.", make(step))}, tmp_path / f"step_{step}.pt")
    for step, state in checkpoints(tmp_path, key="ema", prefix="net.")[1:]:
        assert_same(state, make(step))


# Where the step is


def test_step_by_a_regular_expression_sees_the_path_in_the_folder(tmp_path):
    for epoch in (2, 10):
        (tmp_path / f"epoch_{epoch}").mkdir()
        torch.save(make(epoch).state_dict(), tmp_path / f"epoch_{epoch}" / "weights_v1.pt")
    saved = checkpoints(tmp_path, "**/*.pt", step=r"epoch_(\d+)/")
    assert saved.steps == (2, 10)
    assert_same(saved[1][1], make(10))


def test_step_by_a_callable(tmp_path):
    for epoch in (1, 2):
        torch.save(make(epoch).state_dict(), tmp_path / f"epoch_{epoch}.pt")
    saved = checkpoints(tmp_path, "*.pt", step=lambda path: 500 * int(path.stem[-1]))
    assert saved.steps == (500, 1000)
    assert_same(saved[0][1], make(1))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"epoch=(\d+)", r"step='epoch=\(\\\\d\+\)' finds no number in 'run_a5.pt'"),
        (r"run_(\w+)", "finds no number in 'run_a5.pt'"),
        (r"(\d+)?run", "finds no number in 'run_a5.pt'"),
        (r"\d+", "put one group around the step"),
        (r"(run)_(\d+)", "put one group around the step"),
    ],
)
def test_expressions_that_find_no_step_are_named(tmp_path, expression, message):
    torch.save({}, tmp_path / "run_a5.pt")
    with pytest.raises(ValueError, match=message):
        checkpoints(tmp_path, "*.pt", step=expression)


def test_callables_that_return_no_integer_are_refused(tmp_path):
    torch.save({}, tmp_path / "step_1.pt")
    with pytest.raises(TypeError, match="'str' object cannot be interpreted as an integer"):
        checkpoints(tmp_path, step=lambda path: "1")


# Together


def test_lightning_checkpoints_are_measured_over_training(tmp_path):
    # The entries of a file of Lightning 2, with the plain values that its callbacks have.
    for epoch, step in [(0, 50), (1, 100)]:
        content = {
            "epoch": epoch,
            "global_step": step,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**renamed("model.", make(epoch)), "loss.weight": torch.ones(2)},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
            "optimizer_states": [torch.optim.Adam(make().parameters()).state_dict()],
            "lr_schedulers": [],
            "hyper_parameters": {"lr": 1e-3},
        }
        torch.save(content, tmp_path / f"epoch={epoch}-step={step}-v1.ckpt")
    saved = checkpoints(tmp_path, "*.ckpt", step=r"step=(\d+)", prefix="model.")
    result = kpops.over_training(
        make(),
        saved,
        torch.ones(2, 5, 3),
        lambda lin: {"last": float(lin.states[0, -1, 0])},
        linearizer=lambda model, inputs: kpops.linearize(model.recurrent, inputs.transpose(0, 1)),
    )
    assert result.step.values.tolist() == [50, 100]
    wanted = [make(epoch).recurrent(torch.ones(5, 2, 3))[0][-1, 0, 0].item() for epoch in (0, 1)]
    np.testing.assert_allclose(result["last"], wanted, rtol=1e-5)


def test_checkpoints_of_train_are_read_by_the_same_rules(tmp_path):
    task = kpops.tasks.memory_pro(8, rng=0, steps=(2, 2, 2))
    model = Network(nn.GRU(3, 4), nn.Linear(4, 3))
    train(model, task, folder=tmp_path, max_steps=2, batch_size=4, rng=0)
    assert_same(checkpoints(tmp_path)[-1][1], model)
    recurrent = checkpoints(tmp_path, prefix="recurrent.")[-1][1]
    assert_same(recurrent, model.recurrent)
