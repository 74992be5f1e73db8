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
#
# arXiv 2507.06381: Figure 4, first checkpoint, and text.

fig = page.show(ROWS["ranks_before_training"])

# %%
# Collapse on Memory-Pro
# ----------------------
#
# arXiv 2507.06381: Figure 4, left.

fig = page.show(ROWS["collapse_memory_pro"])

# %%
# Collapse and recovery on the flip-flop
# --------------------------------------
#
# arXiv 2507.06381: Figure 4, right.

fig = page.show(ROWS["collapse_flip_flop"])

# %%
# What moves the collapse
# -----------------------
#
# arXiv 2507.06381: Figure 4, left, and the scripts of its authors.

fig = page.show(ROWS["collapse_by_batch"])

# %%
# P above K
# ---------
#
# arXiv 2507.06381: Figure 4.

fig = page.show(ROWS["p_above_k"])

# %%
# Eigenfunctions of K
# -------------------
#
# arXiv 2507.06381: Figure of the leading eigenfunctions of K.

fig = page.show(ROWS["eigenfunctions"])

# %%
# The scale g of the recurrent weights
# ------------------------------------
#
# arXiv 2507.06381: Figure of the ranks for three scales, and the sweep of scales.

fig = page.show(ROWS["scales"])

# %%
# Pro/Anti against Delay/Memory: cumulative cosine
# ------------------------------------------------
#
# arXiv 2507.06381: Figure 5.

fig = page.show(ROWS["pro_anti"])

# %%
# Pro/Anti against Delay/Memory: when states turn
# -----------------------------------------------
#
# arXiv 2507.06381: Figure 5.

fig = page.show(ROWS["pro_anti_turn"])

# %%
# The state change of a gradient step
# -----------------------------------
#
# arXiv 2507.06381: Proposition 1.

fig = page.show(ROWS["state_change"])

# %%
# The trace of an NTK from one side
# ---------------------------------
#
# arXiv 2511.10796: Figures 2 and 3.

fig = page.show(ROWS["ntk_trace_one_sided"])

# %%
# Norm, effective rank and alignment of an NTK
# --------------------------------------------
#
# arXiv 2511.10796: Figure 4.

fig = page.show(ROWS["ntk_norm_rank_alignment"])

# %%
# The time to the trace of an NTK
# -------------------------------
#
# arXiv 2511.10796: Figure 1.

fig = page.show(ROWS["ntk_speed"])

# %%
# The kernel factors, and K is a Gram matrix
# ------------------------------------------
#
# arXiv 2605.08746: its theorem on the Kronecker core.

fig = page.show(ROWS["kronecker_core"])

# %%
# The Kronecker core and Schmidt ranks
# ------------------------------------
#
# arXiv 2605.08746: The Kronecker-core theorem and its Schmidt-rank bound.

fig = page.show(ROWS["kronecker_schmidt"])

# %%
# The averaged tangent kernel is the Gram matrix of states and inputs
# -------------------------------------------------------------------
#
# arXiv 2605.08746: The overlap of the averaged NTK with V V^T.

fig = page.show(ROWS["ntk_alignment_vv"])

# %%
# Ranks of the tangent kernel in time and space
# ---------------------------------------------
#
# arXiv 2605.08746: The student-teacher experiment.

fig = page.show(ROWS["student_teacher_ranks"])

# %%
# The tangent kernel of self-attention is of low rank
# ---------------------------------------------------
#
# arXiv 2605.08746: The NTK temporal rank of a self-attention block.

fig = page.show(ROWS["attention_rank"])

# %%
# Fixed points that make memory learnable
# ---------------------------------------
#
# arXiv 2605.08746: The Memory-Pro case of its section on initial dynamics.

fig = page.show(ROWS["planted_fixed_points"])

# %%
# Task components that are not learned
# ------------------------------------
#
# arXiv 2605.08746: the Memory-Pro case of its section on initial dynamics.

fig = page.show(ROWS["task_modes"])

# %%
# Learning amplifies what is represented
# --------------------------------------
#
# arXiv 2605.08746: The self-referential bias.

fig = page.show(ROWS["self_referential_bias"])

# %%
# Collapse of the state-space NTK near a bifurcation
# --------------------------------------------------
#
# arXiv 2605.12763: Abstract and its theorem.

fig = page.show(ROWS["bifurcation_collapse"])

# %%
# The response outside the critical direction
# -------------------------------------------
#
# arXiv 2605.12763: Bound of the residual channel.

fig = page.show(ROWS["bifurcation_bound"])

# %%
# Two memories learned one after the other
# ----------------------------------------
#
# arXiv 2605.12763: Student and teacher of two units.

fig = page.show(ROWS["bifurcation_toy"])

# %%
# The leading channel is that of a pitchfork
# ------------------------------------------
#
# arXiv 2605.12763: the abstract, on its student and teacher.

fig = page.show(ROWS["bifurcation_normal_form"])

# %%
# Low-rank natural gradient near a bifurcation
# --------------------------------------------
#
# arXiv 2605.12763: the abstract's last sentence.

fig = page.show(ROWS["bifurcation_natural_gradient"])

# %%
# Green's maps at long range
# --------------------------
#
# arXiv 2609.40292: Appendix D.

fig = page.show(ROWS["greens_long_range"])

# %%
# Green's maps at short range
# ---------------------------
#
# arXiv 2609.40292: Appendix D.

fig = page.show(ROWS["greens_near_diagonal"])

# %%
# Green's maps of tasks that share structure
# ------------------------------------------
#
# arXiv 2609.40292: Equation 4 and its figure.

fig = page.show(ROWS["greens_task_similarity"])

# %%
# Which effective rank predicts the speed of learning
# ---------------------------------------------------
#
# Beyond the papers: the criteria were committed before the numbers.

fig = page.show(ROWS["rank_predicts_speed"])

# %%
# P's collapse and the fall of the loss
# -------------------------------------
#
# Beyond the papers: the criteria were committed before the numbers.

fig = page.show(ROWS["collapse_leads_loss"])

# %%
# A learning curve from ten modes
# -------------------------------
#
# Beyond the papers: the criteria were committed before the numbers.

fig = page.show(ROWS["truncated_flow_predicts"])
