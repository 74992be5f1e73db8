"""Flows of the package dysts, whose equations are read where it is installed."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from kpops.kinds import described
from kpops.maturity import experimental
from kpops.systems.divergence import jacobians
from kpops.systems.models import Flow
from kpops.systems.registry import Entry

_STEPS = 100  # of a period


@experimental
def from_dysts(name: str, **parameters: float) -> Flow:
    """A flow of dysts as a model, if dysts is installed.

    Parameters
    ----------
    name : str
        Name of a class of ``dysts.flows``.
    **parameters : float
        Values of its parameters; the others keep those of dysts.

    Returns
    -------
    Flow
        As :func:`load` returns it. ``dt`` is a hundredth of the period that dysts states, in one
        step of RK4: compare exponents at ``model.n_substeps = 2``. ``start`` is its initial state.

    Raises
    ------
    ImportError
        If dysts is not installed.
    TypeError
        If a parameter is unknown, or no real number.
    ValueError
        If the name is unknown; if the equation cannot be differentiated by torch, which says why:
        it depends on time or a delay, has arrays as parameters, or does not agree with its own
        evaluation by NumPy.

    Notes
    -----
    dysts is not imported: the function of the equation is taken out of its source, and evaluated
    with torch in the place of NumPy. Its values at 16 states must be those of NumPy to 1e-9, and
    its derivatives those by finite differences to 1e-4, both relative. The exponents that dysts
    states are not precise (those of Lorenz add up to -13.79 in place of -41/3) and are not used.

    References
    ----------
    W. Gilpin, Chaos as an interpretable benchmark for forecasting and data-driven modelling,
    NeurIPS 2021 (arXiv 2110.05266).

    Examples
    --------
    >>> import kpops
    >>> flow = kpops.systems.from_dysts("Lorenz", rho=28.0)  # doctest: +SKIP
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {described(name)}: pass the name of a flow of dysts")
    folder = _folder()
    known = json.loads((folder / "data" / "chaotic_attractors.json").read_text())
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, list(known), n=3))
        raise ValueError(f"dysts has no flow {name!r}: did you mean {near or 'another'}?")
    data = known[name]
    arrays = [k for k, v in data["parameters"].items() if not isinstance(v, int | float)]
    if arrays:
        raise ValueError(f"{name} of dysts has arrays as parameters, {arrays}: write it yourself")
    start = tuple(float(v) for v in np.ravel(data["initial_conditions"]))
    equation = _DystsEquation(name, len(start))
    entry = Entry(
        name=name,
        kind="flow",
        equation=equation,
        variables=equation.variables,
        defaults={k: float(v) for k, v in sorted(data["parameters"].items())},
        start=start,
        dt=float(data["period"]) / _STEPS,
        n_substeps=1,
        reference=f"{data.get('citation') or name}, in dysts",
        literature="",
    )
    model = Flow(entry, entry.values(parameters))
    _refuse_disagreement(model, equation)
    return model


def _folder() -> Path:
    spec = importlib.util.find_spec("dysts")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "from_dysts reads the equations of dysts, which is not installed: install it by "
            "pip install --no-deps dysts"
        )
    return Path(next(iter(spec.submodule_search_locations)))


class _DystsEquation:
    """The right-hand side of a flow of dysts, by torch or by NumPy."""

    def __init__(self, name: str, n_variables: int) -> None:
        self.name = name
        self.n_variables = n_variables
        source = _source_of(name)
        arguments = [a.arg for a in source.args.args]
        self.variables = tuple(arguments[:n_variables])
        if arguments[n_variables : n_variables + 1] != ["t"]:
            raise ValueError(
                f"{name} of dysts is no function of {n_variables} variables and the time, but of "
                f"{arguments}: flows with a delay or a state as one array are not read"
            )
        self._by_torch = _compiled(source, torch)
        self.by_numpy = _compiled(source, np)

    def __call__(self, *state: Any, **parameters: Any) -> Any:
        return self._by_torch(*state, 0.0, *parameters.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.n_variables)


def _source_of(name: str) -> ast.FunctionDef:
    """The static function ``_rhs`` of a class, or of the classes it inherits from."""
    classes = _classes(_folder() / "flows.py")
    node = classes.get(name)
    while node is not None:
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "_rhs":
                return part
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        node = next((classes[base] for base in bases if base in classes), None)
    raise ValueError(
        f"{name} of dysts has no function of its variables, but one of a state as an array: write "
        "it yourself, as a vector field for kpops.models.NeuralODE"
    )


@lru_cache(maxsize=1)
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(file.read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _compiled(source: ast.FunctionDef, library: ModuleType) -> Callable[..., Any]:
    plain = copy.copy(source)
    plain.decorator_list = []
    module = ast.Module([plain], [])
    names: dict[str, Any] = {"np": library}
    exec(compile(module, "dysts/flows.py", "exec"), names)
    function: Callable[..., Any] = names["_rhs"]
    return function


def _refuse_disagreement(model: Flow, equation: _DystsEquation) -> None:
    """Compare values and derivatives by torch with NumPy, near the initial state."""
    scale = 0.1 * (1 + model.start.abs())
    drawn = torch.as_tensor(np.random.default_rng(0).standard_normal((16, len(scale))))
    states = model.start + scale * drawn
    parameters = list(model.settings.values())

    def by_numpy(h: np.ndarray, t: float = 0.0) -> np.ndarray:
        values = equation.by_numpy(*h.T, t, *parameters)
        return np.stack(np.broadcast_arrays(*values), -1)

    try:
        with np.errstate(all="ignore"):
            expected = by_numpy(states.numpy())
            later = by_numpy(states.numpy(), 1.0)
        with torch.no_grad():
            got = model.field(None, states).numpy()
            derivatives = jacobians(model.field, states)
    except Exception as error:  # whatever the equation of another package does
        raise ValueError(
            f"the equation of {equation.name} in dysts does not run on tensors "
            f"({type(error).__name__}: {error}): write it yourself"
        ) from error
    if not np.array_equal(expected, later, equal_nan=True):
        raise ValueError(
            f"{equation.name} of dysts depends on the time: give its drive an oscillator of its "
            "own, as kpops.systems.load('Duffing') does"
        )
    step = 1e-5 * scale.numpy()
    with np.errstate(all="ignore"):
        moves = [
            (by_numpy(states.numpy() + e) - by_numpy(states.numpy() - e)) / (2 * e.sum())
            for e in np.diag(step)
        ]
    differences = np.stack(moves, -1)
    for what, ours, theirs, bound in (
        ("values", got, expected, 1e-9),
        ("derivatives", derivatives.numpy(), differences, 1e-4),
    ):
        size = max(float(np.linalg.norm(theirs)), 1e-300)
        distance = float(np.linalg.norm(ours - theirs)) / size
        if not distance < bound:  # nor where it is NaN
            raise ValueError(
                f"the {what} of {equation.name} in dysts by torch and by NumPy differ by "
                f"{distance:.1e}, relative: it is not smooth near its initial state, or torch "
                "computes it in another way"
            )
