"""Models over whole sequences are taken apart, or refused with the call that linearises them."""

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import kpops
from kpops.models import LeakyCell, LearnedStart, ModuleRecurrence, Network, as_recurrence
from kpops.models.structure import is_registered

TRIALS, STEPS, INPUTS, HIDDEN, OUTPUTS = 5, 7, 3, 4, 2


def example(n_features=INPUTS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TRIALS, STEPS, n_features, generator=generator, dtype=torch.float64)


class Net(nn.Module):
    """The usual network."""

    kind, batch_first, layers = nn.GRU, True, 1

    def __init__(self):
        super().__init__()
        self.gru = self.kind(INPUTS, HIDDEN, self.layers, batch_first=self.batch_first, dropout=0)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x):
        return self.fc(self.gru(x)[0])


class OfLSTM(Net):
    kind, layers = nn.LSTM, 2

    def forward(self, x, h0=None):
        states, last = self.gru(x, h0)
        return self.fc(states), last


class TimeMajor(Net):
    batch_first = False


class Permuting(Net):
    batch_first = False

    def forward(self, x):
        states = self.gru(x.permute(1, 0, 2))[0].permute(1, 0, 2)
        return {"states": states, "logits": self.fc(states).permute(0, 2, 1)}


class LastStep(Net):
    def forward(self, x):
        return self.fc(self.gru(x)[0][:, -1])


class LastState(Net):
    def forward(self, x):
        return self.fc(self.gru(x)[1][-1])


@dataclass
class Result:
    states: Tensor
    outputs: Tensor


class OfRows(Net):
    """Reshapes states to rows and back, and returns a dataclass."""

    def forward(self, x):
        states = self.gru(x)[0]
        return Result(states, self.fc(states.reshape(-1, HIDDEN)).view(*x.shape[:2], OUTPUTS))


class StateNeeded(Net):
    """As in tutorials: the state is an argument that must be given, and is returned."""

    def __init__(self):
        super().__init__()
        self.hidden_size = HIDDEN

    def forward(self, x, hidden):
        states, hidden = self.gru(x, hidden)
        return self.fc(states), hidden


class Deep(Net):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(HIDDEN), nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(HIDDEN, 6), nn.ReLU())

    def forward(self, x):
        return nn.functional.linear(
            self.head(self.drop(self.norm(self.gru(x)[0]))), torch.eye(6).to(x)
        )


class Looped(nn.Module):
    """Steps through time with a cell, and reads out at every step."""

    cell_class = nn.LSTMCell

    def __init__(self):
        super().__init__()
        self.cell = self.cell_class(INPUTS, HIDDEN)
        self.fc = nn.Linear(HIDDEN, OUTPUTS)

    def between(self, h):
        return h

    def forward(self, x):
        state, outputs = None, []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            outputs.append(self.fc(state[0]))
            state = self.between(state)
        return torch.stack(outputs, 1)


class LoopedTimeFirst(Looped):
    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class LoopedLayer(Net):
    """Feeds a layer one step after the other."""

    def forward(self, x):
        h, states = None, []
        for t in range(x.shape[1]):
            out, h = self.gru(x[:, t : t + 1], h)
            states.append(out)
        return self.fc(torch.cat(states, 1))


class Cell(nn.Module):
    hidden_size = HIDDEN

    def __init__(self):
        super().__init__()
        self.W, self.U = nn.Linear(HIDDEN, HIDDEN), nn.Linear(INPUTS, HIDDEN, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.W(h) + self.U(x))


class OfOwnCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = Cell(), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x):
        h, states = x.new_zeros(len(x), HIDDEN), []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            states.append(h)
        return self.out(torch.stack(states, 1))


class OfCurrents(OfOwnCell):
    """A readout of a leaky cell's rates, which are not its state."""

    def __init__(self):
        super().__init__()
        self.cell = LeakyCell(INPUTS, HIDDEN, alpha=0.3, form="current")
        self.rates = nn.Tanh()

    def forward(self, x):
        h, outputs = x.new_zeros(len(x), HIDDEN), []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            outputs.append(self.out(self.rates(h)))
        return torch.stack(outputs, 1)


