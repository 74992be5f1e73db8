"""Studies in this process: results, resuming, growing, errors."""

import contextlib
import enum
import functools
import json
import pickle
import re
import subprocess
import sys
from datetime import UTC, datetime

import measures
import numpy as np
import pytest
import torch
import xarray as xr

import kpops
from kpops.studies.axes import generator_of
from kpops.studies.store import PointStore

AXES = {"g": [0.5, 1.0], "seed": range(3), "cell": ["GRU", "RNN"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.zarr"


def made(path, measure=measures.drawn, **options):
    options = {"rng": 0, "g": [1.0, 2.0], "seed": range(3), **options}
    return kpops.Study(path, measure, **options)


def ran(*args, **options):
    study = made(*args, **options)
    study.run(progress=False)
    return study


def test_results_are_those_of_the_measure_at_every_point(path):
    study = kpops.Study(path, measures.labelled, rng=3, **AXES)
    study.run(progress=False)
    found = study.open()
    assert found.x.dims == ("g", "seed", "cell", "mode") and found.sizes["mode"] == 4
    for index in range(len(study)):
        point = study.point(index)
        one, n = found.sel(point), 2 + point["seed"]
        assert one.done and one.mode_length == n
        assert one["name"] == f"{point['cell']} {point['g']}" and one["count"] == point["seed"]
        want = measures.labelled(**point, rng=generator_of(3, point))
        assert np.array_equal(one.large[:n], want.large)
        assert np.array_equal(one.x[:n], want.x) and np.isnan(one.x[n:]).all()
        assert (one.z[:n] == 1 + 2j).all() and np.isnan(one.z[n:]).all()
        assert not one.large[n:].any()
    assert found.x.attrs == {"long_name": "numbers", "units": "1"}
    assert found.attrs.keys() == {"of", "study"}  # g differs from point to point
    assert json.loads(found.study)["seed"] == 3
    assert found.kind.values.tolist() == list("abcd")


def test_unfinished_points_are_missing_and_marked(path):
    study = kpops.Study(path, measures.labelled, rng=3, **AXES)
    assert not study.open().done.any() and not study.open().data_vars
    for index in (1, 10):
        study.run_one(index)
    found = study.open()
    done = np.zeros(12, bool)
    done[[1, 10]] = True
    assert np.array_equal(found.done.values.ravel(), done)
    assert np.array_equal(found.x.notnull().any("mode").values.ravel(), done)
    assert np.array_equal((found["name"] != "").values.ravel(), done)
    assert np.array_equal(found["count"].notnull().values.ravel(), done)
    assert np.array_equal(found.mode_length.values.ravel() > 0, done)
    assert study.missing == [i for i in range(12) if i not in (1, 10)]
    assert "2 of 12 points done, 0 failed" in repr(study)


def test_a_point_that_was_killed_between_data_and_status_is_missing(path):
    study = ran(path)
    before = study.open().load()
    (path / "status" / "c" / "0" / "1").unlink()
    found = study.open()
    assert np.isnan(found.x[0, 1]).all() and found.x[0, 2].equals(before.x[0, 2])
    assert found.x[0].isel(seed=[2, 1]).isnull().any("x_dim_0").values.tolist() == [False, True]
    assert study.missing == [1]


def test_variables_are_read_in_parts(path):
    found = ran(path).open()
    whole = found.x.load()
    lazy = kpops.Study(path).open().x
    assert lazy.isel(g=1, seed=[2, 0], x_dim_0=slice(1, 3)).equals(
        whole.isel(g=1, seed=[2, 0], x_dim_0=slice(1, 3))
    )
    assert lazy.isel(g=[], x_dim_0=0).shape == (0, 3)
    assert lazy[:, ::-1, -1].equals(whole[:, ::-1, -1])


def test_lazy_results_pickle_and_are_chunked_by_dask(path):
    pytest.importorskip("dask")
    found = ran(path).open()
    assert pickle.loads(pickle.dumps(found)).identical(found)
    chunked = kpops.Study(path).open().chunk(g=1)
    assert chunked.x.mean("seed").compute(scheduler="sync").equals(found.x.mean("seed"))


def test_random_numbers_depend_on_seed_and_point_alone(path, tmp_path):
    wanted = ran(path).open().x
    reversed_ = ran(tmp_path / "b.zarr", g=[2, 7, 1], seed=[2, 1, 0]).open().x
    assert reversed_.sel(g=wanted.g, seed=wanted.seed).equals(wanted)
    other = ran(tmp_path / "c.zarr", rng=1).open().x
    assert len(np.unique(np.concatenate([wanted.values.ravel(), other.values.ravel()]))) == 36


def test_growing_an_axis_keeps_what_is_done(path, tmp_path):
    before = ran(path).open().x.load()
    study = made(path, g=[3, 2, 1], seed=[5, 0, 1, 2])
    assert len(study.missing) == 12 - 6
    assert study.open().x.sel(g=before.g, seed=before.seed).equals(before)
    study.run(progress=False)
    found = study.open().x.load()
    assert found.g.values.tolist() == [3, 2, 1] and found.seed.values.tolist() == [5, 0, 1, 2]
    fresh = ran(tmp_path / "b.zarr", g=[1, 2, 3], seed=[0, 1, 2, 5]).open().x
    assert fresh.sel(g=found.g, seed=found.seed).equals(found)


def test_values_that_are_left_out_stay_in_the_store(path):
    before = ran(path).open().load()
    smaller = made(path, g=[2.0], seed=[1])
    assert len(smaller) == 1 and smaller.open().x.identical(before.x.sel(g=[2.0], seed=[1]))
    assert made(path).missing == []


def test_a_study_is_reopened_from_its_path(path):
    ran(path)
    study = kpops.Study(path)
    assert study.open().identical(made(path).open())
    (path / "status" / "c" / "0" / "0").unlink()
    study.run(progress=False)  # by the measure of that module
    assert study.missing == []


def test_the_store_is_plain_zarr(path):
    found = made(path, measures.failing, seed=[0, 2])
    found.run(progress=False)
    read = xr.open_zarr(path, consolidated=False, chunks=None)
    assert read.x.equals(found.open().x.drop_vars("done"))
    import zarr

    assert zarr.open_group(path, mode="r")["x"].chunks == (1, 1)


def test_results_are_written_to_files_without_tricks(path, tmp_path):
    study = kpops.Study(path, measures.labelled, **AXES)
    study.run_one(3)
    found = study.open().drop_vars("z")  # complex numbers are none of netCDF's
    found.to_netcdf(tmp_path / "a.nc")
    found.to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert xr.open_dataset(tmp_path / "a.nc").x.equals(found.x)


def test_failures_are_recorded_and_do_not_stop_the_others(path):
    study = made(path, measures.failing)
    with pytest.warns(kpops.FailedPointsWarning, match=r"2 of 6 points, first at g=1.0, seed=1: Z"):
        study.run(progress=False)
    status = study.status()
    assert status.failed.sum() == 2 and status.done.sum() == 4 and study.missing == [1, 4]
    assert "ZeroDivisionError: no result at g=2.0" in status.error.sel(g=2, seed=1).item()
    assert status.error.sel(seed=0).values.tolist() == ["", ""]
    assert (status.seconds >= 0).all() and status.running_since.isnull().all()
    study.run(progress=False)  # does not try again
    with pytest.warns(kpops.FailedPointsWarning, match="2 of 2 points"):
        study.run(progress=False, retry_failed=True)
    with pytest.raises(kpops.StudyError, match=r"(?s)point 4 .g=2.0, seed=1. failed.*no result"):
        study.run_one(4)


def test_a_running_point_tells_since_when_unless_its_process_is_gone(path):
    study, begun = made(path), np.datetime64(datetime.now(UTC).replace(tzinfo=None))
    PointStore(path).begin((1, 2))
    status = study.status()
    since = status.running_since.sel(g=2, seed=2).item()
    assert abs(since - begun.astype("datetime64[ns]").astype(int)) < 60e9
    assert status.running_since.notnull().sum() == 1 and not status.done.any()
    file = path / "status" / "c" / "1" / "2"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    length = len(file.read_bytes()) - 8
    text = re.sub(rb'"pid": \d+', b'"pid": %d' % gone.pid, file.read_bytes()[8:]).ljust(length)
    file.write_bytes(file.read_bytes()[:8] + text)
    assert study.status().running_since.isnull().all() and study.missing == list(range(6))


def test_failed_points_are_computed_again_when_the_measure_is_mended(path):
    def measure(g, seed):
        return {"x": 1 / (seed - 1)}

    with pytest.warns(kpops.FailedPointsWarning):
        ran(path, measure)

    def measure(g, seed):
        return {"x": 1 / (seed - 1.5)}

    with pytest.raises(ValueError, match=r"holds results of measure .*changed='keep'"):
        made(path, measure)
    study = made(path, measure, changed="keep")
    study.run(progress=False, retry_failed=True)
    assert study.open().x.sel(g=1).values.tolist() == [-1, -2, 1]
    assert len(json.loads(study.open().study)["measure"]["before"]) == 1
    made(path, measure)  # is now that of the store


def test_ctrl_c_loses_nothing_but_the_point(path):
    def measure(g, seed):
        if (g, seed) == (2, 1) and interrupting:
            raise KeyboardInterrupt
        return {"x": g * seed}

    interrupting = [1]
    study = made(path, measure)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=False)
    assert study.missing == [4, 5] and study.status().running_since.isnull().all()
    interrupting.clear()
    study.run(progress=False)
    assert study.open().x.values.tolist() == [[0, 1, 2], [0, 2, 4]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"y": 1.0}, r"returned the variables \['y'\], at the points before \['x'\]"),
        ({"x": np.zeros(2)}, r"x with dims \('x_dim_0',\) in float64, at the points before with"),
        ({"x": "word"}, "x with dims () in string"),
        ({"x": 1j}, "in complex128, at the points before with dims () in float64"),
        ({"x": None}, "return numbers or arrays"),
        ({"x": np.datetime64("2026-01-01")}, "dtype datetime64"),
        ({"x": 2**60}, r"integers beyond 2\*\*53"),
        ({"g": 1.0}, "a name that the study uses"),
        ({"done": 1.0}, "a name that the study uses"),
        ({"a/b": 1.0}, "choose a plain name"),
        (xr.Dataset({"x": 1.0}, {"seed": 7}), "a variable or dim seed"),
        (None, "is there a return missing"),
    ],
)
def test_a_result_of_another_form_fails_and_nothing_is_lost(path, other, message):
    def measure(g, seed):
        return {"x": 1.5} if seed < 2 else other

    with pytest.warns(kpops.FailedPointsWarning):
        study = ran(path, measure)
    assert message.replace("\\", "") in study.status().error.values[0, 2].replace("\\", "")
    assert (study.open().x[:, :2] == 1.5).all() and study.missing == [2, 5]


