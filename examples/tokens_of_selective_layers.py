r"""
Tokens of deep selective layers
===============================

A deep stack of selective state-space layers (Mamba) moves its tokens from layer to layer. With thin
residual layers the depth becomes time, and the tokens follow a flow (Vo et al. 2025, arXiv
2410.03292). Do they converge to zero, or diverge? For tokens of one channel, the sign of
:math:`\mu = C^\top B` decides. This page compares the prediction with the paths, for one channel
and for two, and looks at :math:`P` of the depth. For your own weights, replace ``scalar`` or
``plane``.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import kpops

SHADES = ["#084594", "#2171b5", "#4292c6", "#9ecae1"]  # the first token is the darkest


def scalar(mu, step):
    """The flow of tokens of one channel."""
    flow = kpops.models.TokenFlow(1, 1).double()
    with torch.no_grad():
        flow.query_weight.fill_(1)
        flow.key_weight.fill_(mu)
        flow.step_weight.fill_(step)
    return flow


# %%
# Three regimes of one channel
# ----------------------------
#
# Every token grows or shrinks at the rate :math:`\mu \sum_{j \le l} x_j^2 (\dots)`, whose sum is
# positive. With :math:`\mu < 0` all tokens converge, like the inverse root of the depth. With
# :math:`\mu > 0` all diverge: in finite time if the step size does not fall as a token grows, and
# slowly if it does.

start = np.array([0.8, 1.1, 0.6, 0.9])[:, None]
cases = [
    ("convergence", scalar(-1, 1.0), np.geomspace(1e-2, 1e4, 200)),
    ("slow divergence", scalar(1, -1.0), np.geomspace(1e-2, 1e4, 200)),
    ("fast divergence", scalar(1, 1.0), np.linspace(0, 0.4, 400)),
]
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for ax, (name, flow, times) in zip(axes, cases, strict=True):
    found = kpops.token_dynamics(flow, start, np.concatenate([[0.0], times[times > 0]]))
    assert set(found.regime.values.ravel()) == {name}
    for token, colour in enumerate(SHADES):
        one = found.length.isel(trial=0, token=token)
        ax.plot(one.time, one, color=colour, label=f"token {token + 1}")
    ax.set(title=name, xlabel="depth", xscale="linear" if "fast" in name else "log")
axes[0].set(yscale="log", ylabel="length of a token")
t = np.geomspace(1, 1e4, 2)
axes[0].plot(t, (2 * np.log(2) * t) ** -0.5, "k:", label=r"$(2 \log 2\, t)^{-1/2}$")
axes[2].set(ylim=(0, 5))
axes[2].axvline(float(found.escape_time[0]), color="0.6", linestyle="--", label="escape")
for ax in (axes[0], axes[2]):
    ax.legend(frameon=False, fontsize=8)

# %%
# On the left, the first token follows its asymptote, and the later ones a parallel line below it.
# At the step size :math:`\log 2` of a token at zero and a decay of 1, their squares end at half of
# its square. In the middle, the first token follows the logarithm. The later ones, driven by those
# before them, are ahead of it. On the right, the second token, the longest at the start, reaches
# any length at a finite depth, which ends the run.
#
# The sign of the form of mu
# --------------------------
#
# With two channels, the first token stays on its ray. Along the direction u the sign of
# :math:`u^\top \mu u` takes the place of that of :math:`\mu`. The weights below have a
# symmetric part of :math:`\mu` with eigenvalues of both signs, so the plane of starts has sectors
# of both kinds.

plane = kpops.models.TokenFlow(2, 4, rng=0).double()
angles = np.linspace(0, 2 * np.pi, 73)[:-1]
ring = 0.8 * np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]  # a token for each trial
found = kpops.token_dynamics(plane, ring, np.linspace(0, 3, 61))
grown = np.array([one.dropna("time")[-1] > one[0] for one in found.length[..., 0]])

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for path, out in zip(found.tokens.isel(token=0), grown, strict=True):
    axes[0].plot(*path.values.T, color="#D55E00" if out else "#0072B2", linewidth=1)
axes[0].plot(*ring[:, 0].T, "k.", markersize=3)
axes[0].set(aspect="equal", xlim=(-2, 2), ylim=(-2, 2), xlabel="channel 1", ylabel="channel 2")
axes[0].set_title("first tokens: outwards (orange), inwards (blue)")
axes[1].axhline(0, color="0.7", linewidth=1)
for value in found.eigenvalue.values:
    axes[1].axhline(value, color="0.7", linestyle=":")
colours = np.where(grown, "#D55E00", "#0072B2")
axes[1].scatter(np.degrees(angles), found.coefficient[:, 0], c=colours, s=12)
axes[1].set(xlabel="direction of the token (degrees)", ylabel=r"$u^\top \mu\, u$")
agree = int((grown == (found.coefficient[:, 0] > 0)).sum())
axes[1].set_title(f"the sign predicts {agree} of {len(angles)} starts")

# %%
# The dotted lines are the two eigenvalues, between which the form varies.
#
# What the depth keeps of a token
# -------------------------------
#
# As the field of a neural ODE, the flow has an operator :math:`P` over depth: how a change of the
# tokens at one depth moves those below it. Where tokens converge it contracts, if slowly; where
# they diverge it expands.

depth = np.linspace(0, 3, 61)
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, flow, colour in [
    ("convergence", scalar(-1, 1.0), "#0072B2"),
    ("slow divergence", scalar(1, -1.0), "#D55E00"),
]:
    ode = kpops.models.NeuralODE(flow, 0.05, "rk4")
    lin = kpops.linearize(ode, ode.inputs(depth), h0=start.reshape(1, -1))
    P = lin.P.to_dense().reshape(60, 4, 60, 4)
    values = [np.linalg.svd(P[t, :, 0], compute_uv=False) for t in range(60)]
    lines = ax.plot(depth[1:], values, color=colour)
    lines[0].set_label(name)
ax.set(yscale="log", xlabel="depth t", ylabel="singular values of P[t, s], first s")
ax.legend(frameon=False)

# %%
# There are four singular values for four tokens. Under convergence all fall below 1, under slow
# divergence all grow.
