"""Whether gradient descent is linearly stable: sharpness and trace against 2/eta."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from kpops import work
from kpops.learning.curvature import ggn, hessian
from kpops.learning.losses import Loss
from kpops.learning.required import labelled, require_linearization
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded
from kpops.spectral.eig import eigsh
from kpops.spectral.maps import frobenius_map
from kpops.spectral.traces import trace

_CURVATURES = {"hessian": hessian, "ggn": ggn}


@in_full_precision
@work.shown
def stability(
    lin: Linearization,
    targets: Any,
    loss: Loss = "mse",
    *,
    eta: float,
    batch_size: int | None = None,
    curvature: str = "hessian",
    loss_mask: Any = None,
    tol: float = 1e-4,
    num_matvecs: int | None = None,
    num_probes: int = 16,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Sharpness and trace of the curvature of a loss, against the threshold 2/eta of stability.

    Parameters
    ----------
    lin, targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`.
    eta : float
        The learning rate.
    batch_size : int, optional
        Trials in a minibatch of SGD, drawn without replacement; 1 to the number of trials. Needs
        ``"mse"`` or ``"cross_entropy"``, which are means over trials.
    curvature : {"hessian", "ggn"}
        Whose largest eigenvalue is the sharpness; its trace is taken, too. What concerns SGD is of
        the Gauss-Newton operator in any case.
    tol, rng, progress
        As for :func:`kpops.eigsh`.
    num_matvecs : int, optional
        As for :func:`kpops.trace`.
    num_probes : int
        As for :func:`kpops.frobenius_map`, which takes so many matvecs for each trial.

    Returns
    -------
    Dataset
        ``sharpness``, the largest eigenvalue, and ``sharpness_residual``; ``trace`` and
        ``trace_stderr``; ``threshold``, 2/eta; ``stable``, whether the sharpness is at most that.
        With `batch_size`, ``sgd_sharpness``, s_B of the Notes, ``sgd_sharpness_stderr`` and
        ``sgd_stable``, whether both s_B and the sharpness are at most 2/eta. Without SGD's noise
        ``stable`` is exact; ``sgd_stable`` is a necessary condition.

    Raises
    ------
    ValueError
        If an argument is out of range, or `batch_size` is given for a callable loss.
    TypeError
        If `lin` is no linearization, or a number is none.

    Warns
    -----
    ConvergenceWarning
        If the sharpness did not reach `tol`.

    Notes
    -----
    *Gradient descent* near a minimum: ``theta -> (1 - eta L'') theta`` is bounded if and only if no
    eigenvalue of L'' exceeds 2/eta.

    *SGD.* Let the loss be the mean of n trials, all of which the minimum fits, so that the second
    derivatives G_i of their losses are of Gauss-Newton form, with the mean G. A step on B trials is
    ``theta -> (1 - eta A) theta``, with A the mean of their G_i. Then M = E[theta theta^T] changes
    by the map

        T(M) = E[(1 - eta A) M (1 - eta A)]
             = M - eta (G M + M G) + eta^2 (c E_i[G_i M G_i] + (1 - c) G M G),

    where ``c = (n - B) / (B (n - 1))`` (1/B for draws with replacement). T is symmetric and keeps
    the cone of positive matrices, in which its leading eigenvector therefore lies. So M stays
    bounded for every start if and only if ``<X, T(X)> <= <X, X>`` for all symmetric X. The identity
    X = 1 gives the necessary condition

        s_B = (c E_i ||G_i||_F^2 + (1 - c) ||G||_F^2) / tr G  <=  2/eta,

    and a unit vector v, X = v v^T, gives the sharpness of G. A trial with one output has
    ``||G_i||_F = tr G_i``, so ``E_i ||G_i||_F^2 >= (tr G)^2`` and ``s_B >= c tr G``: the condition
    ``tr G <= 2/eta`` of Wu and Su (2023, The implicit regularization of dynamical stability in
    stochastic gradient descent, arXiv 2305.17490) for B = 1, with equality if all tr G_i are equal.
    Then it is sufficient, too, as is s_B for trials with orthogonal gradients of one length. For
    B = n, s_B is at most the sharpness. If trials differ in weight or in valid steps, the loss of a
    minibatch is n/B times what its trials add to the whole.

    Examples
    --------
    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> result = kpops.stability(lin, torch.zeros(5, 10, 2), eta=0.1, batch_size=1)
    >>> bool(result.stable), bool(result.sgd_stable), float(result.threshold)
    (True, True, 20.0)
    """
    require_linearization(lin, spread=True)
    check_real("eta", eta)
    if not 0 < eta < np.inf:
        raise ValueError(f"eta={eta}: choose a learning rate above 0")
    if curvature not in _CURVATURES:
        raise ValueError(f"curvature={curvature!r}: choose 'hessian' or 'ggn'")
    n_trials = lin.space.shape[0]
    if batch_size is not None:
        lin.space.parts.refuse_spread(lin.flow)
        check_count("batch_size", batch_size, 1, n_trials)
        if not isinstance(loss, str):
            raise ValueError(
                "batch_size is given, but loss is a callable, which need not be a mean over "
                "trials: pass 'mse' or 'cross_entropy', or leave batch_size out"
            )
    rng = seeded(rng)
    operator = _CURVATURES[curvature](lin, targets, loss, loss_mask=loss_mask)
    top = eigsh(operator, 1, which="LA", tol=tol, rng=rng)
    traced = trace(operator, num_matvecs=num_matvecs, rng=rng)
    sharpness, threshold = top.eigenvalue[0].item(), 2 / eta

    def number(value: Any, long_name: str) -> tuple[Any, ...]:
        return labelled((), np.asarray(value, dtype=operator.dtype), long_name)

    def verdict(holds: bool, of: str) -> tuple[Any, ...]:
        return labelled((), np.asarray(holds), f"whether {of} may be stable")

    variables = {
        "sharpness": number(sharpness, "sharpness: the largest eigenvalue"),
        "sharpness_residual": number(top.residual[0], "relative residual of the sharpness"),
        "trace": number(traced.estimate, "trace"),
        "trace_stderr": number(traced.stderr, "standard error of the trace"),
        "threshold": number(threshold, "2 / learning rate"),
        "stable": verdict(sharpness <= threshold, "gradient descent"),
    }
    if batch_size is not None:
        if curvature != "ggn":
            operator = ggn(lin, targets, loss, loss_mask=loss_mask)
            traced = trace(operator, num_matvecs=num_matvecs, rng=rng)
        level, stderr = _of_sgd(operator, traced, batch_size, num_probes, rng)
        variables |= {
            "sgd_sharpness": number(level, "sharpness that SGD feels"),
            "sgd_sharpness_stderr": number(stderr, "its standard error"),
            "sgd_stable": verdict(max(sharpness, level) <= threshold, "SGD"),
        }
    settings = {
        "loss": loss if isinstance(loss, str) else "callable",
        "loss_mask": None if loss_mask is None else "given",
        "eta": float(eta),
        "batch_size": batch_size if batch_size is None else int(batch_size),
        "curvature": curvature,
        "tol": tol,
    }
    return xr.Dataset(variables, attrs={**lin.attrs, "configuration": json.dumps(settings)})


def _of_sgd(
    gauss_newton: TrajectoryOperator,
    traced: xr.Dataset,
    batch_size: int,
    num_probes: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """s_B and its standard error, with ``G = Q Q*`` and ``G_i = n Q_i Q_i*``."""
    root = gauss_newton.root
    assert root is not None
    trial, n = root.domain.dims[0], root.domain.shape[0]
    # ||Q_i Q_i*||_F is that of Q_i* Q_i, a block on the diagonal of Q* Q.
    blocks = frobenius_map(root.H @ root, trial, num_probes=num_probes, rng=rng)
    own, own_error = (blocks[v].values.astype(float).diagonal() for v in ("energy", "stderr"))
    c = (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    squares = c * n * own.sum() + (1 - c) * float(blocks.total)
    # The terms come from the same vectors, so their errors add up at worst.
    error = c * n * np.linalg.norm(own_error) + (1 - c) * float(blocks.total_stderr)
    whole = float(traced.estimate)
    if not whole:
        return 0.0, 0.0
    level = float(squares) / whole
    return level, float(np.hypot(error, level * float(traced.stderr))) / whole
