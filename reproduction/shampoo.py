"""Shampoo, by the exponents of the package that the authors of arXiv 2605.08746 train with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Shampoo(torch.optim.Optimizer):
    """Gradient descent preconditioned along each dim of a parameter (Gupta et al., 2018).

    A gradient G of n dims is multiplied along each dim i in turn by ``S_i^(-1/n)``, where S_i is
    `epsilon` I and the sum over all steps so far of G G^T (G as it comes to this dim, unfolded
    along it): ``L^(-1/2) G R^(-1/2)`` for a matrix. Gupta et al. have ``-1/(2 n)``, and take all
    S_i of the gradient itself; this is the variant of the ``torch_optimizer`` package.

    Parameters
    ----------
    params : iterable of Tensor
        What is trained.
    lr : float
        Learning rate.
    epsilon : float
        Least eigenvalue of S_i.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, epsilon: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr, "epsilon": epsilon})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all parameters once."""
        for group in self.param_groups:
            for p in group["params"]:
                step = p.grad
                for dim, size in enumerate(p.shape):
                    unfolded = step.movedim(dim, 0).reshape(size, -1)
                    start = group["epsilon"] * torch.eye(size).to(p)
                    S = self.state[p].setdefault(f"S{dim}", start)
                    S += unfolded @ unfolded.T
                    values, vectors = torch.linalg.eigh(S)
                    scaled = vectors * values.clamp(min=group["epsilon"]) ** (-1 / p.ndim)
                    root = scaled @ vectors.T
                    step = torch.tensordot(root, step, ([1], [dim])).movedim(0, dim)
                p.sub_(step, alpha=group["lr"])
