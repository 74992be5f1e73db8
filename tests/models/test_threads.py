"""Copies, pickles and searches while another thread computes with the same linearization.

And on how many threads a small network is linearised.
"""

import copy
import pickle
import threading
import warnings

import torch
from cell_contract import normal, randomised
from dense import relative
from torch import nn
from user_cells import HIDDEN, Cell, gru, inputs

import kpops


def test_copies_and_fixed_points_while_another_thread_computes():
    lin = kpops.linearize(
        randomised(Cell()),
        normal(2, 4, 2),
        readout=nn.Linear(HIDDEN, 2).double(),
        engine="autodiff",
    )
    q, y = normal(2, 4, HIDDEN), normal(2, 4, 2)
    expected = lin.flow @ q, lin.output_ntk @ y
    ended, wrong = threading.Event(), []

    def compute():
        while not ended.is_set():
            got = lin.flow @ q, lin.output_ntk @ y
            wrong.extend(
                relative(g, e) for g, e in zip(got, expected, strict=True) if relative(g, e) > 1e-13
            )

    calls = {
        "deepcopy": lambda: copy.deepcopy(lin).flow @ q,
        "engine": lambda: copy.deepcopy(lin.engine),
        "operator": lambda: copy.deepcopy(lin.output_ntk) @ y,
        "fixed points": lambda: kpops.fixed_points(lin, 2, rng=0, max_iterations=2),
        "exponents": lambda: kpops.lyapunov_spectrum(lin, 1, rng=0),
        "repr": lambda: repr(lin),
    }
    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kpops.ConvergenceWarning)
            results = {name: [call() for _ in range(25)] for name, call in calls.items()}
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(relative(r, expected[0]) < 1e-13 for r in results["deepcopy"])
    assert all(relative(r, expected[1]) < 1e-13 for r in results["operator"])
    assert len(set(results["repr"])) == 1


def test_pickles_while_another_thread_computes():
    lin = kpops.linearize(gru(), inputs(), readout=nn.Linear(HIDDEN, 2).double(), engine="autodiff")
    q = normal(3, 5, HIDDEN)
    expected = lin.flow @ q
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            lin.output_ntk @ torch.ones(3, 5, 2).double()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        pickles = [pickle.dumps((lin, lin.flow, lin.engine)) for _ in range(100)]
    finally:
        ended.set()
        thread.join()
    for data in pickles[::20]:
        assert relative(pickle.loads(data)[1] @ q, expected) < 1e-14


seen = set()


class Seeing(nn.Module):
    """A cell that notes how many threads its steps may use."""

    hidden_size = 4

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(6, 4).double()

    def forward(self, x, h):
        seen.add((torch.get_num_threads(), len(h) > 30))
        return torch.tanh(self.W(torch.cat([x, h], -1)))


def test_a_small_network_is_linearised_on_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kpops.linearize(Seeing(), normal(3, 11, 2), readout=nn.Linear(4, 1).double())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {(1, False), (1, True)}  # one step after another, and all at once
