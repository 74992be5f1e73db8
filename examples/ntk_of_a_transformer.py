r"""
A transformer learns: its kernel and its inputs
===============================================

How does the neural tangent kernel (NTK) of a transformer change as it learns, and do its features
change with it? We train a small one to reverse sequences, and at every checkpoint measure the
effective rank of the kernel, next to that of what the parts of the network receive. For your own
network, replace ``Transformer``, the checkpoints and ``tokens``.
"""

import copy

import matplotlib.pyplot as plt
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.plot.style import COLOURS

# %%
# A network that reverses sequences
# ---------------------------------
#
# Eight letters at random; at each position the network has to name the letter at the mirrored one.
# One block of attention and an MLP does it, once attention has found the position to look at.

LETTERS, LENGTH, WIDTH = 8, 8, 32


class Block(nn.Module):
    """Attention and an MLP, each added to what comes in."""

    def __init__(self):
        super().__init__()
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, h):
        """Return (sequence, position, channel), as it comes in."""
        seen = self.norm(h)
        h = h + self.attention(seen, seen, seen)[0]
        return h + self.mlp(self.second_norm(h))


class Embedding(nn.Module):
    """A vector for each letter, and one for each position."""

    def __init__(self):
        super().__init__()
        self.letter, self.position = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)

    def forward(self, tokens):
        """Take (sequence, position) to (sequence, position, channel)."""
        return self.letter(tokens) + self.position.weight


torch.manual_seed(0)
net = nn.Sequential(Embedding(), Block(), nn.Linear(WIDTH, LETTERS))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
kept = [*range(0, 100, 10), 120, 140, 170, 200]
checkpoints, losses = [], []
for step in range(kept[-1] + 1):
    if step in kept:
        checkpoints.append((step, copy.deepcopy(net.state_dict())))
    tokens = torch.randint(LETTERS, (64, LENGTH))
    loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flip(1).flatten())
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Measure every checkpoint
# ------------------------
#
# :func:`kpops.over_training` takes any checkpoints, ``(step, state_dict)``. The sites are the
# outputs of the three parts, in other words the inputs of the block, the inputs of the linear
# layer, and the outputs. All ranks are participation ratios. For the features it is that of their
# covariance over sequences and positions; for the kernel it is an estimate with a standard error.


def measure(lin):
    """Effective ranks of the kernel, and of the features."""
    ranks = {"NTK": kpops.effective_rank(lin.output_ntk, num_matvecs=128, rng=0)}
    for site, name in (("0", "inputs of the block"), ("1", "inputs of the last layer")):
        features = lin.states.values[:, lin.space.coords["site"].values == site]
        features = features.reshape(-1, WIDTH) - features.reshape(-1, WIDTH).mean(0)
        ranks[name] = kpops.effective_rank(features.T @ features)
    found = [ranks[name][["estimate", "stderr"]].reset_coords(drop=True) for name in ranks]
    return xr.concat(found, xr.Variable("of", list(ranks)), combine_attrs="drop")


tokens = torch.randint(LETTERS, (48, LENGTH))
result = kpops.over_training(net, checkpoints, tokens, measure)
print(f"{'step':>5}{'loss':>8}{'NTK':>8}{'block':>8}{'last':>8}")
for step in result.step.values:
    ranks = result.estimate.sel(step=step).values
    print(f"{step:5}{losses[step]:8.3f}" + "".join(f"{rank:8.1f}" for rank in ranks))

# %%
# The curves stand for one network. Its kernel has the most dimensions while the loss falls, and
# returns to about as many as before when the sequences are reversed. The inputs of the block keep
# theirs throughout: the letters and positions are told apart from the beginning. What changes is
# what the last layer receives. It takes up more dimensions at first, and ends with about half as
# many, since only the letter to be named counts there. So the rank of the kernel does not follow
# the rank of what comes in, and neither of them stands for the other.

fig, (left, kernel, inputs) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
left.plot(losses, color="black", lw=0.8)
left.set(xlabel="training iteration", ylabel="cross entropy", title="loss")
left.spines[["top", "right"]].set_visible(False)
kpops.plot.effective_rank(result.sel(of="NTK", drop=True), kernel, color=COLOURS[0])
kpops.plot.effective_rank(result.isel(of=slice(1, None)), inputs)
kernel.set(title="NTK of the outputs", ylabel="effective rank")
_ = inputs.set(title="features", ylim=(0, None), ylabel="")
