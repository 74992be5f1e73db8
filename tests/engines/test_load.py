"""Fewer threads while other processes keep cores busy."""

import os
import subprocess
import sys
import time

import pytest
import torch

from kpops.engines import load


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("others", "expected"), [(0, 2), (1, 1), (9, 1)])
def test_torch_leaves_busy_cores_alone(monkeypatch, two_threads, others, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(load, "running_elsewhere", lambda: others)
    with load.considerate():
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_threads_are_restored_after_an_error(monkeypatch, two_threads):
    monkeypatch.setattr(load, "running_elsewhere", lambda: 99)
    with pytest.raises(KeyError), load.considerate():
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            seen = 0
            deadline = time.monotonic() + 10
            while not seen and time.monotonic() < deadline:
                seen = load.running_elsewhere()
        finally:
            process.kill()
    assert seen >= 1
