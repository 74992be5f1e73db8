r"""
Effective rank: which one?
==========================

How many dims does an operator use? At initialisation the KPFlow paper's figures say 0.96 for
:math:`K`; the participation ratio of the same :math:`K` says about a hundred. Neither is wrong. A
rank is fixed by two choices, the *kind* (what is counted) and the *reduction* (on which dims), and
this page makes all of them side by side, for one network before and after training. To see your
own, replace ``networks`` and ``task``.
"""

import matplotlib.pyplot as plt
import xarray as xr
from networks import GALLERY, trained

import kpops

[run] = [trained(training) for training in GALLERY["collapse"]]
networks = {"untrained": run.training.network(), "trained": run.network}  # put your model here
task = kpops.tasks.memory_pro(20, angles="even", noise=0)
lins = {name: kpops.linearize(network, task.inputs) for name, network in networks.items()}

# %%
# Five kinds, and what each of them weighs
# ----------------------------------------
#
# With eigenvalues :math:`a_1 \ge a_2 \ge \dots` and :math:`p_k = a_k / \sum_j a_j`:
#
# - **stable**, :math:`\sum_k a_k^2 / a_1^2`: all that there is in units of the largest. One large
#   eigenvalue brings it down to one.
# - **variance**: as many as hold 95 % of :math:`\sum_k a_k^2`. Squares forget what is small, and
#   the interpolation gives an operator of rank one the value 0.95. The paper's choice.
# - **participation**, :math:`(\sum_k a_k)^2 / \sum_k a_k^2`: 1 over the chance that two draws from
#   :math:`p` agree.
# - **entropy**, :math:`\exp(-\sum_k p_k \log p_k)`: how many equal ones would be as hard to guess.
#   A long weak tail counts.
# - **numerical**: as many as exceed :math:`10^{-6} a_1` and the noise floor, which in float32 is
#   about :math:`10^{-5} a_1`.
#
# The spectrum of :math:`K` is known in full, so we can see where in it each of them cuts.

KINDS = ["stable", "variance", "participation", "entropy", "numerical"]
COLOURS = ["#CC79A7", "#009E73", "#0072B2", "#E69F00", "0.5"]

