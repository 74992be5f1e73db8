"""What may be taken: of the machine, of the container, of the process; and what is said of it."""

import subprocess
import sys
import types

import pytest
import torch

import kpops
from kpops.engines import memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A machine with 100 GiB free; a function that makes it a member of control groups."""
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(memory, "_of_limits", lambda: iter(()))
    free = types.SimpleNamespace(available=100 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free)

    def make(membership, files):
        (tmp_path / "self").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return make


def version_2(folder, most, used, inactive=0):
    names = ("memory.max", "memory.current", "memory.stat")
    values = (most, used, f"anon 5\ninactive_file {inactive}")
    return {f"{folder}{name}": value for name, value in zip(names, values, strict=True)}


def version_1(folder, most, used, inactive=0):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    values = (most, used, f"cache 5\ntotal_inactive_file {inactive}")
    return {f"memory/{folder}{name}": value for name, value in zip(names, values, strict=True)}


def test_without_control_groups_the_machine_decides(cgroups):
    assert memory.free_bytes(CPU) == 100 * GIB
    cgroups("0::/user\n", version_2("user/", "max", 3 * GIB))
    assert memory.free_bytes(CPU) == 100 * GIB


def test_the_limit_of_a_container_holds_less_what_it_uses_and_cannot_reclaim(cgroups):
    cgroups("0::/\n", version_2("", 8 * GIB, 5 * GIB, inactive=GIB))
    assert memory.free_bytes(CPU) == 4 * GIB


def test_the_limits_of_all_ancestors_hold(cgroups):
    files = version_2("job/", 6 * GIB, GIB) | version_2("job/step/", 50 * GIB, GIB)
    cgroups("0::/job/step\n", files)
    assert memory.free_bytes(CPU) == 5 * GIB


def test_version_1_whose_folder_the_container_does_not_see(cgroups):
    lines = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"
    cgroups(lines, version_1("", 4 * GIB, 3 * GIB, inactive=GIB // 2))
    assert memory.free_bytes(CPU) == 3 * GIB // 2


def test_a_group_that_has_used_up_its_memory_leaves_nothing(cgroups):
    cgroups("0::/\n", version_2("", GIB, 2 * GIB))
    assert memory.free_bytes(CPU) == 0


def test_what_does_not_fit_a_container_is_refused_with_sizes_and_remedy(cgroups):
    lin = kpops.linearize(torch.nn.GRU(2, 64), torch.zeros(50, 8, 2))
    cgroups("0::/\n", version_2("", 3 * GIB, GIB))
    told = r"the dense <P K P\*.* needs 4.883 GiB, 2 GiB are free on cpu: use what needs matvecs"
    with pytest.raises(MemoryError, match=told):
        lin.flow.to_dense()
    for word in (r"select\(", "float32", "autodiff"):
        with pytest.raises(MemoryError, match=word):
            lin.P.to_dense()
    with pytest.raises(MemoryError, match=r"20000 probes of .* needs .* GiB, 2 GiB are free"):
        lin.flow.partial_trace(keep=("time",), num_probes=20_000, rng=0)


def test_engines_that_do_not_fit_name_another(cgroups):
    cgroups("0::/\n", version_2("", GIB, GIB))
    with pytest.raises(MemoryError, match=r"needs .* 0 MiB are free .*autodiff.* fewer trials"):
        kpops.linearize(torch.nn.GRU(2, 64), torch.zeros(50, 8, 2), engine="jacobian")


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 MiB"), (2**18, "0.25 MiB"), (3 * 2**29, "1.5 GiB"), (55 * GIB, "55 GiB")],
)
def test_bytes_are_read_in_mib_and_gib(n_bytes, words):
    assert memory.readable(n_bytes) == words


UNDER_A_LIMIT = """
import resource, torch, kpops
from kpops.engines.memory import free_bytes
import psutil

lin = kpops.linearize(torch.nn.GRU(2, 64), torch.zeros(50, 8, 2))
room = 2**29
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert 0 < free_bytes(torch.device("cpu")) <= room, free_bytes(torch.device("cpu"))
many = torch.zeros(1, 8, 50, 64).expand(20_000, -1, -1, -1)
inputs = torch.zeros(50, 50_000, 1)
run = lambda: kpops.linearize(torch.nn.RNN(1, 64), inputs)
for act in (lin.P.to_dense, lambda: lin.P.apply(many), run):
    try:
        act()
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_limits_of_the_process_are_respected():
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    dense, product, run = done.stdout.splitlines()
    assert dense.startswith("the dense <P (trial: 8, time: 50, unit: 64)")
    assert "needs 4.883 GiB" in dense and "or take fewer trials" in dense
    assert product.startswith("applying <P (trial: 8, time: 50, unit: 64), float32 on cpu> to ")
    assert "to 20000 vectors got no memory" in product and "or vectors at a time" in product
    assert run.startswith("a run of the model got no memory, ") and "take fewer trials" in run


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize(("limit", "used"), [("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")])
def test_each_limit_of_the_process_is_looked_at(limit, used, monkeypatch):
    import resource

    most = getattr(memory.psutil.Process().memory_info(), used) + GIB
    infinity = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = {getattr(resource, limit): (most, most)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which, infinity))
    assert GIB // 2 < memory.free_bytes(CPU) < 3 * GIB // 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=["cpu", "cuda"],
)
def test_torchs_refusals_within_products_become_memory_errors(error, monkeypatch):
    lin = kpops.linearize(torch.nn.GRU(2, 4), torch.zeros(5, 3, 2))

    def refuse(q):
        raise error

    monkeypatch.setattr(lin.engine, "propagate", refuse)
    monkeypatch.setattr(memory, "free_bytes", lambda device: GIB // 2)
    with pytest.raises(MemoryError, match=r"applying <P .* got no memory, 512 MiB are free") as e:
        lin.P @ lin.P @ torch.zeros(3, 5, 4)
    assert e.value.__cause__ is error
    other = RuntimeError("shapes do not fit")
    monkeypatch.setattr(lin.engine, "propagate", lambda q: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        lin.P @ torch.zeros(3, 5, 4)
