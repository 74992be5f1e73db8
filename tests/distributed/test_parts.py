"""The object that adds up over processes."""

import math

import numpy as np
import torch
import torch.distributed as dist
from pool import error_of
from test_disagreements import linearize

from kpops.distributed import WHOLE


def parts():
    return linearize().space.parts


def sums():
    rank, here = dist.get_rank(), parts()
    one = torch.full((2, 3), float(rank + 1))
    two = torch.arange(2.0) * 10**rank
    a, b = here.sum(one, two)
    assert torch.equal(one, torch.full((2, 3), float(rank + 1)))  # what is given stays
    calls = here.traffic.calls, here.traffic.n_bytes
    return a.tolist(), b.tolist(), here.sum(torch.tensor(2.0)).item(), calls


def extremes():
    rank, here = dist.get_rank(), parts()
    values = [float(rank), -float(rank), math.inf if rank == 1 else 0.0, -math.inf]
    with_nan = math.nan if rank == 1 else math.inf
    found = [(here.largest(v), here.least(v)) for v in values]
    return found, math.isnan(here.largest(with_nan)), math.isnan(here.least(with_nan))


def places():
    here = parts()
    return here.counts, here.rank, here.offset, here.of_here, here.many


def after_the_end():
    lin = linearize(process_group=dist.new_group([0, 1]))
    dist.destroy_process_group(lin.space.parts.group)
    return error_of(lambda: lin.K @ torch.ones(lin.space.shape, dtype=torch.float64))


def test_sums_of_several_tensors_are_one_message(run):
    for a, b, scalar, calls in run(3, sums):
        assert np.array_equal(a, np.full((2, 3), 6.0))
        assert b == [0.0, 111.0]
        assert scalar == 6.0
        assert calls == (1, 8 * 4)


def test_extremes_know_infinities_and_nan(run):
    for found, *nan in run(3, extremes):
        assert found == [(2.0, 0.0), (0.0, -2.0), (math.inf, 0.0), (-math.inf, -math.inf)]
        assert nan == [True, True]


def test_every_process_knows_its_place(run):
    for rank, found in enumerate(run(3, places)):
        assert found == ((3, 3, 3), rank, 3 * rank, 3.0, True)


def test_one_process_adds_up_nothing():
    x = torch.ones(2)
    assert WHOLE.sum(x) is x
    assert WHOLE.sum(x, x) == (x, x)
    assert (WHOLE.largest(2.0), WHOLE.least(2.0)) == (2.0, 2.0)
    assert (WHOLE.counts, WHOLE.rank, WHOLE.offset, WHOLE.of_here, WHOLE.many) == (
        (),
        0,
        0,
        1,
        False,
    )


def test_an_operator_whose_group_is_gone_says_so(run):
    for kind, text in run(2, after_the_end):
        assert kind == "DistributedError"
        assert "has been destroyed: linearise again" in text
