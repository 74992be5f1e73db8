r"""
How many dimensions a task needs
================================

A network has thousands of parameters, yet a training may need only a few directions among them. Li,
Farkhoor, Liu and Yosinski (2018) train in a random subspace, :math:`\theta = \theta_0 + R c`, and
call the *intrinsic dimension* of a task the smallest number of coordinates :math:`c` with which
training reaches 90 % of the performance of a training of all parameters. Here it is for their own
toy, whose answer is known, and for a small recurrent network. Then the path of the ordinary
training of that network: how many dimensions it fills, and how few courses its weights share.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import kpops
from kpops.plot.style import COLOURS
from kpops.training import InSubspace, correlated_modes, train, weight_pca, weight_trajectories

# %%
# A toy with a known answer
# -------------------------
#
# A thousand parameters, of which the first hundred shall add up to 1, the next hundred to 2, and so
# on. These are ten constraints, so solutions have 990 dimensions, and a random subspace meets them
# from ten dimensions on. :class:`kpops.training.InSubspace` makes any model learn in a random
# subspace only; it is trained like the model itself. A :class:`kpops.Study` does so for every
# dimension and seed. As in the paper, performance is the exponential of minus the loss.


class Sums(torch.nn.Module):
    """Ten sums, each of a hundred parameters."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(10, 100))

    def forward(self, x):
        """Return the sums as the outputs of a trial of one step."""
        return self.theta.sum(1).expand(len(x), 1, 10)


goals = xr.Dataset(
    {
        "inputs": (("trial", "time", "input"), np.zeros((1, 1, 1), "float32")),
        "targets": (("trial", "time", "output"), np.arange(1.0, 11)[None, None]),
        "mask": (("trial", "time"), np.ones((1, 1), bool)),
    }
)


def momentum(parameters, learning_rate):
    """Make gradient descent with momentum."""
    return torch.optim.SGD(parameters, learning_rate, momentum=0.97)


def toy(d, seed):
    """Train the toy in d dimensions, and return its performance."""
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            InSubspace(Sums(), d, rng=seed),
            goals,
            folder=folder,
            optimizer=momentum,
            learning_rate=0.1,
            max_steps=1200,
            batch_size=1,
            checkpoint_every=1200,
            stop_loss=1e-3,
            rng=0,
        )
    return {"performance": np.exp(-history.loss.values[-1])}


dimensions = [2, 4, 6, 8, 9, 10, 11, 12, 14, 20]
study = kpops.Study(tempfile.mkdtemp(suffix=".zarr"), toy, d=dimensions, seed=range(3))
study.run(progress=False)
of_toy = study.open().performance
best = of_toy.max("seed")
print("dimension   performance, best of three subspaces")
for d in (8, 9, 10, 11, 12):
    print(f"{d:9}   {float(best.sel(d=d)):.3f}")
print("intrinsic dimension:", int(best.d[best > 0.9].min()))

# %%
# A recurrent network
# -------------------
#
# A GRU of 24 units learns a flip-flop of two bits. For each dimension it is trained for as long as
# with all its parameters.

training_set = kpops.tasks.flip_flop(500, bits=2, steps=25, probability=0.2, rng=0)
STEPS = 300


