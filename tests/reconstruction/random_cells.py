"""Cells and arrays with random numbers in float64."""

import torch


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def randomised(cell, scale, seed=0):
    """The cell in float64, with normal parameters of that scale."""
    generator = torch.Generator().manual_seed(seed)
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(0, scale, generator=generator)
    return cell
