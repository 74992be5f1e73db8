r"""
Reproduction: the paper's claims, and our numbers
=================================================

What does the KPFlow paper (Hazelden, Driscoll, Shlizerman and Shea-Brown, arXiv 2507.06381) claim,
and what do we find? Each claim is turned into criteria with bounds, which code checks on every
network. A claim is *reproduced* if each criterion holds for all networks (or seeds), *not
reproduced* if none holds for more than half of them, and *reproduced in part* otherwise. The bounds
are ours, since the paper shows figures. Numbers are medians over networks, with the smallest and
the largest in brackets.

The networks have 256 units and are trained as in the paper (Adam, learning rate 1e-3, 5,000 noisy
trials, until a minibatch has a loss of 1e-3), but with minibatches of 64 trials instead of 500,
which are noisier, and for at most 2,000 to 10,000 iterations. *Variance over time* is the paper's
effective rank: the operator is reduced to time (:meth:`~kpops.TrajectoryOperator.expand_average`),
and the rank is the number of eigenvalues that hold 95 % of the sum of squares, with interpolation,
so that a single mode gives about 0.95. *Participation* is that of the whole operator
(:func:`kpops.effective_rank`). P is analysed as P P*.

``make checkpoints`` trains the networks. ``python -m reproduction`` measures them, by studies
(:doc:`/studies`), into ``reproduction/results``, from which this page is drawn.
"""

import sys
import textwrap

from networks import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from reproduction import claims_of_learning, claims_of_ranks, figures, registry, results

found = results.load(results.FOLDER)
claims = [
    claims_of_ranks.initial(found),
    claims_of_ranks.memory(found),
    claims_of_ranks.flip_flop(found),
    claims_of_ranks.ordering(found),
    claims_of_learning.over_g(found),
    claims_of_ranks.eigenfunctions(found),
    claims_of_learning.tasks(found),
]
for claim in claims:
    print(f"{claim.title:38}{claim.verdict}")
if found.missing():
    print("not measured:", ", ".join(found.missing()))


def report(claim):
    """Print the claim, our number, every criterion, and notes and tables."""
    for label, text in (("paper: ", claim.paper), ("here: ", claim.number)):
        print(textwrap.fill(text, 96, initial_indent=label, subsequent_indent=" " * len(label)))
    print(f"verdict: {claim.verdict}")
    for check in claim.checks:
        print(f"  {check.passed} of {check.of}  {check.text}: {check.found}")
    for note in claim.notes:
        print(textwrap.fill(note, 96))
    for title, header, rows in claim.tables:
        print(f"\n{title}")
        lines = [header, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for row in lines:
            cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            print("  " + "  ".join(cells).rstrip())


# %%
# Ranks before training
# ---------------------

report(claims[0])

# %%
# Collapse on Memory-Pro
# ----------------------
#
# Effective ranks over training, one line per network. Above: the variance rank of the reduction to
# time, by the paper's definition. Below: the participation ratio of the whole operator.

report(claims[1])
fig = figures.ranks(found, "memory_pro")

# %%
# The flip-flop
# -------------

report(claims[2])
fig = figures.ranks(found, "flip_flop")

# %%
# P above K
# ---------

report(claims[3])

# %%
# The scale of the initial weights
# --------------------------------

report(claims[4])
fig = figures.over_g(found)

# %%
# Eigenfunctions of K
# -------------------

report(claims[5])
fig = figures.eigenfunctions(found)

# %%
# Alignment of tasks
# ------------------

report(claims[6])
fig = figures.alignments(found)

# %%
# State changes to first order
# ----------------------------

row = registry.ROWS["state_change"]
if row.path.exists():
    print(row.verdict(row.read()))
    fig = row.draw(row.read())
