"""Fixed points and cycles of piecewise-linear networks, solved region by region.

A cycle h_1, ..., h_k that visits the regions d_1, ..., d_k in turn solves linear equations,

    h_{i+1} = A_{d_i} h_i + b_{d_i},    i = 1..k,    h_{k+1} = h_1,

which have one solution unless 1 is an eigenvalue of A_{d_k} ... A_{d_1}. It is a cycle of the
network, a real one, if each h_i lies in the region d_i, and a virtual one otherwise. All k states
are unknowns of one system: eliminating to h_1 alone would multiply the growth of a whole cycle into
the rounding error.

With few regions all sequences are solved. With many, a search starts from some, and moves from the
sequence of a virtual solution to that of the regions in which the solution lies (Eisenmann et al.
2023). This is Newton's method for these equations with f itself in place of its pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.dynamics.search_points import FIXED, NEITHER, Found, Map
from kpops.dynamics.stability import labelled
from kpops.engines.memory import check_allocation
from kpops.learning.required import labelled as with_name
from kpops.learning.trajectories import read_states
from kpops.linalg.rounding import noise_floor
from kpops.models.recurrence import Recurrence
from kpops.precision import in_full_precision
from kpops.reconstruction.pieces import Pieces, read_pieces, written
from kpops.reconstruction.pieces_sequences import (
    Sequence,
    canonical,
    every,
    is_primitive,
    pattern_of,
)
from kpops.scalars import check_count
from kpops.scalars import generator as random_generator

_ALL = 2**14  # most sequences that are all solved by default
_DRAWN = 1000  # number of random ones otherwise
_BYTES = 2**26  # of matrices in memory at a time
_NAMED = 8  # most sequences in the text of a warning
_INSIDE = 1e-8  # distance to a kink that rounding does not make


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
@work.shown
def cycles(
    model: Any,
    period: int = 1,
    starts: Any = None,
    *,
    input: Any = None,
    virtual: bool = False,
    max_iterations: int = 100,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Fixed points or cycles of a piecewise-linear network at a constant input, analytically.

    Parameters
    ----------
    model : nn.Module or Linearization
        A :class:`kpops.models.PLRNNCell` or :class:`kpops.models.ShallowPLRNNCell`, or a
        linearization of one.
    period : int
        Number of steps k of the cycles; 1 for fixed points. Cycles of a shorter period that divides
        k are not repeated.
    starts : int, Linearization, or Tensor, array_like or DataArray of shape (trial, time, unit)
        Number of random sequences of regions to search from; or states, for the regions that each
        visits in its next k steps. Default: all sequences of regions, without a search, if these
        are about 16384 or fewer, and 1000 random ones otherwise.
    input : array_like, optional
        Constant input x (feature,). Default: zeros.
    virtual : bool
        Also return the solutions that were met outside their regions.
    max_iterations : int
        Most sequences that the search from a start goes through.
    dtype : torch.dtype, optional
        float32 or float64 to convert the model, the starts and the input to.
    device : torch.device or str, optional
        Where to compute. Default: where the model is.
    rng : int, Generator or None
        Source of the random sequences.
    progress : bool
        Show a bar of the sequences solved.

    Returns
    -------
    Dataset
        As of :func:`kpops.fixed_points`, whose plots it suits: ``state(point, unit)``, eigenvalues
        and eigenvectors of the Jacobian, here of all k steps from that state, and their stability.
        ``time_constant`` is in steps, ``kind(point)`` is ``"fixed"``, ``"cycle"`` or ``"virtual"``,
        and ``basin_count(point)`` the number of starts that led there. ``speed(point)`` is the
        largest ``|f(h_i) - h_{i+1}|``, by the model itself. Instead of distances to the starts:

        - ``orbit(point, phase, unit)``, all states of the cycle, which begins with ``state``;
        - ``pattern(point, phase, relu)``, True for an open relu, and the same as strings,
          ``bits(point, phase)``.

        Real ones come first, then by number of unstable directions and state. Attributes:
        ``model``, ``dtype``, ``period``, ``starts`` (``"all"``, ``"random"`` or ``"states"``),
        ``n_starts``, ``n_solved`` sequences, ``n_singular`` of them, which of these have
        ``continua``, and ``configuration`` (JSON).

    Raises
    ------
    TypeError
        If the model has no known linear pieces, or dtypes are mixed.
    ValueError
        If a shape or a number is out of range or not finite.
    MemoryError
        If the equations of one cycle would not fit.

    Warns
    -----
    ConvergenceWarning
        If ``I - A`` is singular for some sequences of regions, and their cycles form a line or
        more, which cannot be listed: the sequences are named.

    See Also
    --------
    kpops.fixed_points : A numerical search in any model.
    symbolic_code : The regions that trajectories visit.

    Notes
    -----
    The form of the map and the search are described by Eisenmann et al.; all states of a cycle are
    solved for at once, in ``(k S)^3`` operations for each sequence. A state on the border of its
    region to rounding is real; its relus there count as closed. A start of the search may end in a
    loop of virtual solutions, or in a cycle of a shorter period, and then counts for none. With
    all sequences solved, every cycle of this period is found, but for continua.

    References
    ----------
    L. Eisenmann, Z. Monfared, N. Goering and D. Durstewitz, Bifurcations and loss jumps in RNN
    training, NeurIPS 2023 (arXiv 2310.17561). D. Durstewitz, PLoS Computational Biology 13 (2017),
    for fixed points of PLRNNs.

    Examples
    --------
    The tent map ``x' = 1 - 2 |x|`` has two fixed points, one cycle of period 2 and two of period 3:

    >>> import torch, kpops
    >>> tent = kpops.models.PLRNNCell(1, 1).double()
    >>> with torch.no_grad():
    ...     for parameter, value in zip(tent.parameters(), (2.0, -4.0, 0.0, 1.0)):
    ...         _ = parameter.fill_(value)
    >>> cycles = kpops.reconstruction.cycles
    >>> [cycles(tent, period).sizes["point"] for period in (1, 2, 3)]
    [2, 1, 2]
    >>> cycles(tent, 2).bits.values.tolist()
    [['0', '1']]
    """
    check_count("period", period, 1)
    check_count("max_iterations", max_iterations, 1)
    generator = random_generator(rng)
    recurrence, pieces, x = read_pieces(model, input, dtype, device)
    exact = Pieces(*(part.double() for part in pieces))  # float32 weights are known to all bits
    n_bytes = 4 * exact.M.element_size() * (int(period) * len(exact.M)) ** 2
    check_allocation("the equations of a cycle", n_bytes, x.device, "choose a shorter period")
    kind, first = _first_sequences(exact, int(period), starts, generator)
    met: dict[Sequence, _Solution] = {}
    frontier = list(dict.fromkeys(first))
    work.expect(len(frontier), "sequences")
    for _ in range(1 if kind == "all" else max_iterations):
        met |= _solve(exact, int(period), frontier)
        following = dict.fromkeys(met[s].lies_in for s in frontier if not met[s].real)
        frontier = [s for s in following if s is not None and s not in met]
    found, count = _found(met, first)
    if virtual:
        found += [s for q, s in met.items() if s.lies_in and not s.real and is_primitive(q)]
    result = _labelled(recurrence, pieces, x, int(period), found, count)
    degenerate = [s.pattern for s in met.values() if s.lies_in is None]
    continua = ["-".join(written(d)) for d in degenerate if _has_continuum(exact, d)]
    if continua:
        names = ", ".join(continua[:_NAMED]) + (", ..." if len(continua) > _NAMED else "")
        work.warn_unconverged(
            f"cycles: I - A is singular, and points form a continuum, in {len(continua)} of "
            f"{len(met)} sequences of regions, those of the open relus {names}; these are left out"
        )
    settings = {"max_iterations": int(max_iterations), "period": int(period), "virtual": virtual}
    return result.assign_attrs(
        model=type(recurrence.module).__name__,
        dtype=str(x.dtype).removeprefix("torch."),
        period=int(period),
        starts=kind,
        n_starts=len(first),
        n_solved=len(met),
        n_singular=len(degenerate),
        continua=", ".join(continua),
        configuration=json.dumps(settings, sort_keys=True),
    )