class Nested(nn.Module):
    """As a LightningModule holds a network, beside a loss."""

    def __init__(self):
        super().__init__()
        self.network, self.loss = Net(), nn.MSELoss()

    def forward(self, x):
        return self.network(x)


class WithoutForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.loss = Net(), nn.MSELoss()


class LightningModule(nn.Module):
    """Its forward is none, but calls that of nn.Module, as Lightning's own class does."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Trained(WithoutForward, LightningModule):
    pass


class First(nn.Module):
    def forward(self, result):
        return result[0]


class Last(nn.Module):
    def forward(self, states):
        return states[:, -1]


def in_sequence(*after):
    return nn.Sequential(nn.GRU(INPUTS, HIDDEN, batch_first=True), First(), *after)


# Each with the path of the recurrent part, what the repr says of the readout, and the outputs
# (trial, time, output) that the module's own forward gives; None at the last step only.
UNDERSTOOD = {
    "gru and fc": (Net, "gru", "fc as readout", lambda y: y),
    "two layers of LSTM, state returned": (OfLSTM, "gru", "fc as readout", lambda y: y[0]),
    "time first": (TimeMajor, "gru", "fc as readout", lambda y: y.transpose(0, 1)),
    "permuting": (Permuting, "gru", "fc as readout", lambda y: y["logits"].transpose(1, 2)),
    "last step": (LastStep, "gru", "fc as readout, equal to its forward at the last step", None),
    "last state": (LastState, "gru", "fc as readout, equal to its forward at the last step", None),
    "rows": (OfRows, "gru", "fc as readout", lambda y: y.outputs),
    "state needed": (StateNeeded, "gru", "fc as readout", lambda y: y[0]),
    "norm, dropout, head": (Deep, "gru", "norm and head as readout", lambda y: y),
    "loop over a cell": (Looped, "cell", "fc as readout", lambda y: y),
    "loop, time first": (LoopedTimeFirst, "cell", "fc as readout", lambda y: y.transpose(0, 1)),
    "loop over a layer": (LoopedLayer, "gru", "fc as readout", lambda y: y),
    "loop over a cell of one's own": (OfOwnCell, "cell", "out as readout", lambda y: y),
    "rates of currents": (OfCurrents, "cell", "rates and out as readout", lambda y: y),
    "nested": (Nested, "network.gru", "network.fc as readout", lambda y: y),
    "sequential": (
        lambda: in_sequence(nn.Linear(HIDDEN, 6), nn.Tanh(), nn.Linear(6, 2)),
        "0",
        "2, 3 and 4 as readout",
        lambda y: y,
    ),
    "sequential, last step": (
        lambda: in_sequence(Last(), nn.Linear(HIDDEN, 2)),
        "0",
        "3 as readout, equal to its forward at the last step",
        None,
    ),
    "no readout": (lambda: in_sequence(), "0", "no readout", lambda y: y),
    "learned start": (
        lambda: nn.Sequential(
            LearnedStart(nn.GRU(INPUTS, HIDDEN, batch_first=True), torch.ones(HIDDEN)),
            First(),
            nn.Linear(HIDDEN, OUTPUTS),
        ),
        "0",
        "2 as readout",
        lambda y: y,
    ),
}


def make(build):
    torch.manual_seed(0)
    return build().double().eval()


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_outputs_and_gradients_are_those_of_the_modules_own_forward(case):
    build, path, readout, outputs = UNDERSTOOD[case]
    model = make(build)
    x = example().transpose(0, 1) if "time first" in case else example()
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    lin = kpops.linearize(model, x)
    assert lin.remark.startswith(f"model {type(model).__name__}: {path} as recurrence, {readout}")
    assert f"\n {lin.remark}\n" in repr(lin)
    assert lin.space.shape[:2] == (TRIALS, STEPS)

    needed = (torch.zeros(1, TRIALS, HIDDEN).double(),) if case == "state needed" else ()
    y = model(x, *needed)
    mine = lin.outputs if lin.readout is not None else lin.states
    theirs = y[:, None] if outputs is None else outputs(y)
    mine = (
        torch.from_numpy(mine.values)[:, -1:] if outputs is None else torch.from_numpy(mine.values)
    )
    torch.testing.assert_close(mine, theirs.detach(), rtol=1e-10, atol=1e-12)

    # J* P* C* weights is the gradient by the module's own backward pass.
    weights = torch.zeros(TRIALS, STEPS, theirs.shape[-1], dtype=torch.float64)
    weights[:, -theirs.shape[1] :] = example(theirs.shape[-1], seed=1)[:, : theirs.shape[1]]
    ours = weights if lin.readout is None else lin.C.H @ weights
    ours = lin.sensitivity.H @ ours
    part = model.get_submodule(path)
    used = weights[:, -theirs.shape[1] :]
    wanted = torch.autograd.grad(theirs, list(part.parameters()), used)
    wanted = torch.cat([g.reshape(-1) for g in wanted])
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)

    assert [p.requires_grad for p in model.parameters()] == flags
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("model", [Net, TimeMajor, Permuting])
def test_labelled_inputs_are_read_by_their_names(model):
    model, x = make(model), example()
    labelled = xr.DataArray(x.numpy(), dims=("trial", "time", "input")).transpose("input", ...)
    states = kpops.linearize(model, labelled).states.values
    part = copy.deepcopy(model.gru)
    part.batch_first = True
    np.testing.assert_allclose(states, part(x)[0].detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", [Net, TimeMajor])
def test_packed_sequences_and_masks_work_as_for_the_recurrent_part(model):
    model = make(model)
    lengths = [3, 7, 1, 5, 2]
    pieces = [x[:n] for x, n in zip(example(), lengths, strict=True)]
    packed = nn.utils.rnn.pack_sequence(pieces, enforce_sorted=False)
    lin = kpops.linearize(model, packed)
    part = kpops.linearize(model.gru, packed, readout=model.fc)
    xr.testing.assert_equal(lin.outputs, part.outputs)
    assert lin.trajectory.n_valid == sum(lengths)
    padded = nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=np.nan)
    mask = torch.arange(STEPS) < torch.tensor(lengths)[:, None]
    if not model.batch_first:  # all arrays of a call come in one order
        padded, mask = padded.transpose(0, 1), mask.T
    xr.testing.assert_equal(kpops.linearize(model, padded, mask=mask).outputs, part.outputs)


def compiled(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of its older compiler
        return torch.compile(model)


def wrapped(how):
    model = make(Net)
    if how == "DistributedDataParallel":
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        return nn.parallel.DistributedDataParallel(model)
    return {
        "DataParallel": nn.DataParallel,
        "compile": compiled,
        "both": lambda m: compiled(nn.DataParallel(m)),
        "average": torch.optim.swa_utils.AveragedModel,
    }[how](model)


@pytest.mark.parametrize(
    "how", ["DataParallel", "compile", "both", "average", "DistributedDataParallel"]
)
def test_wrappers_are_taken_off(how):
    plain = kpops.linearize(make(Net), example())
    try:
        lin = kpops.linearize(wrapped(how), example())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert (
        lin.remark
        == plain.remark
        == "model Net: gru as recurrence, fc as readout, " + ("equal to its forward")
    )
    q = example(HIDDEN, seed=2)
    assert torch.equal(lin.flow @ q, plain.flow @ q)


def test_a_compiled_part_and_a_module_without_forward_are_understood():
    expected = kpops.linearize(make(Net), example()).outputs
    model = make(Net)
    model.gru = compiled(model.gru)
    xr.testing.assert_equal(kpops.linearize(model, example()).outputs, expected)
    for build in (WithoutForward, Trained):
        lin = kpops.linearize(make(build), example(), parameters=["network.gru.bias_hh_l0"])
        xr.testing.assert_equal(lin.outputs, expected)


def test_parameters_have_the_names_of_the_part_and_may_be_given_with_its_path():
    model = make(Nested)
    names = ["network.gru.weight_hh_l0", "bias_hh_l0"]
    lin = kpops.linearize(model, example(), parameters=names)
    assert list(lin.parameters) == ["weight_hh_l0", "bias_hh_l0"]
    lin = kpops.linearize(nn.DataParallel(model), example(), parameters=f"module.{names[0]}")
    assert list(lin.parameters) == ["weight_hh_l0"]
    assert list(lin.readout_parameters) == ["weight", "bias"]
    lin = kpops.linearize(make(lambda: in_sequence(nn.Linear(HIDDEN, 2), nn.Tanh())), example())
    assert list(lin.readout_parameters) == ["2.weight", "2.bias"]
    with pytest.raises(ValueError, match=r"no parameter \['network.fc.weight'\] in the model"):
        kpops.linearize(model, example(), parameters=["network.fc.weight"])


def test_a_readout_that_is_given_takes_the_place_of_the_models():
    model = make(TwoHeads)
    lin = kpops.linearize(model, example(), readout=model.value)
    assert lin.remark == "model TwoHeads: gru as recurrence"
    np.testing.assert_allclose(lin.outputs, model(example())[1].detach(), rtol=1e-10)


@pytest.mark.parametrize("build", [Net, Network, Looped])
def test_other_functions_take_the_same_models(build):
    if build is Network:
        model = make(lambda: Network(nn.GRU(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)))
        part, size = model.recurrent, HIDDEN
    else:
        model = make(build)
        part, size = (
            getattr(model, "gru", getattr(model, "cell", None)),
            4 * (1 + (build is Looped)),
        )
    start = torch.zeros(2, size, dtype=torch.float64)
    found = kpops.fixed_points(nn.DataParallel(model), start)
    xr.testing.assert_identical(found, kpops.fixed_points(part, start))
    x = xr.DataArray(example().numpy(), dims=("trial", "time", "input"))
    exponents = kpops.lyapunov_spectrum(model, 2, inputs=x, rng=0)
    xr.testing.assert_identical(exponents, kpops.lyapunov_spectrum(part, 2, inputs=x, rng=0))
    at, of_part = kpops.linearize_at(model, start, 3), kpops.linearize_at(part, start, 3)
    q = torch.ones(at.space.shape, dtype=torch.float64)
    assert torch.equal(at.flow @ q, of_part.flow @ q)
    assert at.readout is not None
    followed = kpops.over_training(
        model, [(0, model.state_dict())], x, lambda lin: {"y": float(lin.outputs.sum())}
    )
    expected = kpops.linearize(model, x).outputs.sum()
    np.testing.assert_allclose(followed.y, [expected], rtol=1e-12)


def test_a_cell_that_holds_a_layer_or_has_an_optional_state_stays_a_cell():
    class Step(nn.Module):
        hidden_size = HIDDEN

        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(INPUTS, HIDDEN)

        def forward(self, x, h=None):
            return self.gru(x[None], h[None])[1][0]

    lin = kpops.linearize(make(Step), example())
    assert lin.remark == ""
    expected = make(Step).gru(example().transpose(0, 1))[0].transpose(0, 1)
    np.testing.assert_allclose(lin.states, expected.detach(), rtol=1e-10, atol=1e-14)


# Refusals.


class TwoHeads(Net):
    def __init__(self):
        super().__init__()
        self.policy, self.value = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 1)

    def forward(self, x):
        states = self.gru(x)[0]
        return self.policy(states), self.value(states)


class Encoded(Net):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, INPUTS)

    def forward(self, x):
        return super().forward(self.encoder(x))


class EncodedByFunction(Net):
    def forward(self, x):
        return super().forward(torch.tanh(x))


class Embedded(Net):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, INPUTS)

    def forward(self, x):
        return super().forward(self.embed(x))


class Detached(Net):
    def forward(self, x):
        return self.fc(self.gru(x)[0].detach())


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Activated(Net):
    def forward(self, x):
        return self.fc(torch.tanh(self.gru(x)[0]))


class Rectified(Net):
    """The states of a relu network are not changed by a relu, but its derivative is."""

    def __init__(self):
        super().__init__()
        self.gru = nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", batch_first=True)

    def forward(self, x):
        return self.fc(F.relu(self.gru(x)[0]))


class LogSoftmax(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), -1)


class Skipping(Net):
    def forward(self, x):
        return super().forward(x) + x[..., :OUTPUTS]


class StartLearned(Net):
    """The start is zero until it has learned."""

    start = 0.0

    def __init__(self):
        super().__init__()
        self.h0 = nn.Parameter(torch.full((1, 1, HIDDEN), self.start))

    def forward(self, x):
        return self.fc(self.gru(x, self.h0.expand(1, len(x), HIDDEN).contiguous())[0])


class StartElsewhere(StartLearned):
    start = 0.5


class Truncated(Looped):
    """Truncated backpropagation through time."""

    def between(self, state):
        return tuple(part.detach() for part in state)


class Decaying(Looped):
    def between(self, state):
        return 0.9 * state[0], state[1]


class Stacked(Net):
    def __init__(self):
        super().__init__()
        self.second = nn.GRU(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, x):
        return self.fc(self.second(self.gru(x)[0])[0])


class WithLengths(Net):
    def forward(self, x, lengths, sort):
        return super().forward(x)


class Packing(Net):
    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [STEPS] * len(x), batch_first=True)
        return self.fc(nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0])


class OverTime(Net):
    """A readout that counts dims."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Softmax(dim=1)


