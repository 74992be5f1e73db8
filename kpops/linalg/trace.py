"""How a budget of products is spent on random vectors: what all estimates of traces share.

``"auto"`` makes the images of some vectors first, which all methods need and which tell what each
would achieve with the rest of the budget, and only then decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kpops.linalg.leave_one_out import Pairs, hutchpp, shifted_xnystrace, xtrace
from kpops.linalg.probes import BLOCK, TINY, Act, dots, inner, mean_and_error, sphere
from kpops.linalg.scaling import power_of_two, raised
from kpops.linalg.sketch import Sketch

NAMES = {
    "hutchinson": "Hutchinson",
    "hutch++": "Hutch++",
    "xtrace": "XTrace",
    "xnystrace": "XNysTrace",
}


class Outcome(NamedTuple):
    """An estimate in units of the run, its standard error, the method and why that one."""

    estimate: float
    stderr: float
    method: str
    why: str


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

    def __init__(self, dim: int, cost: float, method: str, rng: np.random.Generator, like: Tensor):
        self.dim, self.cost, self.method, self.rng, self.like = dim, cost, method, rng, like
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

    def spend(self, budget: float) -> None:
        """Use products up to the budget, given in products with the operator."""
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """The estimate from all products so far."""
        raise NotImplementedError

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

    def _settle(self, found: dict[str, tuple[float, float]]) -> Outcome:
        """The estimate asked for; for "auto" that of the smallest error bar."""
        if self.method != "auto":
            return Outcome(*found[self.method], self.method, self.why)
        sure = {name: e for name, e in found.items() if not math.isnan(e[1])} or found
        best = min(sure, key=lambda name: sure[name][1])
        bars = ", ".join(f"{NAMES[n]} {e[1] * self.unit(1):.3g}" for n, e in sure.items())
        return Outcome(*sure[best], best, f"{self.why}; error bars: {bars}")


def is_exact(sketch: Sketch) -> bool:
    """Whether every image is in the span of the others: the range of the operator is found."""
    return not sketch.left_out().axes.any()


# Products below which there is nothing to learn from a part of them.
_LEAST = 8


class PlainTrace(TraceRun):
    """Trace of a square operator from products with it.

    Parameters
    ----------
    act : callable
        Its action on rows.
    dim : int
        Its size.
    positive : bool
        Whether it is positive semi-definite, so that XNysTrace is for it.
    method : {"auto", "hutchinson", "hutch++", "xtrace", "xnystrace"}
        Which estimate.
    rng : Generator
        Source of the random vectors.
    like : Tensor
        Of the dtype and on the device of the vectors.
    """

    degree = 1

    def __init__(
        self,
        act: Act,
        dim: int,
        positive: bool,
        method: str,
        rng: np.random.Generator,
        like: Tensor,
    ) -> None:
        super().__init__(dim, 1.0, method, rng, like)
        self.act, self.positive = act, positive
        self.others: tuple[Tensor, Tensor] | None = None

    def spend(self, budget: float) -> None:
        """Use products up to the budget."""
        left = self.left(budget)
        missing = self.sketch.missing if self.sketch else 0
        if self.method == "hutchinson":
            self._forms(left)
        elif self.method == "xnystrace":
            self._grow(left)
        elif self.method == "xtrace":
            self._grow((left - missing) // 2)
            self._complete()
        elif self.method == "hutch++":
            k = max(0, min(left // 3, (left - 4) // 2))  # four others at least, for an error bar
            self._grow(k)
            self._complete()
            self._others(min(self.left(budget), left - 2 * k))
        elif left < _LEAST:
            self._forms(left)
            self.why = "too few products to learn from"
        else:
            self._adapt(budget, left, missing)

    def _adapt(self, budget: float, left: int, missing: int) -> None:
        """Spend half on images, decide, spend the rest."""
        self._grow((left - missing) // 2)
        assert self.sketch is not None
        left = self.left(budget)
        if is_exact(self.sketch):
            self.why = f"the rank is below the {len(self.sketch.probes)} vectors"
            self._complete()
        elif self._xtrace_pays(left):
            self.why = "the products with the basis pay"
            self._complete()
        elif self.positive:
            self.why = "leading modes do not pay a second product"
            self._grow(left)
        else:
            self.why = "no few modes dominate"
            self._forms(left)

    def _xtrace_pays(self, left: int) -> bool:
        """Whether XTrace, with the rest of the products, would do best.

        XNysTrace could use them for more vectors, which captures more of the tail, unless the
        participation ratio of the tail says that it is too broad for that. Then the error of
        XNysTrace is what leaks of the tail into k modes, of a variance that falls like ``k^-3``.
        """
        assert self.sketch is not None
        k = len(self.sketch.probes)
        rest = self.sketch.residual_forms()
        tail = float(rest.var()) / k
        if not self.positive:
            forms = self.forms.all
            return tail < float(forms.var()) / (len(forms) + left)
        breadth = 2 * float(rest.mean()) ** 2 / max(float(rest.var()), TINY)
        nystrom = self._nystrom(k).stderr ** 2
        return breadth > 2 * left and tail < nystrom * (k / (k + left)) ** 3

    def _nystrom(self, k: int) -> Pairs:
        """XNysTrace from the first `k` vectors."""
        assert self.sketch is not None
        images = self.sketch.coords[:k].to(self.like) @ self.sketch.basis
        return shifted_xnystrace(self.sketch.probes[:k], images)

    def _forms(self, k: int) -> None:
        for probes in self._chunks(k):
            images = self._counted(self.act, probes)
            self.forms.add(dots(probes, images), dots(images, images))

    def _grow(self, k: int) -> None:
        k = self._room(k)
        if k == 0:
            return
        probes = self._draw(k)
        images = self._counted(self.act, probes)
        self._take(probes, images)
        self.forms.add(dots(probes, images), dots(images, images))

    def _complete(self) -> None:
        if self.sketch is not None:
            self.sketch.complete(lambda rows: self._counted(self.act, rows), len(self.sketch.basis))

    def _others(self, k: int) -> None:
        """The second random vectors of Hutch++."""
        if k == 0:
            return
        probes = self._draw(k)
        images = self._counted(self.act, probes)
        self.forms.add(dots(probes, images), dots(images, images))
        old = self.others
        self.others = (
            (probes, images)
            if old is None
            else (torch.cat([old[0], probes]), torch.cat([old[1], images]))
        )

    def outcome(self) -> Outcome:
        """The estimate from all products so far."""
        found = {"hutchinson": mean_and_error(self.forms.all)}
        sketch = self.sketch
        if sketch is not None and (self.positive or self.method == "xnystrace"):
            pairs = self._nystrom(len(sketch.probes))
            found["xnystrace"] = pairs.mean, pairs.stderr
        if sketch is not None and not sketch.missing:
            core = inner(sketch.basis, sketch.products)
            if self.others is not None:
                probes, images = self.others
                ahead, behind = inner(probes, sketch.products), inner(images, sketch.basis)
                forms = dots(probes, images)
                samples = hutchpp(sketch, core, probes, forms, ahead, behind)
                found["hutch++"] = mean_and_error(samples)
            else:
                pairs = xtrace(sketch, core, inner(sketch.probes, sketch.products))
                found["xtrace"] = pairs.mean, pairs.stderr
        return self._settle(found)
