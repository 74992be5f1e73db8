"""The house, as its syntax trees tell: what imports what, and how long the files are."""

import ast
from pathlib import Path

import kpops

ROOT = Path(kpops.__file__).parent
FILES = {
    ".".join(("kpops", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
ROOMS = [
    {"labels", "arrays", "transfers", "scalars", "kinds", "work", "maturity", "precision"}
    | {"distributed"},
    {"models"},
    {"engines"},
    {"operators"},
    {"linalg"},
    {"snapshot", "read_inputs", "derivatives", "checks", "linearization", "linearizing"}
    | {"site_snapshot", "site_linearization"},
    {"spectral", "dynamics", "html"},
    {"studies"},
    {"learning"},
    {"systems", "koopman", "reconstruction"},
    {"tasks", "training", "plot", "testing"},
]
# What a function may import: compiled kernels, which load Numba, and what draws; optional packages;
# what only some systems have; what changes the warnings' filters when it is imported; and Zarr,
# which is slow to import.
LATE = (
    *("cupy", "cupyx", "matplotlib", "neurogym", "resource", "scipy.cluster", "scipy.optimize"),
    *("scipy.integrate", "scipy.ndimage", "scipy.spatial", "scipy.special", "icechunk", "zarr"),
)
COMPILED = ("kpops.engines.cpu.", "kpops.engines.cuda.")  # by Numba and Triton
DRAWING = ("kpops.plot.locators",)


def imports(name):
    """Pairs of an imported module and the innermost function around the import, or None."""
    tree = ast.parse(FILES[name].read_text())

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name} imports relatively"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in FILES else child.module), function
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, child if inside else function)

    yield from walk(tree, None)


def test_no_two_files_import_each_other_even_by_a_detour():
    waiting = {name: {m for m, _ in imports(name) if m in FILES and m != name} for name in FILES}
    while free := [name for name, needs in waiting.items() if not needs]:
        for name in free:
            del waiting[name]
        for needs in waiting.values():
            needs -= set(free)
    assert not waiting, f"in circles, or behind one: {sorted(waiting)}"


def test_rooms_import_only_from_rooms_to_their_left():
    rank = {room: i for i, group in enumerate(ROOMS) for room in group}
    ours = [(name, m) for name in FILES for m, _ in imports(name) if m.startswith("kpops.")]
    pairs = {(a.split(".")[1], b.split(".")[1]) for a, b in ours if a != "kpops"}
    assert not {(a, b) for a, b in pairs if rank[b] > rank[a]}


def test_functions_import_only_what_must_come_late():
    late = {
        (name, module)
        for name in FILES
        for module, function in imports(name)
        if function is not None and not module.startswith(LATE) and module not in DRAWING
    }
    assert not {(name, m) for name, m in late if not m.startswith(COMPILED)}


def test_engines_and_linalg_know_no_labels():
    assert not [
        n
        for n in FILES
        if n.startswith("kpops.linalg")
        for m, _ in imports(n)
        if m == "kpops.labels"
    ]
    rooms = ("kpops.engines", "kpops.linalg")
    inside = [name for name in FILES if name.startswith(rooms)]
    assert not [n for n in inside for m, _ in imports(n) if m.partition(".")[0] == "xarray"]


def test_nothing_looks_at_the_load_of_the_machine():
    words = ("loadavg", "cpu_percent")
    assert not [n for n, path in FILES.items() if any(w in path.read_text() for w in words)]


def test_files_can_be_read_in_one_sitting():
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_optional_packages_are_imported_by_tests_that_are_skipped_without_them():
    optional = {"pylops", "sklearn", "triton", "cupy", "curvlinops", "dask", "dysts", "neurogym"}
    optional |= {"icechunk"}
    optional |= {"pydmd", "DSA", "ot"}
    asked = set()
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what runs at the import of the file
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            asked |= {(path.name, n) for n in names if n.partition(".")[0] in optional}
    assert not asked
