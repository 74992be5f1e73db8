"""Networks with two linear memories, trained by gradient descent or low-rank natural gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

import kpops

BULK = 0.3
"""Spectral radius of the rest of the recurrent weights, about."""


class Memory(nn.Module):
    """``h <- tanh(W h)``, in float64; the input does not count."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W.clone())

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Take a step."""
        return torch.tanh(h @ self.W.T)

    def states(self, starts: Tensor, time: int) -> Tensor:
        """States (trial, time, unit)."""
        found = [starts]
        for _ in range(time):
            found.append(self(starts, found[-1]))
        return torch.stack(found[1:], 1)


class TwoMemories:
    """A student that imitates a teacher; both have two memories along the same directions.

    ``W = R diag(memories) R^T + B`` with an orthonormal basis R of a plane, and random weights
    B that vanish there and are the same for student and teacher. Trials start on the plane,
    each unit with a standard deviation of about `start`. The loss is the mean square difference of
    all states.
    """

    def __init__(
        self,
        seed: int,
        *,
        units: int,
        time: int,
        trials: int,
        student: Sequence[float],
        teacher: Sequence[float],
        start: float = 0.5,
    ) -> None:
        rng = np.random.default_rng(seed)
        plane = np.linalg.qr(rng.normal(size=(units, 2)))[0]
        rest = np.eye(units) - plane @ plane.T
        B = rest @ rng.normal(size=(units, units)) @ rest * BULK / units**0.5
        starts = start * (units / 2) ** 0.5 * rng.normal(size=(trials, 2)) @ plane.T
        self.starts, self.time = torch.from_numpy(starts), time
        self.student = Memory(torch.from_numpy(plane @ np.diag(student) @ plane.T + B))
        with torch.no_grad():
            whole = Memory(torch.from_numpy(plane @ np.diag(teacher) @ plane.T + B))
            self.target = whole.states(self.starts, time)

    def loss(self) -> Tensor:
        """Mean square difference from the teacher."""
        return (self.student.states(self.starts, self.time) - self.target).square().mean()

    def gradient(self) -> tuple[float, Tensor]:
        """The loss, and its gradient by all weights in a row."""
        loss = self.loss()
        (slopes,) = torch.autograd.grad(loss, self.student.W)
        return loss.item(), slopes.flatten()

    def sensitivity(self) -> kpops.TrajectoryOperator:
        """P J: the change of all states by the weights."""
        inputs = np.zeros((len(self.starts), self.time, 1))
        return kpops.linearize(self.student, inputs, h0=self.starts.numpy()).sensitivity

    def leading(self) -> tuple[float, float]:
        """The two largest real parts of eigenvalues of W."""
        first, second = torch.linalg.eigvals(self.student.W.detach()).real.topk(2).values
        return float(first), float(second)


class LowRankGaussNewton:
    """Gradient descent that takes damped Gauss-Newton steps in the k steepest directions.

    With the Gauss-Newton matrix ``F = (2/N) (P J)* P J`` of a mean of N squares, and its k leading
    eigenpairs (lambda, q), the step is ``-(1/rate + F_k)^-1 g``: plain gradient descent outside of
    the q, and at most the Gauss-Newton step along them. There is no number to choose but the rate
    and k. The q follow F by one step of subspace iteration in every `every` steps, which is one
    product of k vectors with F, and another with P J.

    Parameters
    ----------
    setting : TwoMemories
        What is trained.
    rank : int
        k; 0 is gradient descent.
    every : int
        Steps between two updates of the directions.
    rng : numpy.random.Generator
        Draws the first directions.
    """

    def __init__(
        self, setting: TwoMemories, rank: int, every: int, rng: np.random.Generator
    ) -> None:
        self.setting, self.rank, self.every, self.steps = setting, rank, every, 0
        size = setting.student.W.numel()
        self.vectors = np.linalg.qr(rng.normal(size=(size, rank)))[0]
        self.values = np.zeros(rank)

    def update(self) -> None:
        """Bring the directions up to date."""
        S = self.setting.sensitivity()
        basis = np.linalg.qr(S.H @ (S @ self.vectors))[0]
        moved = S @ basis
        values, turn = np.linalg.eigh(2 / len(moved) * moved.T @ moved)
        self.vectors, self.values = basis @ turn, values

    def step(self, rate: float) -> float:
        """Take a step, and return the loss before it."""
        if self.rank and self.steps % self.every == 0:
            self.update()
        self.steps += 1
        loss, slopes = self.setting.gradient()
        g = slopes.numpy()
        less = rate - 1 / (1 / rate + self.values)
        change = rate * g - self.vectors @ (less * (self.vectors.T @ g))
        with torch.no_grad():
            W = self.setting.student.W
            W -= torch.from_numpy(change).reshape(W.shape)
        return loss


def train(method: LowRankGaussNewton, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and the two leading eigenvalues of W, before each step and after the last."""
    losses, leading = [], []
    for _ in range(steps):
        leading.append(method.setting.leading())
        losses.append(method.step(rate))
    leading.append(method.setting.leading())
    losses.append(method.setting.loss().item())
    return np.array(losses), np.array(leading)


def seconds(make: Callable[[], LowRankGaussNewton], rate: float, steps: int) -> float:
    """Seconds of some steps from the start, without what :func:`train` records."""
    method = make()
    start = perf_counter()
    for _ in range(steps):
        method.step(rate)
    return perf_counter() - start