def test_labels_must_agree_where_two_points_have_them(path):
    def measure(g, seed):
        labels = [10 * g, 20, 30][: 1 + seed]
        return xr.DataArray(np.ones(1 + seed), {"time": labels}, name="x")

    with pytest.warns(kpops.FailedPointsWarning, match="4 of 6|3 of 6"):
        study = ran(path, measure)
    assert "time with 20.0 at place 0" in study.status().error.sel(g=2, seed=0).item()
    assert study.open().time.values.tolist() == [10, 20, 30]
    assert study.open().x.sel(g=1).sum("time").values.tolist() == [1, 2, 3]


def test_labels_that_differ_are_kept_as_the_message_says(path):
    def measure(g, seed, mends):
        result = xr.Dataset({"x": ("step", [g, g])}, {"step": [0, seed]})
        if mends:
            return result.assign(own_step=result.step.variable).drop_vars("step")
        return result

    study = kpops.Study(path, measure, g=[1.0], seed=[3, 5], mends=[False])
    with pytest.warns(
        kpops.FailedPointsWarning, match=r"assign\(own_step=result.step.variable\).drop_vars\('step"
    ):
        study.run(progress=False)
    study = kpops.Study(path.with_name("b"), measure, g=[1.0], seed=[3, 5], mends=[True])
    study.run(progress=False)
    assert study.open().own_step.squeeze().values.tolist() == [[0, 3], [0, 5]]


