"""The recurrent part of a module over whole sequences, and its readout, found by a run.

The recurrent part must read the inputs unchanged and carry its own state. The parts after it,
applied row by row, must give what forward returns, with the same derivatives. Other modules are
refused, with the call that linearises their parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from kpops.arrays import as_tensor
from kpops.models.compare import (
    Call,
    View,
    are_steps,
    as_it_is,
    carries_on,
    classes_second,
    close,
    gradients,
    is_view,
    is_whole_view,
    largest,
    last_step,
    loop,
    tensors,
    time_first,
)
from kpops.models.recurrence import ModuleRecurrence, arguments, as_recurrence
from kpops.models.structure import (
    guess_readout,
    original,
    parts_beside,
    recurrent_paths,
    spelled,
    together,
)

_NO_CHANGE = (nn.Identity, nn.modules.dropout._DropoutNd)  # dropout is in eval mode
_FEW = 4
"""Trials on which derivatives are compared."""


class NotRecurrentError(ValueError):
    """No part of a model is recurrent."""


class Run:
    """A module over whole sequences, and the calls of its parts on some inputs."""

    def __init__(self, model: nn.Module, copy: nn.Module, inputs: Any) -> None:
        self.model, self.copy = model, copy
        self.name = type(model).__name__
        for parent in list(copy.modules()):
            for name, child in parent.named_children():
                if original(child) is not child:  # else it would be compiled for this run
                    setattr(parent, name, original(child))
        self.paths = recurrent_paths(copy)
        scripted = [p for p, m in copy.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            raise self._refusal(
                f"runs {scripted[0]}, which is scripted: replace it by the module it was made from"
            )
        x = self._example(inputs)
        with torch.no_grad():
            self._look(x)
        if isinstance(inputs, xr.DataArray | PackedSequence) and self.time_major:
            with torch.no_grad():  # named inputs came with trials first
                self._look(x.transpose(0, 1))

    def _look(self, x: Tensor) -> None:
        """Run the module on x; find its recurrent part, with its inputs and states."""
        self.x = x
        self.calls, self.returned = self._record(x)
        called = [path for path in self.paths if any(c.path == path for c in self.calls)]
        if len(called) > 1:
            raise self._refusal(
                f"has several recurrent parts, {together(called)}",
                called[-1],
                inputs=self._read_by(called[-1]),
            )
        path = called[0] if called else loop(self.calls)
        if path is None:
            repeated = len({call.path for call in self.calls}) < len(self.calls)
            raise (ValueError if repeated else NotRecurrentError)(
                f"{self.name}.forward takes no state, and calls no part that is recurrent: nn.RNN, "
                "nn.GRU, nn.LSTM, a Cell, a class that is registered with "
                "kpops.models.as_recurrence, or a module called as part(x_t, h) at every step; "
                "give the recurrent part a module of its own, or pass sites='auto' to linearise "
                "the outputs of all parts"
            )
        self.path = path
        self.recurrence = as_recurrence(self.copy.get_submodule(path))  # refuses bidirectional ones
        self.read, self.hidden = self._through(self.calls)
        forms = [x, time_first(x)] if x.ndim == 3 else [x]
        fits = [f.shape == self.read.shape and torch.equal(f, self.read) for f in forms]
        if not any(fits):
            raise self._encoded()
        self.time_major = not fits[0]

    def readout(self) -> tuple[nn.Module | None, str]:
        """Verified readout of the states, and a remark on the parts."""
        chain = self._chain()
        leaf, view = self._find(self._rows(chain, self.hidden))
        self.compare_derivatives(chain, leaf, view)
        modules = [original(self.model.get_submodule(path)) for path in chain]
        names = [path.rpartition(".")[2] for path in chain]
        if len(set(names)) < len(names):
            names = [f"{i}_{name}" for i, name in enumerate(names)]
        named = dict(zip(names, modules, strict=True))
        readout = modules[0] if len(modules) == 1 else nn.Sequential(OrderedDict(named))
        made = f"{together(chain)} as readout" if chain else "no readout"
        last = " at the last step of full trials" if view is last_step else ""
        said = f"{self.path} as recurrence, {made}, equal to its forward{last}"
        return readout if chain else None, said

    # The run.

    def _example(self, inputs: Any) -> Tensor:
        """Inputs for a run, in the model's dtype; random ones if the user's do not serve."""
        like = next((p for p in self.copy.parameters() if p.is_floating_point()), torch.empty(0))
        if isinstance(inputs, PackedSequence):
            inputs = pad_packed_sequence(inputs, batch_first=True)[0]
        if isinstance(inputs, xr.DataArray):
            dims = [d for d in ("trial", "time") if d in inputs.dims]
            inputs = inputs.transpose(*dims, ...).data
        try:
            x = as_tensor(inputs, "inputs").to(like.device)
        except (TypeError, ValueError):
            x = torch.empty(0)
        embeds = any(isinstance(m, nn.Embedding) for m in self.copy.modules())
        if embeds and not x.is_floating_point():
            return x
        if x.ndim == 3 and x.numel() and not x.is_complex():
            return torch.nan_to_num(x.to(like))  # padding may be anything
        # None were given, or linearize will refuse them.
        sizes = [as_recurrence(self.copy.get_submodule(path)).input_size for path in self.paths]
        if not sizes:
            raise NotRecurrentError(f"{self.name} has no part that is known to be recurrent")
        if sizes[0] is None:
            raise self._refusal("cannot be run, since its number of inputs is unknown")
        generator = torch.Generator().manual_seed(0)
        return torch.randn(3, 5, sizes[0], generator=generator).to(like)

    def _record(self, x: Tensor) -> tuple[list[Call], Any]:
        """Calls of all parts, in the order in which they end, and the result of forward."""
        calls: list[Call] = []
        handles = [
            m.register_forward_hook(
                lambda _, args, kwargs, result, path=path: calls.append(
                    Call(path, (*args, *kwargs.values()), result)
                ),
                with_kwargs=True,
            )
            for path, m in self.copy.named_modules()
            if path
        ]
        devices = [x.device] if x.device.type == "cuda" else []
        reason: Exception | None = None
        try:
            with torch.random.fork_rng(devices=devices):
                for start in self._starts(x):
                    calls.clear()
                    try:
                        return calls, self.copy(x, *start)
                    except Exception as error:  # whatever a user's forward raises
                        reason = error
        finally:
            for handle in handles:
                handle.remove()
        raise self._refusal(
            f"cannot be run on inputs of shape {tuple(x.shape)} alone ({reason})"
        ) from reason

    def _starts(self, x: Tensor) -> Iterator[tuple[Any, ...]]:
        """The arguments beside x: none, or a zero state if forward needs one."""
        part = self.copy.get_submodule(self.paths[0]) if self.paths else None
        if arguments(self.copy)[0] < 2 or not isinstance(part, nn.RNNBase):
            yield ()
            return
        for n_trials in dict.fromkeys(x.shape[:2]):
            zero = x.new_zeros(part.num_layers, n_trials, part.hidden_size)
            yield ((zero, zero) if isinstance(part, nn.LSTM) else zero,)

    def _through(self, calls: list[Call]) -> tuple[Tensor, Tensor]:
        """Inputs and hidden states (trial, time, ...) of the recurrent part, over all its calls."""
        own = [c for c in calls if c.path == self.path]
        if not own:
            raise self._refusal(f"does not call {self.path}")
        if not are_steps([c.arguments[0] for c in own]):
            kind = type(own[0].arguments[0]).__name__
            raise self._refusal(f"passes to {self.path} a {kind} that it makes itself")
        if any(largest(s) > 0 for s in tensors(own[0].arguments[1:])):
            raise self._refusal(
                f"starts {self.path} from a state of its own, which is not zero: pass that as h0=, "
                "or wrap the part in kpops.models.LearnedStart"
            )
        for before, after in pairwise(own):
            if not carries_on(before, after):
                several = own[0].arguments[0].ndim == 3
                again = f", or restarts in each of {len(own)} calls" if several else ""
                raise self._refusal(f"changes the state of {self.path} between its steps{again}")
        x = torch.cat([self._by_trial(c.arguments[0]) for c in own], 1)
        if own[0].arguments[0].ndim == 3:
            return x, torch.cat([self._by_trial(tensors(c.result)[0]) for c in own], 1)
        states = torch.stack([torch.cat(tensors(c.result), -1) for c in own], 1)
        if isinstance(self.recurrence, ModuleRecurrence) and self.recurrence.sizes is None:
            return x, torch.stack([tensors(c.result)[0] for c in own], 1)
        return x, self.recurrence.output(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    def _by_trial(self, piece: Tensor) -> Tensor:
        if piece.ndim == 2:
            return piece[:, None]
        return piece.transpose(0, 1) if self.recurrence.time_major else piece

    # What follows the recurrent part.

    def _chain(self) -> list[str]:
        """Paths of the parts that are applied in turn to the hidden states."""
        chain: list[str] = []
        stages = [self.hidden]
        for path, given, made in self._part_calls():
            part = self.copy.get_submodule(path)
            moved = getattr(given, "shape", None) != getattr(made, "shape", None)
            if is_view(made, stages[-1]) and (moved or isinstance(part, _NO_CHANGE)):
                continue  # picks the last step, takes states from a tuple, or transposes them
            if is_view(given, stages[-1]):
                chain.append(path)
                stages.append(self._rows([path], stages[-1]))
            elif any(is_view(given, stage) for stage in stages[:-1]):
                raise self._refusal(
                    f"reads the states of {self.path} separately by "
                    f"{together([*chain[-1:], path])}: choose one by readout=",
                    readout=path,
                )
        return chain

    def _part_calls(self) -> Iterator[tuple[str, Any, Any]]:
        """Calls of the parts beside the recurrent one; those at every step are joined."""
        n_own = sum(c.path == self.path for c in self.calls)
        parts = set(parts_beside(self.copy, self.path))
        calls = [c for c in self.calls if c.path in parts and c.arguments]
        for path in parts if n_own > 1 else ():
            every = [c for c in calls if c.path == path]
            both = [[c.arguments[0] for c in every], [c.result for c in every]]
            if len(every) == n_own and all(map(are_steps, both)):
                given, made = (torch.cat([self._by_trial(t) for t in b], 1) for b in both)
                calls[calls.index(every[0])] = Call(path, (given,), made)
                calls = [c for c in calls if not any(c is other for other in every[1:])]
        for call in calls:
            yield call.path, call.arguments[0], call.result

    def _rows(self, chain: list[str], hidden: Tensor) -> Tensor:
        """Outputs of the chain of parts, applied state by state like a readout."""
        rows = hidden.flatten(0, 1).clone()  # a part may change it in place
        for path in chain:
            try:
                rows = self.copy.get_submodule(path)(rows)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise self._refusal(
                    f"applies {path} to whole sequences, and not state by state ({error})"
                ) from error
        return rows.unflatten(0, hidden.shape[:2])

    def _find(self, made: Tensor) -> tuple[int, View]:
        """Which of the tensors that forward returns equals `made`, and in which form."""
        for i, tensor in enumerate(tensors(self.returned)):
            for view in (as_it_is, time_first, last_step, classes_second):
                if made.ndim == 3 and close(tensor.reshape(-1), view(made).reshape(-1)):
                    return i, view
        chain = self._chain()
        what = together(chain) if chain else self.path
        raise self._refusal(
            f"returns something else than what {what} makes of each state of {self.path}: pass a "
            "readout= that does all that forward does to a state, in eval mode and without noise",
            readout=chain[-1] if chain else None,
        )

    def compare_derivatives(self, chain: list[str], leaf: int | None, view: View) -> None:
        """Refuse a forward with other derivatives, though its values agree."""
        self.copy.requires_grad_(True)
        x = self.x.narrow(1 if self.time_major else 0, 0, min(_FEW, self.hidden.shape[0]))
        with torch.enable_grad():
            calls, returned = self._record(x)
            _, hidden = self._through(calls)
            if not hidden.requires_grad:
                raise self._refusal(f"runs {self.path} without gradients")
            mine = view(self._rows(chain, hidden)).reshape(-1)
            outputs = mine if leaf is None else tensors(returned)[leaf].reshape(-1)
            own = [c.result for c in calls if c.path == self.path]
            states = [tensors(result)[0] for result in own]
            names, parameters = zip(*self.copy.named_parameters(), strict=True)
            generator = torch.Generator().manual_seed(0)
            weights = torch.randn(len(mine), generator=generator).to(mine)
            wanted = [*parameters, *states]
            theirs, ours = (self._gradients(y, weights, wanted, own[-1]) for y in (outputs, mine))
        parts = [self.copy.get_submodule(path) for path in (self.path, *chain)]
        inside = {id(t) for t in (*states, *(p for m in parts for p in m.parameters()))}
        names = (*names, *[f"what {self.path} returns"] * len(states))
        for name, t, a, b in zip(names, wanted, theirs, ours, strict=True):
            if id(t) not in inside and largest(a) > 0:
                raise self._refusal(
                    f"makes its outputs with {name} too, which is in neither part (a start that "
                    "learns is kpops.models.LearnedStart)"
                )
            if not close(a, b):
                raise self._refusal(
                    f"has other derivatives by {name} than its parts have: it detaches something, "
                    "or changes gradients",
                    readout=chain[-1] if chain else None,
                )

    def _gradients(
        self, y: Tensor, weights: Tensor, wanted: list[Tensor], result: Any
    ) -> list[Tensor]:
        """Gradients by parameters and states; a layer returns its last state also as h_n."""
        if not isinstance(self.recurrence.module, nn.RNNBase) or wanted[-1].ndim < 3:
            return gradients(y, weights, wanted)
        *found, of_end = gradients(y, weights, [*wanted, tensors(result)[1]])
        found[-1] = self._by_trial(found[-1]).clone()
        found[-1][:, -1] += of_end[-1]
        return found

    # Refusals.

    def _encoded(self) -> ValueError:
        """The error for a recurrent part that does not read the inputs themselves."""
        outermost = [c for c in self.calls if "." not in c.path]
        maker = next((c.path for c in outermost if is_whole_view(c.result, self.read)), None)
        if maker is None:
            return self._refusal(
                f"changes the inputs before {self.path} reads them: pass what that reads as inputs",
                inputs=self._read_by(self.path),
            )
        return self._refusal(
            f"gives {self.path} what {maker} makes of the inputs: pass that as inputs; what "
            f"{maker} learns is then no part of the operators",
            inputs=f"{spelled(maker)}(inputs)",
        )

    def _read_by(self, path: str) -> str:
        """Name of the tensor that a part reads, which may be the inputs."""
        read = next(c.arguments[0] for c in self.calls if c.path == path)
        return "inputs" if is_whole_view(read, self.x) else f"what_{path.replace('.', '_')}_reads"

    def _refusal(
        self, why: str, path: str | None = None, readout: str | None = None, inputs: str = "inputs"
    ) -> ValueError:
        """The error, with the call that linearises the parts."""
        path = path or getattr(self, "path", None) or next(iter(self.paths), None)
        if path is None:
            return ValueError(f"{self.name}.forward {why}")
        readout = readout or guess_readout(self.copy, path)
        then = "" if readout is None else f", readout={spelled(readout)}"
        return ValueError(
            f"{self.name}.forward {why}; linearise its parts, "
            f"kpops.linearize({spelled(path)}, {inputs}{then})"
        )
