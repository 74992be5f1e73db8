r"""
Are two networks the same?
==========================

Two networks may solve a task alike and have units that do not correspond. So what is compared has
to be blind to a change of the units' coordinates: the geometry of the states, or the way in which
they move. Here are six networks and four distances, with their nulls.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch

import kpops

# %%
# Six networks
# ------------
#
# GRUs with 16 units from three seeds, trained to keep an angle in memory; the first of them with
# its units rotated, :math:`h' = Q h`, which is the same network in other coordinates; the first as
# it was before training; and a vanilla network on the same task.


class Turned(torch.nn.Module):
    """A cell in rotated coordinates."""

    def __init__(self, cell, rotation):
        super().__init__()
        self.cell, self.Q = cell, rotation
        self.hidden_size, self.input_size = cell.hidden_size, cell.input_size

    def forward(self, x, h):
        """Take one step."""
        return self.cell(x, h @ self.Q) @ self.Q.T


task = kpops.tasks.memory_pro(300, steps=(4, 10, 8), noise=0.1, rng=0)
held_out = kpops.tasks.memory_pro(200, steps=(4, 10, 8), noise=0.1, rng=1)


def network(kind, seed):
    """Make an untrained network."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return kpops.Network(kind(3, 16, batch_first=True), torch.nn.Linear(16, 3)).double()


def trained(kind, seed):
    """Train a network, and print its loss."""
    model = network(kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        history = kpops.training.train(
            model,
            task,
            folder=folder,
            max_steps=400,
            batch_size=50,
            learning_rate=0.01,
            checkpoint_every=400,
            rng=seed,
        )
    print(f"{kind.__name__}, seed {seed}: loss {float(history.loss[-20:].mean()):.3f}")
    return model


def cell_of(model):
    """Return the layer of a GRU as a cell."""
    cell = torch.nn.GRUCell(3, 16, dtype=torch.float64)
    cell.load_state_dict(
        {k.removesuffix("_l0"): v for k, v in model.recurrent.state_dict().items()}
    )
    return cell


models = {f"GRU {seed}": trained(torch.nn.GRU, seed) for seed in range(3)}
Q = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((16, 16)))).Q
models["turned"] = Turned(cell_of(models["GRU 0"]), Q)
models["untrained"] = network(torch.nn.GRU, 0)
models["RNN"] = trained(torch.nn.RNN, 0)
networks = {
    name: kpops.linearize(model, held_out.inputs, dtype=torch.float64)
    for name, model in models.items()
}

# %%
# Four distances
# --------------
#
# :func:`kpops.compare` takes the linearizations, whose states it reads, or arrays of states. *DSA*
# and *Koopman* fit a linear operator to the steps that the states take, and compare the operators
# up to an orthogonal change of coordinates, or their eigenvalues. *CKA* and *Procrustes* compare
# the states themselves, step by step.

METHODS = {"dsa": "DSA", "koopman": "Koopman", "cka": "CKA", "procrustes": "Procrustes"}
found = {
    method: kpops.compare(networks, method, rank=6, n_permutations=n, rng=0)
    for method, n in zip(METHODS, (10, 50, 50, 50), strict=True)  # DSA is a search for each draw
}
print(f"{'distance from GRU 0':>20}", *(f"{name:>10}" for name in networks if name != "GRU 0"))
for method, result in found.items():
    row = result.sel(network="GRU 0").drop_sel(network2="GRU 0")
    print(f"{METHODS[method]:>20}", *(f"{x:10.3f}" for x in row.distance.values))
    for name in ("null_mean", "p_value"):
        print(f"{name:>20}", *(f"{x:10.3f}" for x in row[name].values))

fig, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharey=True)
for ax, (method, result) in zip(axes, found.items(), strict=True):
    image = ax.imshow(result.distance, cmap="viridis", vmin=0)
    ax.set_xticks(range(len(networks)), networks, rotation=90)
    ax.set_title(METHODS[method])
    fig.colorbar(image, ax=ax, shrink=0.6)
axes[0].set_yticks(range(len(networks)), networks)
plt.show()

# %%
# The rotation of the units changes nothing. By all four, each trained GRU is nearer to the other
# two than to the untrained one, if only just for seed 2 and the distances of dynamics; and the
# vanilla network, which has not learned the task (its loss is printed above), is far from them.
# Alike is not the same: the null of the first two are random halves of the trials of one network,
# and two seeds differ by more than those do. The null of CKA and Procrustes are trials in random
# order; a small p says that two networks represent the same trials more alike than others.
