"""Studies in a repository of Icechunk: the same results as in a folder, and transactions."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import measures
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import kpops
from kpops.studies import icechunk_store
from kpops.studies.icechunk_store import InRepository
from kpops.studies.reading import read_point
from kpops.studies.store import PointStore

icechunk = pytest.importorskip("icechunk")
AXES = {"g": [0.5, 1.0], "seed": range(3), "cell": ["GRU", "RNN"]}


@pytest.fixture
def repository(tmp_path):
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))


@pytest.fixture
def stores(repository, tmp_path):
    return repository, tmp_path / "study.zarr"


def same(results):
    mine, wanted = results
    return all(a.identical(b) for a, b in zip(mine, wanted, strict=True))


def made(store, measure=measures.drawn, **options):
    return kpops.Study(store, measure, **{"rng": 0, "g": [1.0, 2.0], "seed": range(3), **options})


def test_resuming_longer_points_and_new_values_give_what_a_folder_gives(stores):
    def seen(store):
        study = kpops.Study(store, measures.labelled, rng=3, **AXES)
        yield study.open()
        for index in (10, 1):  # the second is shorter
            study.run_one(index)
            yield study.open().load()
        assert study.missing == [i for i in range(12) if i not in (1, 10)]
        study.run(progress=False)
        yield study.open()
        grown = kpops.Study(store, measures.labelled, g=[2.0, 0.5], seed=range(4), cell=["RNN"])
        assert grown.missing == [0, 1, 2, 3, 7]
        grown.run(progress=False)
        yield grown.open().load()
        yield kpops.Study(store).open().isel(g=0, seed=[2, 0])
        yield read_point(PointStore(store), (0, 0, 0))

    assert same([list(seen(store)) for store in stores])


def test_failures_and_their_status_are_those_of_a_folder(stores):
    def seen(store):
        study = made(store, measures.failing)
        with pytest.warns(kpops.FailedPointsWarning, match="2 of 6 points, first at g=1.0, seed=1"):
            study.run(progress=False)
        status = study.status()
        assert (status.seconds >= 0).all() and status.host.values.all()
        study.run(progress=False)  # does not try again
        with pytest.warns(kpops.FailedPointsWarning, match="2 of 2 points"):
            study.run(progress=False, retry_failed=True)
        return [status.drop_vars(["seconds", "host"]), study.open()]

    assert same([seen(store) for store in stores])


def test_a_running_point_is_told_and_one_that_is_interrupted_is_not_begun(repository):
    seen = []

    def interrupted(g, seed):
        seen.append(made(repository, interrupted, changed="keep").status())
        raise KeyboardInterrupt

    study = made(repository, interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=False)
    assert seen[0].running_since.notnull().values.ravel().tolist() == [True] + 5 * [False]
    assert study.status().running_since.isnull().all() and study.missing == list(range(6))


def test_a_dataset_is_read_lazily_as_it_was_when_it_was_opened(repository):
    study = made(repository)
    for index in (0, 4):
        study.run_one(index)
    found = study.open()
    grown = made(repository, g=[0.0, 1.0, 2.0])
    grown.run(progress=False)
    assert found.done.sum() == 2 and np.isfinite(found.x).sum() == 6
    later = grown.open()
    assert found.x[1, 1].equals(later.x[2, 1])
    assert pickle.loads(pickle.dumps(later)).identical(later)
    store = repository.readonly_session("main").store
    plain = xr.open_zarr(store, consolidated=False, chunks=None)
    assert plain.x.sel(g=later.g).equals(later.x.drop_vars("done"))


def test_data_and_status_of_a_point_are_one_commit(repository):
    study = made(repository, g=[1.0], seed=[0, 1])
    study.run_one(0)
    before = len(list(repository.ancestry(branch="main")))
    study.run_one(1)
    commits = list(repository.ancestry(branch="main"))
    assert len(commits) == before + 2  # begun and done
    change = repository.diff(from_snapshot_id=commits[1].id, to_snapshot_id=commits[0].id)
    assert {path for path, chunks in change.updated_chunks.items() if chunks} == {"/x", "/status"}


@pytest.fixture
def meanwhile(monkeypatch):
    """Let others act once before the next commit, or before each."""

    def let(act, times=1):
        left, original = [times], InRepository._turn

        def turn(place):
            if left[0]:
                left[0] -= 1
                act()
            return original(place)

        monkeypatch.setattr(InRepository, "_turn", turn)

    return let


def result(n, g):
    return xr.Dataset({"x": ("mode", np.full(n, g))})


@pytest.mark.parametrize(
    ("before", "ours", "theirs"), [(0, 3, 3), (0, 2, 3), (0, 3, 2), (2, 2, 3), (2, 3, 4)]
)
def test_points_of_others_that_come_between_are_kept(repository, meanwhile, before, ours, theirs):
    store = PointStore(repository)
    store.create({"g": [1.0, 2.0, 3.0]}, {})
    if before:
        store.finish((2,), result(before, 3.0), 0.0, {"g": 3.0})
    other = PointStore(pickle.loads(pickle.dumps(repository)))
    left = [(1,)]

    def act():
        if left:
            other.finish(left.pop(), result(theirs, 2.0), 0.0, {"g": 2.0})

    meanwhile(act, times=2)
    store.finish((0,), result(ours, 1.0), 0.0, {"g": 1.0})
    for place, (n, g) in enumerate([(ours, 1.0), (theirs, 2.0)]):
        assert read_point(store, (place,)).x.values.tolist() == n * [g]
    assert store.form.sizes == {"mode": max(before, ours, theirs)}


def test_a_point_is_put_behind_those_of_others_without_beginning_anew(repository, monkeypatch):
    store = PointStore(repository)
    store.create({"g": [1.0, 2.0, 3.0]}, {})
    store.finish((2,), result(3, 3.0), 0.0, {"g": 3.0})
    original, begun = store._place.array, []

    def array(name):
        begun.append(name)
        if name == "x" and begun.count("x") == 1:
            PointStore(repository).finish((1,), result(3, 2.0), 0.0, {"g": 2.0})
        return original(name)

    monkeypatch.setattr(store._place, "array", array)
    store.finish((0,), result(3, 1.0), 0.0, {"g": 1.0})
    assert begun.count("x") == 1 and len(store.statuses()) == 3


def test_a_point_that_another_run_has_done_meanwhile_stays_as_it_is(repository, meanwhile):
    store = PointStore(repository)
    store.create({"g": [1.0]}, {})
    left = [2]

    def act():
        if left:
            PointStore(repository).finish((0,), result(left.pop(), 5.0), 0.0, {"g": 1.0})

    meanwhile(act, times=2)
    store.finish((0,), result(3, 1.0), 0.0, {"g": 1.0})
    assert read_point(store, (0,)).x.values.tolist() == [5, 5]


def test_values_that_two_runs_add_at_a_time_are_all_there(repository, meanwhile):
    store = PointStore(repository)
    store.create({"g": [1.0]}, {"who": 0})
    left = [2.0]

    def act():
        if left:
            PointStore(repository).grow({"g": [left.pop()]}, who=1)

    meanwhile(act, times=2)
    assert store.grow({"g": [3.0]}) == {"g": [1, 2, 3]}
    assert store.configuration == {"who": 1}


def test_two_runs_that_make_a_store_at_a_time_agree(repository, meanwhile):
    store, left = PointStore(repository), [1]

    def act():
        if left:
            PointStore(repository).create({"g": [1.0]}, {"who": left.pop()})

    meanwhile(act, times=2)
    assert store.create({"g": [1.0]}, {"who": 0}) is False and store.configuration == {"who": 1}


def test_a_change_is_not_tried_for_ever(repository, meanwhile, monkeypatch):
    monkeypatch.setattr(icechunk_store, "_TRIES", 3)
    store, tries = PointStore(repository), []
    store.create({"g": [1.0]}, {})

    def act():
        session = repository.writable_session("main")
        group = zarr.open_group(session.store, mode="r+")
        group.update_attributes({"other": len(tries)})
        session.commit("other")
        tries.append(1)

    meanwhile(act, times=9)
    with pytest.raises(kpops.StudyError, match="changed by others in each of 3 tries"):
        store.grow({"g": [2.0]})
    assert len(tries) == 3 and store.axes == {"g": [1]}


def test_a_full_disk_stops_the_run_and_loses_nothing(repository):
    study = kpops.Study(repository, measures.large, rng=0, g=[1, 2, 3, 4])
    refused = pytest.raises(kpops.StudyError, match=r"(?s)cannot write into .*: .*space or mend")
    with measures.files_of_at_most(20_000), refused:
        study.run(progress=False)
    assert study.missing == [2, 3] and study.status().running_since.isnull().all()
    study.run(progress=False)
    assert (study.open().x != 0).sum("x_dim_0").values.tolist() == [0, 0, 5000, 5000]


def test_what_is_no_repository_of_a_study_is_refused(repository, tmp_path):
    with pytest.raises(TypeError, match=r"store is .*: pass .* a folder, or an icechunk\.Repo"):
        made(repository.storage)
    with pytest.raises(ValueError, match="is no study yet: pass a measure and its axes"):
        kpops.Study(repository)
    session = repository.writable_session("main")
    zarr.create_group(session.store, attributes={"mine": 1})
    session.commit("other data")
    with pytest.raises(ValueError, match=r"tmp.*repo.* holds no study of kpops"):
        made(repository)


def test_checkpoints_of_a_training_are_kept_in_a_repository(stores):
    model = torch.nn.RNN(2, 3, batch_first=True)
    states = {step: {k: v + step for k, v in model.state_dict().items()} for step in (0, 1)}
    results = []
    for store in stores:
        for known in ({0: states[0]}, states):
            followed = kpops.over_training(
                model, known.items(), torch.zeros(2, 4, 2), norm, store=store, progress=False
            )
        results.append([followed])
    assert same(results) and followed.step.values.tolist() == [0, 1]


def norm(lin):
    return {"norm": kpops.frobenius_norm(lin.P, rng=0).estimate}


@pytest.mark.slow
def test_a_pool_gives_the_results_of_a_folder(stores):
    def seen(store):
        study = kpops.Study(store, measures.labelled, rng=3, **AXES)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            study.run(pool, progress=False)
        return [study.open().load().drop_attrs()]

    assert same([seen(store) for store in stores])


@pytest.mark.slow
def test_commits_of_two_processes_into_a_local_repository_do_not_lose_each_other(repository):
    store, n = PointStore(repository), 100
    store.create({"process": [0, 1], "step": [*range(n)]}, {})
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(begin_all, 2 * [store], [0, 1], 2 * [n]))
    assert len(store.statuses()) == 2 * n


def begin_all(store, process, n):
    for step in range(n):
        store.begin((process, step))


@pytest.mark.slow
def test_a_repository_that_workers_do_not_see_is_named():
    study = made(icechunk.Repository.create(icechunk.in_memory_storage()))
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(kpops.StudyError, match="cannot read 'ObjectStorage"),
    ):
        study.run(pool, progress=False)
    study.run(progress=False)
    assert study.missing == []
