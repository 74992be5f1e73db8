"""Loops over time that are recorded: when, for how long, and what becomes of failures."""

import contextlib
import pickle

import pytest
import torch
from cases import BY_NAME
from dense import relative
from torch import nn
from torch.nn.utils import parametrizations

import kpops
from kpops import precision
from kpops.engines import cuda_graph, exclusive
from kpops.engines.cuda_graph import Recording, _RefuseWaits, recorded_bytes

ENGINES = ["gated", "jacobian", "autodiff"]


class Tape:
    """Stands in for CUDA graphs: a recording reads and writes fixed memory, and is counted."""

    def __init__(self):
        self.made, self.replayed = [], 0

    def record(self, action, argument):
        self.made.append(tuple(argument.shape))
        with _RefuseWaits():
            action(argument)
        result = action(argument).clone()

        def replay():
            self.replayed += 1
            result.copy_(action(argument))

        return Recording(argument, result, replay)


@pytest.fixture
def tape(monkeypatch):
    """Recordings on the CPU."""
    tape = Tape()
    monkeypatch.setattr(cuda_graph, "RECORD", {"cpu": tape.record})
    return tape


def linearize(name, engine, **options):
    case = BY_NAME[name]
    model, (inputs, h0) = case.model(), case.data()
    inputs = case.as_module_takes(model, inputs)
    return kpops.linearize(model, inputs, h0=h0, engine=engine, **options)


