"""All rows of the page, in its order."""

from __future__ import annotations

from reproduction.row import Row
from reproduction.rows import (
    attention_rank,
    batches,
    bifurcation_bound,
    bifurcation_collapse,
    bifurcation_natural_gradient,
    bifurcation_normal_form,
    bifurcation_toy,
    collapse,
    collapse_leads_loss,
    greens_lags,
    greens_task_similarity,
    initial,
    kronecker_core,
    kronecker_schmidt,
    ntk_alignment_vv,
    ntk_norm_rank_alignment,
    ntk_speed,
    ntk_trace_one_sided,
    planted_fixed_points,
    pro_anti,
    rank_predicts_speed,
    scales,
    self_referential_bias,
    state_change,
    student_teacher_ranks,
    task_modes,
    truncated_flow_predicts,
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        # KPFlow, 2507.06381
        initial.ROW,
        collapse.MEMORY_PRO,
        collapse.FLIP_FLOP,
        batches.ROW,
        collapse.ORDER,
        collapse.EIGENFUNCTIONS,
        scales.ROW,
        pro_anti.ROW,
        pro_anti.TURN,
        state_change.ROW,
        # Traces of the NTK, 2511.10796
        ntk_trace_one_sided.ROW,
        ntk_norm_rank_alignment.ROW,
        ntk_speed.ROW,
        # The Kronecker core of the NTK, 2605.08746
        kronecker_core.ROW,
        kronecker_schmidt.ROW,
        ntk_alignment_vv.ROW,
        student_teacher_ranks.ROW,
        attention_rank.ROW,
        planted_fixed_points.ROW,
        task_modes.ROW,
        self_referential_bias.ROW,
        # Near bifurcations, 2605.12763
        bifurcation_collapse.ROW,
        bifurcation_bound.ROW,
        bifurcation_toy.ROW,
        bifurcation_normal_form.ROW,
        bifurcation_natural_gradient.ROW,
        # Green's maps, 2609.40292
        *greens_lags.ROWS,
        greens_task_similarity.ROW,
        # Beyond the papers
        rank_predicts_speed.ROW,
        collapse_leads_loss.ROW,
        truncated_flow_predicts.ROW,
    )
}
"""Rows by name."""
