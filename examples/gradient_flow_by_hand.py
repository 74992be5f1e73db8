r"""
Gradient flow by hand
=====================

A step of gradient descent changes the weights so that the loss falls. What does it do to the
trajectories? The answer in Proposition 1 of the KPFlow paper is a product of operators,

.. math:: \delta h = -\eta\, P K P^{*}\, \mathrm{Err} + O(\eta^2), \qquad K = J J^{*},

to be read from the right. :math:`P^{*}` carries the error of every state back through time,
:math:`J^{*}` turns it into a change of the weights, :math:`J` turns that into a push at every step,
and :math:`P` carries the pushes forward through time. Here we take these steps one by one. We
compare the result with :func:`kpops.gradient_flow`, with autograd and with the true change of the
network, and measure how the error of the prediction depends on the learning rate.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import kpops

# %%
# We take a network and some trials, and linearise the network about its trajectories. Everything is
# in double precision, to separate identities from approximations. Replace ``network`` by your own
# model: a recurrent layer with a readout, or any cell (then pass ``readout=`` to
# :func:`kpops.linearize`).

torch.manual_seed(0)
network = kpops.Network(torch.nn.GRU(3, 64, batch_first=True), torch.nn.Linear(64, 3)).double()
task = kpops.tasks.memory_pro(20, rng=0, dtype="float64")
lin = kpops.linearize(network, task.inputs)
print(lin)

# %%
# The steps
# ---------
#
# The loss is the mean of the squared error over trials, time and outputs. Its derivative with
# respect to the outputs is easy. ``lin.C`` is the linearised readout, and its adjoint takes the
# derivative to the states. The result is Err: the derivative of the loss with respect to one state
# alone, with no later effects.

difference = lin.outputs - task.targets
error = lin.C.H @ (2 * difference / difference.size)

# %%
# Then apply the four operators. Labelled arrays give labelled arrays, with dimensions (trial, time,
# unit); the gradient is one vector of all recurrent weights and biases.

adjoint = lin.P.H @ error  # backpropagation through time
gradient = lin.J.H @ adjoint
forcing = lin.J @ -gradient  # the push of every single step, per learning rate
change = lin.P @ forcing  # the change of the trajectory

# %%
# :func:`kpops.gradient_flow` returns the same stages with their labels, and ``lin.flow`` is the
# whole chain as one operator. The gradient equals that of autograd, which is computed in an
# entirely different way.

flow = kpops.gradient_flow(lin, task.targets)
inputs, targets = (torch.from_numpy(task[name].values) for name in ("inputs", "targets"))
loss = torch.nn.functional.mse_loss(network(inputs), targets)
of_autograd = torch.autograd.grad(loss, list(network.recurrent.parameters()))
of_autograd = torch.cat([g.flatten() for g in of_autograd]).numpy()


def distance(a, b):
    """Relative difference in norm."""
    return float(np.linalg.norm(np.ravel(a - b)) / np.linalg.norm(np.ravel(b)))


print(f"state change, by hand and by gradient_flow:   {distance(change, flow.state_change):.0e}")
print(f"state change, by hand and by lin.flow:        {distance(change, -(lin.flow @ error)):.0e}")
print(f"gradient, by hand and by autograd:            {distance(gradient, of_autograd):.0e}")

# %%
# Where in the trial does it happen? Here is the root mean square of every stage over trials and
# units, with the symbols of the theory; dotted lines separate the epochs.

stations = {
    "error": r"$\mathrm{Err}$",
    "adjoint": r"$P^{*}\,\mathrm{Err}$",
    "forcing": r"$J\,\delta\theta$",
    "state_change": r"$\delta h = P J\,\delta\theta$",
}
epoch = task.epoch.values
starts = task.time.values[1:][epoch[1:] != epoch[:-1]] - 0.5
fig, axes = plt.subplots(1, 4, figsize=(8.5, 2.1), layout="constrained")
fig.get_layout_engine().set(wspace=0.1)
for ax, (name, symbol) in zip(axes, stations.items(), strict=True):
    size = np.sqrt((flow[name] ** 2).mean(("trial", "unit")))
    ax.plot(size.time, size, color="black", lw=1.2)
    for start in starts:
        ax.axvline(start, color="0.45", lw=0.6, ls=":")
    ax.set_ylim(0, 1.1 * float(size.max()))
    ax.ticklabel_format(axis="y", scilimits=(0, 0))
    ax.set_xlabel("time")
    ax.set_title(f"{name.replace('_', ' ')}\n{symbol}", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
_ = axes[0].set_ylabel("root mean square")

# %%
# The error is constant until the response, where the target changes. The adjoint of a step sums the
# errors that are still to come, as far as this untrained network propagates a push. Before the
# response it dips, because the later errors point elsewhere than those of the delay; at the end no
# errors remain. The forcing follows neither. All steps share the weights, so a change that one step
# requires pushes all others with similar features, and more strongly where the fixation input is
# on. The state change is the accumulated effect of these pushes.
#
# How good is the prediction?
# ---------------------------
#
# Now train, by twenty steps of stochastic gradient descent, each on a minibatch of new trials.
# Before each step we predict the state change of its trials, and take the step at several learning
# rates to measure the true change. (The readout learns, too. It does not influence the states, so
# the prediction does not involve it.)

rates = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
training_rate = 0.3


def after_step(network, rate, inputs, targets):
    """Take a step of SGD; return the network after it, and the change of its states."""
    network = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    states, _ = network.recurrent(inputs)
    torch.nn.functional.mse_loss(network.readout(states), targets).backward()
    optimizer.step()
    with torch.no_grad():
        return network, (network.recurrent(inputs)[0] - states).numpy()


rows, losses, lengths = [], [], []
for seed in range(1, 21):
    task = kpops.tasks.memory_pro(20, rng=seed, dtype="float64")
    inputs, targets = (torch.from_numpy(task[name].values) for name in ("inputs", "targets"))
    flow = kpops.gradient_flow(kpops.linearize(network, task.inputs), task.targets)
    predicted = flow.state_change.values
    real = (after_step(network, rate, inputs, targets)[1] for rate in rates)
    rows.append([distance(rate * predicted, dh) for rate, dh in zip(rates, real, strict=True)])
    losses.append(float(flow.loss))
    lengths.append(np.linalg.norm(flow.parameter_step))
    network, _ = after_step(network, training_rate, inputs, targets)

gap = xr.DataArray(rows, {"step": range(20), "rate": rates}, name="gap")
slope = np.log10(gap.sel(rate=0.1) / gap.sel(rate=0.01))
slope.attrs["long_name"] = "order in the learning rate"
print("learning rate    relative error at the first step, and at the last")
for rate, first, last in zip(rates, gap[0].values, gap[-1].values, strict=True):
    print(f"{rate:13g}    {first:8.1e}  {last:8.1e}")
print(f"order of the error in the rate: {float(slope.min()):.3f} to {float(slope.max()):.3f}")
print(f"loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
print(f"norm of the gradient: {lengths[0]:.3f} at the first step, {lengths[-1]:.3f} at the last")

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
colours = plt.cm.ScalarMappable(plt.Normalize(0, 19), "viridis")
for step, row in enumerate(gap.values):
    left.loglog(rates, row, ".-", color=colours.to_rgba(step), lw=0.8)
left.loglog(rates, 2 * gap[0, 0].item() / rates[0] * rates, "k--", lw=1, label="proportional")
left.set(xlabel=r"learning rate $\eta$", ylabel="relative error of the prediction")
left.legend(frameon=False)
left.spines[["top", "right"]].set_visible(False)
fig.colorbar(colours, ax=left, label="training iteration", ticks=[0, 5, 10, 15])
kpops.plot.over_training(slope, right, color="black", marker=".", lw=0.8)
right.set(ylim=(0.9, 1.1), xticks=range(0, 20, 5))

plt.show()

# %%
# The error of the prediction is proportional to the learning rate at each of the twenty steps, as
# expected for a second-order remainder: the order measured between the rates 0.01 and 0.1 is one
# within a few thousandths. Proposition 1 is thus a statement about small steps, and the figure
# shows what is small. The prediction is within a few per cent up to a rate of 1, which is not a
# small rate; beyond it, the first steps of training leave the straight line. What counts is the
# length of the step, :math:`\eta\,|\nabla L|`, so the predictions improve as the gradient shrinks.
#
# All this concerns plain gradient descent. Adam takes another step, but the rest of the chain is
# the same: ``lin.J @ step`` is its forcing and ``lin.sensitivity @ step`` its state change.
