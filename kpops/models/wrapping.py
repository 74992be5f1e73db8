"""Models around models, and generalised teacher forcing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.maturity import experimental
from kpops.models.recurrence import (
    ModuleRecurrence,
    Recurrence,
    as_recurrence,
    is_real,
    is_whole,
    unless_changed,
)


class Wrapping(Recurrence):
    """A recurrence whose step is that of `inner`, at another state or input.

    State, outputs and units are those of `inner`, the recurrence of a model inside `module`.
    """

    module: Any

    def __init__(self, module: nn.Module, inner: Recurrence) -> None:
        super().__init__(
            module,
            state_size=inner.state_size,
            input_size=inner.input_size,
            time_major=inner.time_major,
        )
        self._wrap(inner)

    def _wrap(self, inner: Recurrence) -> None:
        # The tuple prevents registration: functional_call must find each parameter once.
        self._inner = (inner,)
        self.forcing_step = inner.forcing_step

    @property
    def inner(self) -> Recurrence:
        """The recurrence of the model inside."""
        return self._inner[0]

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Inputs as the inner step reads them."""
        return self.inner.prepare_inputs(inputs)

    def times(self, inputs: Tensor) -> np.ndarray | None:
        """Times at which the inner steps end."""
        return self.inner.times(inputs)

    def output(self, h: Tensor) -> Tensor:
        """Part of the state that a readout sees."""
        return self.inner.output(h)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring the user's `h0` to shape (trial, unit)."""
        return self.inner.initial_state(h0, n_trials, like)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Coordinates of the units beside their index."""
        return self.inner.unit_coords(state_size)


@experimental
class TeacherForced(nn.Module):
    """A cell under generalised teacher forcing (GTF) of strength alpha.

    ``h' = f(x, (1 - alpha) h + alpha d)``, with d the observed state before the step

    Parameters
    ----------
    cell : nn.Module
        A cell with ``forward(x_t, h)`` whose state is one tensor: one of kpops, ``nn.RNNCell``,
        ``nn.GRUCell``, or your own with ``input_size`` and ``hidden_size`` (or ``state_size``).
    alpha : float or None
        From 0, no forcing, to 1, classical teacher forcing. None: it varies from step to step and
        comes with the inputs.
    observed : int, optional
        Number of observed units, the first of the state; the others are not forced. Default: all.

    Raises
    ------
    TypeError
        If `cell` runs over whole sequences, or has a state of several tensors.
    ValueError
        If `alpha` or `observed` is out of range, or a size is unknown.

    Notes
    -----
    Inputs are ``[x, d]`` side by side: first the features of the cell, then one for each observed
    unit, then, without an `alpha`, the strength. d at step t is the observed state at t - 1; the
    first d pulls at ``h0``. *Sparse* teacher forcing has the strength 1 at every tau-th step and 0
    at the others. :func:`kpops.training.reconstruct` trains cells in both ways.

    The Jacobian of a step is that of the cell at the forced state, its columns of observed units
    times ``1 - alpha``. So alpha bounds P and the gradients behind K where the cell itself is
    chaotic: where all units are observed, along a trajectory that the data do not change (d = h),
    all Lyapunov exponents move by ``log(1 - alpha)``.

    The parameters are those of the cell, as ``cell.name``. It uses the general engines.

    References
    ----------
    F. Hess et al., Generalized teacher forcing for learning chaotic dynamics, ICML 2023 (arXiv
    2306.04406). J. Mikhaeil, Z. Monfared and D. Durstewitz, On the difficulty of learning chaotic
    dynamics with RNNs, NeurIPS 2022 (arXiv 2110.07238).

    Examples
    --------
    >>> import torch, kpops
    >>> forced = kpops.models.TeacherForced(kpops.models.PLRNNCell(2, 3), alpha=0.2)
    >>> x, observed = torch.randn(5, 20, 2), torch.randn(5, 20, 3)
    >>> kpops.linearize(forced, torch.cat([x, observed], dim=-1)).flow
    <P K P* (trial: 5, time: 20, unit: 3), float32 on cpu, PSD>
    """

    def __init__(
        self, cell: nn.Module, alpha: float | None, *, observed: int | None = None
    ) -> None:
        super().__init__()
        if not (alpha is None or (is_real(alpha) and 0 <= alpha <= 1)):
            raise ValueError(f"alpha={alpha}: the strength of the forcing is in [0, 1]")
        features, self.state_size = sizes_of_cell(cell)
        self.observed = self.state_size if observed is None else observed
        if not (is_whole(self.observed) and 1 <= self.observed <= self.state_size):
            raise ValueError(f"observed={observed!r}: choose an int from 1 to {self.state_size}")
        self.cell = cell
        self.alpha = alpha
        self.input_size = features + self.observed + (alpha is None)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input + unit), (trial, unit) -> (trial, unit)."""
        return self.cell(*self.forced(x, h))

    def forced(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the cell, and the forced state."""
        alpha: Any = self.alpha
        if alpha is None:
            x, alpha = x[..., :-1], x[..., -1:]
        inputs, data = torch.tensor_split(x, [x.shape[-1] - self.observed], dim=-1)
        return inputs, pulled(h, data, alpha)

    def extra_repr(self) -> str:
        """Return the strength, for the repr."""
        some = "" if self.observed == self.state_size else f", observed={self.observed}"
        return f"alpha={self.alpha}{some}"


def pulled(h: Tensor, data: Tensor, alpha: float | Tensor) -> Tensor:
    """The state h whose first units, as many as the data have, are forced by alpha."""
    n = data.shape[-1]
    forced = (1 - alpha) * h[..., :n] + alpha * data
    return forced if n == h.shape[-1] else torch.cat([forced, h[..., n:]], dim=-1)


def sizes_of_cell(cell: Any) -> tuple[int, int]:
    """Numbers of features and units of a cell that can be forced; others are refused."""
    inner = as_recurrence(cell)
    several = isinstance(inner, ModuleRecurrence) and inner.sizes is not None
    if several or isinstance(cell, nn.RNNBase | nn.LSTMCell) or isinstance(inner, Wrapping):
        raise TypeError(
            f"{type(cell).__name__} is no cell whose state is one tensor: force a cell such as "
            "nn.GRUCell, and put other wrappers around the forced cell"
        )
    if inner.state_size is None or inner.input_size is None:
        raise ValueError(
            f"the sizes of {type(cell).__name__} are unknown: give it attributes input_size "
            "and hidden_size"
        )
    return inner.input_size, inner.state_size


class _ForcedRecurrence(Wrapping):
    """The step of the cell inside, at the forced state."""

    def __init__(self, module: TeacherForced) -> None:
        super().__init__(module, as_recurrence(module.cell))
        self.input_size = module.input_size

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(*self.module.forced(x, h))


as_recurrence.register(TeacherForced, unless_changed(TeacherForced, _ForcedRecurrence))
