r"""
The symbolic code of an almost-linear network
=============================================

An almost-linear RNN passes most of its units on as they are and only a few through a relu. Its
state space is cut into a few regions, and in each of them it is a linear map. Which region the
state visits at each step is a code of the dynamics in a handful of symbols. Because every piece is
linear, the fixed points and the cycles of the network can be solved for, with no search by descent.

This script reads the code of a chaotic network, draws the graph of its transitions, lists its
unstable cycles, and asks how much of the chaos the code keeps.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.spatial import KDTree

import kpops
from kpops.plot.style import COLOURS, GREY

# %%
# A network by hand
# -----------------
#
# The map :math:`x' = y, \; y' = -b x + g(y)` with an N-shaped :math:`g` jumps between two wells.
# With slope 2 between -1 and 1 and slope -2 outside, two relus make it, one for each kink. The
# units are x, y, and two that follow y - 1 and y + 1 and are rectified; they forget half of a
# deviation at each step. No training is needed here. Put your trained
# :class:`kpops.models.PLRNNCell` in its place.

b, slope, keep = 0.5, 2.0, 0.5
follow = [-b, -slope, -2 * slope, 2 * slope]  # y' from x, y and both relus
cell = kpops.models.PLRNNCell(1, 4, rectified=2).double()
with torch.no_grad():
    cell.A.copy_(torch.tensor([0, 0, keep, keep]))
    cell.W.copy_(torch.tensor([[0, 1, 0, 0], follow, follow, follow]))
    cell.W[2:, 1] -= keep
    cell.b.copy_(torch.tensor([0, 0, keep - 1, 1 - keep]) - 2 * slope * (torch.arange(4) > 0))

y = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)
h0 = torch.stack([y, y, y - 1, y + 1], -1)
lin = kpops.linearize(cell, torch.zeros(40, 5100, 1, dtype=torch.float64), h0=h0)
states = lin.states[:, 100:]
spectrum = kpops.lyapunov_spectrum(lin, transient=100, rng=0)
largest = float(spectrum.exponent[0])
print(f"largest exponent {largest:.4f} +- {float(spectrum.stderr[0]):.4f} per step")

# %%
# Regions, and what follows what
# ------------------------------
#
# :func:`kpops.reconstruction.symbolic_code` labels each state with its region, a pattern of open
# relus. Of the four patterns of two relus three are visited: y cannot be above 1 and below -1 at
# the same time.

code = kpops.reconstruction.symbolic_code(cell, states, longest_word=8)
for region in code.region.values:
    one = code.sel(region=region)
    print(f"relus {one.bits.item()}: {float(one.share):.3f} of the steps")

# %%
# In each region a fixed point can be solved for, :math:`h^* = (1 - A)^{-1} b`. If it lies in that
# region, it is one of the network; otherwise it is virtual.

points = kpops.reconstruction.cycles(cell, virtual=True)
for point in points.point.values:
    one = points.sel(point=point)
    print(
        f"relus {one.bits.item()}: {one.kind.item():8} y = {one.state.values[1]:6.3f}, "
        f"largest |eigenvalue| {float(one.spectral_radius):.3f}"
    )

# %%
# Cycles of period k need a sequence of k regions. Too many sequences can be written with three
# symbols to try all, so the search starts from those along the trajectories. Some of the cycles it
# finds are outside the attractor; we keep those that trajectories come close to.

attractor = KDTree(states.values.reshape(-1, 4))
found = {}
for k in range(1, 12):
    every = kpops.reconstruction.cycles(cell, k, states[:, :250])
    away = attractor.query(every.orbit.values)[0].max(1)
    found[k] = every.isel(point=away < 0.05)
    stable = int(found[k].is_stable.sum())
    print(f"period {k:2}: {found[k].sizes['point']:3} cycles, {stable} of them stable")

colours = np.array(COLOURS)
fig, (plane, orbits, graph) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
shown = states.values[:, :300].reshape(-1, 4)
symbols = code.symbol.values[:, :300].ravel()
plane.scatter(*shown[:, :2].T, s=1.5, c=colours[symbols], linewidths=0)
real = points.isel(point=(points.kind == "fixed").values)
plane.plot(*real.state.values[:, :2].T, "kD", markersize=5, label="fixed point")
plane.legend(frameon=False, loc="upper left")
orbits.scatter(*shown[:, :2].T, s=1.5, c="0.85", linewidths=0)
for colour, period in zip(colours[3:], (4, 7), strict=False):
    widest = np.ptp(found[period].orbit.values[..., 1], axis=1).argmax()
    orbit, bits = found[period].orbit.values[widest], found[period].bits.values[widest]
    style = {"color": colour, "linewidth": 0.8, "markersize": 4, "label": " ".join(bits)}
    orbits.plot(*np.concatenate([orbit, orbit[:1]])[:, :2].T, "o-", **style)
orbits.legend(frameon=False, fontsize=7, loc="upper left")
for ax in (plane, orbits):
    ax.set(xlabel="x", ylabel="y", ylim=(-2.6, 3.3))
kpops.plot.transitions(code, graph)
plt.show()

# %%
# Left: the attractor, coloured by region, and the three fixed points, all of them unstable. Middle:
# two of the unstable cycles within it. Right: the graph of the transitions; areas are shares of the
# visits, and arrows their probabilities. The outer regions never follow each other directly.
#
# Entropies
# ---------
#
# How much does this code keep of the chaos? The entropy of the next symbol, given those before it,
# falls with the length of the past to the metric entropy of the code. That cannot exceed the
# positive exponent. The growth rate of the number of words, and that of the number of points on
# cycles, approach the topological entropy, which is at least the metric one.

length = code.length.values
words = np.diff(np.log(code.n_words.values))
on_cycles = {k: sum(d * found[d].sizes["point"] for d in found if k % d == 0) for k in found}
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.plot(
    list(on_cycles),
    [np.log(n) / k for k, n in on_cycles.items()],
    "s-",
    color=COLOURS[2],
    label="log(points on cycles of k) / k",
)
ax.plot(length[1:], words, "^-", color=COLOURS[1], label="log(words of k / words of k - 1)")
ax.plot(length, code.entropy_rate, "o-", color=COLOURS[0], label="entropy of symbol k")
ax.axhline(float(code.topological_entropy), color=GREY, linestyle=":", label="graph of transitions")
ax.axhline(largest, color=GREY, label="largest exponent")
ax.set(xlabel="k", ylabel="nats per step", ylim=(0.6, 1.15))
ax.legend(frameon=False)
plt.show()

# %%
# After seven symbols the entropy of the next is that of the exponent, to a hundredth: three symbols
# keep the chaos that four units make. The graph alone does not. It allows words that the map
# forbids, so that its entropy, :math:`\log(1 + \sqrt 2)`, is too large, and the words of eight
# symbols already grow more slowly. Longer words than these are too rare for their number to be
# known from 200,000 steps; the cycles are solved for, and can be followed further.

print(
    f"entropy of symbol 8: {float(code.entropy_rate[-1]):.4f}, exponent {largest:.4f}, "
    f"graph {float(code.topological_entropy):.4f}"
)
