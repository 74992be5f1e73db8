"""Which engine computes: by model, device and memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kpops.engines.autodiff import AutodiffEngine
from kpops.engines.base import Engine
from kpops.engines.cpu.gated import GatedNumbaEngine
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.jacobian import JacobianEngine
from kpops.engines.memory import free_bytes, readable
from kpops.engines.scan import ScanEngine
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence

# The automatic choice is the first that knows the model, works on the device and fits. A new engine
# is a file of its own and an entry here.
ENGINES: dict[str, type[Engine]] = {
    e.name: e for e in (GatedNumbaEngine, GatedEngine, ScanEngine, JacobianEngine, AutodiffEngine)
}

_HELD = 4
"""Blocks of the size of the trajectories that a matvec with the flow operator holds."""


def memory_estimate(
    recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, options: dict[str, Any]
) -> dict[str, int]:
    """Bytes that each engine that can linearise the model keeps beside the trajectory."""
    found: dict[str, int] = {}
    measured: dict[object, int] = {}  # the gated engines share theirs, and it takes time
    for engine in ENGINES.values():
        if engine.refuses(recurrence, trajectory.states.device) is None:
            own = options if options in sum(engine.variants.values(), ()) else {}
            measure = engine.bytes_needed
            if measure not in measured:
                measured[measure] = measure(recurrence, names, trajectory, exact=True, **own)
            found[engine.name] = measured[measure] + engine.bytes_of_copies(recurrence, trajectory)
    return found


def memory_of_many(
    recurrence: Recurrence,
    names: Sequence[str],
    trajectory: Trajectory,
    options: dict[str, Any],
    n_trials: int,
    vectors: int,
) -> dict[str, int]:
    """Bytes that each engine takes for `n_trials` such trials, with the trajectory and vectors.

    Nothing is allocated: the many trials are views of the first one.
    """
    inputs, previous, states = (
        tensor[:1].expand(n_trials, -1, -1)
        for tensor in (trajectory.inputs, trajectory.previous, trajectory.states)
    )
    many = Trajectory(inputs, previous, states, None)
    held = sum(tensor.numel() for tensor in (inputs, previous, states))
    held += _HELD * vectors * states.numel()
    found: dict[str, int] = {}
    for engine in ENGINES.values():
        if engine.refuses(recurrence, states.device) is None:
            own = options if options in sum(engine.variants.values(), ()) else {}
            kept = engine.bytes_needed(recurrence, names, many, **own)
            kept += engine.bytes_of_copies(recurrence, many)
            found[engine.name] = kept + held * states.element_size()
    return found


def choose_engine(
    engine: str,
    gates: str,
    recurrence: Recurrence,
    parameters: Iterable[str],
    trajectory: Trajectory,
) -> tuple[str, dict[str, Any], str]:
    """Choose an engine, ``"auto"`` or one of :data:`ENGINES`, for the parameters that learn.

    Returns its name, the options that it is made with, and the reason in words.

    Raises
    ------
    ValueError
        If there is no such engine or value of `gates`, or it cannot linearise the model.
    MemoryError
        If the engine asked for would not fit.
    """
    device, names = trajectory.states.device, tuple(parameters)
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: choose 'auto' or one of {sorted(ENGINES)}")
    known = list(dict.fromkeys(gates for e in ENGINES.values() for gates in e.variants))
    if gates not in known:
        raise ValueError(f"gates={gates!r}: choose one of {known}")
    refusals = {n: e.refuses(recurrence, device) for n, e in ENGINES.items()}
    if engine != "auto" and refusals[engine] is not None:
        raise ValueError(f"engine={engine!r}: {refusals[engine]}")
    usable = [n for n, refusal in refusals.items() if refusal is None]
    candidates = usable if engine == "auto" else [engine]
    options = [(n, o) for n in candidates for o in ENGINES[n].variants.get(gates, ())]
    if not options:
        raise ValueError(
            f"gates={gates!r} is for the gated engines: {refusals['gated'] or 'ask for one'}"
        )
    free = free_bytes(device)
    needs: dict[str, int] = {}
    for name, option in options:
        label = ", ".join([name, *(f"{key} {value}" for key, value in option.items())])
        needs[label] = ENGINES[name].bytes_needed(recurrence, names, trajectory, **option)
        needs[label] += ENGINES[name].bytes_of_copies(recurrence, trajectory)
        # Where there is a choice, half of the free memory is left to vectors and to the user.
        asked = engine != "auto" or gates != "auto"
        last_resort = asked and (name, option) == options[-1]
        if needs[label] <= (free if last_resort else free // 2):
            return name, option, _reason(engine, label, needs, refusals)
    what = ", ".join(f"{label} needs {readable(n)}" for label, n in needs.items())
    raise MemoryError(
        f"engine={engine!r}: {what}, {readable(free)} are free on {device}: use engine='autodiff' "
        "(and gates='auto'), which stores nothing but the trajectory; or take fewer trials or "
        "steps, or dtype=torch.float32"
    )


def _reason(asked: str, label: str, needs: dict[str, int], refusals: dict[str, str | None]) -> str:
    """Why this one, for the repr."""
    skipped = [f"{other} would keep {readable(n)}" for other, n in needs.items() if other != label]
    if asked != "auto":
        why = "asked for"
    elif skipped:
        why = ", ".join(skipped)
    elif refusals["gated"] is None:
        why = "a gated cell"
    else:
        why = "no two units are coupled" if refusals["scan"] is None else "not a gated cell"
    kept = readable(needs[label]) if needs[label] else "nothing"
    return ", ".join([f"{why}; keeps {kept}", *label.split(", ")[1:]])
