"""Networks without recurrence: kernels over outputs and over all sites, beside other ways to them.

``python -m benchmarks.sites`` measures an MLP on scikit-learn's digits and a transformer of ten
million parameters on sequences, in one run, and writes ``results/sites.json``. All contenders take
their turns on the same block and agree to one part in a thousand. The forward passes behind what is
stored are made once, before the times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

import kpops
from benchmarks import machine, peers
from benchmarks.contenders import Product, UnavailableError
from benchmarks.memory import peak_bytes
from benchmarks.timing import Limits, median, seconds, take_turns
from benchmarks.torch_func import maps, over_blocks, twice_reverse
from kpops.models.sites import hooked, plain

RESULTS = Path(__file__).parent / "results" / "sites.json"
CLASSES, TOKENS, WORDS = 10, 32, 100


class Attention(nn.Module):
    """Blocks of attention on embedded words; a token sees those before it."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        layer = partial(nn.TransformerEncoderLayer, width, 8, 4 * width, 0.0, batch_first=True)
        self.blocks = nn.Sequential(*(layer(norm_first=True) for _ in range(depth)))
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        h = self.embed(words)
        for block in self.blocks:
            h = block(h, src_mask=mask)
        return self.head(h)


@dataclass(frozen=True)
class Problem:
    """A network and its inputs; everything random is the same in each run."""

    kind: str
    width: int
    depth: int
    samples: int

    def module(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.kind == "transformer":
                return Attention(self.width, self.depth).eval()
            sizes = [64] + [self.width] * self.depth
            pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
            return nn.Sequential(*sum(pairs, ()), nn.Linear(self.width, CLASSES))

    def inputs(self) -> Tensor:
        if self.kind == "transformer":
            generator = torch.Generator().manual_seed(1)
            return torch.randint(WORDS, (self.samples, TOKENS), generator=generator)
        return torch.from_numpy(load_digits().data[: self.samples] / 16).float()


MLP, TRANSFORMER = Problem("MLP", 512, 4, 1000), Problem("transformer", 320, 8, 64)
SPECTRUM = Problem("MLP", 48, 3, 20)  # of a size that a dense decomposition takes


def contenders(problem: Problem, operator: str) -> dict[str, Product]:
    """Products with blocks (block, trial, ...), of the kernel of the outputs or of all sites."""
    module, x = problem.module(), problem.inputs()
    lin = kpops.linearize(module, x)
    paths = list(dict.fromkeys(lin.space.coords["site"].values))
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def outputs(theta: dict[str, Tensor]) -> Tensor:
        return functional_call(module, theta, (x,))

    def all_sites(theta: dict[str, Tensor]) -> Tensor:
        values = []

        def keep(path: str, call: int, output: Tensor) -> Tensor:
            values.append(output.flatten(1))
            return output

        with hooked(module, dict.fromkeys(paths), keep):
            outputs(theta)
        return torch.cat(values, 1)

    function = outputs if operator == "NTK" else all_sites
    ours = lin.output_ntk if operator == "NTK" else lin.flow
    made: dict[str, Product] = {"kpops": lambda q: ours @ q}
    for name, both in {
        "torch.func vjp, jvp": maps(function, weights),
        "torch.func vjp of vjp": twice_reverse(function, weights),
    }.items():
        made[name] = over_blocks(lambda q, both=both: both.push(both.pull(q)))
    if operator == "NTK":
        try:
            J, transposed = peers.jacobians(module, x)
            made["curvlinops"] = lambda q: (J @ (transposed @ q.flatten(1).T)).T.reshape(q.shape)
        except UnavailableError:
            pass
    return made


def matvecs(problem: Problem, limits: Limits, blocks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Milliseconds per vector of all contenders, and how often kpops goes into them."""
    records = []
    for operator in ("NTK", "P K P*"):
        with plain(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the other libraries
            made = contenders(problem, operator)
            lin = kpops.linearize(problem.module(), problem.inputs())
            space = lin.output_space if operator == "NTK" else lin.space
            for size in blocks:
                generator = torch.Generator().manual_seed(2)
                q = torch.randn(size, *space.shape, generator=generator)
                acts = {name: partial(product, q) for name, product in made.items()}
                agree({name: act() for name, act in acts.items()})
                times = take_turns(acts, "cpu", limits)
                ms = {name: 1e3 * median(t) / size for name, t in times.items()}
                records.append(
                    {
                        **{"kind": problem.kind, "operator": operator, "block": size},
                        "ms_per_vector": ms,
                        "ratio": {name: t / ms["kpops"] for name, t in ms.items()},
                    }
                )
                show(records[-1])
    return records


def agree(products: dict[str, Tensor], tolerance: float = 1e-3) -> None:
    """Raise AssertionError where a product differs from that of kpops."""
    ours = products["kpops"]
    for name, product in products.items():
        error = float((product - ours).norm() / ours.norm())
        if not error <= tolerance:  # also NaN
            raise AssertionError(f"the product of {name} differs from that of kpops by {error:.1e}")


def spectrum(problem: Problem) -> dict[str, Any]:
    """Seconds of all eigenvalues of K, by kpops and of the dense matrix, which autograd makes."""
    tiny = replace(problem, samples=2)
    kpops.eigvalsh(kpops.linearize(tiny.module(), tiny.inputs()).K)  # loads what a first call needs
    lin = kpops.linearize(problem.module(), problem.inputs())
    ours, found = seconds(lambda: kpops.eigvalsh(lin.K).eigenvalue.values, "cpu")
    states = lin.trajectory.states
    weights = {name: p.detach() for name, p in problem.module().named_parameters()}

    def dense() -> Tensor:
        # Each layer sees the features of the network as it is.
        jacobian = torch.func.jacrev(
            lambda theta: lin.network.cut(theta, lin.trajectory.inputs, states).flatten()
        )(weights)
        J = torch.cat([jacobian[name].flatten(1) for name in weights], dim=1)
        return torch.linalg.eigvalsh(J @ J.T).flip(0)

    theirs, values = seconds(dense, "cpu")
    apart = float((torch.from_numpy(found.copy()) - values[: len(found)]).abs().max() / values[0])
    if not apart <= 1e-4:
        raise AssertionError(f"the spectra of K differ by {apart:.1e} of the largest eigenvalue")
    record = {"size": states.numel(), "kpops_s": ours, "dense_s": theirs, "ratio": theirs / ours}
    shown = f"{ours:.2f} s, dense {theirs:.2f} s, x {theirs / ours:.1f}"
    print(f"all {len(found)} eigenvalues of K: {shown}")
    return record


def memory(problem: Problem) -> dict[str, Any]:
    """Peak of a matvec of each kernel over that of a process that makes network and inputs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        idle, peak = (pool.apply(_peak, (problem, act), {}) for act in (False, True))
    n = sum(p.numel() for p in problem.module().parameters())
    found = {**asdict(problem), "parameters": n, "growth": peak - idle}
    found["of_parameters_times_samples"] = (peak - idle) / (4 * n * problem.samples)
    shown = f"{found['growth'] / 2**20:.0f} MiB, {found['of_parameters_times_samples']:.4f}"
    print(f"memory: {problem.kind}, {problem.samples} samples: {shown} of parameters x samples")
    return found


def _peak(problem: Problem, act: bool) -> int:
    module, x = problem.module(), problem.inputs()
    if act:
        lin = kpops.linearize(module, x)
        for operator, space in ((lin.output_ntk, lin.output_space), (lin.flow, lin.space)):
            operator @ torch.ones(space.shape)
    return peak_bytes("cpu")


def show(record: dict[str, Any]) -> None:
    """Print milliseconds, and those of the others over those of kpops."""
    print(f"{record['kind']}, {record['operator']}, block of {record['block']}, ms per vector:")
    for name, ms in record["ms_per_vector"].items():
        print(f"  {name:24}{ms:9.1f}{record['ratio'][name]:8.2f}")


def measure(
    problems: tuple[Problem, ...], small: Problem, limits: Limits, blocks: tuple[int, ...]
) -> dict[str, Any]:
    """All of it, as plain numbers."""
    halves = [replace(p, samples=p.samples // k) for p in problems for k in (4, 2, 1)]
    return {
        "environment": machine.environment("cpu"),
        "problems": [asdict(p) for p in problems],
        "matvecs": [record for p in problems for record in matvecs(p, limits, blocks)],
        "spectrum": spectrum(small),
        "memory": [memory(p) for p in halves],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sites", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = measure((MLP, TRANSFORMER), SPECTRUM, Limits(few=3, most_s=60), (1, 8))
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
