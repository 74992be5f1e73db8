"""The parts of a module, by their classes and paths."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kpops.models.recurrence import as_recurrence


def is_registered(module: nn.Module) -> bool:
    """Whether modules of this class are registered as recurrent."""
    return as_recurrence.dispatch(type(module)) is not as_recurrence.dispatch(nn.Module)


def recurrent_class(module: nn.Module) -> str | None:
    """Class name of the first recurrent part, or of the module itself; None without one."""
    return next((type(m).__name__ for m in module.modules() if is_registered(m)), None)


def recurrent_paths(model: nn.Module) -> list[str]:
    """Paths of the registered recurrent parts, without parts inside them."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{f}.") for f in found)
        if path and is_registered(module) and not inside:
            found.append(path)
    return found


def parts_beside(model: nn.Module, path: str) -> list[str]:
    """Paths of the parts that a model calls beside the one at `path`."""
    names = path.split(".")
    ancestors = [".".join(names[:i]) for i in range(len(names))]
    beside: list[str] = []
    open_ = list(ancestors)
    while open_:
        parent = open_.pop()
        for name, child in model.get_submodule(parent).named_children():
            here = f"{parent}.{name}" if parent else name
            if isinstance(child, nn.ModuleList | nn.ModuleDict) and here not in ancestors:
                open_.append(here)
            elif here not in ancestors and here != path:
                beside.append(here)
    return beside


def guess_readout(model: nn.Module, path: str) -> str | None:
    """The last linear part that could take the hidden states."""
    size = getattr(model.get_submodule(path), "hidden_size", None)
    for part in reversed(parts_beside(model, path)):
        if size is not None and getattr(model.get_submodule(part), "in_features", None) == size:
            return part
    return None


def spelled(path: str) -> str:
    """A path in Python's syntax."""
    parts = ("[" + p + "]" if p.isdigit() else "." + p for p in path.split("."))
    return "model" + "".join(parts)


def together(paths: Iterable[str]) -> str:
    """Paths joined in a sentence."""
    *first, last = dict.fromkeys(paths)
    return f"{', '.join(first)} and {last}" if first else last


def original(module: nn.Module) -> nn.Module:
    """The module that torch.compile was given, if it was."""
    return getattr(module, "_orig_mod", module)
