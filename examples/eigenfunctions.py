r"""
Eigenfunctions before and after training
========================================

The leading eigenfunctions of the parameter operator :math:`K` are the pushes that a small change of
the weights produces most easily. Those of the flow operator :math:`P K P^{*}` are the changes of
the trajectories that are learned fastest. Figure 3 of the KPFlow paper shows six of :math:`K`,
before and after training, of which two to four dominate. We look at them over time, as in the
paper's figures, and then as fields over trials, times and units. The two views disagree about what
dominates.
"""

import matplotlib.pyplot as plt
import pandas as pd
from networks import GALLERY, TASKS, trained

import kpops

# %%
# A GRU of 64 units has learned Memory-Pro. We linearise it about 20 noise-free trials at its first
# checkpoint and at its last. Put your model here: it needs only ``kpops.linearize(model, inputs)``.

[run] = [trained(training) for training in GALLERY["collapse"]]
task = TASKS["memory_pro"](20, angles="even", noise=0)
saved = kpops.training.checkpoints(run.folder)
lins = {}
for when, (_, state) in {"before": saved[0], "after": saved[-1]}.items():
    run.network.load_state_dict(state)
    lins[when] = kpops.linearize(run.network, task.inputs)
operators = {("K", when): lin.K for when, lin in lins.items()}
operators |= {("P K P*", when): lin.flow for when, lin in lins.items()}


def shares(modes, ops):
    """Per cent of the trace in each mode, for several operators."""
    rows = {}
    for key, op in ops.items():
        trace = kpops.trace(op, num_matvecs=128, rng=0)
        rows[key] = 100 * modes[key].eigenvalue.to_pandas().astype(float) / float(trace.estimate)
    return pd.DataFrame(rows).T.round(2).to_string()


# %%
# Over time
# ---------
#
# The paper reduces an operator to functions of time: it copies such a function to all trials and
# units, applies the operator, and averages the result over trials and units.
# ``op.expand_average(("time",))`` is this reduced operator.

reduced = {key: op.expand_average(("time",)) for key, op in operators.items()}
over_time = {key: kpops.eigsh(op, k=6) for key, op in reduced.items()}
print("per cent of the trace\n\n" + shares(over_time, reduced))

fig = plt.figure(figsize=(8.5, 6), layout="constrained")
for column, ((name, when), modes) in zip(fig.subfigures(1, 4), over_time.items(), strict=True):
    kpops.plot.eigenfunctions(modes, figure=column)
    column.suptitle(f"${name.replace('*', '^*')}$ {when}", fontsize=10)
    column.supylabel("")

# %%
# Two modes of :math:`K` dominate before training and three after it, as in the paper. The first
# weights all steps of a trial, with one sign. The second contrasts the response (after the second
# dotted line) with the steps before it. Weights do not depend on time, so they act alike where the
# network is in similar states, and the fixation input separates its states. With training the
# second mode comes close to the first, and a third appears, which belongs to the end of the memory.
# The flow operator has much the same modes, spread over time by :math:`P`.
#
# Fields over trials, time and units
# ----------------------------------
#
# Averages hide differences between units and trials. Here are the modes of the whole operators, and
# the number of units over which each mode is spread (the participation ratio of its energy).

whole = {key: kpops.eigsh(op, k=6, rng=0) for key, op in operators.items()}
energy = {key: (modes.eigenfunction**2).sum(("trial", "time")) for key, modes in whole.items()}
units = {key: (1 / (e**2).sum("unit")).to_pandas().astype(float) for key, e in energy.items()}
print("per cent of the trace\n\n" + shares(whole, operators))
print("\nunits\n\n" + pd.DataFrame(units).T.round(1).to_string())

# %%
# Each mode of :math:`K` belongs to one unit. A GRU gives every unit its own weights, so :math:`K`
# does not couple units, and its spectrum is that of 64 small operators side by side. No mode
# dominates: the leading modes of all units are alike, and each holds only a few per cent. What
# dominated over time were their averages. Here are three modes from before training, each on its
# own unit.

_ = kpops.plot.eigenfunctions(whole["K", "before"], 3)

# %%
# Here are all six after training. They have moved to the response, where the states are now
# largest, and they differ between angles, as the states do.

_ = kpops.plot.eigenfunctions(whole["K", "after"])

# %%
# :math:`P` mixes units, so the flow operator differs. Before training its modes are spread over a
# third of the units, but none of them stands out either.
#
# After training one mode alone holds a large part of the trace: the change of the trajectories that
# this network would learn first. It grows through the memory, is largest where the response begins,
# and depends on the angle. This is the collapse of :math:`P K P^{*}`, seen in a mode. (The figure
# shows the root mean square over units.)

_ = kpops.plot.eigenfunctions(whole["P K P*", "after"], unit="rms")

# %%
# The same modes unit by unit in the first trial, with their signs.

_ = kpops.plot.eigenfunctions(whole["P K P*", "after"], 3, over="unit", trial=0)
plt.show()
