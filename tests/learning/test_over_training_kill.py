"""Measures over training that are killed by SIGKILL, at any line, go on where they were."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

import kpops
from kpops.studies.store import PointStore

PROCESSES = multiprocessing.get_context("forkserver")
LATE = [
    "numba",
    "sympy",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
]  # slow to import
PROCESSES.set_forkserver_preload(["pytest", "kpops", "zarr", *LATE])

OURS = Path(kpops.__file__).parent
TRACED = [str(OURS / "studies"), str(OURS / "learning"), "zarr/core/array.py", "storage/_local.py"]
NEVER = 10**9


def follow(folder, store=None):
    torch.manual_seed(0)
    model = nn.GRU(2, 3, batch_first=True)

    def measure(lin, previous):
        before = np.float64(0) if previous is None else previous.norm.values
        states = lin.states.assign_coords(rounded=float(lin.states.max()))
        norm = np.linalg.norm(states.values.astype(float)) + 0.5 * before
        return states.to_dataset(name="states").assign(norm=norm, number=int(100 * norm))

    return kpops.over_training(model, folder, torch.ones(2, 3, 2), measure, store=store)


def follow_until_killed(folder, store, at_line, counted):
    """Die at a line of kpops or Zarr; send how many there were."""
    tqdm.set_lock(threading.RLock())  # the default one would be left behind
    lines, lock = 0, threading.Lock()

    def trace_line(frame, event, argument):
        nonlocal lines
        if event == "line":
            with lock:
                lines += 1
                if lines == at_line:
                    os.kill(os.getpid(), signal.SIGKILL)
        return trace_line

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        return trace_line if any(part in file for part in TRACED) else None

    threading.settrace(trace)  # Zarr writes on a thread of its own
    sys.settrace(trace)
    follow(folder, store)
    sys.settrace(None)
    counted.send(lines)


def killed(folder, store, at_line):
    """Lines of a process that ended, None if it was killed."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=follow_until_killed, args=(folder, store, at_line, sender))
    process.start()
    sender.close()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return receiver.recv()


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for step in range(0, 60, 10):
            state = nn.GRU(2, 3, batch_first=True).state_dict()
            torch.save(state, tmp_path / f"step_{step}.pt")
        yield tmp_path


@pytest.mark.slow
def test_it_ends_as_an_uninterrupted_one(folder):
    n_kills, expected = 20, follow(folder)
    n_lines = killed(folder, folder / "whole.zarr", NEVER)
    n_again = killed(folder, folder / "whole.zarr", NEVER)  # nothing is left to measure
    xr.testing.assert_identical(follow(folder, folder / "whole.zarr"), expected)
    rng = np.random.default_rng(n_kills)
    table, number = [], 0
    while len(table) < n_kills:
        store = folder / f"parts{number}.zarr"
        number += 1
        while len(table) < n_kills:  # each gets about two checkpoints further
            line = int(rng.integers(1, n_again + (n_lines - n_again) // 3))
            before = dict(PointStore(store).statuses()) if store.exists() else {}
            lines = killed(folder, store, line)
            after = PointStore(store).statuses() if store.exists() else {}
            done = {place: s for place, s in before.items() if s["state"] == "done"}
            assert all(after[place] == status for place, status in done.items())
            if lines is not None:
                break
            table.append((line, len(done), sum(s["state"] == "done" for s in after.values())))
        xr.testing.assert_identical(follow(folder, store), expected)
    print("\nkilled at line, done before, done after")
    for row in table:
        print(*row, sep="\t")
    assert sum(after > before for _, before, after in table) >= n_kills // 4
