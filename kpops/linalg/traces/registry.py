"""The methods that estimate a trace by name: a new one is a class and an entry here."""

from __future__ import annotations

from kpops.linalg.traces.methods import Hutchinson, TraceMethod, XNysTrace, XTrace

METHODS: dict[str, TraceMethod] = {m.name: m for m in (Hutchinson(), XNysTrace(), XTrace())}
