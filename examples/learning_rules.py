r"""
What other learning rules can learn
===================================

Gradient descent moves the trajectories by :math:`-\eta\, P K P^{*} \mathrm{Err}`. Other rules
replace one factor of this operator: truncated backpropagation shortens :math:`P^{*}`, and random
feedback brings the error back by weights that have nothing to do with the network. Here we compare
what they would do to the same network, what they do to networks of their own, and who learns.

The task is a short Memory-Pro: ten steps of stimulus, twenty of memory, ten of response.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from torch import nn

import kpops

STEPS = (10, 20, 10)
trials = kpops.tasks.memory_pro(400, steps=STEPS, rng=0)
task = kpops.tasks.memory_pro(16, steps=STEPS, angles="even", noise=0)
feedback = torch.randn(32, 3, generator=torch.Generator().manual_seed(1)) / 32**0.5

# %%
# Training, by any of four rules
# ------------------------------
#
# In PyTorch the rules are small changes of the forward pass. The state is detached every so many
# steps, or the readout has other weights on the way back.


class Readout(torch.autograd.Function):
    """A linear map that sends errors back by the fixed weights `feedback`."""

    @staticmethod
    def forward(ctx, states, weight):
        """Outputs."""
        ctx.save_for_backward(states)
        return states @ weight.T

    @staticmethod
    def backward(ctx, error):
        """Errors of the states, and the gradient of the weights, which is exact."""
        (states,) = ctx.saved_tensors
        return error @ feedback.T, error.flatten(0, 1).T @ states.flatten(0, 1)


def outputs_of(network, inputs, steps, random):
    """The network's outputs, with the state detached every `steps` steps, if that is a number."""
    hidden, pieces = None, []
    for piece in inputs.split(steps or inputs.shape[1], 1):
        states, hidden = network.recurrent(piece, hidden)
        hidden = hidden.detach()
        pieces.append(states)
    states = torch.cat(pieces, 1)
    if random:
        return Readout.apply(states, network.readout.weight) + network.readout.bias
    return network.readout(states)


