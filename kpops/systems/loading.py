"""Systems by name."""

from __future__ import annotations

from typing import Any

# These files fill the registry.
from kpops.systems import flows_classic, flows_larger, flows_sprott, kuramoto_sivashinsky, maps
from kpops.systems.models import Flow, Map, SemilinearFlow
from kpops.systems.registry import ENTRIES, find

__all__ = ["flows_classic", "flows_larger", "flows_sprott", "load", "maps", "names"]

_MAKERS = {"flow": Flow, "map": Map, "ETDRK4": kuramoto_sivashinsky.make}


def names(kind: str | None = None) -> list[str]:
    """Names of all systems, or of those of one kind.

    Parameters
    ----------
    kind : {"flow", "map"}, optional
        Flows run in continuous time, maps step by step.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If `kind` is unknown.

    Examples
    --------
    >>> import kpops
    >>> kpops.systems.names("map")[:3]
    ['Logistic', 'Cubic', 'Mouse']
    >>> len(kpops.systems.names("flow"))
    50
    """
    if kind not in (None, "flow", "map"):
        raise ValueError(f"kind={kind!r}: choose 'flow', 'map', or None for both")
    is_map = {"flow": False, "map": True}
    return [n for n, e in ENTRIES.items() if kind is None or (e.kind == "map") is is_map[kind]]


def load(name: str, **parameters: float) -> Flow | Map | SemilinearFlow:
    """A chaotic flow or map as a model, by its name.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    **parameters : float
        Values of its parameters; the others keep their defaults. They are learning parameters of
        the model, scalars in float64: ``model.field.rho``.

    Returns
    -------
    Flow, Map or SemilinearFlow
        An nn.Module that :func:`kpops.linearize` and :func:`kpops.lyapunov_spectrum` take as it is,
        in float64; ``model.float()`` converts it. Beside the parameters it has

        - ``start``, a state (unit,) on the attractor or near it, for ``h0``;
        - ``dt``, the time of a step; None for a map;
        - ``settings``, the values of the parameters by name; ``variables``, the names of the units;
        - ``reference``, the publication of the equation; ``literature``, exponents of a trusted
          table at the default parameters, or an empty tuple.

    Raises
    ------
    TypeError
        If a parameter is unknown, or no real number.
    ValueError
        If the name is unknown; the message names the nearest ones. If a parameter is not finite.

    See Also
    --------
    trajectory : Trajectories of the model as a DataArray.
    exponents : Lyapunov exponents of all systems, measured by kpops.

    Notes
    -----
    A flow is a :class:`kpops.models.NeuralODE`: a step of length `dt` is one or more equal steps of
    the classical Runge-Kutta method, as many as bring the mean of ``log|det A|`` within 1e-6 per
    unit of time of the mean divergence of the vector field. The Kuramoto-Sivashinsky equation,
    which is stiff, is solved by ETDRK4. In all cases A is the exact derivative of the computed
    step.

    Lorenz96 and KuramotoSivashinsky have as many units as the initial state that is passed.

    Driven oscillators are autonomous, with two more units for the phase of their drive, which turns
    on a cycle that attracts at the rate 1: to the exponents of the driven system it adds -1.

    Examples
    --------
    >>> import kpops
    >>> lorenz = kpops.systems.load("Lorenz", rho=28.0)
    >>> lorenz.dt, lorenz.variables
    (0.01, ('x', 'y', 'z'))
    >>> result = kpops.lyapunov_spectrum(
    ...     lorenz, h0=lorenz.start, n_steps=200, dt=lorenz.dt, rng=0
    ... )
    >>> print(f"{float(result.exponent.sum()):.6f}")  # -(sigma + 1 + beta)
    -13.666667

    The parameters are those that learn, and the time in the inputs has no effect:

    >>> import torch
    >>> inputs = torch.zeros(1, 50, 1, dtype=torch.float64)
    >>> lin = kpops.linearize(lorenz, inputs, h0=lorenz.start)
    >>> lin.sensitivity.shape  # of the states to sigma, rho and beta
    (150, 3)
    """
    entry = find(name)
    model: Any = _MAKERS[entry.kind](entry, entry.values(parameters))
    return model
