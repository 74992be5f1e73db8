"""Devices, and what the environment sets: KPOPS_CHECK_SHAPES, KPOPS_SIMULATED_DEVICE."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import simulated
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

SIMULATED = bool(os.environ.get("KPOPS_SIMULATED_DEVICE"))
if SIMULATED:
    simulated.install()

ACCELERATOR = torch.device(simulated.NAME if SIMULATED else "cuda", 0)
_without_one = pytest.mark.skipif(
    not (SIMULATED or torch.cuda.is_available()), reason="no CUDA device"
)


# A folder cannot be skipped.
collect_ignore = [] if find_spec("hypothesis") else ["fuzz"]


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c():
    """Ctrl-C raises, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(
    params=[
        torch.device("cpu"),
        pytest.param(ACCELERATOR, marks=[pytest.mark.gpu, _without_one]),
    ],
    ids=lambda device: device.type,
)
def device(request):
    return request.param