class Feedforward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x):
        return self.fc(x)


CALL = r"kpops.linearize\(model.gru, inputs, readout=model.fc\)"
REFUSED = {
    "two heads": (
        TwoHeads,
        INPUTS,
        "reads the states of gru separately by policy and value: choose one by readout=.*"
        r"kpops.linearize\(model.gru, inputs, readout=model.value\)",
    ),
    "encoder": (
        Encoded,
        6,
        "gives gru what encoder makes of the inputs: pass that as inputs; what encoder learns.*"
        r"kpops.linearize\(model.gru, model.encoder\(inputs\), readout=model.fc\)",
    ),
    "function of inputs": (
        EncodedByFunction,
        INPUTS,
        r"changes the inputs before gru.*linearize\(model.gru, what_gru_reads, readout=model.fc",
    ),
    "detached": (
        Detached,
        INPUTS,
        f"other derivatives by gru.weight_ih_l0 than its parts have: it detaches.*{CALL}",
    ),
    "no_grad": (WithoutGradients, INPUTS, f"runs gru without gradients.*{CALL}"),
    "function of states": (Activated, INPUTS, f"returns something else than what gru.*{CALL}"),
    "relu of relu": (Rectified, INPUTS, f"other derivatives by what gru returns.*{CALL}"),
    "function of outputs": (LogSoftmax, INPUTS, f"something else than what fc makes.*{CALL}"),
    "skip": (Skipping, INPUTS, f"something else than what fc makes.*{CALL}"),
    "start that learns": (StartLearned, INPUTS, "with h0 too, which is in neither.*LearnedStart"),
    "start elsewhere": (StartElsewhere, INPUTS, "starts gru from a state of its own.*pass that as"),
    "truncated": (Truncated, INPUTS, "changes the state of cell between its steps.*model.cell"),
    "decaying": (Decaying, INPUTS, "changes the state of cell between its steps"),
    "stacked": (
        Stacked,
        INPUTS,
        r"several recurrent parts, gru and second.*linearize\(model.second, what_second_reads",
    ),
    "packing": (Packing, INPUTS, f"passes to gru a PackedSequence that it makes itself.*{CALL}"),
    "softmax over time": (OverTime, INPUTS, "returns something else than what fc makes"),
    "wrong features": (Net, 4, rf"cannot be run on inputs of shape \(5, 7, 4\).*{CALL}"),
    "tuple into a linear layer": (
        lambda: nn.Sequential(nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)),
        INPUTS,
        r"must be Tensor, not tuple.*kpops.linearize\(model\[0\], inputs, readout=model\[1\]\)",
    ),
    "bidirectional": (
        lambda: nn.Sequential(nn.GRU(3, 4, bidirectional=True), First(), nn.Linear(8, 2)),
        INPUTS,
        "GRU has bidirectional=True",
    ),
}


