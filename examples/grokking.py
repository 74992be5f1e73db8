r"""
Grokking, and the softmax that stops it
=======================================

A network that adds modulo a prime first learns its training pairs by heart. With weight decay it
generalises much later: it *groks*. Why not without? Prieto, Barsbey, Mediano and Birdal (2025)
found two reasons. Once all training pairs are right, gradient descent on the cross entropy mostly
scales up the logits, which changes no prediction: *naive loss minimisation*. And at some scale the
softmax of a sample is exactly one class in float32, so its gradient is zero: *softmax collapse*.
Then learning ends before the network generalises.

Both have remedies. StableMax replaces the exponential by a function that grows linearly, so that no
sum rounds to one. The other takes from each gradient its component along the weights. Here are
three trainings without weight decay, with the two numbers that tell them apart.
"""

import matplotlib.pyplot as plt
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.plot.style import COLOURS
from kpops.training import naive_loss_minimization, softmax_collapse

# %%
# The task: :math:`a + b` modulo 47, from the one-hot codes of both. Three quarters of all pairs are
# for training.

P, WIDTH, STEPS = 47, 128, 1000
a, b = (part.flatten() for part in torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij"))
pairs = torch.cat([nn.functional.one_hot(a, P), nn.functional.one_hot(b, P)], 1).float()
shuffled = torch.randperm(P * P, generator=torch.Generator().manual_seed(0))
train, test = shuffled.split([int(0.75 * P * P), P * P - int(0.75 * P * P)])
labels = (a + b) % P


def network():
    """Two hidden layers of rectified units, always the same at first."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(2 * P, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, P),
        )


def stablemax(logits, target):
    """Cross entropy with s(z) = z + 1 for z >= 0, and 1 / (1 - z) below, in place of exp(z)."""
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    shares = s / s.sum(-1, keepdim=True)
    return -shares.gather(-1, target[..., None]).log().mean()


def softmax(logits, target):
    """Cross entropy of the softmax."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())


def project(model):
    """Take from the gradient of each parameter its component along the parameter."""
    for w in model.parameters():
        w.grad -= (w.grad * w).sum() / (w * w).sum() * w


# %%
# The measures
# ------------
#
# :func:`kpops.training.softmax_collapse` takes the logits as they are.
# :func:`kpops.training.naive_loss_minimization` takes a linearization: a network without recurrence
# is a recurrence of one step, whose new state, the logits, does not depend on the old one.


class OneStep(nn.Module):
    """The network as a cell."""

    def __init__(self, model):
        super().__init__()
        self.model, self.hidden_size = model, P

    def forward(self, x, h):
        """Return the logits."""
        return self.model(x) + 0 * h


def measured(model, loss):
    """Accuracies, share of collapsed samples, and the cosine of a step with the weights."""
    with torch.no_grad():
        logits = model(pairs)
    right = logits.argmax(1) == labels
    lin = kpops.linearize(OneStep(model), pairs[train][:, None])
    along = naive_loss_minimization(lin, labels[train][:, None], loss)
    return xr.Dataset(
        {
            "training": right[train].float().mean().item(),
            "test": right[test].float().mean().item(),
            "collapsed": softmax_collapse(logits[train]).share,
            "cosine": along.cosine,
            "gradient": (along.gradient_norm**2).sum() ** 0.5,
        }
    )


def trained(loss, after=None):
    """Train by Adam, and measure every 50 steps."""
    model, results, steps = network(), [], range(0, STEPS + 1, 50)
    adam = torch.optim.Adam(model.parameters(), 1e-2, betas=(0.9, 0.98))
    for step in range(STEPS + 1):
        if step in steps:
            results.append(measured(model, loss))
        adam.zero_grad()
        loss(model(pairs[train]), labels[train]).backward()
        if after is not None:
            with torch.no_grad():
                after(model)
        adam.step()
    return xr.concat(results, xr.Variable("step", list(steps)))


runs = {
    "softmax": trained(softmax),
    "StableMax": trained(stablemax),
    "softmax, projected": trained(softmax, after=project),
}
print(f"after {STEPS} steps        training   test   collapsed   cosine   gradient")
for name, run in runs.items():
    last = run.isel(step=-1)
    collapsed = f"{float(last.collapsed):.2f}" if "softmax" in name else "-"
    print(
        f"{name:22} {float(last.training):9.2f} {float(last.test):6.2f} {collapsed:>11} "
        f"{float(last.cosine):8.2f} {float(last.gradient):10.0e}"
    )

fig, axes = plt.subplots(1, 4, figsize=(11, 2.6), layout="constrained")
for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
    axes[0].plot(run.step, run.training, color=colour, lw=0.8, ls=":")
    axes[0].plot(run.step, run.test, color=colour, lw=1.4, label=name)
    if "softmax" in name:
        axes[1].plot(run.step, run.collapsed, color=colour, lw=1.4)
    axes[2].plot(run.step, run.cosine, color=colour, lw=1.4)
    axes[3].semilogy(run.step, run.gradient, color=colour, lw=1.4)
axes[0].set(title="fraction correct", ylim=(-0.03, 1.03))
axes[1].set(title="collapsed softmax", ylim=(-0.03, 1.03))
axes[2].set(title="cosine with the weights")
axes[3].set(title="length of the gradient")
axes[1].legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper left")
for ax in axes:
    ax.set_xlabel("training step")
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Dotted lines are training pairs, solid ones test pairs. All three learn the training pairs within
# a hundred steps.
#
# *Softmax.* Most of each step then goes along the weights, and the gradient falls by orders of
# magnitude, until the softmax collapses on half of the pairs. The little that is left of the
# gradient no longer points along the weights, but it does not help either: the network does not
# generalise.
#
# *StableMax.* Steps go along the weights even more, and the gradient falls as fast. But no sample
# is lost to rounding, and the network begins to generalise.
#
# *Projection.* Without the component along the weights the logits cannot grow by scale alone. The
# gradient stays large, and this network generalises almost at once. (The cosine shown is that of
# the gradient before it is projected.)
