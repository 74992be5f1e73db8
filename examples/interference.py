r"""
Interference between four tasks
===============================

One network learns four tasks, and a context at the beginning of a trial tells which is asked for:
Memory-Pro, Memory-Anti, Delay-Pro or Delay-Anti. They can be paired in two ways. Tasks with the
same *timing* (both Memory, or both Delay) have the same inputs after the context; tasks with the
same *response* (both Pro, or both Anti) have the same targets. Figure 5 of the KPFlow paper reports
that during learning the states reorganise from the first pairing to the second, at about the same
iteration in all networks, and that the operators :math:`P_i K_{ij} P_j^{*}`, by which learning task
:math:`j` moves the trajectories of task :math:`i`, prefer the second pairing before the states do.
Here are five networks. All of them reorganise, each when its own loss falls. Whether their
operators do so before depends on what is meant by the alignment of operators: of the three measures
below, one does.
"""

import functools

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from networks import GALLERY, TASKS, trained

import kpops

# %%
# Five GRUs of 64 units, which differ by their seed, and five noise-free trials of each task. The
# angles are the same for all tasks, so that every trial has its like in the other tasks:
# ``condition="angle"``. Put your own networks here, and inputs with a coordinate (or a list of
# labels) that tells the task of each trial.

runs = [trained(training) for training in GALLERY["interference"]]
task = TASKS["four_tasks"](20, angles="even", noise=0)
measure = functools.partial(
    kpops.interference, targets=task.targets, condition="angle", num_matvecs=8, rng=0
)
results = []
for run in runs:
    checkpoints = kpops.training.checkpoints(run.folder)[::2]
    results.append(kpops.over_training(run.network, checkpoints, task.inputs, measure))
seeds = xr.Variable("seed", [run.training.seed for run in runs])
result = xr.concat(results, seeds, combine_attrs="drop_conflicts")

# %%
# Two pairings
# ------------
#
# :func:`kpops.interference` compares tasks in several ways (its page has the formulas). These four
# are matrices of cosines between tasks:
#
# ``state_tuning_cosine``
#   What the angle changes in the states.
# ``trace_alignment``
#   :math:`\operatorname{tr} P_i K_{ij} P_j^{*}`, normalised: whether a change of the weights
#   moves both tasks alike.
# ``kernel_alignment``
#   Whether the flow operators :math:`P_i K_{ii} P_i^{*}` of both tasks relate their trials alike.
# ``gradient_tuning_cosine``
#   The operators between the errors of both tasks,
#   :math:`\langle \mathrm{Err}_i, P_i K_{ij} P_j^{*}\, \mathrm{Err}_j\rangle`, trial by trial and
#   less what all trials have in common.
#
# The mean over seeds, before the first of the networks learns to respond, and at the end:

TITLES = {
    "state_tuning_cosine": "states",
    "trace_alignment": "operators: trace",
    "kernel_alignment": "operators: kernel",
    "gradient_tuning_cosine": "operators and errors",
}
plateau, last = 300, int(result.step[-1])
mean = result[list(TITLES)].mean("seed", keep_attrs=True)
short = ["M Pro", "M Anti", "D Pro", "D Anti"]
mean = mean.assign_coords(task=short, task_in=short)

fig, axes = plt.subplots(2, 4, figsize=(8.5, 4.4), layout="constrained")
for row, step in zip(axes, (plateau, last), strict=True):
    for ax, (name, title) in zip(row, TITLES.items(), strict=True):
        kpops.plot.alignment(mean[name].sel(step=step), ax, cmap="RdBu_r", vmin=-1)
        ax.images[0].colorbar.remove()
        ax.set(xlabel="", ylabel="")
        ax.set_title(title if step == plateau else "", fontsize=10)
        ax.tick_params(labelsize=8)
        ax.label_outer()
    row[0].set_ylabel(f"iteration {step}")
fig.colorbar(axes[0, 0].images[0], ax=axes, label="cosine", shrink=0.6)

# %%
# In the upper row the network fixates and does not respond yet. Its states are in blocks of equal
# timing, and within a block the tuning is the same to the second digit: as far as the angle goes,
# the network does not know that there are Pro and Anti. Its operators are in the same blocks. But
# the targets of Pro and Anti are opposite, so with the errors on both sides (right) what one learns
# the other must unlearn. In the lower row all measures have blocks of equal response.
#
# Which pairing, and when
# -----------------------
#
# The mean cosine of tasks with the same response less that of tasks with the same timing is the
# *preference* of a measure. Where it crosses zero, the network reorganises.

RESPONSE = [("memory_pro", "delay_pro"), ("memory_anti", "delay_anti")]
TIMING = [("memory_pro", "memory_anti"), ("delay_pro", "delay_anti")]


def over(pairs, values):
    """Mean over some pairs of tasks."""
    return sum(values.sel(task=i, task_in=j, drop=True) for i, j in pairs) / len(pairs)


