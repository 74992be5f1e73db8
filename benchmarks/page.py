"""The page of the documentation, from the JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import page_parts, page_products, page_spectra
from benchmarks.tables import heading, number, paragraph

Found = dict[str, Any]

_TITLES = {"cpu": "On the CPU", "cuda": "On a GPU"}

_INTRODUCTION = """\
What do the operators cost, and what would they cost without kpops? Every contender below computes
the same products, of the same models, on the same trajectories, in one process, in turns. Before
it is timed, each product is compared with that of kpops' engine ``autodiff``; a relative difference
above one in a thousand would stop the run. ``make benchmarks`` measures all of it again, on your
machine, and writes this page.

Who is compared
---------------

kpops, with each of its engines
   ``lin.P @ q``, ``lin.P.H @ q``, ``lin.K @ q`` and ``lin.flow @ q``; see :doc:`engines`.

torch.func, unrolled
   The cell in a loop over time, differentiated by ``torch.func``. With the trajectory as a function
   of the parameters, a VJP and then a JVP apply :math:`P K P^{*}`; with a forcing added to the
   state at each step they apply :math:`P` and :math:`P^{*}`; one step at all rows at once gives
   :math:`K`. The forward pass behind the VJP is run once and kept. Blocks go through
   ``torch.vmap``, or through it in smaller parts where that is faster.

torch.func, traced
   The same with ``torch.func.linearize`` in place of the JVP: the forward pass is traced once,
   which takes seconds, and what is linear is replayed.

torch.func, fused
   ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` called once on the sequence. It takes no forcing, so that
   it gives the flow operator alone.

curvlinops
   The operators ``JacobianLinearOperator`` and ``TransposedJacobianLinearOperator`` of the package
   curvlinops-for-pytorch, of a model whose output is the trajectory, one after the other.

stored Jacobians
   All state Jacobians made beforehand by ``torch.func.jacrev``, a Python loop over time, and a
   SciPy ``LinearOperator`` that ARPACK calls with one NumPy vector at a time.

floor
   The same arithmetic as plain matrix products, measured in the same turns: for :math:`P` one
   product of all rows with the recurrent weights of all gates, as if no step waited for the one
   before; for :math:`K` the features :math:`(h, x, 1, 1)` times the rows of all gates and back;
   for :math:`P K P^{*}` the sum. *K at rank r* is the same with the features compressed to their
   numerical rank. An engine that uses the rank can therefore be below the first floor, and reach
   more than 100 % of it. The *floor of bytes* is the time in which gates, inputs and outputs
   could be copied once.

How it is measured
------------------

Times are medians of at least five repetitions, of three where a product takes over a second.
Contenders take turns, and a turn begins with a call that is not timed, since whoever was before
leaves the caches full and threads waiting. Preparations that serve all products (a linearization,
stored matrices, traces, compiled code) are not in them; what they took stands below the tables, and
the first contender of a run also pays for loading what all of them use. A dash means that a
contender does not offer a product or was left out, and a footnote says why."""


def write(folder: Path, target: Path) -> None:
    """Write the page `target` from the JSON files in `folder`."""
    target.write_text("\n".join(lines(folder)).rstrip() + "\n")


def lines(folder: Path) -> list[str]:
    page = [
        ".. Written by python -m benchmarks --page: edit benchmarks/page.py instead",
        "",
        *heading("Benchmarks", "="),
        *_INTRODUCTION.splitlines(),
        "",
    ]
    for device, title in _TITLES.items():
        path = folder / f"{device}.json"
        page += heading(title, "-")
        page += of_device(json.loads(path.read_text())) if path.exists() else ["Not measured.", ""]
    return page


def of_device(found: Found) -> list[str]:
    """Everything that was measured on one device, what is asked for most first."""
    page = where(found)
    makers = {
        "products": page_products.headline,
        "large": page_parts.large,
        "stacks": page_parts.stacks,
        "scan": page_parts.scan,
        "spectra": page_spectra.spectra,
        "certainty": page_spectra.certainty,
        "estimators": page_spectra.estimators,
        "exponents": page_parts.exponents,
        "growth": page_parts.growth,
        "memory": page_parts.memory,
        "busy": page_parts.busy,
    }
    for part, make in makers.items():
        if part in found:
            page += make(found)
    return page + (page_products.all_cases(found) if "products" in found else [])


def where(found: Found) -> list[str]:
    """Machine, versions and problem."""
    environment, settings, machine = (found[k] for k in ("environment", "settings", "machine"))
    packages = ["python", "torch", "numpy", "scipy", "numba", "curvlinops-for-pytorch"]
    versions = ", ".join(f"{package} {environment[package]}" for package in packages)
    processor = f"{environment['processor']}, {environment['threads']} threads"
    if "gpu" in environment:
        processor = f"{environment['gpu']}, CUDA {environment['cuda']}; {processor}"
    inputs = {
        "memory_pro": "the noise-free inputs of Memory-Pro",
        "noise": "white noise as inputs",
    }[settings["inputs"]]
    return [
        *paragraph(
            f"{processor}; {versions}. A large matrix product runs at "
            f"{number(machine['gemm_flops'] / 1e9)} GFLOP/s, a copy reads and writes "
            f"{number(machine['copy_bytes_per_s'] / 1e9)} GB/s. ``import kpops`` adds "
            f"{number(machine['import_s'])} s to that of torch and xarray."
        ),
        *paragraph(
            f"Where nothing else is said: {settings['trials']} trials, {settings['steps']} steps, "
            f"{inputs}, {settings['dtype']}, weights as PyTorch initialises them."
        ),
    ]
