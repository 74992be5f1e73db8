"""Generalised teacher forcing: the state is pulled towards data before each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kpops.maturity import experimental
from kpops.models.recurrence import ModuleRecurrence, as_recurrence, unless_changed
from kpops.models.sizes import is_real
from kpops.models.wrapping import Wrapping


@experimental
class TeacherForced(nn.Module):
    """A cell under generalised teacher forcing (GTF) of strength alpha.

    ``h' = f(x, (1 - alpha) h + alpha d)``, with d the state that the data say the step starts from

    Parameters
    ----------
    cell : nn.Module
        A cell whose state is one tensor, with ``forward(x_t, h)``: kpops' own, ``nn.RNNCell``,
        ``nn.GRUCell``, or one of the user's that has ``input_size`` and ``hidden_size`` (or
        ``state_size``).
    alpha : float
        From 0, no forcing, to 1, classical teacher forcing.

    Raises
    ------
    TypeError
        If `cell` runs over whole sequences, or has a state of several tensors.
    ValueError
        If `alpha` is out of range, or a size is not known.

    Notes
    -----
    Inputs are ``[x, d]`` side by side: first the features of the cell, then one for each unit. d at
    step t is the observed state at t - 1; the first d pulls at ``h0``.

    The Jacobian of a step is ``(1 - alpha)`` times that of the cell at the forced state. So alpha
    bounds P and the gradients behind K where the cell itself is chaotic: along a trajectory that
    the data do not change (d = h), all Lyapunov exponents move by ``log(1 - alpha)``.

    The parameters are those of the cell, as ``cell.name``. The engines are those for any module.

    References
    ----------
    F. Hess et al., Generalized teacher forcing for learning chaotic dynamics, ICML 2023 (arXiv
    2306.04406).

    Examples
    --------
    >>> import torch, kpops
    >>> forced = kpops.models.TeacherForced(kpops.models.PLRNNCell(2, 3), alpha=0.2)
    >>> x, observed = torch.randn(5, 20, 2), torch.randn(5, 20, 3)
    >>> kpops.linearize(forced, torch.cat([x, observed], dim=-1)).flow
    <P K P* (trial: 5, time: 20, unit: 3), float32 on cpu, PSD>
    """

    def __init__(self, cell: nn.Module, alpha: float) -> None:
        super().__init__()
        if not (is_real(alpha) and 0 <= alpha <= 1):
            raise ValueError(f"alpha={alpha}: the strength of the forcing is in [0, 1]")
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
        self.cell = cell
        self.alpha = alpha
        self.state_size = inner.state_size
        self.input_size = inner.input_size + inner.state_size

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input + unit), (trial, unit) -> (trial, unit)."""
        return self.cell(*self.forced(x, h))

    def forced(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What the cell gets: its input, and the state after the forcing."""
        inputs, data = torch.tensor_split(x, [x.shape[-1] - self.state_size], dim=-1)
        return inputs, (1 - self.alpha) * h + self.alpha * data

    def extra_repr(self) -> str:
        """Return the strength, for the repr."""
        return f"alpha={self.alpha}"


class _ForcedRecurrence(Wrapping):
    """The step of the cell inside, at the forced state."""

    def __init__(self, module: TeacherForced) -> None:
        super().__init__(module, as_recurrence(module.cell))
        self.input_size = module.input_size

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row."""
        return self.inner(*self.module.forced(x, h))


as_recurrence.register(TeacherForced, unless_changed(TeacherForced, _ForcedRecurrence))
