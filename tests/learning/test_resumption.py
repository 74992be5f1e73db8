"""A training goes on with the same model only: classes, attributes and code are compared."""

import functools
import os
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import kpops
from kpops.learning.resumption import check_same_training, describe_modules, plain
from kpops.models.network import Network
from kpops.tasks import memory_pro
from kpops.training import train

TASK = memory_pro(24, rng=0, steps=(3, 2, 3))
SETTINGS = {"max_steps": 2, "batch_size": 8, "checkpoint_every": 1, "rng": 1}


def learn(folder, model, **options):
    return train(model, TASK, folder=folder, **{**SETTINGS, **options})


def refused(folder, one, other, told, **options):
    """Train `one`, and be refused with `other`, whose weights are left alone."""
    learn(folder, one, **options)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=f"checkpoints of another training: .*{told}.*Pass the sa"):
        learn(folder, other, **options)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def network(module=nn.GRU, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(module(3, 6, **options), nn.Linear(6, 3))


# Layers of PyTorch


def test_another_dropout_rate_is_refused(tmp_path):
    one, other = (network(num_layers=2, dropout=p) for p in (0.1, 0.2))
    refused(tmp_path, one, other, "recurrent: dropout is 0.1 there and 0.2 here")


def test_relu_is_no_tanh_however_near_the_losses(tmp_path):
    one, other = (network(nn.RNN, nonlinearity=f) for f in ("tanh", "relu"))
    for model in (one, other):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1e-3)  # where both are linear
    refused(tmp_path, one, other, "recurrent: nonlinearity is tanh there and relu here")


def test_another_layer_without_weights_is_refused(tmp_path):
    def make(activation):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Network(nn.GRU(3, 6), nn.Sequential(nn.Linear(6, 3), activation))

    told = r"class of readout.1 is torch.*\.Tanh there and torch.*\.Softsign here"
    refused(tmp_path, make(nn.Tanh()), make(nn.Softsign()), told)


# Cells of one's own


def definition(body, **names):
    """A cell with the forward of that body, as if in a file of its own."""
    space = {"nn": nn, "torch": torch, "__name__": "of_the_user", **names}
    lines = "\n        ".join(body.strip().splitlines())
    code = f"""
class Cell(nn.Module):
    scale = 1.0

    def __init__(self, alpha=0.5, function=torch.tanh):
        super().__init__()
        self.alpha, self.function, self.readout = alpha, function, nn.Linear(3, 3)

    def forward(self, x):
        {lines}
"""
    exec(compile(code, "of_the_user.py", "exec"), space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return space["Cell"]


STEP = "return self.alpha * self.readout(x)"


def cell(body=STEP, *arguments, **names):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return definition(body, **names)(*arguments)


def helper(factor):
    space = {}
    exec(f"def helper(x):\n    return {factor} * x\n", space)
    return space["helper"]


@dataclass
class Settings:
    """Options of a cell."""

    rate: float


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (cell(STEP, 0.5), cell(STEP, 0.50001), "model: alpha is 0.5 there and 0.50001 here"),
        (
            cell("return self.alpha[0] * self.readout(x)", [1.0]),
            cell("return self.alpha[0] * self.readout(x)", [2.0]),
            r"model: alpha is \[1.0\] there and \[2.0\] here",
        ),
        (
            cell(STEP, 0.5, torch.tanh),
            cell(STEP, 0.5, torch.relu),
            "model: function is .*tanh there and .*relu here",
        ),
        (cell(STEP, 0.5, helper(1)), cell(STEP, 0.5, helper(2)), "model: function is helper "),
        (
            cell(STEP, 0.5, functools.partial(torch.clamp, min=0)),
            cell(STEP, 0.5, functools.partial(torch.clamp, min=-1)),
            "model: function is .*'min': 0.* there and .*'min': -1",
        ),
        (
            cell("return self.alpha * self.readout(x)"),
            cell("return self.alpha + self.readout(x)"),
            r"code of Cell is \w{16} \(CPython 3\.\d+\) there and \w{16}",
        ),
        (
            cell("return GAIN * self.readout(x)", GAIN=1.0),
            cell("return GAIN * self.readout(x)", GAIN=1.01),
            "code of Cell",
        ),
        (
            cell("return step(self.readout(x))", step=helper(1)),
            cell("return step(self.readout(x))", step=helper(1.01)),
            "code of Cell",
        ),
    ],
)
def test_another_cell_is_refused_by_what_differs(tmp_path, one, other, told):
    refused(tmp_path, one, other, told)


