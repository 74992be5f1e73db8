"""Stacks of equal blocks with shared weights: a recurrence whose time is the depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.kinds import described
from kpops.maturity import experimental
from kpops.models.cells import check_sizes
from kpops.models.recurrence import ModuleRecurrence, as_recurrence, matching, refuse_exchanged
from kpops.models.sites import places_of, plain


@experimental
class Unrolled(nn.Module):
    """A block that is applied again and again, ``h[t] = f(h[t-1])`` or ``f(x, h[t-1])``.

    Time is depth: a looped transformer, a stack with tied weights, or the iteration of an implicit
    layer (a deep equilibrium model).

    Parameters
    ----------
    block : nn.Module
        ``forward(h)``, or ``forward(x, h)`` if there is an `input_shape`, returns the next state,
        trial by trial.
    shape : tuple of int
        That of the state of a trial, such as (position, channel). The units are its numbers in
        C-order, with these labels as for sites.
    input_shape : tuple of int, optional
        That of the input x of a trial, which the block reads at every depth. Default: it reads
        none, and the data are the initial state.
    channels_first : bool
        Whether the state is (channel, position) or (channel, row, column).

    Raises
    ------
    TypeError
        If `block` is no module, or a list of blocks. Blocks with weights of their own make no
        recurrence: pass the whole network to :func:`kpops.linearize` with ``sites=`` their names.
    ValueError
        If a shape is no tuple of sizes, or the block takes the state first, by the names of its
        arguments.

    Notes
    -----
    ``h0`` may have the shape ``(trial, *shape)``. Attention is computed in plain operations. The
    same network with the block as a site has the same P, K and ``P K P*``. At fixed points of the
    block see :func:`kpops.linearize_at`.

    Examples
    --------
    >>> import torch, kpops
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.mix = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
    ...     def forward(self, x, h):
    ...         return h + torch.tanh(self.mix(self.norm(h)) + x)
    >>> stack = kpops.models.Unrolled(Block(), (3, 4), input_shape=(3, 4))
    >>> lin = kpops.linearize(stack, stack.inputs(6, torch.randn(5, 3, 4)))
    >>> lin.flow
    <P K P* (trial: 5, time: 6, unit: 12), float32 on cpu, PSD>
    >>> lin.P.select(position=[0, 2])
    <R P R* (trial: 5, time: 6, position: 2, channel: 4), float32 on cpu>
    """

    def __init__(
        self,
        block: nn.Module,
        shape: tuple[int, ...],
        input_shape: tuple[int, ...] | None = None,
        *,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(block, nn.Module) or isinstance(block, nn.ModuleList):
            raise TypeError(
                f"block is {described(block)}, expected one nn.Module that is applied again and "
                "again: blocks with weights of their own are no recurrence, so name them by sites= "
                "of kpops.linearize"
            )
        for name, sizes in (("shape", shape), ("input_shape", input_shape or (1,))):
            if not isinstance(sizes, tuple) or not sizes:
                raise ValueError(f"{name}={sizes!r}: pass a tuple of the sizes of a trial")
            check_sizes(**{f"{name}[{i}]": size for i, size in enumerate(sizes)})
        if input_shape is not None:
            refuse_exchanged(block)
        self.block = block
        self.shape, self.input_shape = torch.Size(shape), input_shape
        self.channels_first = channels_first
        self.state_size = self.shape.numel()
        self.input_size = 0 if input_shape is None else torch.Size(input_shape).numel()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, feature), (trial, unit) -> (trial, unit)."""
        given = () if self.input_shape is None else (x.unflatten(1, self.input_shape),)
        new = self.block(*given, h.unflatten(1, self.shape))
        if not isinstance(new, Tensor) or new.shape[1:] != self.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else described(new)
            raise ValueError(
                f"the block returns {got} for a state of shape {(len(h), *self.shape)}, expected "
                "the next state, of the same shape"
            )
        return new.flatten(1)

    def inputs(self, depth: int, x: Any = None, *, n_trials: int = 1) -> Tensor:
        """Inputs for :func:`kpops.linearize`, the same at every depth.

        Parameters
        ----------
        depth : int
            How often the block is applied.
        x : array_like, optional
            Inputs of the block, if it takes them, of shape ``(trial, *input_shape)``.
        n_trials : int
            Number of trials, if it takes none.

        Returns
        -------
        Tensor, shape (trial, depth, feature)
            In the dtype and on the device of the parameters.

        Raises
        ------
        ValueError
            If a number is less than 1, or x has another shape.

        Examples
        --------
        >>> import torch, kpops
        >>> stack = kpops.models.Unrolled(torch.nn.Linear(4, 4), (3, 4))
        >>> kpops.linearize(stack, stack.inputs(6, n_trials=5), h0=torch.randn(5, 3, 4)).P
        <P (trial: 5, time: 6, unit: 12), float32 on cpu>
        """
        check_sizes(depth=depth, n_trials=n_trials)
        like = next(self.parameters(), torch.empty(0)).detach()
        flat = like.new_empty(n_trials, 0)
        if (x is None) != (self.input_shape is None):
            wanted = "takes none" if self.input_shape is None else "needs one"
            raise ValueError(f"input_shape={self.input_shape}: a block of this form {wanted} as x")
        if x is not None:
            given = matching(x, like, "x")
            if given.shape[1:] != self.input_shape:
                raise ValueError(
                    f"x has shape {tuple(given.shape)}, expected (trial, *input_shape) with "
                    f"input_shape={self.input_shape}"
                )
            flat = given.flatten(1)
        return flat[:, None].expand(-1, depth, -1)

    def extra_repr(self) -> str:
        """Return the shapes, for the repr."""
        return f"shape={tuple(self.shape)}, input_shape={self.input_shape}"


class _UnrolledRecurrence(ModuleRecurrence):
    """The step of the block, on flat states."""

    module: Any

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with plain():
            return super().forward(x, h)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        if h0 is not None:
            h0 = matching(h0, like, "h0")
            shape = self.module.shape
            if h0.shape[-len(shape) :] == shape:
                h0 = h0.flatten(-len(shape))
        return super().initial_state(h0, n_trials, like)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        return places_of(tuple(self.module.shape), self.module.channels_first)


as_recurrence.register(Unrolled, _UnrolledRecurrence)
