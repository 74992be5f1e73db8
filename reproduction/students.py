"""Students and teachers of arXiv 2605.08746: tanh RNNs that differ in recurrent weights alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import kpops

INPUTS = 16


class Students:
    """A teacher, and the weights that it shares with its students.

    ``h <- tanh(U x + g W h)`` and an output ``y = c h``, where W is orthogonal and U and c are
    those of Xavier's normal distribution. Only the recurrent weights of a student learn. Inputs are
    white in time, of rank `rank` in 16 dimensions, and have length 1 on average.
    """

    def __init__(self, units: int, seed: int, *, steps: int, rank: int, teacher: float) -> None:
        self.steps, self.rank = steps, rank
        self.source = torch.Generator().manual_seed(seed)
        self.W = nn.init.orthogonal_(torch.empty(units, units), generator=self.source)
        self.U = nn.init.xavier_normal_(torch.empty(units, INPUTS), generator=self.source)
        self.c = nn.init.xavier_normal_(torch.empty(1, units), generator=self.source)
        self.basis = torch.linalg.qr(torch.randn(INPUTS, rank, generator=self.source))[0]
        self.teacher = self.network(teacher)

    def network(self, g: float) -> nn.RNN:
        """A network with recurrent weights g W."""
        rnn = nn.RNN(INPUTS, len(self.W), bias=False, batch_first=True)
        with torch.no_grad():
            rnn.weight_ih_l0.copy_(self.U)
            rnn.weight_hh_l0.copy_(g * self.W)
        rnn.weight_ih_l0.requires_grad_(False)
        return rnn

    def inputs(self, trials: int) -> Tensor:
        """Draw inputs (trial, time, input)."""
        latent = torch.randn(trials, self.steps, self.rank, generator=self.source)
        return latent @ self.basis.T / self.rank**0.5

    def loss(self, student: nn.RNN, inputs: Tensor) -> Tensor:
        """Mean squared difference from the outputs of the teacher."""
        return (student(inputs)[0] @ self.c.T - self.wanted(inputs)).square().mean()

    def wanted(self, inputs: Tensor) -> Tensor:
        """Outputs of the teacher."""
        with torch.no_grad():
            return self.teacher(inputs)[0] @ self.c.T

    def train(
        self, students: Sequence[nn.RNN], iterations: int, *, rate: float, batch: int
    ) -> None:
        """Gradient descent of all students in place, each step on the same new inputs."""
        W = torch.stack([student.weight_hh_l0.detach() for student in students])
        for _ in range(iterations):
            inputs = self.inputs(batch)
            drive = (inputs @ self.U.T).transpose(0, 1).unsqueeze(1)
            h = drive.new_zeros(len(W), batch, len(self.W))
            transposed, states = W.requires_grad_().mT, []
            for of_step in drive:
                h = torch.tanh(of_step + h @ transposed)
                states.append(h)
            outputs = torch.stack(states, 2) @ self.c.T
            losses = (outputs - self.wanted(inputs)).square().mean((1, 2, 3))
            (slopes,) = torch.autograd.grad(losses.sum(), W)
            W = W.detach() - rate * slopes
        with torch.no_grad():
            for student, weights in zip(students, W, strict=True):
                student.weight_hh_l0.copy_(weights)


def ranks(student: nn.RNN, inputs: Tensor, rng: int) -> dict[str, float]:
    """Effective ranks (participation ratios) at some inputs.

    Of ``V = [h, x]``; of ``(I - W)^-1``; of the tangent kernel of the states by the recurrent
    weights, averaged over units (``time``: what is left are trial and time), averaged over trial
    and time (``space``), and whole. ``time_gram`` and ``space_gram`` are those of the squares of
    the averaged kernels, which the authors' code takes.
    """
    data = xr.DataArray(inputs.double().numpy(), dims=("trial", "time", "input"))
    names = ["weight_hh_l0"]
    lin = kpops.linearize(student, data, parameters=names, dtype=torch.float64)
    joint = np.concatenate([lin.states.values, data.values], axis=-1)
    joint = joint.reshape(-1, joint.shape[-1])
    W = student.weight_hh_l0.detach().double().numpy()
    response = np.linalg.inv(np.eye(len(W)) - W)
    over_time, over_space = (
        _dense(lin.flow.expand_average(keep)) for keep in (("trial", "time"), ("unit",))
    )
    exact = {
        "V": joint.T @ joint,
        "response": response @ response.T,
        "time": over_time,
        "space": over_space,
        "time_gram": over_time @ over_time,
        "space_gram": over_space @ over_space,
    }
    found = {
        name: float(kpops.effective_rank(matrix, method="exact").estimate)
        for name, matrix in exact.items()
    }
    found["whole"] = float(kpops.effective_rank(lin.flow, num_matvecs=64, rng=rng).estimate)
    return found


def _dense(operator: kpops.TrajectoryOperator) -> np.ndarray:
    matrix = np.asarray(operator @ np.eye(operator.shape[0]))
    return (matrix + matrix.T) / 2


RANKS: Sequence[str] = ("V", "response", "time", "space", "whole", "time_gram", "space_gram")
"""What :func:`ranks` measures, in order."""
