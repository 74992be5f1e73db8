"""The derivatives of a layer's elementwise gates: the diagonals between the weights.

A layer takes the step ``s'_v = gates_v(U x + c, W phi(s) + b, s)``, unit by unit. With diagonals

    D_vg = d s'_v / d (recurrent map g),     E_vg = d s'_v / d (input map g),
    C_vw = d s'_v / d s_w (past the maps),   F_w  = d phi / d s_w,

its derivatives are

    A  ds     = C ds + sum_g D_g * W_g (F ds),
    B  dx     = sum_g E_g * U_g dx,
    J  dtheta = sum_g D_g * (dW_g phi + db_g) + E_g * (dU_g x + dc_g).

Only diagonals that differ are kept: where a gate sees the sum of its two maps, D_vg = E_vg, and
where nothing depends, there is none. An RNN has 1, a GRU 5, an LSTM 9 of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.models.gated import GatedRecurrence

Pairs = tuple[tuple[int, int, int], ...]


class Pattern(NamedTuple):
    """Which diagonals there are; the last number of each tuple is a position among all `size`.

    Pairs are (v, w, position) of C, and (v, g, position) of D and E; `slopes` are (w, position) of
    F, where None stands for the identity.
    """

    carry: Pairs
    recurrent: Pairs
    inputs: Pairs
    slopes: tuple[tuple[int, int | None], ...]
    size: int
    n_recurrent: int
    n_inputs: int


def differentiate(
    recurrence: GatedRecurrence,
    layer: int,
    x: Float[Tensor, "row feature"],
    state: Float[Tensor, "row unit"],
) -> tuple[Pattern, list[Float[Tensor, "row hidden"]]]:
    """The diagonals of a layer at every row of its input x and of the state it starts from."""
    kept = _Kept()
    old = state.split(recurrence.hidden_size, dim=-1)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = tuple(v.clone().requires_grad_() for v in old)
        phi = recurrence.features(leaves)
        slopes: list[tuple[int, int | None]] = [(w, None) for w, s in enumerate(leaves) if phi is s]
        if not slopes:
            roles = enumerate(kept.derivatives(phi, leaves))
            slopes = [(w, p) for w, p in roles if p is not None]
        maps = recurrence.from_features(layer, old)
        from_h = tuple(a.clone().requires_grad_() for a in maps)
        from_x = tuple(a.clone().requires_grad_() for a in recurrence.from_input(layer, x))
        new = recurrence.gates(from_x, from_h, leaves)
        by_variable = [kept.derivatives(v, (*leaves, *from_h, *from_x)) for v in new]

    def chosen(start: int, length: int) -> Pairs:
        rows = enumerate(row[start : start + length] for row in by_variable)
        return tuple((v, i, p) for v, row in rows for i, p in enumerate(row) if p is not None)

    pattern = Pattern(
        carry=chosen(0, len(old)),
        recurrent=chosen(len(old), len(from_h)),
        inputs=chosen(len(old) + len(from_h), len(from_x)),
        slopes=tuple(slopes),
        size=len(kept.diagonals),
        n_recurrent=len(from_h),
        n_inputs=len(from_x),
    )
    return pattern, kept.diagonals


class _Kept:
    """Diagonals that differ: autograd returns the same tensor for the same derivative."""

    def __init__(self) -> None:
        self.diagonals: list[Tensor] = []
        self._roles: dict[tuple[Any, ...], int] = {}

    def derivatives(self, value: Tensor, leaves: tuple[Tensor, ...]) -> list[int | None]:
        """Positions of d value / d leaf; None where value does not depend on the leaf."""
        if not value.requires_grad:
            return [None] * len(leaves)
        # Of the sum, since torch imports SymPy (0.25 s) to compare the shape of a cotangent.
        gradients = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
        return [None if g is None else self._place(g) for g in gradients]

    def _place(self, gradient: Tensor) -> int:
        key = gradient.data_ptr(), gradient.stride()
        if key not in self._roles:  # while the tensor is kept, its address is not reused
            self._roles[key] = len(self.diagonals)
            self.diagonals.append(gradient)
        return self._roles[key]
