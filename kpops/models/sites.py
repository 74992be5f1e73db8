"""Any network as a function of its parameters and of what is added to the outputs of its parts.

The sites of a network are outputs ``h = (h_1, ..., h_L)`` of named parts, in the order in which
they are computed. Two runs take it apart:

*push*: ``d_l`` is added to ``h_l`` where it is computed, and all that follows sees the sum;
*cut*: all that follows sees a given ``h_l``, whatever the part has computed.

The value of both is what the parts compute, with what is added in the first.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from kpops.kinds import described
from kpops.models.recurrence import refuse_cached, stand_in

Sites = Float[Tensor, "trial unit"]
AtSite = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""The number of a site and what its part computes, to the value of the site and what is seen."""


class Rows:
    """The inputs of trials, a tree of tensors, of which some trials can be taken."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def __getitem__(self, trials: Any) -> Rows:
        return Rows(tree_map(lambda x: x[trials], self.tree))

    def __len__(self) -> int:
        return len(tree_leaves(self.tree)[0])

    def to(self, dtype: torch.dtype) -> Rows:
        """The same with floating-point numbers of this dtype."""
        return Rows(tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, self.tree))

    def expanded(self, n_trials: int) -> Rows:
        """The first trial, repeated."""
        return Rows(tree_map(lambda x: x[:1].expand(n_trials, *x.shape[1:]), self.tree))


@dataclass(frozen=True)
class Site:
    """The output of a part: its path, which of the calls of the part, and its shape.

    `axis` is where the output has the trials, `shape` that of a trial.
    """

    path: str
    call: int
    axis: int
    shape: tuple[int, ...]
    channels_first: bool = False

    @property
    def size(self) -> int:
        """Numbers of a trial."""
        return torch.Size(self.shape).numel()

    def flat(self, output: Tensor) -> Sites:
        """The output as rows of trials."""
        return output.movedim(self.axis, 0).reshape(output.shape[self.axis], -1)

    def shaped(self, rows: Sites) -> Tensor:
        """Rows of trials as the part returns them."""
        return rows.reshape(len(rows), *self.shape).movedim(0, self.axis)

    def __str__(self) -> str:
        return f"{self.path or 'the network'}, call {self.call}"


def places_of(shape: tuple[int, ...], channels_first: bool) -> dict[str, np.ndarray]:
    """Channel and position of every number of an array of this shape."""
    axis = 0 if channels_first else len(shape) - 1
    inside = [i for i in range(len(shape)) if i != axis]
    names = {1: ["position"], 2: ["row", "column"]}.get(len(inside))
    if names is None:
        names = [f"position_{i + 1}" for i in range(len(inside))]
    places = np.indices(shape).reshape(len(shape), math.prod(shape))
    found = {"channel": places[axis]} if shape else {}
    return found | {name: places[i] for name, i in zip(names, inside, strict=True)}


@dataclass(eq=False)
class SiteNetwork:
    """A network, run with its sites pushed or cut; rows are trials.

    `readout` makes the tensor of outputs of what the network returns, `output_axis` is where that
    has the trials.
    """

    module: nn.Module
    sites: tuple[Site, ...]
    readout: Callable[[Any], Tensor] | None = None
    output_axis: int | None = None
    _swapped: tuple[nn.Module] | None = field(default=None, repr=False)

    @property
    def sizes(self) -> list[int]:
        """Units of the sites."""
        return [site.size for site in self.sites]

    def step(self, parameters: dict[str, Tensor], x: Any, d: Sites) -> Sites:
        """The sites of the run in which `d` is pushed."""
        return joined(self._push(parameters, x, d)[0])

    def _push(self, parameters: dict[str, Tensor], x: Rows, d: Sites) -> tuple[list[Tensor], Any]:
        pushes = d.split(self.sizes, dim=1)

        def push(number: int, output: Tensor) -> tuple[Tensor, Tensor]:
            value = output + self.sites[number].shaped(pushes[number])
            return value, value.clone()  # what follows may change it in place

        return self.run(parameters, x, push)

    def cut(self, parameters: dict[str, Tensor], x: Rows, h: Sites) -> Sites:
        """The sites of the run in which all that follows sees `h`."""
        return joined(self._cut(parameters, x, h)[0])

    def cut_outputs(self, parameters: dict[str, Tensor], x: Rows, h: Sites) -> Sites:
        """The outputs of that run, as rows."""
        return self.read(self._cut(parameters, x, h)[1]).flatten(1)

    def whole(self, parameters: dict[str, Tensor], x: Rows, h: Sites) -> Sites:
        """The outputs as rows; `h` has no part in them."""
        return self.read(self.run(parameters, x, lambda _, output: (output, output))[1]).flatten(1)

    def read(self, returned: Any) -> Tensor:
        """Outputs (trial, ...) of what the network returns."""
        outputs = returned if self.readout is None else self.readout(returned)
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the network returns {described(outputs)}, whose tensor of outputs is unknown: "
                "pass readout=, a function from what it returns to that tensor"
            )
        outputs = outputs.movedim(self.output_axis or 0, 0)
        return outputs[:, None] if outputs.ndim == 1 else outputs

    def run(self, parameters: dict[str, Tensor], x: Rows, at: AtSite) -> tuple[list[Tensor], Any]:
        """Values of the sites, and what the network returns."""
        refuse_cached(self.module)
        if self._swapped is None:
            self._swapped = (stand_in(self.module),)
        module = self._swapped[0]
        numbers = {(site.path, site.call): i for i, site in enumerate(self.sites)}
        values: list[Any] = [None] * len(self.sites)

        def seen(path: str, call: int, output: Tensor) -> Tensor:
            number = numbers.get((path, call))
            if number is None:
                raise ValueError(f"{path} is called once more than at linearization: {_VARIES}")
            value, follows = at(number, output)
            values[number] = self.sites[number].flat(value)
            return follows

        paths = dict.fromkeys(site.path for site in self.sites)
        args, kwargs = as_called(module, x.tree)
        with hooked(module, paths, seen), plain():
            returned = functional_call(module, parameters, args, kwargs)
        missing = [str(site) for site, v in zip(self.sites, values, strict=True) if v is None]
        if missing:
            raise ValueError(f"the network did not call {missing}, as at linearization: {_VARIES}")
        return values, returned

    def read_by(self, paths: list[str], x: Rows) -> dict[tuple[str, int], Tensor]:
        """What parts of one argument read, by path and number of the call."""
        found: dict[tuple[str, int], Tensor] = {}
        calls: Counter[str] = Counter()

        def hook(path: str, part: nn.Module, read: tuple[Any, ...]) -> None:
            calls[path] += 1
            found[path, calls[path]] = read[0].detach().clone()

        args, kwargs = as_called(self.module, x.tree)
        with ExitStack() as stack, plain():
            for path in paths:
                part = self.module.get_submodule(path)
                stack.callback(part.register_forward_pre_hook(partial(hook, path)).remove)
            self.module(*args, **kwargs)
        return found

    def renewed(self) -> SiteNetwork:
        """A network with the same tensors that sees no call made from here on."""
        return type(self)(stand_in(self.module), self.sites, self.readout, self.output_axis)

    def flops(self, n_trials: int) -> int:
        """Approximate operations of a run: each weight is used once for every trial."""
        return 2 * n_trials * sum(p.numel() for p in self.module.parameters())

    def _cut(self, parameters: dict[str, Tensor], x: Rows, h: Sites) -> tuple[list[Tensor], Any]:
        stored = h.split(self.sizes, dim=1)
        return self.run(
            parameters, x, lambda i, output: (output, self.sites[i].shaped(stored[i]).clone())
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_swapped": None}


class WithOutputs(SiteNetwork):
    """A network whose step returns its outputs, too, after the sites, as far as it has them."""

    def step(self, parameters: dict[str, Tensor], x: Rows, d: Sites) -> Sites:
        """The sites and the outputs of the run in which `d` is pushed."""
        return self.with_outputs(*self._push(parameters, x, d))

    def with_outputs(self, values: list[Tensor], returned: Any) -> Sites:
        """The rows of a run."""
        outputs = [] if self.output_axis is None else [self.read(returned).flatten(1)]
        return joined([*values, *outputs])


class _Joined(torch.autograd.Function):
    """Concatenation whose backward pass is a single operation.

    The backward pass of ``torch.cat`` takes its argument apart site by site, and the derivative of
    that adds up as many arrays of all sites. That of one split is one ``torch.cat``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*values: Tensor) -> Sites:
        """Return the values in one array."""
        return torch.cat(values, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Sites) -> None:
        """Keep the number of units of each."""
        ctx.sizes = [value.shape[1] for value in inputs]

    @staticmethod
    def backward(ctx: Any, gradient: Sites) -> Any:
        """Return the part of each."""
        return gradient.split(ctx.sizes, dim=1)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Sites:
        """Do the same to tangents."""
        return torch.cat(tangents, dim=1)


