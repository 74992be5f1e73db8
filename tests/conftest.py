"""Devices, and the check of shapes where the environment sets KPOPS_CHECK_SHAPES."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook


def _checked_modules():
    """Modules whose annotations are checked at every call; Numba compiles the others."""
    package = Path(find_spec("kpops").origin).parent
    for room in ("linalg", "engines", "operators"):
        for file in sorted((package / room).rglob("*.py")):
            compiled = file.stem in ("blas", "philox") or file.stem.endswith("_kernels")
            if file.stem != "__init__" and not compiled:
                yield ".".join(["kpops", *file.relative_to(package).with_suffix("").parts])


if os.environ.get("KPOPS_CHECK_SHAPES"):
    # A float parameter takes an int, too.
    install_import_hook(
        list(_checked_modules()),
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )

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