def test_a_network_without_a_recurrent_part_is_linearised_at_its_parts():
    lin = kpops.linearize(make(Feedforward), example(INPUTS))
    assert lin.engine.name == "sites"
    with pytest.raises(ValueError, match="takes no state, and calls no part that is recurrent"):
        kpops.linearize(make(Feedforward), example(INPUTS), h0=torch.zeros(2))


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_with_the_call_to_write(case):
    build, n_features, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        kpops.linearize(make(build), example(n_features))


def test_an_embedding_is_refused_with_the_call_and_that_call_works():
    model, words = make(Embedded), torch.randint(10, (TRIALS, STEPS))
    with pytest.raises(ValueError, match=r"model.gru, model.embed\(inputs\), readout=model.fc"):
        kpops.linearize(model, words)
    lin = kpops.linearize(model.gru, model.embed(words), readout=model.fc)
    np.testing.assert_allclose(lin.outputs, model(words).detach(), rtol=1e-10)


def test_a_layer_that_forward_does_not_call_is_no_part():
    model = make(Net)
    model.spare = nn.LSTM(INPUTS, HIDDEN).double()
    expected = kpops.linearize(make(Net), example()).outputs
    xr.testing.assert_equal(kpops.linearize(model, example()).outputs, expected)


def test_a_start_that_learns_is_refused_with_a_given_readout_too():
    model = make(StartLearned)
    with pytest.raises(ValueError, match="h0 too"):
        kpops.linearize(model, example(), readout=model.fc)


