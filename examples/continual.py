r"""
New tasks, and the stability gap
================================

A network that has learned a task learns another one beside it. Nothing is taken away: the trials of
the old task are replayed in every iteration. Yet its loss rises at once, and recovers only later.
De Lange, van de Ven and Tuytelaars (2023) found this *stability gap* by evaluating at every
iteration, and not just at the ends of tasks.

The blocks :math:`P_i K_{ij} P_j^{*}` of the flow operator say why. Where the old task :math:`i` is
learned, its gradient :math:`g_i` vanishes, and that of the new task, :math:`g_j`, does not. So the
loss of the old task changes by :math:`-\langle g_i, g_j\rangle` per step, by interference alone,
until the damage has made its own gradient large. :func:`kpops.interference` measures both parts.
"""

import functools

import matplotlib.pyplot as plt
import torch

import kpops
from kpops.plot.style import COLOURS
from kpops.training import Measured, stability_gap

# %%
# A sequence of three tasks
# -------------------------
#
# Memory-Pro, Memory-Anti and Delay-Pro, with eight trials each, in a GRU of 32 units. A context
# input names the task. The loss of a task is its part of the mean squared error of all trials.

NAMES = ["memory_pro", "memory_anti", "delay_pro"]
trials = kpops.tasks.four_task_mix(32, angles="even", noise=0, steps=(2, 3, 3, 4))
trials = trials.isel(trial=trials.task.isin(NAMES))
inputs, targets = (torch.from_numpy(trials[name].values) for name in ("inputs", "targets"))
of_task = {name: torch.from_numpy((trials.task == name).values) for name in NAMES}

torch.manual_seed(0)
network = kpops.Network(torch.nn.GRU(inputs.shape[-1], 32), torch.nn.Linear(32, 3))


def losses():
    """Loss of each task."""
    error = (network(inputs) - targets).square().mean((1, 2)) / len(inputs)
    return {name: error[here].sum() for name, here in of_task.items()}


def update(optimizer, learned):
    """Make one step on some of the tasks."""
    optimizer.zero_grad()
    sum(losses()[name] for name in learned).backward()
    optimizer.step()


# %%
# Between the switches we train by Adam until the tasks so far are learned. After a switch come 150
# steps of plain gradient descent on the recurrent weights, of which interference is measured at
# every iteration, as :class:`kpops.training.Measured` does in any loop. The curves of
# :func:`kpops.training.stability_gap` add up, step by step, what each task did to each other.

ETA, STEPS = 0.015, 150
measure = functools.partial(kpops.interference, targets=trials.targets, num_matvecs=0)
gaps, true = [], []
for number in (1, 2):
    known, learned = NAMES[:number], NAMES[: number + 1]
    adam = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(500):
        update(adam, known)
    print("after Adam:", {name: round(loss.item(), 5) for name, loss in losses().items()})
    descent = torch.optim.SGD(network.recurrent.parameters(), ETA)
    course = []
    with Measured(network, trials.inputs, measure, every=1) as during:
        for step in range(STEPS + 1):
            course.append([loss.item() for loss in losses().values()])
            if step < STEPS:
                update(descent, learned)
                during.step()
    gaps.append(stability_gap(during.result(), ETA, learned=learned))
    true.append(torch.tensor(course))
    for i, name in enumerate(known):
        gap, real = gaps[-1].sel(task=name), true[-1][:, i] - true[-1][0, i]
        print(
            f"  {name} while {learned[-1]} is added: rises by {float(gap.peak):.5f} until "
            f"iteration {int(gap.peak_step)}, falls by {float(gap.gap):.5f} "
            f"(true rise {real.max():.5f} until {int(real.argmax())})"
        )

# %%
# Rise and recovery
# -----------------

fig, axes = plt.subplots(2, 3, figsize=(10, 4.2), layout="constrained", sharex=True)
cases = [(0, "memory_pro"), (1, "memory_pro"), (1, "memory_anti")]
for (top, bottom), (switch, name) in zip(axes.T, cases, strict=True):
    gap, i = gaps[switch].sel(task=name), NAMES.index(name)
    top.plot(gap.step, gap.loss_change, color=COLOURS[0], lw=1.4, label="by interference")
    real = true[switch][:, i] - true[switch][0, i]
    top.plot(gap.step, real, color="0.3", lw=1, ls="--", label="true")
    bottom.plot(gap.step, gap.from_others, color=COLOURS[1], lw=1.4, label="by the other tasks")
    bottom.plot(gap.step, gap.from_itself, color=COLOURS[2], lw=1.4, label="by its own trials")
    top.set_title(f"{name}\nwhile {NAMES[switch + 1]} is added", fontsize=10)
    bottom.set_xlabel("iteration")
    for ax in (top, bottom):
        ax.axhline(0, color="0.45", lw=0.6)
        ax.ticklabel_format(axis="y", scilimits=(0, 0))
        ax.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("change of the loss")
axes[1, 0].set_ylabel("its two parts")
for ax in axes[:, 0]:
    ax.legend(frameon=False, fontsize=8)
plt.show()

# %%
# *Top*: when the third task is added, both old ones rise for some twenty iterations and then
# recover. When the second one is added, the first is still rising at the end: its opposite takes
# longer to learn. The sum of what interference predicts step by step (solid) follows the true
# loss (dashed), but for terms of the order of the learning rate.
#
# *Bottom*: the small change is what is left of two large ones. At first the other tasks push the
# loss up, and the old task has no gradient to resist. Then its own trials pull the loss down, by
# nearly as much. An evaluation at the end alone would miss most of it.
