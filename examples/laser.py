r"""
A measured series: the laser of Santa Fe
========================================

No equation is known of a measured series, and often one variable alone was recorded. The intensity
of a far-infrared laser [1]_ is the classical case: it pulses, grows, and collapses at irregular
times. Delays stand for the variables that were not measured. We train a network on them, let it run
freely, and ask how far it forecasts, whether it keeps the statistics, and how chaotic it is.

.. [1] A. S. Weigend and N. A. Gershenfeld, Time Series Prediction, 1993, data set A. The package
   reservoirpy ships it: ``pip install 'kpops-flow[data]'``.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch

import kpops
from kpops import reconstruction
from kpops.plot.style import COLOURS

laser = kpops.systems.series("laser")
intensity = ((laser - laser.mean()) / laser.std()).values[0, :, 0].astype("float32")
DELAYS, N_TRAIN, CONTEXT, HORIZON = 16, 8000, 20, 200
delayed = np.stack([intensity[DELAYS - 1 - i : len(intensity) - i] for i in range(DELAYS)], -1)
seen, later = delayed[:N_TRAIN], delayed[N_TRAIN:]
print(f"{len(intensity)} steps; the network sees {N_TRAIN} of them, as {DELAYS} delays each")

# %%
# Training
# --------
#
# The network is almost linear: of its 60 units the first 16 are read as the delays, and 40 pass
# through a relu. At every eighth step the delays are set to the data
# (:func:`kpops.training.reconstruct`).

torch.manual_seed(0)
cell = kpops.models.PLRNNCell(0, 60, rectified=40)
with torch.no_grad():
    cell.W *= 0.3
history = kpops.training.reconstruct(
    cell,
    seen,
    folder=tempfile.mkdtemp(),
    interval=8,
    length=25,
    every=5,
    max_steps=8000,
    learning_rate=5e-3,
    rng=0,
)
first, last = float(history.loss[0]), float(history.loss[-1])
print(f"mean squared error of a step: from {first:.2f} to {last:.3f}")

# %%
# Forecasts
# ---------
#
# A forecast is valid until its error exceeds 0.4 standard deviations of the intensity. The median
# is over starts in the part that the network has not seen; a pulse lasts seven to eight steps.

cut = reconstruction.windows(later, CONTEXT + HORIZON, every=60)
context, ahead = cut[:, :CONTEXT], cut[:, CONTEXT:]
forecasts = {
    "network": reconstruction.forecast(cell, context, HORIZON),
    "linear": reconstruction.linear_forecast(seen, context, HORIZON),
    "persistence": reconstruction.persistence(context, HORIZON),
}
valid = {
    name: reconstruction.valid_prediction_time(made[..., :1], ahead[..., :1], lyapunov_time=1.0)
    for name, made in forecasts.items()
}
for name, result in valid.items():
    low, middle, high = result.valid_prediction_time.quantile([0.25, 0.5, 0.75]).values
    print(f"{name:12} valid for {middle:5.1f} steps ({low:.1f} to {high:.1f})")

times = valid["network"].valid_prediction_time.values
fig, axes = plt.subplots(3, 1, figsize=(8, 4.6), layout="constrained", sharex=True)
for ax, share in zip(axes, (0.25, 0.5, 0.75), strict=True):
    i = np.argsort(times)[int(share * (len(times) - 1))]
    ax.plot(ahead[i, :, 0], color="0.65", lw=3, label="laser")
    ax.plot(forecasts["network"][i, :, 0], color=COLOURS[0], lw=1.2, label="network")
    ax.axvline(times[i], color="0.4", lw=0.8, ls=":")
    ax.spines[["top", "right"]].set_visible(False)
fig.supylabel("intensity (standard deviations)", fontsize=10)
axes[2].set_xlabel("steps ahead")
axes[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95))
plt.show()

# %%
# The three starts have the lower quartile, the median and the upper quartile of the valid time, at
# the dotted lines. What is hard to forecast is the next collapse.
#
# The free run
# ------------
#
# Beyond that only statistics can be right. Let the network run freely for as long as the part that
# it has not seen, and compare with that part. The first stretch of the laser itself, of the same
# length, says how far apart two true runs are.

n = len(later)
free = reconstruction.forecast(cell, seen[:CONTEXT], n)[..., :1]
for name, run in (("network", free), ("laser, earlier", seen[:n, :1])):
    spectrum = reconstruction.power_spectrum_error(run, later[:, :1])
    space = reconstruction.state_space_divergence(run, later[:, :1])
    print(f"{name:15} D_H {float(spectrum.estimate):.3f}   D_stsp {float(space.estimate):.3f}")

fig, axes = plt.subplots(2, 1, figsize=(8, 3.4), layout="constrained", sharex=True, sharey=True)
for ax, run, name, colour in (
    (axes[0], later[:, 0], "laser", "0.3"),
    (axes[1], free.values.reshape(-1), "network, running freely", COLOURS[0]),
):
    ax.plot(run[:1200], color=colour, lw=0.7)
    ax.set_title(name, loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("intensity")
axes[1].set(xlabel="step", ylabel="intensity")
plt.show()

# %%
# The network pulses, grows and collapses at irregular times, too. But its collapses are shallower,
# and the small pulses after them are rare: its D_H and D_stsp are above those of two true runs.
#
# Exponents
# ---------
#
# The network is a model like any other here, so its Lyapunov exponents are those of the system that
# it has become.

starts = torch.zeros(8, 60)
starts[:, :DELAYS] = torch.from_numpy(seen[1000::900][:8].copy())
exponents = kpops.lyapunov_spectrum(cell, 3, h0=starts, n_steps=2000, transient=500, rng=0)
for mode in (1, 2, 3):
    value, error = (float(exponents[k].sel(mode=mode)) for k in ("exponent", "stderr"))
    print(f"exponent {mode}: {value:+.4f} +- {error:.4f} per step")
growth = 1 / float(exponents.exponent[0])
print(f"forecasts are valid for {float(valid['network'].median_time) / growth:.1f} Lyapunov times")
