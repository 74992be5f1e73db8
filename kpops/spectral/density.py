"""The spectral density, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.linalg.density import Grid, bulk_edge, make_grid, smoothed
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.exact import Spectrum, whole_spectrum
from kpops.linalg.quadrature import Rule, check_probes, gauss_rule
from kpops.linalg.rounding import noise_floor
from kpops.linalg.scaling import normalized, power_of_two
from kpops.linalg.symmetry import is_self_adjoint
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded
from kpops.spectral._result import configuration, identity, mode_variables, undone, unitless

_STEPS = 64


@in_full_precision
@work.shown
def spectral_density(
    op: Any,
    *,
    num_probes: int = 16,
    steps: int = _STEPS,
    outliers: int = 0,
    points: int = 256,
    scale: str = "auto",
    width: float | None = None,
    method: str = "auto",
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Density of the eigenvalues of a self-adjoint operator, of the singular values of another.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Shape (m, n).
    num_probes : int
        Random vectors, at least 2.
    steps : int
        Most Lanczos steps from each. The finest detail is about twice the range over `steps`.
    outliers : int
        Leading modes, by magnitude, to find one by one (:func:`kpops.eigsh`, or
        :func:`kpops.svds`). The density is that of the rest, the bulk, and the random vectors are
        projected off these modes. Choose more than the number of outliers expected.
    points : int
        Grid points, at least 2.
    scale : {"auto", "linear", "log"}
        Spacing of the grid. ``"log"`` needs an operator without negative eigenvalues, and shows
        what is above the noise floor. ``"auto"`` chooses it for such an operator if half of its
        nonzero values lie below a tenth of the largest.
    width : float, optional
        Standard deviation of the Gaussian that replaces each value: in units of the value on a
        linear grid, in decades on a logarithmic one. Default: twice the range over `steps`, about
        the distance between nodes.
    method : {"auto", "exact", "lanczos"}
        ``"exact"`` smooths the whole spectrum; ``"auto"`` does so where the spectrum is cheap:
        small operators, and K of gated cells.
    rng, progress
        As for :func:`kpops.trace`.

    Returns
    -------
    Dataset
        On the grid ``value``: ``density``, the number of bulk values per unit of value, and its
        standard error ``stderr`` over the probes; ``["cumulative"]``, the number of bulk values
        above, and ``cumulative_stderr``. Raw: ``node(probe, step)`` and ``weight(probe, step)``,
        how many values each node stands for. Leading modes: ``outlier(mode)`` and
        ``outlier_residual(mode)``. The notes explain the numbers in the attributes.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or `op` is not finite.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some of the leading modes did not converge.

    Notes
    -----
    Lanczos from each random vector, uniform on the sphere, gives a Gauss rule of the spectrum, and
    Gaussians of the stated width at its nodes make a density (Lin, Saad and Yang 2016, section 3.2;
    Ubaru, Chen and Saad 2017, algorithm 1; Ghorbani, Krishnan and Xiao 2019). Where ``op = R R*``
    is known, it works in the smaller space. Singular values are roots of the eigenvalues of the
    smaller Gram operator: rounding hides those below the root of the noise floor. The standard
    error is that of the mean over probes; it does not cover detail finer than the rules resolve.

    The density integrates to ``n_bulk``: all values without the outliers and, on a logarithmic
    grid, without the ``n_zeros`` values at or below the noise floor, with ``n_zeros_stderr``. Of
    all zeros, ``structural_zeros`` are known beforehand, and no node stands for them.

    ``bulk_edge`` is the magnitude above which half a value is left. The smallest leading mode is
    compared with this edge, then the next: as long as a mode lies above the edge by no more than
    the extent of the ten values below the edge, it belongs to the bulk and becomes the new edge.
    The other ``n_outliers`` stand off. At the edge of a random matrix the ten values extend over
    about eight standard deviations of the largest eigenvalue.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> spikes = np.r_[30.0, 20.0, np.linspace(-1, 1, 98)]
    >>> density = kpops.spectral_density(np.diag(spikes), outliers=5)
    >>> density.attrs["n_outliers"], density.attrs["bulk_edge"]
    (2, 1.0)
    >>> float(density.density.integrate("value").round(2))
    95.0
    """
    op, rng = as_operator(op), seeded(rng)
    check_probes(num_probes, steps)
    check_count("outliers", outliers, 0, min(op.shape) - 1)
    check_count("points", points, 2)
    if scale not in ("auto", "linear", "log"):
        raise ValueError(f"scale={scale!r}: choose 'auto', 'linear' or 'log'")
    if width is not None:
        check_real("width", width)
        if not 0 < width < math.inf:
            raise ValueError(f"width={width}: choose a positive number, or None for the default")
    if method not in ("auto", "exact", "lanczos"):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'lanczos'")
    symmetric = is_self_adjoint(op)
    exact = method == "exact"
    whole = None if method == "lanczos" else whole_spectrum(op, symmetric, force=exact)
    if whole is not None:
        bulk, modes = _parted(whole, outliers)
        used, how = whole.num_matvecs, whole.how
    else:
        modes = _leading(op, symmetric, outliers, rng)
        scaled, unit = normalized(op)
        options = {"num_probes": num_probes, "steps": steps, "rng": rng, "symmetric": symmetric}
        bulk = gauss_rule(scaled, off=modes.vectors, **options).times(unit)
        used, how = bulk.num_matvecs + modes.num_matvecs, f"Gauss rules of {num_probes} vectors"
    floor = noise_floor(op.torch_dtype)
    if whole is None and not symmetric:  # singular values are then roots of eigenvalues
        floor = floor**0.5
    magnitudes = modes.values[modes.values.isfinite()].abs()  # NaN where no mode was found
    zero = floor * float(torch.cat([magnitudes, bulk.nodes.abs().amax()[None]]).max())
    grid = make_grid(bulk, zero, scale, points, width, min(steps, _STEPS))
    edge, n_outliers = bulk_edge(bulk, magnitudes.tolist(), zero)
    n_zeros, n_zeros_stderr = _mean_and_error(bulk.sums(lambda x: (x.abs() <= zero).double()))
    kind = "eigenvalue" if symmetric else "singular value"
    settings = {"num_probes": num_probes, "steps": steps, "outliers": outliers, "points": points}
    return xr.Dataset(
        _variables(op, bulk, modes, grid, zero, kind),
        coords=identity(op),
        attrs={
            **configuration(op, **settings, scale=scale, method=method),
            "kind": kind,
            "method": "lanczos" if whole is None else "exact",
            "chosen": how,
            "num_matvecs": used,
            "scale": "log" if grid.log else "linear",
            "width": grid.width,
            "width_units": "decades" if grid.log else "value",
            "noise_floor": floor,
            "n_bulk": float(bulk.weights[0].sum()) + bulk.n_zeros,
            "n_zeros": float(n_zeros),
            "n_zeros_stderr": float(n_zeros_stderr),
            "structural_zeros": bulk.n_zeros,
            "bulk_edge": edge,
            "n_outliers": n_outliers,
        },
    )