def random_block(op, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, *op.domain.shape, generator=generator, dtype=op.torch_dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", [None, torch.arange(5)[:, None] < torch.tensor([5, 4, 2])])
def test_recorded_loops_equal_plain_ones(monkeypatch, tape, engine, mask):
    lin = linearize("gru_two_layers", engine, mask=mask)
    blocks = [random_block(lin.P, k, seed=k) for k in (1, 3, 3, 3, 2, 2, 1)]
    with monkeypatch.context() as context:
        context.setattr(cuda_graph, "RECORD", {})
        plain = [[op.apply(q) for op in (lin.P, lin.P.H, lin.flow)] for q in blocks]
    assert not tape.made
    for q, (forward, backward, flow) in zip(blocks, plain, strict=True):
        kept = q.clone()
        first, second = lin.P.apply(q), lin.P.apply(2 * q)
        assert relative(first, forward) < 1e-14  # results share no memory
        assert relative(second, 2 * forward) < 1e-14
        assert relative(lin.P.H.apply(q), backward) < 1e-14
        assert relative(lin.flow.apply(q), flow) < 1e-14
        assert torch.equal(q, kept)
    assert tape.replayed > 0
    assert "not recorded" not in repr(lin)


def test_a_size_is_recorded_when_it_comes_again(tape):
    lin = linearize("gru", "gated")
    for k in (1, 2, 3):
        lin.P.apply(random_block(lin.P, k))
    assert not tape.made
    for _ in range(3):
        lin.P.apply(random_block(lin.P, 2))
    assert tape.made == [(2, *lin.space.shape)]
    assert tape.replayed == 3


def test_the_recordings_used_last_are_kept_within_a_bound(tape, monkeypatch):
    lin = linearize("gru", "gated")
    vector = lin.trajectory.states
    monkeypatch.setattr(cuda_graph, "_VECTORS", 8)
    for k in (1, 3, 4, 1, 3, 4, 1, 5, 5):
        lin.P.apply(random_block(lin.P, k))
    kept = [r.argument for r in lin.engine._recorder._recordings.values()]
    assert [len(q) for q in kept] == [1, 5]  # 3 went first, then 4
    assert 2 * sum(q.nbytes for q in kept) <= recorded_bytes(vector) == 16 * vector.nbytes
    before = len(tape.made)
    for _ in range(3):
        lin.P.apply(random_block(lin.P, 9))
    assert len(tape.made) == before  # larger than the bound


def test_memory_estimates_count_recordings(tape):
    lin = linearize("gru", "gated")
    counted = lin.memory_estimate()["gated"]
    cuda_graph.RECORD.clear()
    assert counted - lin.memory_estimate()["gated"] == recorded_bytes(lin.trajectory.states) > 0


def test_another_precision_is_another_recording(tape):
    lin = linearize("gru", "gated")
    q = random_block(lin.P, 2)
    recorder = lin.engine._recorder
    for value in ("highest", "tf32"):
        with precision.Computing(value):
            for _ in range(3):
                recorder("P", lambda q: lin.engine._recur(q, backwards=False), q)
    assert len(tape.made) == len(recorder._recordings) == 2


def test_nothing_is_recorded_while_the_user_records(tape, monkeypatch):
    lin = linearize("gru", "gated")
    monkeypatch.setattr(cuda_graph, "is_recording", lambda: True)
    for _ in range(3):
        lin.P.apply(random_block(lin.P, 2))
    assert not tape.made


def test_a_loop_that_cannot_be_recorded_runs_as_it_is(monkeypatch):
    def refuse(action, argument):
        raise RuntimeError("operation not permitted when stream is capturing\nat some line")

    lin = linearize("gru", "gated")
    q = random_block(lin.P, 2)
    expected = lin.P.apply(q)
    monkeypatch.setattr(cuda_graph, "RECORD", {"cpu": refuse})
    for _ in range(3):
        assert torch.equal(lin.P.apply(q), expected)
    note = "loops over time are not recorded: operation not permitted when stream is capturing"
    assert note in repr(lin)
    assert "at some line" not in repr(lin)


@pytest.mark.parametrize("times", [1, 2])
def test_a_recording_without_memory_is_tried_once_more(monkeypatch, times):
    made = []

    def record(action, argument):
        made.append(len(made))
        if len(made) <= times:
            raise torch.OutOfMemoryError("no memory beside what PyTorch has in reserve")
        result = action(argument).clone()
        return Recording(argument, result, lambda: result.copy_(action(argument)))

    lin = linearize("gru", "gated")
    q = random_block(lin.P, 2)
    expected = lin.P.apply(q)
    monkeypatch.setattr(cuda_graph, "RECORD", {"cpu": record})
    for _ in range(4):
        assert torch.equal(lin.P.apply(q), expected)
    assert len(made) == 2
    assert ("not recorded: no memory" in repr(lin)) == (times == 2)


def test_recordings_count_all_that_they_hold():
    q, result = torch.zeros(4), torch.zeros(2)
    assert Recording(q, result, lambda: None).nbytes == 24
    assert Recording(q, result, lambda: None, 100).nbytes == 116


def test_recordings_are_not_pickled(tape):
    lin = linearize("gru", "gated")
    q = random_block(lin.P, 2)
    for _ in range(2):
        image = lin.P.apply(q)
    made = len(tape.made)
    again = pickle.loads(pickle.dumps(lin.P))
    assert torch.equal(again.apply(q), image)
    assert len(tape.made) == made  # its first loop makes what is kept


def test_recordings_survive_inference_mode(tape):
    lin = linearize("gru", "gated")
    q = random_block(lin.P, 2)
    with torch.inference_mode():
        for _ in range(2):
            inside = lin.P.apply(q.clone())
    assert relative(inside, lin.P.apply(q)) < 1e-15


def test_loops_over_recomputed_gates_are_not_recorded(tape):
    lin = linearize("gru", "gated", gates="recomputed")
    for _ in range(3):
        lin.P.apply(random_block(lin.P, 2))
    assert not tape.made


class WaitsForTheDevice(nn.Module):
    """A cell whose step reads a number of the device."""

    input_size = hidden_size = 3

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(3, 3)

    def forward(self, x, h):
        return torch.tanh(self.W(h)) + x * torch.linalg.matrix_exp(self.W.weight)[0, 0]


def test_a_model_that_waits_is_not_recorded(tape):
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)
    lin = kpops.linearize(WaitsForTheDevice().double(), inputs, engine="autodiff")
    q = random_block(lin.P, 2)
    images = [lin.P.apply(q) for _ in range(3)]
    assert torch.equal(images[0], images[2])
    assert "linalg_matrix_exp waits for the device" in repr(lin)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: torch.equal(x, x),
        torch.linalg.matrix_exp,
        torch.linalg.eigh,
        torch.linalg.cholesky_ex,
        torch.linalg.qr,
        lambda x: x.to("meta"),  # to another device
    ],
)
def test_what_waits_for_the_device_is_refused(act):
    with pytest.raises(RuntimeError, match="waits for the device"), _RefuseWaits():
        act(torch.eye(3))