class _Solution(NamedTuple):
    """Solution of the equations of a sequence of regions.

    `orbit` (phase, unit) and the sequence of regions that it `lies_in`, None if the equations are
    singular; and `pattern` (phase, relu), those of the equations.
    """

    orbit: np.ndarray
    pattern: np.ndarray
    real: bool
    lies_in: Sequence | None


def _first_sequences(
    pieces: Pieces, period: int, starts: Any, generator: np.random.Generator
) -> tuple[str, list[Sequence]]:
    """Where the sequences are from, in a word, and the sequences."""
    n_relus = len(pieces.r)
    if starts is None and n_relus * period <= np.log2(_ALL * period):
        return "all", every(n_relus, period)
    if starts is None or isinstance(starts, int | np.integer):
        n = _DRAWN if starts is None else starts
        check_count("starts", n, 1)
        drawn = generator.integers(0, 2, (int(n), period, n_relus)).astype(bool)
        return "random", [canonical(pattern)[0] for pattern in drawn]
    states, valid, *_ = read_states(starts, None)
    h = states[valid].to(pieces.M)
    if h.shape[1] != len(pieces.M):
        raise ValueError(
            f"starts has {h.shape[1]} units, the model {len(pieces.M)}: pass states of this model"
        )
    path = [h]
    for _ in range(period - 1):
        path.append(pieces.step(path[-1]))
    visited = to_numpy(pieces.patterns(torch.stack(path, 1)))
    return "states", [canonical(pattern)[0] for pattern in visited]


