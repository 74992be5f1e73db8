r"""
Sharpness at the edge of stability
==================================

Near a minimum, gradient descent with the learning rate :math:`\eta` is stable if no eigenvalue of
the Hessian of the loss exceeds :math:`2/\eta`. Neural networks do not stay clear of that threshold:
full-batch training sharpens the loss until the largest eigenvalue, the *sharpness*, is there, and
goes on along the edge (Cohen et al. 2021, arXiv 2103.00065). Here a GRU of 16 units does so on
Memory-Pro. We follow the sharpness by :func:`kpops.stability` at two learning rates, look at the
whole spectrum of the Hessian, and ask which rate a minibatch would bear.
"""

import copy
import functools

import matplotlib.pyplot as plt
import numpy as np
import torch

import kpops

# %%
# Train by gradient descent
# -------------------------
#
# Twenty trials, all of them in every step, and plain gradient descent: nothing is random but the
# initial weights, which both runs share.

task = kpops.tasks.memory_pro(20, angles="even", noise=0, steps=(5, 5, 5))
inputs, targets = (torch.from_numpy(task[name].values) for name in ("inputs", "targets"))


def descend(network, rate, n_steps, every=50, batch_size=None, seed=0):
    """Train in place, on random batches if they have a size; return losses and checkpoints."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    rng = np.random.default_rng(seed)
    losses, checkpoints = [], []
    for step in range(n_steps + 1):
        if step % every == 0:
            checkpoints.append((step, copy.deepcopy(network.state_dict())))
        trials = slice(None)
        if batch_size is not None:
            trials = rng.choice(len(inputs), batch_size, replace=False)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(inputs[trials]), targets[trials])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses, checkpoints


torch.manual_seed(0)
start = kpops.Network(torch.nn.GRU(3, 16, batch_first=True), torch.nn.Linear(16, 3))
rates = [0.6, 1.2]
runs = {rate: descend(copy.deepcopy(start), rate, 1500) for rate in rates}

# %%
# The sharpness over training
# ---------------------------
#
# :func:`kpops.stability` needs the targets and the learning rate beside the linearization. It takes
# the Hessian by all parameters that learn, those of the readout included.

followed = {}
for rate, (_, checkpoints) in runs.items():
    measure = functools.partial(
        kpops.stability, targets=task.targets, eta=rate, tol=1e-3, num_matvecs=32, rng=0
    )
    followed[rate] = kpops.over_training(start, checkpoints, task.inputs, measure)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for rate, colour in zip(rates, ["#0072B2", "#D55E00"], strict=True):
    result = followed[rate]
    left.semilogy(runs[rate][0], color=colour, lw=0.7, label=rf"$\eta = {rate}$")
    kpops.plot.over_training(result.sharpness, right, color=colour, marker=".", lw=0.9)
    right.axhline(float(result.threshold[0]), color=colour, ls="--", lw=0.9)
left.set(xlabel="training iteration", ylabel="loss")
left.legend(frameon=False)
right.set(ylabel="sharpness; dashed: $2/\\eta$", ylim=(0, None))
left.spines[["top", "right"]].set_visible(False)

print(f"{'rate':>6}{'2 / rate':>10}{'sharpness: first':>18}{'late mean':>11}{'late range':>16}")
for rate in rates:
    sharpness = followed[rate].sharpness
    late = sharpness[sharpness.step >= 800]
    print(
        f"{rate:6}{2 / rate:10.2f}{float(sharpness[0]):18.2f}{float(late.mean()):11.2f}"
        f"{float(late.min()):9.2f} to {float(late.max()):.2f}"
    )

# %%
# At both rates the sharpness rises to the threshold and then stays within a few per cent of it,
# while the loss falls, though not at every step. At the larger rate the network learns in a flatter
# part of weight space.
#
# The spectrum
# ------------
#
# Most eigenvalues of a Hessian are near zero, and a few stand apart (Sagun et al. 2017, arXiv
# 1706.04454). ``lin.hessian`` is an operator like any other: :func:`kpops.spectral_density` gives
# its outliers and its bulk. ``lin.ggn`` is the part that needs no second derivative of the network.
# Its trace is that of the kernel of the outputs, up to the normalisation of the loss.

last = copy.deepcopy(start)
last.load_state_dict(runs[0.6][1][-1][1])
lin = kpops.linearize(last, task.inputs)
hessian, gauss_newton = lin.hessian(task.targets), lin.ggn(task.targets)
density = kpops.spectral_density(hessian, outliers=20, rng=0)
leading = kpops.eigsh(gauss_newton, 20, rng=0).eigenvalue
fig, ax = plt.subplots(figsize=(4.5, 3), layout="constrained")
_ = kpops.plot.density(density, ax, log=True)

print("\nmode     Hessian   Gauss-Newton")
for mode in (1, 2, 3, 5, 10, 20):
    of_hessian = float(density.outlier.sel(mode=mode))
    print(f"{mode:4}{of_hessian:12.4f}{float(leading.sel(mode=mode)):12.4f}")
kernel = kpops.trace(lin.output_ntk, method="exact").estimate * 2 / targets.numel()
print(f"trace of Gauss-Newton: {float(kpops.trace(gauss_newton, method='exact').estimate):.3f}")
print(f"trace of the kernel:   {float(kernel):.3f}")

# %%
# A thousand eigenvalues are piled up at zero, and about ten stand apart. The leading ones are those
# of the Gauss-Newton operator within a few per cent, since the errors are small by now.
#
# Minibatches
# -----------
#
# The noise of minibatches adds to the second moment of the weights at every step, so that SGD bears
# less than gradient descent. The condition is on ``sgd_sharpness``, a mean over trials, which for
# trials of one output is at least the trace of the Hessian if they come one by one (Wu and Su 2023,
# arXiv 2305.17490). From the last weights we train on with minibatches, at a half and at one and a
# half times the rate that both conditions allow.

print("\nbatch   s_B   sharpness   rate allowed    largest loss of the last steps, at 0.5 and 1.5")
for batch_size in (1, 4, 20):
    found = kpops.stability(lin, task.targets, eta=0.6, batch_size=batch_size, rng=0)
    level, sharpness = float(found.sgd_sharpness), float(found.sharpness)
    allowed, ends = 2 / max(level, sharpness), []
    for factor in (0.5, 1.5):
        losses, _ = descend(copy.deepcopy(last), factor * allowed, 200, batch_size=batch_size)
        largest = max(losses[-50:])
        ends.append(f"{largest:.4f}" if largest < 1 else "above 1")
    print(f"{batch_size:5}{level:6.2f}{sharpness:12.2f}{allowed:15.3f}{ends[0]:>20}{ends[1]:>12}")

plt.show()

# %%
# At half of the rate that the conditions allow, training stays where it is; at one and a half times
# that rate it leaves the minimum, with every batch size. With single trials the noise decides;
# with four it is the sharpness, as for gradient descent.
