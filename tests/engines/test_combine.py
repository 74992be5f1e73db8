"""What is pointwise in a gated cell: by PyTorch, and by Triton's kernel in its interpreter."""

import importlib
import subprocess
import sys

import pytest
import torch
from cases import CASES
from dense import relative

import kpops
from kpops.engines.gated import combine as combine_module
from kpops.engines.gated import engine as gated_engine
from kpops.engines.gated.combine import combine

GATED_CASES = [c for c in CASES if c.name != "shared_norm_cell"]
GRU = ((0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 2, 2), (0, 1, 0, 3))
LSTM = ((0, 0, 0, 3), (1, 0, 2, 0), (1, 1, 1, 4), (0, 1, 1, -1), (1, 0, 0, -1))


@pytest.fixture(scope="module")
def interpreted():
    """Triton's kernel, run by its interpreter."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop("kpops.engines.cuda.combine_kernel", None)
        yield importlib.import_module("kpops.engines.cuda.combine_kernel").combine
    sys.modules.pop("kpops.engines.cuda.combine_kernel")


def written_out(terms, d, sources, base, hidden):
    """The sum of the docstring, term by term."""
    parts = [source.split(hidden, -1) for source in sources]
    new = [part.clone() for part in base.split(hidden, -1)]
    for v, source, i, p in terms:
        gain = 1 if p < 0 else d[p]
        new[v] = new[v] + gain * parts[source][i]
    return torch.cat(new, -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["one step", "all steps", "a view", "in place", "from zero"])
@pytest.mark.parametrize(("terms", "variables"), [(GRU, 1), (LSTM, 2)])
@pytest.mark.parametrize("by", ["PyTorch", "Triton"])
def test_sums_of_diagonals_times_vectors(request, by, terms, variables, kind, dtype):
    act = combine if by == "PyTorch" else request.getfixturevalue("interpreted")
    generator = torch.Generator().manual_seed(0)
    hidden, block, trials, steps = 5, 3, 2, 4

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    d = random(trials, steps, 5, hidden).movedim(2, 0)  # as engines keep them
    sources = random(block, trials, steps, 3 * hidden), random(block, trials, steps, 2 * hidden)
    base, into = (random(block, trials, steps, hidden * variables) for _ in range(2))
    if kind == "one step":
        d, base, into, *sources = (x[:, :, 2] for x in (d, base, into, *sources))
    if kind == "a view":
        into = random(block, trials, steps, 3 + hidden * variables)[..., 3:]
        sources = [random(trials, steps, 3 * hidden).expand(block, -1, -1, -1), sources[1]]
    if kind == "in place":
        into = base
    start = torch.zeros_like(base) if kind == "from zero" else base
    expected = written_out(terms, d, sources, start, hidden)
    kept = [x.clone() for x in (d, *sources)]
    act(terms, d, tuple(sources), into, None if kind == "from zero" else base)
    assert relative(into, expected) < (1e-15 if dtype == torch.float64 else 1e-6)
    assert into.dtype == dtype
    assert all(torch.equal(x, k) for x, k in zip((d, *sources), kept, strict=True))


def test_columns_of_a_program_cover_all_units(interpreted, monkeypatch):
    module = sys.modules["kpops.engines.cuda.combine_kernel"]
    monkeypatch.setattr(module, "_COLUMNS", 4)
    d, maps, old = torch.rand(4, 2, 10), torch.rand(3, 2, 30), torch.rand(3, 2, 10)
    into = torch.rand(3, 2, 10)
    expected = written_out(GRU, d, (maps, old), into, 10)
    interpreted(GRU, d, (maps, old), into, into)
    assert relative(into, expected) < 1e-6


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), None])
def test_without_a_working_triton_pytorch_takes_over(monkeypatch, error):
    pytest.importorskip("triton")
    launched = []

    def launch(*arguments):
        launched.append(arguments)
        if error is not None:
            raise error

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr("kpops.engines.cuda.combine_kernel.combine", launch)
    combine_module._fused.cache_clear()
    try:
        if error is None:
            assert combine_module._fused(torch.device("cpu")) is launch
        else:
            with pytest.warns(UserWarning, match=r"no fused kernel on cpu: .*C compiler"):
                assert combine_module._fused(torch.device("cpu")) is None
            assert combine_module._fused(torch.device("cpu")) is None  # and is silent
        assert len(launched) == 1
    finally:
        combine_module._fused.cache_clear()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kpops.engines.cuda.combine_kernel import _combine

constants = {"terms": %r, "variables": 2, "has_base": True, "columns": 256}
vectors = ("into", "base", "first", "second", "d")
signature = {n: "*%s" if n in vectors else "constexpr" if n in constants else "i32"
             for n in _combine.arg_names}
constants = {(_combine.arg_names.index(name),): value for name, value in constants.items()}
made = triton.compile(ASTSource(_combine, signature, constants), target=GPUTarget("cuda", 90, 32))
assert "st.global" in made.asm["ptx"], made.asm["ptx"]
"""


@pytest.mark.parametrize("kind", ["fp32", pytest.param("fp64", marks=pytest.mark.slow)])
def test_the_kernel_compiles_for_a_gpu(kind, tmp_path):
    pytest.importorskip("triton")
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", COMPILE % (LSTM, kind)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", GATED_CASES, ids=lambda c: c.name)
def test_assembled_gains_give_the_same_products(case, monkeypatch):
    model, (inputs, h0) = case.model(), case.data()
    inputs = case.as_module_takes(model, inputs)
    lin = kpops.linearize(model, inputs, h0=h0, engine="gated")
    q = torch.randn(3, *lin.space.shape, dtype=torch.float64)
    plain = lin.P.apply(q), lin.P.H.apply(q), lin.flow.apply(q)
    monkeypatch.setattr(
        gated_engine.GatedEngine,
        "_assembles",
        lambda self, layer, *_: layer.pattern.n_recurrent > 0,
    )
    for before, op in zip(plain, (lin.P, lin.P.H, lin.flow), strict=True):
        assert relative(op.apply(q), before) < 1e-13
    dense = lin.engine.layers[0].jacobians(2)
    h = torch.randn(1, len(dense), dense.shape[2], dtype=torch.float64)
    into = torch.zeros_like(h)
    layer = lin.engine.layers[0]
    layer.jvp(layer.diagonals(slice(2, 3))[:, :, 0], h, into)
    assert relative(into[0], (dense @ h[0][..., None])[..., 0]) < 1e-13


def test_wide_blocks_are_assembled_on_a_gpu_where_maps_are_saved():
    expected = {"rnn_tanh": None, "gru": 32, "lstm": 64}
    for case in (c for c in CASES if c.name in expected):
        model, (inputs, h0) = case.model(), case.data()
        inputs = case.as_module_takes(model, inputs)
        engine = kpops.linearize(model, inputs, h0=h0, engine="gated").engine
        assert engine.assembled_from(engine.layers[0]) is None
        assert "assembled" not in engine.remark
        object.__setattr__(engine.trajectory, "states", engine.trajectory.states.to("meta"))
        assert engine.assembled_from(engine.layers[0]) == expected[case.name]
        assert ("assembled" in engine.remark) == (expected[case.name] is not None)
