"""Studies on executors: the same results, and clear errors when processes die."""

import concurrent.futures
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import measures
import numpy as np
import psutil
import pytest
import torch

import kpops

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        yield executor


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.zarr"


def made(path, measure=measures.drawn, **options):
    return kpops.Study(path, measure, **{"rng": 0, "g": [1.0, 2.0], "seed": range(3), **options})


def test_a_pool_gives_the_results_of_this_process(pool, path, tmp_path):
    axes = {"g": [0.5, 1.0], "seed": range(4), "cell": ["GRU", "RNN"]}
    studies = [kpops.Study(p, measures.labelled, rng=3, **axes) for p in (path, tmp_path / "b")]
    studies[0].run(pool, progress=False)
    studies[1].run(progress=False)
    mine, wanted = (study.open().load().drop_attrs() for study in studies)
    assert mine.identical(wanted)
    assert set(studies[0].status().host.values.ravel()) == {os.uname().nodename}


def test_workers_share_the_cores(pool, path):
    before = torch.get_num_threads(), dict(os.environ)
    study = made(path, measures.threads)
    study.run(pool, progress=False)
    found = study.open().load()
    assert (found.torch == 1).all() and (found.numba == 1).all() and (found.largest == 1).all()
    assert not (found.process == os.getpid()).any()
    assert before == (torch.get_num_threads(), dict(os.environ))


@pytest.mark.slow
def test_the_threads_of_a_worker_change_from_run_to_run(path):
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        for g, threads in enumerate((2, 1, 2)):
            study = kpops.Study(path, measures.compiled, g=[g], seed=[0])
            study.run(pool, threads=threads, progress=False)
            found = study.open()
            assert found.x == 45 and found.numba == threads and found.torch == threads


def test_failures_in_workers_are_recorded(pool, path):
    study = made(path, measures.failing)
    with pytest.warns(kpops.FailedPointsWarning, match="2 of 6 points, first at g=1.0, seed=1"):
        study.run(pool, progress=False)
    assert study.missing == [1, 4]
    assert "in failing" in study.status().error.sel(g=1, seed=1).item()


def test_a_point_that_kills_its_process_is_named_and_the_rest_is_kept(path):
    study = made(path, measures.deadly)
    with (
        ProcessPoolExecutor(1, mp_context=SPAWN) as executor,
        pytest.raises(
            kpops.StudyError, match=r"3 points .*BrokenProcessPool.*: g=2.0, seed=0\. If"
        ),
    ):
        study.run(executor, progress=False)
    assert study.missing == [3, 4, 5] and study.status().running_since.isnull().all()
    with (
        ProcessPoolExecutor(1, mp_context=SPAWN) as executor,
        pytest.raises(kpops.StudyError, match="1 points"),
    ):
        study.run(executor, progress=False)  # what hung comes last
    assert study.missing == [3] and study.open().x.sel(g=2, seed=2) == 4


def test_ctrl_c_cancels_what_has_not_begun(pool, path):
    study = made(path, measures.slow, seed=range(20))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        study.run(pool, progress=False)
    timer.join()
    assert len(study.missing) > 20
    study.run(pool, progress=False)
    assert np.array_equal(study.open().x, study.open().g + study.open().seed)


class Later:
    """A future that is no future of concurrent.futures."""

    def __init__(self, future):
        self.future = future

    def done(self):
        return self.future.done()

    def result(self):
        return self.future.result()

    def cancel(self):
        return self.future.cancel()


def test_anything_with_submit_is_an_executor(pool, path):
    class Executor:
        def submit(self, function, *arguments):
            return Later(pool.submit(function, *arguments))

    study = made(path)
    study.run(Executor(), progress=False)
    assert study.missing == []


def test_executors_that_share_or_fork_this_process_are_refused(path):
    class Here:
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

    study = made(path)
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match="ThreadPoolExecutor"):
        study.run(executor)
    forking = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with forking as executor, pytest.raises(ValueError, match=r"mp_context=multi.*\"spawn\""):
        study.run(executor)
    with pytest.raises(kpops.StudyError, match="on threads of the submitting process"):
        study.run(Here(), progress=False)
    assert study.missing == list(range(6))


