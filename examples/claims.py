r"""
Reproduction: claims of the literature, and our numbers
=======================================================

What do the KPFlow paper (Hazelden, Driscoll, Shlizerman and Shea-Brown, arXiv 2507.06381) and its
successors claim, and what do we find? Each claim is turned into criteria with bounds around the
paper's numbers, which code checks on every seed. The criteria are committed before their numbers
are measured. A claim is *reproduced* if each criterion holds for all seeds, *not reproduced* if
none holds for more than half of them, and *reproduced in part* otherwise. Numbers are medians over
seeds, with the smallest and the largest in brackets. The last sections are findings of our own,
whose criteria were written before the numbers as well.

The *variance rank over time* is the effective rank of the KPFlow figures: the operator is reduced
to time (:meth:`~kpops.TrajectoryOperator.expand_average`), and the rank is the number of
eigenvalues that hold 95 % of the sum of squares, with interpolation, so that a single mode gives
about 0.95; by the rule of those figures, of the 60 leading eigenvalues of P P* alone
(:func:`kpops.effective_rank` with ``top=60``). P is analysed as P P*.

``python -m reproduction measure`` measures every claim anew, ``--only NAME --quick`` a small
version of one in less than two minutes. The files in ``reproduction/results`` hold the numbers,
with settings, seeds, versions and the hash of the script.
"""

import sys

from networks import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from reproduction import page
from reproduction.registry import ROWS

print(page.table(ROWS.values()))

# %%
# Ranks before training
# ---------------------

fig = page.show(ROWS["ranks_before_training"])

# %%
# Collapse on Memory-Pro
# ----------------------

fig = page.show(ROWS["collapse_memory_pro"])

# %%
# Collapse and recovery on the flip-flop
# --------------------------------------

fig = page.show(ROWS["collapse_flip_flop"])

# %%
# What moves the collapse
# -----------------------

fig = page.show(ROWS["collapse_by_batch"])

# %%
# P above K
# ---------

fig = page.show(ROWS["p_above_k"])

# %%
# Eigenfunctions of K
# -------------------

fig = page.show(ROWS["eigenfunctions"])

# %%
# The scale g of the recurrent weights
# ------------------------------------

fig = page.show(ROWS["scales"])

# %%
# Pro/Anti against Delay/Memory: cumulative cosine
# ------------------------------------------------

fig = page.show(ROWS["pro_anti"])

# %%
# Pro/Anti against Delay/Memory: when states turn
# -----------------------------------------------

fig = page.show(ROWS["pro_anti_turn"])

# %%
# The state change of a gradient step
# -----------------------------------

fig = page.show(ROWS["state_change"])
