"""What processes must have in common, and how an error or the end of one is an error of all."""

import os
import signal
import time
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import xarray as xr
from pool import Pool, error_of
from torch import nn

import kpops
from kpops.distributed.agreement import rounding
from kpops.engines.memory import free_bytes

# What runs in every process.


def gru(seed=0, hidden=4):
    torch.manual_seed(seed)
    return nn.GRU(2, hidden, batch_first=True).double()


def linearize(model=None, x=None, **options):
    model = gru() if model is None else model
    x = torch.ones(3, 5, 2, dtype=torch.float64) if x is None else x
    return kpops.linearize(model, x, **{"process_group": dist.group.WORLD, **options})


def labelled(first):
    return xr.DataArray(
        np.ones((3, 5, 2)), {"time": first + np.arange(5)}, ("trial", "time", "feature")
    )


def told(one, other):
    """Errors of `one` on the first processes and `other` on the last."""
    last = dist.get_rank() == dist.get_world_size() - 1
    return error_of(other if last else one)


def with_options(one, other):
    return told(lambda: linearize(**one), lambda: linearize(**other))


def other_weights():
    return told(linearize, lambda: linearize(gru(seed=1)))


def other_dtype():
    x = torch.ones(3, 5, 2)
    return told(linearize, lambda: linearize(gru().float(), x))


def other_steps():
    return told(linearize, lambda: linearize(x=torch.ones(3, 6, 2, dtype=torch.float64)))


def other_units():
    return told(linearize, lambda: linearize(gru(hidden=5)))


def other_times():
    return told(lambda: linearize(x=labelled(0)), lambda: linearize(x=labelled(1)))


def other_labels():
    with_angle = labelled(0).assign_coords(angle=("trial", np.ones(3)))
    return told(lambda: linearize(x=labelled(0)), lambda: linearize(x=with_angle))


def other_readout():
    torch.manual_seed(0)
    readout = nn.Linear(4, 2).double()
    return told(lambda: linearize(readout=readout), linearize)


def no_trials():
    return told(linearize, lambda: linearize(x=torch.ones(0, 5, 2, dtype=torch.float64)))


def not_finite():
    x = torch.ones(3, 5, 2, dtype=torch.float64)
    x[1, 2] = torch.inf
    return told(linearize, lambda: linearize(x=x))


def both_wrong():
    return told(lambda: linearize(measure="max"), lambda: linearize(measure="min"))


def out_of_memory():
    """The last process cannot make its engine, when the others have agreed on everything else."""
    if dist.get_rank() < dist.get_world_size() - 1:
        return error_of(linearize)
    with mock.patch("kpops.linearization.choose_engine", side_effect=MemoryError("too large")):
        return error_of(linearize)


def no_memory_for_the_matrix():
    """The last process alone has no memory for a matrix, which the others would make."""
    lin, last = linearize(), dist.get_rank() == dist.get_world_size() - 1
    free = {"return_value": 100} if last else {"side_effect": free_bytes}
    with mock.patch("kpops.engines.memory.free_bytes", **free):
        errors = [error_of(op.to_dense) for op in (lin.flow, lin.P, lin.J)]
    return errors, still_in_step()


def other_processor():
    """The last process rounds differently."""
    last = dist.get_rank() == dist.get_world_size() - 1
    other = {"return_value": "other"} if last else {"side_effect": rounding}
    with mock.patch("kpops.distributed.agreement.rounding", **other):
        return error_of(linearize)


def wrong_groups():
    alone = dist.new_group([0])
    wrong = {"type": "gloo", "outside": alone}
    found = {name: error_of(lambda g=g: linearize(process_group=g)) for name, g in wrong.items()}
    with mock.patch("torch.distributed.get_backend", return_value="nccl"):
        found["backend"] = error_of(linearize)
    return found


def still_in_step():
    """A product after all the errors."""
    lin = linearize()
    return float((lin.K @ torch.ones(lin.space.shape, dtype=torch.float64)).norm())


def ended(how):
    """The last process ends in the midst of a product, where the others wait for its sum."""
    lin = linearize()
    q = torch.ones(lin.space.shape, dtype=torch.float64)
    lin.K @ q
    if dist.get_rank() == dist.get_world_size() - 1:
        with mock.patch.object(torch.distributed, "all_reduce", side_effect=lambda *_, **__: how()):
            lin.K @ q
    return error_of(lambda: lin.K @ q), error_of(linearize)


def killed():
    return ended(lambda: os.kill(os.getpid(), signal.SIGKILL))


def left():
    return ended(lambda: os._exit(3))