class _Modes(NamedTuple):
    """Leading modes: values and relative residuals (mode,), float64; what the rule deflates."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor | None
    num_matvecs: int


def _parted(spectrum: Spectrum, outliers: int) -> tuple[Rule, _Modes]:
    """Leading values of a known spectrum, and an exact rule of the rest."""
    values = spectrum.values.double()
    if not values.isfinite().all():
        raise ValueError("the operator is not finite: check the weights and the scale")
    short = max(0, outliers + 1 - len(values))  # then some outliers are structural zeros
    values = torch.cat([values, values.new_zeros(short)])
    leading, rest = values[:outliers], values[None, outliers:]
    modes = _Modes(leading, torch.zeros_like(leading), None, 0)
    return Rule(rest, torch.ones_like(rest), rest, rest, spectrum.n_zeros - short, 0), modes


def _leading(op: TrajectoryOperator, symmetric: bool, k: int, rng: np.random.Generator) -> _Modes:
    if k == 0:
        nothing = torch.zeros(0, dtype=torch.float64, device=op.device)
        return _Modes(nothing, nothing, None, 0)
    found = (eigenpairs if symmetric else singular_triplets)(op, k, Options(rng=rng))
    values = found.unit * found.values.double()
    # Zero modes add nothing to the rest, and NaN marks modes that were not found.
    real = values.isfinite() & (values.abs() > noise_floor(op.torch_dtype) * abs(values[0]))
    vectors = found.vectors[-1][real]
    return _Modes(values, found.residual.double(), vectors, found.num_matvecs)


def _mean_and_error(per_probe: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the probes (first axis) and its standard error; 0 for a single exact one."""
    count, mean = len(per_probe), per_probe.mean(0)
    if count == 1:
        return mean, torch.zeros_like(mean)
    # A density of small values is large, and is squared here.
    unit = power_of_two(float(per_probe.abs().max()), per_probe.dtype)
    return mean, unit * (per_probe / unit).std(0) / count**0.5


def _variables(
    op: TrajectoryOperator, bulk: Rule, modes: _Modes, grid: Grid, zero: float, kind: str
) -> dict[str, Any]:
    density, above = (_mean_and_error(part) for part in smoothed(bulk, grid, zero))
    values = undone(grid.values, 1.0, op, f"grid of the {kind}s")
    grid_coords = {"value": ("value", values, unitless(kind))}

    def variable(dims: Any, part: Tensor, long_name: str) -> xr.DataArray:
        data = undone(part, 1.0, op, long_name)
        coords = grid_coords if dims == "value" else None
        return xr.DataArray(data, coords, dims, attrs=unitless(long_name))

    rule = ("probe", "step")
    variables = {
        "density": variable("value", density[0], f"number of {kind}s per unit of value"),
        "stderr": variable("value", density[1], "standard error of the density"),
        "cumulative": variable("value", above[0], f"number of {kind}s above"),
        "cumulative_stderr": variable("value", above[1], "standard error of the number above"),
        "node": variable(rule, bulk.nodes, "node of the Gauss rule"),
        "weight": variable(rule, bulk.weights, "number of values that the node stands for"),
    }
    if len(modes.values):
        leading = {
            "outlier": (undone(modes.values, 1.0, op, "spectrum"), f"leading {kind}"),
            "outlier_residual": (modes.residuals.to(op.torch_dtype), "relative residual"),
        }
        variables |= mode_variables(leading)
    return variables
