"""A learned initial state, which is a parameter of K like any other.

With the start ``h[0] = s`` a parameter, only the first step depends on it directly:
``dh[1]/ds = A[1]``. At later steps s acts through the state. So J gets the columns ``A[1]`` at
t = 1 and zeros elsewhere, and ``P J`` is the gradient of all states by s.

The recurrence is a step that reads a flag, 1 at t = 1 and 0 afterwards,

    h' = f(x, h + flag (s - s0)),        s0 = s at the snapshot = the state before the first step,

so that its trajectory is the model's own and its derivative by s is the one above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kpops.models.diagonal import DiagonalRecurrence
from kpops.models.gated import Affine, GatedRecurrence, Tensors
from kpops.models.recurrence import ModuleRecurrence, Recurrence, as_recurrence, changed
from kpops.models.wrapping import Wrapping


class LearnedStart(nn.Module):
    """A recurrent model with an initial state that learns, the same in every trial.

    Parameters
    ----------
    model : nn.RNN, nn.GRU, nn.LSTM, their Cell classes, or a cell with ``forward(x_t, h)``
        The model.
    h0 : Tensor, shape (unit,), optional
        Value of the start before learning, in the order of the units of
        ``kpops.linearize(model, ...).states``. Default: zeros.

    Raises
    ------
    ValueError
        If `h0` has not the size of the state, or is missing where that size is unknown.

    Notes
    -----
    The parameters are ``h0`` (unit,) and those of the model, as ``model.name``. The operators are
    exact: ``lin.K_by_parameter["h0"]`` is ``A A^T`` between all pairs of trials at t = 1, and zero
    elsewhere. P is gated or a scan if that of the model is; where h0 learns, J and K use automatic
    differentiation.

    A call runs the model from the learned start: ``start(inputs)`` over whole sequences, also
    packed ones, for nn.RNN, nn.GRU and nn.LSTM; ``start(x_t)`` for the first step of a cell and
    ``start(x_t, h)`` for those after it.

    Examples
    --------
    >>> import torch, kpops
    >>> start = kpops.models.LearnedStart(torch.nn.LSTM(3, 8, batch_first=True))
    >>> states, (h, c) = start(torch.zeros(5, 6, 3))
    >>> lin = kpops.linearize(start, torch.randn(5, 6, 3))
    >>> lin.K_by_parameter["h0"]
    <K[h0] (trial: 5, time: 6, unit: 16), float32 on cpu, PSD>
    """

    def __init__(self, model: nn.Module, h0: Tensor | None = None) -> None:
        super().__init__()
        size = as_recurrence(model).state_size
        if h0 is None:
            if size is None:
                raise ValueError(
                    f"the state size of {type(model).__name__} is unknown: pass h0 of shape (unit,)"
                )
            h0 = next(model.parameters()).new_zeros(size)
        if h0.ndim != 1 or len(h0) != (size or len(h0)):
            raise ValueError(f"h0 has shape {tuple(h0.shape)}, expected (unit,) = ({size},)")
        self.model: Any = model
        self.h0 = nn.Parameter(h0.detach().clone())

    def forward(self, x: Tensor, h: Any = None) -> Any:
        """What the model returns, from the learned start if no state is given."""
        if h is None:
            h = self._started(x)
        return self.model(x, h)

    def _started(self, x: Tensor) -> Any:
        """The start of all trials of x, in the form in which the model takes its state."""
        if not isinstance(self.model, nn.RNNBase):
            start = self.h0.expand(len(x), -1)
            recurrence = as_recurrence(self.model)
            if isinstance(recurrence, ModuleRecurrence):
                return recurrence.as_module_takes(start)
            return start.chunk(2, dim=-1) if isinstance(self.model, nn.LSTMCell) else start
        if isinstance(x, PackedSequence):
            n_trials = int(x.batch_sizes[0])
        else:
            n_trials = x.shape[0 if self.model.batch_first else 1]
        by_layer = self.h0.reshape(self.model.num_layers, -1, self.model.hidden_size)
        parts = [part[:, None].expand(-1, n_trials, -1).contiguous() for part in by_layer.unbind(1)]
        return tuple(parts) if len(parts) > 1 else parts[0]


class _StartRecurrence(Wrapping):
    """The step of the model inside, at a state that is moved by the start at t = 1."""

    start: Tensor

    def _wrap(self, inner: Recurrence) -> None:
        super()._wrap(inner)
        # A buffer, so that it follows the parameters to another dtype or device.
        self.register_buffer("start", self.module.h0.detach().clone(), persistent=False)

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        inputs = super().prepare_inputs(inputs)
        flag = inputs.new_zeros(*inputs.shape[:-1], 1)
        flag[:, 0] = 1
        return torch.cat([inputs, flag], dim=-1)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        if h0 is not None:
            raise ValueError("the model has a LearnedStart: leave h0 out, or linearise its .model")
        self.start = self.module.h0.detach().clone()
        return super().initial_state(self.start, n_trials, like)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        moved = x[..., -1:] * (self.module.h0 - self.start)
        return self.inner(x[..., :-1], h + moved)


class _GatedStartRecurrence(_StartRecurrence, GatedRecurrence):
    """The same for a gated model, whose gates are those of the model at the snapshot."""

    def __init__(self, module: LearnedStart, inner: GatedRecurrence) -> None:
        GatedRecurrence.__init__(
            self,
            module,
            [Affine(*(name and f"model.{name}" for name in maps)) for maps in inner.layers],
            variables=inner.variables,
            hidden_size=inner.hidden_size,
            time_major=inner.time_major,
        )
        self.input_size = inner.input_size
        self._wrap(inner)

    def from_input(self, layer: int, x: Tensor) -> Tensors:
        return self._gated.from_input(layer, x[..., :-1] if layer == 0 else x)

    def from_features(self, layer: int, state: Tensors) -> Tensors:
        return self._gated.from_features(layer, state)

    def features(self, state: Tensors) -> Tensor:
        return self._gated.features(state)

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        return self._gated.gates(from_x, from_h, state)

    def weight(self, name: str | None) -> Tensor:
        return self._gated.weight(name and name.removeprefix("model."))

    @property
    def _gated(self) -> GatedRecurrence:
        inner = self.inner
        assert isinstance(inner, GatedRecurrence)
        return inner


class _DiagonalStartRecurrence(_StartRecurrence, DiagonalRecurrence):
    """The same for a model that does not couple units."""

    def __init__(self, module: LearnedStart, inner: DiagonalRecurrence) -> None:
        DiagonalRecurrence.__init__(self, module, inner.variables)
        self.input_size, self.state_size = inner.input_size, inner.state_size
        self._wrap(inner)


@as_recurrence.register
def _(model: LearnedStart) -> Recurrence:
    if changed(model, LearnedStart):
        raise ValueError(
            f"{type(model).__name__} has hooks or methods of its own, which its linearization "
            "would not follow: change the model inside a LearnedStart"
        )
    inner = as_recurrence(model.model)
    if isinstance(inner, GatedRecurrence):
        return _GatedStartRecurrence(model, inner)
    if isinstance(inner, DiagonalRecurrence):
        return _DiagonalStartRecurrence(model, inner)
    return _StartRecurrence(model, inner)