def busy():
    """The last process does something else for longer than the timeout of the group."""
    lin = linearize()
    if dist.get_rank() == 1:
        time.sleep(4)
        return error_of(lambda: None)
    return error_of(lambda: lin.J.H @ torch.ones(lin.space.shape, dtype=torch.float64))


# The tests.


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (other_weights, "process 2 has weights with the hash "),
        (other_dtype, "process 2 has dtype torch.float32, process 0 torch.float64: "),
        (other_steps, "process 2 has steps 6, process 0 5: "),
        (other_units, "process 2 has units 5, process 0 4: "),
        (other_times, "process 2 has labels of time with the hash "),
        (other_labels, "process 2 has labels ['angle', 'time'], process 0 ['time']: "),
        (other_readout, "process 2 has model GRU, process 0 GRU with the readout Linear: "),
    ],
)
def test_what_differs_is_named_on_every_process(run, use, words):
    for kind, text in run(3, use):
        assert kind == "DistributedError", text
        assert text.startswith(words), text
        assert text.endswith("pass the same on every process, in which only the trials may differ")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({}, {"measure": "mean"}, "process 1 has measure mean, process 0 sum: "),
        ({}, {"engine": "jacobian"}, "process 1 has engine jacobian, process 0 gated_numba: "),
        (
            {"parameters": ["weight_hh_l0"]},
            {"parameters": ["weight_ih_l0"]},
            "process 1 has learning parameters ('weight_ih_l0',), process 0 ('weight_hh_l0',): ",
        ),
        (
            {"dtype": torch.float32},
            {"dtype": torch.float32, "precision": "tf32"},
            "process 1 has precision tf32, process 0 highest: ",
        ),
    ],
)
def test_options_that_differ_are_named_on_every_process(run, one, other, words):
    for kind, text in run(2, with_options, one, other):
        assert kind == "DistributedError"
        assert text.startswith(words), text


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (no_trials, "ValueError", "inputs"),
        (not_finite, "ValueError", "inputs"),
        (out_of_memory, "MemoryError", "too large"),
    ],
)
def test_an_error_of_one_is_told_by_all(run, use, error, words):
    *others, (kind, text) = run(3, use)
    assert kind == error and words in text
    assert others == [("DistributedError", f"process 2 failed: {error}: {text}")] * 2


def test_a_matrix_that_one_has_no_memory_for_is_refused_by_all(run):
    answers = run(3, no_memory_for_the_matrix)
    assert len({norm for _, norm in answers}) == 1
    for kind, text in [error for errors, _ in answers for error in errors]:
        assert kind == "MemoryError" and "9.537e-05 MiB are free" in text


def test_processes_on_different_processors_are_refused(run):
    for kind, text in run(2, other_processor):
        assert kind == "DistributedError"
        assert "the processes round differently, as different processors or numbers of" in text


def test_each_tells_its_own_error(run):
    one, other = run(2, both_wrong)
    assert one[0] == other[0] == "ValueError"
    assert "measure='max'" in one[1] and "measure='min'" in other[1]


def test_groups_that_do_not_fit_are_refused(run):
    inside, outside = run(2, wrong_groups)
    for found in (inside, outside):
        assert found["type"][0] == "TypeError"
        assert "the process group is the string 'gloo': pass torch" in found["type"][1]
        assert found["backend"][0] == "ValueError"
        assert "the model is on cpu, and process_group communicates by nccl" in found["backend"][1]
    assert inside["outside"] == ("no error", "")
    assert outside["outside"] == (
        "ValueError",
        "the process group does not include this process: leave it out here",
    )


def test_after_all_the_errors_the_processes_are_in_step(run):
    assert len(set(run(2, still_in_step))) == 1
    assert len(set(run(3, still_in_step))) == 1


@pytest.mark.parametrize(
    ("use", "code"), [(killed, -signal.SIGKILL), pytest.param(left, 3, marks=pytest.mark.slow)]
)
def test_the_others_hear_of_a_process_that_ends(use, code):
    with Pool(3) as pool:
        *others, last = pool.answers(use)
    assert last == ("ended", code)
    for kind, answer in others:
        assert kind == "result", answer
        (in_product, of_product), (at_meeting, of_meeting) = answer
        assert in_product == at_meeting == "DistributedError"
        assert "of 3 has lost another one, which ended or did not answer" in of_product
        assert "could not meet, since one has ended or did not answer" in of_meeting


def test_no_process_waits_longer_than_the_timeout_of_the_group():
    with Pool(2, timeout=2) as pool:
        (_, (kind, text)), _ = pool.answers(busy)
    assert kind == "DistributedError"
    assert "process 0 of 2 has lost another one" in text
