"""Random vectors: published words, the same numbers however they are drawn, and their laws."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from kpops.engines import random_vectors
from kpops.engines.cpu import philox_kernels
from kpops.engines.philox import WORD, encrypt
from kpops.engines.random_vectors import RandomVectors

FLOAT64 = torch.empty(0, dtype=torch.float64)
EPS = np.finfo(float).eps
KINDS = ("normal", "signs")
LARGE = 2**18 + 5  # entries of a vector, four of which are drawn by Numba


def drawn(kind, k, entries, rng=0, like=FLOAT64):
    return getattr(RandomVectors(rng), kind)(k, entries, like)


# From kat_vectors of Random123, which accompanies the paper.
ANSWERS = [
    ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((WORD, WORD), (WORD, WORD, WORD, WORD), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("key", "counter", "answer"), ANSWERS)
def test_words_are_those_published(key, counter, answer, device):
    on_tensors = encrypt(key, [torch.tensor([c], device=device) for c in counter])
    for words in (on_tensors, philox_kernels._encrypt(key, counter)):
        assert " ".join(f"{int(w):08x}" for w in words) == answer


@pytest.mark.parametrize("start", [0, 3, 2**34 - 2, 2**40 + 1])
def test_an_entry_is_a_function_of_key_vector_and_position(start):
    source = RandomVectors(5)
    key = divmod(int(np.random.default_rng(5).integers(2**64, dtype=np.uint64)), 2**32)
    source.drawn = 7
    normal = source.normal(2, range(start, start + 6), FLOAT64)
    signs = source.signs(2, range(start, start + 200), FLOAT64)
    for j in range(2):
        for i, value in enumerate(normal[j].tolist(), start):
            words = encrypt(key, (i // 4 & WORD, i // 4 >> 32, 7 + j, 0))
            a, b = words[:2] if i % 4 < 2 else words[2:]
            wave = (math.cos, math.sin)[i % 2](2 * math.pi * b / 2**32)
            expected = math.sqrt(-2 * math.log((a + 0.5) / 2**32)) * wave
            assert value == pytest.approx(expected, rel=1e-14, abs=1e-14)
        for i, value in enumerate(signs[j].tolist(), start):
            words = encrypt(key, (i // 128 & WORD, i // 128 >> 32, 9 + j, 0))
            assert value == 1 - 2 * (words[i % 128 // 32] >> i % 32 & 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [7, 3001, LARGE])
def test_parts_are_those_of_the_whole(kind, n, device):
    like = FLOAT64.to(device)
    whole = drawn(kind, 4, range(n), like=like)
    source = RandomVectors(0)
    some = [getattr(source, kind)(k, range(n), like) for k in (1, 2, 0, 1)]
    torch.testing.assert_close(torch.cat(some), whole, rtol=4 * EPS, atol=8 * EPS)
    cuts = [0, n // 3, n // 2, n // 2, n]
    shards = [drawn(kind, 4, range(a, b), like=like) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(shards, 1), whole, rtol=4 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_at_a_time_do_not_change_the_numbers(kind, monkeypatch):
    wanted = [(3, range(1000)), (40, range(5, 130))]
    whole = [drawn(kind, *some) for some in wanted]
    monkeypatch.setattr(random_vectors, "_ON_CPU", 256)
    for some, expected in zip(wanted, whole, strict=True):
        torch.testing.assert_close(drawn(kind, *some), expected, rtol=4 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_numbers_are_those_of_tensors(monkeypatch, dtype):
    like = FLOAT64.to(dtype)
    for k, entries in ((5, range(2, 1003)), (1, range(2**34 - 3, 2**34 + 6))):
        on_tensors = drawn("normal", k, entries, like=like)
        monkeypatch.setattr(random_vectors, "_COMPILED", 0)
        compiled = drawn("normal", k, entries, like=like)
        monkeypatch.undo()
        assert torch.equal(compiled, on_tensors)


def test_large_draws_work_in_inference_mode():
    with torch.inference_mode():
        inside = drawn("normal", 2, range(LARGE))
    assert torch.equal(inside, drawn("normal", 2, range(LARGE)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1000, LARGE])
def test_threads_and_dtype_do_not_change_the_numbers(kind, n):
    before, results = torch.get_num_threads(), []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        results.append(drawn(kind, 4, range(n)))
        assert torch.get_num_threads() == n_threads
    torch.set_num_threads(before)
    assert torch.equal(*results)
    assert torch.equal(drawn(kind, 4, range(n), like=FLOAT64.float()), results[0].float())


@pytest.mark.parametrize("kind", KINDS)
def test_devices_draw_the_same_numbers(kind, device):
    on_device = drawn(kind, 3, range(1, 5000), like=FLOAT64.to(device))
    assert on_device.device == device
    here = drawn(kind, 3, range(1, 5000))
    torch.testing.assert_close(on_device.cpu(), here, rtol=4 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_and_a_generator_goes_on(kind):
    seed, again = drawn(kind, 2, range(200), 3), drawn(kind, 2, range(200), np.int64(3))
    generator = np.random.default_rng(3)
    first, second = (drawn(kind, 2, range(200), generator) for _ in range(2))
    assert torch.equal(seed, again)
    assert torch.equal(seed, first)
    assert not torch.equal(first, second)
    assert drawn(kind, 0, range(5)).shape == (0, 5)
    assert drawn(kind, 5, range(0)).shape == (5, 0)
    with pytest.raises(TypeError, match="rng is the string 'a'"):
        RandomVectors("a")


def test_the_mode_of_inference_is_no_obstacle():
    with torch.inference_mode():
        inside = drawn("normal", 4, range(LARGE))
    assert torch.equal(inside, drawn("normal", 4, range(LARGE)))


# Laws. Bounds of 4.5 standard errors are passed by chance once in 150,000 tests.


@pytest.mark.parametrize("n_vectors", [1, 2000])
def test_normal_entries_have_the_moments_and_tails_of_the_normal_law(n_vectors):
    z = drawn("normal", n_vectors, range(2**20 // n_vectors), 11).flatten().numpy()
    for power in range(1, 9):
        moment = 0 if power % 2 else math.prod(range(1, power, 2))
        scatter = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / len(z))
        assert abs(np.mean(z**power) - moment) < 4.5 * scatter
    for bound in (0.01, 1, 2, 3, 4, 4.5):
        share = 2 * norm.sf(bound)
        assert abs(np.mean(np.abs(z) > bound) - share) < 4.5 * math.sqrt(share / len(z))
    counts = np.histogram(norm.cdf(z), 1000, (0, 1))[0]
    assert np.square(counts - len(z) / 1000).sum() * 1000 / len(z) < chi2.isf(1e-5, 999)


def test_the_smallest_uniform_numbers_reach_beyond_six_deviations():
    words = torch.tensor([[[0, 1, WORD]], [[0, 0, 0]], [[0, 1, WORD]], [[0, 0, 0]]])
    z = random_vectors._box_muller(list(words)).reshape(3, 4)
    assert z[:2, 0].tolist() == pytest.approx([6.7637, 6.5993], abs=1e-4)
    assert 0 < z[2, 0] < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_entries_vectors_and_keys_are_independent(kind):
    n = 2**17
    z = drawn(kind, 5, range(n))
    others = torch.cat([drawn(kind, 1, range(n), seed) for seed in (1, 2, 2**32)])
    rows = torch.cat([z, others])
    gram = rows @ rows.T / n - torch.eye(8)
    diagonal = math.sqrt(2) if kind == "normal" else 0
    assert (gram.abs() <= 4.5 / math.sqrt(n) * torch.where(torch.eye(8) > 0, diagonal, 1)).all()
    squares = rows.square() - 1
    assert ((squares @ squares.T / n).fill_diagonal_(0).abs() < 4.5 * 2 / math.sqrt(n)).all()
    for lag in (1, 2, 3, 4, 5, 31, 32, 33, 64, 127, 128, 1024):
        assert abs(float((z[0, lag:] * z[0, :-lag]).mean())) < 4.5 / math.sqrt(n - lag)
        assert abs(float((z[0, lag:] * z[1, :-lag]).mean())) < 4.5 / math.sqrt(n - lag)
    assert (rows.mean(1).abs() < 4.5 / math.sqrt(n)).all()
    assert (rows.mean(0) * math.sqrt(8)).square().mean() == pytest.approx(
        1, abs=4.5 * (2 / n) ** 0.5
    )


def test_signs_are_fair_at_each_bit():
    means = drawn("signs", 2000, range(256)).mean(0)
    assert (means.abs() < 4.5 / math.sqrt(2000)).all()
    assert set(drawn("signs", 3, range(999)).unique().tolist()) == {-1.0, 1.0}
