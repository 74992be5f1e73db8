"""Operators over two processes keep the public contract; ``contract.py`` has all models."""

import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME, serving
from contract import check_algebra, check_model
from pool import error_of
from test_disagreements import linearize

from kpops.testing import check_linearization, check_operator


@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "lstm_two_layers", "shared_norm_cell"])
def test_models_keep_the_contract(run, name):
    one, other = run(2, check_model, name, serving(BY_NAME[name].model())[0])
    assert one == other < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_readouts_reductions_and_algebra_keep_the_contract(run, dtype):
    one, other = run(2, check_algebra, dtype)
    assert one == other < 200


def broken():
    """What the contract says of a J* that adds up no processes, and of a K too small on one."""
    lin = linearize()
    lin.J.pools_trials = False
    found = [error_of(check_operator, lin.J)]
    lin = linearize()
    if dist.get_rank() == 1:
        lin.K.scale = 0.5
    found.append(error_of(check_linearization, lin))
    return found


def test_contract_finds_what_is_broken_between_processes(run):
    for in_J, in_K in run(2, broken):
        assert in_J[0] == in_K[0] == "AssertionError"
        assert "breaks ['adjoint'" in in_J[1], in_J
        assert "breaks [" in in_K[1], in_K
