"""Kill the processes of a study at random moments: python tests/studies/kill_study.py [KILLS].

Runs 200 points on a process pool, also in a repository of Icechunk, and on a Dask LocalCluster of
two processes, and kills by SIGKILL.
After the last resume every point must be there once, bit-equal to a run that was never interrupted.
Prints a table. A study that is done before the kills are used up is checked, and begun anew.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import threadpoolctl
import xarray as xr

import kpops
from kpops.studies.store import PointStore

G, SEEDS = [0.5, 1.0, 1.5, 2.0, 2.5], list(range(40))


def measure(g, seed, rng):
    """Arrays, strings and booleans, of other lengths at other points."""
    time.sleep(rng.uniform(0.05, 0.2))
    n = 3 + seed % 4
    matrix = g * rng.normal(size=(64, 64))
    singular = np.linalg.svd(matrix, compute_uv=False)[:n]
    variables = {
        "singular": ("mode", singular),
        "matrix": (("unit", "unit2"), matrix),
        "large": ("mode", singular > 1),
        "name": f"g={g}",
        "modes": n,
    }
    return xr.Dataset(variables, {"mode": np.arange(1, n + 1)}, {"g": g, "units": 64})


def study(path, seeds=SEEDS):
    return kpops.Study(place(Path(path)), measure, rng=3, g=G, seed=seeds)


def place(path):
    """A folder, or the repository of Icechunk in one."""
    if path.suffix != ".icechunk":
        return path
    import icechunk

    return icechunk.Repository.open_or_create(icechunk.local_filesystem_storage(str(path)))


def run(kind, path, n_seeds):
    """What the parent that is killed does."""
    mine = study(path, SEEDS[:n_seeds])
    if kind != "dask":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            mine.run(executor, progress=False)
    else:
        from dask.distributed import Client, LocalCluster

        options = {"dashboard_address": ":0", "silence_logs": 50}
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, **options)
        with cluster, Client(cluster) as client:
            mine.run(client.get_executor(), progress=False)


def workers_of(parent):
    """Processes that compute points."""
    try:
        children = psutil.Process(parent.pid).children(recursive=True)
        return [c for c in children if "spawn_main" in " ".join(c.cmdline())]
    except psutil.Error:
        return []


def start(kind, path, n_seeds):
    quiet = subprocess.DEVNULL
    code = [sys.executable, __file__, "run", kind, str(path), str(n_seeds)]
    return subprocess.Popen(code, stdout=quiet, stderr=quiet)


def times_of_statuses(path):
    files = [f for part in ("status/c", "snapshots") for f in (Path(path) / part).rglob("*")]
    kept = [f for f in files if f.suffix != ".partial" and "#" not in f.name and f.is_file()]
    return {str(f): f.stat().st_mtime_ns for f in kept}


def kill_some(kind, path, n_seeds, rnd, counts, most):
    """Start or go on, and kill at random moments until the parent has ended."""
    parent, before = start(kind, path, n_seeds), times_of_statuses(path)
    while parent.poll() is None and rnd.random() > 0.002:  # some are killed while they start
        if times_of_statuses(path) != before:
            break
        time.sleep(0.02)
    while sum(counts.values()) < most:
        time.sleep(rnd.uniform(0, 1.0))
        if parent.poll() is not None:
            break
        workers = workers_of(parent)
        what = "worker" if workers and rnd.random() < 0.6 else "parent"
        victim = rnd.choice(workers).pid if what == "worker" else parent.pid
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        counts[what] += 1
        if what == "parent":
            break
    parent.wait()


def check(path, wanted, n_seeds):
    """Numbers of points that are done, bit-equal to the reference, and of chunks that are torn."""
    mine = study(path, SEEDS[:n_seeds])
    found = mine.open().load()
    equal = sum(
        found.isel(g=i, seed=j).identical(wanted.isel(g=i, seed=j))
        for i in range(len(G))
        for j in range(n_seeds)
    )
    group, torn, chunks = PointStore(place(path)).group(), 0, 0
    for name, array in group.arrays():  # of which a repository has no files
        for file in (Path(path) / name / "c").rglob("*"):
            if file.is_file() and not file.name.endswith(".partial"):
                chunks += 1
                chunk = tuple(map(int, file.relative_to(Path(path) / name / "c").parts))
                try:
                    array.get_block_selection(chunk)
                except Exception:
                    torn += 1
    return {
        "points": len(mine),
        "done": int(mine.status().done.sum()),
        "bit-equal": equal,
        "chunks": chunks,
        "torn": torn,
    }


def reference(folder, n_seeds):
    """The results of a run that was never interrupted, in this process on one thread."""
    with threadpoolctl.threadpool_limits(1):
        mine = study(Path(folder) / "reference.zarr", SEEDS[:n_seeds])
        mine.run(progress=False)
    return mine.open().load()


def kill(kind, folder, kills, wanted, seed=0):
    """Kill so often, resume, and compare; yields one row for each study."""
    rnd, total, n_seeds = random.Random(f"{kind} {seed}"), 0, wanted.sizes["seed"]
    for number in itertools.count():
        path = Path(folder) / f"{kind}{number}.{'icechunk' if kind == 'icechunk' else 'zarr'}"
        place(path)
        counts, starts = {"parent": 0, "worker": 0}, 0
        while not (path.exists() and not study(path, SEEDS[:n_seeds]).missing):
            kill_some(kind, path, n_seeds, rnd, counts, kills - total)
            starts += 1
        total += sum(counts.values())
        killed = {f"{what} killed": n for what, n in counts.items()}
        yield {"executor": kind, "starts": starts, **killed, **check(path, wanted, n_seeds)}
        if total >= kills:
            return


def main(kills):
    with tempfile.TemporaryDirectory() as folder:
        wanted, rows = reference(folder, len(SEEDS)), []
        for kind in ("pool", "dask", "icechunk"):
            for row in kill(kind, folder, -(-kills // 3), wanted):
                if not rows:
                    print(" | ".join(row))
                rows.append(row)
                print(" | ".join(str(v).rjust(len(k)) for k, v in row.items()), flush=True)
        return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 100)
