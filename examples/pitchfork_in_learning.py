r"""
A pitchfork in learning
=======================

A network at rest that has to learn two memories must pass bifurcations on the way. Here two units
learn from two others, as in Hazelden and Shea-Brown (2026, arXiv:2605.12763).
:func:`kpops.continuation` follows the state of rest through the checkpoints, finds where it splits,
and follows the new states. Near such a point one direction of the parameters moves the network more
than all others: the critical channel.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import kpops
from kpops.plot.style import COLOURS

# %%
# A student and its teacher
# -------------------------
#
# Both are :math:`h' = \tanh(W h)` without input. The teacher, with W = diag(1.5, 1.2), keeps each
# unit at one of two values. The student starts from W = diag(0.5, 0.6), and forgets everything. It
# sees short trajectories of the teacher from random states.


def network(weights):
    """Two units without bias, which ignore their input."""
    rnn = nn.RNN(1, 2, bias=False, batch_first=True).double()
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.weight_hh_l0.copy_(torch.diag(torch.tensor(weights)))
    rnn.weight_ih_l0.requires_grad_(False)
    return rnn


torch.manual_seed(0)
teacher, student = network([1.5, 1.2]), network([0.5, 0.6])
starts = 0.5 * torch.randn(1, 64, 2, dtype=torch.float64)
silence = torch.zeros(64, 20, 1, dtype=torch.float64)
with torch.no_grad():
    target = teacher(silence, starts)[0]

optimizer = torch.optim.SGD([student.weight_hh_l0], lr=0.02)
losses, checkpoints = [], []
for step in range(601):
    if step % 10 == 0:
        checkpoints.append((step, copy.deepcopy(student.state_dict())))
    optimizer.zero_grad()
    loss = (student(silence, starts)[0] - target).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
# Where the rest splits
# ---------------------
#
# The parameter of the branches is the step of training: between two checkpoints, the weights move
# on a straight line. With ``switch=True`` the branches that leave the rest are followed, too.

rest = torch.zeros(1, 2, dtype=torch.float64)
found = kpops.continuation(student, rest, checkpoints, switch=True)
for event in found.event.values:
    e = found.sel(event=event)
    print(
        f"step {float(e.event_parameter):6.2f}: {e.kind.item():9} on branch "
        f"{int(e.event_branch)}, coefficient {float(e.coefficient):+.3f}"
    )

# %%
# Each pitchfork of the rest is supercritical (the coefficient is negative): two new states split
# off. The last network has more states than these. :func:`kpops.fixed_points` finds them at the end
# of training, and the same function follows them back in time.

student.load_state_dict(checkpoints[-1][1])
last = kpops.fixed_points(student, starts[0])
memories = last.isel(point=last.is_stable.values)
back = kpops.continuation(student, memories, checkpoints, (600, 0))
for event in back.event.values:
    e = back.sel(event=event)
    print(
        f"memory {int(e.event_branch)}: {e.kind.item():9} at step {float(e.event_parameter):6.2f}"
    )

figure, axes = plt.subplots(3, 1, figsize=(6.5, 7), sharex=True, layout="constrained")
axes[0].semilogy(losses, color=COLOURS[6], linewidth=1)
axes[0].set_ylabel("loss")
for ax in axes:
    for when in found.event_parameter.values:
        ax.axvline(when, color="0.8", linewidth=0.8, zorder=0)
for ax, unit in zip(axes[1:], (0, 1), strict=True):
    kpops.plot.branches(found, ax, unit=unit)
    kpops.plot.branches(back, ax, unit=unit)
    ax.set_xlabel("")
axes[1].get_legend().remove()
axes[2].set_xlabel("step of training")
plt.show()

# %%
# The loss falls at the pitchforks (grey lines). Until the first, the student has nothing to keep a
# memory in. Two of the four memories at the end are those that split off from the rest there. The
# other two arise near the second pitchfork by folds, each together with a saddle: the weights
# between the units are not quite zero while it learns, so that the state that has already split is
# not symmetric, and can fold but not fork.
#
# The critical channel
# --------------------
#
# The states that split off move with the weights by :math:`(1 - A)^{-1} J`. Just after the split,
# an eigenvalue of A is 1 - d with a small d. :func:`kpops.critical_channel` is the part of the
# stationary kernel :math:`P K P^{*}` that this eigenvalue carries. We look at the points of one
# branch while d grows, with the weights on the line between the checkpoints.


def student_at(step):
    """The student with the weights of the path."""
    late = min(np.searchsorted([s for s, _ in checkpoints], step, side="right"), 60)
    (a, early), (b, after) = checkpoints[late - 1], checkpoints[late]
    share = (step - a) / (b - a)
    model = copy.deepcopy(student)
    model.load_state_dict({k: torch.lerp(w, after[k], share) for k, w in early.items()})
    return model


rows = []
arm = found.isel(branch=1, point=slice(1, None))
gap = 1 - arm.eigenvalue_real[:, 0].values
for i in range(np.argmax(np.diff(gap) < 0)):
    lin = kpops.linearize_at(student_at(float(arm.parameter[i])), arm.state.values[[i]])
    channel = kpops.critical_channel(lin)
    rule = kpops.learning_rule(lin, "critical channel", damping=0.1)
    tops = [float(kpops.eigsh(R, 1, rng=0).eigenvalue[0]) for R in (lin.flow, rule)]
    rows.append([gap[i], *tops, channel.residual])
d, plain, natural, residual = np.array(rows).T

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2), layout="constrained")
left.loglog(d, plain, "o-", color=COLOURS[1], markersize=3, label="gradient descent")
left.loglog(d, natural, "o-", color=COLOURS[2], markersize=3, label="critical channel, damping 0.1")
left.loglog(d, plain[0] * d[0] / d, ":", color="0.5", label="slope -1")
left.set(xlabel="distance d of the eigenvalue from 1", ylabel="largest step of the state")
left.legend(frameon=False, fontsize=8)
right.loglog(d, residual, "o-", color=COLOURS[0], markersize=3)
right.loglog(d, residual[0] * d / d[0], ":", color="0.5", label="slope 1")
right.set(xlabel="distance d of the eigenvalue from 1", ylabel="rest outside the channel, relative")
right.legend(frameon=False, fontsize=8)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Left: the largest eigenvalue of the kernel, which is how far a step of gradient descent moves the
# state at most, grows as 1/d. On the arms of :math:`z' = (1 + \mu) z - z^3` it is :math:`1 / (4
# \mu) = 1 / (2 d)`. With natural gradient in the one channel, it is the damping
# there, however small d is. Right: what is outside the channel falls in proportion to d, so that
# near the pitchfork all four weights act as one.