def test_processes_that_die_before_any_point_begins_are_explained(path):
    class Broken:
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            future.set_exception(BrokenProcessPool("no process"))
            return future

    study = made(path)
    with pytest.raises(
        kpops.StudyError, match=r"6 points .*None had begun: .*if __name__ == \"__m"
    ):
        study.run(Broken(), progress=False)


def test_a_measure_that_does_not_pickle_is_refused_for_a_plain_pool(pool, path):
    study = made(path, lambda g, seed: {"x": 1.0})
    with pytest.raises(
        TypeError, match=r"measure does not pickle .*define it with def in a module"
    ):
        study.run(pool)


@pytest.fixture(scope="module")
def dask_executor():
    distributed = pytest.importorskip("distributed")
    options = {"dashboard_address": ":0", "silence_logs": 50}
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options)
    with cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


@pytest.mark.slow
def test_dask_gives_the_results_of_this_process(dask_executor, path, tmp_path):
    study, factor = made(path, measures.drawn), 2.0
    study.run(dask_executor, progress=False)
    here = made(tmp_path / "b", measures.drawn)
    here.run(progress=False)
    assert study.open().x.equals(here.open().x)
    enclosed = made(tmp_path / "c", lambda g, seed: {"x": factor * g})
    enclosed.run(dask_executor, progress=False)
    assert (enclosed.open().x == 2 * enclosed.open().g).all()


@pytest.mark.slow
def test_dask_names_the_point_that_kills_its_workers(dask_executor, path):
    study = made(path, measures.deadly)
    # Dask gives up a point that waits for the same worker, too; only one was running.
    told = r"[12] points .*KilledWorker.* Running in them: g=2.0, seed=0\. If"
    with pytest.raises(kpops.StudyError, match=told):
        study.run(dask_executor, progress=False)
    assert 3 in study.missing


@pytest.mark.slow
def test_workers_of_dask_on_threads_are_refused(path):
    distributed = pytest.importorskip("distributed")
    options = {"dashboard_address": ":0", "silence_logs": 50, "n_workers": 1}
    for processes, message in ((False, "submitting process"), (True, "two points at once")):
        cluster = distributed.LocalCluster(processes=processes, threads_per_worker=2, **options)
        with cluster, distributed.Client(cluster) as client:
            study = made(path, measures.slow)
            with pytest.raises(kpops.StudyError, match=message):
                study.run(client.get_executor(), progress=False)


@pytest.mark.slow
def test_loky(path):
    loky = pytest.importorskip("loky")
    factor = 3.0
    study = made(path, lambda g, seed: {"x": factor * g})
    executor = loky.get_reusable_executor(max_workers=2)
    study.run(executor, progress=False)
    executor.shutdown(wait=True)
    assert (study.open().x == 3 * study.open().g).all()


@pytest.mark.slow
def test_submitit(path, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(folder=tmp_path / "logs")
    executor.update_parameters(timeout_min=5)
    study = made(path, lambda g, seed: {"x": 2 * g}, g=[1.0], seed=[0, 1])
    study.run(executor, progress=False)
    assert study.missing == [] and (study.open().x == 2).all()


SCRIPT = """
import kpops

def measure(g):
    return {{"x": g}}

kpops.Study({store!r}, measure, rng=0, g=[1.0, 2.0]).run(progress=False)
"""


def test_a_script_without_a_guard_does_not_run_its_study_where_it_is_imported(tmp_path):
    script, store = tmp_path / "sweep.py", tmp_path / "study.zarr"
    script.write_text(SCRIPT.format(store=str(store)))
    runpy.run_path(str(script), run_name="__main__")
    assert not kpops.Study(store).missing
    with pytest.raises(kpops.StudyError, match=r"sweep.py' runs a study .* behind if __name__"):
        runpy.run_path(str(script), run_name="__mp_main__")


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {tests!r})
import kpops, measures

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        kpops.Study({store!r}, measures.drawn, rng=0, g=[1.0], seed=[0]).run(pool)
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    tests, store = str(Path(__file__).parent), str(tmp_path / "study.zarr")
    script.write_text(POOL.format(tests=tests, store=store))
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert worker.wait(timeout=60) is None  # raises if it goes on
