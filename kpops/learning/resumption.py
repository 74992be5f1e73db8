"""What must be the same for a training to continue, as plain Python that can be compared.

Compared are classes, their plain attributes, and the bytecode of the user's own code. Code of
installed packages and of kpops is identified by its name. Not compared are hooks, tensors that are
neither parameters nor buffers, and what code reaches through attributes of other objects, such as
``my_module.function``.
"""

from __future__ import annotations

import argparse
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import math
import operator
import platform
import re
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from kpops.scalars import generator

_OF_EVERY_MODULE = set(vars(nn.Module()))
_NOT_OF_THE_STEP = {"__init__", "__repr__", "extra_repr"}
_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"])


def choose_seed(rng: int | np.random.Generator | None, newest: dict[str, Any] | None) -> int:
    """Seed of a training; for None that of its newest checkpoint, or a fresh one."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if rng is None:
        return int(np.random.default_rng().integers(2**63)) if newest is None else newest["seed"]
    generator(rng)  # refuses what is no seed
    return operator.index(rng)


def check_same_training(
    newest: dict[str, Any], configuration: dict[str, Any], max_steps: int, folder: Path
) -> None:
    """Refuse to continue the checkpoints of another training, and name the differences."""
    different = differences(newest["configuration"], configuration)
    if different:
        raise ValueError(
            f"folder '{folder}' holds checkpoints of another training: {different}. Pass the same, "
            "or another folder"
        )
    if newest["step"] > max_steps:
        raise ValueError(
            f"max_steps={max_steps}, and folder '{folder}' holds step {newest['step']}: "
            f"pass max_steps={newest['step']} or more, or another folder"
        )


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Entries that differ between two configurations, in words; empty if none does."""
    theirs, ours = _without_files(theirs), _without_files(ours)
    pairs = {
        key: (theirs.get(key, "absent"), ours.get(key, "absent")) for key in {**theirs, **ours}
    }
    different = [f"{key} is {a} there and {b} here" for key, (a, b) in pairs.items() if a != b]
    more = f" and {len(different) - 5} more" if len(different) > 5 else ""
    return f"{'; '.join(different[:5])}{more}"


def _without_files(described: Any) -> Any:
    """The same without the files of kpops that its classes were in: they move between versions."""
    if isinstance(described, Mapping):
        return {key: _without_files(value) for key, value in described.items()}
    if isinstance(described, list):
        return [_without_files(value) for value in described]
    if isinstance(described, str):
        return re.sub(r"^kpops\.[\w.]*?(\w+)(?= |$)", r"kpops.\1", described)
    return described


def check_same_loss(value: float, recorded: float, step: int, folder: Path) -> None:
    """Detect another model whose parameters, attributes and code are the same."""
    # Wide, since another device rounds differently; another model is off by much more.
    if not math.isclose(value, recorded, rel_tol=0.1, abs_tol=1e-6):
        raise ValueError(
            f"folder '{folder}' holds checkpoints of another model: at step {step} the loss "
            f"was {recorded}, with this model it is {value}. Pass the same model, or another folder"
        )


