"""The contract of operators, kept by operators that are spread over processes.

    torchrun --nproc-per-node 2 tests/distributed/contract.py    # make test-distributed

Checks every model and engine of ``tests/cases.py``, and prints the largest errors. A process that
finds one too large ends, and torchrun ends the others.
"""

import time

import torch
import torch.distributed as dist
from cases import BY_NAME, CASES_AND_ENGINES, STEPS, TRIALS, serving

import kpops
from kpops.testing import check_linearization, check_operator

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


def own_trials():
    """The first trial here, or the others there."""
    return slice(0, 1) if dist.get_rank() == 0 else slice(1, TRIALS)


def check_model(name, engine, dtype=torch.float64):
    """The largest error of all operators of a model, in units of rounding."""
    case, here = BY_NAME[name], own_trials()
    model, (inputs, h0) = case.model(dtype), case.data(dtype)
    lin = kpops.linearize(
        model,
        case.as_module_takes(model, inputs[here]),
        h0=h0[here],
        mask=case.as_module_takes(model, MASK[here]),
        measure="mean",
        engine=engine,
        process_group=dist.group.WORLD,
    )
    figures = check_linearization(lin)
    return max(max(f.values()) for f in figures.values()) / torch.finfo(dtype).eps


def check_algebra(dtype=torch.float64):
    """The same of readouts, reductions, products, sums and multiples."""
    torch.manual_seed(0)
    gru, readout = torch.nn.GRU(2, 4, batch_first=True).to(dtype), torch.nn.Linear(4, 3).to(dtype)
    inputs = torch.randn(TRIALS, STEPS, 2, dtype=dtype)[own_trials()]
    lin = kpops.linearize(gru, inputs, readout=readout, process_group=dist.group.WORLD)
    ops = [
        lin.C,
        lin.output_ntk,
        lin.P @ lin.P.H,
        2.5 * lin.K - lin.flow,
        lin.flow.select(time=slice(1, 4)),
        lin.J.select(parameter="weight_hh_l0", unit=[1]),
        lin.flow.expand_average(keep=("time",)),
        lin.P.expand_average(keep=("trial", "unit")),
        lin.sensitivity.H,
        lin.J.H @ lin.J,
    ]
    return max(max(check_operator(op).values()) for op in ops) / torch.finfo(dtype).eps


def main():
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2, "these checks are for two processes"
    started = time.monotonic()
    checks = {
        f"{case.name}, {engine}, {dtype}": (check_model, case.name, engine, dtype)
        for case, engine in CASES_AND_ENGINES
        for dtype in (torch.float64, torch.float32)
        if dtype == torch.float64 or engine == serving(case.model())[0]
    }
    checks |= {f"algebra, {d}": (check_algebra, d) for d in (torch.float64, torch.float32)}
    for what, (check, *args) in checks.items():
        worst = check(*args)
        assert worst < 200, f"{what}: {worst} units of rounding"
        if dist.get_rank() == 0:
            print(f"{what:60} {worst:6.1f} units of rounding", flush=True)
    if dist.get_rank() == 0:
        print(f"{len(checks)} checks in {time.monotonic() - started:.0f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