preference = over(RESPONSE, result[list(TITLES)]) - over(TIMING, result[list(TITLES)])
fell = result.loss < 0.5 * result.loss.sel(step=plateau)
first = {"loss falls": fell.idxmax("step").values}
first |= {TITLES[name]: (p > 0).idxmax("step").values for name, p in preference.items()}
table = pd.DataFrame(first, index=[f"seed {seed}" for seed in seeds.values]).T
print("iteration at which the loss is half that of the plateau, and the response is preferred\n")
print(table.to_string())
print(f"\npreference at iterations 0, {plateau} and {last}: mean over seeds (standard deviation)\n")
for name, values in preference.items():
    chosen = values.sel(step=[0, plateau, last])
    cells = zip(chosen.mean("seed").values, chosen.std("seed", ddof=1).values, strict=True)
    print(f"{TITLES[name]:20}" + "".join(f"{m:8.2f} ({d:.2f})" for m, d in cells))

fig, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
panels = {"loss": result.loss, **{TITLES[name]: p for name, p in preference.items()}}
for ax, (title, values) in zip(axes, panels.items(), strict=True):
    kpops.plot.over_training(values.transpose("step", "seed"), ax, lw=1, marker="")
    ax.set(ylabel="", title=title)
    if title != "loss":
        ax.axhline(0, color="0.45", lw=0.6)
    if ax is not axes[-1]:
        ax.get_legend().remove()
axes[0].set(yscale="log")
axes[1].set_ylabel("response - timing")
axes[-1].get_legend().set_title("seed")

# %%
# *States.* They reorganise in every network, and abruptly, when its loss leaves the plateau.
# Between networks the iterations differ by more than a half, so "at about the same iteration" holds
# of these small networks only when iterations are counted from the fall of the loss.
#
# *Operators.* By trace and by kernel alignment, which know nothing of targets, they prefer the
# timing as long as the states do, and change with them, at the same checkpoint. We see no lead
# here.
#
# *Operators and errors.* These prefer the response from the start, hundreds of iterations before
# the states. So the paper's claim can be seen in them, but it is no foresight of the network: as
# long as the states of Pro and Anti are the same, opposite targets alone make it so. What it does
# say is that all along the plateau, where nothing seems to happen, gradient descent is asked to
# part Pro from Anti, by operators that are nearly the same for both and move them together.
#
# By chance?
# ----------
#
# With five trials of each task, cosines can be large by accident. Exchange the tasks of trials with
# the same angle at random, many times, and see how often the cosines of tasks with the same
# response are as high. Here is the largest of these p-values over both pairs and all networks.

nulls = []
test = functools.partial(measure, num_matvecs=0, n_permutations=999)
for run in runs:
    saved = kpops.training.checkpoints(run.folder)
    chosen = [saved[saved.steps.index(step)] for step in (plateau, last)]
    nulls.append(kpops.over_training(run.network, chosen, task.inputs, test))
nulls = xr.concat(nulls, seeds, combine_attrs="drop_conflicts")
for name in ("state_tuning_cosine", "gradient_tuning_cosine"):
    upper = nulls[f"{name}_p_upper"]
    p = [
        max(float(upper.sel(step=s, task=i, task_in=j).max()) for i, j in RESPONSE)
        for s in nulls.step
    ]
    print(f"{TITLES[name]:21} p <= {p[0]:.3f} at iteration {plateau}, p <= {p[1]:.3f} at {last}")

# %%
# Help and harm
# -------------
#
# A cosine has no size. What a step on one task does to the loss of another has, and
# :func:`kpops.accumulate_interference` adds it up over training. (It accounts for plain gradient
# descent at the weights that training went through; ours was by Adam, so read the signs and the
# ratios.) From the plateau on, this is what the other three tasks did to each.

total = kpops.accumulate_interference(result.sel(step=slice(plateau, None)), learning_rate=2e-3)
others = total.accumulated_from_others.transpose("step", "task", "seed")
whole = total.accumulated_loss_change.sum("task_in")
share = (others / whole).isel(step=-1)
print(
    "share of the other tasks in the decrease of the loss, mean over seeds (standard deviation)\n"
)
for name, values in share.groupby("task"):
    print(f"{name:12} {float(values.mean()):.2f} ({float(values.std(ddof=1)):.2f})")

spread = {"estimate": others.mean("seed"), "stderr": others.std("seed", ddof=1) / len(runs) ** 0.5}
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
kpops.plot.over_training(xr.Dataset(spread), ax, marker="")
ax.axhline(0, color="0.45", lw=0.6)
ax.ticklabel_format(axis="y", scilimits=(0, 0))
ax.set_ylabel("change of the loss\nby other tasks")
plt.show()

# %%
# If tasks did not touch each other the share would be 0, and if all were one task 0.75. It is
# between a third and a half, with a large spread over networks. On the plateau the others help
# little, or do some harm to the Delay tasks. When the states reorganise they begin to help, and
# they go on to the end: of the two pairings, the one that learning arrives at is the one in which
# tasks share.