spectra = {name: kpops.eigvalsh(lin.K) for name, lin in lins.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained", sharey=True)
for ax, (name, spectrum) in zip(axes, spectra.items(), strict=True):
    values = spectrum.eigenvalue / spectrum.eigenvalue[0]
    values = values[values > 1e-6].assign_attrs(long_name="eigenvalue / largest")
    kpops.plot.spectrum(values, ax, color="black", marker="", label=None)
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        rank = float(kpops.effective_rank(lins[name].K, kind).estimate)
        ax.axvline(rank, color=colour, label=f"{kind}: {rank:.0f}")
    ax.set(title=f"K, {name}")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

# %%
# The untrained :math:`K` has a plateau of 64 eigenvalues, one per unit, and every kind but the
# numerical is a way to say so. Training makes the plateau a slope, which lowers those kinds that
# look at the largest; at the same time the features become richer and eigenvalues come up from
# below, which raises the numerical rank. Which way the rank of :math:`K` went depends on the kind.
#
# Two reductions
# --------------
#
# A rank "over time" is one of an operator on functions of time alone. ``expand_average`` copies
# such a function to all trials and units, applies the operator, and averages what comes out: the
# paper's reduction. ``partial_trace`` sums over equal trials and equal units, as in linear algebra.
# The first sees what all trials and units do *together*; the second adds up what each of them does
# by itself. Both are operators, and :func:`kpops.effective_rank` takes them as they are or as a
# matrix; asked with ``keep=("time",)``, it makes them itself.

OPERATORS = ["K", "P P*", "P K P*"]
REDUCTIONS = ["none", "expand_average", "partial_trace"]


def all_ranks(lin):
    """Every kind under every reduction of K, P P* and P K P*."""
    table = []
    for op in (lin.K, lin.P @ lin.P.H, lin.flow):
        averaged = op.expand_average(("time",)).to_dense()  # 90 x 90
        traced = op.partial_trace(("time",), num_probes=128, rng=0)
        table.append(
            [
                [
                    kpops.effective_rank(each, kind, rng=0).drop_attrs().reset_coords(drop=True)
                    for kind in KINDS
                ]
                for each in (op, averaged, traced)
            ]
        )
    return xr.combine_nested(table, concat_dim=["operator", "reduction", "kind"])


ranks = xr.concat([all_ranks(lin) for lin in lins.values()], "network")
names = {"operator": OPERATORS, "reduction": REDUCTIONS, "kind": KINDS}
ranks = ranks.assign_coords(network=list(lins), **names)
ranks = ranks.where(ranks.stderr < 0.1 * ranks.estimate)  # what is not known stays out
for name in lins:
    rows = ranks.estimate.sel(network=name).stack(row=("operator", "reduction"))
    table = rows.transpose("row", "kind").to_pandas()
    print(f"{name}\n{table.to_string(float_format='{:.2f}'.format)}\n")

# %%
# Read the table twice. *Along a row* only the kind changes, and the numbers of :math:`K` differ by
# a factor of a few. *Down a column* the operator stays and the reduction changes, and they differ
# by tens to a hundred. So of :math:`K` it is the reduction, not the kind, that parts the paper's
# 0.96 from the participation ratio. Of the trained :math:`P P^{*}`, which has a few large
# eigenvalues and a long tail, the kinds disagree as much. And a reduction is no restriction: over
# time, the trained :math:`P K P^{*}` has a larger variance rank than as a whole. Missing are
# numerical ranks that cannot be told from products: their standard error is larger than a tenth of
# them.

fig, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained", sharex=True, sharey="col")
for row, name in zip(axes, lins, strict=True):
    for ax, operator in zip(row, OPERATORS, strict=True):
        kpops.plot.effective_rank(ranks.sel(network=name, operator=operator, drop=True), ax)
        ax.set(yscale="log", title=f"{operator}, {name}", xlabel="")
        plt.setp(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
        ax.set_ylabel("effective rank" if operator == "K" else "")
        if ax is not axes[0, 2]:
            ax.get_legend().remove()

# %%
# Why both are true
# -----------------
#
# :math:`K` couples no two units, so it is one block for each. Its participation ratio is then a
# product, exactly: the number of units that matter (the participation ratio of the traces of the
# blocks) times the dims per unit (a mean over the blocks of theirs).

for name, spectrum in spectra.items():
    by_unit = spectrum.eigenvalue.groupby("unit")
    trace, square = by_unit.sum(), by_unit.map(lambda values: (values**2).sum())
    units = float(trace.sum() ** 2 / (trace**2).sum())
    per_unit = float((trace**2).sum() / square.sum())
    participation = float(kpops.effective_rank(lins[name].K).estimate)
    print(f"{name:9}: {units:5.1f} units x {per_unit:.2f} dims = {units * per_unit:6.1f}", end="")
    print(f", the participation ratio of K is {participation:6.1f}")

# %%
# All units see the same features, above all a constant one: at first their blocks are alike, and
# each has little more than one dim. (Training moves both factors, in opposite directions: fewer
# units matter, each of them with more dims.) A function of time that is copied to all units and
# averaged over them meets one such block, and its rank is about one; 0.96 is how the interpolated
# count at 95 % writes "one". The whole operator has that one dim in each of the units. Keep the
# units, and something like the hundred comes back, by the paper's own kind of reduction:

for keep in (("time",), ("unit",), ("time", "unit")):
    rank = kpops.effective_rank(lins["untrained"].K, keep=keep, rng=0)
    print(f"K averaged over all but {' and '.join(keep):13}: {float(rank.estimate):6.1f}")

# %%
# :math:`P P^{*}` of a network that forgets is near a multiple of the identity, and the average of
# an identity is one again. So there both reductions, and the whole, use half of what there is:

for reduction, size in (("none", lins["untrained"].space.size), ("expand_average", 90)):
    at = {"network": "untrained", "operator": "P P*", "kind": "participation"}
    share = float(ranks.estimate.sel(reduction=reduction, **at)) / size
    print(f"P P*, reduction {reduction}: {share:.2f} of {size} dims")

# %%
# Which one to take
# -----------------
#
# - To compare with the paper: ``"variance"`` with ``keep=("time",)`` of ``lin.K``, ``lin.P @
#   lin.P.H`` and ``lin.flow``. Note that the kind squares, and that ``lin.P @ lin.P.H`` has squares
#   already.
# - For what the network can do as a whole, and what needs products alone: ``"participation"``,
#   whose error bar is the smallest.
# - For the question whether there is *any* way to move in a direction: ``"numerical"``, best of
#   :math:`K` and of reductions, where it is exact.
# - To count every trial and unit by itself in a rank over time: ``partial_trace``. What trials do
#   against one another (cosines over angles) averages out under ``expand_average``.
#
# Whichever it is, write down both choices. A result of kpops has them in its attributes.

print(rank.operator.item(), rank.kind.item())
print({key: rank.attrs[key] for key in ("reduction", "method", "gram")})
