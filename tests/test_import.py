"""Importing kpops is light and changes nothing."""

import subprocess
import sys

import pytest

import kpops


def test_import_loads_no_heavy_library():
    code = (
        "import torch, xarray, sys; before = set(sys.modules); import kpops;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "late = {'numba', 'matplotlib', 'zarr', 'cupy', 'h5py', 'h5netcdf', 'icechunk', 'pydmd'};"
        "print(sorted(new & late))"
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


def test_every_public_name_is_documented():
    for name in kpops.__all__:
        assert getattr(kpops, name).__doc__, name
