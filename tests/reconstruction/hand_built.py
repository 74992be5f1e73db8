"""Piecewise-linear maps with closed forms, as cells, and random cells."""

import numpy as np
import torch
import xarray as xr

from kpops.models import PLRNNCell, ShallowPLRNNCell

GOLDEN = (1 + 5**0.5) / 2


def filled(cell, **values):
    """The cell in float64 with these parameters, and zeros elsewhere."""
    cell = cell.double()
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            value = torch.as_tensor(values.get(name, 0.0), dtype=torch.float64)
            parameter.copy_(value.expand_as(parameter))
    return cell


def tent(slope=2.0, top=1.0):
    """``x' = top - slope |x|``, with ``|x| = 2 relu(x) - x``."""
    return filled(PLRNNCell(1, 1), A=slope, W=-2 * slope, b=top)


def lozi(a=1.7, b=0.5):
    """``x' = 1 - a |x| + y, y' = b x`` of units (y, u, x), where u = x after one step."""
    rows = [[0, b, 0], [1, a, -2 * a], [1, a, -2 * a]]
    return filled(PLRNNCell(1, 3, rectified=1), W=rows, b=[0, 1, 1])


def shallow_lozi(a=1.7, b=0.5):
    """The same map of units (x, y), each by two relus."""
    into = [[1, 0], [-1, 0], [0, 1], [0, -1]]
    rows = [[-a, -a, 1, -1], [b, -b, 0, 0]]
    return filled(ShallowPLRNNCell(1, 2, 4), W1=rows, W2=into, b1=[1, 0])


def lozi_step(h, a=1.7, b=0.5):
    """The map itself, of states (..., 2) in the order (x, y)."""
    return np.stack([1 - a * np.abs(h[..., 0]) + h[..., 1], b * h[..., 0]], -1)


def drawn(cell, seed, scale=1.0):
    """The cell in float64 with normal parameters."""
    generator = torch.Generator().manual_seed(seed)
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            size = scale / parameter.shape[-1] ** 0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator).double())
    return cell


def run(cell, h0, n_steps):
    """States (trial, time, unit) without input, the initial ones first."""
    h = torch.as_tensor(h0, dtype=torch.float64)
    states = [h]
    x = torch.zeros(len(h), cell.input_size, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(n_steps):
            states.append(cell(x, states[-1]))
    return torch.stack(states, 1)


def assert_saved(result, folder):
    """The result has names and units, and is the same from netCDF and from Zarr."""
    assert all("long_name" in v.attrs and "units" in v.attrs for v in result.data_vars.values())
    result.to_netcdf(folder / "result.nc", engine="h5netcdf")
    result.to_zarr(folder / "result.zarr", consolidated=False)
    with xr.open_dataset(folder / "result.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read, result)
        assert read.attrs == result.attrs
    with xr.open_zarr(folder / "result.zarr", consolidated=False) as read:
        xr.testing.assert_equal(read, result)
