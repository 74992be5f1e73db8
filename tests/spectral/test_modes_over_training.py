"""Modes from the checkpoint before: fewer matvecs, and no mode hides behind them."""

import numpy as np
import pytest
import torch

import kpops
from kpops.linalg import eigenpairs
from kpops.linalg.problem import SpectralProblem


def rotation(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def operator(values, basis):
    return (basis * values) @ basis.T


def leading(matrix, k, v0=None, **options):
    return kpops.eigsh(matrix, k, v0=v0, method="block-krylov", rng=0, **options)


def assert_leading(found, matrix):
    """All are certified, and are the leading ones by a dense decomposition."""
    expected = np.linalg.eigvalsh(matrix)
    expected = expected[np.abs(expected).argsort()[::-1]][: found.sizes["mode"]]
    assert found.converged.all()
    scale = np.abs(expected).max() or 1.0
    np.testing.assert_allclose(
        np.abs(found.eigenvalue), np.abs(expected), rtol=0, atol=1e-10 * scale
    )


FALLING = 0.97 ** np.arange(300)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 6, 10])
def test_a_mode_that_grows_from_nothing_orthogonal_to_all_others_is_found(k, seed):
    basis = rotation(300, seed)
    before = leading(operator(np.r_[FALLING[:-1], 0.0], basis), k)
    for size in (1.5, 0.5 * (FALLING[k - 1] + FALLING[k])):
        after = operator(np.r_[FALLING[:-1], size], basis)
        found = leading(after, k, before.eigenfunction)
        assert_leading(found, after)


@pytest.mark.parametrize("copies", [2, 3, 12])
def test_a_value_that_gets_copies_orthogonal_to_the_modes_before_shows_all_of_them(copies):
    # One copy is the exact mode before; a Krylov space from it sees no other.
    basis = rotation(300)
    before = leading(operator(FALLING, basis), 6)
    values = FALLING.copy()
    values[-copies + 1 :] = 1.0
    after = operator(values, basis)
    assert_leading(leading(after, 6, before.eigenfunction), after)


@pytest.mark.parametrize("n_swapped", [1, 3, 6])
def test_modes_that_swap_with_those_below_are_found(n_swapped):
    basis = rotation(300)
    before = leading(operator(FALLING, basis), 6)
    values = FALLING.copy()
    values[:n_swapped], values[6 : 6 + n_swapped] = FALLING[6 : 6 + n_swapped], FALLING[:n_swapped]
    after = operator(values, basis)
    assert_leading(leading(after, 6, before.eigenfunction), after)


def test_an_operator_that_becomes_zero_or_comes_from_zero():
    basis = rotation(200)
    nothing, something = np.zeros((200, 200)), operator(FALLING[:200], basis)
    for before, after in ((something, nothing), (nothing, something), (nothing, nothing)):
        assert_leading(leading(after, 4, leading(before, 4).eigenfunction), after)


def test_an_operator_of_both_signs_is_followed():
    basis, signs = rotation(300), np.resize([1, -1, -1], 300)
    before = leading(operator(FALLING * signs, basis), 6)
    after = operator(np.r_[FALLING[:-1] * signs[:-1], -1.2], basis)
    assert_leading(leading(after, 6, before.eigenfunction), after)


def test_opposite_start_vectors_whose_mixture_may_be_zero_cost_no_mode():
    matrix = operator(FALLING, rotation(300))
    vector = np.linalg.eigh(matrix)[1][:, -1]
    for seed in range(4):
        found = kpops.eigsh(
            matrix, 3, v0=np.stack([vector, -vector]), method="block-krylov", rng=seed
        )
        assert_leading(found, matrix)


def test_singular_functions_of_a_few_trials_start_the_search_in_all():
    # Each is zero in all trials but one, and moved to another, so that none starts where it leads.
    torch.manual_seed(0)
    inputs = torch.randn(6, 12, 2, dtype=torch.float64)
    P = kpops.linearize(torch.nn.RNN(2, 10, batch_first=True).double(), inputs).P
    first = kpops.svds(P, 4, method="block-krylov", rng=0)
    assert (np.abs(first.right.values).max((2, 3)) == 0).any()
    moved = first.right.copy(data=np.roll(first.right.values, 1, axis=1))
    again = kpops.svds(P, 4, method="block-krylov", rng=0, v0=moved)
    assert again.converged.all()
    exact = np.linalg.svd(P.to_dense(), compute_uv=False)[:4]
    np.testing.assert_allclose(again.singular_value, exact, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-8])
def test_modes_before_save_matvecs_and_lose_no_certificate(size, monkeypatch):
    """The same certificate is asked for the same modes, from a basis that knows them."""
    certify, asked = eigenpairs.certify_leading, []

    def counted(problem, modes, search, process=None):
        asked.append((len(modes.values), process is not None))
        return certify(problem, modes, search, process)

    monkeypatch.setattr(eigenpairs, "certify_leading", counted)
    basis, turn = rotation(300), np.random.default_rng(1).standard_normal((300, 300)) / 300**0.5
    before = leading(operator(FALLING, basis), 10)
    after = operator(FALLING, np.linalg.qr(basis + size * turn)[0])
    alone, followed = leading(after, 10), leading(after, 10, before.eigenfunction)
    assert asked == 3 * [(10, True)]
    assert followed.num_matvecs < alone.num_matvecs
    assert float(followed.residual.max()) <= 1e-7
    assert_leading(followed, after)


def test_each_start_vector_enters_the_mixture_with_the_same_weight(monkeypatch):
    matrix = operator(FALLING, rotation(300))
    vectors = np.linalg.eigh(matrix)[1].T[::-1][:6]
    seen = []
    act = SpectralProblem.act

    def recorded(problem, x):
        seen.append(x)
        return act(problem, x)

    monkeypatch.setattr(SpectralProblem, "act", recorded)
    leading(matrix, 6, vectors.copy())
    assert seen[0].shape == (1, 1, 300)
    np.testing.assert_allclose(np.abs(seen[0][0].numpy() @ vectors.T), 6**-0.5, rtol=1e-12)


def test_start_vectors_of_nan_are_refused_unless_whole():
    matrix = operator(FALLING, rotation(300))
    vectors = np.linalg.eigh(matrix)[1].T[::-1][:3].copy()
    vectors[1, 7] = np.nan
    with pytest.raises(ValueError, match="v0 has entries that are not finite"):
        leading(matrix, 3, vectors)
    vectors[1] = np.nan  # a mode that was not found
    assert_leading(leading(matrix, 3, vectors), matrix)
