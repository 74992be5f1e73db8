"""Dynamic mode decomposition with the residual of every eigenpair, and pseudospectra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from kpops.arrays import as_tensor, to_numpy
from kpops.koopman.fits import Fit, fit, residuals
from kpops.koopman.series import Series, read_series
from kpops.learning.required import labelled
from kpops.maturity import experimental
from kpops.scalars import check_real
from kpops.spectral._result import mode_variables, unitless


def dmd(
    series: Any,
    *,
    delays: int = 1,
    rank: int | None = None,
    mask: Any = None,
    test: Any = None,
    tol: float = 0.1,
) -> xr.Dataset:
    r"""Exact, Hankel and residual dynamic mode decomposition of a series.

    Parameters
    ----------
    series : Linearization, DataArray, array, or list of trials
        States (trial, time, unit), weights (step, parameter), a loss (step,), or other observables,
        in float32 or float64. A DataArray has one dim ``time`` or ``step``, perhaps ``trial`` or
        ``seed``, and at most one other, that of the observables. Trials of unequal lengths are a
        list of arrays (time, unit), or padded with a mask. No pair of states is across trials.
    delays : int
        Number of successive states in a window: 1 for the exact DMD of the states, more for
        Hankel-DMD.
    rank : int, optional
        Number of modes. Default: the numerical rank of the windows.
    mask : array (trial, time), optional
        True at valid steps, which come first in each trial. A linearization has its own.
    test : like `series`, optional
        Other trials of the same system, on which the residuals are computed. Default: those of
        `series`, on which residuals are too small where the rank is not far below the number of
        pairs.
    tol : float
        Residual above which an eigenpair is spurious. A relative error of `tol` in every step
        leaves an eigenfunction predictable for about ``1 / tol`` steps.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, per step, complex, from the largest modulus on;
        ``mode_shape(mode, unit)``, complex, the exact modes at the first step of a window, of unit
        norm over the window; ``amplitude(mode, trial)``, such that x_t is about the sum of
        ``amplitude * eigenvalue**t * mode_shape`` over the modes; ``residual(mode)``, relative;
        ``spurious(mode)``, whether it is above `tol`. The dims of trials and observables are those
        of `series`.

    Raises
    ------
    TypeError
        If `series` is complex, or neither float32 nor float64.
    ValueError
        If `series` is constant, not finite or too short, the rank is out of range or as large as
        the number of pairs, or dims or sizes do not fit.
    ImportError
        Without PyDMD, which the extra ``koopman`` installs.

    Notes
    -----
    The least squares are those of PyDMD: exact DMD of Tu and others (2014), On dynamic mode
    decomposition; with delays that of Arbabi and Mezic (2017), Ergodic theory, dynamic mode
    decomposition, and computation of spectral properties of the Koopman operator. The residual of
    an eigenvalue and its Koopman eigenfunction g is ``|g(x_t+1) - lambda g(x_t)| / |g|``, in the
    mean square over all pairs: Colbrook and Townsend (2023), Rigorous data-driven computation of
    spectral properties of Koopman operators for dynamical systems, arXiv 2111.14889. Other
    observables of the same steps, as in extended DMD, are passed in place of the states.

    The residual is per step. A series that is sampled so finely that it hardly moves in a step has
    a small one whatever its dynamics. Where the mean of the series is not zero, the constant may be
    among the eigenfunctions, with the eigenvalue 1 and a residual of zero.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> A = np.array([[0.9, 0.2], [-0.2, 0.9]])
    >>> x = [np.array([1.0, 0.0])]
    >>> for _ in range(20):
    ...     x.append(A @ x[-1])
    >>> modes = kpops.koopman.dmd(np.stack(x))
    >>> modes.eigenvalue.values.round(6).tolist(), bool(modes.spurious.any())
    ([(0.9+0.2j), (0.9-0.2j)], False)
    """
    check_real("tol", tol)
    if not tol > 0:
        raise ValueError(f"tol={tol}: choose a positive residual")
    read = read_series(series, mask)
    found = fit(read, delays, rank)
    values, left, right = found.eigenpairs()
    pairs = (found.before, found.after)
    if test is not None:
        pairs = found.pairs(_like(read, test))
    residual = residuals(values, left, *pairs)
    shapes = _exact_modes(found, right)
    starts = np.stack([h[0] for h in found.windows(read)], 1)
    amplitude = np.linalg.lstsq(shapes, starts.astype(shapes.dtype), rcond=None)[0]
    settings = {"delays": int(delays), "rank": len(values), "tol": float(tol)}
    numbers = {
        "eigenvalue": (values, "Koopman eigenvalue per step"),
        "residual": (residual.astype(read.dtype), "relative residual of the eigenpair"),
        "spurious": (~(residual <= tol), "whether the residual is above the tolerance"),
    }
    dims = ("mode", read.observable)
    first = shapes[: len(shapes) // delays]
    first = (first if found.span is None else found.span @ first).T
    return xr.Dataset(
        {
            **mode_variables(numbers),
            "mode_shape": labelled(dims, first, "mode at the first step of a window"),
            "amplitude": labelled(("mode", read.trial), amplitude, "amplitude at the first step"),
        },
        coords={k: c.described(k) for k, c in read.coords.items()},
        attrs={
            "n_pairs": found.before.shape[1],
            "held_out": int(test is not None),
            "configuration": json.dumps(settings),
        },
    )


def _like(read: Series, test: Any) -> Series:
    other = read_series(test, name="test")
    if other.n_observables != read.n_observables:
        raise ValueError(
            f"test has {other.n_observables} observables, {read.name} {read.n_observables}: pass "
            "trials of the same system"
        )
    other.refuse_other_labels(read, read.observable)
    return other


def _exact_modes(found: Fit, right: np.ndarray) -> np.ndarray:
    """Exact modes of unit norm, as columns; projected ones where the eigenvalue is zero."""
    shapes, projected = found.lift @ right, found.basis @ right
    norms = np.linalg.norm(shapes, axis=0)
    gone = norms <= np.finfo(norms.dtype).eps * np.linalg.norm(found.operator)
    shapes = np.where(gone, projected, shapes / np.where(gone, 1, norms))
    return shapes / np.linalg.norm(shapes, axis=0)


@experimental
def pseudospectrum(
    series: Any,
    real: Any = None,
    imag: Any = None,
    *,
    delays: int = 1,
    rank: int | None = None,
    mask: Any = None,
) -> xr.Dataset:
    r"""Smallest residual that any observable has at the points of a grid in the complex plane.

    Parameters
    ----------
    series, delays, rank, mask
        As for :func:`kpops.koopman.dmd`.
    real, imag : array, optional
        Real and imaginary parts of the points. Default: 41 each from -1.25 to 1.25.

    Returns
    -------
    Dataset
        ``residual(imag, real)``: the minimum of ``|g(x_t+1) - z g(x_t)| / |g|`` over all linear
        combinations g of the observables. Where it is below epsilon, z is in the
        epsilon-pseudospectrum of the Koopman operator, in the limit of many pairs.

    Raises
    ------
    ValueError
        As :func:`kpops.koopman.dmd`; also if `real` or `imag` is not one-dimensional or not finite.

    Notes
    -----
    The pseudospectra of Colbrook and Townsend (2023), arXiv 2111.14889, by singular values in place
    of eigenvalues of their squares. Of a map that preserves the measure of the samples, residuals
    are at least ``abs(1 - abs(z))``.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> angle = 0.5 * np.arange(40)
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    >>> near = kpops.koopman.pseudospectrum(circle, [np.cos(0.5), 0.0], [np.sin(0.5), 0.0])
    >>> bool(near.residual[0, 0] < 1e-12), bool(near.residual[1, 1] > 0.9)
    (True, True)
    """
    found = fit(read_series(series, mask), delays, rank)
    grid = {"real": _line("real", real), "imag": _line("imag", imag)}
    white = found.before.T / found.sizes  # orthonormal columns
    r = white.shape[1]
    both = np.concatenate([white, found.after.T / found.sizes], 1)
    triangle: Any = np.linalg.qr(both, mode="r")
    now, then = triangle[:, :r], triangle[:, r:]
    smallest = [
        [np.linalg.svd(then - (x + 1j * y) * now, compute_uv=False)[-1] for x in grid["real"]]
        for y in grid["imag"]
    ]
    settings = {"delays": int(delays), "rank": r}
    text: Mapping[str, str] = {"real": "real part", "imag": "imaginary part"}
    return xr.Dataset(
        {
            "residual": labelled(
                ("imag", "real"),
                np.array(smallest, found.before.dtype),
                "smallest relative residual of any observable",
            )
        },
        coords={name: (name, values, unitless(text[name])) for name, values in grid.items()},
        attrs={"n_pairs": found.before.shape[1], "configuration": json.dumps(settings)},
    )


def _line(name: str, values: Any) -> np.ndarray:
    if values is None:
        return np.linspace(-1.25, 1.25, 41)
    line = to_numpy(as_tensor(values, name)).astype(np.float64)
    if line.ndim != 1 or not len(line) or not np.isfinite(line).all():
        raise ValueError(f"{name} has shape {line.shape}: pass finite numbers, an array (point,)")
    return line
