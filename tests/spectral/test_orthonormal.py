"""Orthonormal bases: rounding, blocks that are nearly or wholly dependent, waits for a device."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kpops
from kpops.linalg import basis, lanczos
from kpops.linalg.basis import Basis
from kpops.linalg.orthonormal import by_cholesky, orthonormal
from kpops.linalg.vectors import VectorSpace

UNIT = {torch.float64: 1e-14, torch.float32: 1e-6}
aten = torch.ops.aten


def rows_of_condition(condition, k=12, n=3000, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -np.log10(condition), k, dtype=torch.float64)
    return (left * values @ right.mT).to(dtype)


def gap(q):
    q = q.cpu().double()
    return float((q @ q.mT - torch.eye(len(q))).abs().max())


def residual(rows, q, coords):
    """Of ``rows = coords q``, relative to the norm of the rows."""
    rows, q = rows.cpu().double(), q.cpu().double()
    return float((coords @ q - rows).norm() / rows.norm())


@pytest.mark.parametrize(("dtype", "condition"), [
    (torch.float64, 1.0), (torch.float64, 1e6), (torch.float32, 1.0), (torch.float32, 300.0),
])  # fmt: skip
def test_two_cholesky_factors_are_a_qr_decomposition(dtype, condition):
    rows = rows_of_condition(condition, dtype=dtype)
    q, coords = by_cholesky(rows)
    assert q.dtype == dtype
    assert q.is_contiguous()
    assert coords.dtype == torch.float64
    assert torch.equal(coords, coords.tril())
    assert gap(q) < UNIT[dtype]
    assert residual(rows, q, coords) < UNIT[dtype]
    expected, triangle = torch.linalg.qr(rows.double().mT)
    expected = (expected * triangle.diagonal().sign()).mT  # unique for a positive diagonal
    assert float((q - expected).abs().max()) < UNIT[dtype] * condition


def dependent_rows():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 400, generator=generator, dtype=torch.float64)
    yield "ill-conditioned", rows_of_condition(1e12)
    yield "ill-conditioned float32", rows_of_condition(1e6, dtype=torch.float32)
    yield "of low rank", torch.cat([rows, rows[:3] + rows[3:]])
    yield "with a zero row", rows * torch.tensor([1, 1, 0, 1, 1, 1])[:, None]
    yield "zero", torch.zeros_like(rows)
    yield "more than entries", rows[:, :4]
    yield "whose squares vanish", rows.float() * 1e-30


@pytest.mark.parametrize(("what", "rows"), list(dependent_rows()))
def test_dependent_rows_go_to_householder(what, rows, device):
    assert by_cholesky(rows) is None
    q, coords = orthonormal(rows.to(device))
    assert len(q) == min(rows.shape)
    assert gap(q) < UNIT[rows.dtype]
    assert what == "zero" or residual(rows, q, coords) < UNIT[rows.dtype]


def test_rows_that_are_not_finite_are_not_called_orthonormal():
    rows = rows_of_condition(1.0)
    rows[3, 5] = np.nan
    assert by_cholesky(rows) is None


def blocks():
    yield "well-conditioned", rows_of_condition(10.0, 5), 1
    yield "ill-conditioned", rows_of_condition(1e6, 5), 1
    yield "nearly dependent", rows_of_condition(1e11, 5), 3
    dependent = rows_of_condition(1.0, 5)
    dependent[4] = dependent[0] - dependent[1]
    yield "dependent", dependent, 3
    dead = rows_of_condition(1.0, 5)
    dead[2] = 0
    yield "with a zero vector", dead, 3
    yield "zero", torch.zeros(5, 3000, dtype=torch.float64), 3


@pytest.mark.parametrize(("what", "rows", "most"), list(blocks()))
def test_a_block_becomes_orthonormal_and_waits_once_where_it_can(what, rows, most, monkeypatch):
    """Two problems side by side, of which the second is always well-conditioned."""
    found = Basis(
        VectorSpace(2, 3000, torch.float64, torch.device("cpu")), 20, np.random.default_rng(0)
    )
    found.append(found.random(4))
    block = torch.stack([rows, rows_of_condition(2.0, 5).flip(1)])
    for _ in range(2):
        found.remove(block)
    waits = []
    monkeypatch.setattr(basis, "on_host", lambda *parts: waits.append(len(parts)) or parts)
    new = found.orthonormal(block.clone(), found.gram_of(block), 1.0)
    assert len(waits) <= most
    assert found.sound
    found.append(new)
    for problem, (known, span) in enumerate(zip(found.rows, block, strict=True)):
        assert gap(known) < 2e-14, problem
        inside = span @ known[4:].mT @ known[4:]
        assert float((span - inside).norm()) < 1e-13 * max(1.0, float(span.norm()))


def linearized(**options):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 8, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 20, 2, dtype=torch.float64), **options)


@pytest.mark.parametrize("solve", [
    lambda lin: kpops.eigsh(lin.flow, 3, method="block-krylov", rng=0),
    lambda lin: kpops.eigsh(lin.P @ lin.P.H, 3, method="block-krylov", tol=1e-12, rng=0),
    lambda lin: kpops.svds(lin.P, 3, method="block-krylov", rng=0),
], ids=["K", "trials of P", "svds"])  # fmt: skip
def test_block_krylov_waits_twice_for_each_block(solve, monkeypatch):
    counted = {"waits": 0, "blocks": 0, "starts": 0}

    def counting(name, function):
        def wrapped(*args):
            counted[name] += 1
            return function(*args)

        return wrapped

    for module in (basis, lanczos):
        monkeypatch.setattr(module, "on_host", counting("waits", module.on_host))
    monkeypatch.setattr(lanczos.Lanczos, "expand", counting("blocks", lanczos.Lanczos.expand))
    monkeypatch.setattr(Basis, "random", counting("starts", Basis.random))
    solve(linearized())
    assert counted["blocks"] > 10
    assert counted["waits"] <= 2 * counted["blocks"] + counted["starts"]


class Reads(TorchDispatchMode):
    """Counts what would wait for a device, or copy indices there."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = (aten._local_scalar_dense, aten.nonzero, aten.index_put_, aten.lift_fresh)
        if func.overloadpacket in waiting:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", [("time",), ("trial", "unit")])
def test_partial_traces_read_nothing_and_copy_no_indices(keep):
    op = linearized(engine="gated").flow.partial_trace(keep)
    block = torch.randn(2, *op.domain.shape, dtype=torch.float64)
    op.apply(block)  # what is made at the first use may wait
    with Reads() as reads:
        op.apply(block)
    assert not reads.found
