"""The second search, which says whether the modes found are the leading ones."""

import numpy as np
import pytest
import torch

import kpops
from kpops.linalg import certify
from kpops.linalg.certify import certify_leading
from kpops.linalg.lanczos import Lanczos, run
from kpops.linalg.problem import Modes, SpectralProblem
from kpops.linalg.search import Search
from kpops.linalg.vectors import VectorSpace
from kpops.operators.foreign import as_operator


def dense(values, seed):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return torch.from_numpy((basis * values) @ basis.T)


def search(k, budget=1000, seed=0):
    return Search(k, 1e-8, budget, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("signs", [False, True])
def test_nothing_above_the_level_hides_behind_what_is_set_aside(seed, signs):
    rng = np.random.default_rng(seed)
    values = 0.87 ** np.arange(120) * rng.choice([-1, 1] if signs else [1, 1], 120)
    matrix = dense(values, seed)
    family = VectorSpace(1, 120, torch.float64, torch.device("cpu"))
    looking = search(4, budget=40, seed=seed)
    process = Lanczos(lambda x: x @ matrix, family, looking, 2)
    run(process, looking, 2)  # stops with many modes half converged
    told = 0
    for level in np.linspace(0.3, 0.95, 27):
        found = int((values > level).sum())
        vectors, coupling, below = process.deflation(float(level), found, positive=not signs)
        q, c = vectors[0][vectors[0].any(1)], coupling[0]  # what is not deflated is zero
        assert torch.allclose(q @ q.T, torch.eye(len(q), dtype=q.dtype), atol=1e-12)
        off = torch.eye(120, dtype=q.dtype) - q.T @ q
        rest = torch.linalg.eigvalsh(off @ matrix @ off + c.T @ c).abs().max()
        if rest < below:
            told += 1
            inside = torch.linalg.eigvalsh(q @ matrix @ q.T)
            assert int((inside.abs() > level).sum()) == int((np.abs(values) > level).sum())
    assert told > 10


def test_the_rest_of_a_positive_operator_lies_below_the_level_where_no_mode_is_missing():
    # Sylvester's law holds both ways, however large the residuals of what is set aside.
    values = 0.97 ** np.arange(120)
    matrix = dense(values, 0)
    family = VectorSpace(1, 120, torch.float64, torch.device("cpu"))
    looking = search(4, budget=60)
    process = Lanczos(lambda x: x @ matrix, family, looking, 2)
    run(process, looking, 2)
    level = float(values[:5].mean())
    assert int((process.values > level).sum()) == int((values > level).sum())
    for n in (5, 20, 50):
        vectors, coupling, _ = process.deflation(level, n, positive=True)
        q, c = vectors[0], coupling[0]
        assert len(c) == 2
        off = torch.eye(120, dtype=q.dtype) - q.T @ q
        assert torch.linalg.eigvalsh(off @ matrix @ off + c.T @ c)[-1] < level


def diagonal(values, *, positive=True):
    """A diagonal operator, as a certificate sees it."""
    op = as_operator(np.eye(2))  # only its sign matters
    op.positive = positive
    problem, values = SpectralProblem(op, n_modes=1), torch.from_numpy(values)
    problem.space = VectorSpace(1, len(values), torch.float64, torch.device("cpu"))
    problem.act = lambda x: x * values
    return problem


@pytest.mark.parametrize("mode", [1.09, -1.09])
def test_the_chance_of_an_unseen_mode_is_bounded(mode, monkeypatch):
    # One mode above the level, and a spectrum that begins below it.
    n, level, n_runs = 1500, 1.08, 300
    problem = diagonal(np.r_[mode, np.linspace(0, 1, n - 1)], positive=mode > 0)
    empty = torch.zeros(1, 0, n, dtype=torch.float64)
    for bound in (0.3, 0.1, 0.01):
        monkeypatch.setattr(certify, "_UNSEEN", bound)
        missed = sum(
            certify._nothing_above(
                problem, certify.Deflation(empty, empty, level), search(1, seed=seed), 1.0
            )
            for seed in range(n_runs)
        )
        assert missed <= n_runs * bound + 3 * (n_runs * bound) ** 0.5
        if mode > 0 and bound > 0.01:  # the bound is not far from the truth
            assert missed >= 0.1 * n_runs * bound


def test_a_start_without_the_mode_is_as_short_along_it_as_the_bound_says(monkeypatch):
    # |u . q_0| <= 1 / p_j(level), with the component of the start known.
    n, level = 400, 1.05
    problem = diagonal(np.r_[1.0501, np.linspace(0, 1, n - 1)])
    empty = torch.zeros(1, 0, n, dtype=torch.float64)
    usual = VectorSpace.normal_blocks
    for component in 10.0 ** -np.arange(2, 12):

        def start(space, source, k, component=component):
            block = usual(space, source, k)
            block[..., 0] = component * block[..., 1:].norm()
            return block

        monkeypatch.setattr(VectorSpace, "normal_blocks", start)
        limit = np.sqrt(2 * n / np.pi)
        for factor, certain in ((0.1, True), (1.0, False)):
            # Certain if the bound may be as large as the component, not if it has to be smaller.
            monkeypatch.setattr(certify, "_UNSEEN", limit * component / factor)
            deflation = certify.Deflation(empty, empty, level)
            assert certify._nothing_above(problem, deflation, search(1), 1.0) == certain


def test_the_bound_becomes_small_where_there_is_nothing():
    matrix = np.diag(np.r_[np.ones(3), np.linspace(0, 0.5, 500)])
    op = as_operator(matrix @ matrix.T)
    problem = SpectralProblem(op, n_modes=3)
    vectors = torch.eye(503, dtype=torch.float64)[:3]
    modes = Modes(torch.ones(3), torch.zeros(3, dtype=int), (vectors,), 3)
    looking = search(3)
    assert certify_leading(problem, modes, looking)
    assert looking.spent < 16
    modes = modes._replace(values=modes.values[:2], vectors=(vectors[:2],))
    assert certify_leading(
        problem, modes._replace(problem=modes.problem[:2]), search(3)
    )  # a third copy
    lower = Modes(
        torch.tensor([1.0, 0.25]),
        torch.zeros(2, dtype=int),
        (torch.stack([vectors[0], torch.eye(503, dtype=torch.float64)[-1]]),),
        2,
    )
    assert not certify_leading(problem, lower, search(2))


def doubled_rnn():
    """A linear RNN of two equal halves, so that every singular value of P comes twice."""
    half = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = torch.nn.RNN(3, 10, batch_first=True, dtype=torch.float64)
    module.weight_hh_l0.data = torch.block_diag(half, half) * 0.3
    for p in (module.weight_ih_l0, module.bias_ih_l0, module.bias_hh_l0):
        p.data.zero_()
    return kpops.linearize(module, torch.zeros(6, 9, 3, dtype=torch.float64))


def test_copies_in_every_trial_are_found_though_one_vector_sees_one():
    P = doubled_rnn().P
    exact = np.linalg.svd(P.to_dense(), compute_uv=False)
    assert exact[0] == pytest.approx(exact[11])  # twice in each of six trials
    found = kpops.svds(P, 14, method="block-krylov", tol=1e-9, rng=0)
    assert found.converged.all()
    np.testing.assert_allclose(found.singular_value, exact[:14], rtol=1e-10)
    found = kpops.svds(P, 5, method="block-krylov", tol=1e-9, rng=0)
    assert found.converged.all()
    np.testing.assert_allclose(found.singular_value, exact[:5], rtol=1e-10)


def test_one_vector_for_each_of_many_trials_takes_fewer_matvecs_than_two():
    module = torch.nn.RNN(3, 24, batch_first=True, dtype=torch.float64)
    inputs = torch.randn(8, 15, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    P = kpops.linearize(module, inputs).P
    exact = np.linalg.svd(P.to_dense(), compute_uv=False)[:5]
    counts = {}
    for block in (None, 2):
        found = kpops.svds(P, 5, method="block-krylov", block_size=block, tol=1e-8, rng=0)
        assert found.converged.all()
        np.testing.assert_allclose(found.singular_value, exact, rtol=1e-10)
        counts[block] = found.num_matvecs
    assert counts[None] < counts[2]
