"""Decompositions of tall blocks, whose many small operations belong on one thread."""

import pytest
import torch

import kpops
from kpops.linalg.orthonormal import orthonormal
from kpops.linalg.probes import dots, three_dots


@pytest.fixture
def threads(monkeypatch):
    """The threads of every QR and dot product, where torch is set to three."""
    seen = []
    for owner, name in ((torch.linalg, "qr"), (torch, "dot")):
        plain = getattr(owner, name)

        def counted(*args, plain=plain, **options):
            seen.append(torch.get_num_threads())
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, counted)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield seen
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_tall_qr_and_products_of_small_problems_take_one_thread(threads):
    rows = torch.randn(16, 32_000, generator=torch.Generator().manual_seed(0))
    q, coords = orthonormal(rows)
    assert torch.allclose(coords.float() @ q, rows, atol=1e-4)
    dots(rows, q)
    kpops.trajectory_dimension(torch.randn(10, 50, 64))
    assert set(threads) == {1}


def test_large_ones_take_all(threads):
    orthonormal(torch.ones(2, 4_000_000))
    assert threads == [3]


def test_three_dots_are_those_of_one_pair_each():
    a, b = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([dots(a, b), dots(a, a), dots(b, b)])
    assert torch.equal(three_dots(a, b), expected)
    assert three_dots(a[:0], b[:0]).shape == (3, 0)
