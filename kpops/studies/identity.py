"""Which function a study measures by: what is compared, and where other processes find it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.studies.results import Measure


def describe(measure: Measure) -> dict[str, Any]:
    """Name of a measure, a hash of its source, and where it is found, as plain Python."""
    return {"name": _name(measure), "hash": fingerprint(measure), "where": _where(measure)}


def fingerprint(thing: Any) -> str:
    """Hash of a function, of data, or of any mix of them."""
    return hashlib.sha256(_text(thing).encode()).hexdigest()[:16]


def _name(measure: Any) -> str:
    inner = measure.func if isinstance(measure, functools.partial) else measure
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _text(thing: Any) -> str:
    """Source of a function without its comments, its defaults and what it encloses.

    Of a partial, its function and arguments; of another callable, the class and its attributes. Not
    seen are the functions that it calls, and global variables.
    """
    if isinstance(thing, xr.DataArray | xr.Dataset):
        thing = thing.to_dict(data="array")
    if isinstance(thing, np.ndarray) and thing.dtype == object:  # its bytes are addresses
        thing = thing.tolist()
    if isinstance(thing, functools.partial):
        return "\n".join(map(_text, (thing.func, thing.args, thing.keywords)))
    if isinstance(thing, Mapping):
        return "\n".join(f"{key}: {_text(value)}" for key, value in thing.items())
    if isinstance(thing, list | tuple):
        return "\n".join(map(_text, thing))
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
    if inspect.ismethod(thing):
        return f"{_text(thing.__func__)}\n{_text(thing.__self__)}"
    if inspect.isfunction(thing):
        cells = inspect.getclosurevars(thing).nonlocals
        parts = _source(thing), _text(thing.__defaults__), _text(thing.__kwdefaults__), _text(cells)
        return "\n".join(parts)
    if isinstance(thing, type):
        return _source(thing)
    plain = repr(thing)
    if callable(thing) or " at 0x" in plain:  # an address is another in every process
        return f"{_source(type(thing))}\n{_text(getattr(thing, '__dict__', {}))}"
    return plain


def _source(thing: Any) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # of a session without source, or built in
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    try:
        return ast.unparse(ast.parse(text))
    except SyntaxError:  # a lambda inside a longer statement
        return text


def _where(measure: Any) -> dict[str, str] | None:
    """Module, script or file of a measure that has a name there, or None."""
    name, module = getattr(measure, "__qualname__", ""), getattr(measure, "__module__", None)
    found = sys.modules.get(str(module))
    if not name or "<" in name or found is None:  # <lambda>, <locals>
        return None
    file = getattr(found, "__file__", None)
    if module in ("__main__", "__mp_main__"):
        spec = getattr(found, "__spec__", None)
        if spec is not None:  # python -m package.module
            return {"name": name, "module": spec.name, "folder": _folder(spec.name, spec.origin)}
        return {"name": name, "script": str(Path(file).resolve())} if file else None
    return {"name": name, "module": str(module), "folder": _folder(str(module), file)}


def _folder(module: str, file: str | None) -> str:
    """Folder from which a module is imported."""
    if file is None:
        return ""
    above = module.count(".") + (Path(file).stem == "__init__")
    return str(Path(file).resolve().parents[above])


def find(where: Mapping[str, str]) -> Measure:
    """Import a measure by what :func:`describe` tells.

    A script is run under the name ``__mp_main__``, as a spawned process does, so that what stands
    behind ``if __name__ == "__main__"`` does not run.
    """
    if "script" in where:
        folder = str(Path(where["script"]).parent)
        sys.path.insert(0, folder)  # as python script.py does
        spawn.prepare({"init_main_from_path": where["script"]})
        found: Any = sys.modules["__main__"]
    else:
        if where["folder"] and where["folder"] not in sys.path:
            sys.path.append(where["folder"])
        found = importlib.import_module(where["module"])
    for part in where["name"].split("."):
        found = getattr(found, part)
    return found
