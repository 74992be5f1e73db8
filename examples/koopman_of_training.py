r"""
The Koopman spectrum of training
================================

Training moves weights step by step, so it is a dynamical system, and the Koopman operator of that
system has eigenvalues: the factors by which features of the weights shrink in a step. They do not
depend on the coordinates in which the weights are written, so they tell whether two trainings are
the same up to a change of coordinates (Redman and others 2024). Here we find them from the weights
alone, check them against the curvature of the loss, and compare optimizers by them.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import kpops
from kpops.plot.style import COLOURS

# %%
# What the weights tell of the curvature
# --------------------------------------
#
# A logistic regression with six weights and some weight decay has one minimum. Near it, gradient
# descent is linear: a difference from the minimum along an eigenvector of the Hessian is multiplied
# by :math:`1 - \eta \lambda_i` in every step. From eight starts we keep all weights, and decompose
# their updates, which are linear where the weights are affine.

generator = torch.Generator().manual_seed(0)
points = torch.randn(100, 6, dtype=torch.float64, generator=generator) * torch.tensor(
    [2.0, 1.5, 1.0, 0.8, 0.6, 0.4]
)
labels = (points @ torch.ones(6, dtype=torch.float64) > 0).double()
ETA, DECAY, STEPS = 0.5, 0.05, 150


def loss(w):
    """Logistic loss with weight decay."""
    z = points @ w
    return torch.nn.functional.softplus(z).sub(labels * z).mean() + DECAY / 2 * w.square().sum()


def trained(make_optimizer, scale=1.0, n_steps=STEPS):
    """Train from eight starts, and return the parameters v = w / scale at every step."""
    paths = []
    for start in np.random.default_rng(0).standard_normal((8, 6)):
        v = torch.nn.Parameter(torch.from_numpy(start / scale))
        optimizer, path = make_optimizer([v]), []
        for step in range(n_steps):
            path.append((step, {"v": v.detach().clone()}))
            optimizer.zero_grad()
            loss(scale * v).backward()
            optimizer.step()
        paths.append(kpops.training.weight_trajectories(path))
    return xr.concat(paths, "seed")


weights = trained(lambda v: torch.optim.SGD(v, lr=ETA))
minimum = torch.from_numpy(weights[0, -1].values)
for _ in range(5):  # Newton steps
    hessian = torch.autograd.functional.hessian(loss, minimum)
    minimum -= torch.linalg.solve(hessian, torch.autograd.functional.jacobian(loss, minimum))
expected = 1 - ETA * torch.linalg.eigvalsh(hessian).numpy()
updates = weights.diff("step")
parts = {"first 15 steps": slice(0, 15), "steps 40 to 100": slice(40, 100)}
print(f"{'1 - eta lambda':>18}:", *(f"{x:.4f}" for x in expected))
found = {name: kpops.koopman.dmd(updates[:, part], tol=0.002) for name, part in parts.items()}
for name, modes in found.items():
    print(f"{name:>18}:", *(f"{x:.4f}" for x in modes.eigenvalue.values.real))
    print(f"{'residual':>18}:", *(f"{x:.4f}" for x in modes.residual.values))

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
least = loss(minimum).item()
for path in weights.values:
    above = [loss(torch.from_numpy(w)).item() - least for w in path[:120]]
    axes[0].semilogy(above, color=COLOURS[0], lw=1)
axes[0].set(title="eight trainings", xlabel="training iteration", ylabel="loss - minimum")
axes[1].axhline(0.002, color="0.45", lw=0.8, ls=":")
for x in expected:
    axes[1].axvline(x, color="0.8", lw=0.8)
for (name, modes), colour in zip(found.items(), COLOURS, strict=False):
    axes[1].semilogy(modes.eigenvalue.real, modes.residual, "o", ms=4, color=colour, label=name)
axes[1].set(title="eigenpairs of the updates", xlabel="eigenvalue", ylabel="residual")
axes[1].legend(frameon=False)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# %%
# Grey lines are :math:`1 - \eta \lambda_i` at the minimum. From the weights alone, the late updates
# find the three slowest, to three digits. The others have died out by then, and what is left in
# their place has residuals above the tolerance that we chose (dotted). The first fifteen updates
# are those of a nonlinear system, and all their residuals are far above it.
#
# The same training in other coordinates
# --------------------------------------
#
# Four optimizers on that loss, from the same starts: gradient descent; gradient descent on
# :math:`v = w / 3`, with a learning rate that makes it the same training in other coordinates;
# gradient descent at half the learning rate; and with momentum. The state of momentum is more than
# the weights, so all are seen in windows of two steps. :func:`kpops.compare` returns the distances
# of the spectra.

optimizers = {
    "gradient": weights,
    "rescaled": trained(lambda v: torch.optim.SGD(v, lr=ETA / 9), scale=3.0),
    "half the rate": trained(lambda v: torch.optim.SGD(v, lr=ETA / 2)),
    "momentum": trained(lambda v: torch.optim.SGD(v, lr=ETA, momentum=0.8)),
}
late = {name: path.diff("step")[:, 20:80] for name, path in optimizers.items()}
apart = kpops.compare(late, "koopman", delays=2, rank=6, n_permutations=50, rng=0)
print(apart.distance.round(4).to_pandas().to_string())
print("p:", apart.p_value.sel(network="gradient").round(2).to_series().to_dict())

# %%
# The rescaled training has the same spectrum to rounding. The others differ by more than the halves
# of the starts of one training do.
#
# Mirror descent and gradient descent
# -----------------------------------
#
# An equivalence that is not so plain (Ghai, Lu and Hazan 2022): online mirror descent with the log
# barrier follows, to first order in the step, online gradient descent in the coordinate
# :math:`u = \log x`. Both minimise :math:`\sum \tan x_i` in a box; the bisection method, for
# contrast, looks for the zero of the same function. There are 25 starts, a hundred steps of 0.01,
# and windows of five steps.


def square(low, high):
    """25 points of a square."""
    line = np.linspace(low, high, 5)
    return np.reshape(np.meshgrid(line, line), (2, 25)).T


def path_of(step, x):
    """A hundred points from each start."""
    path = [x]
    for _ in range(99):
        path.append(step(path[-1]))
    return xr.DataArray(np.stack(path, 1), dims=("seed", "step", "parameter"))


def mirror(x):
    """One step of mirror descent."""
    return np.clip(1 / (1 / x + 0.01 / np.cos(x) ** 2), 0.01, 1)


def gradient(u):
    """One step of gradient descent in u = log x."""
    return np.clip(u - 0.01 * np.exp(u) / np.cos(np.exp(u)) ** 2, np.log(0.01), 0)


def bisect(ends):
    """Half of each interval (2, start, 2) is left."""
    middle = ends.mean(0)
    below = np.tan(middle).sum(1)[:, None] < 0
    return np.where(below, [middle, ends[1]], [ends[0], middle])


ends = [np.stack([square(-4 / 3, -1 / 3), square(1 / 7, 8 / 7)])]
for _ in range(99):
    ends.append(bisect(ends[-1]))
online = {
    "mirror": path_of(mirror, square(0.1, 0.9)),
    "gradient": path_of(gradient, square(-2.3, -0.1)),
    "bisection": xr.DataArray(
        np.stack(ends).mean(1).swapaxes(0, 1), dims=("seed", "step", "parameter")
    ),
}
online_apart = kpops.compare(online, "koopman", delays=5, n_permutations=50, rng=0)
print(online_apart.distance.round(4).to_pandas().to_string())
print(online_apart.p_value.round(2).to_pandas().to_string())

fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
angle = np.linspace(0, 2 * np.pi, 200)
axes[1].plot(np.cos(angle), np.sin(angle), color="0.8", lw=0.8)
for (name, path), colour, marker in zip(online.items(), COLOURS, "o^*", strict=False):
    axes[0].plot(path.isel(seed=7), color=colour, lw=1.2, label=[name, None])
    values = kpops.koopman.dmd(path, delays=5).eigenvalue.values
    axes[1].plot(values.real, values.imag, marker, color=colour, ms=5, mfc="none", label=name)
axes[0].set(title="one start", xlabel="iteration", ylabel="coordinates")
axes[0].legend(frameon=False)
axes[1].set(title="Koopman eigenvalues", xlabel="real part", ylabel="imaginary part")
axes[1].set_aspect("equal")
image = axes[2].imshow(online_apart.distance, cmap="viridis", vmin=0)
axes[2].set_xticks(range(3), online)
axes[2].set_yticks(range(3), online)
axes[2].set_title("distance of spectra")
fig.colorbar(image, ax=axes[2], shrink=0.8)
for ax in axes[:2]:
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The two descents are closer to each other than to the bisection by a factor of more than eighty,
# and no farther apart than two halves of the starts of one of them. Their paths look different,
# since one is of :math:`x` and the other of :math:`\log x`.
