"""The committed exponents: the registry they belong to, the literature, laws, and a new run."""

import json
import os

import numpy as np
import pytest
import xarray as xr

import kpops
from kpops.systems.measuring import settings_hash
from kpops.systems.table import FILE, collect, deviations, lines, take

TABLE = kpops.systems.exponents()
NAMES = kpops.systems.names()


def test_the_table_is_that_of_the_registry():
    assert TABLE.system.values.tolist() == NAMES
    hashes = [settings_hash(kpops.systems.load(name)) for name in NAMES]
    assert TABLE.settings_hash.values.tolist() == hashes
    sizes = [len(kpops.systems.load(name).start) for name in NAMES]
    assert TABLE.exponent.notnull().sum("mode").values.tolist() == sizes


def test_the_file_is_small_and_says_how_it_was_made():
    assert os.path.getsize(FILE) < 50_000
    provenance = json.loads(TABLE.attrs["provenance"])
    assert {"versions", "seed", "dtype"} == set(provenance)
    assert (TABLE.n_trials >= 20).all() and (TABLE.transient > 0).all()
    assert all(v.attrs["long_name"] for v in TABLE.variables.values())
    with xr.open_dataset(FILE) as plain:
        assert plain.sizes == TABLE.sizes


def test_the_table_is_written_to_zarr_as_text(tmp_path):
    TABLE.to_zarr(tmp_path / "table.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "table.zarr", consolidated=False) as read:
        xr.testing.assert_identical(read.load(), TABLE)


def test_sums_are_mean_divergences_to_one_in_a_million():
    total = TABLE.exponent.sum("mode")
    assert float(abs(total - TABLE.mean_log_det).max()) < 1e-9
    assert float(abs(total - TABLE.mean_divergence).max()) < 1e-6
    np.testing.assert_allclose(TABLE.sum_error, total - TABLE.mean_log_det, atol=1e-12)


def test_exponents_are_within_three_standard_errors_of_the_literature():
    far = deviations(TABLE).max("mode").dropna("system")
    assert far.sizes["system"] >= 25
    assert float(far.max()) < 3, far.where(far >= 3, drop=True).to_series().to_string()


def test_every_system_is_chaotic():
    first = TABLE.exponent.isel(mode=0)
    assert (first > 5 * TABLE.stderr.isel(mode=0)).all()


def test_every_flow_has_an_exponent_zero():
    # In Hamiltonian flows tangents to the energy surface shear: these two come down as log(T) / T.
    slow = {"DoublePendulum", "HenonHeiles"}
    flows = TABLE.sel(system=[n for n in kpops.systems.names("flow") if n not in slow])
    distance = (abs(flows.exponent) / flows.stderr).min("mode")
    assert float(distance.max()) < 4, distance.where(distance >= 4, drop=True).to_series()
    assert (abs(TABLE.exponent.sel(system=sorted(slow), mode=[2, 3])) < 0.05).all()


def test_conservative_systems_have_exponents_in_pairs():
    for name in ("DoublePendulum", "HenonHeiles", "NoseHoover", "SprottA", "Standard", "Cat"):
        row = TABLE.sel(system=name).dropna("mode", subset=["exponent"])
        sums = row.exponent.values + row.exponent.values[::-1]
        assert (abs(sums) <= 4 * np.hypot(row.stderr, row.stderr[::-1].values) + 1e-6).all()


def test_dimensions_are_those_of_the_exponents():
    expected = kpops.kaplan_yorke_dimension(TABLE.sel(system="Lorenz").exponent.dropna("mode"))
    assert float(TABLE.kaplan_yorke_dimension.sel(system="Lorenz")) == pytest.approx(
        float(expected), abs=1e-12
    )


@pytest.mark.parametrize("name", ["Lorenz", "Henon"])
def test_a_new_run_agrees_with_the_table(name):
    model = kpops.systems.load(name)
    new = kpops.systems.measure(model, n_trials=40, n_steps=1500, transient=1500, rng=7)
    old = TABLE.sel(system=name).dropna("mode", subset=["exponent"])
    combined = np.hypot(new.stderr.values, old.stderr.values)
    assert (abs(new.exponent.values - old.exponent.values) < 4 * combined).all()


def test_rows_are_kept_as_they_were_and_left_out_where_settings_changed():
    row = take(TABLE, "Henon")
    again = collect([row])
    xr.testing.assert_identical(again, TABLE.sel(system=["Henon"], mode=[1, 2]))
    changed = TABLE.copy(deep=True)
    changed.settings_hash[:] = "other"
    assert take(changed, "Henon") is None
    assert take(TABLE.sel(system=["Lorenz"]), "Henon") is None


def test_the_printed_table_has_a_line_for_each_system():
    text = lines(TABLE)
    assert len(text) == 1 + len(NAMES) and all(len(t) <= 140 for t in text)
    assert [line.split()[0] for line in text[1:]] == NAMES
