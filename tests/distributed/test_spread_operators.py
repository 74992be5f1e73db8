"""Operators whose trials are spread over processes equal those of one process on every part."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import xarray as xr
from cases import BY_NAME, HIDDEN, INPUTS, serving
from pool import error_of
from torch import nn

import kpops

N_TRIALS, STEPS = 6, 5
COUNTS = {1: (6,), 2: (2, 4), 3: (1, 3, 2)}
LENGTHS = torch.tensor([5, 3, 1, 5, 4, 2])
MASK = torch.arange(STEPS) < LENGTHS[:, None]


# What runs in every process.


def own_trials():
    counts, rank = COUNTS[dist.get_world_size()], dist.get_rank()
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def model_of(name):
    if name == "state_space":
        return kpops.models.DiagonalSSM(
            INPUTS, HIDDEN, form="real", radius=(0.5, 0.9), rng=0
        ).double()
    return BY_NAME[name].model()


def linearized(name, masked=True, **options):
    """Of all trials, and of those here."""
    model = model_of(name)
    batch_first = getattr(model, "batch_first", True)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N_TRIALS, STEPS, INPUTS, generator=generator, dtype=torch.float64)
    h0 = None
    if name in BY_NAME:
        size = BY_NAME[name].state_size
        h0 = torch.randn(N_TRIALS, size, generator=generator, dtype=torch.float64)
    torch.manual_seed(2)
    readout = nn.Linear(HIDDEN, 3).double()

    def of(trials, **group):
        laid_out = [a[trials] if batch_first else a[trials].transpose(0, 1) for a in (x, MASK)]
        mine = {"mask": laid_out[1] if masked else None, "h0": None if h0 is None else h0[trials]}
        return kpops.linearize(model, laid_out[0], readout=readout, **mine, **options, **group)

    return of(slice(None)), of(own_trials(), process_group=dist.group.WORLD)


def operators(lin):
    return {
        "P": lin.P,
        "P_inv": lin.P_inv,
        "J": lin.J,
        "K": lin.K,
        **{f"K[{name}]": K for name, K in lin.K_by_parameter.items()},
        "flow": lin.flow,
        "sensitivity": lin.sensitivity,
        "C": lin.C,
        "output_ntk": lin.output_ntk,
        "product": lin.P @ lin.K @ lin.P.H,
        "J* J": lin.J.H @ lin.J,
        "sum": 2.5 * lin.K - lin.flow,
        "over time": lin.flow.expand_average(("time",)),
        "over time and unit": lin.P.expand_average(("time", "unit")),
        "over trials": lin.K.expand_average("trial"),
        "selected": lin.flow.select(time=slice(1, 4), unit=[0, 2]),
        "selected parameters": lin.J.select(parameter=range(3), unit=[1]),
        "ggn": lin.ggn(lin.outputs.argmax("output"), "cross_entropy"),
        "hessian": lin.hessian(0.5 * lin.outputs),
    }


def here(space, block):
    return block[:, own_trials()] if space.dims[0] == "trial" else block


def apart(whole, spread, seed=0):
    """Largest difference here over the norm of the image, of an operator and its adjoint."""
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for A, B in ((whole, spread), (whole.H, spread.H)):
        q = torch.randn(3, *A.domain.shape, generator=generator, dtype=A.torch_dtype)
        want, got = A.apply(q), B.apply(here(A.domain, q))
        gap = (here(A.codomain, want) - got).norm() / want.norm()
        worst = max(worst, float(gap))
    return worst


def compare(name, measure, masked, engine="auto"):
    whole, spread = linearized(name, masked, measure=measure, engine=engine)
    ours = operators(spread)
    gaps = {name: apart(op, ours[name]) for name, op in operators(whole).items()}
    shapes = {name: (op.shape, ours[name].shape) for name, op in operators(whole).items()}
    labels = spread.space.coords["trial"].values.tolist()
    return gaps, shapes, labels, spread.engine.name


def counted(name):
    """Matvecs counted by factors and wholes, of one process and here."""
    both = []
    for lin in linearized(name):
        q = torch.ones(3, *lin.space.shape, dtype=torch.float64)
        for op in (lin.P, lin.P.H, lin.K, lin.flow, lin.flow.H, lin.P @ lin.K):
            op.apply(q)
        both.append([op.num_matvecs for op in (lin.P, lin.K, lin.flow)])
    return both


def kinds():
    """Products of NumPy arrays, tensors, columns and DataArrays."""
    whole, spread = linearized("gru")
    q = torch.randn(N_TRIALS, STEPS, HIDDEN, generator=torch.Generator().manual_seed(3)).double()
    want = (whole.flow @ q)[own_trials()]
    mine = q[own_trials()]
    labelled = spread.space.label(mine.numpy())
    results = {
        "tensor": spread.flow @ mine,
        "numpy": spread.flow @ mine.numpy(),
        "flat": spread.flow @ mine.numpy().ravel(),
        "columns": spread.flow @ mine.numpy().reshape(-1, 1),
        "labelled": spread.flow @ labelled.transpose("unit", "trial", "time"),
    }
    gaps = {
        k: float(np.abs(np.asarray(v).reshape(want.shape) - want.numpy()).max())
        for k, v in results.items()
    }
    named = results["labelled"]
    return gaps, {k: type(v) for k, v in results.items()}, named.trial.values.tolist()


def traffic(name, engine):
    """Calls and bytes of each product with 3 vectors, after the first; sizes to compare with."""
    _, lin = linearized(name, engine=engine)
    found = {}
    q = torch.ones(3, *lin.space.shape, dtype=torch.float64)
    theta = torch.ones(3, *lin.parameter_space.shape, dtype=torch.float64)
    products = {
        "P": (lin.P, q), "P*": (lin.P.H, q), "P_inv": (lin.P_inv, q), "K": (lin.K, q),
        "flow": (lin.flow, q), "J": (lin.J, theta), "J*": (lin.J.H, q),
        "sensitivity": (lin.sensitivity, theta), "sensitivity*": (lin.sensitivity.H, q),
        "C": (lin.C, q), "K @ K": (lin.K @ lin.K, q),
    }  # fmt: skip
    counter = lin.space.parts.traffic
    for key, (op, block) in products.items():
        op.apply(block)
        before = counter.calls, counter.n_bytes
        op.apply(block)
        found[key] = counter.calls - before[0], counter.n_bytes - before[1]
    size = lin.engine.factor_size(tuple(lin.parameters))
    return found, size, lin.parameter_space.size


def refusals():
    import pickle

    import scipy.sparse.linalg

    _, lin = linearized("gru")
    return [
        error_of(lambda: lin.flow.select(trial=[0])),
        error_of(lambda: scipy.sparse.linalg.eigsh(lin.flow, 2)),
        error_of(lambda: lin.flow.matvec(np.ones(lin.flow.shape[1]))),
        error_of(lambda: pickle.dumps(lin.flow)),
        error_of(lambda: pickle.dumps(lin)),
        error_of(lambda: lin.flow @ linearized("gru")[0].flow),
    ]


def user_labels():
    """Trials labelled by the user, as a DataArray."""
    x = np.random.default_rng(0).standard_normal((N_TRIALS, STEPS, INPUTS))
    coords = {"trial": np.arange(N_TRIALS) * 10, "angle": ("trial", np.linspace(0, 3, N_TRIALS))}
    x = xr.DataArray(x, coords, ("trial", "time", "feature"))
    mine = x[own_trials()]
    lin = kpops.linearize(model_of("gru"), mine, process_group=dist.group.WORLD)
    return lin.states.angle.values.tolist(), lin.states.trial.values.tolist()


# The tests.


NAMES = ["rnn_tanh", "gru", "lstm_two_layers", "shared_norm_cell"]
DEFAULT = [
    (n, name, *options)
    for n, names in ((1, NAMES[1:2]), (2, NAMES[:1]), (3, NAMES))
    for name in names
    for options in (("sum", False), ("mean", True))
]  # two processes are those of the engines


@pytest.mark.parametrize(("n", "name", "measure", "masked"), DEFAULT)
def test_every_operator_equals_that_of_one_process(run, n, name, measure, masked):
    check(run(n, compare, name, measure, masked))


ENGINES = [
    (name, engine)
    for name in ("gru", "lstm_two_layers", "shared_norm_cell", "state_space")
    for engine in serving(model_of(name))
]


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_every_engine_computes_on_parts(run, name, engine):
    found = run(2, compare, name, "mean", True, engine)
    assert {engine_here for *_, engine_here in found} == {engine}
    check(found)


def check(found):
    n = len(found)
    for rank, (gaps, shapes, labels, _) in enumerate(found):
        assert max(gaps.values()) < 1e-12, gaps
        assert all(whole == spread for whole, spread in shapes.values()), shapes
        first = sum(COUNTS[n][:rank])
        assert labels == list(range(first, first + COUNTS[n][rank]))


@pytest.mark.parametrize("name", ["gru", "lstm_two_layers", "shared_norm_cell"])
def test_matvecs_are_counted_as_on_one_process(run, name):
    for whole, spread in run(2, counted, name):
        assert whole == spread


def test_what_goes_in_comes_out(run):
    for rank, (gaps, types, labels) in enumerate(run(2, kinds)):
        assert max(gaps.values()) < 1e-12
        assert types == {
            "tensor": torch.Tensor,
            "numpy": np.ndarray,
            "flat": np.ndarray,
            "columns": np.ndarray,
            "labelled": xr.DataArray,
        }
        assert labels == ([0, 1], [2, 3, 4, 5])[rank]


def test_users_labels_of_trials_are_kept(run):
    angles, trials = zip(*run(3, user_labels), strict=True)
    assert [angle for here in angles for angle in here] == np.linspace(0, 3, N_TRIALS).tolist()
    assert trials == ([0], [10, 20, 30], [40, 50])


@pytest.mark.parametrize(
    ("name", "engine"),
    [("gru", "gated_numba"), ("rnn_tanh", "gated"), ("shared_norm_cell", "jacobian")],
)
def test_only_sums_over_trials_communicate(run, name, engine):
    for found, thin, n_parameters in run(2, traffic, name, engine):
        block = 3 * 8
        middle = min(n_parameters, thin or n_parameters) * block
        assert found == {
            "P": (0, 0),
            "P*": (0, 0),
            "P_inv": (0, 0),
            "C": (0, 0),
            "J": (0, 0),
            "sensitivity": (0, 0),
            "J*": (1, n_parameters * block),
            "sensitivity*": (1, n_parameters * block),
            "K": (1, middle),
            "flow": (1, middle),
            "K @ K": (2, 2 * middle),
        }


def test_what_one_process_alone_could_do_is_refused_by_name(run):
    for errors in run(2, refusals):
        (select, eigsh, matvec, pickled, pickled_lin, mixed) = errors
        assert select[0] == "ValueError" and "trial is spread over 2 processes" in select[1]
        for kind, text in (eigsh, matvec):
            assert kind == "ValueError" and "<P K P* (trial:" in text and "kpops.eigsh" in text
        for kind, text in (pickled, pickled_lin):
            assert kind == "TypeError" and "spread over processes does not pickle" in text
        assert mixed[0] == "ValueError" and "of 6" in mixed[1]
