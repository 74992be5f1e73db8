r"""
The Lorenz system, reconstructed by teacher forcing
===================================================

Does a network that was trained to predict a few steps become the system that it has seen?
:func:`kpops.training.reconstruct` trains an almost-linear RNN on trajectories of the Lorenz system.
Of its 40 units the first three are read as x, y and z, and 20 pass through a relu. We let it run
freely, and compare forecasts, attractor and Lyapunov exponents with the truth.

The network is trained once, by ``python -m reproduction.lorenz``, which takes a few minutes. Its
settings are in ``reproduction/lorenz.py``: replace its series by yours.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from networks import REPOSITORY

import kpops
from kpops import reconstruction
from kpops.plot.style import COLOURS

sys.path.insert(0, str(REPOSITORY))

from reproduction import lorenz

observed = lorenz.series(10, lorenz.N_STEPS, seed=0)  # those of the training
truth = lorenz.standardized(lorenz.series(10, lorenz.N_STEPS, seed=1), observed)
cell = lorenz.network()
cell.load_state_dict(torch.load(lorenz.WEIGHTS, weights_only=True))
print(cell)

# %%
# Forecasts
# ---------
#
# In training the observed units are set to the data at every tenth step and are free in between:
# this is sparse teacher forcing. A forecast begins with 20 observations, by which the other units
# settle, and then runs freely. It is *valid* until its error exceeds 0.4 standard deviations
# (:func:`kpops.reconstruction.valid_prediction_time`), and time is counted in Lyapunov times, in
# which errors of the true system grow by a factor e. The baselines are a linear model of a step,
# and the last observation, which stays.

time = lorenz.lyapunov_time()
valid = lorenz.valid_times(cell, truth, time, None)
print(f"Lyapunov time {time:.2f}, {lorenz.N_STARTS} starts")
for name, result in valid.items():
    print(f"{name:12} valid for {float(result.median_time):.2f} Lyapunov times (median)")

cut = reconstruction.windows(truth, lorenz.CONTEXT + lorenz.HORIZON, every=4000)[: lorenz.N_STARTS]
context, ahead = cut[:, : lorenz.CONTEXT], cut[:, lorenz.CONTEXT :]
forecast = reconstruction.forecast(cell, context, lorenz.HORIZON)
linear = reconstruction.linear_forecast(truth, context, lorenz.HORIZON)
ticks = lorenz.DT / time * np.arange(1, lorenz.HORIZON + 1)

times = valid["network"].valid_prediction_time.values
typical = np.argsort(times)[len(times) // 2]

fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", width_ratios=(3, 2))
axes[0].plot(ticks, ahead[typical, :, 0], color="0.6", lw=3, label="truth")
axes[0].plot(ticks, forecast[typical, :, 0], color=COLOURS[0], lw=1.2, label="network")
axes[0].plot(ticks, linear[typical, :, 0], color=COLOURS[1], lw=1, ls="--", label="linear")
axes[0].axvline(times[typical], color="0.4", lw=0.8, ls=":")
axes[0].set(xlabel="Lyapunov times", ylabel="x (standard deviations)", xlim=(0, ticks[-1]))
axes[0].set_ylim(-2.4, 3.4)
axes[0].legend(frameon=False, ncols=3, loc="upper left")
for (name, result), colour in zip(valid.items(), COLOURS, strict=False):
    axes[1].semilogy(ticks, result.error.median("trial"), color=colour, label=name)
axes[1].axhline(0.4, color="0.4", lw=0.8, ls=":")
axes[1].set(xlabel="Lyapunov times", ylabel="median error", xlim=(0, ticks[-1]))
axes[1].legend(frameon=False, loc="lower right")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The left panel shows a start with the median time of the network, up to the dotted line.
# On the right, the error of the network grows roughly exponentially until it is as large as the
# attractor, as that of any model of a chaotic system must. The baselines are off within a tenth of
# a Lyapunov time.
#
# The attractor
# -------------
#
# After that a forecast is wrong, and yet it can be right as a whole: does it visit the same states,
# with the same rhythm? The divergence D_stsp compares the states
# (:func:`kpops.reconstruction.state_space_divergence`), the distance D_H the power spectra
# (:func:`kpops.reconstruction.power_spectrum_error`). Neither is 0 between two runs of the true
# system of this length, 10,000 steps each.

free = lorenz.free_runs(cell, truth, None)
other = lorenz.standardized(lorenz.series(10, lorenz.N_STEPS, seed=3), observed)
for name, runs in (("network", free), ("true system", other)):
    space, spectrum = lorenz.distances(runs, truth).mean(axis=0)
    print(f"{name:12} D_stsp {space:.2f}   D_H {spectrum:.3f}   (means of {len(runs)} runs)")
for name, runs in (("network", free[:1]), ("true system", truth[:1])):
    found = reconstruction.correlation_dimension(runs, theiler=100, scaling=(0.03, 0.3))
    print(f"{name:12} correlation dimension {found.estimate:.2f} +- {found.stderr:.2f}")

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharex=True, sharey=True)
for ax, runs, name, colour in zip(
    axes, (truth, free), ("true system", "network"), ("0.3", COLOURS[0]), strict=True
):
    ax.plot(runs[0, :4000, 0], runs[0, :4000, 2], color=colour, lw=0.4)
    ax.set(title=name, xlabel="x (standard deviations)")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("z (standard deviations)")
plt.show()

# %%
# Lyapunov exponents
# ------------------
#
# The network is a recurrent model, so all of kpops works for it. Its leading exponents, per unit of
# time, stand beside those of the flow:

start = torch.zeros(16, lorenz.UNITS)
start[:, :3] = torch.from_numpy(truth.values[:, ::5000].reshape(-1, 3)[:16])
run = {"k": 3, "dt": lorenz.DT, "rng": 0}
spectrum = kpops.lyapunov_spectrum(cell, h0=start, n_steps=5000, transient=500, **run)
h0 = torch.from_numpy(observed.values[:, -1])
true = kpops.lyapunov_spectrum(lorenz.flow, h0=h0, n_steps=5000, transient=500, **run)
print("mode    system            network")
for mode in (1, 2, 3):
    values = (
        f"{float(result.exponent.sel(mode=mode)):7.3f} +- {float(result.stderr.sel(mode=mode)):.3f}"
        for result in (true, spectrum)
    )
    print(f"{mode:4} ", "  ".join(values))

# %%
# The first two, growth and the flow's own direction, agree within about two standard errors. The
# third does not: it is the contraction towards the attractor from states that the data never visit.
# There are 37 more exponents, of units that the system does not have.
#
# The symbolic code
# -----------------
#
# Between two switches of its relus the network is linear, so that its run is a sequence of linear
# regions: a symbolic code (:func:`kpops.reconstruction.symbolic_code`, :doc:`/piecewise_linear`).

lin = kpops.linearize(cell, torch.zeros(1, 10_000, 0), h0=start[:1])
code = reconstruction.symbolic_code(lin)
print(f"{int(code.n_regions)} of 2^{lorenz.RECTIFIED} regions are visited")
print(f"the ten most frequent hold {float(code.share[:10].sum()):.0%} of the time")

fig, ax = plt.subplots(figsize=(4.6, 3), layout="constrained")
colours = plt.get_cmap("tab20")(code.symbol.values[0] % 20)
ax.scatter(lin.states[0, :, 0], lin.states[0, :, 2], s=1.5, c=colours, linewidths=0)
ax.set(xlabel="x (standard deviations)", ylabel="z (standard deviations)")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Colours are regions, 20 colours in turn. They cut the attractor into patches.
