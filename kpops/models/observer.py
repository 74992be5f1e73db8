"""A cell that predicts, and corrects its state by what is observed: an observer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.arrays import as_tensor
from kpops.maturity import experimental
from kpops.models.recurrence import as_recurrence, unless_changed
from kpops.models.wrapping import Wrapping, sizes_of_cell


@experimental
class Observer(nn.Module):
    """A cell that predicts its state and corrects it by an observation (Luenberger observer).

    ``p = f(x, h)`` and ``h' = p + L (y - C p)``, with y the observation at the step

    Parameters
    ----------
    cell : nn.Module
        A cell with ``forward(x_t, h)`` whose state is one tensor: one of kpops, ``nn.RNNCell``,
        ``nn.GRUCell``, or your own with ``input_size`` and ``hidden_size`` (or ``state_size``).
    C : array_like, shape (output, unit)
        What is observed of the state. It is fixed, and in the dtype of the cell.
    gain : array_like, shape (unit, output)
        L at the start; it learns.

    Raises
    ------
    TypeError
        If `cell` runs over whole sequences, or has a state of several tensors.
    ValueError
        If a matrix has another shape or is not finite, or a size of the cell is unknown.

    Notes
    -----
    Inputs are ``[x, y]`` side by side: first the features of the cell, then the observations. The
    parameters are those of the cell, as ``cell.name``, and ``gain``.

    The Jacobian of a step is ``(1 - L C) F``, with F that of the cell at the last state. So P is
    how an error of the state dies out under the observations: with a linear cell that is the system
    itself, the error after t steps is the block P[t, 0] of the first. L of the Kalman filter makes
    it the mean square optimum.

    ``C = 1`` and ``L = alpha`` are generalised teacher forcing: the states are those that
    :class:`TeacherForced` starts its steps from.

    References
    ----------
    D. G. Luenberger, An introduction to observers, IEEE Transactions on Automatic Control 16
    (1971).

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.PLRNNCell(2, 4)
    >>> observer = kpops.models.Observer(cell, C=torch.eye(4)[:1], gain=0.5 * torch.eye(4)[:, :1])
    >>> x, y = torch.randn(5, 20, 2), torch.randn(5, 20, 1)
    >>> lin = kpops.linearize(observer, torch.cat([x, y], dim=-1))
    >>> list(lin.parameters)[0], lin.flow
    ('gain', <P K P* (trial: 5, time: 20, unit: 4), float32 on cpu, PSD>)
    """

    C: Tensor

    def __init__(self, cell: nn.Module, C: Any, gain: Any) -> None:
        super().__init__()
        n_inputs, size = sizes_of_cell(cell)
        given = {name: as_tensor(array, name) for name, array in (("C", C), ("gain", gain))}
        for name, tensor in given.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite: pass finite weights")
        every = (*cell.parameters(), *cell.buffers(), *given.values())
        like = next((a for a in every if a.is_floating_point()), torch.empty(0)).detach()
        given = {name: tensor.to(like) for name, tensor in given.items()}
        if given["C"].ndim != 2 or given["C"].shape[1] != size or not len(given["C"]):
            raise ValueError(
                f"C has shape {tuple(given['C'].shape)}, expected (output, unit) with {size} units"
            )
        shape = tuple(given["C"].mT.shape)
        if tuple(given["gain"].shape) != shape:
            raise ValueError(
                f"gain has shape {tuple(given['gain'].shape)}, expected (unit, output) = {shape}"
            )
        self.cell = cell
        self.register_buffer("C", given["C"].clone())
        self.gain = nn.Parameter(given["gain"].clone())
        self.state_size = size
        self.input_size = n_inputs + shape[1]

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input + output), (trial, unit) -> (trial, unit)."""
        inputs, observed = self.parts(x)
        return self.corrected(self.cell(inputs, h), observed)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the cell, and the observations."""
        inputs, observed = torch.tensor_split(x, [x.shape[-1] - len(self.C)], dim=-1)
        return inputs, observed

    def corrected(self, predicted: Tensor, observed: Tensor) -> Tensor:
        """The predicted state, moved by what was observed beside what was expected."""
        return predicted + F.linear(observed - F.linear(predicted, self.C), self.gain)

    def extra_repr(self) -> str:
        """Return the number of observations, for the repr."""
        return f"{len(self.C)} observed"


class _ObserverRecurrence(Wrapping):
    """The step of the cell inside, then the correction."""

    def __init__(self, module: Observer) -> None:
        super().__init__(module, as_recurrence(module.cell))
        self.input_size = module.input_size

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inputs, observed = self.module.parts(x)
        return self.module.corrected(self.inner(inputs, h), observed)


as_recurrence.register(Observer, unless_changed(Observer, _ObserverRecurrence))
