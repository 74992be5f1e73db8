"""The script of the page "Many processes" runs, and its result does not depend on their number."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import kpops

ROOT = str(Path(kpops.__file__).parents[1])
PAGE = (Path(__file__).parents[2] / "docs" / "many_processes.rst").read_text()


@pytest.mark.slow
def test_the_script_runs_on_any_number_of_processes(tmp_path):
    script = textwrap.dedent(re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", PAGE)[1])
    modes = []
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "spread.py").write_text(script)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node", str(n), "spread.py"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert ("of 40" in done.stdout) == (n > 1)
        modes.append(xr.open_zarr(folder / "modes.zarr").load())
    one, two = modes
    assert one.eigenfunction.sizes["trial"] == 40
    xr.testing.assert_identical(one.trial, two.trial)
    np.testing.assert_allclose(two.eigenvalue, one.eigenvalue, rtol=1e-5)  # in float32
