"""Run the test suite under the arithmetic of other processors, thread counts and load.

    python tests/processors.py                    # every variant, one after the other
    python tests/processors.py busy sse -- tests/dynamics

Libraries choose their kernels by processor, and each sums in another order. Their own switches make
one machine round as others do. What fails here on one line only asserts the last digits of a
processor. Prints a table; the exit status is 1 if any run failed.
"""

import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack

ONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
TWO = dict.fromkeys(ONE, "2")

# torch's own kernels, its MKL and oneDNN, the OpenBLAS of NumPy and SciPy, and Numba.
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "NUMBA_CPU_NAME": "x86-64",
    "NUMBA_CPU_FEATURES": "",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NUMBA_CPU_NAME": "haswell",
}

VARIANTS = {
    "one": ONE,
    "two": TWO,
    "busy": TWO,
    "sse": ONE | SSE,
    "sse-two": TWO | SSE,
    "avx2": ONE | AVX2,
    "avx2-two": TWO | AVX2,
}


def measure(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """One line of the table, and the tests that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    start = time.monotonic()
    with ExitStack() as stack:
        if name == "busy":
            for _ in range(os.cpu_count() or 1):
                spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(spin.kill)
        run = subprocess.run(
            command + arguments, env=os.environ | VARIANTS[name], capture_output=True, text=True
        )
    seconds = time.monotonic() - start
    counts = {
        word: int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|errors?|skipped)", run.stdout.splitlines()[-1]
        )
    }
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if run.returncode not in (0, 1):
        failed.append(f"pytest ended with {run.returncode}: {run.stderr[-300:]}")
    figures = counts.get("passed", 0), len(failed), counts.get("skipped", 0), round(seconds)
    return f"{name:<10}" + "".join(f"{figure:>9}" for figure in figures), failed


def main(arguments: list[str]) -> int:
    """Run the variants that are named, or all; what follows ``--`` goes to pytest."""
    names, _, rest = " ".join(arguments).partition("--")
    chosen = names.split() or list(VARIANTS)
    unknown = sorted(set(chosen) - set(VARIANTS))
    if unknown:
        raise SystemExit(f"no variant {unknown}: choose from {list(VARIANTS)}")
    heads = "passed", "failed", "skipped", "seconds"
    print(f"{'variant':<10}" + "".join(f"{head:>9}" for head in heads), flush=True)
    any_failed = False
    for name in chosen:
        row, failed = measure(name, rest.split())
        print("\n  ".join([row, *failed]), flush=True)
        any_failed |= bool(failed)
    return int(any_failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
