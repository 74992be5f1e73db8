"""The second search, which says whether the modes found are the leading ones."""

import numpy as np
import pytest
import torch

from kpops.linalg.certify import _chance, certify_leading
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
        vectors, lowered = process.deflation(float(level))
        q = vectors[0]
        assert torch.allclose(q @ q.T, torch.eye(len(q), dtype=q.dtype), atol=1e-12)
        off = torch.eye(120, dtype=q.dtype) - q.T @ q
        rest = torch.linalg.eigvalsh(off @ matrix @ off)
        if rest[-1] < lowered:
            told += 1
            inside = torch.linalg.eigvalsh(q @ matrix @ q.T)
            assert int((inside > level).sum()) == int((values > level).sum())
    assert told > 10


@pytest.mark.parametrize("block", [1, 2])
def test_the_chance_of_an_unseen_mode_is_bounded(block):
    # One mode at the level, above a spectrum that begins just below it.
    n, level = 1500, 1.08
    values = torch.from_numpy(np.r_[level * (1 + 1e-12), np.linspace(0, 1, n - 1)])
    op = as_operator(np.eye(2))  # only its sign matters
    op.positive = True
    problem = SpectralProblem(op, n_modes=1)
    problem.space = VectorSpace(1, n, torch.float64, torch.device("cpu"))
    promised = {0.3: 0, 0.1: 0, 0.01: 0}
    n_runs = 300
    for seed in range(n_runs):
        start = np.random.default_rng(seed).standard_normal((block, n))
        basis = torch.from_numpy(np.linalg.qr(start.T)[0].T)
        hits = dict.fromkeys(promised, False)
        new = basis
        for degree in range(1, 26):
            new = new * values
            for _ in range(2):
                new = new - (new @ basis.T) @ basis
            new = torch.linalg.qr(new.T)[0].T
            basis = torch.cat([basis, new])
            theta = float(torch.linalg.eigvalsh((basis * values) @ basis.T)[-1])
            chance = _chance(problem, theta, level, degree, block)
            for bound in promised:
                hits[bound] |= theta < 1.02 and chance <= bound
        for bound in promised:
            promised[bound] += hits[bound]
    # Looks at every degree share their starts: one run errs once.
    for bound, count in promised.items():
        assert count <= n_runs * bound + 3 * (n_runs * bound) ** 0.5


def test_the_bound_becomes_small_where_there_is_nothing():
    matrix = np.diag(np.r_[np.ones(3), np.linspace(0, 0.5, 500)])
    op = as_operator(matrix @ matrix.T)
    problem = SpectralProblem(op, n_modes=3)
    vectors = torch.eye(503, dtype=torch.float64)[:3]
    modes = Modes(torch.ones(3), torch.zeros(3, dtype=int), (vectors,), 3)
    looking = search(3)
    assert certify_leading(problem, modes, looking)
    assert looking.spent < 40
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