def test_dropout_in_training_mode_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"drop is a Dropout.*call model.eval\(\) first"):
        kpops.linearize(make(Deep).train(), example())


def test_scripted_modules_are_refused_with_the_remedy():
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(make(Net))
    model = make(Net)
    model.fc = scripted.fc
    with pytest.raises(
        ValueError, match=r"Net.forward runs fc, which is scripted: replace it by the module"
    ):
        kpops.linearize(model, example())
    with pytest.raises(TypeError, match=r"scripted module.*pass the module that it was made from"):
        kpops.linearize(scripted, example())


def test_a_model_over_sequences_is_no_cell_for_others():
    with pytest.raises(ValueError, match=r"Net.forward takes no state, so it is no step"):
        LearnedStart(make(Net))


class Around(nn.Module):
    """A cell around another one, which does not say how large its state is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x, h):
        return 0.5 * (h + self.inner(x, h))


def test_a_cell_around_a_cell_is_a_cell_wherever_its_state_is_given():
    torch.manual_seed(0)
    model, h0 = Around(), torch.zeros(2, HIDDEN)
    x = torch.randn(2, STEPS, INPUTS)
    assert kpops.linearize(model, x, h0=h0).states.shape == (2, STEPS, HIDDEN)
    assert kpops.lyapunov_spectrum(model, inputs=x, h0=h0).sizes["mode"] == HIDDEN
    points = kpops.fixed_points(model, h0, input=torch.zeros(INPUTS))
    assert kpops.linearize_at(model, points, n_steps=2).space.sizes["unit"] == HIDDEN


def test_a_class_registered_as_a_plain_step_is_registered():
    class Own(nn.Module):
        def forward(self, x, h):
            return torch.tanh(x + h)

    assert not is_registered(Own())
    as_recurrence.register(Own, ModuleRecurrence)
    assert is_registered(Own())
