"""Run a model once, in one process or in several, and linearise it at its trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from kpops import snapshot
from kpops.checks import ROWS_TOGETHER
from kpops.distributed.agreement import in_step
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.threads import PARTS_OF_A_STEP, enough_for
from kpops.linearization import Linearization
from kpops.models.whole import Parts
from kpops.models.whole_run import NotRecurrentError
from kpops.precision import check_precision, in_full_precision
from kpops.read_inputs import read_inputs, read_state
from kpops.site_linearization import linearize_sites


@in_full_precision
@torch.inference_mode(False)
def linearize(
    model: Any,
    inputs: Any,
    *,
    sites: Iterable[str] | str | None = None,
    h0: Any = None,
    parameters: Iterable[str] | Callable[[str], bool] | None = None,
    readout: nn.Module | Callable[[Tensor], Tensor] | None = None,
    mask: Any = None,
    measure: str = "sum",
    engine: str = "auto",
    gates: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: str = "highest",
    process_group: ProcessGroup | None = None,
) -> Linearization:
    """Linearise a recurrent model about its trajectories for `inputs`.

    The model is run once, and left as it is. The result is a snapshot, which later training of the
    model does not change.

    Parameters
    ----------
    model : nn.RNN, nn.GRU, nn.LSTM, their Cell classes, or any nn.Module
        A cell has ``forward(x_t, h)``, which returns the next state, trial by trial. A module over
        whole sequences is taken apart into its recurrent part and its readout; if it has more
        parts, the error shows the call for them. Wrappers are taken off.
    inputs : Tensor, array_like, DataArray, PackedSequence or list of array_like
        Shape (trial, time, feature); for a module with ``batch_first=False`` (time, trial,
        feature), as the module itself takes it. A DataArray is read by its dimensions ``trial`` and
        ``time``, and its coordinates label every result. A list of trials (time, feature) of
        several lengths is padded, and brings its mask. Integers and booleans become numbers of the
        model's dtype. No gradient flows back to the inputs.
    sites : iterable of str or "auto", optional
        Names of parts, as in ``named_modules``, whose outputs are the states of any network; see
        :doc:`/any_network`. ``"auto"`` takes the parts that have parameters and are called, and is
        the default for a network that is not recurrent, and for inputs in a dict. Then `h0`,
        `mask`, `engine` and `gates` have no meaning; `inputs` are any tree of arrays with trials
        first, a tuple for several arguments of forward, a dict for those with names; and `readout`
        is a function from what the network returns to its outputs.
    h0 : array_like or DataArray, optional
        Initial state (trial, unit) or (unit,), or what the module itself takes. Default: zero.
    parameters : iterable of str or callable, optional
        Names of the parameters of the recurrent part that learn, with or without its path in
        `model`, or a predicate on names. Default: all that require grad.
    readout : nn.Linear or callable, optional
        ``y = C(h)``, on rows (row, hidden) of the module's outputs (for an LSTM: h without c);
        default: the model's own, if it has one. A module is copied; another callable is used as it
        is, and has no parameters that learn.
    mask : array_like of bool, optional
        Shape (trial, time), True at valid steps, which precede the padding. The operators are
        restricted to the valid steps. Inputs may bring it as a coordinate ``mask``, as results do.
    measure : {"sum", "mean"}
        The measure of trials and time: ``"mean"`` divides K by the number of valid steps, as in
        the KPFlow paper.
    engine : {"auto", "gated_numba", "gated", "scan", "jacobian", "autodiff"}
        How the actions are computed; see :meth:`Linearization.memory_estimate`.
    gates : {"auto", "stored", "float32", "recomputed"}
        Whether the gated engines keep the derivatives of the gates, keep them in float32 (half the
        memory of a float64 model, relative errors of about 1e-7), or compute them from the
        trajectory in each matvec. ``"auto"`` stores them where they fit.
    dtype : torch.dtype, optional
        float32 or float64, to which model and inputs are converted. Default: the model's, and
        inputs of another floating dtype are refused.
    device : torch.device or str, optional
        Where to compute. Default: where the model is.
    precision : {"highest", "tf32x3", "tf32"}
        ``"highest"`` computes in the precision of the dtype, whatever torch is set to. ``"tf32"``
        lets a GPU compute the matrix products in P, K and their like by TF32, faster and to about
        three digits; ``"tf32x3"`` takes three such products for one of float32, with its error,
        in the engine ``gated``. See :doc:`/gpu`. Both are for float32; a CPU has no TF32.
    process_group : torch.distributed.ProcessGroup, optional
        Spread the trials over the processes of a group, each of which passes its own `inputs`,
        `h0` and `mask`, and the same of all else. The trials of all are in the order of the ranks.
        See :doc:`/many_processes`.

    Returns
    -------
    Linearization

    Raises
    ------
    TypeError
        If dtypes are mixed, a tensor is complex, or an argument is of a wrong kind.
    ValueError
        If a shape, a name or an option is wrong; if it is unclear which dimension of an array is
        time; if the model is random in its present mode, mixes trials, learns nothing or cannot be
        taken apart; if inputs or states are not finite.
    MemoryError
        If the chosen engine does not fit.
    DistributedError
        If the processes of the group disagree in anything but their trials, or one of them fails.

    Notes
    -----
    All arrays of a call have one order. If inputs are (time, trial, feature), for a module with
    ``batch_first=False`` or as a DataArray, `mask` is (time, trial), and targets of
    :func:`kpops.gradient_flow` are (time, trial, output), unless they have labels, which they need
    if both sizes are equal. Results are always (trial, time, unit).

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3))
    >>> lin.flow
    <P K P* (trial: 5, time: 10, unit: 8), float32 on cpu, PSD>
    >>> (lin.flow @ torch.randn(5, 10, 8)).shape
    torch.Size([5, 10, 8])
    """
    with in_step(process_group) as processes:
        if measure not in ("sum", "mean"):
            raise ValueError(f"measure={measure!r}: choose 'sum' or 'mean'")
        if isinstance(model, Linearization):
            raise TypeError("model is a Linearization already: use it as it is")
        parts = None if sites is not None else _recurrent(model, inputs, dtype, readout, h0, mask)
        if parts is None:
            how = {"engine": engine, "gates": gates}
            _refuse_given(h0=h0, mask=mask, **{k: v for k, v in how.items() if v != "auto"})
            return linearize_sites(
                processes, model, inputs, None if sites == "auto" else sites,
                parameters=parameters, readout=readout, measure=measure,
                dtype=dtype, device=device, precision=precision,
            )  # fmt: skip
        snapshot.refuse_tied(parts.recurrent, parts.readout)
        recurrence = snapshot.of_model(parts, dtype, device)
        names = parts.own_names(parameters)
        learning = snapshot.learning_parameters(recurrence.parameter_dict(), names)
        like = next(iter(learning.values()))
        check_precision(precision, like.dtype)
        convert = dtype is not None
        x, valid, coords, reading = read_inputs(inputs, mask, recurrence, like, convert=convert)
        recurrence.requires_grad_(False)  # no autograd graph is ever needed
        # Small steps of a small network, also where checks take many of them together.
        together = min(x.shape[0] * x.shape[1], ROWS_TOGETHER)
        with enough_for(recurrence.flops(together) / PARTS_OF_A_STEP):
            with exclusive_compute(like.device):
                h = recurrence.initial_state(read_state(h0, dtype, coords), len(x), x[:, 0])
                trajectory = snapshot.run_from(recurrence, x, h, valid, learning)
                trajectory = replace(trajectory, precision=precision)
                readout, own = snapshot.of_readout(parts, recurrence, trajectory.states, convert)
            trajectory, space = snapshot.spread(
                processes, trajectory, coords, recurrence, readout, measure, learning
            )
            linearization = Linearization(
                recurrence=recurrence,
                parameters=learning,
                trajectory=trajectory,
                space=space,
                reading=reading,
                readout=readout,
                readout_parameters=own,
                measure=measure,
                engine_asked=engine,
                gates_asked=gates,
                remark=parts.remark,
            )
        processes.agree({"engine": linearization.engine.name})
        return linearization


def _recurrent(
    model: Any, inputs: Any, dtype: torch.dtype | None, readout: Any, h0: Any, mask: Any
) -> Parts | None:
    """The recurrent part of a model and its readout; None if it has none, and none is asked for."""
    # A module without children is more likely a part than a network.
    network = isinstance(model, nn.Module) and next(model.children(), None) is not None
    if network and isinstance(inputs, dict):  # which no recurrence reads
        return None
    try:
        return snapshot.take_apart(model, inputs, dtype, readout=readout, h0=h0)
    except NotRecurrentError as error:
        if h0 is not None or mask is not None or not network:
            raise ValueError(str(error)) from error
        return None


def _refuse_given(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(
            f"{given} is given with sites=, which are those of a network without time: leave it out"
        )
