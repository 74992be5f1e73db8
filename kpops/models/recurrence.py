"""The recurrence ``h[t] = f(x[t], h[t-1], theta)``, from which all else is computed."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from functools import singledispatch
from numbers import Integral, Real
from types import FunctionType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from kpops.arrays import as_tensor
from kpops.kinds import Shown, described


class Recurrence(nn.Module):
    """One step of a recurrent model as a function of input, state and parameters.

    A recurrence wraps a user's module as ``self.module`` and computes its step in plain
    differentiable operations, reading the weights through the module's attributes. To add a family
    of models, subclass it, and register the subclass with :func:`as_recurrence`.

    Parameters
    ----------
    module : nn.Module
        The user's module. It is not copied here; :func:`kpops.linearize` takes a snapshot.
    state_size : int or None
        Number of state variables S; None if it depends on the initial state.
    input_size : int or None
        Number of input features, None if unknown.
    time_major : bool
        Whether the module reads inputs as ``(time, trial, feature)``.

    Notes
    -----
    :meth:`forward` maps ``x`` of shape (trial, feature) and ``h`` of shape (trial, unit) to the
    next state (trial, unit), row by row: trials must not mix.
    """

    forcing_step: float = 1.0
    """Factor of P and divisor of J: dt where perturbations are rates."""

    def __init__(
        self,
        module: nn.Module,
        *,
        state_size: int | None = None,
        input_size: int | None = None,
        time_major: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self.state_size = state_size
        self.input_size = input_size
        self.time_major = time_major

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row; (row, feature), (row, unit) -> (row, unit)."""
        raise NotImplementedError

    def along(self, x: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The step from h at every position t along inputs (trial, time, feature)."""
        return lambda t, h: self(x[:, t], h)

    def flops(self, n_rows: int) -> int:
        """Approximate operations of a step on `n_rows`: each uses every weight once."""
        return 2 * n_rows * sum(p.numel() for p in self.module.parameters())

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Add to the user's inputs what else the step reads; both are (trial, time, feature)."""
        return inputs

    def times(self, inputs: Tensor) -> np.ndarray | None:
        """Times (trial, time) at which the steps end, if the inputs contain them; else None."""
        return None

    def output(self, h: Tensor) -> Tensor:
        """Part of the state that a readout sees; (row, unit) -> (row, feature)."""
        return h

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring the user's `h0` to shape (trial, unit); zeros when it is None.

        `h0` is (trial, unit), or (unit,) for the same state in every trial; `like` gives the dtype
        and the device.
        """
        if h0 is None:
            if self.state_size is None:
                raise ValueError(
                    f"the state size of {type(self.module).__name__} is unknown: pass "
                    "h0 of shape (trial, unit), or give the module an attribute hidden_size"
                )
            return like.new_zeros(n_trials, self.state_size)
        state = matching(h0, like, "h0")
        if state.ndim == 1:
            state = state.expand(n_trials, -1)
        size = state.shape[-1] if self.state_size is None else self.state_size
        if tuple(state.shape) != (n_trials, size):
            raise ValueError(
                f"h0 has shape {tuple(state.shape)}, expected (trial, unit) = ({n_trials}, {size})"
            )
        return state

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Coordinates of the units beside their index."""
        return {}

    def parameter_dict(self) -> dict[str, nn.Parameter]:
        """The user's parameters by name; a shared one appears once."""
        return dict(self.module.named_parameters())

    def step(self, parameters: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Next state under `parameters`, by the user's names; others keep their value."""
        refuse_cached(self)
        if self._swapped is None:
            self._swapped = (stand_in(self),)
        prefixed = {f"module.{name}": value for name, value in parameters.items()}
        return functional_call(self._swapped[0], prefixed, (x, h))

    _swapped: tuple[Recurrence] | None = None

    def renewed(self) -> Recurrence:
        """A recurrence with the same tensors that sees no call made from here on."""
        return stand_in(self)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Recurrence:
        self._swapped = None  # it shares the old tensors
        moved: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_swapped": None}


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer, of Python or NumPy."""
    return isinstance(value, Integral)


def is_real(value: Any) -> bool:
    """Whether `value` is one real number, and no array or tensor."""
    return isinstance(value, Real)


def refuse_cached(module: nn.Module) -> None:
    """Refuse to differentiate where torch caches the weights that parametrizations make."""
    if parametrize._cache_enabled and any(map(parametrize.is_parametrized, module.modules())):
        raise RuntimeError(
            "within torch.nn.utils.parametrize.cached() weights do not follow what they are "
            "made of, so that derivatives would be lost: leave it before using kpops"
        )


def stand_in(module: Any) -> Any:
    """A copy of the structure that shares all tensors, in which weights are swapped.

    ``functional_call`` swaps weights within its module: another thread that copies or pickles that
    module at the same time would get the swapped ones.
    """
    shared = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        shared += [value for value in vars(part).values() if isinstance(value, Tensor)]
        shared += [w for w in getattr(part, "_flat_weights", ()) if isinstance(w, Tensor)]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


class ModuleRecurrence(Recurrence):
    """Any ``nn.Module`` whose ``forward(x_t, h)`` returns the next state.

    The sizes are read from the attributes ``state_size`` (or ``hidden_size``) and ``input_size``,
    if the module has them; else the state size comes from ``h0``.

    A state may be a tuple of tensors, as that of ``nn.LSTMCell``. Then ``state_size`` is the tuple
    of their sizes, or ``h0`` is given as a tuple. The units are those of the first tensor, then of
    the second, and so on; an attribute ``variables`` names the tensors. A readout sees only the
    first.
    """

    def __init__(self, module: nn.Module) -> None:
        size: Any = getattr(module, "state_size", getattr(module, "hidden_size", None))
        input_size: Any = getattr(module, "input_size", None)
        sizes = size if isinstance(size, tuple) else None
        size = size if sizes is None else sum(sizes)
        super().__init__(
            module,
            state_size=int(size) if is_whole(size) else None,
            input_size=int(input_size) if is_whole(input_size) else None,
        )
        refuse_patched(module)
        refuse_exchanged(module)
        if arguments(module)[1] < 2:
            raise ValueError(
                f"{type(module).__name__}.forward takes no state, so it is no step (x_t, h): pass "
                "its recurrent part; kpops.linearize finds that itself"
            )
        self.sizes: tuple[int, ...] | None = sizes

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state by the module's own forward."""
        given = self.as_module_takes(h)
        new = self.module(x, given)
        if _shapes(new) != _shapes(given):
            got = _shapes(new) if isinstance(new, type(given)) else type(new).__name__
            raise ValueError(
                f"{type(self.module).__name__}.forward(x_t, h) returned {got}, expected the next "
                f"state alone, of the shape of h, {_shapes(given)}; of a state that is a tuple, "
                "state_size must be the tuple of its sizes"
            )
        return new if self.sizes is None else torch.cat(new, dim=-1)

    def as_module_takes(self, h: Tensor) -> Any:
        """State (row, unit) as the module takes it: itself, or the tuple of its parts."""
        return h if self.sizes is None else h.split(self.sizes, dim=-1)

    def output(self, h: Tensor) -> Tensor:
        """What a readout sees: the whole state, or the first of several tensors."""
        return h if self.sizes is None else h[..., : self.sizes[0]]

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring `h0`, or its parts if it is a tuple, to (trial, unit)."""
        if not isinstance(h0, tuple):
            return super().initial_state(h0, n_trials, like)
        parts = [matching(part, like, f"h0[{i}]") for i, part in enumerate(h0)]
        sizes = tuple(part.shape[-1] for part in parts)
        if self.sizes is None:
            self.sizes, self.state_size = sizes, sum(sizes)
        if sizes != self.sizes or any(p.shape[:-1] not in [(), (n_trials,)] for p in parts):
            raise ValueError(
                f"h0 has parts of shape {_shapes(tuple(parts))}, expected (trial, unit) = "
                f"{[(n_trials, size) for size in self.sizes]}"
            )
        return torch.cat([part.expand(n_trials, -1) for part in parts], dim=-1)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Variable of each unit, if the state is a tuple of tensors."""
        if self.sizes is None:
            return {}
        names = getattr(self.module, "variables", [f"s{i}" for i in range(len(self.sizes))])
        # Zarr has no fixed-width strings yet.
        return {"variable": np.repeat(np.array(names, dtype=object), self.sizes)}


def _shapes(state: Any) -> Any:
    """Shape of a tensor, or those of a tuple of them; else the name of the class."""
    if isinstance(state, Tensor):
        return tuple(state.shape)
    return [_shapes(s) for s in state] if isinstance(state, tuple) else type(state).__name__


@singledispatch
def as_recurrence(model: Any) -> Recurrence:
    """Turn a model into a :class:`Recurrence`.

    To add a class of models, decorate a function of one argument, annotated with that class, by
    ``@kpops.models.as_recurrence.register``.

    Parameters
    ----------
    model : nn.RNN, nn.GRU, nn.LSTM, their Cell classes, Recurrence or nn.Module
        Any other ``nn.Module`` must have a ``forward(x_t, h)`` that returns the next state, a
        tensor or a tuple of tensors; see :class:`ModuleRecurrence`.

    Returns
    -------
    Recurrence

    Raises
    ------
    TypeError
        If `model` is not an ``nn.Module``.
    ValueError
        If the module is bidirectional, has projections, or overrides the forward of nn.RNN.

    Examples
    --------
    >>> import torch, kpops
    >>> kpops.models.as_recurrence(torch.nn.LSTM(3, 4)).state_size
    8
    """
    what = described(model)
    hint = "nn.RNN, nn.GRU, nn.LSTM, a Cell, a module whose forward(x_t, h) returns the next state"
    if isinstance(model, type):
        hint = f"make one, for example {model.__name__}(...)"
    elif isinstance(model, xr.Dataset):
        hint = "pass the network, and its inputs, such as task.inputs"
    elif isinstance(model, Mapping):
        what = "a dict"
        hint = "make the network, load the weights by network.load_state_dict(...), and pass it"
    elif isinstance(model, Shown):
        hint = "pass the model that was linearised, or its Linearization where that is accepted"
    raise TypeError(f"model is {what}, expected an nn.Module: {hint}")


# Another function than that of a class which a user registers as a ModuleRecurrence.
as_recurrence.register(nn.Module, lambda model: ModuleRecurrence(model))
as_recurrence.register(Recurrence, lambda model: model)


def unless_changed(
    cell: type[nn.Module], recurrence: Callable[[Any], Recurrence]
) -> Callable[[Any], Recurrence]:
    """The `recurrence` of a class of cells, and ModuleRecurrence for cells that change its step."""
    return lambda model: ModuleRecurrence(model) if changed(model, cell) else recurrence(model)


def changed(model: nn.Module, cell: type[nn.Module]) -> bool:
    """Whether a call of `model` may differ from that of a plain `cell`.

    It may if a subclass overrides a method of the cell, or if the object has hooks or a method of
    its own.
    """
    parents = [c for c in cell.__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
    kinds = FunctionType, property
    methods = {n for c in parents for n, m in vars(c).items() if isinstance(m, kinds)}
    methods -= {"__init__", "extra_repr"}
    replaced = any(getattr(type(model), n) is not getattr(cell, n) for n in methods | {"__call__"})
    return replaced or is_hooked(model) or not methods.isdisjoint(vars(model))


def is_hooked(module: nn.Module) -> bool:
    """Whether the module itself has hooks for its calls or its backward pass."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in hooks)


def arguments(model: nn.Module) -> tuple[int, float]:
    """Numbers of positional arguments that forward needs, and that it takes at most."""
    kind = inspect.Parameter
    every = inspect.signature(model.forward).parameters.values()
    plain = [p for p in every if p.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is kind.VAR_POSITIONAL for p in every)
    return sum(p.default is p.empty for p in plain), math.inf if any_number else len(plain)


def refuse_patched(module: nn.Module) -> None:
    """Refuse a function in the place of a method, since it keeps the weights that it refers to."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            # Copies make anew what torch.compile has made.
            compiled = hasattr(part, "_orig_mod") or key == "_compiled_call_impl"
            if isinstance(value, FunctionType) and hasattr(type(part), key) and not compiled:
                raise ValueError(
                    f"{name or 'the model'} ({type(part).__name__}) has a function in the place of "
                    f"its {key}, which would not follow copies of its weights: write a subclass"
                )


def refuse_exchanged(module: nn.Module) -> None:
    """Refuse a forward whose argument names say that the state comes first."""
    try:
        names = list(inspect.signature(module.forward).parameters)[:2]
    except (TypeError, ValueError):  # not a Python function
        return
    is_state = [not _STATE_WORDS.isdisjoint(name.lower().split("_")) for name in names]
    if is_state == [True, False]:
        raise ValueError(
            f"{type(module).__name__}.forward({', '.join(names)}) takes the state first, by its "
            "names, but is called as forward(x_t, h): exchange its arguments, or rename them"
        )


_STATE_WORDS = {"h", "hx", "ht", "hid", "hidden", "state"}


def matching(array: Any, like: Tensor, name: str) -> Tensor:
    """Tensor of `array` in the dtype and on the device of `like`; floating dtypes must agree."""
    tensor = as_tensor(array, name)
    if tensor.is_floating_point() and tensor.dtype != like.dtype:
        raise TypeError(
            f"{name} is {tensor.dtype}, the computation {like.dtype}: convert {name}, or pass "
            "dtype= to kpops.linearize"
        )
    return tensor.to(dtype=like.dtype, device=like.device, copy=True)
