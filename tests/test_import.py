"""Importing kpops is light and changes nothing; rooms import only from the left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kpops

ROOMS = [
    {"labels", "arrays", "scalars", "kinds", "work"},
    {"models"},
    {"engines"},
    {"operators"},
    {"snapshot", "read_inputs", "derivatives", "checks", "linearization"},
    {"spectral", "dynamics", "html"},
    {"learning"},
    {"tasks", "training", "plot", "testing"},
]
# Methods that only hand on to a room at the right, which they import when they are called.
HANDED_ON = {("labels.py", "html"), ("operators/base.py", "spectral")}


def test_import_loads_no_heavy_library():
    code = (
        "import torch, xarray, sys; before = set(sys.modules); import kpops;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new & {'numba', 'matplotlib', 'zarr', 'cupy', 'h5py', 'h5netcdf'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_testing_is_there_after_import_and_loaded_when_it_is_asked_for():
    code = (
        "import sys, kpops; assert 'kpops.testing' not in sys.modules; "
        "print(kpops.testing.check_operator.__module__)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "kpops.testing\n"
    with pytest.raises(AttributeError, match="module 'kpops' has no attribute 'tests'"):
        kpops.tests  # noqa: B018


def test_import_changes_no_global_state():
    code = """
import random, warnings, numpy, torch, xarray, os, threadpoolctl
def state():
    return (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), numpy.geterr(), numpy.get_printoptions(),
            list(warnings.filters), dict(os.environ), dict(xarray.get_options()))
import scipy.sparse.linalg, tqdm.auto
before = state()
import kpops
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rooms_import_only_from_rooms_to_their_left():
    package = Path(kpops.__file__).parent
    rank = {room: i for i, group in enumerate(ROOMS) for room in group}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue
        here = rank[parts[0]]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kpops"):
                names = node.module.split(".")[1:] or [alias.name for alias in node.names]
                for room in names[:1] if node.module != "kpops" else names:
                    late = node.col_offset and (str(path.relative_to(package)), room) in HANDED_ON
                    assert late or rank[room] <= here, f"{path} imports {room}"


def test_every_public_name_is_documented():
    for name in kpops.__all__:
        assert getattr(kpops, name).__doc__, name
