r"""
Theorem 1: one operator for each weight
=======================================

The parameter operator :math:`K` describes what all weights together can do to the steps of a
network. By Theorem 1 of the KPFlow paper it is a sum over them,

.. math:: K = \sum_j K_j, \qquad K_j = J_j J_j^{*},

with one term for each weight matrix and each bias. The features that a weight multiplies bound the
rank of its term: the inputs, the previous states, or the constant 1 of a bias. This example adds
the terms up, and compares their ranks with their bounds before and after training.
"""

import matplotlib.pyplot as plt
import numpy as np
from networks import GALLERY, TASKS, trained

import kpops

# %%
# We take a GRU of 64 units that has learned Memory-Pro, and the same network before training. Each
# is linearised about the trajectories of 20 noise-free trials. For your own model, one line is
# enough: ``lin = kpops.linearize(model, inputs)``.

[run] = [trained(training) for training in GALLERY["collapse"]]
task = TASKS["memory_pro"](20, angles="even", noise=0)
before = kpops.linearize(run.training.network(), task.inputs)
after = kpops.linearize(run.network, task.inputs)
print(after)

# %%
# The sum
# -------
#
# ``lin.K_by_parameter`` holds the terms under the names of the module's parameters. Operators can
# be added, so the theorem is one line of code. On a random vector both sides agree to rounding.

rng = np.random.default_rng(0)
q = rng.standard_normal(after.K.shape[1]).astype(after.K.dtype)
for name, lin in (("before", before), ("after", after)):
    total = sum(lin.K_by_parameter.values())
    whole = lin.K @ q
    gap = np.linalg.norm(total @ q - whole) / np.linalg.norm(whole)
    print(f"{name + ':':8} |sum_j K_j q - K q| / |K q| = {gap:.0e}")

# %%
# With :math:`P` on both sides it remains a sum. So every weight has its own term
# :math:`P K_j P^{*}` in the flow operator, and its own part of every state change.
#
# The bounds
# ----------
#
# A weight matrix of a GRU acts through three gates on each unit, with a row of weights of its own
# for each gate and unit. If the features that it multiplies span :math:`r` dimensions over all
# trials and times, it reaches at most 3 x units x :math:`r` directions of the trajectory space.
# :func:`kpops.rank_bounds` compares this bound with the actual rank.

bounds = {"before": kpops.rank_bounds(before), "after": kpops.rank_bounds(after)}
columns = ["feature_rank", "bound", "bound_at_tol", "rank", "participation", "trace_share"]
print(f"trajectory space: {after.space.size} dimensions")
for name, result in bounds.items():
    print(f"\n{name} training")
    print(result[columns].to_dataframe()[columns].astype(float).round(2).to_string())
    print(
        f"K itself: bound {float(result.bound_of_sum):.0f}, rank {float(result.rank_of_sum):.0f}, "
        f"participation ratio {float(result.participation_of_sum):.1f}"
    )

# %%
# In the figure, light grey is the bound from the rank of the features. Dark grey is the bound from
# their *sizes* above a tolerance (1e-6 of the largest eigenvalue), and blue is the number of
# eigenvalues above it. The dot is the participation ratio, which counts the modes that matter.

fig, axes = plt.subplots(2, 1, figsize=(8.5, 4.6), layout="constrained")
for ax, (name, result) in zip(axes, bounds.items(), strict=True):
    kpops.plot.rank_bounds(result, ax)
    ax.set_title(f"{name} training", fontsize=10, loc="left")
    ax.set_xlim(right=1.5 * max(float(b.bound_of_sum) for b in bounds.values()))
    ax.tick_params(labelsize=9)
axes[0].set_xlabel("")
axes[1].get_legend().remove()
plt.show()

# %%
# The theorem is strong for inputs and biases. They span few dimensions, whatever the network does,
# and their operators use most of what the bound allows. It is weak for the recurrent weights, whose
# features are the states. Their rank counts every dimension, however faint, so the bound is a tenth
# of the space. Even the sizes of the features explain only a part of the difference. The rest is
# due to the gates, whose gains are mostly far below their maximum.
#
# Training moves learning from the inputs to the recurrence. Before it, most of the trace of
# :math:`K` belongs to the input weights and their bias; after it, to the recurrent weights, as the
# states have grown. Meanwhile the two kinds of rank diverge. The number of eigenvalues of :math:`K`
# grows, while the participation ratio of :math:`K` and of every :math:`K_j` falls: there are more
# directions in which the network could learn, and fewer in which it mostly would.
