"""Take a measure while a model is being trained, in a loop of one's own or by Lightning."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
import xarray as xr
from torch import nn

from kpops import work
from kpops.learning.analysis import Analysis
from kpops.learning.options import Keep, schedule
from kpops.learning.step_results import error_in, failure, join, refuse_other_form
from kpops.learning.stored_steps import StoredSteps
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.maturity import experimental
from kpops.scalars import check_count
from kpops.studies.errors import StudyError
from kpops.studies.results import Measure
from kpops.studies.study import FailedPointsWarning


class Measured:
    """Take a measure of a model at some steps of its training.

    The model, its gradients, its mode and torch's random state stay as they are, so the training
    ends at the same weights to the bit. ``steps`` is the number of updates so far.

    Parameters
    ----------
    model : nn.Module
        The model that is trained. It is measured as it is in ``eval()`` mode.
    inputs : Tensor, array_like or DataArray
        Passed to the linearizer.
    measure : callable
        As for :func:`kpops.over_training`.
    every : int, iterable of int, or callable
        Distance between the steps to measure at, these steps, or ``keep(step) -> bool``, such as
        :func:`kpops.training.logarithmic` returns.
    start : int
        Number of updates that were made before.
    store : path or icechunk.Repository, optional
        A place in which the results are kept, as for :func:`kpops.over_training`. Steps that are
        there are not measured again, but fail if the weights differ from those that were measured.
        Default: in memory.
    linearizer, options
        As for :func:`kpops.over_training`.

    Raises
    ------
    ValueError
        If `every` is below 1, or the store holds another analysis, or step `start` of another
        training.
    TypeError
        If an argument has the wrong type.

    Warns
    -----
    FailedPointsWarning
        If the measure raises. The training goes on, and :meth:`result` raises the error.

    See Also
    --------
    kpops.over_training : the same at checkpoints, during the training or later.
    lightning_callback : the same in a training by Lightning.

    Examples
    --------
    >>> import torch, kpops
    >>> model, inputs = torch.nn.GRU(3, 4, batch_first=True), torch.ones(2, 5, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> def gain(lin):
    ...     return kpops.spectral_norm(lin.P).estimate.rename("gain")
    >>> with kpops.training.Measured(model, inputs, gain, every=2) as during:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         model(inputs)[0].square().mean().backward()
    ...         optimizer.step()
    ...         during.step()
    >>> during.result().step.values
    array([0, 2, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        measure: Measure,
        *,
        every: int | Iterable[int] | Keep,
        start: int = 0,
        store: Any = None,
        linearizer: Callable[..., Linearization] = linearize,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("start", start, 0)
        self.steps = int(start)
        self._keep, self._model = schedule(every, "every"), model
        self._analysis = Analysis.read(model, inputs, measure, linearizer, options)
        self._analysis.model.eval()
        self._stored = None if store is None else StoredSteps(store, self._analysis)
        self._results: dict[int, xr.Dataset] = {}
        self._errors: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Measure the model as it is now, if `start` is one of the steps."""
        if self._stored is not None and self.steps in self._stored.done():
            self._stored.refuse_other_weights(self.steps, self._model.state_dict())
        self._measure_if_due()
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def step(self, step: int | None = None) -> None:
        """Measure after an update of the model, if its number is one of the steps.

        Parameters
        ----------
        step : int, optional
            Number of updates so far, by default one more than at the last call.

        Raises
        ------
        ValueError
            If `step` is not larger than at the last call.
        """
        step = self.steps + 1 if step is None else step
        check_count("step", step, self.steps + 1)
        self.steps = int(step)
        self._measure_if_due()

    def result(self) -> xr.Dataset:
        """Results so far, or all in the store, as :func:`kpops.over_training` returns them.

        Raises
        ------
        MeasureError
            If the measure raised at some steps. ``finished`` holds the others.
        ValueError
            If there is no result yet.
        """
        if self._stored is None:
            result = join(self._results)
        else:
            result = self._stored.result(self._stored.done())
        if self._errors:
            raise failure(self._errors, result)
        if result is None:
            raise ValueError(
                f"nothing is measured up to step {self.steps}: pass smaller steps as every"
            )
        return result

    def _measure_if_due(self) -> None:
        step = self.steps
        if not self._keep(step):
            return
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            error = self._in_memory(step) if self._stored is None else self._in_store(step)
        if error is not None:
            self._errors[step] = error
            work.warn(
                f"measure failed at step {step}: {error_in(error)}. The training "
                "goes on; result() has the traceback",
                FailedPointsWarning,
            )

    def _in_memory(self, step: int) -> str | None:
        previous = self._results[max(self._results)] if self._results else None
        try:
            result = self._analysis(self._model.state_dict(), previous)
            refuse_other_form(result, self._results)
        except Exception:
            return traceback.format_exc()
        self._results[step] = result
        return None

    def _in_store(self, step: int) -> str | None:
        assert self._stored is not None
        try:
            if step in self._stored.done():
                self._stored.refuse_other_weights(step, self._model.state_dict())
                return None
            self._stored.add([step])
            return self._stored.measure(step, [(step, self._model.state_dict())])
        except (StudyError, ValueError):  # a full disk, for example
            return traceback.format_exc()


@experimental
def lightning_callback(
    inputs: Any,
    measure: Measure,
    *,
    every: int | Iterable[int] | Keep,
    store: Any = None,
    linearizer: Callable[..., Linearization] = linearize,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Make a callback of Lightning that takes a measure as the training goes.

    Parameters
    ----------
    inputs, measure, every, store, linearizer, options
        As for :class:`kpops.training.Measured`. The steps are those of ``trainer.global_step``, and
        the model is the LightningModule: if kpops does not find the network in it, let `linearizer`
        name it, ``lambda module, inputs: kpops.linearize(module.net, inputs)``.

    Returns
    -------
    lightning.pytorch.Callback
        Its method ``result()`` is that of :class:`kpops.training.Measured`. In a training by
        several processes only the first one measures.

    Raises
    ------
    ImportError
        If neither lightning nor pytorch_lightning is installed.

    Examples
    --------
    >>> import torch, kpops
    >>> def gain(lin):
    ...     return kpops.spectral_norm(lin.P).estimate.rename("gain")
    >>> during = kpops.training.lightning_callback(torch.ones(2, 5, 3), gain, every=50)
    ... # doctest: +SKIP
    >>> lightning.Trainer(max_steps=200, callbacks=[during]).fit(module, loader)  # doctest: +SKIP
    >>> during.result()  # doctest: +SKIP
    """
    settings: dict[str, Any] = {
        "every": schedule(every, "every"),
        "store": store,
        "linearizer": linearizer,
        "options": options,
    }

    class MeasureCallback(_callback()):  # type: ignore[misc]
        during: Measured | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and self.during is None:
                start = trainer.global_step
                self.during = Measured(pl_module, inputs, measure, start=start, **settings)
                self.during.__enter__()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            # With accumulated gradients a batch may end without an update.
            if self.during is not None and trainer.global_step > self.during.steps:
                self.during.step(trainer.global_step)

        def result(self) -> xr.Dataset:
            if self.during is None:
                raise ValueError("the training has not begun: fit the model first")
            return self.during.result()

    return MeasureCallback()


def _callback() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError:
            continue
    raise ImportError(
        "lightning is not installed: pip install lightning, or use kpops.training.Measured in a "
        "loop of your own"
    )
