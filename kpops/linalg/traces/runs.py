"""Random vectors and their images, from which every estimate of a trace is made.

The methods share the images that a run has; "auto" decides on the way which to add.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.probes import BLOCK, Act, Rows, Samples, dots, inner, sphere
from kpops.linalg.scaling import power_of_two, raised
from kpops.linalg.sketch import Sketch
from kpops.transfers import beside, on_host


class Forms:
    """Quadratic forms of random vectors, and estimates of the trace of the square."""

    def __init__(self) -> None:
        self.samples: list[Samples] = []
        self.squares = 0.0
        self.n_squares = 0

    def add(self, samples: Samples, squares: Float[Tensor, "*any"]) -> None:
        """Add forms, and independent estimates of the trace of the square."""
        samples, total = on_host(samples, squares.sum())
        self.samples.append(samples)
        self.squares += float(total)
        self.n_squares += squares.numel()

    @property
    def all(self) -> Samples:
        """All forms, on the host."""
        return torch.cat(self.samples)

    def participation(self) -> float:
        """Participation ratio of a positive operator; NaN if nothing is known."""
        if not self.n_squares or not self.squares > 0:
            return math.nan
        return float(self.all.mean()) ** 2 / (self.squares / self.n_squares)


class SketchRun:
    """A sketch that grows, of an operator whose images are scaled to about one.

    `like` is a tensor of the dtype and on the device of the vectors.
    """

    def __init__(self, rng: np.random.Generator, like: Tensor) -> None:
        self.source, self.like = RandomVectors(rng), like
        self.scale: float | None = None
        self.sketch: Sketch | None = None
        self.why = "asked for"

    @property
    def missing(self) -> int:
        """Number of rows of the basis that the operator has yet to be applied to."""
        return self.sketch.missing if self.sketch else 0

    def _room(self, k: int, dim: int) -> int:
        """How many of `k` more vectors the sketch has use for, in a space of `dim` dimensions."""
        return max(0, min(k, dim - (len(self.sketch.probes) if self.sketch else 0)))

    def _scaled(self, act: Act, rows: Rows, degree: int = 1) -> Float[Tensor, "vector image"]:
        """Images under a factor of the operator, over that root of the operator's scale."""
        image = act(rows)
        size = power_of_two(image)
        if self.scale is None and image.any():
            self.scale = size**degree
        return image if self.scale is None else image / self.scale ** (1 / degree)

    def _take(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        if self.sketch is None:
            self.sketch = Sketch(probes, images)
        else:
            self.sketch.grow(probes, images)


class TraceRun(SketchRun, ABC):
    """What both kinds of operator share: vectors, forms and the sketch.

    `dim` is the size of the domain of `forward`, and `cost` what a matvec with it counts.
    """

    degree: int  # of the trace in the operator that is applied

    def __init__(
        self,
        forward: Act,
        backward: Act,
        dim: int,
        cost: float,
        rng: np.random.Generator,
        like: Tensor,
    ) -> None:
        super().__init__(rng, like)
        self.forward, self.backward = forward, backward
        self.dim, self.cost = dim, cost
        self.products = 0
        self.forms = Forms()

    def unit(self, power: float) -> float:
        """Scale of that power of the estimate: images are of about one."""
        return raised(self.scale or 1.0, self.degree * power)

    @property
    def num_matvecs(self) -> float:
        """Matvecs so far."""
        return self.cost * self.products

    def left(self, budget: float) -> int:
        """Matvecs that the budget still allows."""
        return max(0, int((budget - self.num_matvecs) / self.cost + 1e-9))

    def _counted(self, act: Act, rows: Rows) -> Float[Tensor, "vector image"]:
        self.products += len(rows)
        return self._scaled(act, rows)

    @abstractmethod
    def _observe(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        """Add the quadratic forms of vectors, from their images."""

    def take_forms(self, k: int) -> None:
        """Add quadratic forms of `k` vectors that serve nothing else."""
        for start in range(0, k, BLOCK):
            probes = sphere(self.source, min(BLOCK, k - start), self.dim, self.like)
            self._observe(probes, self._counted(self.forward, probes))

    def grow(self, k: int) -> None:
        """Add the images of `k` more vectors to the sketch."""
        k = self._room(k, self.dim)
        if k == 0:
            return
        probes = sphere(self.source, k, self.dim, self.like)
        images = self._counted(self.forward, probes)
        self._take(probes, images)
        self._observe(probes, images)

    def complete(self, k: int | None = None) -> None:
        """Apply `backward` to the first `k` rows of the basis, by default to all."""
        if self.sketch is not None:
            self.sketch.complete(lambda rows: self._counted(self.backward, rows), k)


class PlainTrace(TraceRun):
    """The trace of a square operator, from its action on rows of `dim` entries."""

    degree = 1

    def __init__(
        self, act: Act, dim: int, positive: bool, rng: np.random.Generator, like: Tensor
    ) -> None:
        super().__init__(act, act, dim, 1.0, rng, like)
        self.positive = positive

    def _observe(self, probes: Rows, images: Rows) -> None:
        self.forms.add(dots(probes, images), dots(images, images))


class GramTrace(TraceRun):
    """The trace of ``R* R``, from the actions of R and of R* on rows.

    Matvecs with R and with R* count one by one here: ``||R w||^2`` is a quadratic form from half a
    matvec with ``R* R``.
    """

    degree = 2
    second: Sketch | None = None

    def _observe(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        gram = inner(images, images)
        k = len(gram)
        off_diagonal = gram.flatten()[1:].view(k - 1, k + 1)[:, :-1]
        self.forms.add(dots(images, images), off_diagonal.square())

    def second_images(self) -> Sketch:
        """The sketch of ``R* R``, whose images are combinations of those of the basis under R*."""
        sketch = self.sketch
        assert sketch is not None
        new = slice(len(self.second.probes) if self.second else 0, len(sketch.products))
        images = beside(sketch.coords[new, : new.stop], self.like) @ sketch.products
        if self.second is None:
            self.second = Sketch(sketch.probes[new], images)
        elif len(images):
            self.second.grow(sketch.probes[new], images)
        return self.second

    def complete_second(self) -> None:
        """Apply R to the basis of the images under ``R* R``."""
        # The images under R, not under R* R: two of them make a form.
        self.second_images().complete(lambda rows: self._counted(self.forward, rows))
