r"""
How many modes carry a gradient step
====================================

The flow operator :math:`P K P^{*} = \sum_i \lambda_i v_i v_i^{*}` maps the error of the states to
their change. With :math:`c_i = \langle v_i, \mathrm{Err} \rangle`, a gradient step moves the states
by :math:`-\sum_i \lambda_i c_i v_i` and reduces the loss by :math:`\sum_i \lambda_i c_i^2`, to
first order and per learning rate. Do a few modes do the work? This requires that few eigenvalues
are large, and that the error has a component along their modes. Here we truncate both sums after a
few modes, and follow through training how much of them remains.
"""

import matplotlib.pyplot as plt
import numpy as np
from networks import GALLERY, TASKS, trained

import kpops

# %%
# The network is a GRU of 64 units that has learned Memory-Pro. :func:`kpops.truncated_flow` finds
# the leading modes of the flow operator and what they carry; :func:`kpops.over_training` does so at
# every second checkpoint. Put your model here. For one network and its targets, call
# ``kpops.truncated_flow(kpops.linearize(network, inputs), targets)``.

[run] = [trained(training) for training in GALLERY["collapse"]]
task = TASKS["memory_pro"](20, angles="even", noise=0)
checkpoints = kpops.training.checkpoints(run.folder)[::2]


def measure(lin):
    """What the 16 leading modes carry."""
    return kpops.truncated_flow(lin, task.targets, k=16, rng=0)


carried = kpops.over_training(run.network, checkpoints, task.inputs, measure)
last = int(carried.step[-1])

# %%
# We look at four moments: before training; where a step gains least, on the plateau of a network
# that only fixates; where it gains most after that, as the memory forms; and at the end.

gain = carried.total_loss_decrease
flattest = int(gain.idxmin("step"))
steepest = int(gain.sel(step=slice(flattest, None)).idxmax("step"))
moments = {"before": 0, "on the plateau": flattest, "as it learns": steepest, "after": last}

for quantity in ("state_change", "loss_decrease"):
    print(f"\nfraction of the {quantity.replace('_', ' ')} that the leading modes carry")
    table = carried[f"{quantity}_captured"].sel(step=list(moments.values()), mode=[1, 2, 4, 8, 16])
    print(table.to_pandas().round(3).to_string())

fig, axes = plt.subplots(1, 4, figsize=(8.5, 2.3), sharey=True, layout="constrained")
for ax, (name, step) in zip(axes, moments.items(), strict=True):
    kpops.plot.captured(carried.sel(step=step), ax, markersize=3)
    ax.set_title(f"{name},\niteration {step}", fontsize=9)
    ax.set(xlabel="leading modes", xticks=[1, 4, 8, 12, 16])
    ax.label_outer()
    if ax is not axes[-1]:
        ax.get_legend().remove()

# %%
# Before training, no small set of modes carries the step. Sixteen carry less than half of the state
# change, and the first carries almost nothing: its eigenvalue is the largest, but the error has no
# component along it. As the network learns, one mode carries nearly all of the state change and
# most of the decrease of the loss. At the end it still carries the state change, but the decrease
# of the loss needs several more.
#
# Two things hold throughout. The loss decrease is spread over more modes than the state change,
# since its weights are :math:`\lambda_i c_i^2` and not :math:`\lambda_i^2 c_i^2`: the largest
# movement is not all that helps. And the error itself (green) lies almost entirely outside these
# modes. A step removes the small part of it that is easy to remove; the rest is removed later, or
# never.
#
# Over training
# -------------
#
# The change comes abruptly, when the loss leaves its plateau, and even slightly before. With the
# memory, the flow operator collapses onto the few modes that carry it (see
# :doc:`dynamic_collapse`).

shown = carried.sel(mode=[1, 4, 16]).transpose("step", "mode")
fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.5), layout="constrained")
kpops.plot.over_training(run.history.loss, axes[0], color="black", lw=0.7)
axes[0].set(yscale="log", ylabel="loss of the minibatch")
for ax, name in zip(axes[1:], ("state_change", "loss_decrease"), strict=True):
    kpops.plot.over_training(shown[f"{name}_captured"], ax)
    ax.set(ylim=(0, 1.04), ylabel=f"fraction of the {name.replace('_', ' ')}")
axes[1].get_legend().remove()
axes[2].get_legend().set_title("modes")

# %%
# A truncated operator
# --------------------
#
# :func:`kpops.truncate` makes an operator of the leading modes, which acts, adds and multiplies
# like any other. No operator of that rank is closer to the whole (Eckart and Young): the norm of
# the remainder of :math:`P K P^{*}` is its next eigenvalue.

run.network.load_state_dict(checkpoints[-1][1])
lin = kpops.linearize(run.network, task.inputs)
modes = kpops.eigsh(lin.flow, k=9, rng=0)
top = kpops.truncate(lin.flow, 8, modes=modes)
rest = kpops.spectral_norm(lin.flow - top, rng=0)
print(top)
print(f"norm of the remainder: {float(rest.estimate):.0f}, eigenvalue 9: {modes.eigenvalue[8]:.0f}")

# %%
# Use it in place of ``lin.flow`` wherever you want the effect of the leading modes. Here is the
# change of the states by a gradient step on the trained network, and the part of it in a few modes.

flow = kpops.gradient_flow(lin, task.targets)
fig, ax = plt.subplots(figsize=(4.5, 2.6), layout="constrained")
for k, colour in ((1, "#56B4E9"), (2, "#0072B2"), (8, "#D55E00")):
    change = -(kpops.truncate(lin.flow, k, modes=modes) @ flow.error)
    size = np.sqrt((change**2).mean(("trial", "unit")))
    ax.plot(size.time, size, color=colour, label=f"{k} mode{'s' * (k > 1)}")
size = np.sqrt((flow.state_change**2).mean(("trial", "unit")))
ax.plot(size.time, size, "k--", lw=1, label="all")
ax.set(xlabel="time", ylabel="state change\nper learning rate (rms)", ylim=(0, None))
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The step acts most where the memory ends and the response begins, the moment on which everything
# depends, and one mode alone has this effect. The other modes move the states during the response.
