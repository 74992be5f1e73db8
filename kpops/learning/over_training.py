"""Take the same measure at every checkpoint of a training run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from kpops import work
from kpops.learning.analysis import Analysis, checked_steps, pairs_of
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.step_results import MeasureError, join, refuse_other_form
from kpops.learning.stored_steps import StoredSteps
from kpops.learning.watching import Watch, batches, found
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.scalars import check_count
from kpops.studies import running
from kpops.studies.results import Measure


def over_training(
    model: nn.Module,
    checkpoints: str | os.PathLike[str] | Iterable[tuple[int, Mapping[str, Any]]],
    inputs: Any,
    measure: Measure,
    *,
    linearizer: Callable[..., Linearization] = linearize,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_interrupt: Literal["raise", "return"] = "raise",
    store: Any = None,
    executor: Any = None,
    threads: int = 1,
    watch: bool | Watch = False,
) -> xr.Dataset:
    """Linearise a model at each checkpoint and collect the results of `measure`.

    Parameters
    ----------
    model : nn.Module
        The architecture; a copy of it gets the weights of each checkpoint.
    checkpoints : path, or iterable of (step, state_dict)
        A folder written by :func:`kpops.training.train`, the result of
        :func:`kpops.training.checkpoints`, or any checkpoints, in any order of whole steps.
    inputs : Tensor, array_like or DataArray
        Passed to the linearizer.
    measure : callable
        ``measure(lin)`` takes a :class:`kpops.Linearization` and returns a Dataset, a named
        DataArray, or a mapping of names to numbers, arrays or DataArrays. The axes of an array
        become the dimensions ``name_dim_0``, ``name_dim_1``, and so on. If it has a parameter
        ``previous``, that gets the result at the checkpoint before as a Dataset, or None.
    linearizer : callable
        ``linearizer(model, inputs, **options)``, for models that :func:`kpops.linearize` does not
        take: ``lambda model, inputs: kpops.linearize(model.gru, inputs, readout=model.fc)``.
    options : mapping, optional
        Options of the linearizer, such as ``{"mask": mask, "measure": "mean"}``.
    progress : bool
        Show a progress bar.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does: raise KeyboardInterrupt with the finished part in its attribute
        ``finished``, or return that part, if there is one.
    store : path or icechunk.Repository, optional
        A folder, by habit called ``.zarr``, or a repository of Icechunk, in which each result is
        kept as soon as it is there. After a kill at any moment the same call goes on where it was;
        with more checkpoints it measures those that are new. Default: results are kept in memory.
    executor : executor, optional
        Measures the checkpoints in its processes, in any order, as for :meth:`kpops.Study.run`.
        Needs a store.
    threads : int
        Threads of torch, BLAS and Numba in each process of the executor.
    watch : bool or kpops.training.Watch
        Follow a folder that a training is still filling, until its end: measure checkpoints as
        they appear. True waits for the end of :func:`kpops.training.train`, without a time limit.
        Needs a store.

        .. versionadded:: 0.1
           `store`, `executor`, `threads` and `watch`.

    Returns
    -------
    Dataset
        The results of `measure`, with the leading dimension ``step``, the training iteration,
        increasing.

    Raises
    ------
    ValueError
        If there are no checkpoints, steps repeat or are no whole numbers, or the state dicts of two
        steps share memory; if the store belongs to another analysis (measure, model, inputs,
        options, linearizer) or training, or `measure` takes ``previous`` and the checkpoints do not
        come one after the other.
    TypeError
        If `model`, `checkpoints`, `measure` or `options` has the wrong type.
    MeasureError
        If a checkpoint cannot be read, does not fit the model, cannot be linearised or measured, or
        its result has another form than those before. It names the step; ``finished`` holds the
        steps before, ``__cause__`` the original error. With a store the other checkpoints are
        measured first, unless `measure` takes ``previous``; ``finished`` holds them, ``__cause__``
        the traceback, and the same call tries what failed again.
    StudyError
        If processes of the executor died, or the store cannot be written. What is finished is kept.

    See Also
    --------
    kpops.training.Measured : the same in a training loop, without checkpoints.
    kpops.Study : the same over seeds, scales and cells.

    Notes
    -----
    A store is compared by what :func:`kpops.training.train` compares of a model, by the source of
    the functions, by the values of inputs and options, and by the weights at the last finished
    step. Its results equal those in memory, except that lengths of dimensions may differ: shorter
    results are padded with NaN, and ``<dim>_length`` holds the lengths. The dtypes must be the same
    at every step, and coordinates along one dimension, too. Strings are objects.

    Examples
    --------
    >>> import copy, torch, kpops
    >>> gru = torch.nn.GRU(3, 4, batch_first=True)
    >>> checkpoints = [(step, copy.deepcopy(gru.state_dict())) for step in (0, 10)]
    >>> norm = lambda lin: {"norm": float(abs(lin.states).max())}
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), norm).step.values
    array([ 0, 10])

    Modes change little from one checkpoint to the next, so the search starts from the last ones:

    >>> def modes(lin, previous):
    ...     v0 = None if previous is None else previous.eigenfunction
    ...     return kpops.eigsh(lin.flow, 2, v0=v0, rng=0)
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), modes).eigenvalue.sizes
    Frozen({'step': 2, 'mode': 2})

    With a store, only new checkpoints are measured:

    >>> import tempfile
    >>> store = tempfile.mkdtemp(suffix=".zarr")
    >>> for known in (checkpoints, [*checkpoints, (20, gru.state_dict())]):
    ...     followed = kpops.over_training(gru, known, torch.zeros(2, 5, 3), norm, store=store)
    >>> followed.step.values
    array([ 0, 10, 20])
    """
    work.check_on_interrupt(on_interrupt)
    analysis = Analysis.read(model, inputs, measure, linearizer, options)
    if store is not None:
        keeper = StoredSteps(store, analysis)
        try:
            return _stored(keeper, checkpoints, executor, threads, watch, progress)
        except KeyboardInterrupt as interrupt:
            finished = getattr(interrupt, "finished", None)
            if on_interrupt == "raise" or finished is None:
                raise
            return finished
    for name, given in (("executor", executor is not None), ("watch", watch is not False)):
        if given:
            raise ValueError(f"{name} needs a place for the results: pass store=, a path")
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    total = checked_steps(checkpoints)
    results: dict[int, xr.Dataset] = {}
    where, previous = "at the first checkpoint", None
    bar = tqdm(total=total, desc="checkpoints", disable=not progress)
    try:
        with bar:
            for step, state in pairs_of(checkpoints):
                where = f"at step {step}"
                if step in results:
                    raise ValueError("the step is there twice: number the checkpoints")
                bar.set_postfix_str(f"step {step}")
                previous = analysis(state, previous)
                refuse_other_form(previous, results)
                results[step] = previous
                where = f"at the checkpoint after step {step}"
                bar.update()
    except KeyboardInterrupt as interrupt:
        interrupt.finished = join(results)  # type: ignore[attr-defined]
        if on_interrupt == "raise" or not results:
            raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise MeasureError(f"{where}: {kind}{error}", join(results)) from error
    joined = join(results)
    if joined is None:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    return joined


def _stored(
    keeper: StoredSteps,
    checkpoints: Any,
    executor: Any,
    threads: int,
    watch: bool | Watch,
    progress: bool,
) -> xr.Dataset:
    """Measure what the store lacks, and return all that was asked for."""
    analysis, steps, done = keeper.analysis, list[int](), set(keeper.done())
    check_count("threads", threads, 1)
    if executor is not None:
        if analysis.remembers:
            raise ValueError(
                "measure takes the result before, so the checkpoints must be measured one after "
                "the other: leave out executor, or the parameter previous"
            )
        for part in (analysis.measure, analysis.linearizer, analysis):
            running.check_executor(executor, part)
    checkpoints = found(checkpoints, watch, at_once=executor is not None)
    bar = tqdm(
        total=None if watch else checked_steps(checkpoints),
        desc="checkpoints",
        disable=not progress or executor is not None,
    )
    compared = False
    with bar, keeper.keeping(steps):
        for batch in batches(checkpoints, watch, done, analysis.remembers):
            if twice := {*steps} & {*batch}:
                raise ValueError(f"step {min(twice)} is there twice: number the checkpoints")
            known = sorted(batch.keys() & done)
            if known and not compared:
                ((step, state),) = batch[known[-1]]
                keeper.refuse_other_weights(step, state)
                compared = True
            keeper.add(batch)
            steps.extend(batch)
            bar.update(len(known))
            missing = {step: batch[step] for step in sorted(batch.keys() - done)}
            if executor is not None:
                keeper.measure_on(executor, missing, threads, progress)
                continue
            for step, checkpoint in missing.items():
                bar.set_postfix_str(f"step {step}")
                if keeper.measure(step, checkpoint) and analysis.remembers:
                    keeper.refuse_failures(steps)  # the others need its result
                bar.update()
        keeper.refuse_failures(steps)
        result = keeper.result(steps)
    if result is None and watch:
        raise ValueError(f"no checkpoint appeared in '{checkpoints.folder}': is it that of train?")
    if result is None:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    return result
