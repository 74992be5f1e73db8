"""Switching and decomposed linear systems: P is the product of mixtures from a dictionary."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative

import kpops
from kpops.models import LinearTimeVarying, SwitchingLinear


def by_products(matrices):
    """P of matrices A[t], (trial, time, unit, unit), as (trial, time, unit, time, unit)."""
    n_trials, n_steps, size, _ = matrices.shape
    P = torch.zeros(n_trials, n_steps, size, n_steps, size, dtype=matrices.dtype)
    for s in range(n_steps):
        product = torch.eye(size, dtype=matrices.dtype).expand(n_trials, -1, -1)
        for t in range(s, n_steps):
            product = product if t == s else matrices[:, t] @ product
            P[:, t, :, s] = product
    return P


def dense_blocks(lin):
    """P of all trials, as above; a trial does not act on another."""
    n_trials, n_steps, size = lin.space.shape
    P = torch.from_numpy(lin.P.to_dense()).reshape(n_trials, n_steps, size, n_trials, n_steps, size)
    return torch.stack([P[b, :, :, b] for b in range(n_trials)])


COEFFICIENTS = {
    "switching": lambda: torch.eye(3, dtype=torch.float64)[torch.tensor([[0, 0, 2, 1, 1, 2, 0]])],
    "mixed": lambda: normal(2, 7, 3),
}


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_P_is_the_product_of_the_mixtures(kind):
    system, c = randomised(SwitchingLinear(3, 4)), COEFFICIENTS[kind]()
    lin = kpops.linearize(system, c, h0=normal(4))
    mixtures = torch.einsum("btm,mij->btij", c, system.dictionary.detach())
    assert relative(dense_blocks(lin), by_products(mixtures)) < 1e-12


def test_the_operators_are_those_of_autograd():
    system, x, h0 = randomised(SwitchingLinear(2, 3, 2)), normal(3, 4, 4), normal(3, 3)
    assert_contract(system, x, unrolled(system, x, h0), h0=h0)


def test_a_matrix_learns_where_it_is_used():
    # J by F_m at step t is c_m[t] h[t-1], in every unit: K by units is c . c' h . h'.
    system, c, h0 = randomised(SwitchingLinear(3, 4)), normal(1, 6, 3), normal(1, 4)
    lin = kpops.linearize(system, c, h0=h0)
    before = torch.cat([h0[:, None], torch.from_numpy(lin.states.values)[:, :-1]], 1)[0]
    gram = (c[0] @ c[0].T) * (before @ before.T)
    K = torch.kron(gram, torch.eye(4, dtype=torch.float64))
    assert relative(lin.K.to_dense(), K) < 1e-12
    silent = c.clone()
    silent[..., 1] = 0
    J = torch.from_numpy(kpops.linearize(system, silent, h0=h0).J.to_dense()).reshape(-1, 3, 16)
    assert J[:, 1].abs().max() == 0


def test_a_constant_coefficient_makes_it_the_bilinear_system():
    bilinear = randomised(LinearTimeVarying(2, 4))
    system = SwitchingLinear(3, 4, 2).double()
    with torch.no_grad():
        matrices = torch.cat([bilinear.recurrent[None], bilinear.modulation])
        system.dictionary.copy_(matrices)
        system.weight.copy_(bilinear.weight)
    x = normal(2, 6, 2)
    ones = torch.ones(2, 6, 1, dtype=torch.float64)
    one = kpops.linearize(system, torch.cat([ones, x, x], -1))
    other = kpops.linearize(bilinear, x)
    assert relative(one.states.values, other.states.values) < 1e-14
    assert relative(one.P.to_dense(), other.P.to_dense()) < 1e-14


def test_the_same_seed_gives_the_same_system():
    once, again = (SwitchingLinear(2, 3, 1, rng=4).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert list(SwitchingLinear(2, 3).state_dict()) == ["dictionary"]


def test_the_matrices_start_with_a_spectral_radius_of_nine_tenths():
    radius = torch.linalg.eigvals(SwitchingLinear(4, 200, rng=0).dictionary).abs().amax(1)
    assert (radius - 0.9).abs().max() < 0.1


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((0, 3), "n_systems=0: pass an int, 1 or more"),
        ((2, 2.5), "state_size=2.5: pass an int, 1 or more"),
        ((2, 3, -1), "input_size=-1: pass an int, 0 or more"),
    ],
)
def test_sizes_that_are_no_counts_are_refused(sizes, told):
    with pytest.raises(ValueError, match=told):
        SwitchingLinear(*sizes)


def test_inputs_without_the_drive_are_refused():
    with pytest.raises(ValueError, match="the model takes 5 features"):
        kpops.linearize(SwitchingLinear(3, 4, 2), torch.zeros(2, 6, 3))
