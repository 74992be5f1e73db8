"""Products by TF32 where they are asked for, and nowhere else, on a GPU that is imitated."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_settings import NONE, apply, get, initial_settings, shown

import kpops
from kpops import precision


@pytest.fixture(autouse=True)
def _settings():
    with initial_settings():
        yield


PRODUCTS = {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"}


class OnGpu(TorchDispatchMode):
    """Matrix products as a GPU computes them: by factors of 10 bits where TF32 is allowed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, by_tf32 = str(func).rpartition(".")[0], get("cuda", "matmul") == "tf32"
        self.seen.add((name, by_tf32))
        if name in PRODUCTS and by_tf32:
            args = (*args[:-2], *map(rounded, args[-2:]))
        return func(*args, **(kwargs or {}))


def rounded(factor):
    """The nearest float32 numbers with 10 bits after the leading one."""
    mantissa, exponent = torch.frexp(factor)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def gru(n_trials=8, n_steps=40, n_units=30, **options):
    torch.manual_seed(0)
    model = nn.GRU(2, n_units, batch_first=True)
    return kpops.linearize(model, torch.randn(n_trials, n_steps, 2), engine="gated", **options)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ["P", "P_inv", "J", "K", "flow", "sensitivity"])
def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else(name):
    exact, lin, by_tf32 = gru(dtype=torch.float64), gru(), gru(precision="tf32")
    op = getattr(exact, name)
    q = np.random.default_rng(0).standard_normal(op.shape[1])
    reference, plain = op @ q, getattr(lin, name) @ q
    apply("high", "tf32", *NONE[1:])
    before = shown()
    with OnGpu():
        here, there = getattr(gru(), name) @ q, getattr(gru(precision="tf32"), name) @ q
    assert before == shown()
    np.testing.assert_array_equal(here, plain)
    assert relative(plain, reference) < 3e-6
    assert 1e-5 < relative(there, reference) < 1e-2
    np.testing.assert_array_equal(getattr(by_tf32, name) @ q, plain)  # no effect on a CPU


@pytest.mark.parametrize("name", ["P", "P_inv", "J", "K", "flow", "sensitivity"])
@pytest.mark.parametrize("engine", ["gated", "autodiff"])
@pytest.mark.parametrize("family", [nn.GRU, nn.LSTM])
def test_three_products_by_tf32_have_the_error_of_float32(family, engine, name):
    torch.manual_seed(0)
    model, inputs = family(2, 30, batch_first=True), torch.randn(8, 40, 2)
    options = [{"dtype": torch.float64}, {}, {"precision": "tf32x3"}]
    exact, lin, thrice = (kpops.linearize(model, inputs, engine=engine, **o) for o in options)
    op = getattr(exact, name)
    q = np.random.default_rng(0).standard_normal((op.shape[1], 40))  # wide enough for all paths
    reference, plain = op @ q, getattr(lin, name) @ q
    with OnGpu() as gpu:
        image = getattr(thrice, name) @ q
    assert relative(image, reference) < 3 * relative(plain, reference) + 1e-6
    by_tf32 = {name for name, by_tf32 in gpu.seen if by_tf32}
    assert bool(PRODUCTS & by_tf32) == (engine == "gated")
    assert "3 x TF32" in repr(thrice) and "3 x TF32" in repr(thrice.flow)


def test_halves_of_float32_numbers_add_up_and_fit_tf32():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).exp() * torch.tensor(
        [[1], [-1]]
    )
    upper, lower = precision._halves(x)
    assert torch.equal(upper + lower, x)
    assert torch.equal(rounded(upper), upper)
    assert (lower.abs() <= 2.0**-11 * x.abs()).all()


SOLVERS = {
    "eigsh": lambda lin: kpops.eigsh(lin.flow, k=2, rng=0),
    "exact": lambda lin: kpops.eigsh(lin.flow, k=2, method="exact"),
    "svds": lambda lin: kpops.svds(lin.P, k=2, rng=0),
    "eigvalsh": lambda lin: kpops.eigvalsh(lin.K),
    "effective_rank": lambda lin: kpops.effective_rank(lin.flow, rng=0),
    "trace": lambda lin: kpops.trace(lin.flow, method="xtrace", rng=0),
    "alignment": lambda lin: kpops.alignment(lin.flow, lin.K, method="hutchinson", rng=0),
    "density": lambda lin: kpops.spectral_density(lin.flow, method="lanczos", rng=0),
    "gramian": lambda lin: kpops.observability_gramian(lin),
    "partial_trace": lambda lin: lin.flow.partial_trace("unit").to_dense(),
    "truncate": lambda lin: kpops.truncate(lin.flow, 2, rng=0),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_see_the_highest_precision(name):
    apply("medium", "tf32", *NONE[1:3], "tf32", "bf16", "none", "none")
    before = shown()
    lin = gru(4, 10, 8)
    with OnGpu() as gpu:
        SOLVERS[name](lin)
    assert not {n for n, by_tf32 in gpu.seen if by_tf32 and (n in PRODUCTS or "linalg" in n)}
    assert PRODUCTS & {name for name, _ in gpu.seen}
    assert before == shown()


@pytest.mark.parametrize("name", ["eigsh", "svds", "effective_rank"])
def test_decompositions_are_not_by_tf32(name):
    lin = gru(4, 10, 8, precision="tf32")
    with OnGpu() as gpu, warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)  # to the tolerance of float32
        SOLVERS[name](lin)
    by_tf32 = {name for name, by_tf32 in gpu.seen if by_tf32}
    others = {name for name, by_tf32 in gpu.seen if not by_tf32}
    assert PRODUCTS & by_tf32
    assert any("linalg" in name for name in others)
    assert not any("linalg" in name for name in by_tf32)


def test_the_precision_is_named_and_carried():
    lin = gru(precision="tf32")
    assert lin.precision == "tf32" and gru().precision == "highest"
    assert repr(lin.flow) == "<P K P* (trial: 8, time: 40, unit: 30), float32 by TF32 on cpu, PSD>"
    assert "float32 by TF32 on cpu" in repr(lin) and "TF32" not in repr(gru())
    assert kpops.eigsh(lin.flow, k=1, rng=0).attrs["precision"] == "tf32"
    assert "precision" not in gru().flow.attrs
    for op in (
        lin.P,
        lin.P.H,
        lin.K,
        2 * lin.K,
        lin.flow,
        lin.K.root,
        lin.P @ lin.J,
        lin.P + lin.K,
    ):
        assert op.precision == "tf32"
        for other in (copy.copy(op), copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
            assert other.precision == "tf32"
    for other in (copy.deepcopy(lin), pickle.loads(pickle.dumps(lin))):
        assert other.flow.precision == "tf32"
    at = kpops.linearize_at(lin, torch.zeros(1, 30), 2)
    assert at.P.precision == "tf32"


def test_operators_of_two_precisions_are_not_mixed():
    lin, other = gru(precision="tf32"), gru()
    message = (
        "computes at precision='tf32', .* at 'highest': linearise both with the same precision="
    )
    with pytest.raises(ValueError, match=message):
        lin.P @ other.K
    with pytest.raises(ValueError, match=message):
        lin.K + 2 * other.K
    average = lin.flow.expand_average(["unit"])  # a mean has no precision of its own
    assert average.precision == "tf32"


def test_precisions_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"precision='high': choose one of \['highest', 'tf32x3', 'tf32'\]"
    ):
        gru(precision="high")
    for choice in ("tf32x3", "tf32"):
        message = f"precision='{choice}' rounds factors of float32, .*float64"
        with pytest.raises(ValueError, match=message):
            gru(precision=choice, dtype=torch.float64)
