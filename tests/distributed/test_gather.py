"""Results of spread linearizations, brought together or written by all."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed as dist
import xarray as xr
from pool import error_of
from test_spread_operators import linearized, own_trials

import kpops
from kpops.distributed import gather, to_zarr

N = 6


# What runs in every process.


def whole_and_part(seed=0):
    """A result as of eigsh, with labels of every kind, and its part here."""
    rng = np.random.default_rng(seed)
    coords = {
        "mode": [1, 2],
        "trial": 10 * np.arange(N),
        "angle": ("trial", rng.standard_normal(N)),
        "task": ("trial", np.array(["go", "anti", "go", "pro", "delay anti", "go"], dtype=object)),
        "mask": (("trial", "time"), rng.random((N, 3)) < 0.5),
        "operator": ((), np.array("P K P*", dtype=object)),
    }
    field = rng.standard_normal((2, N, 3))
    field[0, 1] = np.nan
    field[1, 4] = -0.0
    whole = xr.Dataset(
        {
            "eigenvalue": ("mode", [2.0, 1.0], {"units": "1"}),
            "eigenfunction": (("mode", "trial", "time"), field, {"units": "1"}),
            "count": ("trial", np.arange(N, dtype="int32")),
        },
        coords,
        {"dtype": "float64"},
    )
    return whole, whole.isel(trial=own_trials())


def bits(dataset):
    """Bytes of every variable, which NaN and signed zeros do not hide from."""
    variables = {**dataset.coords, **getattr(dataset, "data_vars", {"": dataset})}.items()
    values = {
        n: v.values.astype(object) if v.dtype.kind in "OTU" else v.values for n, v in variables
    }
    return {n: v.tolist() if v.dtype == object else v.tobytes() for n, v in values.items()}


def same(a, b):
    xr.testing.assert_identical(a, b)
    assert bits(a) == bits(b)
    return True


def gathered():
    whole, part = whole_and_part()
    rank = dist.get_rank()
    last = dist.get_world_size() - 1
    there = gather(part, to=last)
    assert (there is None) == (rank != last)
    found = [same(gather(part), whole), there is None or same(there, whole)]
    found.append(same(gather(part.eigenfunction), whole.eigenfunction))
    found.append(same(gather(part[["eigenvalue"]]), whole[["eigenvalue"]]))
    strings = part.assign_coords(task=part.task.astype(str))  # of another width on each process
    found.append(gather(strings).task.values.tolist() == whole.task.values.tolist())
    several = gather(part.set_index(trial=["task", "angle"]))  # as plain coordinates
    found.append(several.angle.values.tolist() == whole.angle.values.tolist())
    return all(found)


def saved(path):
    whole, part = whole_and_part()
    to_zarr(part, path)
    read = xr.open_zarr(path)
    chunks = dict(zip(read.eigenfunction.dims, read.eigenfunction.encoding["chunks"], strict=True))
    loaded = read.load()
    same(loaded, whole)
    same(loaded, gather(part))
    to_zarr(part.eigenfunction, path + "_field")
    same(xr.open_zarr(path + "_field").eigenfunction.load(), whole.eigenfunction)
    to_zarr(part[["eigenvalue"]], path + "_small")
    same(xr.open_zarr(path + "_small").load(), whole[["eigenvalue"]])
    return chunks


def of_a_linearization(path):
    whole, spread = linearized("gru")
    q = torch.ones(spread.space.shape, dtype=torch.float64)
    forced = (spread.flow @ spread.space.label(q.numpy())).rename("forced")
    both = xr.Dataset({"states": spread.states, "outputs": spread.outputs, "forced": forced})
    states = gather(spread.states)  # BLAS may round few trials as it does not round many
    xr.testing.assert_identical(states.coords.to_dataset(), whole.states.coords.to_dataset())
    assert float(abs(states - whole.states).max()) < 1e-14
    to_zarr(both, path)
    same(xr.open_zarr(path).load(), gather(both))
    return True


def small_chunks(path):
    kpops.distributed.saving._CHUNK = 32  # bytes
    try:
        _, part = whole_and_part()
        to_zarr(part, path)
        read = xr.open_zarr(path)
        same(read.load(), gather(part))
        return read.eigenfunction.encoding["chunks"]
    finally:
        kpops.distributed.saving._CHUNK = 2**24


def wrong(path):
    """What processes are told whose results do not belong together, by what is wrong."""
    _, part = whole_and_part()
    rank = dist.get_rank()
    results = {
        "another value": part.assign(eigenvalue=("mode", [2.0, 1.0 + 1e-15 * rank])),
        "another coordinate": part.assign_coords(mode=[1, 2 + rank]),
        "other variables": part if rank == 0 else part.drop_vars("count"),
        "another size": part.isel(time=slice(0, 3 - rank)),
        "another dtype": part.assign(eigenfunction=part.eigenfunction.astype(("f8", "f4")[rank])),
        "another order": part if rank == 0 else part.transpose("trial", "mode", "time"),
        "another kind": part if rank == 0 else 3.0,
    }
    told = {}
    for use in (gather, lambda result: to_zarr(result, path)):
        for name, result in results.items():
            told.setdefault(name, []).append(error_of(use, result))
    told["rank"] = [error_of(lambda: gather(part, to=7))]
    told["no name"] = [error_of(lambda: to_zarr(part.eigenfunction.rename(None), path))]
    told["no trials"] = [error_of(lambda: to_zarr(part.isel(trial=slice(0, 2 * rank)), path))]
    told["other paths"] = [error_of(lambda: to_zarr(part, path + str(rank)))]
    told["another call"] = [error_of(lambda: to_zarr(part, path) if rank else gather(part, to=0))]
    to_zarr(part, path)
    told["a path in use"] = [error_of(lambda: to_zarr(part, path))]
    same(xr.open_zarr(path).load(), gather(part))
    return told


def peak(path):
    """Largest memory beside the own part, over that of the part, while a store is written."""
    size = 2**18
    trials = np.arange(N)[own_trials()]
    field = np.random.default_rng(0).standard_normal((len(trials), size))
    part = xr.Dataset({"field": (("trial", "unit"), field)}, {"trial": trials})
    to_zarr(part.isel(unit=slice(0, 1)), path + "_first")  # what is loaded once
    tracemalloc.start()
    to_zarr(part, path)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return largest / field.nbytes


def full_disk(path):
    """A disk that is full for the second process."""
    _, part = whole_and_part()
    import zarr.storage

    async def full(*_, **__):
        raise OSError(28, "No space left on device")

    kept = zarr.storage.LocalStore.set
    if dist.get_rank() == 1:
        zarr.storage.LocalStore.set = full
    try:
        return error_of(lambda: to_zarr(part, path))
    finally:
        zarr.storage.LocalStore.set = kept


# The tests.


@pytest.mark.parametrize("n", [1, 2, 3])
def test_parts_are_put_together_as_they_were(run, n):
    assert all(run(n, gathered))


@pytest.mark.parametrize(("n", "chunk"), [(1, 6), (2, 2), (3, 1)])
def test_a_store_that_all_write_equals_the_whole(run, tmp_path, n, chunk):
    for chunks in run(n, saved, str(tmp_path / "a.zarr")):
        assert chunks == {"mode": 2, "trial": chunk, "time": 3}


def test_no_process_needs_the_memory_of_the_whole(run, tmp_path):
    assert max(run(3, peak, str(tmp_path / "a.zarr"))) < 3  # the first of them has a sixth


def test_no_chunk_is_larger_than_codecs_take(run, tmp_path):
    assert run(2, small_chunks, str(tmp_path / "a.zarr")) == [(2, 1, 2)] * 2


def test_states_outputs_and_products_come_together(run, tmp_path):
    assert all(run(3, of_a_linearization, str(tmp_path / "a.zarr")))


def test_results_that_do_not_belong_together_are_refused_everywhere(run, tmp_path):
    both = run(2, wrong, str(tmp_path / "a.zarr"))
    words = {
        "another value": "values of eigenvalue",
        "another coordinate": "values of mode",
        "other variables": "variables",
        "another size": "eigenfunction of kind, dims and sizes",
        "another dtype": "eigenfunction of kind, dims and sizes",
        "another order": "eigenfunction of kind, dims and sizes",
        "other paths": "called to_zarr(path='",
        "another call": "called to_zarr(path='",
    }
    for name, expected in words.items():
        for told in both:
            for kind, text in told[name]:
                assert kind == "DistributedError", (name, kind, text)
                assert text.startswith(f"process 1 has {expected}"), text
    one, other = both
    alone = {
        "another kind": (1, "TypeError", "the number 3.0"),
        "no trials": (0, "ValueError", "no trials here"),
        "a path in use": (0, "FileExistsError", "is there already"),
    }
    for name, (rank, kind, text) in alone.items():
        for here, there in zip(both[rank][name], both[1 - rank][name], strict=True):
            assert here[0] == kind and text in here[1]
            assert there[0] == "DistributedError"
            assert there[1].startswith(f"process {rank} failed: {kind}: ") and text in there[1]
    for told in (one, other):
        assert told["rank"] == [("ValueError", "to=7: choose a rank from 0 to 1")]
        assert told["no name"][0][0] == "ValueError" and "rename" in told["no name"][0][1]


def test_a_disk_that_is_full_for_one_is_an_error_of_all(run, tmp_path):
    one, other = run(2, full_disk, str(tmp_path / "a.zarr"))
    assert other == ("OSError", "[Errno 28] No space left on device")
    assert one[0] == "DistributedError"
    assert one[1] == "process 1 failed: OSError: [Errno 28] No space left on device"


def test_without_a_group_the_result_is_whole_already(tmp_path):
    gru = torch.nn.GRU(2, 3, batch_first=True)
    lin = kpops.linearize(gru, torch.zeros(2, 4, 2), process_group=dist.group.WORLD)
    same(gather(lin.states), lin.states)
    to_zarr(lin.states, tmp_path / "a.zarr")
    same(xr.open_zarr(tmp_path / "a.zarr").states.load(), lin.states)
    with pytest.raises(TypeError, match="result is a tensor of shape"):
        gather(torch.zeros(3))
