"""The methods that estimate a trace by name: a new one is a file of its own and a line here."""

from __future__ import annotations

from kpops.linalg.traces.base import TraceMethod
from kpops.linalg.traces.hutchinson import Hutchinson
from kpops.linalg.traces.xnystrace import XNysTrace
from kpops.linalg.traces.xtrace import XTrace

METHODS: dict[str, TraceMethod] = {m.name: m for m in (Hutchinson(), XNysTrace(), XTrace())}
