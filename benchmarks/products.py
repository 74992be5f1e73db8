"""What one product costs: ``python benchmarks/products.py``.

A GRU of 256 units, 20 trials, 90 steps, float32, by default. Medians over repetitions after a
warm-up; the plain GEMM beside them tells what the machine could do at that moment.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
import torch

import kpops


def milliseconds(act, device, repetitions=9):
    """Median time of `act`, after one call to warm up."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def gemm_rate(size=2048):
    """Rate of a large float32 product, in GFLOP/s."""
    matrix = torch.rand(size, size)
    return 2 * size**3 / milliseconds(lambda: matrix @ matrix, torch.device("cpu")) / 1e6


def import_seconds(repetitions=7):
    """Median time that ``import kpops`` adds to ``import torch, xarray``."""
    code = (
        "import time, torch, xarray; start = time.perf_counter(); import kpops;"
        "print(time.perf_counter() - start)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code]) for _ in range(repetitions)]
    return float(np.median([float(run) for run in runs]))


def main():
    parser = argparse.ArgumentParser(description="Milliseconds of one product.")
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    gru = torch.nn.GRU(3, options.units, batch_first=True).to(device)
    inputs = torch.randn(options.trials, options.steps, 3)
    print(f"import kpops: {import_seconds():.2f} s beyond torch and xarray")
    print(f"GEMM: {gemm_rate():.0f} GFLOP/s on {torch.get_num_threads()} threads")
    automatic = kpops.linearize(gru, inputs, device=device).engine.name
    for engine in ("jacobian", "autodiff"):
        lin = kpops.linearize(gru, inputs, device=device, engine=engine)
        chosen = ", the automatic choice" if engine == automatic else ""
        print(f"\nengine {engine}{chosen}: ms per column")
        start = time.perf_counter()
        lin.P @ torch.zeros(lin.space.shape, device=device)
        print(f"first product with P: {time.perf_counter() - start:.1f} s")
        print(f"{'block':>8}" + "".join(f"{name:>10}" for name in ("P", "P*", "K", "flow")))
        for block in (1, 4, 16):
            q = torch.randn(block, *lin.space.shape, device=device)
            operators = (lin.P, lin.P.H, lin.K, lin.flow)
            costs = [milliseconds(lambda op=op, q=q: op @ q, device) / block for op in operators]
            print(f"{block:>8}" + "".join(f"{cost:10.1f}" for cost in costs))


if __name__ == "__main__":
    main()
