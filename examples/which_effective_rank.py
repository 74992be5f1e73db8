r"""
Effective rank: which one?
==========================

How many dimensions does an operator use? At initialisation the KPFlow paper's figures give 0.96 for
:math:`K`; the participation ratio of the same :math:`K` is about a hundred. Neither is wrong. Two
choices define a rank: the *kind* (what is counted) and the *reduction* (over which dimensions).
This page computes all of them side by side, for one network before and after training. For your own
network, replace ``networks`` and ``task``.
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
# Five kinds, and how they weight eigenvalues
# -------------------------------------------
#
# With eigenvalues :math:`a_1 \ge a_2 \ge \dots` and :math:`p_k = a_k / \sum_j a_j`:
#
# - **stable**, :math:`\sum_k a_k^2 / a_1^2`: the total in units of the largest. One large
#   eigenvalue lowers it to one.
# - **variance**: the number that hold 95 % of :math:`\sum_k a_k^2`. Squares suppress small values,
#   and the interpolation gives an operator of rank one the value 0.95. This is the paper's choice.
# - **participation**, :math:`(\sum_k a_k)^2 / \sum_k a_k^2`: the inverse probability that two draws
#   from :math:`p` agree.
# - **entropy**, :math:`\exp(-\sum_k p_k \log p_k)`: the number of equal values with the same
#   entropy. A long weak tail counts.
# - **numerical**: the number that exceed :math:`10^{-6} a_1` and the noise floor, which in float32
#   is about :math:`10^{-5} a_1`.
#
# The spectrum of :math:`K` is known in full, so the figure can show each rank in it.

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
# numerical measures this plateau. Training turns the plateau into a slope, which lowers the kinds
# that depend on the largest eigenvalues. At the same time the features become richer and
# eigenvalues rise from below, which raises the numerical rank. Whether the rank of :math:`K` rose
# or fell depends on the kind.
#
# Two reductions
# --------------
#
# A rank "over time" is the rank of an operator on functions of time alone. ``expand_average``
# copies such a function to all trials and units, applies the operator, and averages the result: the
# paper's reduction. ``partial_trace`` sums over equal trials and equal units, as in linear algebra.
# The first measures what all trials and units do *together*; the second adds up what each does by
# itself. Both are operators. :func:`kpops.effective_rank` takes them directly or as a matrix; with
# ``keep=("time",)`` it makes them itself.

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
ranks = ranks.where(ranks.stderr < 0.1 * ranks.estimate)  # leave out what is uncertain
for name in lins:
    rows = ranks.estimate.sel(network=name).stack(row=("operator", "reduction"))
    table = rows.transpose("row", "kind").to_pandas()
    print(f"{name}\n{table.to_string(float_format='{:.2f}'.format)}\n")

# %%
# Read the table in two ways. *Along a row* only the kind changes, and the numbers of :math:`K`
# differ by a factor of a few. *Down a column* the operator stays and the reduction changes, and
# they differ by factors of tens to a hundred. So for :math:`K`, the reduction and not the kind
# separates the paper's 0.96 from the participation ratio. For the trained :math:`P P^{*}`, which
# has a few large eigenvalues and a long tail, the kinds differ as much. And a reduction does not
# restrict: over time, the trained :math:`P K P^{*}` has a larger variance rank than as a whole.
# Missing entries are numerical ranks that matvecs cannot determine: their standard error exceeds a
# tenth of the rank.

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
# :math:`K` does not couple units, so it has one block for each. Its participation ratio is then
# exactly a product: the number of units that matter (the participation ratio of the traces of the
# blocks) times the dimensions per unit (a mean of the participation ratios of the blocks).

for name, spectrum in spectra.items():
    by_unit = spectrum.eigenvalue.groupby("unit")
    trace, square = by_unit.sum(), by_unit.map(lambda values: (values**2).sum())
    units = float(trace.sum() ** 2 / (trace**2).sum())
    per_unit = float((trace**2).sum() / square.sum())
    participation = float(kpops.effective_rank(lins[name].K).estimate)
    print(
        f"{name:9}: {units:5.1f} units x {per_unit:.2f} dimensions = {units * per_unit:6.1f}",
        end="",
    )
    print(f", the participation ratio of K is {participation:6.1f}")

# %%
# All units see the same features, above all a constant one. So at first their blocks are alike, and
# each has little more than one dimension. (Training moves the two factors in opposite directions:
# fewer units matter, each with more dimensions.) A function of time that is copied to all units and
# averaged over them meets one such block, and its rank is about one; 0.96 is how the interpolated
# count at 95 % expresses "one". The whole operator has that one dimension in each of the units. If
# we keep the units, a number close to the hundred returns, with the paper's own kind of reduction:

for keep in (("time",), ("unit",), ("time", "unit")):
    rank = kpops.effective_rank(lins["untrained"].K, keep=keep, rng=0)
    print(f"K averaged over all but {' and '.join(keep):13}: {float(rank.estimate):6.1f}")

# %%
# For a network that forgets, :math:`P P^{*}` is near a multiple of the identity, and the average of
# an identity is again an identity. So both reductions, and the whole operator, use half of their
# dimensions:

for reduction, size in (("none", lins["untrained"].space.size), ("expand_average", 90)):
    at = {"network": "untrained", "operator": "P P*", "kind": "participation"}
    share = float(ranks.estimate.sel(reduction=reduction, **at)) / size
    print(f"P P*, reduction {reduction}: {share:.2f} of {size} dimensions")

# %%
# Which one to take
# -----------------
#
# - To compare with the paper, use ``"variance"`` with ``keep=("time",)`` of ``lin.K``,
#   ``lin.P @ lin.P.H`` and ``lin.flow``. Note that the kind squares, and that ``lin.P @ lin.P.H``
#   already contains squares.
# - For what the network can do as a whole, use ``"participation"``. It needs only matvecs, and its
#   error bar is the smallest.
# - For the question whether there is *any* way to move in a direction, use ``"numerical"``,
#   preferably for :math:`K` and for reductions, where it is exact.
# - To count every trial and unit by itself in a rank over time, use ``partial_trace``. Differences
#   between trials (cosines over angles) average out under ``expand_average``.
#
# In any case, report both choices. A result of kpops has them in its attributes.

print(rank.operator.item(), rank.kind.item())
print({key: rank.attrs[key] for key in ("reduction", "method", "gram")})
