"""
A first tour
============

This tour looks at one small GRU, before and after it has learned to keep an angle in memory,
through each tool that kpops offers: the operators, a matvec, spectra, effective ranks,
eigenfunctions, and the path of a gradient step. To look at a network of your own, replace
``networks`` and ``task`` below. You need only a module and an array of shape (trial, time,
feature).
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
# An operator belongs to the trajectories about which the network is linearised, so inputs are
# needed. Here they are the trials of Memory-Pro: thirty steps of a stimulus at one of twenty
# angles, thirty steps of nothing, and thirty steps in which the network reports the angle.
# :func:`kpops.linearize` runs the network through them once. It returns a snapshot; the network
# does not change.

lins = {name: kpops.linearize(network, task.inputs) for name, network in networks.items()}
print(lins["trained"])

# %%
# The last lines show how matvecs are computed. A GRU is a *gated* cell (affine maps, then functions
# that act unit by unit). So no matrix of derivatives is ever stored, and memory grows with the
# number of units, not with its square.
#
# The operators, and the question each answers
# --------------------------------------------
#
# All act on perturbations of the trajectories: one number for each trial, time and unit.
#
# - :math:`P`: if every state were pushed a little, how far would the trajectories deviate?
# - :math:`P^{*}`: how much would a push change a loss, including all its later effects? This is
#   backpropagation through time.
# - :math:`J`: if the weights change, how is every single step pushed?
# - :math:`K = J J^{*}`: which pushes can the weights make, which all steps share?
# - :math:`P K P^{*}`: which changes of the trajectories can gradient descent make, and how fast?

lin = lins["trained"]
for op in (lin.P, lin.P.H, lin.J, lin.K, lin.flow):
    print(op)

# %%
# As matrices they would have :math:`115{,}200^2` entries. kpops never forms them: an operator is
# defined by its action on a vector. :doc:`/concepts` has the definitions.
#
# One matvec
# ----------
#
# Push the states of all trials in one random direction, in the middle of the stimulus, and observe
# the response. An operator takes tensors, NumPy arrays and labelled arrays, and returns the kind it
# was given. With labels, "the response in the memory epoch" is an expression.

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
# Each line is a trial; dotted lines separate the epochs. The untrained network has lost nearly all
# of the push before the stimulus ends. The trained network carries a part of it through the whole
# trial, more for some angles than for others, and most where it has to begin its response.
#
# Spectra
# -------
#
# There are three functions, for three kinds of operator. :func:`kpops.eigvalsh` finds *all*
# eigenvalues where the structure of the operator allows it: :math:`K` of a gated layer does not
# couple units, so its spectrum is that of one small matrix per unit. :func:`kpops.svds` finds
# leading singular values and :func:`kpops.eigsh` leading eigenvalues from matvecs alone, and each
# mode comes with its residual. Pass a seed as ``rng``: the same seed gives the same numbers.

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
# The steps in the spectrum of the untrained :math:`K` have a reason. The same few patterns of
# activity feed all units, and each of the 64 units has its own weights to use them, so eigenvalues
# come in groups of 64 and multiples of 64. The singular values of the untrained :math:`P` are
# nearly all alike: a push and its short echo. After training they are tens of times larger and
# decay. In :math:`P K P^{*}` one mode comes to dominate all others: a change of the trajectories
# that gradient descent now makes far more easily than any other.
#
# Effective ranks
# ---------------
#
# How many dimensions does an operator use? :func:`kpops.effective_rank` takes one of five
# definitions (:ref:`which-rank`, and the example :doc:`which_effective_rank`). The participation
# ratio :math:`(\operatorname{tr} G)^2 / \operatorname{tr} G^2` needs no spectrum, only matvecs with
# random vectors. The estimate comes with its standard error. That of :math:`K` is exact, from its
# structure.

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
# The untrained :math:`P` spreads over half of all dimensions, and the trained one over about a
# hundred. The example :doc:`dynamic_collapse` follows this collapse through training.
#
# Eigenfunctions
# --------------
#
# An eigenfunction of :math:`P K P^{*}` is a field over trials, times and units that learning moves
# as a whole. Here are two of the trained network, each at the unit where it is strongest. Above:
# trial (that is, angle) against time. Below: the time courses of the twelve strongest trials.

axes = kpops.plot.eigenfunctions(modes["trained"], 2)

# %%
# Both are concentrated where the memory ends and the response begins. The first has one sign for
# all angles: it would shift *when* the response starts. The second has one sign for some angles and
# the other sign for their opposites: it would shift *which angle* is reported. What the network
# still learns easily concerns the one moment at which it is late.
#
# What a gradient step does
# -------------------------
#
# The network has a readout, so with targets there is a loss. :func:`kpops.gradient_flow` follows a
# gradient step through the operators:
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
# wrong at one moment, when it should begin its response (first panel). The adjoint assigns blame to
# every step up to that moment (second). All steps share the weights, so the forcing is again
# everywhere (third). The resulting state change is largest where the error was, with tails before
# and after that the error did not call for (fourth). The numbers are the shares of the weights in
# the squared step: biases and inputs at first, the recurrent weights at the end.
#
# Continue with :doc:`your_own_cell` for models that PyTorch lacks, :doc:`results_with_xarray` for
# saving results, and :doc:`/spectra` for what a residual or a standard error guarantees.
