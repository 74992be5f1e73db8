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

from kpops.engines.memory import device_bytes
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.probes import Act, Rows, Samples
from kpops.linalg.scaling import power_of_two, raised
from kpops.linalg.sketch import Sketch
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import beside, on_host

# Fraction of the memory that a sketch may take where nobody asked for one.
_MEMORY = 0.25


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

    `inside` and `outside` are the spaces of its vectors and of their images.
    """

    def __init__(self, rng: np.random.Generator, inside: VectorSpace, outside: VectorSpace) -> None:
        self.source, self.like = RandomVectors(rng), inside.like
        self.inside, self.outside = inside, outside
        self.scale: float | None = None
        self.sketch: Sketch | None = None
        self.why = "asked for"

    @property
    def missing(self) -> int:
        """Number of rows of the basis that the operator has yet to be applied to."""
        return self.sketch.missing if self.sketch else 0

    def _room(self, k: int) -> int:
        """How many of `k` more vectors the sketch has use for."""
        known = len(self.sketch.probes) if self.sketch else 0
        return max(0, min(k, self.inside.total - known))

    def _scaled(
        self, act: Act, rows: Rows, space: VectorSpace, degree: int = 1
    ) -> Float[Tensor, "vector image"]:
        """Images in a space under a factor of the operator, over that root of its scale."""
        image = act(rows)
        largest = space.largest(image)
        size = power_of_two(largest, image.dtype)
        if self.scale is None and largest > 0:
            self.scale = size**degree
        return image if self.scale is None else image / self.scale ** (1 / degree)

    def _take(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        if self.sketch is None:
            self.sketch = Sketch(probes, images, self.inside, self.outside)
        else:
            self.sketch.grow(probes, images)


class TraceRun(SketchRun, ABC):
    """What both kinds of operator share: vectors, forms and the sketch.

    `forward` maps from `inside` to `outside`, and `cost` is what a matvec with it counts. "auto"
    writes down which method it has `chosen`, and `why`.
    """

    degree: int  # of the trace in the operator that is applied

    def __init__(
        self,
        forward: Act,
        backward: Act,
        inside: VectorSpace,
        outside: VectorSpace,
        cost: float,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(rng, inside, outside)
        self.forward, self.backward = forward, backward
        self.cost = cost
        self.products = 0
        self.forms = Forms()
        self.chosen = "hutchinson"

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

    def _forth(self, rows: Rows) -> Float[Tensor, "vector image"]:
        self.products += len(rows)
        return self._scaled(self.forward, rows, self.outside)

    def _back(self, rows: Float[Tensor, "vector image"]) -> Rows:
        self.products += len(rows)
        return self._scaled(self.backward, rows, self.inside)

    @abstractmethod
    def _observe(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        """Add the quadratic forms of vectors, from their images."""

    def fits(self, k: int) -> bool:
        """Whether there is memory for the images of `k` vectors, a basis of them and its images."""
        n_bytes = k * (self.inside.size + 3 * self.outside.size) * self.inside.dtype.itemsize
        ratio = n_bytes / device_bytes(self.inside.device)  # not what is free, which varies
        return self.inside.in_step.largest(ratio) <= _MEMORY

    def take_forms(self, k: int) -> None:
        """Add quadratic forms of `k` vectors that serve nothing else."""
        block = min(self.inside.block, self.outside.block)
        for start in range(0, k, block):
            probes = self.inside.sphere(self.source, min(block, k - start))
            self._observe(probes, self._forth(probes))

    def grow(self, k: int) -> None:
        """Add the images of `k` more vectors to the sketch."""
        k = self._room(k)
        if k == 0:
            return
        probes = self.inside.sphere(self.source, k)
        images = self._forth(probes)
        self._take(probes, images)
        self._observe(probes, images)

    def complete(self, k: int | None = None) -> None:
        """Apply `backward` to the first `k` rows of the basis, by default to all."""
        if self.sketch is not None:
            self.sketch.complete(self._back, k)


class PlainTrace(TraceRun):
    """The trace of a square operator, from its action on rows."""

    degree = 1

    def __init__(
        self, act: Act, space: VectorSpace, positive: bool, rng: np.random.Generator
    ) -> None:
        super().__init__(act, act, space, space, 1.0, rng)
        self.positive = positive

    def _observe(self, probes: Rows, images: Rows) -> None:
        self.forms.add(self.inside.dots(probes, images), self.inside.dots(images, images))


class GramTrace(TraceRun):
    """The trace of ``R* R``, from the actions of R and of R* on rows.

    Matvecs with R and with R* count one by one here: ``||R w||^2`` is a quadratic form from half a
    matvec with ``R* R``.
    """

    degree = 2
    second: Sketch | None = None

    def _observe(self, probes: Rows, images: Float[Tensor, "vector image"]) -> None:
        gram = self.outside.inner(images, images)
        k = len(gram)
        off_diagonal = gram.flatten()[1:].view(k - 1, k + 1)[:, :-1]
        self.forms.add(self.outside.dots(images, images), off_diagonal.square())

    def second_images(self) -> Sketch:
        """The sketch of ``R* R``, whose images are combinations of those of the basis under R*."""
        sketch = self.sketch
        assert sketch is not None
        new = slice(len(self.second.probes) if self.second else 0, len(sketch.products))
        images = beside(sketch.coords[new, : new.stop], self.like) @ sketch.products
        if self.second is None:
            self.second = Sketch(sketch.probes[new], images, self.inside, self.inside)
        elif len(images):
            self.second.grow(sketch.probes[new], images)
        return self.second

    def complete_second(self) -> None:
        """Apply R to the basis of the images under ``R* R``."""
        # The images under R, not under R* R: two of them make a form.
        self.second_images().complete(self._forth)
