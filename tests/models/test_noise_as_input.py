"""Noise that a leaky cell gets as features of its input."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative

import kpops
from kpops.models import LeakyCell, LowRankCell


@pytest.mark.parametrize("form", ["rate", "current"])
def test_the_noise_of_each_unit_is_added_to_its_drive(form):
    cell = randomised(LeakyCell(3, 5, alpha=0.3, form=form, noise=True))
    x, xi, h = normal(4, 3), normal(4, 5, seed=2), normal(4, 5, seed=3)
    rates = h if form == "rate" else torch.tanh(h)
    drive = rates @ cell.weight_hh.T + x @ cell.weight_ih.T + cell.bias + xi
    goal = torch.tanh(drive) if form == "rate" else drive
    new = cell(torch.cat([x, xi], -1), h)
    assert relative(new.detach(), (0.7 * h + 0.3 * goal).detach()) < 1e-15


@pytest.mark.parametrize(
    "build",
    [
        lambda: LeakyCell(2, 4, alpha=0.3, noise=True),
        lambda: LeakyCell(2, 4, alpha=0.3, form="current", bias=False, noise=True),
        lambda: LowRankCell(2, 4, 2, alpha=0.3, noise=True),
    ],
    ids=["rate", "current", "low_rank"],
)
def test_the_operators_along_a_path_of_the_noise_are_those_of_autograd(build):
    cell, x, h0 = randomised(build()), normal(3, 4, 6), normal(3, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), engine="gated_numba", h0=h0)


def test_without_noise_in_its_place_nothing_changes():
    noisy = randomised(LeakyCell(2, 4, alpha=0.3, noise=True))
    plain = randomised(LeakyCell(2, 4, alpha=0.3))
    x = normal(3, 5, 2)
    silent = torch.cat([x, torch.zeros(3, 5, 4, dtype=torch.float64)], -1)
    ours, reference = kpops.linearize(noisy, silent), kpops.linearize(plain, x)
    assert relative(ours.flow.to_dense(), reference.flow.to_dense()) < 1e-14


def test_noise_drawn_as_documented_has_the_stationary_variance_of_its_diffusion():
    # Without weights u' = (1 - a) u + sigma sqrt(2 a) N(0, 1): variance 2 a sigma^2/(1 - (1 - a)^2)
    alpha, sigma, rng = 0.2, 0.3, torch.Generator().manual_seed(0)
    cell = LeakyCell(1, 1, alpha=alpha, form="current", noise=True).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    xi = sigma * (2 / alpha) ** 0.5 * torch.randn(400, 100, 1, generator=rng, dtype=torch.float64)
    lin = kpops.linearize(cell, torch.cat([torch.zeros_like(xi), xi], -1))
    variance = float(lin.trajectory.states[:, 50:].square().mean())
    expected = 2 * alpha * sigma**2 / (1 - (1 - alpha) ** 2)
    assert abs(variance / expected - 1) < 0.05  # 20,000 numbers, correlated over about 5 steps


def test_inputs_without_the_noise_are_refused():
    with pytest.raises(ValueError, match=r"inputs has shape .*, the model takes 8 features"):
        kpops.linearize(LeakyCell(3, 5, alpha=0.3, noise=True), torch.zeros(2, 4, 3))
