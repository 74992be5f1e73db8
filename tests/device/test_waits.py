"""How often solvers wait for a device, and how often they copy to it."""

import pytest
import simulated
from linearized import linearized

import kpops
from kpops.linalg.basis import Basis
from kpops.linalg.lanczos import Bidiagonal, Lanczos

FEW = {"num_matvecs": 24, "rng": 0}
# A function, its operator and its options; the most waits and copies to the device of a second
# call, to be lowered. The number of iterations may differ a little between processors.
BUDGETS = [
    ("eigsh", "flow", {"k": 3, "method": "block-krylov", "rng": 0}, 50, 30),
    ("eigsh", "flow", {"k": 3, "method": "lobpcg", "rng": 0}, 60, 60),
    ("eigsh", "flow", {"k": 3, "method": "arpack", "rng": 0}, 60, 60),
    ("eigsh", "flow", {"k": 3, "method": "exact"}, 10, 1),
    ("eigsh", "K", {"k": 3, "method": "exact"}, 15, 5),
    ("svds", "P", {"k": 3, "method": "block-krylov", "rng": 0}, 50, 40),
    ("svds", "P", {"k": 3, "method": "lobpcg", "rng": 0}, 70, 80),
    ("svds", "P", {"k": 3, "method": "arpack", "rng": 0}, 80, 80),
    ("svds", "P", {"k": 3, "method": "exact"}, 11, 1),
    ("eigvalsh", "K", {}, 4, 0),
    ("eigvalsh", "flow", {}, 4, 0),
    ("trace", "flow", {"method": "exact"}, 2, 0),
    ("trace", "flow", {"method": "hutchinson", **FEW}, 3, 0),
    ("trace", "flow", {"method": "xtrace", **FEW}, 13, 6),
    ("trace", "flow", {"method": "xnystrace", **FEW}, 7, 2),
    ("diagonal", "flow", {"method": "exact"}, 3, 0),
    ("diagonal", "flow", {"method": "hutchinson", **FEW}, 12, 0),
    ("diagonal", "flow", {"method": "xdiag", **FEW}, 11, 8),
    ("effective_rank", "flow", {"method": "exact"}, 4, 0),
    ("effective_rank", "flow", {"method": "hutchinson", **FEW}, 5, 0),
    ("effective_rank", "flow", {"kind": "entropy", "method": "lanczos", **FEW}, 70, 30),
    ("frobenius_norm", "P", {"method": "hutchinson", **FEW}, 3, 0),
    ("spectral_norm", "P", {"rng": 0}, 3, 0),
    ("schatten_norm", "P", {"p": 1, "method": "lanczos", "num_matvecs": 64, "rng": 0}, 10, 0),
    ("spectral_density", "flow", {"method": "lanczos", "rng": 0}, 50, 0),
    ("frobenius_map", "P", {"dim": "time", "method": "probes", "rng": 0}, 11, 0),
    ("observability_gramian", "P", {}, 10, 0),
]


@pytest.mark.parametrize(
    ("function", "op", "options", "most_waits", "most_copies"),
    BUDGETS,
    ids=[f"{function} {op} {options.get('method', '')}" for function, op, options, *_ in BUDGETS],
)
def test_solvers_wait_no_more_often_than(function, op, options, most_waits, most_copies):
    op = getattr(linearized("gru", "gated"), op)
    solve = getattr(kpops, function)
    solve(op, **options)
    with simulated.watched() as (waits, copies):
        solve(op, **options)
    assert waits.total() <= most_waits, waits
    assert copies.total() <= most_copies, copies


@pytest.mark.parametrize(("function", "op"), [("eigsh", "flow"), ("svds", "P")])
def test_block_krylov_waits_twice_for_each_product_of_a_block(monkeypatch, function, op):
    op = getattr(linearized("gru", "gated"), op)
    products, waits = [], []
    for side in ("_apply", "_apply_adjoint"):
        act = getattr(op, side)
        monkeypatch.setattr(op, side, lambda q, act=act: products.append(len(q)) or act(q))

    def counted(method):
        def act(*arguments, **options):
            with simulated.watched() as (here, _):
                result = method(*arguments, **options)
            waits.append(here.total())
            return result

        return act

    for kind, name in ((Lanczos, "expand"), (Bidiagonal, "expand"), (Basis, "orthonormal")):
        monkeypatch.setattr(kind, name, counted(getattr(kind, name)))
    getattr(kpops, function)(op, 3, method="block-krylov", rng=0)
    assert sum(waits) <= 2 * len(products) + 2  # two of the first block