@pytest.mark.parametrize("first", [np.array([1, 2]), np.float32([1, 2]), np.array([True])])
def test_labels_of_another_dtype_are_refused_and_not_rounded(path, first):
    def measure(g, seed):
        labels = [first, [1.0, 2.0, 0.1]][seed] if g == 1 else []
        return xr.DataArray(np.ones(len(labels)), {"time": labels}, name="x")

    with pytest.warns(kpops.FailedPointsWarning, match="the coordinate time in float64, at the"):
        study = ran(path, measure, g=[2, 1], seed=[0, 1])
    found = study.open().time
    assert study.missing == [3] and np.array_equal(found, first) and found.dtype == first.dtype


def test_a_shorter_result_does_not_keep_the_end_of_a_longer_one(path):
    lengths = [5]
    study = made(path, lambda g, seed: {"x": np.ones(lengths[0])}, g=[1], seed=[0])
    study.run_one(0)
    (path / "status" / "c" / "0" / "0").unlink()
    lengths[0] = 2
    study.run_one(0)
    assert study.open().x.values.ravel().tolist()[:2] == [1, 1]
    assert np.isnan(study.open().x.values.ravel()[2:]).all()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, None])
def test_what_another_run_has_done_meanwhile_stays_done(path, error):
    calls, others = [], []

    def measure(g, seed):
        calls.append((g, seed))
        if len(calls) == 1:
            others.pop().run(progress=False)
            if error:
                raise error
        return {"x": np.full(len(calls), g * seed)}

    study = made(path, measure)
    others.append(kpops.Study(path))
    others[0]._measure = measure
    with contextlib.suppress(KeyboardInterrupt):
        study.run(progress=False)
    assert len(calls) == 7  # the first point was begun by both
    found = study.open()
    assert found.done.all() and found.x_dim_0_length.values.tolist() == [[2, 3, 4], [5, 6, 7]]
    assert np.array_equal(found.x.max("x_dim_0"), found.g * found.seed)


