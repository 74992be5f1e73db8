"""Devices: one command checks all of it where a GPU is present, and skips elsewhere."""

import pytest
import torch

_without_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _without_cuda])])
def device(request):
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")
