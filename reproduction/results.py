"""The committed files: written whole, labelled. Without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr

FOLDER = Path(__file__).parent / "results"


def attributes(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable."""
    return {"long_name": long_name, "units": units}


def write(result: xr.Dataset, path: Path) -> None:
    """Write a file that is either complete or absent."""
    temporary = path.with_suffix(".tmp")
    packed = {
        name: {"zlib": True, "complevel": 9}
        for name, values in result.data_vars.items()
        if values.size > 64 and values.dtype.kind == "f"
    }
    result.to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    os.replace(temporary, path)


def read(path: Path) -> xr.Dataset:
    """Read a file into memory."""
    return xr.load_dataset(path, engine="h5netcdf")
