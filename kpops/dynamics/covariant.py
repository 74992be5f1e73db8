"""Covariant Lyapunov vectors: the directions of growth at the Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.dynamics.lyapunov import dataset
from kpops.dynamics.lyapunov_source import Source, read_source
from kpops.dynamics.lyapunov_tangent import evolve_frames
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.memory import check_allocation
from kpops.labels import Coordinate, Space
from kpops.precision import in_full_precision
from kpops.scalars import check_count


@in_full_precision
@work.shown
def covariant_lyapunov_vectors(
    lin_or_model: Any,
    k: int | None = None,
    *,
    inputs: Any = None,
    h0: Any = None,
    n_steps: int | None = None,
    transient: int = 0,
    frame_transient: int | None = None,
    backward_transient: int | None = None,
    interval: int = 1,
    angles: bool = False,
    dt: float | None = None,
    dtype: torch.dtype | None = None,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Covariant Lyapunov vectors along the trajectories of a recurrent model.

    Parameters
    ----------
    lin_or_model, k, inputs, h0, n_steps, transient, dt, dtype, rng
        As for :func:`kpops.lyapunov_spectrum`. A linearization must have no mask.
    frame_transient : int, optional
        Steps after `transient` for the frames to turn. Default: a tenth of the rest.
    backward_transient : int, optional
        Steps at the end for the vectors to turn on their way back; no vectors are kept there.
        Default: `frame_transient`.
    interval : int
        Steps between two times at which the vectors are kept.
    angles : bool
        Whether to return the angles between the vectors, too.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        In the dtype of the computation:

        - ``covariant_vector(trial, time, unit, mode)`` of unit length, tangent to the state
          ``h[time]``. The Jacobian of the steps between two times maps a vector to a positive
          multiple of the next one;
        - ``growth_rate(trial, time, mode)``, the logarithm of that multiple per step or per unit
          of time; NaN at a last time that has no next one;
        - ``exponent(mode)``, its mean over trials and times: the Lyapunov exponents;
        - with `angles`, ``covariant_angle(trial, time, mode, mode_in)`` in radians, at most pi / 2;
          rounding hides angles below eps^(1/2).

    Raises
    ------
    TypeError, ValueError
        As for :func:`kpops.lyapunov_spectrum`; also if the linearization has a mask, or if a
        singular Jacobian annihilates one of the k modes.
    MemoryError
        If the vectors would not fit.

    See Also
    --------
    lyapunov_spectrum : The exponents, with their errors.

    Notes
    -----
    By the method of Ginelli et al. (2007, Phys. Rev. Lett. 99, 130601). The way forward keeps
    frames Q[n] and triangles R[n] with ``A Q[n-1] = Q[n] R[n]``. The covariant vectors are
    ``V[n] = Q[n] C[n]`` with C upper triangular, and ``A V[n-1] = V[n] D[n]`` with D diagonal means
    ``C[n-1] = R[n]^-1 C[n] D[n]``. On the way back, almost any triangular start (here the identity)
    turns to the right one, as fast as the exponents differ. The memory is that of k vectors of
    ``S + k`` numbers for every trial and time kept.

    Unlike the frames, the vectors do not depend on the inner product. If exponents coincide, only
    the span of their vectors is determined. Angles near zero between expanding and contracting
    vectors show that the dynamics are not hyperbolic.

    Examples
    --------
    The covariant vectors of a constant Jacobian are its eigenvectors:

    >>> import torch, kpops
    >>> class Shear(torch.nn.Module):
    ...     def forward(self, x, h):
    ...         return h @ torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=h.dtype).T
    >>> result = kpops.covariant_lyapunov_vectors(
    ...     Shear(), h0=[0.0, 0.0], n_steps=200, angles=True, rng=0
    ... )
    >>> second = result.covariant_vector.isel(trial=0, time=0, mode=1)
    >>> print(f"{float(second[1] / second[0]):.3f}")  # the eigenvector (1, -1.5) of 0.5
    -1.500
    >>> print(f"{float(result.covariant_angle.isel(trial=0, time=0)[0, 1]):.3f}")  # arctan 1.5
    0.983
    """
    source, k = read_source(lin_or_model, k, inputs, h0, n_steps, dt, dtype)
    total = source.space.sizes["time"]
    if int(source.lengths.min()) < total:
        raise ValueError("the linearization has a mask: linearise trials of one length together")
    check_count("transient", transient, 0, total - 1)
    left = total - int(transient)
    forward = max(1, left // 10) if frame_transient is None else frame_transient
    check_count("frame_transient", forward, 1, left)
    backward = min(forward, left - forward) if backward_transient is None else backward_transient
    check_count("backward_transient", backward, 0, left - int(forward))
    check_count("interval", interval, 1)
    marks = list(range(int(transient) + int(forward), total + 1, int(interval)))
    if len(marks) < 2:
        raise ValueError(
            f"interval={interval} with {total} steps, of which {marks[0]} are transients: "
            "vectors at a single time have no growth: run longer, or shorten the interval"
        )
    kept = [mark for mark in marks if mark <= total - backward]
    n_trials, _, n_units = source.space.shape
    per_time = len(kept) * (n_units + k * angles) + 2 * len(marks) * k
    n_bytes = n_trials * k * per_time * source.start.element_size()
    check_allocation(f"{k} covariant vectors at {len(kept)} times", n_bytes, source.start.device)
    with exclusive_compute(source.start.device):
        vectors = source.start.new_empty(n_trials, len(kept), n_units, k)
        triangles = _forward(source, int(transient), marks, vectors, rng)
        growth = _backward(triangles, marks, vectors)
        variables = {
            "covariant_vector": vectors,
            "growth_rate": growth / (interval if dt is None else interval * dt),
        }
        variables["exponent"] = variables["growth_rate"].nanmean((0, 1))
        if angles:
            cosines = (vectors.mT @ vectors).abs().clamp_max(1)
            cosines.diagonal(dim1=2, dim2=3).fill_(1)
            variables["covariant_angle"] = cosines.arccos()
    space = source.labels(kept, k, dt)
    mode_in = Coordinate(("mode_in",), space.coords["mode"].values)
    coords = {**space.coords, "mode_in": mode_in}
    space = Space((*space.dims, "mode_in"), (*space.shape, k), coords)
    settings = {
        "k": k,
        "n_steps": total,
        "transient": int(transient),
        "frame_transient": int(forward),
        "backward_transient": int(backward),
        "interval": int(interval),
        "dt": dt,
    }
    return dataset(source, space, variables, _NAMES, settings)


def _forward(
    source: Source, transient: int, marks: Sequence[int], frames: Tensor, rng: Any
) -> list[tuple[int, Tensor]]:
    """Write Q at the first marks into `frames`; return the pieces from there on as (end, R)."""
    stops = sorted({transient, *marks, source.space.sizes["time"]})
    index = {mark: i for i, mark in enumerate(marks[: frames.shape[1]])}
    triangles = []
    for piece in evolve_frames(source, frames.shape[3], stops, None, rng):
        if (piece.growth == -torch.inf).any():
            trial, mode = (piece.growth == -torch.inf).nonzero()[0].tolist()
            raise ValueError(
                f"a singular Jacobian annihilates mode {mode + 1} of trial {trial} by step "
                f"{piece.stop}, so there is no way back: "
                + (f"take k={mode} or fewer" if mode else "begin after that step")
            )
        if piece.stop in index:
            frames[:, index[piece.stop]] = piece.q.frames
        if piece.stop > marks[0]:
            triangles.append((piece.stop, piece.triangle))
    return triangles


def _backward(triangles: list[tuple[int, Tensor]], marks: Sequence[int], vectors: Tensor) -> Tensor:
    """Turn frames into covariant vectors in place; return the growth between marks.

    The growth from every kept mark to the next is (trial, time, mode), in float64.
    """
    n_trials, n_kept, _, k = vectors.shape
    rates = vectors.new_full((n_trials, n_kept, k), torch.nan, dtype=torch.float64)
    index = {mark: i for i, mark in enumerate(marks)}
    mixing = torch.eye(k).to(vectors).expand(n_trials, -1, -1)
    growth = torch.zeros_like(rates[:, 0])
    ends = [marks[0], *(stop for stop, _ in triangles)]
    for position, stop in enumerate(reversed(ends)):
        if position > 0:  # back over the piece that starts here
            mixing = torch.linalg.solve_triangular(triangles[-position][1], mixing, upper=True)
            lengths = mixing.norm(dim=1, keepdim=True)
            mixing, growth = mixing / lengths, growth - lengths[:, 0].double().log()
        if stop not in index:
            continue
        i = index[stop]
        if i < n_kept:
            vectors[:, i] = vectors[:, i] @ mixing
            if i + 1 < len(marks):
                rates[:, i] = growth
        growth = torch.zeros_like(growth)
    return rates


_NAMES = {
    "covariant_vector": ("trial time unit mode", "covariant Lyapunov vector", "1"),
    "growth_rate": ("trial time mode", "growth rate of the covariant vector", "rate"),
    "exponent": ("mode", "mean growth rate of the covariant vectors", "rate"),
    "covariant_angle": ("trial time mode mode_in", "angle between covariant vectors", "rad"),
}
