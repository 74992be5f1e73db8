r"""
Interference between four tasks
===============================

One network learns four tasks, and a context at the beginning of a trial selects the task:
Memory-Pro, Memory-Anti, Delay-Pro or Delay-Anti. They can be paired in two ways. Tasks with the
same *timing* (both Memory, or both Delay) have the same inputs after the context. Tasks with the
same *response* (both Pro, or both Anti) have the same targets. Figure 5 of the KPFlow paper reports
that during learning the states reorganise from the first pairing to the second, at about the same
iteration in all networks. It also reports that the operators :math:`P_i K_{ij} P_j^{*}`, through
which learning task :math:`j` moves the trajectories of task :math:`i`, prefer the second pairing
before the states do. Here are five networks. All of them reorganise, each when its own loss falls.
Whether their operators do so earlier depends on the measure of alignment: with one of the three
measures below, they do.
"""

import functools

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from networks import GALLERY, TASKS, trained

import kpops

# %%
# We use five GRUs of 64 units, which differ in their seed, and five noise-free trials of each task.
# The angles are the same for all tasks, so every trial has a counterpart in the other tasks:
# ``condition="angle"``. Put your own networks here, and inputs with a coordinate (or a list of
# labels) that gives the task of each trial.

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
#   The effect of the angle on the states.
# ``trace_alignment``
#   :math:`\operatorname{tr} P_i K_{ij} P_j^{*}`, normalised: whether a change of the weights moves
#   both tasks alike.
# ``kernel_alignment``
#   Whether the flow operators :math:`P_i K_{ii} P_i^{*}` of both tasks relate their trials alike.
# ``gradient_tuning_cosine``
#   The operators between the errors of both tasks,
#   :math:`\langle \mathrm{Err}_i, P_i K_{ij} P_j^{*}\, \mathrm{Err}_j\rangle`, trial by trial and
#   without the part that all trials share.
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
# In the upper row the network fixates and does not respond yet. Its states form blocks of equal
# timing. Within a block the tuning agrees to the second digit: with respect to the angle, the
# network does not distinguish Pro from Anti. Its operators form the same blocks. But the targets of
# Pro and Anti are opposite, so with the errors on both sides (right), learning one of them undoes
# the other. In the lower row all measures form blocks of equal response.
#
# Which pairing, and when
# -----------------------
#
# The *preference* of a measure is the mean cosine of tasks with the same response minus that of
# tasks with the same timing. Where it crosses zero, the network reorganises.

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
# *States.* They reorganise in every network, abruptly, when its loss leaves the plateau. The
# iterations differ between networks by more than a half. So in these small networks "at about the
# same iteration" holds only when iterations are counted from the fall of the loss.
#
# *Operators.* By trace and by kernel alignment, which do not involve the targets, they prefer the
# timing as long as the states do, and change with them, at the same checkpoint. We see no lead
# here.
#
# *Operators and errors.* These prefer the response from the start, hundreds of iterations before
# the states. So they show the paper's claim, but it is no foresight of the network: as long as the
# states of Pro and Anti are the same, opposite targets alone produce it. It does show that all
# along the plateau, where nothing seems to happen, the errors push gradient descent to separate Pro
# from Anti, through operators that are nearly the same for both and move them together.
#
# By chance?
# ----------
#
# With five trials of each task, cosines can be large by chance. We exchange the tasks of trials
# with the same angle at random, many times, and count how often the cosines of tasks with the same
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
# A cosine has no size, but the effect of a step on one task on the loss of another has.
# :func:`kpops.accumulate_interference` sums it over training. (It describes plain gradient descent
# at the weights that training went through; ours used Adam, so read the signs and the ratios.) This
# is the effect on each task of the other three, from the plateau on.

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
# If tasks did not interact the share would be 0, and if all were one task 0.75. It is between a
# third and a half, with a large spread over networks. On the plateau the others help little, or
# harm the Delay tasks slightly. When the states reorganise they begin to help, and they do so to
# the end: learning arrives at the pairing in which tasks share.