def train(steps=None, random=False, n_iterations=600):
    """Train a GRU; return the network, its checkpoints and the losses."""
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 32, batch_first=True), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    inputs, targets = (torch.from_numpy(trials[k].values) for k in ("inputs", "targets"))
    drawn = torch.Generator().manual_seed(0)
    checkpoints, losses = [], []
    for iteration in range(n_iterations + 1):
        if iteration % 10 == 0:
            checkpoints.append((iteration, copy.deepcopy(network.state_dict())))
        batch = torch.randint(len(inputs), (50,), generator=drawn)
        loss = (outputs_of(network, inputs[batch], steps, random) - targets[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return network, checkpoints, np.array(losses)


threads = torch.get_num_threads()
torch.set_num_threads(1)  # the matrices are small
RUNS = {
    "gradient descent": train(),
    "detached every 10 steps": train(steps=10),
    "detached every step": train(steps=1),
    "output feedback": train(random=True),
}
torch.set_num_threads(threads)

# %%
# The same step, by other rules
# -----------------------------
#
# :func:`kpops.learning_rule` returns the operator R of :math:`dh = -\eta R\, \mathrm{Err}`. It
# acts, and has spectra, like any other. For one linearization we take R of each
# rule, and compare the step that it would make with that of gradient descent, by the cosine of the
# changes of the trajectories. It is taken along the training by gradient descent, and for the rules
# with networks of their own also along those.

RULES = {
    "gradient descent": ("gradient descent", {}),
    "detached every 10 steps": ("detached bptt", {"steps": 10}),
    "detached every step": ("detached bptt", {"steps": 1}),
    "output feedback": ("output feedback", {"weights": feedback}),
    "feedback alignment": ("feedback alignment", {"weights": feedback, "rng": 0}),
    "functional gradient": ("functional gradient", {}),
}
OTHERS = list(RULES)[1:]
COLOURS = ("black", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73")
COLOURS = dict(zip(RULES, COLOURS, strict=True))


def change_by(rule, lin, flow):
    """The change of the states by a rule, per learning rate."""
    name, options = RULES[rule]
    operator = kpops.learning_rule(lin, name, **options)
    return -(operator @ (flow.error if operator.domain == lin.space else flow.output_error))


def cosines(lin):
    """Cosines of the steps of other rules with the step of gradient descent."""
    flow = kpops.gradient_flow(lin, task.targets)
    changes = {rule: change_by(rule, lin, flow) for rule in OTHERS}
    return {
        rule: float(xr.dot(flow.state_change, change))
        / float(np.sqrt(xr.dot(flow.state_change, flow.state_change) * xr.dot(change, change)))
        for rule, change in changes.items()
    }


along = {
    rule: kpops.over_training(network, checkpoints[::5], task.inputs, cosines)
    for rule, (network, checkpoints, _) in RUNS.items()
}

fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for rule, (*_, losses) in RUNS.items():
    smooth = np.convolve(losses, np.ones(20) / 20, "valid")
    axes[0].plot(smooth, color=COLOURS[rule], lw=1)
for rule in OTHERS:
    found = along["gradient descent"]
    axes[1].plot(found.step, found[rule], color=COLOURS[rule], marker=".", lw=1)
    if rule in RUNS:
        axes[2].plot(found.step, along[rule][rule], color=COLOURS[rule], marker=".", lw=1)
axes[0].set(yscale="log", ylabel="loss", title="trained by the rule")
axes[1].set(ylabel="cosine with gradient descent", title="in the network of\ngradient descent")
axes[2].set(title="in the rule's\nown network")
for ax in axes:
    ax.set(xlabel="iteration")
    ax.spines[["top", "right"]].set_visible(False)
for ax in axes[1:]:
    ax.set(ylim=(-1.05, 1.05))
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
handles = [plt.Line2D([], [], color=colour, label=rule) for rule, colour in COLOURS.items()]
fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
print("loss of the last 20 iterations")
for rule, (*_, losses) in RUNS.items():
    print(f"{rule:24} {losses[-20:].mean():.4f}")

# %%
# Gradient descent learns the task within 600 iterations, and so does output feedback, sooner. The
# two rules that detach the state do not.
#
# The middle panel does not tell who learns. In the network that gradient descent trains, the step
# that sees no past at all is the closest to that of gradient descent for most of the time: what the
# memory is made of is a small part of the step. And the step by random feedback is orthogonal to
# it, or even opposite.
#
# The right panel tells why it learns nevertheless. In its own network, the readout comes to agree
# with the feedback, and from iteration 350 on both rules make almost the same step (cosine 0.98 or
# more). This is feedback alignment (Lillicrap et al. 2016): the rule does not approximate gradient
# descent in a given network, it makes a network in which it does. For the rules that detach the
# state, a high cosine is no such sign: what they leave out is small in every step, and decides.
#
# Which changes a rule can make
# -----------------------------
#
# Where spectra of R fall off fast, few changes of the trajectories are within reach. And the
# leading modes of :math:`P K P^{*}` hold almost all that gradient descent does as it learns (see
# :doc:`truncated_flow`). How much of the changes by other rules do they hold?

network, checkpoints, _ = RUNS["gradient descent"]
moments = {"before training": 0, "as it learns": 350}
fig, axes = plt.subplots(2, 2, figsize=(7, 5), layout="constrained", sharex=True, sharey="row")
for (title, step), (upper, lower) in zip(moments.items(), axes.T, strict=True):
    network.load_state_dict(dict(checkpoints)[step])
    lin = kpops.linearize(network, task.inputs)
    flow = kpops.gradient_flow(lin, task.targets)
    modes = kpops.eigsh(lin.flow, 24, rng=0)
    for rule, (name, options) in RULES.items():
        operator = kpops.learning_rule(lin, name, **options)
        found = kpops.svds(operator, 24, rng=0)
        upper.plot(found.mode, found.singular_value / found.singular_value[0], color=COLOURS[rule])
        change = change_by(rule, lin, flow)
        inside = xr.dot(modes.eigenfunction, change, dim=("trial", "time", "unit")) ** 2
        captured = inside.cumsum("mode") / xr.dot(change, change)
        lower.plot(found.mode, captured, color=COLOURS[rule])
    upper.set(yscale="log", title=f"{title}, iteration {step}")
    lower.set(xlabel="mode", ylim=(0, 1.04))
axes[0, 0].set_ylabel("singular value of R,\nover the largest")
axes[1, 0].set_ylabel("fraction of the change\nin modes of $P K P^*$")
for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)

# %%
# Rules with a shorter past have flatter spectra than gradient descent, since long paths through
# time are what makes a few changes large. The spectra with random feedback fall off fastest; their
# errors are of three outputs, not of 32 units, at every step.
#
# Before training, none of the steps lies in few modes. As the network learns, even the step that
# sees no past is to nine tenths in five modes of gradient descent, and that of feedback alignment
# in twenty: these modes are made by :math:`P` and :math:`K`, which all rules but one share. The
# exception is the functional gradient :math:`P P^{*}`, which pushes every step of every trial as
# the error demands. It shows what :math:`K`, the sharing of weights between steps and trials,
# forbids.
#
# How far do such operators explain training?
# -------------------------------------------
#
# An operator describes a small step. :func:`kpops.telescope` adds up the linearised changes
# :math:`P J\, d\theta` between checkpoints, by the real steps of the optimizer, and compares the
# sum with the change since the first checkpoint.

fig, ax = plt.subplots(figsize=(4.5, 2.6), layout="constrained")
for every, style in ((1, "-"), (5, "--")):
    summed = kpops.telescope(network, checkpoints[::every], task.inputs)
    label = f"a sum over every {10 * every} iterations"
    ax.plot(summed.step, summed.output_relative_error, "k" + style, label=label)
ax.set(xlabel="iteration", ylabel="relative error of the\nchange of the outputs", ylim=(0, None))
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Ten iterations of Adam at a time, the linearised steps explain all but about 15 % of the change of
# the outputs; fifty at a time, all but 37 %, and the error jumps where the memory forms.
