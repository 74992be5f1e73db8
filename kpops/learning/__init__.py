"""Learning: training, gradient flow and interference between tasks."""
