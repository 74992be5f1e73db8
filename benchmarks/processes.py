"""Operators over several processes: what they send, how they scale, how much memory they take.

``python -m benchmarks.processes`` starts the processes itself, one thread each, and writes
``results/processes.json``. Scaling is the ratio of times in one run. What more processes would do
is a model from the bytes sent, with the bandwidth and latency stated here, and is called one.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import kpops

RESULTS = Path(__file__).parent / "results" / "processes.json"
BANDWIDTH, LATENCY = 1e10, 2e-5  # bytes and seconds of the network of the model
HIDDEN, TRIALS, STEPS, BLOCK = 256, 40, 90, 16
LARGE = {"hidden": 256, "trials": 2000, "steps": 400}


def linearized(kind: str, hidden: int, trials: int, steps: int, **options: Any) -> Any:
    """A network at random inputs; `trials` of them here, the same on any number of processes."""
    torch.manual_seed(0)
    model = getattr(torch.nn, kind)(3, hidden, batch_first=True)
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(trials, steps, 3, generator=generator)
    return kpops.linearize(model, x, process_group=dist.group.WORLD, **options)


def sent(lin: Any, act: Callable[[], Any]) -> tuple[int, int]:
    """Messages and bytes of a call."""
    traffic = lin.space.parts.traffic
    before = traffic.calls, traffic.n_bytes
    act()
    return traffic.calls - before[0], traffic.n_bytes - before[1]


def communication(kind: str) -> dict[str, Any]:
    """What products and solvers send, on two processes."""
    lin = linearized(kind, HIDDEN, TRIALS // dist.get_world_size(), STEPS)
    q = torch.ones(BLOCK, *lin.space.shape)
    lin.K @ q[:1]  # its features are decomposed once
    operators = {"P": lin.P, "K": lin.K, "flow": lin.flow, "J*": lin.J.H}
    found = {name: sent(lin, lambda op=op: op @ q) for name, op in operators.items()}
    solvers = {
        "eigsh(flow, 10)": lambda: kpops.eigsh(lin.flow, 10, rng=0),
        "svds(P, 10)": lambda: kpops.svds(lin.P, 10, rng=0, max_matvecs=200),
        "trace(flow)": lambda: kpops.trace(lin.flow, rng=0),
    }
    for name, solve in solvers.items():
        found[name] = sent(lin, solve)
    size = lin.K.root.domain.size
    return {"kind": kind, "numbers_of_a_sum": size, "parameters": lin.J.shape[1], "sent": found}


def timed(kind: str, trials: int) -> dict[str, float]:
    """Median seconds of products with a block, with `trials` trials here."""
    lin = linearized(kind, HIDDEN, trials, STEPS)
    q = torch.ones(BLOCK, *lin.space.shape)
    result = {}
    for name in ("P", "K", "flow"):
        op, times = getattr(lin, name), []
        op @ q
        for _ in range(7):
            dist.barrier()
            start = time.perf_counter()
            op @ q
            dist.barrier()
            times.append(time.perf_counter() - start)
        result[name] = float(np.median(times))
    return result


def large() -> dict[str, Any]:
    """Product and trace of a trajectory of 2e8 numbers: seconds and GiB at most."""
    start = time.perf_counter()
    share = {**LARGE, "trials": LARGE["trials"] // dist.get_world_size()}
    lin = linearized("RNN", **share, gates="recomputed")
    found: dict[str, Any] = {"numbers": lin.P.shape[0], "linearize_s": time.perf_counter() - start}
    q = torch.randn(lin.space.shape, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    found["norm"] = float((lin.flow @ q).norm())
    found |= {"flow_s": time.perf_counter() - start, "flow_gib": _peak()}
    start = time.perf_counter()
    trace = kpops.trace(lin.flow, num_matvecs=8, rng=0)
    found |= {"trace_s": time.perf_counter() - start, "peak_gib": _peak()}
    found |= {"trace": float(trace.estimate), "stderr": float(trace.stderr)}
    return {**found, "chosen": trace.attrs["chosen"]}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def modelled(seconds: float, n_bytes: int, n: int) -> float:
    """Seconds on n processes: the work over n, and an all-reduce in halves, as rings take it."""
    return seconds / n + 2 * (n - 1) / n * n_bytes / BANDWIDTH + 2 * math.log2(n) * LATENCY


def in_processes(n: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What n new processes of one thread return, in the order of the ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        members = [
            context.Process(
                target=_member, args=(queue, f"{folder}/store", rank, n, function, args)
            )
            for rank in range(n)
        ]
        for member in members:
            member.start()
        answers = dict(queue.get() for _ in range(n))
        for member in members:
            member.join()
    return [answers[rank] for rank in range(n)]


def _member(
    queue: Any, store: str, rank: int, n: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
    queue.put((rank, function(*args)))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="+", default=["sent", "scaling", "large"])
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    if "sent" in given.parts:
        found["sent"] = [in_processes(2, communication, kind)[0] for kind in ("RNN", "GRU")]
        for case in found["sent"]:
            print(f"{case['kind']}: {case['numbers_of_a_sum']} numbers in a sum")
            for name, (calls, n_bytes) in case["sent"].items():
                print(f"  {name:16} {calls:5} messages {n_bytes:12,} bytes")
    if "scaling" in given.parts:
        found["scaling"] = []
        for kind in ("RNN", "GRU"):
            one, half = (in_processes(1, timed, kind, n)[0] for n in (TRIALS, TRIALS // 2))
            two = in_processes(2, timed, kind, TRIALS // 2)[0]
            twice = in_processes(2, timed, kind, TRIALS)[0]
            for name in one:
                row = {"kind": kind, "operator": name, "one_s": one[name], "two_s": two[name]}
                row |= {"strong": one[name] / two[name], "weak": one[name] / twice[name]}
                row["half_on_one"] = one[name] / half[name]
                found["scaling"].append(row)
                print(f"{kind} {name:5} strong {row['strong']:.2f}, weak {row['weak']:.2f}")
        for row in found["scaling"]:
            case = next(c for c in found["sent"] if c["kind"] == row["kind"])
            n_bytes = case["sent"][row["operator"]][1]
            for n in (8, 64):
                row[f"model_{n}"] = row["one_s"] / modelled(row["one_s"], n_bytes, n)
            print(f"{row['kind']} {row['operator']:5} model: {row['model_8']:.1f} on 8, "
                  f"{row['model_64']:.1f} on 64")  # fmt: skip
    if "large" in given.parts:
        found["large"] = in_processes(2, large)
        for rank, row in enumerate(found["large"]):
            print(f"process {rank}: {row}")
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
