"""A learned initial state, which K sees as a parameter like any other.

With the start ``h[0] = s`` a parameter, only the first step depends on it by itself:
``dh[1]/ds = A[1]``, and nothing at later steps, where s acts through the state. So J gets the
columns ``A[1]`` at t = 1 and zeros elsewhere, and ``P J`` is the gradient of all states to s.

The recurrence writes this as a step that reads a flag, which is 1 at t = 1 and else 0,

    h' = f(x, h + flag (s - s0)),        s0 = s at the snapshot = the state before the first step,

so that its trajectory is the model's own, and its derivative to s is the one above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kpops.maturity import experimental
from kpops.models.diagonal import DiagonalRecurrence
from kpops.models.gated import Affine, GatedRecurrence
from kpops.models.recurrence import ModuleRecurrence, Recurrence, as_recurrence, changed
from kpops.models.wrapping import Wrapping


@experimental
class LearnedStart(nn.Module):
    """A recurrent model together with an initial state that learns, the same in every trial.

    Parameters
    ----------
    model : nn.RNN, nn.GRU, nn.LSTM, their Cell classes, or a cell with ``forward(x_t, h)``
        The model.
    h0 : Tensor, optional
        Shape (unit,): where the start begins to learn, in the order of the units of
        ``kpops.linearize(model, ...).states``. Default: zeros.

    Raises
    ------
    ValueError
        If `h0` is of another size than the state, or not given where the size is not known.

    Notes
    -----
    The parameters are ``h0`` (unit,) and those of the model, as ``model.name``. The operators are
    exact: ``lin.K_by_parameter["h0"]`` is ``A A^T`` between all pairs of trials at t = 1, and zero
    elsewhere. P is gated or a scan if that of the model is; where h0 learns, J and K are computed
    by automatic differentiation.

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
        """What the model returns; from the learned start where no state is given."""
        if h is None:
            h = self._started(x)
        return self.model(x, h)

    def _started(self, x: Tensor) -> Any:
        """The start of as many trials as x has, as the model takes its state."""
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
    """The step of the model inside, which at t = 1 reads the start; inputs get a flag."""

    start: Tensor

    def _wrap(self, inner: Recurrence) -> None:
        super()._wrap(inner)
        # A buffer, that it may go with the parameters to another dtype or device.
        self.register_buffer("start", self.module.h0.detach().clone(), persistent=False)

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Add the flag, as the last feature."""
        inputs = super().prepare_inputs(inputs)
        flag = inputs.new_zeros(*inputs.shape[:-1], 1)
        flag[:, 0] = 1
        return torch.cat([inputs, flag], dim=-1)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """The start as it is now, in every trial."""
        if h0 is not None:
            raise ValueError("the model has a LearnedStart: leave h0 out, or linearise its .model")
        self.start = self.module.h0.detach().clone()
        return super().initial_state(self.start, n_trials, like)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row."""
        moved = x[..., -1:] * (self.module.h0 - self.start)
        return self.inner(x[..., :-1], h + moved)


class _GatedStartRecurrence(_StartRecurrence, GatedRecurrence):
    """The same for a gated model: at the snapshot, its gates are those of the model."""

    def __init__(self, module: LearnedStart, inner: GatedRecurrence) -> None:
        def inside(name: str | None) -> str | None:
            return None if name is None else f"model.{name}"

        GatedRecurrence.__init__(
            self,
            module,
            [Affine(*map(inside, maps)) for maps in inner.layers],
            variables=inner.variables,
            hidden_size=inner.hidden_size,
            time_major=inner.time_major,
        )
        self.input_size = inner.input_size
        self._wrap(inner)

    def from_input(self, layer: int, x: Tensor) -> tuple[Tensor, ...]:
        """The input maps of a layer, which do not see the flag."""
        return self._gated.from_input(layer, x[..., :-1] if layer == 0 else x)

    def from_features(self, layer: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The recurrent maps of a layer."""
        return self._gated.from_features(layer, state)

    def features(self, state: tuple[Tensor, ...]) -> Tensor:
        """What the recurrent maps multiply."""
        return self._gated.features(state)

    def gates(
        self, from_x: tuple[Tensor, ...], from_h: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """New state variables of a layer."""
        return self._gated.gates(from_x, from_h, state)

    def weight(self, name: str | None) -> Tensor:
        """The weight of that name, as the model finds it."""
        return self._gated.weight(None if name is None else name.removeprefix("model."))

    @property
    def _gated(self) -> GatedRecurrence:
        inner = self.inner
        assert isinstance(inner, GatedRecurrence)
        return inner


class _DiagonalStartRecurrence(_StartRecurrence, DiagonalRecurrence):
    """The same for a model that couples no two units: neither does its start."""

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
