"""How a budget of products is spent on the trace of a square operator of unknown factors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kpops.spectral.estimators import stochastic
from kpops.spectral.estimators.probing import Outcome, TraceRun, is_exact
from kpops.spectral.estimators.sketch import TINY, Act, dots, inner, mean_and_error

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

    def _nystrom(self, k: int) -> stochastic.Pairs:
        """XNysTrace from the first `k` vectors."""
        assert self.sketch is not None
        images = self.sketch.coords[:k].to(self.like) @ self.sketch.basis
        return stochastic.shifted_xnystrace(self.sketch.probes[:k], images)

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
                samples = stochastic.hutchpp(sketch, core, probes, forms, ahead, behind)
                found["hutch++"] = mean_and_error(samples)
            else:
                pairs = stochastic.xtrace(sketch, core, inner(sketch.probes, sketch.products))
                found["xtrace"] = pairs.mean, pairs.stderr
        return self._settle(found)
