r"""
The fixed points of a memory
============================

A network that remembers three bits has to rest in eight places. Here a small GRU learns the
flip-flop, and :func:`kpops.fixed_points` finds where its state can rest when nothing comes in: the
eight memories, the saddles between them, and which way the saddles let go. At each of these points
the network is linearised as it stays there, and :math:`P` tells what becomes of a push.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import kpops
from kpops.plot.style import COLOURS

# %%
# A network that has to remember
# ------------------------------
#
# Pulses of +1 and -1 come on three channels, and each output must hold the sign of the last pulse
# of its own. The inputs are noisy, five times more than in the KPFlow paper, so that a state which
# is not held in place is lost. Some seconds of training do; put your network and its inputs here.

torch.manual_seed(0)
network = kpops.Network(nn.GRU(3, 32), nn.Linear(32, 3))
task = kpops.tasks.flip_flop(2000, noise=0.2, steps=60, rng=0)
with tempfile.TemporaryDirectory() as folder:
    kpops.training.train(
        network, task, folder=folder, max_steps=600, batch_size=64, learning_rate=5e-3, rng=0
    )

# %%
# Where it can rest
# -----------------
#
# The search starts at 400 states that the network passes through on noise-free trials, and
# minimises the speed :math:`|f(h) - h|` without input. It is made in float64, for a network of
# float32. Some starts end far outside, where the gates of a GRU saturate and the speed falls for
# ever; these are flagged as outliers.

trials = kpops.tasks.flip_flop(100, noise=0, rng=1)
lin = kpops.linearize(network, trials.inputs)
found = kpops.fixed_points(lin, 400, dtype=torch.float64, rng=0)
points = found.isel(point=((found.kind == "fixed") & ~found.outlier).values)

for unstable, group in points.groupby("n_unstable"):
    print(
        f"{unstable} unstable directions: {group.sizes['point']:2} points, "
        f"{int(group.basin_count.sum()):3} starts, "
        f"slowest time constant {float(abs(group.time_constant).max()):5.0f} steps"
    )

# %%
# There are eight points without an unstable direction, and twelve with one: the corners and the
# edges of a cube. The six faces have their points, too, with two unstable directions, and the
# middle has one with three. So it would be for three bistable units that know nothing of each
# other; but these 32 units are connected as training left them.

fig, (plane, disc) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
kpops.plot.fixed_points(points, plane, states=lin.states[:30])
one_of_each = np.unique(points.n_unstable, return_index=True)[1]
kpops.plot.fixed_point_eigenvalues(points.isel(point=one_of_each), disc)
plane.get_legend().remove()
disc.set(adjustable="box", xlim=(0.7, 1.15), ylim=(-0.2, 0.2))
plt.show()

# %%
# On the left, the cube is seen along the third principal component of thirty trials (grey). The
# memories lie a little outside of them, since the next pulse comes before the state is there. Lines
# are the unstable directions. On the right are the leading eigenvalues of :math:`A` at one point of
# each sort: each beyond the unit circle is one bit that is undecided. It lies outside by some per
# cent, so that some tens of steps decide.
#
# The readout is where the cube can be seen at once. From each saddle with one unstable direction we
# let the network go, a little to either side.


def outputs(states):
    """What the readout says of states (..., unit)."""
    with torch.no_grad():
        return network.readout(torch.as_tensor(np.asarray(states, "float32"))).numpy()


saddles = points.isel(point=(points.n_unstable == 1).values)
away = 0.05 * saddles.right_real.sel(mode=1).values
sides = np.concatenate([saddles.state.values + away, saddles.state.values - away])
silence = np.zeros((len(sides), 1500, 3), "float32")
paths = outputs(kpops.linearize(network, silence, h0=sides.astype("float32")).states)

cube = plt.figure(figsize=(5, 4.5)).add_subplot(projection="3d")
for path in paths:
    cube.plot(*path.T, color="0.6", linewidth=1)
for unstable, group in points.groupby("n_unstable"):
    style = {"color": COLOURS[unstable], "linestyle": "none", "marker": "o"}
    cube.plot(*outputs(group.state).T, **style, markersize=8 - 1.5 * unstable)
cube.set(xlabel="output 1", ylabel="output 2", zlabel="output 3")
cube.view_init(elev=20, azim=-65)
plt.show()

# %%
# The ways from the saddles (grey) are the edges: each saddle stands between two memories that
# differ in one bit, and a pulse has to carry the state past it.
#
# What learning does to a memory
# ------------------------------
#
# When the weights change by a little, a fixed point moves by :math:`(I - A)^{-1} J` times that
# change, where :math:`J` is the parameter Jacobian of one step at the point and :math:`A` the state
# Jacobian. That is :func:`kpops.stationary_response`. With an eigenvalue :math:`1 - d`, the inverse
# is of size :math:`1/d` along one direction. Does a slow memory give way as much?

nodes = points.isel(point=points.is_stable.values)
response = kpops.stationary_response(network, nodes, dtype=torch.float64)
matrices = response.to_dense().reshape(len(nodes.point), 32, -1)
print("memory        1/d   norm of the response   share of its first mode")
for matrix, node in zip(matrices, nodes.point, strict=True):
    memory = np.sign(outputs(nodes.state.sel(point=node))).astype(int)
    gain = 1 / (1 - float(nodes.spectral_radius.sel(point=node)))
    energy = np.linalg.svd(matrix, compute_uv=False) ** 2
    bits = " ".join(f"{bit:+d}" for bit in memory)
    print(f"{bits} {gain:7.0f} {energy.sum() ** 0.5:15.0f} {energy[0] / energy.sum():20.2f}")

# %%
# It does not. Between the memories :math:`d` differs several times over, and the response hardly;
# nor is it of one mode, as it would be near a bifurcation. A direction of a GRU is slow where
# update gates are nearly shut, and a shut gate keeps out what the weights do as it keeps in what
# the state was: :math:`J` is small along that direction, in proportion to :math:`d`. That an
# eigenvalue is near 1 says how long a push lasts, and not yet that learning can push there.
