"""The cost of a study beside a bare ``executor.map``: python -m benchmarks.studies."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import kpops
from benchmarks.timing import median

WORKERS, WORK = 2, 0.02  # seconds of a point


def measure(g: float, seed: int) -> dict[str, Any]:
    """Return a number and an array after some work."""
    time.sleep(WORK)
    return {"number": g * seed, "array": np.full(100, g)}


def _bare(point: tuple[float, int]) -> dict[str, Any]:
    return measure(*point)


def overhead(folder: Path, points: int = 400, repeats: int = 3) -> dict[str, float]:
    """Seconds of a worker for each point, bare and in a study."""
    context = multiprocessing.get_context("spawn")
    axes = {"g": np.arange(10.0), "seed": range(points // 10)}
    bare, studied = [], []
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        kpops.Study(folder / "first.zarr", measure, g=[1.0], seed=range(8)).run(executor)
        for repeat in range(repeats):
            begun = time.perf_counter()
            list(executor.map(_bare, [(g, seed) for g in axes["g"] for seed in axes["seed"]]))
            bare.append((time.perf_counter() - begun) * WORKERS / points)
            study = kpops.Study(folder / f"{repeat}.zarr", measure, **axes)
            begun = time.perf_counter()
            study.run(executor, progress=False)
            studied.append((time.perf_counter() - begun) * WORKERS / points)
    return {"bare": median(bare), "study": median(studied)}


def opening(folder: Path, points: int = 10_000) -> dict[str, float]:
    """Seconds to open a store with so many finished points, and to read what it holds."""
    axes = {"g": np.arange(100.0), "seed": range(points // 100)}
    study = kpops.Study(folder / "large.zarr", _quick, **axes)
    study.run()
    seconds = {}
    for name, act in {
        "construct": lambda: kpops.Study(folder / "large.zarr", _quick, **axes),
        "open": study.open,
        "status": study.status,
        "read a number of each point": lambda: study.open().number.load(),
    }.items():
        begun = time.perf_counter()
        act()
        seconds[name] = time.perf_counter() - begun
    return seconds


def _quick(g: float, seed: int) -> dict[str, Any]:
    return {"number": g * seed, "array": np.full(100, g)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = overhead(Path(folder))
        extra = 1000 * (found["study"] - found["bare"])
        print(f"a point of {WORK} s on {WORKERS} processes, seconds of a worker:")
        print(f"  executor.map {found['bare']:.4f}, Study.run {found['study']:.4f}")
        print(f"  {extra:.1f} ms more, a ratio of {found['study'] / found['bare']:.2f}")
        print("a store of 10,000 points:")
        for name, seconds in opening(Path(folder)).items():
            print(f"  {name}: {seconds:.3f} s")


if __name__ == "__main__":
    main()
