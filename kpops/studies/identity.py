"""Which function a study measures by: what is compared, and where other processes find it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import reprlib
import runpy
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
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


@reprlib.recursive_repr("what encloses it")
def _text(thing: Any) -> str:
    """Source of a function without its comments, its defaults and what it encloses.

    Of a partial, its function and arguments; of another callable, the class and its attributes. Not
    seen are the functions that it calls, also enclosed ones, and global variables.
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
    if isinstance(thing, set | frozenset):  # whose order is another in every process
        return "\n".join(sorted(map(_text, thing)))
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
    if inspect.ismethod(thing):
        return f"{_text(thing.__func__)}\n{_text(thing.__self__)}"
    if inspect.isfunction(thing):
        seen = thing.__defaults__, thing.__kwdefaults__, [*_enclosed(thing)]
        return "\n".join([_source(thing), *map(_text, seen)])
    if isinstance(thing, type):
        return _source(thing)
    plain = repr(thing)
    hides = callable(thing) or " at 0x" in plain  # an address is another in every process
    if hides or "..." in plain:  # the middle of a long array
        head = _source(type(thing)) if hides else plain
        return f"{head}\n{_text(getattr(thing, '__dict__', {}))}"
    return plain


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # still empty
            if not inspect.isroutine(cell.cell_contents):
                yield cell.cell_contents


def _source(thing: Any) -> str:
    try:
        if getattr(thing, "__name__", "") == "<lambda>":
            return _lambdas(thing)
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # of a session without source, or built in
        name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
        code = getattr(thing, "__code__", None)
        return f"{name} {code.co_code.hex()} {code.co_names} {_constants(code)}" if code else name
    try:
        return ast.unparse(ast.parse(text))
    except SyntaxError:  # of a text in it that is indented less
        return text


def _constants(code: types.CodeType) -> list[Any]:
    """Constants of a function, and of those in it."""
    return [
        [c.co_code.hex(), c.co_names, _constants(c)] if isinstance(c, types.CodeType) else c
        for c in code.co_consts
    ]


def _lambdas(thing: types.FunctionType) -> str:
    """The lambdas in a line, without the statement around them, such as the axes of a study."""
    lines, _ = inspect.findsource(thing)
    nodes = ast.walk(ast.parse("".join(lines)))
    first = thing.__code__.co_firstlineno
    found = [ast.unparse(n) for n in nodes if isinstance(n, ast.Lambda) and n.lineno == first]
    return "\n".join(found) or inspect.getsource(thing)


def _where(measure: Any) -> dict[str, str] | None:
    """Module, script or file of a measure that has a name there, or None."""
    name, module = getattr(measure, "__qualname__", ""), str(getattr(measure, "__module__", ""))
    found = sys.modules.get(module)
    if found is None or _attribute(found, name) is not measure:  # a lambda, a local function
        return None
    file, spec = getattr(found, "__file__", None), getattr(found, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # of python -m the name of the module
        return {"name": name, "module": spec.name, "folder": _folder(spec.name, spec.origin)}
    return {"name": name, "script": str(Path(file).resolve())} if file else None


def _attribute(thing: Any, name: str) -> Any:
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing


def _folder(module: str, file: str | None) -> str:
    """Folder from which a module is imported."""
    if file is None:
        return ""
    above = module.count(".") + (Path(file).stem == "__init__")  # folders of the package
    return str(Path(file).resolve().parents[above])


def find(where: Mapping[str, str]) -> Measure:
    """Import a measure by what :func:`describe` tells.

    A script is run under the name ``__mp_main__``, as in a spawned process, so that what stands
    behind ``if __name__ == "__main__"`` does not run.
    """
    folder = str(Path(where["script"]).parent) if "script" in where else where["folder"]
    if folder and folder not in sys.path:
        sys.path.append(folder)
    if "script" in where:
        module = types.ModuleType("__mp_main__")
        sys.modules["__mp_main__"] = module  # where classes look up their source
        vars(module).update(runpy.run_path(where["script"], run_name="__mp_main__"))
    else:
        module = importlib.import_module(where["module"])
    return _attribute(module, where["name"])
