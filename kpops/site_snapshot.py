"""A private copy of a network, its sites, and the run through its inputs.

Unfit networks and inputs are refused here, before any work is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from kpops.arrays import as_tensor
from kpops.checks import differ, refuse_unfit
from kpops.derivatives import Rows as Checked
from kpops.derivatives import refuse_unlike_training
from kpops.distributed.parts import Parts
from kpops.engines.site_engine import SiteTrajectory
from kpops.kinds import described
from kpops.labels import Coordinate, Space, coordinates_of
from kpops.models.recurrence import refuse_patched
from kpops.models.sites import (
    Rows,
    Site,
    SiteNetwork,
    WithOutputs,
    as_called,
    default_paths,
    hooked,
    places_of,
    plain,
)
from kpops.models.stepping import let_step
from kpops.snapshot import copied, moved, refuse_mixed

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)


def of_readout(readout: Any) -> Callable[[Any], Any] | None:
    """Private copy of a readout, which has no parameters."""
    if readout is None:
        return None
    if not callable(readout) or isinstance(readout, type):
        raise TypeError(
            f"readout is {described(readout)}, expected a function from what the network returns "
            "to its outputs"
        )
    if isinstance(readout, nn.Module) and next(readout.parameters(), None) is not None:
        raise ValueError(
            f"readout is {described(readout)} with parameters: make it a part of the network, for "
            "example by nn.Sequential(network, readout)"
        )
    refuse_unfit(readout, "the readout")
    return copied(readout) if isinstance(readout, nn.Module) else readout


def read_rows(inputs: Any, like: Tensor, *, convert: bool) -> tuple[Rows, dict[str, Coordinate]]:
    """The inputs as a tree of tensors with trials first, and the user's labels of trials."""
    coords: dict[str, Coordinate] = {}
    if isinstance(inputs, Mapping) and not isinstance(inputs, xr.Dataset):
        inputs = dict(inputs)  # what tokenizers return is none

    def read(array: Any) -> Any:
        if array is None or isinstance(array, bool | int | float | str):
            raise TypeError(
                f"inputs holds {described(array)}, which has no trials: pass arrays, and make "
                "what is the same for all trials a part of the network"
            )
        if isinstance(array, xr.DataArray):
            if "trial" not in array.dims:
                raise ValueError(f"inputs has dims {array.dims}, and none of them is trial")
            if "mask" in array.coords and not array.mask.all():
                raise ValueError(
                    "inputs brings a mask, which sites do not read: give it to the network as "
                    "another input, and drop the coordinate by drop_vars('mask')"
                )
            array = array.transpose("trial", ...)
            coords.update(coordinates_of(array, ("trial",)))
            array = array.data
        tensor = as_tensor(array, "inputs")
        if tensor.ndim == 0 or not len(tensor):
            raise ValueError(
                f"inputs has shape {tuple(tensor.shape)}: trials are its first dimension, of one "
                "or more"
            )
        floating = tensor.is_floating_point()
        if floating and tensor.dtype != like.dtype and not convert:
            raise TypeError(
                f"inputs is {tensor.dtype}, the model {like.dtype}: convert one of them, or pass "
                f"dtype={like.dtype} to convert both"
            )
        if floating and not tensor.isfinite().all():
            trial = int((~tensor.flatten(1).isfinite().all(1)).nonzero()[0, 0])
            raise ValueError(f"inputs is not finite, first in trial {trial}: scale or drop it")
        return tensor.to(like.device, like.dtype if floating else tensor.dtype, copy=True)

    rows = Rows(tree_map(read, inputs, is_leaf=lambda x: isinstance(x, xr.DataArray)))
    lengths = sorted({len(x) for x in tree_leaves(rows.tree)})
    if not lengths:
        raise ValueError("inputs holds no array: pass one, or a tuple or dict of them")
    if len(lengths) > 1:
        raise ValueError(f"inputs holds arrays of {lengths} trials: give all the same number")
    return rows, coords