def test_what_does_not_wait_is_allowed():
    x = torch.eye(3)
    with _RefuseWaits():
        x[torch.tensor([2, 0])].mm(x).addcmul_(x[:2], x[1:]).masked_fill(x[:2] > 0, 1.0)
        torch.where(x > 0, x, -x).to(torch.float64)
        torch.nn.functional.normalize(x)
        torch.linalg.solve_triangular(x, x, upper=True)


# Weights.


@pytest.mark.parametrize("engine", ["gated", "gated_numba"])
def test_parametrised_weights_are_computed_once(engine):
    model = parametrizations.orthogonal(nn.RNN(2, 4, batch_first=True).double(), "weight_hh_l0")
    lin = kpops.linearize(model, torch.randn(3, 5, 2, dtype=torch.float64), engine=engine)
    q, computed = random_block(lin.P, 2), []
    lin.P.apply(q)
    weight = lin.recurrence.module.parametrizations["weight_hh_l0"][0]
    weight.register_forward_hook(lambda *_: computed.append(1))
    for product in (lin.P, lin.P.H, lin.P_inv):
        product.apply(q)
    assert not computed


def test_weights_are_not_pickled_twice():
    lin = linearize("gru", "gated")
    lin.P.apply(random_block(lin.P, 2))
    layer = pickle.loads(pickle.dumps(lin.engine)).layers[0]
    assert "recurrent_weight" not in vars(layer)
    assert torch.equal(layer.recurrent_weight, lin.engine.layers[0].recurrent_weight)


# Streams.


class Stream:
    """A stream that keeps a log."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.after))


class Event:
    after = None

    def record(self, stream):
        self.after = stream.name


def test_streams_wait_for_each_other(monkeypatch):
    log, device, event = [], torch.device("cuda", 0), Event()
    monkeypatch.setattr(exclusive, "_finished", lambda _: event)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for name in "ABA":
        stream = Stream(name, log)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda _, s=stream: s)
        with contextlib.suppress(ValueError), exclusive.exclusive_compute(device):
            log.append(name)
            raise ValueError("the next one waits for a failed one, too")
    waits = [("A", "waits for", None), "A", ("B", "waits for", "A"), "B", ("A", "waits for", "B")]
    assert log == [*waits, "A"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_refused_recording_leaves_the_device_as_it_was():
    x = torch.ones(3, device="cuda")
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="waits for the device"):
        cuda_graph.record(lambda q: q * q.sum().item(), x)
    assert torch.cuda.current_stream() == before
    assert torch.randn(3, device="cuda").isfinite().all()  # its generator is not in a recording
    recording = cuda_graph.record(lambda q: 2 * q, x)
    recording.replay()
    assert torch.equal(recording.result, 2 * x)


def test_a_side_stream_follows_and_is_followed_also_where_it_fails(monkeypatch):
    log = []

    class Waiting:
        __class__ = torch.cuda.Stream  # to whoever checks types

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append((self.name, other.name))

    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    current, side = Waiting("current"), Waiting("side")
    with contextlib.suppress(RuntimeError), cuda_graph._beside(current, side):
        log.append("launch")
        raise RuntimeError
    assert log == [("side", "current"), "launch", ("current", "side")]
