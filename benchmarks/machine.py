"""The machine of the measurements, and its best rates."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Grid
from benchmarks.timing import median, seconds

_PACKAGES = ("torch", "numpy", "scipy", "numba", "curvlinops-for-pytorch")


def environment(device: str) -> dict[str, str | int]:
    """Versions and processor, but neither a date nor the name of the machine."""
    found: dict[str, str | int] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["processor"] = _processor()
    found["threads"] = torch.get_num_threads()
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gemm_flops(grid: Grid, repetitions: int = 7) -> float:
    """Rate of a large product in the dtype of the measurements, in operations per second."""
    size, case = grid.gemm_size, grid.base
    matrix = torch.rand(size, size, dtype=case.dtype, device=case.device)
    times = [seconds(lambda: matrix @ matrix, case.device)[0] for _ in range(repetitions + 1)]
    return 2 * size**3 / median(times[1:])


def copy_rate(grid: Grid, repetitions: int = 7) -> float:
    """Bytes read and written per second while copying an array larger than any cache."""
    case = grid.base
    source = torch.ones(grid.copy_bytes // case.itemsize, dtype=case.dtype, device=case.device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), case.device)[0] for _ in range(repetitions + 1)]
    return 2 * grid.copy_bytes / median(times[1:])


def import_seconds(repetitions: int) -> float:
    """Median time that ``import kpops`` adds to ``import torch, xarray``."""
    code = (
        "import time, torch, xarray; start = time.perf_counter(); import kpops;"
        "print(time.perf_counter() - start)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code]) for _ in range(repetitions)]
    return float(np.median([float(run) for run in runs]))


def abilities(grid: Grid) -> dict[str, float]:
    """The machine's rates and the time of the import."""
    return {
        "gemm_flops": gemm_flops(grid),
        "copy_bytes_per_s": copy_rate(grid),
        "import_s": import_seconds(grid.import_repetitions),
    }