def network():
    """Make the untrained network, always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return kpops.Network(torch.nn.GRU(2, 24), torch.nn.Linear(24, 2))


def learn(model, folder):
    """Train it, and return the history."""
    return train(
        model,
        training_set,
        folder=folder,
        max_steps=STEPS,
        batch_size=50,
        learning_rate=0.01,
        checkpoint_every=10,
        rng=0,
    )


def final(history):
    """Mean of the last losses."""
    return float(history.loss[-20:].mean())


folder = tempfile.mkdtemp()
whole = final(learn(network(), folder))
variance = float(training_set.targets.var())
sizes = [3, 10, 30, 100, 300, 600]
losses = []
for d in sizes:
    with tempfile.TemporaryDirectory() as temporary:
        losses.append(final(learn(InSubspace(network(), d, rng=0), temporary)))
explained = 1 - np.array([*losses, whole]) / variance
p = sum(parameter.numel() for parameter in network().parameters())
print("parameters   explained variance of the targets")
for d, share in zip([*sizes, p], explained, strict=True):
    print(f"{d:10}   {share:.2f}{'   (all)' if d == p else ''}")

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
axes[0].plot(of_toy.d, of_toy.transpose("d", "seed"), ".", color=COLOURS[0], ms=4)
axes[0].plot(best.d, best, color=COLOURS[0], lw=1.2)
axes[0].axvline(10, color="0.45", lw=0.8, ls=":")
axes[0].set(title="ten constraints, 1,000 parameters", ylabel="performance")
axes[0].set_xticks(range(0, 21, 5))
axes[1].plot(sizes, explained[:-1], ".-", color=COLOURS[0], lw=1.2)
axes[1].axhline(explained[-1], color="0.45", lw=0.8)
axes[1].axhline(0.9 * explained[-1], color="0.45", lw=0.8, ls=":")
axes[1].set(title=f"flip-flop, {p:,} parameters", ylabel="explained variance", xscale="log")
for ax in axes:
    ax.set(xlabel="dimension of the subspace", ylim=(-0.05, 1.05))
    ax.spines[["top", "right"]].set_visible(False)

# %%
# *Left*: dots are subspaces, and the dotted line is the known answer. In ten dimensions every
# subspace contains a solution, but two of these three are so oblique to the constraints that
# gradient descent does not get there in time. *Right*: the line is the training of all parameters,
# and the dotted line 90 % of it, which takes a little more than three hundred dimensions.
#
# What the subspace sees
# ----------------------
#
# :func:`kpops.subspace` gives the same subspaces to operators: ``lin.sensitivity @ R`` is the
# derivative of the states by the coordinates. A random subspace of :math:`d` of :math:`p`
# dimensions keeps on average the fraction :math:`d / p` of the trace of the flow operator, however
# few its leading modes are.

lin = kpops.linearize(network(), kpops.tasks.flip_flop(10, bits=2, steps=25, rng=1).inputs)
n_parameters = lin.parameter_space.size
trace = float(kpops.trace(lin.flow, rng=0).estimate)
for d in (30, 300):
    PJ = lin.sensitivity @ kpops.subspace(lin, d, rng=0)
    kept = float(kpops.trace(PJ @ PJ.H, rng=0).estimate) / trace
    print(f"{d:4} of {n_parameters}: {d / n_parameters:.3f}, of the trace {kept:.3f}")

# %%
# The path of the training
# ------------------------
#
# The other question is how many dimensions an ordinary training fills. From its checkpoints,
# :func:`kpops.training.weight_pca` gives the principal components of the path, and
# :func:`kpops.training.correlated_modes` groups weights whose courses are multiples of each other.

weights = weight_trajectories(folder)
pca = weight_pca(weights)
modes = correlated_modes(weights, 5, rng=0)
shares = ", ".join(f"{x:.2f}" for x in pca.explained[:5].cumsum().values)
print(f"fraction of the path in the first components: {shares}")
print(f"fraction in five correlated modes: {float(modes.explained):.2f}")
print("weights in each mode:", *modes.n_weights.values)

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.6), layout="constrained", sharex=True)
for i, colour in zip(range(3), COLOURS, strict=False):
    axes[0].plot(pca.step, pca.score[:, i], color=colour, lw=1.2, label=f"{i + 1}")
    axes[1].plot(modes.step, modes.course[:, i], color=colour, lw=1.2, label=f"{i + 1}")
axes[0].set(title="principal components", ylabel="score")
axes[1].set(title="correlated modes", ylabel="course")
for ax in axes:
    ax.set_xlabel("training iteration")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
plt.show()

# %%
# Take few components with care: a random walk has such curves, too, with 61 % in the first of them
# and half a period of a cosine as its score (Antognini and Sohl-Dickstein 2018). The path lies in
# few dimensions that training itself finds, while a random subspace, chosen before, has to be
# larger.