def test_attributes_may_be_settings(tmp_path):
    one, other = (cell(STEP) for _ in range(2))
    one.settings, other.settings = Settings(0.1), Settings(0.2)
    refused(tmp_path, one, other, "model: settings is {'rate': 0.1} there and {'rate': 0.2} here")


def test_methods_put_on_a_model_are_its_code(tmp_path):
    one, other = cell(STEP), cell(STEP)
    other.forward = types.MethodType(lambda self, x: 1.01 * self.readout(x), other)
    refused(tmp_path, one, other, "model: forward is absent there and .*lambda")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("return self.readout(x)", "return self.readout(x)  # a remark"),
        ("y = self.readout(x)\nreturn y", "y = self.readout(x)\n\n\nreturn y"),
        ("return self.readout(x)", "'''What it does.'''\nreturn self.readout(x)"),
    ],
)
def test_remarks_blank_lines_and_documentation_are_no_code(tmp_path, one, other):
    learn(tmp_path, cell(one))
    model = cell(other)
    assert learn(tmp_path, model, max_steps=3).sizes["step"] == 4


def test_code_under_a_decorator_is_compared():
    def make(factor):
        body = "return self.helped(x)"
        kind = definition(body)
        kind.helped = torch.no_grad()(helper(factor))
        return describe_modules(kind())["code of Cell"]

    assert make(1) == make(1) != make(2)


def test_descriptions_are_the_same_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "cell_of_mine.py").write_text(
        """
import torch
from torch import nn

class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.names = {"one", "two", "three", "four", "five"}

    def forward(self, x):
        return x if x.shape[0] in {"one", "two", "three", "four"} else torch.tanh(x)
"""
    )
    code = """
import cell_of_mine
from kpops.learning.resumption import describe_modules
print(describe_modules(cell_of_mine.Cell()))
"""
    monkeypatch.syspath_prepend(tmp_path)
    import cell_of_mine

    sets_in_another_order = {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | sets_in_another_order,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == str(describe_modules(cell_of_mine.Cell()))


def test_code_of_installed_packages_is_what_its_name_says():
    described = describe_modules(network())
    assert not [key for key in described if key.startswith("code of")]
    assert not [key for key in described if ": _" in key]
    assert plain(np.float64("nan")) == "nan" and plain({1: (2, {3})}) == {"1": [2, ["3"]]}


# Loss and schedules


def squared(y, target):
    return (y - target).square().mean()


def quartic(y, target):
    return (y - target).pow(4).mean()


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("mse", squared, "loss is mse there and squared .* here"),
        (squared, quartic, r"loss is squared \w{16} .* there and quartic"),
        (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=0.5), "loss is .*'model: delta': 1.0.*0.5"),
    ],
)
def test_another_loss_is_another_training(tmp_path, one, other, told):
    learn(tmp_path, network(), loss=one)
    with pytest.raises(ValueError, match=told):
        learn(tmp_path, network(), loss=other)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
            lambda o: lr_scheduler.MultiStepLR(o, [2, 6]),
            "scheduler: milestones is {'2': 1, '5': 1} there and {'2': 1, '6': 1} here",
        ),
        (
            lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
            lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (2 + step)),
            "scheduler: lr_lambdas is .*lambda",
        ),
        (
            lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9)]),
            lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.8)]),
            "scheduler: _schedulers is .*'gamma': 0.9.* there and .*'gamma': 0.8.* here",
        ),
    ],
)
def test_another_schedule_is_another_training(tmp_path, one, other, told):
    def scheduled(schedule):
        def factory(params, lr):
            optimizer = torch.optim.SGD(params, lr)
            return optimizer, schedule(optimizer)

        return factory

    learn(tmp_path, network(), optimizer=scheduled(one))
    with pytest.raises(ValueError, match=told):
        learn(tmp_path, network(), optimizer=scheduled(other))


def test_classes_of_kpops_may_move_between_files(tmp_path):
    here = describe_modules(kpops.models.DiagonalSSM(2, 3))
    key = "class of model"
    assert here[key] == "kpops.models.diagonal.DiagonalSSM"
    before = {**here, key: "kpops.models.ssm.DiagonalSSM"}
    check_same_training({"configuration": before, "step": 3}, here, 5, tmp_path)
    other = {**here, key: "kpops.models.ssm.SelectiveSSM"}
    with pytest.raises(ValueError, match=r"class of model is kpops.SelectiveSSM there and kpops.D"):
        check_same_training({"configuration": other, "step": 3}, here, 5, tmp_path)
