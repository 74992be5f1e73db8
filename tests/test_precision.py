"""kpops computes at the highest precision and without cuDNN, and gives the user's settings back."""

import itertools
import linecache
import sys
import threading

import pytest
import torch
from torch import nn
from torch_settings import NONE, apply, get, initial_settings, reduced, shown, underneath

import kpops
from kpops import precision
from kpops.precision import Computing


@pytest.fixture(autouse=True)
def _settings():
    with initial_settings():
        yield


STATES = list(
    itertools.product(
        ("highest", "high", "medium"),
        ("none", "ieee", "tf32", "bf16"),
        ("none", "ieee", "tf32"),
        ("none", "ieee", "tf32", "bf16"),
        ("none", "ieee", "tf32"),
        ("none", "ieee", "tf32", "bf16"),
        ("none",),
        ("none", "bf16"),
    )
)


def test_whatever_is_set_is_given_back():
    for state, wanted in itertools.product(STATES, ("highest", "tf32")):
        apply(*state)
        before = shown()
        with Computing(wanted):
            with Computing(*{"highest", "tf32"} - {wanted}):
                other = shown()
            inside = shown()
        assert before == shown()
        assert state == underneath()
        highest, tf32 = (inside, other) if wanted == "highest" else (other, inside)
        assert (reduced(highest), reduced(tf32)) == (set(), {("cuda", "matmul")})
        assert inside["enabled"] is False


def test_settings_of_the_older_interface_alone():
    for older, tf32 in (("highest", False), ("high", True), ("medium", True)):
        torch.set_float32_matmul_precision(older)
        before = shown()
        with Computing():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert before == shown()


def test_torch_before_29_knows_the_older_interface_only(monkeypatch):
    monkeypatch.setattr(precision, "_NEWER", False)
    monkeypatch.setattr(precision, "_OUTER", [])
    monkeypatch.setattr(precision, "_INNER", [])
    ours = {"highest": {(): "highest"}, "tf32": {(): "high"}}
    monkeypatch.setattr(precision, "_OURS", ours)
    monkeypatch.setattr(precision, "_CALLS", {k: precision._calls(v) for k, v in ours.items()})
    for older, wanted in itertools.product(("highest", "high", "medium"), ours):
        torch.set_float32_matmul_precision(older)
        with Computing(wanted):
            assert torch.get_float32_matmul_precision() == ours[wanted][()]
        assert torch.get_float32_matmul_precision() == older


def test_cudnn_that_is_off_stays_off():
    torch.backends.cudnn.enabled = False
    with Computing():
        pass
    assert torch.backends.cudnn.enabled is False


