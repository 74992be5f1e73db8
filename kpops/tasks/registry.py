"""Tasks by name, also those of users."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import xarray as xr

from kpops.kinds import described
from kpops.tasks.driscoll import DRISCOLL_TASKS, driscoll
from kpops.tasks.memory_pro import memory_pro_one_hot
from kpops.tasks.mixing import FOUR_TASKS, four_task_mix
from kpops.tasks.streams import flip_flop, integration, low_rank_forecast

Task = Callable[..., xr.Dataset]

_TASKS: dict[str, Task] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, function: Task, aliases: Sequence[str] = ()) -> None:
    """Give a task a name, by which :func:`make` finds it.

    Parameters
    ----------
    name : str
        Name of the task. It replaces a task of your own by the same name.
    function : callable
        ``function(n_trials, **options)`` returns a Dataset with ``inputs`` (trial, time, input),
        ``targets`` (trial, time, output) and ``mask`` (trial, time), as :func:`memory_pro` does.
        For :func:`accuracy` it also needs the attributes ``criterion`` and ``tolerance``.
    aliases : sequence of str
        Further names.

    Raises
    ------
    TypeError
        If `name` is no string, `function` is not callable, or `aliases` is a string.
    ValueError
        If a name belongs to a task of kpops, or to another task.

    Examples
    --------
    >>> from functools import partial
    >>> import kpops
    >>> short = partial(kpops.tasks.memory_pro, steps=(5, 5, 5))
    >>> kpops.tasks.register("short_memory_pro", short, aliases=["smp"])
    >>> kpops.tasks.make("smp", 2, rng=0).sizes["time"]
    15
    """
    if not callable(function):
        raise TypeError(f"function is a {type(function).__name__}: pass function(n_trials, ...)")
    if not isinstance(name, str):
        raise TypeError(f"name is {described(name)}: pass a string")
    if isinstance(aliases, str):
        raise TypeError(f"aliases={aliases!r}: pass a list of names")
    for new in (name, *aliases):
        owner = _ALIASES.get(new, new if new in _TASKS else None)
        if owner is not None and (owner != name or name in _BUILT_IN):
            raise ValueError(f"the name {new!r} belongs to the task {owner!r}: choose another")
    _TASKS[name] = function
    _ALIASES.update(dict.fromkeys(aliases, name))


def names() -> list[str]:
    """Names of all tasks that :func:`make` knows, without aliases.

    Examples
    --------
    >>> import kpops
    >>> kpops.tasks.names()[:4]
    ['memory_pro', 'memory_anti', 'delay_pro', 'delay_anti']
    """
    return list(_TASKS)


def make(name: str, n_trials: int | None = None, **options: Any) -> xr.Dataset:
    """Trials of a task by its name.

    Parameters
    ----------
    name : str
        One of :func:`names`, or an alias. The 15 tasks of :func:`driscoll` also have the names of
        Yang et al.'s program (2019) and of neurogym as aliases, with Driscoll's timing and inputs;
        the tasks of the KPFlow paper are ``memory_pro`` etc.
    n_trials : int
        Number of trials, required.
    **options
        Passed to the task.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the name is unknown; the message names the nearest ones.

    Examples
    --------
    >>> import kpops
    >>> task = kpops.tasks.make("dlygo", 4, rng=0)
    >>> task.task.values[0], task.sizes["input"]
    ('MemoryPro', 20)
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {described(name)}: pass one of kpops.tasks.names()")
    known = _ALIASES.get(name, name)
    if known not in _TASKS:
        near = difflib.get_close_matches(name, [*_TASKS, *_ALIASES], n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "kpops.tasks.names() lists all"
        raise ValueError(f"no task has the name {name!r}: {hint}")
    if n_trials is None:
        raise TypeError(f"n_trials is missing: pass a number of trials, make({name!r}, 100)")
    return _TASKS[known](n_trials, **options)


_BUILT_IN: frozenset[str] = frozenset()
for _task in (*FOUR_TASKS, four_task_mix, memory_pro_one_hot, flip_flop):
    register(_task.__name__, _task)
register("integration", integration, ["line_attractor"])
register("low_rank_forecast", low_rank_forecast)
register("driscoll", driscoll)

# Names of Yang et al.'s program, then of neurogym's collection yang19.
_OTHER_NAMES = {
    "DelayPro": ["fdgo", "go"],
    "DelayAnti": ["fdanti", "anti"],
    "MemoryPro": ["delaygo", "dlygo"],
    "MemoryAnti": ["delayanti", "dlyanti"],
    "ReactPro": ["reactgo", "rtgo"],
    "ReactAnti": ["reactanti", "rtanti"],
    "IntegrationModality1": ["delaydm1", "dlydm1"],
    "IntegrationModality2": ["delaydm2", "dlydm2"],
    "ContextIntModality1": ["contextdelaydm1", "ctxdlydm1"],
    "ContextIntModality2": ["contextdelaydm2", "ctxdlydm2"],
    "IntegrationMultimodal": ["multidelaydm", "multidlydm"],
    "ReactMatch2Sample": ["dmsgo", "dms"],
    "ReactNonMatch2Sample": ["dmsnogo", "dnms"],
    "ReactCategoryPro": ["dmcgo", "dmc"],
    "ReactCategoryAnti": ["dmcnogo", "dnmc"],
}
for _name in DRISCOLL_TASKS:
    register(_name, partial(driscoll, tasks=_name), _OTHER_NAMES[_name])
_BUILT_IN = frozenset(_TASKS)
