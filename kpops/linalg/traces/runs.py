"""Random vectors and their images, from which every estimate of a trace is made.

The methods share what a run has multiplied; "auto" decides on the way what to multiply next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kpops.linalg.probes import BLOCK, Act, dots, inner, sphere
from kpops.linalg.scaling import power_of_two, raised
from kpops.linalg.sketch import Sketch


class Forms:
    """Quadratic forms of random vectors, and what they tell of the trace of the square."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.squares = 0.0
        self.n_squares = 0

    def add(self, samples: Tensor, squares: Tensor) -> None:
        """Take in forms, and independent estimates of the trace of the square."""
        self.samples.append(samples)
        self.squares += float(squares.sum())
        self.n_squares += squares.numel()

    @property
    def all(self) -> Tensor:
        """All forms."""
        return torch.cat(self.samples)

    def participation(self) -> float:
        """Participation ratio of a positive operator; NaN if nothing is known."""
        if not self.n_squares or not self.squares > 0:
            return math.nan
        return float(self.all.mean()) ** 2 / (self.squares / self.n_squares)


class TraceRun:
    """What both kinds of operator share: vectors, and the choice between estimates."""

    degree: int  # of the trace in the operator that is applied

    def __init__(self, dim: int, cost: float, rng: np.random.Generator, like: Tensor) -> None:
        self.dim, self.cost, self.rng, self.like = dim, cost, rng, like
        self.products = 0
        self.scale: float | None = None
        self.forms = Forms()
        self.sketch: Sketch | None = None
        self.why = "asked for"

    def unit(self, power: float) -> float:
        """What a power of the estimate is to be multiplied by: images are of about one."""
        return raised(self.scale or 1.0, self.degree * power)

    @property
    def num_matvecs(self) -> float:
        """Products with the operator so far."""
        return self.cost * self.products

    def left(self, budget: float) -> int:
        """Products that the budget still allows."""
        return max(0, int((budget - self.num_matvecs) / self.cost + 1e-9))

    def _draw(self, k: int) -> Tensor:
        return sphere(self.rng, k, self.dim, self.like)

    def _chunks(self, k: int) -> Iterator[Tensor]:
        for start in range(0, k, BLOCK):
            yield self._draw(min(BLOCK, k - start))

    def _counted(self, act: Act, rows: Tensor) -> Tensor:
        self.products += len(rows)
        image = act(rows)
        size = power_of_two(image)
        if self.scale is None and image.any():
            self.scale = size
        return image if self.scale is None else image / self.scale

    def _room(self, k: int) -> int:
        """Vectors of `k` that the sketch has use for."""
        return max(0, min(k, self.dim - (len(self.sketch.probes) if self.sketch else 0)))

    def _take(self, probes: Tensor, images: Tensor) -> None:
        if self.sketch is None:
            self.sketch = Sketch(probes, images)
        else:
            self.sketch.grow(probes, images)


class PlainTrace(TraceRun):
    """Of the trace of a square operator, from products with it.

    Parameters
    ----------
    act : callable
        Its action on rows.
    dim : int
        Its size.
    positive : bool
        Whether it is positive semi-definite.
    rng : Generator
        Source of the random vectors.
    like : Tensor
        Of the dtype and on the device of the vectors.
    """

    degree = 1

    def __init__(
        self, act: Act, dim: int, positive: bool, rng: np.random.Generator, like: Tensor
    ) -> None:
        super().__init__(dim, 1.0, rng, like)
        self.act, self.positive = act, positive

    def take_forms(self, k: int) -> None:
        """Quadratic forms of `k` vectors that nothing else is made of."""
        for probes in self._chunks(k):
            images = self._counted(self.act, probes)
            self.forms.add(dots(probes, images), dots(images, images))

    def grow(self, k: int) -> None:
        """Images of `k` more vectors."""
        k = self._room(k)
        if k == 0:
            return
        probes = self._draw(k)
        images = self._counted(self.act, probes)
        self._take(probes, images)
        self.forms.add(dots(probes, images), dots(images, images))

    def complete(self) -> None:
        """Products with the rows of the basis."""
        if self.sketch is not None:
            self.sketch.complete(lambda rows: self._counted(self.act, rows), len(self.sketch.basis))


class GramTrace(TraceRun):
    """Of the trace of ``R* R``, from products with R and R*.

    Products with R and with R* count one by one here, ``||R w||^2`` being a quadratic form from
    half a product with ``R* R``.

    Parameters
    ----------
    forward, backward : callable
        Actions of R and of R* on rows.
    dim : int
        Size of the domain of R.
    cost : float
        What one of these products counts.
    rng : Generator
        Source of the random vectors.
    like : Tensor
        Of the dtype and on the device of the vectors.
    """

    degree = 2

    def __init__(
        self,
        forward: Act,
        backward: Act,
        dim: int,
        cost: float,
        rng: np.random.Generator,
        like: Tensor,
    ) -> None:
        super().__init__(dim, cost, rng, like)
        self.forward, self.backward = forward, backward
        self.second: Sketch | None = None

    def take_forms(self, k: int) -> None:
        """Quadratic forms of `k` vectors that nothing else is made of."""
        for probes in self._chunks(k):
            images = self._counted(self.forward, probes)
            self.forms.add(dots(images, images), _off_diagonal(inner(images, images)).square())

    def grow(self, k: int) -> None:
        """Images of `k` more vectors."""
        k = self._room(k)
        if k == 0:
            return
        probes = self._draw(k)
        images = self._counted(self.forward, probes)
        self._take(probes, images)
        gram = inner(images, images)
        self.forms.add(dots(images, images), _off_diagonal(gram).square())

    def complete(self, k: int) -> None:
        """Products of R* with the first `k` rows of the basis."""
        if self.sketch is not None:
            self.sketch.complete(lambda rows: self._counted(self.backward, rows), k)

    def second_images(self) -> None:
        """Images under ``R* R``: combinations of the products of R* with the basis."""
        sketch = self.sketch
        assert sketch is not None
        known = len(self.second.probes) if self.second else 0
        new = slice(known, len(sketch.products))
        images = sketch.coords[new, : new.stop].to(self.like) @ sketch.products
        if self.second is None:
            self.second = Sketch(sketch.probes[new], images)
        elif len(images):
            self.second.grow(sketch.probes[new], images)

    def seconds(self) -> int:
        """Products with the basis of the second sketch."""
        return len(self.second.products) if self.second else 0

    def complete_second(self) -> None:
        """Products of R with the basis of the images under ``R* R``."""
        self.second_images()
        assert self.second is not None
        # The products of R, not of R* R, with the basis: two of them make a form.
        self.second.complete(lambda rows: self._counted(self.forward, rows), len(self.second.basis))


def spans_all(sketch: Sketch) -> bool:
    """Whether every image is in the span of the others: the range of the operator is found."""
    return not sketch.left_out().axes.any()


def _off_diagonal(matrix: Tensor) -> Tensor:
    k = len(matrix)
    return matrix[~torch.eye(k, dtype=torch.bool, device=matrix.device)]
