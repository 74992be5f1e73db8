"""The operator by which a learning rule moves the trajectories."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from kpops.learning.required import require_linearization
from kpops.learning.rules.registry import RULES
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.site_linearization import SiteLinearization


@in_full_precision
@torch.no_grad()
def learning_rule(lin: Linearization, rule: str, **options: Any) -> TrajectoryOperator:
    r"""Return R, by which a small step of a learning rule moves the trajectories.

    A rule that is linear in the error moves them by ``dh = -eta R Err + O(eta^2)``, with the error
    ``Err = dL/dh`` of the states or ``dL/dy`` of the outputs: ``error`` and ``output_error`` of
    :func:`kpops.gradient_flow`. Whatever the ``measure`` of the linearization, R is the real step.

    Parameters
    ----------
    lin : Linearization
        Rules with errors of the outputs need a readout.
    rule : str
        Its name, in the table below.
    **options
        Options of the rule.

    Returns
    -------
    TrajectoryOperator
        R, from errors of the states, or of the outputs, to states.

    Raises
    ------
    ValueError
        If the rule is unknown, an option is out of range or does not fit, there is no readout where
        the rule needs one, or no time, as at fixed points; or if a gradient reaches parameters of
        the sites of a network on a way beside the sites.
    TypeError
        If `lin` is no linearization, or the options are not those of the rule.
    MemoryError
        If a random matrix does not fit.

    Notes
    -----
    R is the part of the step by the parameters that learn in the linearization. B are fixed random
    weights, drawn by ``rng``, a seed or a Generator.

    ======================= ================== ====================== ==========================
    rule                    R                  error of               options
    ======================= ================== ====================== ==========================
    ``gradient descent``    P K P*             states
    ``truncated bptt``      P K P_k*           states                 ``steps``
    ``detached bptt``       P K P_k*           states                 ``steps``
    ``functional gradient`` P P*               states
    ``output feedback``     P K P* B           outputs                ``steps, weights, rng``
    ``feedback alignment``  P K P_B* B         outputs                ``weights, rng``
    ``rflo``                P K P_leak* B      outputs                ``leak, weights, rng``
    ``random update``       P J B P*, P J B    states, outputs        ``error, rng``
    ``preconditioned``      P J M J* P*        states                 ``preconditioner``
    ``optimizer``           P J M J* P*        states                 ``optimizer, model``
    ``gauss-newton``        below              states, outputs        ``damping, error, tol``
    ``critical channel``    P J M J* P*        states                 ``damping``
    ``momentum``            below              states, and velocities ``momentum, dampening,
                                                                      nesterov, steps``
    ======================= ================== ====================== ==========================

    - **truncated bptt**: every error goes back through `steps` steps, its own included; one step
      is P K. **detached bptt**: the state is detached every `steps` steps.
    - **output feedback**: B (unit, output), which `weights` may give, in place of C*; below it,
      errors go back exactly, or through `steps` steps. **feedback alignment** (Lillicrap et al.
      2016, Nature Communications 7, 13276): random weights also in place of the transposed
      recurrent ones, and those between layers, with the gates of the trajectory; for gated cells.
      **rflo** (Murray 2019, eLife 8, e43299): nothing goes back through recurrent weights, and
      eligibility traces decay by `leak`, which is ``1 - alpha`` of a
      :class:`kpops.models.LeakyCell` in its rate form. B reaches the units that the readout sees.
    - **random update** is a control and no rule of the literature: B replaces J*, and a step knows
      nothing of the activity; or with ``error="output"`` J* P* C*, and nothing of the weights.
    - **functional gradient**: every step of every trial is pushed along its own adjoint.
    - **preconditioned**: M is frozen at the step. `preconditioner` is a flat diagonal, an operator
      on the space of parameters, or a dict by the parameters' names, of arrays of their shapes or
      of tuples of matrices, one for each dimension, of which M is the Kronecker product (Shampoo,
      K-FAC). **optimizer**: M of the next step of a torch SGD, Adam, AdamW, RMSprop or Adagrad
      without weight decay, in the state in which it is, between ``loss.backward()`` and
      ``optimizer.step()``. `model` is the module that it trains, and M is that of the gradients
      which its parameters hold. The attribute ``drift`` of R is what earlier gradients add:
      ``dh = -eta (R Err + drift)``.
    - **gauss-newton**: P J (J* P* P J + l)^-1 J* P*, with l the `damping`. With
      ``error="output"`` the least squares are those of the outputs, and a readout that learns
      takes part: P J (J* P* C* C P J + l)^-1 J* P* C*. This is natural gradient where outputs are
      Gaussian with unit variance. Exact where the matrix fits, else by conjugate gradients to a
      relative residual `tol`, with a warning if they miss it.
    - **critical channel**: natural gradient of low rank at fixed points (Hazelden and Shea-Brown
      2026, arXiv:2605.12763), in the metric G = (P_1 J)* P_1 J of their
      :func:`kpops.critical_channel` alone: M = l (G + l)^-1, with l the `damping`. A gain s of the
      channel, which gradient descent squares, becomes ``l s^2 / (s^2 + l)``, at most l, however
      near the bifurcation; across the channel M is 1.
    - **momentum**: `steps` steps of SGD as torch does them, by heavy ball or Nesterov, after a
      first one, whose gradient torch does not dampen. R maps pairs along a first dimension
      ``part``: (Err, u) to (-dh / eta, u afterwards), with ``u = P J v`` the velocity v of the
      optimizer seen on the trajectories, ``lin.sensitivity @ v``.

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> kpops.learning_rule(lin, "truncated bptt", steps=3)
    <P K P_3* (trial: 5, time: 10, unit: 8), float32 on cpu>
    >>> kpops.learning_rule(lin, "output feedback", rng=0)
    <P K P* B (trial: 5, time: 10, output: 2) -> (trial: 5, time: 10, unit: 8), float32 on cpu>

    How a step would move the states, and the loss, per learning rate:

    >>> flow = kpops.gradient_flow(lin, torch.zeros(5, 10, 2))
    >>> R = kpops.learning_rule(lin, "gauss-newton", damping=0.1)
    >>> change = -(R @ flow.error)
    >>> bool((change * flow.error).sum() < 0)
    True
    """
    require_linearization(lin)
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(map(repr, RULES))}")
    known = [p for n, p in inspect.signature(RULES[rule]).parameters.items() if n != "lin"]
    names = [p.name for p in known]
    needed = [p.name for p in known if p.default is p.empty]
    unknown, missing = sorted(set(options) - set(names)), sorted(set(needed) - set(options))
    if unknown or missing:
        wrong = f"has no option {unknown}" if unknown else f"needs {missing}"
        takes = f"its options are {names}" if names else "it has none"
        raise TypeError(f"the rule {rule!r} {wrong}: {takes}")
    if isinstance(lin, SiteLinearization):
        lin.refuse_beside()
    return RULES[rule](lin, **options)
