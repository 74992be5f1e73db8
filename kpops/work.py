"""Long work: the bar that shows it, what it will take, and what Ctrl-C does to it."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm.auto import tqdm

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])
ON_INTERRUPT = ("raise", "return")
RATE = 1e10
"""Operations per second of a dense decomposition, about what two cores do: what a call is said to
take follows from its sizes alone, and never from how busy a machine is."""
WORTH_A_WORD, LONG = 10.0, 600.0
"""Seconds from which an estimate is written, and from which a function wants to be asked twice."""


class LongWorkWarning(UserWarning):
    """What was asked for will take long."""


class ConvergenceWarning(UserWarning):
    """A solver returned modes that did not meet the tolerance."""


class InterruptWarning(UserWarning):
    """Ctrl-C ended a function early, which gave back what it had."""


class NothingYetError(Exception):
    """Ctrl-C came before there was anything to give back."""


class Work:
    """A call of a public function that may be long; those that it makes itself are part of it.

    Attributes
    ----------
    bar : tqdm
        Counts the vectors that operators are applied to.
    interrupted : bool
        Whether Ctrl-C asked it to end with what it has.
    """

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.interrupted = False
        self.holding = False
        self.inside = False  # of an operator, whose factors do not count

    @contextmanager
    def held(self, on_interrupt: str) -> Iterator[None]:
        """Let the first Ctrl-C only set `interrupted`, if asked to; the next one raises.

        No step of an iteration is cut in two, as it would be by an exception at any line.
        """
        if on_interrupt == "raise" or self.holding:
            yield
            return
        ours = threading.current_thread() is threading.main_thread()
        ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = signal.signal(signal.SIGINT, lambda *_: self.interrupt()) if ours else None
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
            if ours:
                signal.signal(signal.SIGINT, before)

    def interrupt(self) -> None:
        """Take note of Ctrl-C."""
        if self.interrupted or not self.holding:
            raise KeyboardInterrupt
        self.interrupted = True


_current: ContextVar[Work | None] = ContextVar("kpops work", default=None)


@contextmanager
def long(what: str, progress: bool) -> Iterator[Work]:
    """Open the bar of a function, unless it is called by another one that has a bar."""
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
    """See :meth:`Work.held`, of the work under way."""
    mine = _current.get()
    with mine.held(on_interrupt) if mine is not None else nullcontext():
        yield


def shown(function: Function) -> Function:
    """Decorate a function that has an argument `progress`: its bar, under its name."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with long(function.__name__, bool(options.get("progress", False))):
            return function(*arguments, **options)

    return wrapped  # type: ignore[return-value]


def expect(count: float, unit: str = "matvecs") -> None:
    """Say how many more there will be of what the bar counts, if it does not know it yet."""
    mine = _current.get()
    if mine is not None and not mine.bar.disable and mine.bar.total is None:
        mine.bar.total, mine.bar.unit = mine.bar.n + count, f" {unit}"


def advance(count: float) -> None:
    """Count what is not the product of an operator."""
    mine = _current.get()
    if mine is not None:
        mine.bar.update(count)


def estimate(flops: float, what: str) -> float:
    """Seconds that so many operations take, about; from ten on, written above the bar."""
    seconds = flops / RATE
    mine = _current.get()
    if seconds >= WORTH_A_WORD and mine is not None and not mine.bar.disable:
        mine.bar.write(f"{mine.bar.desc.rstrip(': ')}: {what}, {duration(seconds)}", sys.stderr)
    return seconds


def duration(seconds: float) -> str:
    """Seconds for people to read."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} seconds"


def product(act: Callable[[], Result], n_vectors: int) -> Result:
    """Run a product of an operator with so many vectors, as a part of the work under way."""
    mine = _current.get()
    if mine is None or mine.inside:
        return act()
    mine.inside = True
    try:
        try:
            result = act()
        except KeyboardInterrupt:  # of a model's own: to lose this product would lose its step
            mine.interrupt()
            result = act()
    finally:
        mine.inside = False
    mine.bar.update(n_vectors)
    return result


def interrupted() -> bool:
    """Whether the work under way is to end with what it has."""
    mine = _current.get()
    return mine is not None and mine.interrupted


def refuse_interrupted() -> None:
    """Pass on a Ctrl-C to what can give all or nothing."""
    if interrupted():
        raise KeyboardInterrupt


def check() -> None:
    """Leave what has nothing to give yet, after Ctrl-C."""
    if interrupted():
        raise NothingYetError


def tell(text: str) -> None:
    """Write behind the bar of the work under way."""
    mine = _current.get()
    if mine is not None and not mine.bar.disable:
        mine.bar.set_postfix_str(text)


def check_on_interrupt(on_interrupt: str) -> None:
    """Refuse an unknown answer to Ctrl-C."""
    if on_interrupt not in ON_INTERRUPT:
        raise ValueError(f"on_interrupt={on_interrupt!r}: choose 'raise' or 'return'")


def warn(message: str, category: type[Warning] = InterruptWarning) -> None:
    """Warn at the line outside this package that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _is_ours(frame.f_globals):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_unconverged(message: str) -> None:
    """Warn that something did not converge."""
    warn(message, ConvergenceWarning)


def _is_ours(names: dict[str, Any]) -> bool:
    # contextlib stands between a function and its decorator
    return names["__name__"].partition(".")[0] in ("kpops", "torch", "contextlib")
