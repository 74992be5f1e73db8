"""Rows of the page: from a measurement to a file, a verdict and a report."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from reproduction import __main__ as command_line
from reproduction import page, results
from reproduction.registry import ROWS
from reproduction.row import run
from reproduction.rows import state_change
from reproduction.verdicts import NOT, REPRODUCED, Check

# PyTorch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def test_predicted_state_change_is_right_to_first_order():
    found = state_change.measure(0, cells=["gru"], units=5, learning_rates=[1e-4, 1e-3], steps=2)
    first = found.relative_error.isel(cell=0, step=0).values
    assert first[1] < 1e-3
    assert first[1] / first[0] == pytest.approx(10, rel=1e-2)
    assert found.loss.dtype == found.relative_error.dtype == np.float64


@pytest.mark.parametrize(("power", "verdict"), [(1, REPRODUCED), (2, "reproduced in part")])
def test_slope_of_the_error_in_the_learning_rate(power, verdict):
    rates = np.array([0.001, 0.01, 0.1])
    errors = np.broadcast_to(0.1 * rates[:, None] ** power, (3, 1, 3, 2))
    coords = {"cell": ["gru"], "learning_rate": rates}
    dims = ("seed", "cell", "learning_rate", "step")
    found = xr.Dataset({"relative_error": (dims, errors)}, coords)
    assert ROWS["state_change"].verdict(found) == verdict


def test_a_row_is_measured_over_seeds_with_its_provenance(tmp_path):
    row = ROWS["state_change"]
    found = run(row, quick=True, folder=tmp_path)
    assert found.sizes["seed"] == 2
    one = row.measure(1, **{**row.settings, **row.quick})
    np.testing.assert_array_equal(found.relative_error.isel(seed=1), one.relative_error)
    assert json.loads(found.attrs["settings"])["units"] == 16
    assert len(found.attrs["script_sha256"]) == 64
    xr.testing.assert_identical(results.read(tmp_path / "state_change.nc"), found)
    assert not list(tmp_path.glob("*.zarr"))


def test_a_row_that_fails_says_why_and_goes_on_where_it_was(tmp_path):
    row = dataclasses.replace(ROWS["state_change"], quick={"units": 5, "steps": -1})
    with pytest.warns(kpops.FailedPointsWarning), pytest.raises(RuntimeError, match="AxisError"):
        run(row, quick=True, folder=tmp_path)
    assert list(tmp_path.glob("*.zarr")) and not list(tmp_path.glob("*.nc"))


def test_rows_of_one_file_are_measured_once(monkeypatch, capsys):
    measured = []

    def noted(row, *, quick, again, executor, folder):
        measured.append((row.name, quick, folder == results.FOLDER))
        return row.read()

    monkeypatch.setattr(command_line, "run", noted)
    monkeypatch.setenv("KPOPS_CACHE", "kept")
    rows = ["collapse_memory_pro", "eigenfunctions", "state_change"]
    command_line.main(["measure", "--only", *rows])
    assert measured == [("collapse_memory_pro", False, True), ("state_change", False, True)]
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in rows)
    assert os.environ["KPOPS_CACHE"] == "kept"
    command_line.main(["measure", "--only", "state_change", "--quick"])
    assert measured[-1] == ("state_change", True, False)
    assert not Path(os.environ["KPOPS_CACHE"]).exists()  # the temporary one
    command_line.main(["measure"])  # all have a file
    assert len(measured) == 3


def test_rows_have_names_of_their_own_and_plain_settings():
    for name, row in ROWS.items():
        assert row.name == name
        assert json.loads(json.dumps(dict(row.settings))) == row.settings
        assert not row.of or row.measure is ROWS[row.of].measure
        assert row.seeds >= 5 or not row.path.exists() or row.notes(row.read())


def test_every_row_has_a_section_of_the_page():
    script = (Path(__file__).parents[2] / "examples" / "claims.py").read_text()
    shown = [f'fig = page.show(ROWS["{name}"])' for name in ROWS]
    assert [line for line in script.splitlines() if "page.show(" in line] == shown


@pytest.mark.parametrize("name", ROWS)
def test_committed_files_are_those_of_their_rows(name):
    row = ROWS[name]
    found = row.read()
    assert row.path.stat().st_size < 100 * 1024
    assert json.loads(found.attrs["settings"]) == row.settings
    assert json.loads(found.attrs["seeds"]) == list(range(row.seeds)) == found.seed.values.tolist()
    for variable, values in found.variables.items():
        if variable != "seed":
            assert {"long_name", "units"} <= values.attrs.keys(), variable


def test_no_file_is_without_a_row():
    assert {path.name for path in results.FOLDER.glob("*.nc")} <= {r.file for r in ROWS.values()}


@pytest.fixture
def row(tmp_path, monkeypatch):
    """A row with a file, whose one criterion is that x is positive."""

    def judge(found):
        return [Check("x is positive", "x", int((found.x > 0).sum()), found.x.size)]

    row = dataclasses.replace(ROWS["state_change"], name="made_up", judge=judge, draw=None)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    attrs = {"seeds": "[0]", "versions": '{"torch": "2"}', "script": "made.py", "settings": "{}"}
    found = xr.Dataset({"x": ("seed", [1.0, 2.0])}, {"seed": [0, 1]}, attrs)
    return row, found


def test_the_page_says_the_verdict_of_the_file(row, capsys):
    row, found = row
    assert "not measured" in page.table([row])
    assert page.show(row) is None
    results.write(found, row.path)
    assert REPRODUCED in page.table([row])
    results.write(-found.assign_attrs(found.attrs), row.path)
    capsys.readouterr()
    results.write((-found).assign_attrs(found.attrs), row.path)
    assert NOT in page.table([row])
    page.show(row)
    printed = capsys.readouterr().out
    assert f"verdict: {NOT}" in printed and "0 of 2  x is positive: x" in printed
    assert max(map(len, printed.splitlines())) <= 96


def test_the_page_needs_no_torch():
    code = "import sys, reproduction.registry, reproduction.page; sys.exit('torch' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code],
                      {**os.environ, "PYTHONPATH": root}) == 0  # fmt: skip
