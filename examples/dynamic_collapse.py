"""
Dynamic collapse in a GRU
=========================

Train a GRU on Memory-Pro from scratch, then follow the parameter operator K, the propagator P (as
P P*) and the flow operator P K P* over training.

The table shows two effective ranks that are easily confused. The *variance* rank is that of the
KPFlow paper's figures: the operator is reduced to the time dim (copy along trials and units,
apply, average), and the rank counts the leading eigenvalues that hold 95 % of the sum of squares.
The *participation* ratio is that of the whole operator on (trial, time, unit). They tell different
stories of the same network, and both tell of a collapse when the memory forms.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import kpops
from kpops.plot.style import COLOURS

OPERATORS = ("K", "P P*", "P K P*")
KINDS = ("variance over time", "participation")


def measure(lin):
    """Effective ranks of K, P P* and P K P*, and the spectra of their reductions to time."""
    ranks, errors = np.empty((2, len(KINDS), len(OPERATORS)))
    spectra = []
    for i, op in enumerate((lin.K, lin.P @ lin.P.H, lin.flow)):
        variance = kpops.effective_rank(op, "variance", keep=("time",))
        participation = kpops.effective_rank(op, "participation", num_matvecs=32, rng=0)
        for j, rank in enumerate((variance, participation)):
            ranks[j, i], errors[j, i] = rank.estimate, rank.stderr
        spectra.append(kpops.eigsh(op.expand_average(keep=("time",)), k=30).eigenvalue)
    return xr.Dataset(
        {
            "effective_rank": (("kind", "operator"), ranks, {"long_name": "effective rank"}),
            "stderr": (("kind", "operator"), errors, {"long_name": "standard error"}),
            "eigenvalue": xr.concat(spectra, dim="operator", combine_attrs="override"),
        },
        coords={
            "kind": np.array(KINDS, dtype=object),
            "operator": np.array(OPERATORS, dtype=object),
        },
    )


def draw(result, history):
    """Loss, both ranks over training, and the spectra before and after."""
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    (loss, variance), (spectra, participation) = axes
    kpops.plot.over_training(history.loss, loss, color="black", linewidth=0.8)
    loss.set(yscale="log", title="loss")
    for kind, ax in zip(KINDS, (variance, participation), strict=True):
        kpops.plot.over_training(result.effective_rank.sel(kind=kind), ax)
        ax.set(yscale="log", title=f"effective rank: {kind}")
    for i, operator in enumerate(OPERATORS):
        for position, style in ((0, ":"), (-1, "-")):
            values = result.eigenvalue.isel(step=position, operator=i)
            label = f"{operator}, iteration {int(result.step[position])}"
            look = {"color": COLOURS[i], "linestyle": style, "marker": "", "label": label}
            kpops.plot.spectrum(values / values[0], spectra, **look)
    spectra.set(ylim=(1e-7, 2), ylabel="eigenvalue / largest", title="spectra over time")
    spectra.legend(frameon=False, fontsize=8)
    return fig


def show(result):
    """Print the table."""
    print(f"\n{'':14}" + "".join(f"{kind:^33}" for kind in KINDS))
    print(f"{'step':>6}{'loss':>8}" + "".join(f"{name:>11}" for name in OPERATORS * 2))
    for step in result.step.values:
        row = result.sel(step=step)
        ranks = "".join(f"{rank:11.2f}" for rank in row.effective_rank.values.ravel())
        print(f"{step:6}{float(row.loss):8.4f}{ranks}")


def main():
    """Train, follow, print, save, draw."""
    parser = argparse.ArgumentParser(description="Dynamic collapse in a GRU on Memory-Pro.")
    parser.add_argument("--units", type=int, default=64, help="units of the GRU")
    parser.add_argument("--steps", type=int, default=800, help="training iterations")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where to save")
    options = parser.parse_args()

    torch.manual_seed(0)
    network = kpops.Network(
        torch.nn.GRU(3, options.units, batch_first=True), torch.nn.Linear(options.units, 3)
    )
    training_set = kpops.tasks.memory_pro(2000, rng=1)
    evaluation_set = kpops.tasks.memory_pro(20, angles="even", noise=0)

    # In so small a network the threads of one layer wait for each other more than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = options.output / "checkpoints"
    history = kpops.training.train(
        network,
        training_set,
        folder=folder,
        max_steps=options.steps,
        batch_size=100,
        learning_rate=2e-3,
        checkpoint_every=max(1, options.steps // 16),
        rng=0,
        progress=True,
    )
    torch.set_num_threads(threads)
    result = kpops.over_training(network, folder, evaluation_set.inputs, measure, progress=True)
    result["loss"] = history.loss.sel(step=result.step)

    show(result)
    stem = options.output / "dynamic_collapse"
    result.to_zarr(stem.with_suffix(".zarr"), mode="w", consolidated=False)
    draw(result, history).savefig(stem.with_suffix(".png"), dpi=150)
    print(f"\nsaved {stem}.zarr and {stem}.png")


if __name__ == "__main__":
    main()
