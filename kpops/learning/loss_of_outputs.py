"""A loss as a function of the outputs of a linearization, with targets and weights read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops.distributed.agreement import in_step
from kpops.engines.trajectory import Trajectory
from kpops.labels import Space
from kpops.learning.losses import IGNORED, Loss, Objective, objective_of, read_targets, read_weights
from kpops.linearization import Linearization


@dataclass(frozen=True)
class LossOfOutputs:
    """``loss(outputs)`` of the outputs, or of the states where there is no readout.

    Attributes
    ----------
    objective, targets, weights : Objective, Tensor, Tensor
        What is compared, with what, and how much each step counts.
    total : float
        Sum of the weights that count, on all processes.
    outputs : Tensor, shape (trial, time, output)
        Those of the linearization, zero at steps that are not valid.
    space : Space
        Theirs.
    trajectory : Trajectory
        Gives the valid steps.
    """

    objective: Objective
    targets: Tensor
    weights: Tensor
    total: float
    outputs: Tensor
    space: Space
    trajectory: Trajectory

    @classmethod
    def read(cls, lin: Linearization, targets: Any, loss: Loss, loss_mask: Any) -> LossOfOutputs:
        """Check and read what a user passes, as :func:`kpops.gradient_flow` documents it."""
        space = lin.space if lin.readout is None else lin.output_space
        with in_step(space.parts.group) as processes:
            objective = objective_of(loss, loss_mask)
            steps, trajectory = space.keep(space.dims[:-1]), lin.trajectory
            weights = read_weights(
                loss_mask, steps, trajectory.mask, trajectory.states, lin.reading
            )
            wanted = read_targets(targets, steps, weights, lin.reading)
            if loss == "cross_entropy" and "time" not in space.dims:
                _refuse_ambiguous(targets, space)
            wanted = objective.fit(wanted, space.shape, weights)
            if space.parts.many and not isinstance(loss, str):
                raise ValueError(
                    "loss is a callable, which sees the trials of one process only: pass 'mse' or "
                    "'cross_entropy', whose means are over the trials of all"
                )
            counted = objective.counted(wanted, weights)
            everyone = processes.agree(
                {"loss": str(loss)}, (float(weights.sum()), float(counted.sum()))
            )
            weighed, total = map(sum, zip(*everyone, strict=True))
            if not weighed:
                raise ValueError("loss_mask is zero at every valid step: let some steps count")
            if not total:
                raise ValueError(f"targets is {IGNORED} at every step that counts: label some")
            labelled = lin.states if lin.readout is None else lin.outputs
        outputs = torch.tensor(labelled.values, device=lin.device)
        return cls(objective, wanted, weights, total, outputs, space, trajectory)

    def __call__(self, outputs: Tensor) -> Tensor:
        """What these trials add to the loss."""
        return self.objective(outputs, self.targets, self.weights, self.total)

    @torch.enable_grad()
    def gradient(self) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient (1, trial, time, output) by the outputs."""
        y = self.outputs.clone().requires_grad_()
        before = torch.get_rng_state()
        value = self(y)
        if not torch.equal(before, torch.get_rng_state()):
            raise ValueError("loss draws random numbers: make it a function of outputs and targets")
        whole = self.space.parts.sum(value.detach())
        if not whole.isfinite():
            raise ValueError(f"loss returned {whole.item()}, expected a finite number")
        _refuse_others(value, y)
        (gradient,) = torch.autograd.grad(value, y)
        restricted = self.trajectory.restrict(gradient[None])
        padded = (restricted[0] != gradient).any(-1)
        if padded.any():
            trial, step = padded.nonzero()[0].tolist()
            raise ValueError(
                f"loss depends on the outputs of padded steps, first of trial {trial} at step "
                f"{step}: take the valid ones only; give it a third parameter, weights (trial, "
                "time), which is zero in the padding, and for the last steps take "
                "outputs[range(len(outputs)), (weights > 0).sum(1) - 1]"
            )
        return whole, restricted


def _refuse_ambiguous(targets: Any, space: Space) -> None:
    """Refuse labels of outputs whose sizes do not tell which dimension is that of the classes."""
    places, classes = space.shape[1:-1], space.shape[-1]
    if classes in places and not isinstance(targets, xr.DataArray):
        raise ValueError(
            f"the outputs {space} have {classes} positions and as many classes: if the classes are "
            f"last, pass xarray.DataArray(targets, dims={space.dims[:-1]}); if they are first, as "
            "of a convolution, pass readout=lambda y: y.movedim(1, -1) to kpops.linearize"
        )


def _refuse_others(value: Tensor, outputs: Tensor) -> None:
    """Refuse a loss with other variables than the outputs: their gradient would be missing."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", outputs)
        if leaf is not outputs:
            raise ValueError(
                f"loss depends on another tensor that requires grad, of shape {tuple(leaf.shape)}, "
                "besides the outputs: its gradient, such as that of weight decay, does not go "
                "through the states; leave the term out, or detach the tensor"
            )
        nodes.extend(following for following, _ in node.next_functions)
