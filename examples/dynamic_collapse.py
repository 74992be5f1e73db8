"""
Dynamic collapse
================

A GRU learns to keep an angle in memory, and we measure its operators at every fiftieth iteration:
the parameter operator :math:`K`, the propagator :math:`P` (as :math:`P P^{*}`) and the flow
operator :math:`P K P^{*}`. This is Figure 4 of the KPFlow paper at a small scale; ``make demo``
runs it too. As the network passes from forgetting to remembering, the propagator collapses: it used
to treat all perturbations alike, and comes to amplify a few.
"""

import argparse
import functools
from pathlib import Path

import matplotlib.pyplot as plt
from networks import GALLERY, trained

import kpops

parser = argparse.ArgumentParser(description="Dynamic collapse in a GRU on Memory-Pro.")
parser.add_argument("--output", type=Path, help="folder to save the Dataset and the figure in")
output = parser.parse_args().output

# %%
# Measure every checkpoint
# ------------------------
#
# The network has 64 units. If it has no checkpoints yet, it is trained, which takes a minute. The
# analysis uses a fixed set of trials: twenty angles around the circle, without noise.
#
# :func:`kpops.over_training` linearises the network at each checkpoint and passes it to a measure,
# a function of your choice. :func:`kpops.collapse` is such a measure. For a network of your own,
# pass your module, your checkpoints (any ``(step, state_dict)`` works) and your inputs.

[training] = GALLERY["collapse"]
progress = output is not None  # pages of the documentation show no bar
run = trained(training, progress=progress)
task = kpops.tasks.memory_pro(20, angles="even", noise=0)
measure = functools.partial(kpops.collapse, num_modes=30, rng=0)
result = kpops.over_training(run.network, run.folder, task.inputs, measure, progress=progress)
result["loss"] = run.history.loss.sel(step=result.step)

# %%
# Two effective ranks
# -------------------
#
# The table shows two effective ranks, which are easily confused. *Variance over time* is the one in
# the paper's figures: the operator is reduced to time (copy along trials and units, apply,
# average), and the rank is the number of leading eigenvalues that hold 95 % of the sum of their
# squares, with interpolation, so that 0.95 stands for one. *Participation* is that of the whole
# operator on (trial, time, unit), here of size 115,200. It is exact for :math:`K`; for the others
# it is an estimate from 32 matvecs, whose standard error is in the Dataset.

OPERATORS = ["K", "P P*", "P K P*"]
KINDS = ["variance over time", "participation"]

print(f"{'':14}" + "".join(f"{kind:^33}" for kind in KINDS))
print(f"{'step':>6}{'loss':>8}" + "".join(f"{name:>11}" for name in OPERATORS * 2))
for step in result.step.values:
    row = result.sel(step=step, operator=OPERATORS, kind=KINDS)
    ranks = row.effective_rank.transpose("kind", "operator").values.ravel()
    print(f"{step:6}{float(row.loss):8.4f}" + "".join(f"{rank:11.2f}" for rank in ranks))

# %%
# The loss first stays at the value of a network that has learned only to fixate. Nothing seems to
# happen there, but the propagator is changing. While the loss is constant, :math:`P P^{*}` goes
# from tens of thousands of dimensions to hundreds by the participation ratio, and from dozens to
# ten over time. When the loss has come down, it is about a hundred, and one. A network that forgets
# leaves every push where it was made, so :math:`P P^{*}` is not far from the identity. One that
# remembers an angle propagates the few pushes that change the angle, and these outweigh all others.
#
# :math:`K` changes little. Over time it has about one dimension throughout, and never more than
# two. Its participation ratio is about one for each unit, since every unit has its own weights. The
# flow operator, through which the network learns, inherits the collapse of :math:`P`.

fig, ((left, spectra), (reduced, whole)) = plt.subplots(
    2, 2, figsize=(10, 6.2), layout="constrained"
)
kpops.plot.over_training(run.history.loss, left, color="black", linewidth=0.8)
left.set(yscale="log", ylabel="loss", title="loss of the minibatch")
for ax, kind in ((reduced, KINDS[0]), (whole, KINDS[1])):
    kpops.plot.effective_rank(result.sel(kind=kind, drop=True), ax)
    ax.set_title(f"effective rank: {kind}")
reduced.get_legend().remove()
for name, colour in zip(OPERATORS, ["#0072B2", "#D55E00", "#009E73"], strict=False):
    for position, style in ((0, ":"), (-1, "-")):
        at = result.isel(step=position).sel(operator=name)
        share = (at.eigenvalue / at.eigenvalue[0]).assign_attrs(long_name="eigenvalue / largest")
        look = {"color": colour, "linestyle": style, "marker": ""}
        kpops.plot.spectrum(share, spectra, label=f"{name}, step {int(at.step)}", **look)
_ = spectra.set(ylim=(1e-7, 2), title="spectra over time")

# %%
# The fourth line of the lower panels is the dimension of the trajectories themselves, by the same
# two definitions for the matrix of all states. By the variance it moves the other way. While the
# operator loses dimensions, the states occupy more, since the angles have to be kept apart. What a
# network does, and how it responds to a push, are different questions.
#
# The spectra over time (upper right) explain the ranks. At the first step that of :math:`P P^{*}`
# is almost flat; at the last it decays like the others.

if output is not None:
    output.mkdir(parents=True, exist_ok=True)
    stem = output / "dynamic_collapse"
    result.to_zarr(stem.with_suffix(".zarr"), mode="w", consolidated=False)
    fig.savefig(stem.with_suffix(".png"), dpi=150)
    print(f"\nsaved {stem}.zarr and {stem}.png")
