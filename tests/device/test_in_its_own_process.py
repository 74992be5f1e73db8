"""The tests of this folder, in a process whose PyTorch has the simulated device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulated


@pytest.mark.skipif(not simulated.is_available(), reason="this PyTorch takes no simulated device")
def test_on_the_simulated_device():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).parent],
        env={**os.environ, "KPOPS_SIMULATED_DEVICE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