def _solve(
    pieces: Pieces, period: int, sequences: list[Sequence]
) -> Iterator[tuple[Sequence, _Solution]]:
    """Solve the equations of every sequence."""
    n_units = len(pieces.M)
    size = period * n_units
    at_once = max(1, _BYTES // (8 * size**2))
    for i in range(0, len(sequences), at_once):
        chunk = sequences[i : i + at_once]
        pattern = np.stack([pattern_of(sequence, len(pieces.r)) for sequence in chunk])
        assumed = torch.from_numpy(pattern).to(pieces.M.device)
        matrix, b = _equations(pieces, assumed)
        inverse, info = torch.linalg.inv_ex(matrix)
        condition = matrix.flatten(1).norm(dim=1) * inverse.flatten(1).norm(dim=1)
        solvable = (info == 0) & (condition < 1 / noise_floor(matrix.dtype))
        orbit = (inverse @ b.reshape(-1, size, 1)).reshape(-1, period, n_units)
        arguments, doubt = pieces.arguments(orbit), pieces.doubt(orbit)
        agrees = (arguments > 0) == assumed
        real = (agrees | (arguments.abs() <= doubt)).flatten(1).all(1)
        # On the border of two regions a real solution is one for both, and counts once.
        lies_in = torch.where(real[:, None, None], arguments > doubt, arguments > 0)
        ends = map(to_numpy, (orbit, lies_in, real & solvable, solvable))
        for row in zip(chunk, pattern, *ends, strict=True):
            yield row[0], _solution(*row[1:])
        work.advance(len(chunk))


def _equations(pieces: Pieces, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (row, k S, k S) and right side (row, phase, unit) for patterns (row, phase, relu)."""
    A, b = pieces.maps(patterns)
    n_rows, period, n_units = b.shape
    blocks = A.new_zeros(n_rows, period, n_units, period, n_units)
    for phase in range(period):
        blocks[:, phase, :, (phase + 1) % period] += torch.eye(n_units).to(A)
        blocks[:, phase, :, phase] -= A[:, phase]
    return blocks.reshape(n_rows, period * n_units, -1), b


def _solution(
    pattern: np.ndarray, orbit: np.ndarray, lies_in: np.ndarray, real: bool, solvable: bool
) -> _Solution:
    if not solvable:
        return _Solution(orbit, pattern, False, None)
    sequence, begin = canonical(lies_in)
    if not real:
        return _Solution(orbit, pattern, False, sequence)
    return _Solution(np.roll(orbit, -begin, 0), np.roll(lies_in, -begin, 0), True, sequence)


def _has_continuum(pieces: Pieces, pattern: np.ndarray) -> bool:
    """Whether singular equations of patterns (phase, relu) have solutions in their regions.

    A linear program: of all solutions, the largest distance of the open relus to their kinks, up to
    1, while the closed ones are beyond.
    """
    from scipy.optimize import linprog

    assumed = torch.from_numpy(pattern).to(pieces.M.device)
    matrix, b = _equations(pieces, assumed[None])
    period, size = len(pattern), matrix.shape[-1]
    sign = np.where(pattern, -1.0, 1.0).ravel()
    above = sign[:, None] * np.kron(np.eye(period), to_numpy(pieces.R))
    bounds = np.concatenate([above, pattern.reshape(-1, 1).astype(float)], 1)
    answer = linprog(
        np.concatenate([np.zeros(size), [-1.0]]),
        bounds,
        -sign * np.tile(to_numpy(pieces.r), period),
        np.concatenate([to_numpy(matrix[0]), np.zeros((size, 1))], 1),
        to_numpy(b).ravel(),
        [(None, None)] * size + [(0.0, 1.0)],
        options={"primal_feasibility_tolerance": 1e-10},
    )
    return bool(answer.status == 0 and answer.x[-1] > _INSIDE)


def _found(
    met: dict[Sequence, _Solution], first: list[Sequence]
) -> tuple[list[_Solution], list[int]]:
    """Real cycles of the full period, and how many starts led to each."""
    real = {s.lies_in: s for s in met.values() if s.real and is_primitive(s.lies_in or ())}
    count = dict.fromkeys(real, 0)
    for at in first:
        passed: set[Sequence] = set()
        while at in met and at not in passed:
            passed.add(at)
            at = met[at].lies_in or at
        if at in count:
            count[at] += 1
    return list(real.values()), list(count.values())


def _labelled(
    recurrence: Recurrence,
    pieces: Pieces,
    x: Tensor,
    period: int,
    found: list[_Solution],
    count: list[int],
) -> xr.Dataset:
    """Label cycles, with the stability of all their steps together."""
    n_units, n_relus = len(pieces.M), len(pieces.r)
    pattern = np.zeros((len(found), period, n_relus), bool)
    orbit = x.new_zeros(len(found), period, n_units)
    for i, solution in enumerate(found):
        pattern[i] = solution.pattern
        orbit[i] = torch.from_numpy(solution.orbit)
    real = np.array([s.real for s in found], bool)
    steps, _ = pieces.maps(torch.from_numpy(pattern).to(x.device))
    jacobians = torch.eye(n_units).to(x).expand(len(found), -1, -1)
    for phase in range(period):
        jacobians = steps[:, phase] @ jacobians
    moved = Map(recurrence, x).change(orbit.flatten(0, 1)).reshape(orbit.shape) + orbit
    speed = (moved - orbit.roll(-1, 1)).norm(dim=2).amax(1)
    kind = torch.where(torch.from_numpy(real).to(x.device), FIXED, NEITHER)
    counts = np.array(count + [0] * (len(found) - len(count)), np.int64)
    points = Found(orbit[:, 0], speed, kind)
    result = labelled(recurrence, x, points, jacobians, counts, x.new_zeros(len(found)))
    extra: dict[str, tuple[tuple[str, ...], Any, str]] = {
        "orbit": (("point", "phase", "unit"), to_numpy(orbit), "states of the cycle"),
        "pattern": (("point", "phase", "relu"), pattern, "whether the relu is open"),
        "bits": (("point", "phase"), written(pattern), "which relus are open"),
        "phase": (("phase",), np.arange(period), "step of the cycle"),
        "relu": (("relu",), np.arange(n_relus), "relu"),
    }
    result = result.drop_vars("start_distance").assign(
        {name: with_name(*described) for name, described in extra.items()}
    )
    name = "fixed" if period == 1 else "cycle"
    result["kind"].values[:] = np.where(real, name, "virtual").astype(object)
    result["kind"].attrs["long_name"] = "fixed point, cycle, or solution outside its regions"
    result["time_constant"] = result.time_constant * period
    order = np.lexsort((*result.state.values.T[::-1], result.n_unstable.values, ~real))
    return result.isel(point=order).assign_coords(point=result.point)
