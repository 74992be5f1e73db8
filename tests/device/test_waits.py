"""How often solvers wait for a device, and how often they copy to it."""

import pytest
import simulated
from linearized import linearized

import kpops

FEW = {"num_matvecs": 24, "rng": 0}
# A function, its operator and its options; the most waits and copies to the device of a second
# call, to be lowered. The number of iterations may differ a little between processors.
BUDGETS = [
    ("eigsh", "flow", {"k": 3, "method": "block-krylov", "rng": 0}, 170, 30),
    ("eigsh", "flow", {"k": 3, "method": "lobpcg", "rng": 0}, 260, 30),
    ("eigsh", "flow", {"k": 3, "method": "arpack", "rng": 0}, 70, 60),
    ("eigsh", "flow", {"k": 3, "method": "exact"}, 13, 4),
    ("eigsh", "K", {"k": 3, "method": "exact"}, 19, 4),
    ("svds", "P", {"k": 3, "method": "block-krylov", "rng": 0}, 190, 30),
    ("svds", "P", {"k": 3, "method": "lobpcg", "rng": 0}, 270, 30),
    ("svds", "P", {"k": 3, "method": "arpack", "rng": 0}, 90, 80),
    ("svds", "P", {"k": 3, "method": "exact"}, 15, 4),
    ("eigvalsh", "K", {}, 4, 0),
    ("eigvalsh", "flow", {}, 5, 0),
    ("trace", "flow", {"method": "exact"}, 3, 0),
    ("trace", "flow", {"method": "hutchinson", **FEW}, 9, 1),
    ("trace", "flow", {"method": "xtrace", **FEW}, 39, 1),
    ("trace", "flow", {"method": "xnystrace", **FEW}, 21, 1),
    ("diagonal", "flow", {"method": "exact"}, 4, 0),
    ("diagonal", "flow", {"method": "hutchinson", **FEW}, 12, 3),
    ("diagonal", "flow", {"method": "xdiag", **FEW}, 27, 5),
    ("effective_rank", "flow", {"method": "exact"}, 7, 0),
    ("effective_rank", "flow", {"method": "hutchinson", **FEW}, 10, 3),
    ("effective_rank", "flow", {"kind": "entropy", "method": "lanczos", **FEW}, 230, 30),
    ("frobenius_norm", "P", {"method": "hutchinson", **FEW}, 9, 1),
    ("spectral_norm", "P", {"rng": 0}, 4, 0),
    ("schatten_norm", "P", {"p": 1, "method": "lanczos", "num_matvecs": 64, "rng": 0}, 20, 3),
    ("spectral_density", "flow", {"method": "lanczos", "rng": 0}, 110, 2),
    ("frobenius_map", "P", {"dim": "time", "method": "probes", "rng": 0}, 13, 2),
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
