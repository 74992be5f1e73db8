"""The store: full disks, processes that were killed while they changed it, reading one point."""

import operator
import os
from pathlib import Path

import measures
import numpy as np
import pytest
import xarray as xr
import zarr

import kpops
from kpops.studies import store as store_module
from kpops.studies.reading import open_store, read_point
from kpops.studies.store import PointStore, _resize


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.zarr"


def test_a_full_disk_stops_the_run_and_loses_nothing(path):
    study = kpops.Study(path, measures.large, rng=0, g=[1, 2, 3, 4])
    refused = pytest.raises(kpops.StudyError, match=r"cannot write into .*study.zarr': File too")
    with measures.files_of_at_most(10_000), refused:
        study.run(progress=False)
    assert study.missing == [2, 3] and study.status().running_since.isnull().all()
    study.run(progress=False)
    assert (study.open().x != 0).sum("x_dim_0").values.tolist() == [0, 0, 5000, 5000]


def test_a_status_that_cannot_be_written_stops_the_run(path, monkeypatch):
    study = kpops.Study(path, measures.large, rng=0, g=[1, 2])
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(
        kpops.StudyError, match=r"No space left on device\. The points that are done"
    ):
        study.run(progress=False)


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(kpops.StudyError, match=r"cannot write into .*file/study.zarr"):
        kpops.Study(tmp_path / "file" / "study.zarr", measures.large, g=[1])


class KilledError(BaseException):
    """Stands for a kill."""


AXES = {"g": [0.5, 2.0], "seed": range(3), "cell": ["GRU"]}


@pytest.mark.parametrize(
    ("moment", "seeds"),
    [("_make_template", 3), ("_extend", 3), ("_write_axes", 4), ("PointStore._set", 4)],
)
def test_a_kill_while_the_store_changes_leaves_it_whole(path, tmp_path, monkeypatch, moment, seeds):
    kpops.Study(path, measures.labelled, rng=0, **AXES)
    original = operator.attrgetter(moment)(store_module)

    def half(*arguments):  # the data is written, what counts is not
        if moment != "PointStore._set":
            original(*arguments)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(f"kpops.studies.store.{moment}", half)
        with pytest.raises(KilledError):
            kpops.Study(path, measures.labelled, **{**AXES, "seed": range(seeds)}).run(
                progress=False
            )
    study = kpops.Study(path, measures.labelled, **AXES)
    study.run(progress=False)
    other = kpops.Study(tmp_path / "b", measures.labelled, rng=0, **AXES)
    other.run(progress=False)
    found, wanted = (s.open().load().drop_attrs() for s in (study, other))
    assert found.identical(wanted)
    plain = xr.open_zarr(path, consolidated=False, chunks=None)
    assert np.array_equal(plain.x, wanted.x, equal_nan=True)
    assert plain.kind.values.tolist() == wanted.kind.values.tolist()


def test_variables_of_a_template_that_was_never_set_are_removed(path):
    study = kpops.Study(path, measures.large, rng=0, g=[1, 2])
    zarr.open_group(path, mode="r+").create_array("left", shape=(2, 3), dtype=float)
    study.run(progress=False)
    assert sorted(zarr.open_group(path, mode="r").array_keys()) == ["g", "status", "x"]


def test_what_a_user_adds_to_a_store_stays(path):
    study = kpops.Study(path, measures.large, rng=0, g=[1, 2])
    study.run(progress=False)
    zarr.open_group(path, mode="r+").create_array("own", data=np.ones(2), dimension_names=["g"])
    kpops.Study(path, measures.large, g=[1, 2, 5]).run(progress=False)
    assert zarr.open_group(path, mode="r")["own"][:2].tolist() == [1, 1]


def test_arrays_are_mended_to_the_sizes_that_count(path):
    study = kpops.Study(path, measures.large, rng=0, g=[1, 2])
    study.run(progress=False)
    before = study.open().load()
    _resize(zarr.open_group(path, mode="r+"), {"g": 7, "x_dim_0": 6000})
    assert study.open().identical(before)
    grown = kpops.Study(path, measures.large, g=[1, 2, 5])
    assert zarr.open_group(path, mode="r")["x"].shape == (3, 5000)
    assert grown.open().isel(g=[0, 1]).identical(before)


def test_two_processes_that_make_a_store_agree(path):
    stores = [PointStore(path), PointStore(path)]
    made = [store.create({"g": [1, 2]}, {"who": i}) for i, store in enumerate(stores)]
    assert made == [True, False] and stores[1].configuration == {"who": 0}
    assert os.listdir(path.parent) == ["study.zarr"]


def test_one_point_is_read_as_it_was_written(path):
    study = kpops.Study(path, measures.labelled, rng=0, g=[1.0], seed=range(3), cell=["GRU", "RNN"])
    store = PointStore(path)
    study.run_one(2)
    assert read_point(store, (0, 0, 0)) is None
    study.run_one(4)
    found = read_point(store, (0, 1, 0))
    assert found.sizes == {"mode": 3} and found["count"] == 1 and found["name"] == "GRU 1.0"
    assert sorted(found.coords) == ["kind", "mode"]
    assert np.array_equal(found.x, study.open().x[0, 1, 0, :3])


def test_a_store_grows_along_its_axis_by_whoever_holds_it(path):
    store = PointStore(path)
    store.create({"step": [0]}, {})
    for place, step in enumerate([0, 100, 10]):
        store.grow({"step": [step]})
        result = xr.Dataset({"loss": 1.0 / (1 + step)})
        store.finish((place,), result, seconds=0.0, point={"step": step})
    found = open_store(store, [[0, 2, 1]])
    assert found.step.values.tolist() == [0, 10, 100]
    assert np.array_equal(found.loss, 1 / (1 + found.step))


def test_scalar_coordinates_are_kept_for_every_point(path):
    def measure(g):
        return xr.DataArray(g, name="x", coords={"twice": 2 * g, "g": g})

    study = kpops.Study(path, measure, g=[1.0, 3.0])
    study.run(progress=False)
    assert study.open().x.twice.values.tolist() == [2, 6]
