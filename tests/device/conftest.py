"""The simulated device is of processes that set KPOPS_SIMULATED_DEVICE."""

import os

# PyTorch cannot remove a device again.
INSIDE = "test_in_its_own_process.py"
collect_ignore_glob = [INSIDE] if os.environ.get("KPOPS_SIMULATED_DEVICE") else ["test_[!i]*.py"]
