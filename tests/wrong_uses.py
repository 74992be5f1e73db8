"""A hundred wrong uses, and what a user is told.

    python tests/wrong_uses.py        # prints the table: use, seconds, error

Each names the value and the remedy: `words` stand in the message. See ``test_wrong_uses.py``.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import nn

import kpops


class Use(NamedTuple):
    """What is done, and what the message must say: the value, and the remedy."""

    title: str
    act: Callable[[], Any]
    value: str
    remedy: str


def told(use: Use) -> Exception:
    """The error that a use gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on what it deprecates or only tries
        try:
            given = use.act()
        except Exception as error:
            return error
    raise AssertionError(f"{use.title} is not refused: {given!r}")


@cache
def gru() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(3, 4, batch_first=True)


@cache
def inputs() -> torch.Tensor:
    return torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))


@cache
def lin() -> kpops.Linearization:
    return kpops.linearize(gru(), inputs(), readout=nn.Linear(4, 2))


@cache
def task() -> xr.Dataset:
    return kpops.tasks.memory_pro(5, steps=(2, 2, 2), rng=0)


def linearize(model: Any = None, x: Any = None, **options: Any) -> Any:
    return kpops.linearize(
        gru() if model is None else model, inputs() if x is None else x, **options
    )


class Net(nn.Module):
    """A whole-sequence network, with two candidates for the recurrence."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.GRU(3, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.other(self.one(x)[0])[0])


class Cell(nn.Module):
    """A step made by a function of (module, x, h)."""

    hidden_size = 3
    input_size = 3

    def __init__(self, step):
        super().__init__()
        self.lin, self.step = nn.Linear(3, 3), step

    def forward(self, x, h):
        return self.step(self, x, h)


class Swapped(Cell):
    def forward(self, h, x):
        return torch.tanh(self.lin(h) + 0.1 * x)


def cell(step: Callable[[Any, Any, Any], Any]) -> Any:
    return linearize(Cell(step))


def made_once(m, x, h):
    if not hasattr(m, "A"):
        m.A = torch.linalg.matrix_exp(m.lin.weight)
    return torch.tanh(h @ m.A + x)


class Loud(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


def at(shape, value):
    x = torch.zeros(shape)
    x.view(-1)[3] = value
    return x


def days():
    """An operator whose whole spectrum would take days, as a matrix of 100,000 rows."""
    x = torch.randn(10, 100, 3, generator=torch.Generator().manual_seed(0))
    wide = kpops.linearize(nn.GRU(3, 100, batch_first=True), x)
    return wide.flow


def train(**options: Any) -> Any:
    network = kpops.Network(nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3))
    options = {"folder": tempfile.mkdtemp(), "batch_size": 5, **options}
    return kpops.training.train(network, task(), **options)


USES = [
    # models
    Use("a number as model", lambda: linearize(3), "the number 3", "forward(x_t, h)"),
    Use(
        "a state dict as model", lambda: linearize(gru().state_dict()), "a dict", "load_state_dict"
    ),
    Use("a class as model", lambda: linearize(nn.GRU), "the class GRU", "GRU(...)"),
    Use("a linearization as model", lambda: linearize(lin()), "a Linearization", "use it as it is"),
    Use(
        "an nn.Linear as model",
        lambda: linearize(nn.Linear(3, 4)),
        "Linear.forward takes no state",
        "give the recurrent part a module",
    ),
    Use(
        "a bidirectional GRU",
        lambda: linearize(nn.GRU(3, 4, bidirectional=True)),
        "bidirectional=True",
        "linearise one direction",
    ),
    Use(
        "an LSTM with projections",
        lambda: linearize(nn.LSTM(3, 4, proj_size=2)),
        "proj_size=2",
        "use proj_size=0",
    ),
    Use(
        "dropout in training mode",
        lambda: linearize(nn.GRU(3, 4, 2, dropout=0.5)),
        "dropout=0.5",
        "model.eval()",
    ),
    Use(
        "a scripted module",
        lambda: linearize(torch.jit.script(nn.GRUCell(3, 4))),
        "scripted module",
        "pass the module that it was made from",
    ),
    Use(
        "a network with two recurrent parts",
        lambda: linearize(Net()),
        "one and other",
        "kpops.linearize(model.other, inputs, readout=model.fc)",
    ),
    Use(
        "a bfloat16 model",
        lambda: linearize(nn.GRU(3, 4).bfloat16()),
        "torch.bfloat16",
        "dtype=torch.float32",
    ),
    Use(
        "dtypes mixed in a model",
        lambda: linearize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())),
        "'1.weight': torch.float64",
        "pass dtype=",
    ),
    Use(
        "complex parameters",
        lambda: linearize(nn.GRUCell(3, 4).to(torch.complex64)),
        "weight_ih of GRUCell is complex",
        "two real tensors",
    ),
    Use(
        "nothing learns",
        lambda: linearize(nn.GRU(3, 4).requires_grad_(False)),
        "no parameter requires grad",
        "parameters=",
    ),
    Use(
        "forward(h, x)",
        lambda: linearize(Swapped(None)),
        "Swapped.forward(h, x)",
        "exchange its arguments",
    ),
    Use(
        "a cell that is random",
        lambda: cell(lambda m, x, h: m.lin(h) + torch.randn_like(h)),
        "two steps of Cell",
        "model.eval()",
    ),
    Use(
        "a cell that mixes trials",
        lambda: cell(lambda m, x, h: m.lin(h - h.mean(0))),
        "mixes trials",
        "keep all memory in h",
    ),
    Use(
        "a cell that changes h in place",
        lambda: cell(lambda m, x, h: h.mul_(0.5)),
        "changes h in place",
        "return a new tensor",
    ),
    Use(
        "a cell that changes x in place",
        lambda: cell(lambda m, x, h: m.lin(h) + x.mul_(2)),
        "changes x in place",
        "return a new tensor",
    ),
    Use(
        "a cell under no_grad",
        lambda: cell(lambda m, x, h: torch.no_grad()(m.lin)(h) + x),
        "its state, lin.weight, lin.bias",
        "surrogate_gradient = True",
    ),
    Use(
        "a cell that detaches a part",
        lambda: cell(lambda m, x, h: torch.tanh(m.lin(h).detach() + h)),
        "detached",
        "surrogate_gradient = True",
    ),
    Use(
        "a cell through NumPy",
        lambda: cell(lambda m, x, h: torch.from_numpy(np.tanh(h.detach().numpy())) + m.lin(x)),
        "a step of Cell",
        "leave NumPy",
    ),
    Use(
        "a surrogate gradient",
        lambda: cell(lambda m, x, h: Loud.apply(m.lin(h)) + 0.1 * x),
        "autograd.Function",
        "setup_context",
    ),
    Use(
        "a weight made once",
        lambda: cell(made_once),
        "a step makes A and keeps it",
        "make it in each step",
    ),
    Use(
        "a cell that returns a pair",
        lambda: cell(lambda m, x, h: (h, h)),
        "returned tuple",
        "expected the next state alone",
    ),
    Use(
        "a cell that returns another shape",
        lambda: cell(lambda m, x, h: h[:, :2]),
        "returned (5, 2)",
        "the shape of h, (5, 3)",
    ),
    Use(
        "a cell that returns another dtype",
        lambda: cell(lambda m, x, h: m.lin(h).double()),
        "torch.float64 for a state of torch.float32",
        "Pass dtype=",
    ),
    Use(
        "states that overflow",
        lambda: cell(lambda m, x, h: 1e20 * (m.lin(h) + x) ** 3),
        "trial 0, time step 2",
        "scale the inputs",
    ),
    # inputs
    Use(
        "inputs of two dims",
        lambda: linearize(x=torch.zeros(6, 3)),
        "(6, 3)",
        "add a dim of size 1",
    ),
    Use(
        "inputs with a wrong number of features",
        lambda: linearize(x=torch.zeros(5, 6, 2)),
        "(5, 6, 2)",
        "takes 3 features",
    ),
    Use(
        "no trials",
        lambda: linearize(x=torch.zeros(0, 6, 3)),
        "(0, 6, 3)",
        "pass one trial and one step or more",
    ),
    Use(
        "inputs in another dtype",
        lambda: linearize(x=torch.zeros(5, 6, 3).double()),
        "inputs is torch.float64",
        "dtype=torch.float32",
    ),
    Use(
        "inputs that are NaN",
        lambda: linearize(x=at((5, 6, 3), float("nan"))),
        "trial 0, time step 2",
        "mask padded steps",
    ),
    Use(
        "complex inputs",
        lambda: linearize(x=torch.zeros(5, 6, 3, dtype=torch.complex64)),
        "inputs is complex",
        "two real arrays",
    ),
    Use(
        "strings as inputs",
        lambda: linearize(x=np.full((5, 6, 3), "a")),
        "inputs is of dtype <U1",
        "one_hot",
    ),
    Use(
        "a task as inputs",
        lambda: linearize(x=task()),
        "a Dataset of inputs, targets, mask",
        "task.inputs",
    ),
    Use(
        "a DataArray without the dim trial",
        lambda: linearize(x=xr.DataArray(np.zeros((5, 6, 3)))),
        "('dim_0', 'dim_1', 'dim_2')",
        "expected trial, time",
    ),
    Use(
        "class labels as inputs",
        lambda: linearize(x=torch.zeros(5, 6, dtype=torch.long)),
        "(5, 6)",
        "one_hot(inputs, 3)",
    ),
    Use(
        "h0 of a wrong size",
        lambda: linearize(h0=torch.zeros(5, 3)),
        "h0 has shape (5, 3)",
        "(trial, unit) = (5, 4)",
    ),
    Use(
        "complex h0",
        lambda: linearize(h0=torch.zeros(5, 4, dtype=torch.complex64)),
        "h0 is complex",
        "two real arrays",
    ),
    Use(
        "h0 that is infinite",
        lambda: linearize(h0=at((5, 4), float("inf"))),
        "h0 is not finite, first in trial 0",
        "check the weights",
    ),
    Use(
        "a mask of a wrong size",
        lambda: linearize(mask=torch.ones(5, 5, dtype=torch.bool)),
        "mask has shape (5, 5)",
        "(trial, time) = (5, 6)",
    ),
    Use(
        "a mask with a hole",
        lambda: linearize(mask=torch.tensor([[1, 0, 1, 1, 1, 1]] * 5).bool()),
        "mask of trial 0",
        "valid steps must come first",
    ),
    Use(
        "a mask without a valid step",
        lambda: linearize(mask=torch.zeros(5, 6, dtype=torch.bool)),
        "in trial 0",
        "drop empty trials",
    ),
    Use("weights as a mask", lambda: linearize(mask=torch.full((5, 6), 0.5)), "[0.5]", "loss_mask"),
    # options of linearize
    Use("an unknown engine", lambda: linearize(engine="fast"), "engine='fast'", "'gated_numba'"),
    Use(
        "an engine that does not serve the model",
        lambda: linearize(Cell(lambda m, x, h: torch.tanh(m.lin(h))), engine="gated"),
        "engine='gated': Cell",
        "register",
    ),
    Use(
        "an unknown measure",
        lambda: linearize(measure="average"),
        "measure='average'",
        "'sum' or 'mean'",
    ),
    Use(
        "an unknown dtype",
        lambda: linearize(dtype=torch.float16),
        "torch.float16",
        "torch.float32 or torch.float64",
    ),
    Use(
        "parameters() instead of names",
        lambda: linearize(parameters=gru().parameters()),
        "Parameter objects",
        "choose from ['weight_ih_l0'",
    ),
    Use(
        "an unknown parameter",
        lambda: linearize(parameters=["weight"]),
        "['weight']",
        "choose from ['weight_ih_l0'",
    ),
    Use(
        "a predicate that takes none",
        lambda: linearize(parameters=lambda name: False),
        "accepts no name",
        "from ['weight_ih_l0'",
    ),
    Use(
        "a readout of a wrong size",
        lambda: linearize(readout=nn.Linear(3, 2)),
        "(30, 4)",
        "nn.Linear(4, n)",
    ),
    Use(
        "a class as readout",
        lambda: linearize(readout=nn.Linear),
        "the class Linear",
        "expected an nn.Module or a callable",
    ),
    Use(
        "a readout with dropout",
        lambda: linearize(readout=nn.Sequential(nn.Linear(4, 2), nn.Dropout())),
        "Dropout(p=0.5",
        "model.eval()",
    ),
    Use(
        "a readout that counts dims",
        lambda: kpops.linearize(
            kpops.Network(nn.GRU(3, 4, batch_first=True), nn.Softmax(dim=1)), inputs()
        ),
        "counts dims",
        "dim=-1",
    ),
    Use(
        "outputs without a readout",
        lambda: linearize().outputs,
        "this needs a readout",
        "pass readout=",
    ),
    # operators
    Use(
        "a vector of a wrong size",
        lambda: lin().flow @ np.zeros(7),
        "q has shape (7,)",
        "(120,), (120, k), (5, 6, 4)",
    ),
    Use(
        "a vector in another dtype",
        lambda: lin().flow @ torch.zeros(5, 6, 4).double(),
        "q is torch.float64",
        "q.to(torch.float32)",
    ),
    Use(
        "a DataArray with other labels",
        lambda: lin().flow @ lin().states.assign_coords(time=np.arange(6)),
        "['time']",
        "q.drop_vars",
    ),
    Use("np.asarray of an operator", lambda: np.asarray(lin().flow), "120 x 120", "op.to_dense()"),
    Use(
        "an operator divided by a vector",
        lambda: lin().flow / np.ones(120),
        "an array of shape (120,)",
        "divide by a real number",
    ),
    Use("a number added to an operator", lambda: lin().flow + 1, "the number 1", "add an operator"),
    Use("an operator times a complex number", lambda: lin().flow * 1j, "1j", "use a real number"),
    Use(
        "operators of other spaces multiplied",
        lambda: lin().J @ lin().P,
        "(parameter: 108)",
        "they must be equal",
    ),
    Use(
        "operators of other dtypes added",
        lambda: lin().P + linearize(dtype=torch.float64).P,
        "float64 on cpu",
        "same dtype=",
    ),
    Use(
        "an unknown dim selected",
        lambda: lin().flow.select(neuron=0),
        "['neuron']",
        "choose from ['trial', 'time', 'unit']",
    ),
    Use("positions beyond the end", lambda: lin().flow.select(time=99), "time=99", "from 0 to 5"),
    Use(
        "a mask of a wrong size selected",
        lambda: lin().flow.select(time=np.ones(5, dtype=bool)),
        "shape (5,)",
        "dim of size 6",
    ),
    Use(
        "reduction to an unknown dim",
        lambda: lin().flow.partial_trace(("neuron",)),
        "('neuron',)",
        "('trial', 'time', 'unit')",
    ),
    Use("export to CuPy from the CPU", lambda: lin().flow.to_cupy(), "is on cpu", "device='cuda'"),
    # spectra
    Use(
        "eigsh of a linearization",
        lambda: kpops.eigsh(lin()),
        "a Linearization",
        "lin.flow, lin.K or lin.P",
    ),
    Use(
        "eigsh of a model",
        lambda: kpops.eigsh(gru()),
        "a model (GRU)",
        "kpops.linearize(model, inputs).flow",
    ),
    Use(
        "eigsh of a task",
        lambda: kpops.eigsh(task()),
        "a Dataset of inputs",
        "kpops.linearize(model, task.inputs).flow",
    ),
    Use("eigsh of a string", lambda: kpops.eigsh("flow"), "the string 'flow'", "lin.flow"),
    Use("eigsh of P", lambda: kpops.eigsh(lin().P), "<P (trial: 5", "kpops.svds"),
    Use(
        "eigsh of a matrix that is not square",
        lambda: kpops.eigsh(np.ones((3, 4))),
        "(index: 4) -> (index: 3)",
        "kpops.svds",
    ),
    Use(
        "eigsh of a vector",
        lambda: kpops.eigsh(np.ones(3)),
        "op has shape (3,)",
        "expected a matrix (m, n)",
    ),
    Use(
        "eigsh of a matrix with NaN",
        lambda: kpops.eigsh(np.full((5, 5), np.nan)),
        "25 of 25 entries",
        "fill or drop them",
    ),
    Use(
        "eigsh of a complex matrix",
        lambda: kpops.eigsh(np.eye(5) * 1j),
        "complex128",
        "real and imaginary part",
    ),
    Use(
        "more modes than there are", lambda: kpops.eigsh(lin().flow, 121), "k=121", "from 1 to 120"
    ),
    Use("no modes", lambda: kpops.eigsh(lin().flow, 0), "k=0", "from 1 to 120"),
    Use("half a mode", lambda: kpops.eigsh(lin().flow, 2.5), "k=2.5", "choose an int"),
    Use(
        "an unknown method",
        lambda: kpops.eigsh(lin().flow, method="power"),
        "method='power'",
        "'block-krylov'",
    ),
    Use(
        "an unknown end of the spectrum",
        lambda: kpops.eigsh(lin().flow, which="smallest"),
        "which='smallest'",
        "'LM' (largest magnitude)",
    ),
    Use(
        "a start vector of a wrong size",
        lambda: kpops.eigsh(lin().flow, v0=np.ones(3)),
        "v0 has shape (3,)",
        "(5, 6, 4)",
    ),
    Use("a negative tolerance", lambda: kpops.eigsh(lin().flow, tol=-1), "tol=-1", "1e-6"),
    Use(
        "a seed that is no number",
        lambda: kpops.eigsh(lin().flow, rng="a"),
        "the string 'a'",
        "pass a seed",
    ),
    Use(
        "an unknown kind of rank",
        lambda: kpops.effective_rank(lin().flow, kind="rank"),
        "kind='rank'",
        "'participation'",
    ),
    Use(
        "the rank of an indefinite operator",
        lambda: kpops.effective_rank(np.diag([-30.0, 1, 1, 1])),
        "not positive semi-definite",
        "op @ op.H",
    ),
    Use(
        "a threshold of 95",
        lambda: kpops.effective_rank(lin().flow, kind="variance", threshold=95),
        "threshold=95",
        "between 0 and 1",
    ),
    Use(
        "a budget of no matvecs",
        lambda: kpops.trace(lin().flow, num_matvecs=0),
        "num_matvecs=0",
        "at least 2",
    ),
    Use(
        "the trace of J",
        lambda: kpops.trace(lin().J),
        "does not map a space to itself",
        "kpops.frobenius_norm",
    ),
    Use(
        "alignment of operators of other spaces",
        lambda: kpops.alignment(lin().flow, lin().output_ntk),
        "(trial: 5, time: 6, output: 2)",
        "they must be equal",
    ),
    # learning
    Use(
        "a task instead of targets",
        lambda: kpops.gradient_flow(lin(), task()),
        "a Dataset of inputs",
        "task.targets",
    ),
    Use(
        "targets of a wrong size",
        lambda: kpops.gradient_flow(lin(), torch.zeros(5, 6, 3)),
        "(5, 6, 3)",
        "expected (5, 6, 2)",
    ),
    Use(
        "targets in another dtype",
        lambda: kpops.gradient_flow(lin(), torch.zeros(5, 6, 2).double()),
        "torch.float64",
        "convert it",
    ),
    Use(
        "targets that are NaN",
        lambda: kpops.gradient_flow(lin(), at((5, 6, 2), float("nan"))),
        "trial 0, time 1",
        "mask those steps",
    ),
    Use(
        "complex targets",
        lambda: kpops.gradient_flow(lin(), torch.zeros(5, 6, 2, dtype=torch.complex64)),
        "targets is complex",
        "two real arrays",
    ),
    Use(
        "an unknown loss",
        lambda: kpops.gradient_flow(lin(), torch.zeros(5, 6, 2), loss="mae"),
        "loss='mae'",
        "'cross_entropy'",
    ),
    Use(
        "a loss that is not a scalar",
        lambda: kpops.gradient_flow(lin(), torch.zeros(5, 6, 2), loss=lambda y, t: (y - t) ** 2),
        "(5, 6, 2)",
        ".mean()",
    ),
    Use(
        "labels beyond the classes",
        lambda: kpops.gradient_flow(lin(), torch.full((5, 6), 7), loss="cross_entropy"),
        "targets is 7",
        "from 0 to 1",
    ),
    Use(
        "an operator instead of a linearization",
        lambda: kpops.gradient_flow(lin().flow, torch.zeros(5, 6, 2)),
        "the operator <P K P*",
        "kpops.linearize(model, inputs)",
    ),
    Use(
        "collapse of an operator",
        lambda: kpops.collapse(lin().flow),
        "the operator <P K P*",
        "kpops.linearize(model, inputs)",
    ),
    Use(
        "interference without tasks",
        lambda: kpops.interference(lin()),
        "by='task'",
        "array of 5 labels",
    ),
    Use(
        "over_training without checkpoints",
        lambda: kpops.over_training(gru(), [], inputs(), kpops.collapse),
        "checkpoints is empty",
        "(step, state_dict)",
    ),
    Use(
        "a step of 0.5",
        lambda: kpops.over_training(gru(), [(0.5, gru().state_dict())], inputs(), kpops.collapse),
        "step 0.5",
        "number the checkpoints",
    ),
    Use(
        "steps that repeat",
        lambda: kpops.over_training(
            gru(), [(0, gru().state_dict())] * 2, inputs(), lambda lin: {"a": 1.0}
        ),
        "[0, 0]",
        "repeat a step",
    ),
    Use(
        "a checkpoint of another model",
        lambda: kpops.over_training(
            gru(), [(0, nn.GRU(3, 5).state_dict())], inputs(), kpops.collapse
        ),
        "at step 0",
        "of the same sizes and names",
    ),
    Use(
        "a measure that returns an operator",
        lambda: kpops.over_training(gru(), [(0, gru().state_dict())], inputs(), lambda lin: lin.P),
        "the operator <P",
        "a Dataset, a DataArray with a name",
    ),
    Use(
        "a measure that fails",
        lambda: kpops.over_training(
            gru(), [(7, gru().state_dict())], inputs(), lambda lin: lin.missing
        ),
        "at step 7",
        "'missing'",
    ),
    Use(
        "an empty folder of checkpoints",
        lambda: list(kpops.training.checkpoints(tempfile.mkdtemp())),
        "step_*.pt",
        "pass the folder",
    ),
    Use("an unknown optimizer", lambda: train(optimizer="adamm"), "'adamm'", "'adam'"),
    Use(
        "a learning rate below zero",
        lambda: train(learning_rate=-1),
        "learning_rate=-1",
        "pass a positive number",
    ),
    # dynamics, tasks, plots
    Use(
        "fixed points without starts",
        lambda: kpops.fixed_points(gru(), None),
        "starts is None",
        "pass an array",
    ),
    Use(
        "starts of a wrong size",
        lambda: kpops.fixed_points(gru(), torch.zeros(5, 3)),
        "(5, 3)",
        "of 4 units",
    ),
    Use(
        "more exponents than units",
        lambda: kpops.lyapunov_spectrum(lin(), 99),
        "k=99",
        "from 1 to 4",
    ),
    Use("an unknown task", lambda: kpops.tasks.make("memory"), "'memory'", "memory_pro"),
    Use("a task without trials", lambda: kpops.tasks.memory_pro(0), "n_trials=0", "1 or more"),
    Use(
        "a network without hidden units",
        lambda: kpops.models.LeakyCell(3, 0, alpha=0.1),
        "hidden_size=0",
        "1 or more",
    ),
    Use("a leak above one", lambda: kpops.models.LeakyCell(3, 4, alpha=2), "alpha=2", "(0, 1]"),
    Use(
        "a plot of something else",
        lambda: kpops.plot.spectrum(lin().states.to_dataset()),
        "['states']",
        "kpops.eigsh",
    ),
    Use(
        "a plot of an operator",
        lambda: kpops.plot.spectrum(lin().flow),
        "FlowOperator",
        "kpops.eigsh",
    ),
    Use(
        "a decomposition of days",
        lambda: kpops.eigvalsh(days()),
        "operations, about",
        "spectral_density",
    ),
]


def main() -> None:
    """Print the table."""
    lin()
    slowest = 0.0
    for use in USES:
        start = time.perf_counter()
        error = told(use)
        seconds = time.perf_counter() - start
        slowest = max(slowest, seconds)
        print(f"{use.title}  ({seconds:.2f} s)\n    {type(error).__name__}: {error}\n")
    print(f"{len(USES)} wrong uses, all refused; the slowest took {slowest:.2f} s")


if __name__ == "__main__":
    main()
