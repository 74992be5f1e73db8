"""Devices: one command checks all of it where a GPU is present, and skips elsewhere."""

import signal

import pytest
import torch

_without_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c():
    """Ctrl-C raises, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _without_cuda])])
def device(request):
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")