def test_a_template_sets_the_form(path):
    study = made(path, lambda g, seed: {"x": float(seed)}, template={"x": np.float32(0)})
    assert study.open().x.dtype == np.float32 and np.isnan(study.open().x).all()
    with pytest.warns(kpops.FailedPointsWarning, match="in float64, at the points before"):
        study.run(progress=False)


def test_large_variables_are_split_into_chunks(path, monkeypatch):
    import zarr

    monkeypatch.setattr("kpops.studies.form._LARGEST_CHUNK", 4000)
    study = ran(path, lambda g, seed: {"x": np.arange(2000.0).reshape(2, 1000)})
    chunks = zarr.open_group(path, mode="r")["x"].chunks
    assert chunks == (1, 1, 2, 250)
    assert np.array_equal(study.open().x[1, 2], np.arange(2000.0).reshape(2, 1000))


def test_torch_tensors_and_partials(path):
    study = made(path, functools.partial(_scaled, factor=torch.tensor(2.0)))
    study.run(progress=False)
    assert study.open().x.sel(g=2, seed=2) == 8
    with pytest.raises(ValueError, match="holds results of measure _scaled"):
        made(path, functools.partial(_scaled, factor=torch.tensor(3.0)))


def _scaled(g, seed, factor):
    return {"x": g * seed * factor}


