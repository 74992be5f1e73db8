r"""
Lyapunov exponents and the edge of chaos
========================================

How fast do nearby trajectories separate? :func:`kpops.lyapunov_spectrum` follows tangent vectors
along the trajectories of any recurrent model, by the same state Jacobians that make up :math:`P`.
The blocks of :math:`P` are their products, and the exponents are the limits, per step, of the
logarithms of the singular values of long blocks. We test the function on a system with known
exponents, and then find where a random tanh network becomes chaotic.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import kpops
from kpops.plot.style import COLOURS

# %%
# A known system
# --------------
#
# A vector field and a solver make a model: the Lorenz system takes three lines. With ``dt`` the
# exponents are per unit of time. Sixteen trials start on the attractor or near it, and have 15
# units of time to reach it.


def lorenz(t, h):
    """The vector field of Lorenz (1963)."""
    x, y, z = h.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


flow = kpops.models.NeuralODE(lorenz, dt=0.01, method="rk4")
generator = torch.Generator().manual_seed(0)
h0 = torch.tensor([0.0, 0, 25]) + 10 * torch.randn(16, 3, generator=generator)
run = {"h0": h0.double(), "n_steps": 5000, "transient": 1500, "dt": 0.01, "rng": 0}
result = kpops.lyapunov_spectrum(flow, **run)

print("mode      known   measured")
for mode, known in enumerate([0.9056, 0, -14.572]):
    value, error = float(result.exponent[mode]), float(result.stderr[mode])
    print(f"{mode + 1:4} {known:10.3f} {value:10.3f} +- {error:.3f}")
print(f"sum  {-41 / 3:10.3f} {float(result.exponent.sum()):10.3f}")
print(f"Kaplan-Yorke dimension {float(result.kaplan_yorke_dimension):.3f}, known 2.062")

fig, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
kpops.plot.lyapunov_spectrum(result, axes[0])
kpops.plot.lyapunov_history(result.sel(mode=[1, 2]), axes[1])
kpops.plot.finite_time_exponents(result, axes[2])
axes[0].legend(frameon=False, loc=(0.05, 0.4), fontsize=8)
axes[1].legend(frameon=False, loc="center right", fontsize=8)
axes[2].legend(frameon=False, loc="lower left", fontsize=8)
plt.show()

# %%
# The sum is the divergence of the field, which is the same everywhere, so it has no statistical
# error. The middle panel shows the two leading exponents that an earlier end of the run would have
# given, with one standard error around the final value (shaded). The zero exponent belongs to the
# direction of the flow itself. The right panel shows the same growth in windows of a third of a
# unit of time: states are pushed apart and drawn together by turns, and the exponent of chaos is a
# small difference of the two.
#
# Directions
# ----------
#
# :func:`kpops.covariant_lyapunov_vectors` gives the directions that grow at these rates. The angles
# between them show how well growth and decay are separated.

vectors = kpops.covariant_lyapunov_vectors(flow, **run, angles=True, interval=5)
smallest = vectors.covariant_angle.min(("trial", "time")).values
for i, j in ((0, 1), (0, 2), (1, 2)):
    print(f"smallest angle of vectors {i + 1} and {j + 1}: {smallest[i, j]:.3f}")
kpops.plot.covariant_angles(vectors)
plt.show()

# %%
# The contracting direction (mode 3) keeps its distance from the other two, here a tenth of a
# radian. The first two, that of growth and that of the zero exponent, come close to each other.
#
# From rest to chaos
# ------------------
#
# Now we take a tanh network of 200 units without inputs and biases, whose recurrent weights are
# PyTorch's times :math:`g`. Replace ``torch.nn.RNN`` by your own module. The state of rest has the
# exponent :math:`\log \rho`, where :math:`\rho` is the spectral radius, about :math:`g/\sqrt{3}`.
# So it loses its stability near :math:`g = \sqrt{3}`. What happens then?


def network(g, seed):
    """A random network at the scale g."""
    rnn = torch.nn.RNN(1, 200, bias=False, batch_first=True, dtype=torch.float64)
    kpops.models.initialize_recurrent(rnn, g, distribution="uniform", rng=seed)
    return rnn


def free(rnn, k):
    """The k leading exponents of the autonomous network."""
    h0 = np.random.default_rng(0).standard_normal((4, 200))
    return kpops.lyapunov_spectrum(rnn, k=k, h0=h0, n_steps=1200, transient=500, rng=0)


scales, seeds = [1, 1.25, 1.5, 1.625, 1.75, 2, 2.25, 2.5, 2.75, 3], [0, 1, 2]
sweep = xr.concat(
    [
        xr.concat([free(network(g, s), k=1) for s in seeds], xr.Variable("seed", seeds))
        for g in scales
    ],
    xr.Variable("g", scales),
)
radius = [float(kpops.models.spectral_radius(network(g, 0)).squeeze()) for g in scales]
print("g      log of radius   first exponent of seeds 0, 1, 2")
for g, rho, row in zip(scales, radius, sweep.exponent.sel(mode=1).values, strict=True):
    print(f"{g:<8g} {np.log(rho):11.3f}  " + "".join(f"{value:9.3f}" for value in row))

fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for seed, colour in zip(seeds, COLOURS, strict=False):
    first = sweep.sel(seed=seed, mode=1)
    style = {"fmt": ".-", "color": colour, "lw": 1, "label": f"seed {seed}"}
    axes[0].errorbar(scales, first.exponent, first.stderr, **style)
axes[0].plot(scales, np.log(radius), "--", color="0.45", lw=1, label=r"$\log \rho$, seed 0")
axes[0].axhline(0, color="0.45", lw=0.6)
axes[0].axvline(3**0.5, color="0.45", lw=0.8, ls=":")
axes[0].set(xlabel="g", ylabel="first Lyapunov exponent (1/step)", ylim=(-0.55, 0.2))
axes[0].legend(frameon=False)
axes[0].spines[["top", "right"]].set_visible(False)
spectra = {f"g = {g:g}": free(network(g, 0), k=100) for g in (1, 2, 2.5, 3)}
kpops.plot.lyapunov_spectrum(spectra, axes[1])
for name, spectrum in spectra.items():
    print(f"{name:8} Kaplan-Yorke dimension {float(spectrum.kaplan_yorke_dimension):.1f}")
plt.show()

# %%
# As long as the rest state is stable, all trials converge to it, and the exponent is its own
# (dashed). It crosses zero where the radius of the given network is 1; for 200 units this is near
# :math:`\sqrt{3}` (dotted), not exactly there. The motion that replaces the rest does not follow
# the dashed line. For a while its exponent stays at zero, as in an oscillation, since along an
# oscillation nothing grows or decays. Chaos comes later, and in each network at another :math:`g`.
# That it begins where the rest ends is a law for infinitely many units (Sompolinsky, Crisanti and
# Sommers 1988).
#
# So a radius above 1 means that the rest state is unstable, not that there is chaos. The spectrum
# (right) shows the extent of chaos: with :math:`g` more exponents are positive, and the triangles,
# the Kaplan-Yorke dimensions of the attractors, move to the right. Networks with a large initial
# :math:`g`, as in :doc:`g_sweep`, begin to learn from there.
