"""Draw docs/_static/front.png: what goes in, what kpops is, what comes out.

Run it as ``python docs/front_figure.py`` when its network or its look changes; the picture is
committed, since the README shows it, too.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "examples"))

from networks import GALLERY, trained

import kpops

BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"


def trajectories(ax, lin) -> None:
    """States on two of their leading axes, a line for each trial."""
    states = lin.states.values
    flat = states.reshape(-1, states.shape[-1])
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][1:3]
    colours = plt.get_cmap("hsv")(np.arange(len(states)) / len(states))
    for path, colour in zip((states - flat.mean(0)) @ axes.T, colours, strict=True):
        ax.plot(*path.T, color=colour, linewidth=1.2)
        ax.plot(*path[-1], ".", color=colour, markersize=8)
    ax.set(title="a network and its trajectories", xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def operators(ax) -> None:
    """The way of the gradient through P*, K and P."""
    for i, (name, says) in enumerate(
        (("$P^*$", "back\nin time"), ("$K$", "weights"), ("$P$", "forth\nin time"))
    ):
        box = dict(boxstyle="round,pad=0.55", facecolor="#e8f1f8", edgecolor=BLUE)
        ax.text(i, 0, name, ha="center", va="center", size=17, bbox=box)
        ax.text(i, -0.62, says, ha="center", va="top", size=8, color="0.35")
    arrow = dict(arrowstyle="->", color="0.4")
    for left, right in ((-0.75, -0.33), (0.33, 0.67), (1.33, 1.67), (2.33, 2.75)):
        ax.annotate("", (right, 0), (left, 0), arrowprops=arrow)
    ax.text(-0.8, 0, "Err", ha="right", va="center", size=12)
    ax.text(2.8, 0, r"$\delta h$", ha="left", va="center", size=12)
    ax.set(title=r"one gradient step: $\delta h = -\eta\, P K P^*\, \mathrm{Err}$")
    ax.set(xlim=(-1.5, 3.3), ylim=(-1.6, 1.2))
    ax.axis("off")


def spectra(ax, lins) -> None:
    """Eigenvalues of the flow operator before and after training."""
    for (name, lin), colour in zip(lins.items(), (RED, GREEN), strict=True):
        values = kpops.eigsh(lin.flow, 24, rng=0).eigenvalue
        ax.semilogy(values.mode, values / values[0], ".-", color=colour, label=name)
    ax.set(title="spectrum of $P K P^*$", xlabel="mode", ylabel="eigenvalue / largest")
    ax.legend(frameon=False)


def main() -> None:
    """Write the picture."""
    [run] = [trained(training) for training in GALLERY["collapse"]]
    task = kpops.tasks.memory_pro(20, angles="even", noise=0)
    networks = {"untrained": run.training.network(), "trained": run.network}
    lins = {name: kpops.linearize(network, task.inputs) for name, network in networks.items()}
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        size = {"width_ratios": [1, 1.5, 1.1]}
        fig, axes = plt.subplots(1, 3, figsize=(10, 2.7), layout="constrained", gridspec_kw=size)
        trajectories(axes[0], lins["trained"])
        operators(axes[1])
        spectra(axes[2], lins)
        fig.savefig(DOCS / "_static" / "front.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