def describe_loss(loss: Any) -> dict[str, Any]:
    """Name of a loss, or class, attributes and code of a callable."""
    try:
        return {"loss": plain(loss)}
    except NotPlainError:
        return {"loss": type(loss).__name__}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Weights, which of them learn, and the modules."""
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {
        f"model {name}": f"{v.dtype} {tuple(v.shape)} {'learns' if name in learning else 'fixed'}"
        for name, v in model.state_dict().items()
    }
    return {**weights, **describe_modules(model)}


class NotPlainError(Exception):
    """An object has no plain form."""


def describe_modules(model: nn.Module) -> dict[str, Any]:
    """Class, plain attributes and code of a module and of its submodules."""
    described: dict[str, Any] = {}
    for name, module in model.named_modules():
        kind, where = type(module), name or "model"
        described[f"class of {where}"] = _name(kind)
        described |= {f"{where}: {key}": v for key, v in attributes(module).items()}
        if _is_own(kind):
            described[f"code of {kind.__qualname__}"] = _fingerprint(kind)
    return described


def attributes(thing: Any) -> dict[str, Any]:
    """Attributes that are plain Python or functions, except private ones of libraries' modules."""
    found = {}
    # Lightning keeps its own state of the moment beside the user's attributes.
    is_lightning = any(kind.__name__ == "LightningModule" for kind in type(thing).__mro__)
    hides = isinstance(thing, nn.Module) and (is_lightning or not _is_own(type(thing)))
    for key, value in vars(thing).items():
        if value is not None and key not in _OF_EVERY_MODULE and not (hides and key[0] == "_"):
            try:
                found[key] = plain(value)
            except (NotPlainError, RecursionError):
                continue
    return found


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts that stand for `value`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value if value == value else "nan"  # which equals itself
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(str(plain(entry)) for entry in value)
    if isinstance(value, torch.dtype | torch.device | enum.Enum):
        return str(value)
    if isinstance(value, functools.partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if isinstance(value, types.MethodType):
        described_elsewhere = isinstance(value.__self__, nn.Module | type)
        function = plain(value.__func__)
        return function if described_elsewhere else [function, _instance(value.__self__)]
    if isinstance(value, types.FunctionType | type) and _is_own(value):
        return f"{value.__qualname__} {_fingerprint(value)}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return _name(value)
    if isinstance(value, nn.Module):
        return describe_modules(value)
    if isinstance(value, LRScheduler):
        return {"class": _name(type(value)), **attributes(value)}
    is_settings = isinstance(value, types.SimpleNamespace | argparse.Namespace)
    if is_settings or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return attributes(value)
    if callable(value) and _is_own(type(value)):
        return _instance(value)
    raise NotPlainError


def _instance(thing: Any) -> dict[str, Any]:
    """Class, code and plain attributes of an object whose method is called."""
    kind = type(thing)
    own = f" {_fingerprint(kind)}" if _is_own(kind) else ""
    described = attributes(thing) if hasattr(thing, "__dict__") else {}
    return {"class": f"{_name(kind)}{own}", **described}


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_own(thing: Any) -> bool:
    """Whether a function or class is the user's own."""
    if (thing.__module__ or "").partition(".")[0] == "kpops":
        return False
    try:
        file = inspect.getfile(thing)
    except (TypeError, OSError):  # of a session or built in
        return any(isinstance(v, types.FunctionType) for v in vars(thing).values())
    return not any(part in file for part in _INSTALLED)


def _fingerprint(thing: types.FunctionType | type) -> str:
    digest = hashlib.sha256("".join(_of(thing, set())).encode()).hexdigest()[:16]
    version = ".".join(platform.python_version_tuple()[:2])  # on which the bytecode depends
    return f"{digest} ({platform.python_implementation()} {version})"


def _of(thing: Any, seen: set[Any]) -> Iterator[str]:
    """All that determines what a function or the methods of a class do."""
    if isinstance(thing, property | staticmethod | classmethod):
        thing = thing.fget if isinstance(thing, property) else thing.__func__
    if hasattr(thing, "__wrapped__"):  # by a decorator, such as torch.no_grad()
        yield from _of(thing.__wrapped__, seen)
    if isinstance(thing, types.FunctionType | type):
        if not _is_own(thing) or thing in seen:
            yield _name(thing)
            return
        seen.add(thing)
        yield from _of_class(thing, seen) if isinstance(thing, type) else _of_function(thing, seen)
        return
    if isinstance(thing, torch.Tensor) and not thing.requires_grad:
        thing = thing.detach().cpu().double().numpy()
    if isinstance(thing, np.ndarray):  # not parameters, which a training changes
        yield f"{thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
        return
    try:
        yield repr(plain(thing))
    except (NotPlainError, RecursionError):
        yield type(thing).__name__


def _of_class(kind: type, seen: set[Any]) -> Iterator[str]:
    for base in filter(_is_own, kind.__mro__):
        for name, value in vars(base).items():
            is_method = isinstance(value, types.FunctionType)
            if (is_method or not name.startswith("__")) and name not in _NOT_OF_THE_STEP:
                yield name
                yield from _of(value, seen)


def _of_function(function: types.FunctionType, seen: set[Any]) -> Iterator[str]:
    yield from _of_code(function.__code__, function.__doc__)
    for value in (function.__defaults__, function.__kwdefaults__):
        yield from _of(value, seen)
    for cell in function.__closure__ or ():
        try:
            yield from _of(cell.cell_contents, seen)
        except ValueError:  # still empty
            continue
    for name in sorted(_globals_of(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _of(function.__globals__[name], seen)


def _of_code(code: types.CodeType, documentation: str | None) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant, None)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        elif constant not in (None, documentation):
            yield repr(constant)


def _globals_of(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return names.union(*map(_globals_of, inner))