def joined(values: list[Tensor]) -> Sites:
    """Rows of all sites, side by side."""
    apply: Any = _Joined.apply
    return apply(*values)


_VARIES = "let every run call the same parts, or choose sites that do not vary"


@contextmanager
def hooked(
    module: nn.Module, paths: dict[str, Any], seen: Callable[[str, int, Tensor], Tensor]
) -> Iterator[None]:
    """Let `seen` exchange the outputs of parts, by path and number of the call."""
    calls: Counter[str] = Counter()

    def hook(path: str, part: nn.Module, arguments: Any, output: Any) -> Any:
        calls[path] += 1
        first = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(first, Tensor):
            raise ValueError(
                f"{path} returns {described(output)}, no tensor: choose a part whose output, or "
                "the first of several, is one"
            )
        new = seen(path, calls[path], first)
        if first is output:
            return new
        several = new, *output[1:]
        return type(output)(*several) if hasattr(output, "_fields") else type(output)(several)

    with ExitStack() as stack:
        for path in paths:
            handle = module.get_submodule(path).register_forward_hook(partial(hook, path))
            stack.callback(handle.remove)
        yield


@contextmanager
def plain() -> Iterator[None]:
    """Attention in plain operations: the fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def as_called(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: of a tuple, and of a dict whose keys forward knows."""
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, dict):
        known = inspect.signature(module.forward).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
        if any_name or set(inputs) <= set(known):
            return (), inputs
    return (inputs,), {}


def default_paths(module: nn.Module) -> list[str]:
    """The children that have parameters; of containers, their children."""
    containers = nn.Sequential, nn.ModuleList, nn.ModuleDict

    def inside(part: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in part.named_children():
            if next(child.parameters(), None) is None:
                continue
            if isinstance(child, containers):
                yield from inside(child, f"{prefix}{name}.")
            else:
                yield prefix + name

    return list(inside(module, "")) or [""]
