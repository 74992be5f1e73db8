"""
A first tour
============

One small GRU, before and after it has learned to keep an angle in memory, and one look through each
window that kpops has: the operators, a product, spectra, effective ranks, eigenfunctions, and the
way of a gradient step. To look at a network of your own, replace ``networks`` and ``task`` below; a
module and an array of shape (trial, time, feature) are all that is needed.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from networks import GALLERY, trained

import kpops

[run] = [trained(training) for training in GALLERY["collapse"]]
networks = {"untrained": run.training.network(), "trained": run.network}  # put your model here
task = kpops.tasks.memory_pro(20, angles="even", noise=0)

# %%
# Linearise
# ---------
#
# An operator belongs to the trajectories about which the network is linearised, so there must be
# inputs. Here they are the trials of Memory-Pro: thirty steps of a stimulus at one of twenty
# angles, thirty steps of nothing, thirty steps in which the angle is to be told.
# :func:`kpops.linearize` runs the network through them once. What it returns is a snapshot; the
# network is left as it was.

lins = {name: kpops.linearize(network, task.inputs) for name, network in networks.items()}
print(lins["trained"])

# %%
# The last lines say how products will be computed. A GRU is a *gated* cell (affine maps, then
# functions that act unit by unit), so no matrix of derivatives is ever stored, and memory grows
# with the units and not with their square.
#
# The operators, and what each of them answers
# --------------------------------------------
#
# All act on perturbations of the trajectories, one number for each trial, time and unit.
#
# - :math:`P`: if every state were pushed a little, how far off would the trajectories be?
# - :math:`P^{*}`: how much would a loss change by a push, with all that follows from it? This is
#   backpropagation through time.
# - :math:`J`: if the weights change, how is every single step pushed?
# - :math:`K = J J^{*}`: which pushes can weights make, that all steps share?
# - :math:`P K P^{*}`: which changes of the trajectories can gradient descent make, and how fast?

lin = lins["trained"]
for op in (lin.P, lin.P.H, lin.J, lin.K, lin.flow):
    print(op)

# %%
# As matrices they would have :math:`115{,}200^2` entries. They are never made: an operator is what
# it does to a vector. :doc:`/concepts` has the definitions.
#
# One product
# -----------
#
# Push the states of all trials in one random direction, in the middle of the stimulus, and see what
# becomes of it. An operator takes tensors, NumPy arrays and labelled arrays, and gives back the
# kind that it got; with labels, "the response in the memory epoch" is an expression.

direction = np.random.default_rng(0).standard_normal(lin.space.sizes["unit"]).astype("float32")
push = xr.zeros_like(lin.states)
push.loc[{"time": 15}] = direction / np.linalg.norm(direction)

colours = {"untrained": "#0072B2", "trained": "#D55E00"}
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for name, each in lins.items():
    response = each.P @ push
    size = np.sqrt((response**2).sum("unit")).sel(time=slice(15, None))
    for trial in size:
        ax.semilogy(trial.time, trial, color=colours[name], linewidth=0.6)
    ax.plot([], color=colours[name], label=name)
    in_memory = float(size.sel(time=size.epoch == "memory").mean())
    print(f"{name:9}: a push of size 1 has size {in_memory:.2g} in the memory epoch")
for end in (30.5, 60.5):
    ax.axvline(end, color="0.5", linestyle=":", linewidth=0.8)
ax.set(xlabel="time", ylabel="size of the response", ylim=(1e-6, 10), title="a push at time 15")
_ = ax.legend(frameon=False)

# %%
# A line for each trial; dotted lines part the epochs. The untrained network has lost nearly all of
# the push before the stimulus ends. The trained one carries a part of it through the whole trial,
# more of it for some angles than for others, and most where it has to begin its response.
#
# Spectra
# -------
#
# Three functions, for three kinds of operator. :func:`kpops.eigvalsh` finds *all* eigenvalues where
# the structure of the operator allows it: :math:`K` of a gated layer couples no two units, so its
# spectrum is that of a small matrix for each unit. :func:`kpops.svds` finds leading singular values
# and :func:`kpops.eigsh` leading eigenvalues by products alone, and each mode comes with its
# residual. Seeds are arguments (``rng``), and the same seed gives the same numbers.

modes = {name: kpops.eigsh(each.flow, k=40, rng=0) for name, each in lins.items()}
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for name, each in lins.items():
    spectra = (kpops.eigvalsh(each.K), kpops.svds(each.P, k=40, rng=0), modes[name])
    for ax, spectrum, op in zip(axes, spectra, (each.K, each.P, each.flow), strict=True):
        values = spectrum.get("singular_value", spectrum.get("eigenvalue"))
        kpops.plot.spectrum(values, ax, label=name, color=colours[name], marker=".")
        ax.set_title(op.symbol)
        ax.get_legend().remove()
axes[0].set(xlim=(0.7, 5000), ylim=(1e-2, 3e4))
_ = axes[0].legend(frameon=False)

# %%
# The steps in the spectrum of the untrained :math:`K` are no accident: the same few patterns of
# activity feed all units, and each of the 64 has weights of its own to make use of them, so that
# eigenvalues come in groups of 64 and multiples of it. The singular values of the untrained
# :math:`P` are nearly all alike, a push and its short echo; after training they are tens of times
# larger and fall off. In :math:`P K P^{*}` one mode comes to stand above all others: a change of
# the trajectories that gradient descent now makes far more easily than any other.
#
# Effective ranks
# ---------------
#
# How many dims does an operator use? :func:`kpops.effective_rank` wants to be told by which of five
# definitions (:ref:`which-rank`, and the example :doc:`which_effective_rank`). The participation
# ratio :math:`(\operatorname{tr} G)^2 / \operatorname{tr} G^2` is one that needs no spectrum, only
# products with random vectors. Such an estimate comes with its standard error; that of :math:`K` is
# exact, from its structure.

ranks = {
    (op.symbol, name): kpops.effective_rank(op, "participation", num_matvecs=64, rng=0)
    for name, each in lins.items()
    for op in (each.K, each.P, each.flow)
}
for (symbol, name), rank in ranks.items():
    print(
        f"{symbol:6} {name:9} {float(rank.estimate):9.1f} +- {float(rank.stderr):4.1f} "
        f"of {lin.space.size}, {rank.method}"
    )

# %%
# The untrained :math:`P` spreads over half of all dims and the trained one over about a hundred.
# That is the collapse that the example :doc:`dynamic_collapse` follows through training.
#
# Eigenfunctions
# --------------
#
# An eigenfunction of :math:`P K P^{*}` is a field over trials, times and units that learning moves
# as a whole. Here are two of the trained network's, each at the unit where it is strongest: above,
# trial (that is, angle) against time; below, the courses of the twelve strongest trials.

axes = kpops.plot.eigenfunctions(modes["trained"], 2)

# %%
# Both live where the memory ends and the response begins. The first has one sign for all angles: it
# would shift *when* the response starts. The second has one sign for some angles and the other for
# their opposites, so it would shift *what* is told. What the network still learns easily is a
# matter of the one moment at which it is late.
#
# What a gradient step does
# -------------------------
#
# The network has a readout, so with targets there is a loss, and :func:`kpops.gradient_flow` goes
# the way of a gradient step through the operators:
#
# .. math::
#
#    \mathrm{Err} \xrightarrow{P^{*}} \text{adjoint} \xrightarrow{J^{*}} \text{parameter step}
#    \xrightarrow{J} \text{forcing} \xrightarrow{P} \text{state change}.

stations = ("error", "adjoint", "forcing", "state_change")
fig, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained", sharey=True)
for name, each in lins.items():
    flow = kpops.gradient_flow(each, task.targets)
    for ax, station in zip(axes, stations, strict=True):
        size = np.sqrt((flow[station] ** 2).mean(("trial", "unit")))
        ax.plot(size.time, size / size.max(), color=colours[name], label=name)
        ax.set(title=station.replace("_", " "), xlabel="time", ylim=(0, 1.05))
    square = flow.parameter_step**2
    share = (square.groupby("parameter_name").sum() / square.sum()).to_series()
    print(f"{name:9}: " + ", ".join(f"{weight} {part:.2f}" for weight, part in share.items()))
axes[0].set_ylabel("root mean square / largest")
_ = axes[0].legend(frameon=False, loc="center left")

# %%
# The untrained network is wrong everywhere, and so is everything that follows. The trained one is
# wrong at one moment, when it should begin its response (first panel). The adjoint blames every
# step up to there (second). The weights are shared by all steps, so the forcing is again everywhere
# (third), and the state change that comes of it is largest where the error was, with a tail behind
# and before that nobody asked for (fourth). The numbers are the shares of the weights in the
# squared step: biases and inputs at first, the recurrent weights at the end.
#
# Where to go from here: :doc:`your_own_cell` for models that PyTorch does not have,
# :doc:`results_with_xarray` for saving all of this, and :doc:`/spectra` for what a residual or a
# standard error promises.