def of_network(
    model: Any, dtype: torch.dtype | None, device: torch.device | str | None
) -> nn.Module:
    """Private copy of a network, whose recurrent layers compute step by step."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {described(model)}, and sites are those of an nn.Module")
    refuse_unfit(model, "the model")
    refuse_patched(model)
    mine = moved(copied(model), dtype, device)
    refuse_mixed(mine)
    let_step(mine)
    return mine


class Found(NamedTuple):
    """A network with its sites, and how many numbers a run holds for a trial."""

    network: SiteNetwork
    activations: int


def find_sites(module: nn.Module, wanted: Any, rows: Rows, readout: Any) -> Found:
    """The sites by the paths `wanted`, from two runs, one of them without the last trial."""
    paths, n = _read_paths(module, wanted), len(rows)
    # With a trial alone it is repeated: where the trials are is what grows with their number.
    few, many = (rows[: n - 1], rows) if n > 1 else (rows, rows.expanded(2))
    (before, a, _), (after, b, held) = _observe(module, paths, few), _observe(module, paths, many)
    if before.keys() != after.keys():
        raise ValueError(
            "the number of calls of the sites depends on the inputs: let every run call the same "
            "parts, or choose sites that do not vary"
        )
    called = list(dict.fromkeys(path for path, _ in before))
    if wanted is None and called != paths:
        return find_sites(module, called or [""], rows, readout)
    like = next(module.parameters())
    sites = []
    for (path, call), small in before.items():
        large = after[path, call]
        axis = _trial_axis(small, large, len(few), len(many), f"site {path!r}", like, called)
        shape = tuple(size for i, size in enumerate(large.shape) if i != axis)
        first = isinstance(module.get_submodule(path), _CHANNELS_FIRST)
        sites.append(Site(path, call, axis, shape, first and len(shape) > 1))
    missing = [path for path in paths if path not in called]
    if missing:
        raise ValueError(f"sites {missing} are never called in a run: choose others")
    network = SiteNetwork(module, tuple(sites), readout)
    if readout is not None or isinstance(a, Tensor):
        small, large = network.read(a), network.read(b)
        what = "what readout returns" if readout else "the output of the network"
        network.output_axis = _trial_axis(small, large, len(few), len(many), what, like)
    return Found(network, held // len(many))


def _read_paths(module: nn.Module, wanted: Any) -> list[str]:
    known = [path for path, _ in module.named_modules()]
    if wanted is None:
        return default_paths(module)
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f"sites={wanted!r}: pass a list of names of parts, such as {known[1:3]}")
    paths = list(wanted)
    unknown = [p for p in paths if p not in known]
    if unknown:
        raise ValueError(f"no part {unknown} in the model: choose from {known[1:] or known}")
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"sites={paths}: name one part or more, each once")
    return paths


def _observe(
    module: nn.Module, paths: list[str], rows: Rows
) -> tuple[dict[tuple[str, int], Tensor], Any, int]:
    """Outputs of the sites in their order, what is returned, and the numbers that a run makes."""
    outputs: dict[tuple[str, int], Tensor] = {}
    held = 0

    def seen(path: str, call: int, output: Tensor) -> Tensor:
        outputs[path, call] = output.detach().clone()
        return output

    def count(part: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal held
        held += sum(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor))

    handles = [part.register_forward_hook(count) for part in module.modules()]
    args, kwargs = as_called(module, rows.tree)
    try:
        with torch.no_grad(), hooked(module, dict.fromkeys(paths), seen), plain():
            returned = module(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        shapes = tree_map(lambda x: tuple(x.shape), rows.tree)
        raise ValueError(
            f"{type(module).__name__} cannot be run on inputs of shape {shapes}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs, returned, held


def _trial_axis(
    small: Tensor, large: Tensor, few: int, many: int, what: str, like: Tensor, paths: Any = ()
) -> int:
    if not large.is_floating_point():
        raise TypeError(f"{what} is of dtype {large.dtype}, and kpops differentiates real numbers")
    if large.dtype != like.dtype:
        raise TypeError(
            f"{what} is {large.dtype}, the model {like.dtype}: a buffer, a constant or autocast "
            "of another dtype? Convert it, or pass dtype= to kpops.linearize"
        )
    if not large.numel():
        raise ValueError(f"{what} has shape {tuple(large.shape)}, and no numbers: choose another")
    pairs = enumerate(zip(small.shape, large.shape, strict=False))
    grown = [i for i, sizes in pairs if sizes == (few, many)]
    if small.ndim != large.ndim or len(grown) != 1:
        raise ValueError(
            f"{what} has shape {tuple(large.shape)} for {many} trials and {tuple(small.shape)} for "
            f"{few}: no dimension of it is that of the trials, so choose other parts"
            + (f", from {list(paths)}" if len(paths) > 1 else "")
        )
    return grown[0]


def run(found: Found, rows: Rows, learning: dict[str, Tensor], precision: str) -> SiteTrajectory:
    """Run the network, and refuse one that is random, mixes trials or has wrong derivatives."""
    plain, name = found.network, type(found.network.module).__name__
    network = WithOutputs(plain.module, plain.sites, plain.readout, plain.output_axis)
    never_run = network.renewed()
    n_units, n = sum(network.sizes), len(rows)
    some = [slice(1), slice(n - 1, n), slice(0, n, 2)] if n > 1 else []
    with torch.no_grad():
        buffers = [b.clone() for b in network.module.buffers()]
        given = tree_map(torch.clone, rows.tree)
        zeros = next(iter(learning.values())).new_zeros(n, n_units)
        try:
            values = network.step({}, Rows(given), zeros)
            again = network.step({}, rows, zeros)
            alone = [network.step({}, rows[trials], zeros[trials]) for trials in some]
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} cannot be run with its sites pushed, or on some trials alone "
                f"(batch normalisation in training mode? Then call model.eval()): {error}"
            ) from error
        states = values[:, :n_units].clone()
        as_it_is = network.with_outputs(*network.run({}, rows, lambda _, y: (y.clone(), y)))
        cut = network.cut({}, rows, states)
    changed = not all(map(torch.equal, network.module.buffers(), buffers))
    if changed or not all(map(torch.equal, tree_leaves(given), tree_leaves(rows.tree))):
        what = "buffers (batch normalisation in training mode?)" if changed else "inputs"
        raise ValueError(f"a run of {name} changes its {what}: call model.eval(), or mend it")
    if not states.isfinite().all():
        trial, unit = (~states.isfinite()).nonzero()[0].tolist()
        site = int((torch.tensor(network.sizes).cumsum(0) > unit).nonzero()[0, 0])
        raise ValueError(
            f"the site {network.sites[site]} is not finite, first in trial {trial}: scale the "
            "inputs, or check the weights"
        )
    if not values.isfinite().all():
        trial = int((~values.isfinite().all(1)).nonzero()[0, 0])
        raise ValueError(f"the outputs of {name} are not finite, first in trial {trial}")

    def unlike(a: Tensor, b: Tensor) -> bool:
        """Whether sites or outputs differ, each relative to the largest."""
        columns = [slice(n_units), slice(n_units, b.shape[1])][: 1 + (b.shape[1] > n_units)]
        return any(differ(a[:, c], b[:, c], values[:, c].abs().max()) for c in columns)

    if unlike(again, values):
        raise ValueError(f"two runs of {name} differ: it is random; call model.eval()")
    if any(unlike(a, values[trials]) for a, trials in zip(alone, some, strict=True)):
        raise ValueError(
            f"{name} mixes trials: some of them alone give other values than among the others "
            "(batch normalisation in training mode? Inputs whose trials are not first, as for "
            "batch_first=False?); call model.eval(), or transpose them within the network"
        )
    if unlike(as_it_is, values):
        raise ValueError(
            f"{name} gives other values when a site is a copy of the output of its part: change "
            "no view of an output in place, or choose other sites"
        )
    if unlike(cut, states):
        raise ValueError(
            f"the sites of {name} depend on one another in more ways than by their values, as by "
            "a gradient that forward takes: choose other sites"
        )
    checked = Checked(learning, rows, zeros)
    refuse_unlike_training(f"a run of {name}", network, never_run, checked)
    return SiteTrajectory(rows, states, found.activations, precision)


def site_space(
    network: SiteNetwork, n_trials: int, coords: dict[str, Coordinate], parts: Parts
) -> Space:
    """The space (trial, unit) of all sites, labelled by site and by place within it."""
    names = np.array([site.path or "output" for site in network.sites], dtype=object)
    labels = {"site": np.repeat(names, network.sizes)}
    if any(site.call > 1 for site in network.sites):
        labels["call"] = np.repeat([site.call for site in network.sites], network.sizes)
    places = [places_of(site.shape, site.channels_first) for site in network.sites]
    for name in dict.fromkeys(name for place in places for name in place):
        missing = [np.full(size, -1) for size in network.sizes]
        found = [place.get(name, m) for place, m in zip(places, missing, strict=True)]
        labels[name] = np.concatenate(found)
    n_units = sum(network.sizes)
    own = {
        "trial": Coordinate(("trial",), np.arange(n_trials) + parts.offset),
        "unit": Coordinate(("unit",), np.arange(n_units)),
        **{name: Coordinate(("unit",), values) for name, values in labels.items()},
    }
    taken = sorted(set(coords) & (set(own) - {"trial"}))
    if taken:
        raise ValueError(f"inputs has the coordinates {taken}, which sites have: rename them")
    return Space(("trial", "unit"), (n_trials, n_units), own | coords, parts)


def output_space(shape: tuple[int, ...], space: Space) -> Space:
    """The space (trial, ..., output) of what the network returns, of this shape of all trials."""
    inside = len(shape) - 2
    places = ["position"] if inside == 1 else [f"position_{i + 1}" for i in range(inside)]
    dims = ("trial", *places, "output")
    coords = {k: c for k, c in space.coords.items() if c.dims in ((), ("trial",))}
    return Space(dims, shape, coords, space.parts)
