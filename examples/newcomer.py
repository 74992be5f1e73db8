"""
The first hour
==============

You have a network of your own, weights in a file, and a task in which the answer is a class. This
page leads from there to figures and a small study, in twenty cells to copy, in the order in which
you need them.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import kpops

folder = Path(tempfile.mkdtemp())  # choose a folder of your own

# %%
# Your network
# ------------
#
# Like most networks, it is one module from inputs to outputs. Nothing in it depends on kpops.


class Decider(nn.Module):
    """A GRU that says at every step: wait, left or right."""

    def __init__(self, n_units=16):
        super().__init__()
        self.gru = nn.GRU(2, n_units, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(n_units, 3)

    def forward(self, x):
        """Logits (trial, time, class)."""
        states, _ = self.gru(x)
        return self.fc(self.dropout(states))


# %%
# Your task
# ---------
#
# Each trial gives noisy evidence for left or right, for a time that varies from trial to trial.
# When a cue comes, answer for the last five steps. Labels are integers, one for each step. Trials
# end at different times, and a mask is True at the steps that exist.


def decisions(n_trials, seed, longest=20):
    """Inputs (trial, time, channel), labels and mask (trial, time), and the side of each trial."""
    rng = np.random.default_rng(seed)
    side, length = rng.integers(0, 2, n_trials), rng.integers(12, longest + 1, n_trials)
    time = np.arange(longest)
    answer = (time >= length[:, None] - 5) & (time < length[:, None])
    evidence = (2 * side[:, None] - 1) * 0.5 + rng.standard_normal((n_trials, longest))
    evidence[answer] = 0
    inputs = np.stack([evidence, answer], axis=-1)
    labels = np.where(answer, 1 + side[:, None], 0)
    mask = time < length[:, None]
    inputs[~mask] = 0
    return inputs.astype("float32"), labels, mask, side


# %%
# Your training
# -------------
#
# Any loop works. Keep some state dicts: these are the checkpoints.


def train(seed, steps=300, keep=(0, 300)):
    """State dicts of one training, by step."""
    torch.manual_seed(seed)
    network, kept = Decider(), {}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(steps + 1):
        if step in keep:
            kept[step] = {name: value.clone() for name, value in network.state_dict().items()}
        inputs, labels, mask, _ = decisions(64, seed=[seed, step])
        logits = network(torch.from_numpy(inputs))
        loss = F.cross_entropy(logits[mask], torch.from_numpy(labels[mask]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept


torch.save(train(seed=0), folder / "weights.pt")

# %%
# Load it
# -------
#
# From here on you have a class and a file, as usual. ``eval()`` switches dropout off: a
# linearization describes one trajectory, so nothing in it may be random.

weights = torch.load(folder / "weights.pt")
network = Decider()
network.load_state_dict(weights[300])
network.eval()

# %%
# Does the network work? Test it on new trials. They carry labels for xarray: the coordinates of the
# inputs return on every result.

inputs, labels, mask, side = decisions(16, seed=1234)
order = np.lexsort([mask.sum(1), side])
inputs, labels, mask, side = (part[order] for part in (inputs, labels, mask, side))
trials = xr.DataArray(
    inputs,
    dims=("trial", "time", "channel"),
    coords={"side": ("trial", np.array(["left", "right"], dtype=object)[side])},
)
with torch.no_grad():
    said = network(torch.from_numpy(inputs)).argmax(-1).numpy()
print(f"right at {np.mean(said[mask] == labels[mask]):.0%} of all steps")

# %%
# Linearise
# ---------
#
# Pass the network as it is. The second line reports what kpops found: a recurrent part and a
# readout that together equal its forward, in values and derivatives. If kpops could not verify
# this, an error would show what to write instead (:doc:`/models`).

lin = kpops.linearize(network, trials, mask=mask)
print(lin)

# %%
# Nothing in ``network`` has changed, and later training does not change ``lin``. The outputs are
# those of the network:

ours, theirs = lin.outputs.values[mask], network(torch.from_numpy(inputs)).detach().numpy()[mask]
print("same outputs:", np.allclose(ours, theirs, atol=1e-5))

# %%
# The operators
# -------------
#
# :math:`P` carries a push of the states forward in time. :math:`K` gives the pushes that the
# weights can make, and :math:`P K P^{*}` the changes of the trajectories that learning can make.
# They act on any array with the dimensions of the states, and ignore what the mask excludes.

push = xr.zeros_like(lin.states)
push[dict(trial=0, time=2, unit=0)] = 1
carried = lin.P @ push
print(f"a push of 1 at step 3 is, ten steps later, {float(abs(carried[0, 12]).max()):.3f}")

# %%
# How many directions does learning have here? There is more than one definition, so you name yours
# (:ref:`which-rank`). Each estimate comes with its standard error.


def dims_used(op):
    """Participation ratio of an operator, by 64 random vectors."""
    return kpops.effective_rank(
        op, kind="participation", method="hutchinson", num_matvecs=64, rng=0
    )


for op in (lin.K, lin.P, lin.flow):
    rank = dims_used(op)
    print(f"{op.symbol:6} {float(rank.estimate):8.1f} +- {float(rank.stderr):.1f}")

# %%
# A spectrum
# ----------
#
# The leading modes of :math:`P K P^{*}` are the changes that gradient descent makes most easily.

modes = kpops.eigsh(lin.flow, k=8, rng=0)
print("all converged:", bool(modes.converged.all()))

# %%
# A mode is a change of all trajectories. Here is its size over time, for each trial.

size = np.sqrt((modes.eigenfunction.sel(mode=1) ** 2).sum("unit"))
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
kpops.plot.spectrum(modes, left)
size.where(mask).plot(ax=right, cmap="viridis")
_ = right.set_title("the first mode")

# %%
# What the next step does
# -----------------------
#
# A loss relates the operators to the task: here the cross-entropy, averaged over the valid steps.
# Any function of outputs and targets works too.

flow = kpops.gradient_flow(lin, labels, loss="cross_entropy")
print(f"loss {float(flow.loss):.3f}")

# %%
# ``state_change`` is the movement of every state by the step, for a learning rate of 1. Its size by
# side:

moved = np.sqrt((flow.state_change**2).mean("unit")).where(mask)
print(moved.groupby("side").mean(["trial", "time"]).round(4).values)

# %%
# Is the prediction correct? Take a small step with your own autograd, and compare.

rate = 1e-2
moving = Decider().eval()
moving.load_state_dict(weights[300])
logits = moving(torch.from_numpy(inputs))
loss = F.cross_entropy(logits[mask], torch.from_numpy(labels[mask]))
gradients = torch.autograd.grad(loss, list(moving.gru.parameters()))
with torch.no_grad():
    for parameter, gradient in zip(moving.gru.parameters(), gradients, strict=True):
        parameter -= rate * gradient
real = (kpops.linearize(moving, trials, mask=mask).states - lin.states) / rate
error = np.sqrt(((real - flow.state_change) ** 2).sum() / (real**2).sum())
print(f"the prediction is off by {float(error):.1%}")

# %%
# Two checkpoints
# ---------------
#
# The same measure before and after training. :func:`kpops.over_training` takes pairs of a step and
# a state dict, and a function from a linearization to numbers or arrays.


def measure(lin):
    """Ranks of the three operators, and the leading modes of P K P*."""
    ranks = xr.concat([dims_used(op).estimate for op in (lin.K, lin.P, lin.flow)], "operator")
    return {"rank": ranks, "eigenvalue": kpops.eigsh(lin.flow, k=8, rng=0).eigenvalue}


checkpoints, options = sorted(weights.items()), {"mask": mask}
followed = kpops.over_training(network, checkpoints, trials, measure, options=options)
print(followed["rank"].to_pandas().astype(float).round(1))

# %%
# The spectra side by side:

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for step, values in followed.eigenvalue.groupby("step"):
    kpops.plot.spectrum(values.squeeze("step"), ax, label=f"step {step}")
_ = ax.legend(frameon=False)

# %%
# Save it
# -------
#
# Results are Datasets that carry their labels and their origin, and can be written directly to Zarr
# and netCDF.

store = followed.to_zarr(folder / "followed.zarr", consolidated=False)
again = xr.open_zarr(folder / "followed.zarr", consolidated=False)
print(again["rank"].dims, "the same:", bool((again["rank"] == followed["rank"]).all()))

# %%
# A study by hand
# ---------------
#
# Does this hold for other seeds? Train, follow, and join along a new dimension. A small study needs
# only a loop and ``xr.concat``.

seeds = xr.DataArray([0, 1, 2], dims="seed")
results = [followed]
for seed in seeds.values[1:].tolist():
    checkpoints = sorted(train(seed).items())
    results.append(kpops.over_training(network, checkpoints, trials, measure, options=options))
study = xr.concat(results, seeds)
print(study["rank"].mean("seed").to_pandas().astype(float).round(1))

# %%
# The answer, by seed:

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, ranks in study["rank"].groupby("operator"):
    ranks = ranks.squeeze("operator").transpose("step", "seed")
    ax.plot(["before", "after"], ranks, "o-", color=f"C{list(study.operator).index(name)}")
    ax.annotate(str(name), (1.05, float(ranks[-1].mean())))
ax.set(yscale="log", ylabel="effective rank (participation)", xlim=(-0.2, 1.4))

# %%
# Each line is a seed. In each, :math:`K` changes little, :math:`P K P^{*}` falls to less than half
# of its dimensions, and :math:`P` to less than a tenth. Whether the task or the architecture causes
# this is a question for a larger study, which need not be a loop (:doc:`/studies`).
#
# Continue with :doc:`/concepts` for the question that each operator answers, :doc:`/spectra` for
# what a result guarantees, :doc:`/troubleshooting` if something was refused, and the scripts of
# this gallery for every question of the paper.
