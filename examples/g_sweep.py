r"""
The scale of the recurrent weights
==================================

How strong should recurrent weights be before training? The KPFlow paper multiplies PyTorch's own
weights, uniform between :math:`\pm 1/\sqrt{N}` for :math:`N` units, by a factor :math:`g`. It
reports that with larger :math:`g` the rank of :math:`K` is higher, that learning collapses it less,
and that learning is faster. This example sweeps :math:`g` in tanh RNNs of 64 units on Memory-Pro:
first without training, where several seeds cost little, then over the training of four networks.
"""

import functools
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from networks import GALLERY, TASKS, trained

import kpops
from kpops.plot.style import COLOURS

task = TASKS["memory_pro"](20, angles="even", noise=0)
measure = functools.partial(kpops.collapse, num_modes=0, rng=0)

# %%
# Before training
# ---------------
#
# A :class:`kpops.Study` computes a measure at every point of a grid, here of scales and seeds, and
# keeps each result in a folder as soon as it is there. Name a folder of your own, and a sweep that
# is interrupted goes on where it was. ``study.run(executor)`` computes the same numbers on several
# processes or on a cluster: see :doc:`/studies`.
#
# :func:`kpops.models.initialize_recurrent` draws the recurrent weights of a module in place.
# Replace ``torch.nn.RNN`` by your own module. With this :math:`g` the spectral radius is about
# :math:`g/\sqrt{3}`, so a network at rest loses its stability at :math:`g = 1.73` and not at 1.
# Another definition of :math:`g` is also common, so it is best to report the radius.
#
# :func:`kpops.collapse` computes effective ranks by two definitions, of :math:`K`, of :math:`P` (as
# :math:`P P^{*}`), of the flow operator and of the trajectories. The *variance* rank is that of the
# operator reduced to functions of time, as in the paper's figures. The *participation* ratio is
# that of the whole operator on trials, times and units.


def untrained(g, seed):
    """Effective ranks of an untrained network, and its spectral radius."""
    torch.manual_seed(seed)
    rnn = torch.nn.RNN(3, 64, batch_first=True)
    kpops.models.initialize_recurrent(rnn, g, distribution="uniform", rng=seed)
    radius = kpops.models.spectral_radius(rnn).squeeze("parameter", drop=True)
    return measure(kpops.linearize(rnn, task.inputs)).assign(spectral_radius=radius)


scales = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
store = tempfile.mkdtemp(suffix=".zarr")
study = kpops.Study(store, untrained, g=scales, seed=range(3))
study.run(progress=False)
sweep = study.open()
radius = sweep.spectral_radius.mean("seed")
print("g     " + "".join(f"{g:10g}" for g in scales))
print("radius" + "".join(f"{r:10.2f}" for r in radius.values))
for kind in sweep.kind.values:
    print(f"\n{kind}, mean over seeds")
    ranks = sweep.effective_rank.sel(kind=kind).mean("seed").transpose("operator", "g")
    print(ranks.to_pandas().astype(float).round(2).to_string())

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
for ax, kind in zip(axes, sweep.kind.values, strict=True):
    for name, colour in zip(("K", "P P*", "P K P*"), COLOURS, strict=False):
        ranks = sweep.effective_rank.sel(kind=kind, operator=name).transpose("g", "seed")
        ax.plot(scales, ranks, ".", color=colour, ms=4)
        ax.plot(scales, ranks.mean("seed"), color=colour, lw=1.2, label=name)
    ax.axvline(3**0.5, color="0.45", lw=0.8, ls=":")
    ax.set(yscale="log", xlabel="g", title=kind)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("effective rank")
axes[1].legend(frameon=False)

# %%
# Dots are seeds, lines are their means, and the dotted line marks where the rest state loses its
# stability. :math:`K` agrees with the paper: beyond that line its rank rises with :math:`g` by both
# definitions, since states driven by the network itself have more dimensions than the input (see
# the trajectories in the table). By the variance over time the seeds differ more than the scales
# do.
#
# :math:`P` behaves differently. With weak weights a push is forgotten where it was made, so
# :math:`P P^{*}` is close to the identity, with a rank in the tens of thousands. With strong
# weights pushes grow along a few directions, which soon outweigh all others. The propagator is then
# collapsed before any training, as it is elsewhere at the end of training
# (:doc:`dynamic_collapse`).
#
# Over training
# -------------
#
# Four networks with the same seed, trained for 600 iterations of Adam.

runs = [trained(training) for training in GALLERY["g"]]
print("g        radius before, after    loss, mean of the last 50 iterations")
for run in runs:
    radii = run.history.initial_spectral_radius.item(), run.history.spectral_radius.item()
    loss = float(run.history.loss[-50:].mean())
    print(f"{run.training.g:<8} {radii[0]:.2f}, {radii[1]:.2f}              {loss:.3f}")

followed = xr.concat(
    [kpops.over_training(run.network, run.folder, task.inputs, measure) for run in runs],
    xr.Variable("g", [run.training.g for run in runs]),
    combine_attrs="drop_conflicts",
)
loss = xr.concat([run.history.loss for run in runs], followed.g).rolling(step=20).mean()
fig, axes = plt.subplots(1, 4, figsize=(11, 2.6), layout="constrained")
kpops.plot.over_training(loss.transpose("step", "g"), axes[0], lw=1.2, marker="")
axes[0].set(title="loss", ylabel="mean of 20 iterations", ylim=(0, 0.4))
for ax, name in zip(axes[1:], ("K", "P P*", "P K P*"), strict=True):
    ranks = followed.effective_rank.sel(operator=name, kind="participation")
    kpops.plot.effective_rank(ranks.transpose("step", "g"), ax, log=True, lw=1.2)
    decades = np.log10([ranks.min(), ranks.max()])
    ax.set_ylim(10 ** np.floor(decades[0]), 10 ** np.ceil(decades[1]))
    ax.set(title=f"${name.replace('*', '^*')}$", ylabel="")
for ax in axes[:-1]:
    ax.get_legend().remove()
axes[1].set_ylabel("participation ratio")
axes[-1].get_legend().set_title("g")
plt.show()

# %%
# *Speed.* The networks with small :math:`g` are still on the plateau at the end. They fixate and
# have not begun to respond. The network with :math:`g = 2` is the first to leave the plateau. That
# with :math:`g = 3`, whose loss is the largest at first, also goes below it. As far as four
# networks can show, strong weights learn faster.
#
# *Stability.* But the network with :math:`g = 2` loses all that it had learned within a few
# iterations, and its operators show how: the rank of :math:`P P^{*}` jumps up by orders of
# magnitude, a collapse in reverse. The network now forgets, though its spectral radius is larger
# than before. The radius describes the network at rest, while :math:`P` contains the gains of the
# units along the trajectories.
#
# *Collapse.* These networks cannot show whether larger :math:`g` means less collapse. Where
# :math:`P` begins with many dimensions, the network did not learn; where the network learned,
# :math:`P` had few dimensions from the beginning. The question requires longer training, several
# seeds and larger networks: those of the page :doc:`claims`.
