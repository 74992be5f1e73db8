"""The committed exponents of all systems, and what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from kpops.systems.loading import load
from kpops.systems.measuring import settings_hash, versions

FILE = Path(str(resources.files("kpops.systems"))) / "exponents.nc"
RUN = ("n_trials", "n_steps", "transient")  # arguments of `measure` that the table keeps
_SCALARS = (
    "kaplan_yorke_dimension",
    "mean_log_det",
    "mean_divergence",
    "sum_error",
    "solver_error",
)


def exponents() -> xr.Dataset:
    """Lyapunov exponents of all systems at their default parameters, measured by kpops.

    Returns
    -------
    Dataset, dims (system, mode)
        In float64, from a file of the package; ``python -m kpops.systems`` writes it anew. Rates
        are per unit of time of a flow and per step of a map.

        - ``exponent`` and ``stderr`` (system, mode), in falling order, NaN beyond the dimension of
          a system; ``kaplan_yorke_dimension`` (system) and the other results of :func:`measure`;
        - ``literature`` (system, mode): exponents of a trusted table, NaN where there is none; and
          ``literature_stderr``, half a unit of their last digit;
        - ``n_trials``, ``n_steps`` and ``transient`` of the run, and ``settings_hash``, of the
          parameters, the solver and the initial state.

        The attribute ``provenance`` is JSON: versions of the libraries and the seed.

    Notes
    -----
    Trusted are the tables of J. C. Sprott, Chaos and Time-Series Analysis, Oxford University Press
    2003, appendix A, and what follows from a formula, such as log 2 for the logistic map. Two
    values that are quoted from it, 0.0643 for Rucklidge and 0.1119 for MooreSpiegel, are not those
    of these equations, for which we find 0.190 and 0.089, and are left out.

    Standard errors come from the spread between trials, after they have parted by a factor of e^5.
    They do not cover the shear along the energy surface of Hamiltonian flows: the two exponents
    near zero of HenonHeiles and DoublePendulum go to zero as log(T) / T only.

    Examples
    --------
    >>> import kpops
    >>> lorenz = kpops.systems.exponents().sel(system="Lorenz").dropna("mode", how="all")
    >>> bool(abs(lorenz.exponent[0] - 0.9056) < 3 * lorenz.stderr[0])
    True
    """
    with xr.open_dataset(FILE, engine="scipy") as table:
        # Its encoding is that of netCDF 3, whose bytes are no text to other formats.
        return table.load().drop_encoding()


def collect(results: Iterable[xr.Dataset]) -> xr.Dataset:
    """One table from results of ``measure``, whose attribute ``run`` says how they were made."""
    results = list(results)
    n_modes = max(r.sizes["mode"] for r in results)
    names = [r.attrs["system"] for r in results]
    rate = "1/time, or 1/step of a map"

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        table = np.full((len(rows), n_modes), np.nan)
        for i, row in enumerate(rows):
            table[i, : len(row)] = row
        return table

    data: dict[str, Any] = {}
    for name in ("exponent", "stderr"):
        attrs = {**results[0][name].attrs, "units": rate}
        data[name] = (("system", "mode"), padded([r[name].values for r in results]), attrs)
    for name in _SCALARS:
        attrs = dict(results[0][name].attrs)
        if attrs["units"] != "1":
            attrs["units"] = rate
        data[name] = ("system", np.array([float(r[name]) for r in results]), attrs)
    digits = [load(name).entry.literature.split() for name in names]
    for name, rows, what in (
        ("literature", [np.array(d, float) for d in digits], "Lyapunov exponent of the literature"),
        ("literature_stderr", [_half_units(d) for d in digits], "half a unit of its last digit"),
    ):
        data[name] = (("system", "mode"), padded(rows), {"long_name": what, "units": rate})
    for name in RUN:
        values = np.array([r.attrs["run"][name] for r in results])
        units = "1" if name == "n_trials" else "step"
        data[name] = ("system", values, {"long_name": name.replace("_", " "), "units": units})
    hashes = np.array([r.attrs["settings_hash"] for r in results], dtype=object)
    data["settings_hash"] = ("system", hashes, {"long_name": "hash of the settings"})
    provenance = {"versions": versions(), "seed": 0, "dtype": "float64"}
    return xr.Dataset(
        data,
        coords={
            "system": ("system", np.array(names, dtype=object), {"long_name": "system"}),
            "mode": ("mode", np.arange(1, n_modes + 1), {"long_name": "mode", "units": "1"}),
        },
        attrs={"provenance": json.dumps(provenance, sort_keys=True)},
    )


def take(table: xr.Dataset, name: str) -> xr.Dataset | None:
    """The row of a system as ``measure`` gave it, or None if it is missing or another system's."""
    if name not in table.system.values:
        return None
    row = table.sel(system=name).dropna("mode", subset=["exponent"])
    if str(row.settings_hash.values) != settings_hash(load(name)):
        return None
    result = row[["exponent", "stderr", *_SCALARS]].drop_vars("system")
    run = {key: int(row[key]) for key in RUN}
    return result.assign_attrs(system=name, run=run, settings_hash=str(row["settings_hash"].values))


def _half_units(digits: list[str]) -> np.ndarray:
    """Half a unit of the last digit of numbers as they were printed; 0 for whole numbers."""
    return np.array([0.5 * 10.0 ** -len(d.partition(".")[2]) if "." in d else 0.0 for d in digits])


def deviations(table: xr.Dataset) -> xr.DataArray:
    """Distance of the exponents from the literature, in combined standard errors.

    Combined are the standard error, half a unit of the last printed digit, and the error of the
    solver, which is all that is left where an exponent does not fluctuate.
    """
    squares = table.stderr**2 + table.literature_stderr**2 + table.solver_error**2
    return abs(table.exponent - table.literature) / np.sqrt(squares + 1e-24)


def lines(table: xr.Dataset) -> list[str]:
    """The table as text, one line for each system."""
    far = deviations(table)
    head = f"{'system':24}{'exponents (standard error)':58}{'D_KY':>8}{'divergence':>13}"
    text = [head + f"{'sum error':>11}{'solver':>10}{'literature':>12}"]
    for name in table.system.values:
        row = table.sel(system=name).dropna("mode", subset=["exponent"])
        pairs = list(zip(row.exponent.values, row.stderr.values, strict=True))
        shown = " ".join(f"{e:.4f}({s:.1g})" for e, s in pairs[:4])
        if len(pairs) > 4:
            shown += " .."
        most = far.sel(system=name).max()
        against = "-" if np.isnan(most) else f"{float(most):.1f} s.e."
        text.append(
            f"{name:24}{shown:58}{float(row.kaplan_yorke_dimension):8.4f}"
            f"{float(row.mean_divergence):13.6f}{float(row.sum_error):11.1e}"
            f"{float(row.solver_error):10.1e}{against:>12}"
        )
    return text