def test_another_study_is_refused_by_what_differs(path, tmp_path):
    made(path)
    with pytest.raises(ValueError, match=r"its axes are \['g', 'seed'\], here \['g'\]"):
        kpops.Study(path, lambda g: 1, g=[1])
    with pytest.raises(ValueError, match="its seed is 0, here rng=1"):
        made(path, rng=1)
    with pytest.raises(ValueError, match="holds results of measure drawn"):
        made(path, measures.failing)
    with pytest.raises(ValueError, match="g has numbers in the store and strings here"):
        made(path, g=["a"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds no study of kpops"):
        made(tmp_path / "other")
    with pytest.raises(ValueError, match="is no study yet: pass a measure and its axes"):
        kpops.Study(tmp_path / "none")
    assert made(path, rng=None).missing == list(range(6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"g": 1.0}, TypeError, "g is the number 1.0: pass the values"),
        ({"g": "abc"}, TypeError, "g is the string 'abc'"),
        ({"g": []}, TypeError, "g has 0 values of types none"),
        ({"g": [[1, 2]]}, TypeError, r"of types \['list'\]"),
        ({"g": [1, 1.0]}, ValueError, "has the value 1.0 twice"),
        ({"g": [1, "a"]}, TypeError, "numbers, strings or booleans, all alike"),
        ({"g": [True, 2]}, TypeError, "all alike"),
        ({"g": [None]}, TypeError, "all alike"),
        ({"g": [np.nan]}, ValueError, "the value nan"),
        ({"done": [1]}, ValueError, "'done' is no name for an axis"),
        ({"rng": 1.5}, TypeError, "rng=1.5"),
        ({"rng": -1}, ValueError, "rng=-1"),
        ({"changed": "yes"}, ValueError, "changed='yes'"),
        ({"h": [1]}, TypeError, "measure cannot be called with g, seed, h"),
    ],
)
def test_wrong_use_raises_at_once(path, options, error, message):
    with pytest.raises(error, match=message):
        made(path, measures.failing, **options)
    assert not path.exists()


def test_wrong_types_raise_at_once(path):
    with pytest.raises(TypeError, match="store is the number 3"):
        kpops.Study(3, measures.drawn, g=[1])
    with pytest.raises(TypeError, match="measure is an array of shape"):
        kpops.Study(path, np.zeros(2), g=[1])
    study = made(path)
    with pytest.raises(ValueError, match="index=6: choose an int from 0 to 5"):
        study.run_one(6)
    with pytest.raises(TypeError, match="executor is the number 2, without a method submit"):
        study.run(2)
    with pytest.raises(ValueError, match="threads=0"):
        study.run(threads=0)


def test_axes_of_booleans_infinities_and_numpy_values(path):
    seen = []
    study = kpops.Study(
        path,
        lambda masked, tau: seen.append((masked, tau)) or {"x": 1.0},
        masked=np.array([True, False]),
        tau=torch.tensor([1.5, np.inf]),
    )
    study.run(progress=False)
    assert seen == [(True, 1.5), (True, np.inf), (False, 1.5), (False, np.inf)]
    assert all(type(m) is bool and type(t) is float for m, t in seen)
    assert study.open().x.sel(masked=False, tau=np.inf) == 1
    assert kpops.Study(path).missing == []


def test_integers_of_64_bits_and_strings_of_an_enum_stay_what_they_are(path):
    class Cell(enum.StrEnum):
        GRU = "gru"

    seeds, seen = np.random.SeedSequence(0).generate_state(4, np.uint64), []
    assert seeds.max() > 2**63 > seeds.min()
    study = kpops.Study(
        path, lambda seed, cell: seen.append((seed, cell)) or {"x": 1.0}, seed=seeds, cell=[*Cell]
    )
    study.run(progress=False)
    assert seen == [(int(seed), "gru") for seed in seeds] and type(seen[0][1]) is str
    assert study.open().seed.values.tolist() == seeds.tolist()


@pytest.mark.parametrize("dtype", [">f4", ">c16", ">i2"])
def test_results_in_another_order_of_bytes(path, dtype):
    values = np.arange(3).astype(dtype)
    found = ran(path, lambda g, seed: {"x": values, "y": torch.tensor(1 + 2j).conj()}).open()
    assert found.done.all() and np.array_equal(found.x[1, 2], values)
    assert found.x.dtype.isnative and found.y[0, 0] == 1 - 2j


def test_this_process_stays_as_it_is(path):
    before = torch.get_num_threads(), torch.get_rng_state().tolist(), np.random.get_state()[1][0]
    ran(path)
    assert before == (
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1][0],
    )