class CtrlC:
    """Ctrl-C at the n-th line that is run in the file of the context."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != precision.__file__:
            return None
        # The exit of a lock is one call of C.
        if "self.lock" not in linecache.getline(precision.__file__, frame.f_lineno):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "state",
    [
        ("highest", *NONE),
        ("highest", "tf32", *NONE[1:]),
        ("medium", *NONE[:3], "tf32", "bf16", "none", "none"),
        ("high", "ieee", "tf32", "bf16", "none", "tf32", "none", "none"),
    ],
)
def test_ctrl_c_at_any_line_gives_back_what_was_set(state):
    for n in itertools.count(1):
        apply(*state)
        ctrl_c, before = CtrlC(n), sys.gettrace()
        sys.settrace(ctrl_c)
        try:
            with Computing():
                with Computing("tf32"):
                    pass
                with Computing():
                    pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert torch.backends.cudnn.enabled
        assert state == underneath()
        assert not precision._process.computing
        if ctrl_c.left > 0:
            return


def held(wanted):
    """A thread that computes until it is told to end."""
    begun, end = threading.Event(), threading.Event()

    def run():
        with Computing(wanted):
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(60)
    return lambda: (end.set(), thread.join(60))


def test_the_last_thread_to_end_gives_back():
    torch.set_float32_matmul_precision("high")
    before = shown()
    end_first, end_last = held("highest"), held("highest")
    end_first()
    assert torch.get_float32_matmul_precision() == "highest"
    end_last()
    assert before == shown()


def test_the_highest_precision_among_threads_is_that_of_all():
    before = shown()
    end_tf32 = held("tf32")
    assert get("cuda", "matmul") == "tf32" and precision.current() == "highest"
    end_highest = held("highest")
    with Computing("tf32"):
        assert get("cuda", "matmul") == "ieee" and precision.current() == "tf32"
    end_highest()
    assert get("cuda", "matmul") == "tf32"
    end_tf32()
    assert before == shown()


def test_what_the_user_sets_meanwhile_is_kept():
    torch.set_float32_matmul_precision("high")
    with Computing():
        torch.set_float32_matmul_precision("medium")  # as another thread may
    assert underneath() == ("medium", *NONE[:3], "tf32", "bf16", "none", "none")
    apply("high", "tf32", *NONE[1:3], *NONE[:4])
    with Computing():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with Computing():
            assert get("cuda", "matmul") == "ieee"
    assert underneath() == ("high", "tf32", "none", "none", "tf32", "none", "none", "none")


SEEN = set()


class Recording(nn.Module):
    """A cell that notes the settings under which it is called."""

    input_size, hidden_size = 2, 3

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2, 3)
        self.u = nn.Linear(3, 3)

    def forward(self, x, h):
        settings = shown()
        enabled = settings.pop("enabled")
        SEEN.add((settings["matmul"], settings["cublas"], enabled, *reduced(settings)))
        return torch.tanh(self.w(x) + self.u(h))


class Readout(Recording):
    def forward(self, h):
        return self.u(super().forward(h[:, :2], h))


def a_lin(**options):
    return kpops.linearize(cell(), inputs(), readout=readout(), **options)


def cell():
    torch.manual_seed(0)
    return Recording()


def readout():
    torch.manual_seed(1)
    return Readout()


def inputs():
    return torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))


def error(lin):
    return 0.1 * torch.ones_like(lin.trajectory.states)


POINTS = torch.zeros(2, 3)
ENTRIES = {
    "linearize": lambda: a_lin(),
    "outputs": lambda: a_lin().outputs,
    "jacobian": lambda: a_lin(engine="jacobian").flow.to_dense(),
    "autodiff": lambda: a_lin(engine="autodiff").flow.to_dense(),
    "P_inv": lambda: a_lin().P_inv.to_dense(),
    "output_ntk": lambda: a_lin().output_ntk.to_dense(),
    "memory_estimate": lambda: a_lin().memory_estimate(),
    "gradient_flow": lambda: kpops.gradient_flow(a_lin(), targets=torch.zeros(4, 6, 3)),
    "lyapunov_spectrum": lambda: kpops.lyapunov_spectrum(cell(), inputs=inputs(), rng=0),
    "of a linearization": lambda: kpops.lyapunov_spectrum(a_lin(engine="autodiff"), rng=0),
    "covariant": lambda: kpops.covariant_lyapunov_vectors(cell(), inputs=inputs(), rng=0),
    "fixed_points": lambda: kpops.fixed_points(cell(), POINTS, rng=0),
    "linearize_at": lambda: kpops.linearize_at(cell(), POINTS, 3).flow.to_dense(),
    "stationary_response": lambda: kpops.stationary_response(
        cell(), kpops.fixed_points(cell(), POINTS, rng=0)
    ).to_dense(),
    "continuation": lambda: kpops.continuation(
        cell(),
        kpops.fixed_points(cell(), POINTS, rng=0).isel(point=[0]),
        lambda mu: {"input": mu * torch.ones(2)},
        (0, 0.1),
    ),
    "critical_channel": lambda: kpops.critical_channel(
        kpops.linearize_at(cell(), kpops.fixed_points(cell(), POINTS, rng=0))
    ).to_dense(),
    "collapse": lambda: kpops.collapse(a_lin()),
    "rank_bounds": lambda: kpops.rank_bounds(a_lin()),
    "check_linearization": lambda: kpops.testing.check_linearization(a_lin()),
}


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_cell_sees_the_highest_precision_and_no_cudnn(entry):
    for user in (
        ("medium", *NONE[:3], "tf32", "bf16", "none", "none"),
        ("highest", "tf32", *NONE[1:]),
    ):
        apply(*user)
        before = shown()
        SEEN.clear()
        ENTRIES[entry]()
        assert [*SEEN] == [("highest", False, False)]
        assert before == shown()
        assert user == underneath()


def test_an_exception_in_the_cell_gives_back_what_was_set():
    class Failing(Recording):
        def forward(self, x, h):
            raise stop

    for stop in (RuntimeError("mine"), KeyboardInterrupt()):  # noqa: B007
        torch.set_float32_matmul_precision("medium")
        before = shown()
        with pytest.raises((ValueError, KeyboardInterrupt)):
            kpops.linearize(Failing(), inputs())
        assert before == shown()


def test_training_is_the_users(tmp_path):
    class Noting(nn.Linear):
        def forward(self, h):
            seen.append(shown())
            return super().forward(h)

    task, seen = kpops.tasks.memory_pro(8, rng=0, steps=(2, 2, 2)), []
    sizes = task.inputs.shape[-1], task.targets.shape[-1]
    network = kpops.Network(nn.GRU(sizes[0], 4, batch_first=True), Noting(4, sizes[1]))
    torch.set_float32_matmul_precision("high")
    kpops.training.train(network, task, folder=tmp_path, max_steps=2, batch_size=8, rng=0)
    assert seen and all(settings == shown() for settings in seen)
