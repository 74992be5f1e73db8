"""The order of the gallery's examples."""

ORDER = [
    "newcomer.py",
    "first_tour.py",
    "your_own_cell.py",
    "dynamic_collapse.py",
    "which_effective_rank.py",
    "eigenfunctions.py",
    "gradient_flow_by_hand.py",
    "fixed_points.py",
    "pitchfork_in_learning.py",
    "lyapunov.py",
    "symbolic_code.py",
    "lorenz_by_teacher_forcing.py",
    "laser.py",
    "tokens_of_selective_layers.py",
    "truncated_flow.py",
    "learning_rules.py",
    "edge_of_stability.py",
    "theorem_1.py",
    "g_sweep.py",
    "interference.py",
    "greens_maps.py",
    "ntk_of_an_mlp.py",
    "ntk_of_a_transformer.py",
    "continual.py",
    "grokking.py",
    "intrinsic_dimension.py",
    "koopman_of_training.py",
    "comparing_networks.py",
    "results_with_xarray.py",
    "speed.py",
    "claims.py",
]


def in_reading_order(filename: str) -> int:
    """Position of an example's file in the gallery."""
    return ORDER.index(filename)
