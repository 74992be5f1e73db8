"""Which engine computes: by model, device and memory."""

from __future__ import annotations

from collections.abc import Sequence

from kpops.engines.autodiff import AutodiffEngine
from kpops.engines.base import Engine
from kpops.engines.gated import GATES, GatedEngine
from kpops.engines.gated_numba import GatedNumbaEngine
from kpops.engines.jacobian import JacobianEngine
from kpops.engines.memory import free_bytes, readable
from kpops.engines.scan import ScanEngine
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence

# The first that knows the model, works on the device and fits is the automatic choice.
ENGINES: dict[str, type[Engine]] = {
    e.name: e for e in (GatedNumbaEngine, GatedEngine, ScanEngine, JacobianEngine, AutodiffEngine)
}


def memory_estimate(
    recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, gates: str
) -> dict[str, int]:
    """Bytes that each engine able to linearise the model keeps beside the trajectory."""
    device = trajectory.states.device
    usable = [e for e in ENGINES.values() if e.refuses(recurrence, device) is None]
    measures = {e.bytes_needed for e in usable}  # the gated ones share theirs, and it takes time
    needs = {m: m(recurrence, names, trajectory, gates, exact=True) for m in measures}
    return {e.name: needs[e.bytes_needed] + e.bytes_of_weights(recurrence) for e in usable}


def choose_engine(
    engine: str,
    gates: str,
    recurrence: Recurrence,
    names: Sequence[str],
    trajectory: Trajectory,
) -> tuple[str, str, str]:
    """Choose an engine, and what becomes of the gates.

    Parameters
    ----------
    engine : str
        ``"auto"`` or one of :data:`ENGINES`.
    gates : {"auto", "stored", "float32", "recomputed"}
        What becomes of the diagonals of a gated engine.
    recurrence : Recurrence
        The model.
    names : sequence of str
        Its parameters that learn.
    trajectory : Trajectory
        Its trajectory.

    Returns
    -------
    name, gates, reason : str

    Raises
    ------
    ValueError
        If there is no such engine or option, or it cannot linearise the model.
    MemoryError
        If what was asked for would not fit.
    """
    device = trajectory.states.device
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: choose 'auto' or one of {sorted(ENGINES)}")
    if gates not in GATES:
        raise ValueError(f"gates={gates!r}: choose one of {list(GATES)}")
    refusals = {n: e.refuses(recurrence, device) for n, e in ENGINES.items()}
    if engine != "auto" and refusals[engine] is not None:
        raise ValueError(f"engine={engine!r}: {refusals[engine]}")
    usable = [n for n, refusal in refusals.items() if refusal is None]
    candidates = usable if engine == "auto" else [engine]
    if gates != "auto":
        candidates = [n for n in candidates if issubclass(ENGINES[n], GatedEngine)]
        if not candidates:
            raise ValueError(
                f"gates={gates!r} is for the gated engines: {refusals['gated'] or 'ask for one'}"
            )
    options = [(name, option) for name in candidates for option in _options(ENGINES[name], gates)]
    free = free_bytes(device)
    needs: dict[str, int] = {}
    for name, option in options:
        label = f"{name}, gates {option}" if issubclass(ENGINES[name], GatedEngine) else name
        needs[label] = ENGINES[name].bytes_needed(recurrence, names, trajectory, option)
        needs[label] += ENGINES[name].bytes_of_weights(recurrence)
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


def _options(engine: type[Engine], gates: str) -> tuple[str, ...]:
    """What may become of the gates, best first."""
    if not issubclass(engine, GatedEngine):
        return ("stored",)
    return ("stored", "recomputed") if gates == "auto" else (gates,)


def _reason(asked: str, label: str, needs: dict[str, int], refusals: dict[str, str | None]) -> str:
    """Why this one, for the repr."""
    kept = needs[label]
    skipped = [f"{other} would keep {readable(n)}" for other, n in needs.items() if other != label]
    if asked != "auto":
        why = "asked for"
    elif skipped:
        why = ", ".join(skipped)
    elif refusals["gated"] is None:
        why = "a gated cell"
    else:
        why = "no two units are coupled" if refusals["scan"] is None else "not a gated cell"
    gates = label.partition(", ")[2]
    return f"{why}; keeps {readable(kept) if kept else 'nothing'}" + (f", {gates}" if gates else "")
