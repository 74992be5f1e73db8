"""Long work: its progress bar, estimates of its duration, and Ctrl-C."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm.auto import tqdm

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])
ON_INTERRUPT = ("raise", "return")
RATE = 1e10
"""Operations per second of a dense decomposition on two cores, about. Estimates follow from sizes
alone, never from how busy a machine is."""
WORTH_A_WORD, LONG = 10.0, 600.0
"""Seconds from which an estimate is written, and from which a function asks for confirmation."""


class LongWorkWarning(UserWarning):
    """A call will take long."""


class ConvergenceWarning(UserWarning):
    """A solver returned modes that did not meet the tolerance."""


class InterruptWarning(UserWarning):
    """Ctrl-C ended a function early, which returned its results so far."""


class NothingYetError(Exception):
    """Ctrl-C came before there were any results."""


@dataclass
class Work:
    """A call of a public function that may be long, with the calls that it makes itself."""

    bar: tqdm  # counts matvecs
    interrupted: bool = False  # by Ctrl-C: it should end with its results so far
    holding: bool = False
    inside: bool = False  # an operator, whose factors do not count

    def interrupt(self) -> None:
        """Handle Ctrl-C."""
        if self.interrupted or not self.holding:
            raise KeyboardInterrupt
        self.interrupted = True


_current: ContextVar[Work | None] = ContextVar("kpops work", default=None)


@contextmanager
def long(what: str, progress: bool) -> Iterator[Work]:
    """Open the bar of a function, unless its caller has one."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    mine = Work(tqdm(desc=what, unit=" matvecs", disable=not progress))
    token = _current.set(mine)
    try:
        yield mine
    finally:
        _current.reset(token)
        mine.bar.close()


@contextmanager
def held(on_interrupt: str) -> Iterator[None]:
    """Let the first Ctrl-C mark the current work as interrupted, and only the next one raise.

    So no iteration is cut in two, as by an exception at any line.
    """
    mine = _current.get()
    if mine is None or mine.holding or on_interrupt == "raise":
        yield
        return
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, lambda *_: mine.interrupt()) if ours else None
    mine.holding = True
    try:
        yield
    finally:
        mine.holding = False
        if ours:
            signal.signal(signal.SIGINT, before)


def shown(function: Function) -> Function:
    """Decorate a function that has an argument `progress`, which shows a bar of its name."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with long(function.__name__, bool(options.get("progress", False))):
            return function(*arguments, **options)

    return wrapped  # type: ignore[return-value]


def _visible() -> tqdm | None:
    mine = _current.get()
    return None if mine is None or mine.bar.disable else mine.bar


def expect(count: float, unit: str = "matvecs") -> None:
    """Announce how many more the bar will count, if it has no total yet."""
    bar = _visible()
    if bar is not None and bar.total is None:
        bar.total, bar.unit = bar.n + count, f" {unit}"


def advance(count: float) -> None:
    """Count other work than matvecs of operators."""
    mine = _current.get()
    if mine is not None:
        mine.bar.update(count)


def estimate(flops: float, what: str) -> float:
    """Estimate the seconds for so many operations; from ten on, write them above the bar."""
    seconds, bar = flops / RATE, _visible()
    if seconds >= WORTH_A_WORD and bar is not None:
        bar.write(f"{bar.desc.rstrip(': ')}: {what}, {duration(seconds)}", sys.stderr)
    return seconds


def duration(seconds: float) -> str:
    """Write seconds for people."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} seconds"


def product(act: Callable[[], Result], n_vectors: int) -> Result:
    """Apply an operator to so many vectors, as a part of the current work."""
    mine = _current.get()
    if mine is None or mine.inside:
        return act()
    mine.inside = True
    try:
        try:
            result = act()
        except KeyboardInterrupt:  # from inside a model: without this matvec, its step is lost
            mine.interrupt()
            result = act()
    finally:
        mine.inside = False
    mine.bar.update(n_vectors)
    return result


def interrupted() -> bool:
    """Whether the current work should end with its results so far."""
    mine = _current.get()
    return mine is not None and mine.interrupted


def refuse_interrupted() -> None:
    """Raise after Ctrl-C, in functions without partial results."""
    if interrupted():
        raise KeyboardInterrupt


def check() -> None:
    """Raise after Ctrl-C, where there are no results yet."""
    if interrupted():
        raise NothingYetError


def tell(text: str) -> None:
    """Write behind the bar."""
    bar = _visible()
    if bar is not None:
        bar.set_postfix_str(text)


def check_on_interrupt(on_interrupt: str) -> None:
    """Refuse an unknown reaction to Ctrl-C."""
    if on_interrupt not in ON_INTERRUPT:
        raise ValueError(f"on_interrupt={on_interrupt!r}: choose 'raise' or 'return'")


def warn(message: str, category: type[Warning] = InterruptWarning) -> None:
    """Warn at the line outside this package that called it."""
    frame, level = sys._getframe(1), 2
    ours = ("kpops", "torch", "contextlib")  # contextlib stands between functions and decorators
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_unconverged(message: str) -> None:
    """Warn that something did not converge."""
    warn(message, ConvergenceWarning)
