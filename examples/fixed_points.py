r"""
The fixed points of a memory
============================

A network that remembers three bits must have eight states of rest. Here a small GRU learns the
flip-flop, and :func:`kpops.fixed_points` finds where its state can rest without input: the eight
memories, the saddles between them, and the directions in which the saddles are unstable. At the
end, it measures how far a change of the weights moves the memories.
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
# Pulses of +1 and -1 arrive on three channels, and each output must hold the sign of the last pulse
# on its own channel. The inputs are noisy, five times more than in the KPFlow paper, so a state
# that is not held in place is lost. Some seconds of training are enough. Put your network and its
# inputs here.

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
# The search starts at 400 states that the network visits on noise-free trials, and minimises the
# speed :math:`|f(h) - h|` without input. It runs in float64, for a float32 network. Some starts end
# far outside, where the gates of a GRU saturate and the speed keeps falling; these points are
# flagged as outliers.

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
# edges of a cube. Each of the six faces has its point, with two unstable directions, and the centre
# has one with three. Three independent bistable units would have the same points. But these 32
# units are connected as training left them.

fig, (plane, disc) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
kpops.plot.fixed_points(points, plane, states=lin.states[:30])
one_of_each = np.unique(points.n_unstable, return_index=True)[1]
kpops.plot.fixed_point_eigenvalues(points.isel(point=one_of_each), disc)
plane.get_legend().remove()
disc.set(adjustable="box", xlim=(0.7, 1.15), ylim=(-0.2, 0.2))
plt.show()

# %%
# The left panel views the cube along the third principal component of thirty trials (grey). The
# memories lie a little outside the trials, since the next pulse comes before the state has arrived.
# Lines are the unstable directions. The right panel shows the leading eigenvalues of :math:`A` at
# one point of each kind. Each eigenvalue beyond the unit circle is one undecided bit. It lies
# outside by a few per cent, so the decision takes a few tens of steps.
#
# The outputs show the cube directly. We release the network near each saddle with one unstable
# direction, a little to either side.


def outputs(states):
    """Outputs of the readout for states (..., unit)."""
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
# The paths from the saddles (grey) are the edges. Each saddle lies between two memories that differ
# in one bit, and a pulse has to carry the state past it.
#
# What learning does to a memory
# ------------------------------
#
# When the weights change slightly, a fixed point moves by :math:`(I - A)^{-1} J` times that change,
# where :math:`J` is the parameter Jacobian of one step at the point and :math:`A` the state
# Jacobian. :func:`kpops.stationary_response` is this operator. With an eigenvalue :math:`1 - d`,
# the inverse has size :math:`1/d` along one direction. Does a slow memory move that much?

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
# It does not. :math:`d` differs several times over between the memories, but the response hardly
# differs. Nor does one mode dominate it, as it would near a bifurcation. A direction of a GRU is
# slow where update gates are nearly shut. A shut gate keeps the state in, and it also keeps the
# effect of the weights out: :math:`J` is small along that direction, in proportion to :math:`d`. An
# eigenvalue near 1 shows how long a push lasts, not that learning can push there.
