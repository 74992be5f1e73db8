"""The scripts of the page "Studies" run as a reader would run them."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import xarray as xr

import kpops

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.rst").read_text()
SCRIPT = re.compile(r"``(\w+\.(?:py|sh))``:\n\n\.\. code-block:: \w+\n\n((?:   .*\n|\n)+)")
SCRIPTS = {name: textwrap.dedent(text).strip() + "\n" for name, text in SCRIPT.findall(PAGE)}
N = 24


@pytest.fixture
def shell(tmp_path):
    """Runs a command in a folder with the scripts of the page, and returns what it prints."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": found, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(command, **more):
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**variables, **more},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def shorten(tmp_path, seeds):
    """Fewer seeds, for executors that start a process for each point."""
    path = tmp_path / "collapse.py"
    path.write_text(path.read_text().replace("range(4)", f"range({seeds})"))


def test_every_script_of_the_page_is_run_here():
    executors = ["on_a_pool.py", "on_dask.py", "on_slurm.py"]
    assert list(SCRIPTS) == ["collapse.py", *executors, "array.sh", "on_an_object_store.py"]
    assert len(SCRIPTS) == len(re.findall(r"code-block:: (?:python|bash)", PAGE))


@pytest.mark.slow
def test_in_one_process_and_as_a_job_array(shell, tmp_path):
    make, _ = re.findall(r"\$ (python -[cm] .*)", PAGE)
    assert f"0 of {N} points done" in shell(make)
    shell("bash array.sh", SLURM_ARRAY_TASK_ID="17", SLURM_CPUS_PER_TASK="1")
    assert kpops.Study(tmp_path / "runs" / "collapse.zarr").missing == [
        i for i in range(N) if i != 17
    ]
    assert "GRU" in shell("python collapse.py")  # computes the others
    store = tmp_path / "runs" / "collapse.zarr"
    assert kpops.Study(store).missing == []
    assert "missing: none" in shell("python -m kpops.studies runs/collapse.zarr")
    tree = PAGE.split("collapse.zarr/\n")[1].partition("\n\n")[0]
    names = re.findall(r"^       ([\w.]\S*)", tree, re.MULTILINE)
    assert "zarr.json" in names and not [name for name in names if not (store / name).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["on_a_pool.py", "on_dask.py", "on_slurm.py"])
def test_on_executors(shell, tmp_path, name):
    for library in re.findall(r"(?:from|import) (dask|submitit)", SCRIPTS[name]):
        pytest.importorskip(library)
    if name == "on_slurm.py":
        shorten(tmp_path, 1)
    here = tmp_path / "here.zarr"
    shell(f"python {name}")
    study = kpops.Study(tmp_path / "runs" / "collapse.zarr")
    assert study.missing == []
    shell(f"mv runs {here} && python collapse.py")
    again = kpops.Study(tmp_path / "runs" / "collapse.zarr").open()
    moved = kpops.Study(here / "collapse.zarr").open()
    rtol = 1e-4 if "threads=2" in SCRIPTS[name] else 0  # they sum in another order
    xr.testing.assert_allclose(moved, again, rtol=rtol, atol=0)


def test_on_an_object_store(shell, tmp_path):
    pytest.importorskip("icechunk")
    path = tmp_path / "on_an_object_store.py"
    s3, here = r"icechunk\.s3_storage\(.*\)", "icechunk.in_memory_storage()"
    assert re.search(s3, SCRIPTS[path.name])
    path.write_text(re.sub(s3, here, SCRIPTS[path.name]))
    assert "4 of 4 points done" in shell(f"python {path.name}")
