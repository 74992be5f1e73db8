"""Spectra, estimates and gradient flow of trials spread over processes are those of one process."""

import warnings
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from cases import slow_but
from pool import error_of
from test_spread_operators import N_TRIALS, STEPS, linearized, own_trials

import kpops
from kpops.linalg.basis import Basis
from kpops.linalg.lanczos import Lanczos

MODELS = ["rnn_tanh", "gru", "lstm_two_layers", "shared_norm_cell"]
EVERY = list(product(MODELS, [2, 3]))
TIGHT = {"tol": 1e-10, "rng": 0}
PRODUCT = "P P*"


def op_of(lin, name):
    return lin.P @ lin.P.H if name == PRODUCT else getattr(lin, name)


def compare(name, function, operators, options):
    """The results of one process and of these: values, fields of the trials here, words."""
    both = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        for lin in linearized(name):
            args = [op_of(lin, op) for op in operators]
            both.append(getattr(kpops, function)(*args, **options))
    whole, spread = both
    differ = []
    for variable in whole.data_vars:
        want, got = whole[variable], spread[variable]
        if "trial" in want.dims:
            want = want.isel(trial=own_trials())
        if want.dtype.kind == "f":
            scale = float(abs(whole[variable]).max()) or 1.0
            differ.append((variable, float(abs(want - got).max()) / scale))
        elif not want.equals(got):
            differ.append((variable, np.inf))
    same = {k: whole.attrs.get(k) == spread.attrs.get(k) for k in ("chosen", "method")}
    return dict(differ), same, spread.trial.values.tolist() if "trial" in spread.coords else None


SOLVED = [
    ("eigsh", ["flow"], {}),
    ("eigsh", ["K"], {}),
    ("eigsh", [PRODUCT], {}),
    ("eigsh", ["flow"], {"method": "block-krylov"}),
    ("eigsh", ["output_ntk"], {"method": "block-krylov"}),
    ("eigsh", [PRODUCT], {"method": "block-krylov"}),
    ("eigsh", ["K"], {"method": "lobpcg"}),
    ("eigsh", ["output_ntk"], {"method": "block-krylov", "which": "LA"}),
    ("svds", ["P"], {}),
    ("svds", ["P"], {"method": "block-krylov"}),
    ("svds", ["J"], {"method": "block-krylov"}),
    ("svds", ["sensitivity"], {}),
]


@pytest.mark.parametrize("case", slow_but([("gru", 2)], product(MODELS, [1, 2, 3])))
def test_modes_are_those_of_one_process(run, case):
    name, n = case
    for function, operators, options in SOLVED:
        k = {"k": 3, **TIGHT}
        for differ, same, _ in run(n, compare, name, function, operators, {**k, **options}):
            what = f"{function} {operators} {options}: {differ}"
            value = differ.get("eigenvalue", differ.get("singular_value"))
            assert value < 1e-10, what
            assert all(same.values()), (what, same)


@pytest.mark.parametrize("case", slow_but([("lstm_two_layers", 3)], EVERY))
def test_whole_spectra_are_those_of_one_process(run, case):
    name, n = case
    for op in ("K", "flow", PRODUCT):
        for differ, same, _ in run(n, compare, name, "eigvalsh", [op], {}):
            assert differ["eigenvalue"] < 1e-10, (op, differ)
            assert all(same.values()), same


ESTIMATES = [
    *[("trace", [op], {"method": m}) for op in ("K", "flow") for m in ("auto", "hutchinson")],
    ("trace", ["flow"], {"method": "xtrace"}),
    ("trace", ["flow"], {"method": "xnystrace"}),
    ("trace", ["P"], {}),
    ("trace", [PRODUCT], {"method": "hutchinson"}),
    ("frobenius_norm", ["P"], {}),
    *[("frobenius_norm", [op], {"method": "hutchinson"}) for op in ("P", "K", "flow", "J")],
    *[
        ("effective_rank", [op], {"kind": kind})
        for op in ("P", "K", "flow", PRODUCT)
        for kind in ("participation", "variance", "entropy", "stable", "numerical")
    ],
    *[
        ("effective_rank", [op], {"kind": kind, "method": "hutchinson"})
        for op in ("P", "flow")
        for kind in ("participation", "variance", "stable")
    ],
    *[
        ("effective_rank", [op], {"kind": kind, "method": "lanczos", "num_matvecs": 400})
        for op in ("P", "flow", PRODUCT)
        for kind in ("variance", "entropy")
    ],
    *[("effective_rank", [op], {"kind": "variance", "keep": ("time",)}) for op in ("K", "flow")],
    ("alignment", ["K", "flow"], {}),
    ("alignment", ["K", "flow"], {"method": "hutchinson"}),
    ("alignment", ["P", PRODUCT], {}),
    ("spectral_norm", ["P"], {}),
]


@pytest.mark.parametrize("case", slow_but([("rnn_tanh", 2)], EVERY))
def test_estimates_are_those_of_one_process_for_the_same_seed(run, case):
    name, n = case
    for function, operators, options in ESTIMATES:
        for differ, same, _ in run(n, compare, name, function, operators, {"rng": 0, **options}):
            what = f"{function} {operators} {options}: {differ}"
            assert differ["estimate"] < 1e-10, what
            assert all(same.values()), (what, same)


def flows(loss, masked):
    whole, spread = linearized("gru")
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(N_TRIALS, STEPS, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(N_TRIALS, STEPS, generator=generator) + 0.1
    targets = targets if loss == "mse" else targets.argmax(-1)
    here = own_trials()
    want = kpops.gradient_flow(whole, targets, loss, loss_mask=weights if masked else None)
    mine = weights[here] if masked else None
    got = kpops.gradient_flow(spread, targets[here], loss, loss_mask=mine)
    gaps = {}
    for name, field in want.data_vars.items():
        part = field.isel(trial=here) if "trial" in field.dims else field
        gaps[name] = float(abs(part - got[name]).max() / abs(field).max())
    return gaps


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("masked", [True, False])
def test_gradient_flow_is_that_of_one_process(run, n, loss, masked):
    for gaps in run(n, flows, loss, masked):
        assert max(gaps.values()) < 1e-12, gaps


def flows_from_one_process(missing):
    """Only the last process has steps that count, by labels or weights."""
    whole, spread = linearized("gru")
    labels = torch.ones(N_TRIALS, STEPS, dtype=torch.int64)
    weights = torch.ones(N_TRIALS, STEPS)
    last = N_TRIALS - 2  # the last process has at least two trials
    if missing == "labels":
        labels[:last] = -100
    else:
        weights[:last] = 0
    here = own_trials()
    want = kpops.gradient_flow(whole, labels, "cross_entropy", loss_mask=weights)
    got = kpops.gradient_flow(spread, labels[here], "cross_entropy", loss_mask=weights[here])
    step = abs(want.parameter_step - got.parameter_step).max() / abs(want.parameter_step).max()
    none = error_of(kpops.gradient_flow, spread, labels[here] * 0 - 100, "cross_entropy")
    return float(step), float(abs(want.loss - got.loss)), none


@pytest.mark.parametrize("missing", ["labels", "weights"])
def test_a_process_need_have_no_step_that_counts(run, missing):
    for step, loss, (kind, text) in run(3, flows_from_one_process, missing):
        assert step < 1e-12 and loss < 1e-12
        assert kind == "ValueError" and "targets is -100 at every step that counts" in text


def overflow():
    """The loss of the last process alone is not finite."""
    _, lin = linearized("gru")
    targets = torch.zeros(N_TRIALS, STEPS, 3, dtype=torch.float64)
    targets[-1] = 1e200
    return error_of(kpops.gradient_flow, lin, targets[own_trials()])


def test_a_loss_that_one_process_finds_infinite_is_refused_by_all(run):
    for kind, text in run(2, overflow):
        assert kind == "ValueError" and "loss returned inf" in text


def started():
    """From a mode of one trial, which is zero on the other process, and what v0 may not be."""
    whole, lin = linearized("gru")
    gaps = []
    for method in ("block-krylov", "lobpcg"):
        options = {"method": method, **TIGHT}
        top = kpops.svds(lin.P, 1, **options)
        again = kpops.svds(lin.P, 2, v0=top.right, **options).singular_value
        want = kpops.svds(whole.P, 2, **options).singular_value
        gaps.append(float(abs(again - want).max() / want.max()))
    v0 = torch.ones(lin.space.shape, dtype=torch.float64)
    wrong = v0.clone()
    wrong[0, 0, 0] = np.inf if own_trials().start else 1.0
    first = v0.expand(2 if own_trials().start else 1, *v0.shape)
    errors = [error_of(lambda v0=v0: kpops.svds(lin.P, 2, v0=v0)) for v0 in (wrong, 0 * v0, first)]
    return gaps, [f"{kind}: {text}" for kind, text in errors]


def test_start_vectors_may_be_zero_on_a_process(run):
    for gaps, (wrong, zero, more) in run(2, started):
        assert max(gaps) < 1e-10
        assert "ValueError: v0 has entries that are not finite" in wrong
        assert "ValueError: v0 is zero" in zero
        assert "ValueError: v0 has more vectors on some processes than on others" in more


def stopped_by_one(function):
    """A callback that stops the search on the first process alone."""
    _, lin = linearized("gru")
    solve, op = getattr(kpops, function), lin.flow + lin.K
    seen = []

    def callback(progress):
        seen.append(progress.num_matvecs)
        return own_trials().start == 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kpops.ConvergenceWarning)
        modes = solve(op, 3, method="block-krylov", callback=callback, rng=0)
    return len(seen), modes.num_matvecs, bool(modes.converged.all())


@pytest.mark.parametrize("function", ["eigsh", "svds"])
def test_processes_stop_together(run, function):
    one, other = run(2, stopped_by_one, function)
    assert one == other
    assert one[0] == 1 and not one[2]


def refusals():
    _, lin = linearized("gru")
    targets = torch.zeros(*lin.outputs.shape, dtype=torch.float64)
    calls = {
        "truncate": lambda: kpops.truncate(lin.flow, 3),
        "collapse": lambda: kpops.collapse(lin),
        "trajectory_dimension": lambda: kpops.trajectory_dimension(lin),
        "partial_trace": lambda: lin.K.partial_trace(("time",)),
        "lyapunov_spectrum": lambda: kpops.lyapunov_spectrum(lin),
        "spectral_density": lambda: kpops.spectral_density(lin.K),
        "diagonal": lambda: kpops.diagonal(lin.K),
        "schatten_norm": lambda: kpops.schatten_norm(lin.K, 1),
        "interference": lambda: kpops.interference(lin, by="trial"),
        "arpack": lambda: kpops.eigsh(lin.P @ lin.P.H, 3, method="arpack"),
        "a loss of one's own": lambda: kpops.gradient_flow(lin, targets, lambda a, b: a.mean()),
        "interrupts": lambda: kpops.eigsh(lin.flow, 3, on_interrupt="return"),
    }
    return {what: error_of(call) for what, call in calls.items()}


def test_what_is_not_for_several_processes_says_so(run):
    for errors in run(2, refusals):
        for what, (kind, text) in errors.items():
            assert kind == "ValueError", (what, kind, text)
            assert "process" in text, (what, text)


def messages_of_steps(name):
    """Messages of each step of block Lanczos: its product and projections, and the next block."""
    _, lin = linearized("gru", masked=False)
    traffic, counts = lin.space.parts.traffic, {"expand": [], "orthonormal": []}

    def counted(kind, method):
        original = getattr(kind, method)

        def act(*arguments, **options):
            before = traffic.calls
            result = original(*arguments, **options)
            counts[method].append(traffic.calls - before)
            return result

        return mock.patch.object(kind, method, act)

    op = lin.flow + lin.K if name == "sum" else op_of(lin, name)
    op @ torch.ones(lin.space.shape, dtype=torch.float64)  # the features are decomposed once
    with counted(Lanczos, "expand"), counted(Basis, "orthonormal"):
        kpops.eigsh(op, 2, method="block-krylov", rng=0)
    return {method: sorted(set(numbers)) for method, numbers in counts.items()}


def test_a_step_of_lanczos_sends_as_little_as_it_can(run):
    # Of R*, in the space of coefficients, which every process has: one sum of the product.
    for counts in run(2, messages_of_steps, "flow"):
        assert counts == {"expand": [1], "orthonormal": [0]}
    # On trajectories, beside the product's two: one for each projection. The first block is random.
    for counts in run(2, messages_of_steps, "sum"):
        assert counts["expand"] == [4]
        assert counts["orthonormal"][0] == 0
    # One problem for each trial: only what all decide together.
    for counts in run(2, messages_of_steps, PRODUCT):
        assert counts["expand"] == [1]
        assert counts["orthonormal"][-1] <= 4


def seeds():
    """Traces by fresh seeds, and what seeds of its own say, on trajectories and parameters."""
    _, lin = linearized("gru")
    traces, errors = [], []
    for op in (lin.flow, lin.J.H @ lin.J):
        traces.append(float(kpops.trace(op, method="hutchinson").estimate))
        own = np.random.default_rng(own_trials().start)
        errors.append(error_of(lambda op=op, own=own: kpops.trace(op, method="xtrace", rng=own)))
    return traces, errors


def test_random_vectors_are_the_same_on_every_process(run):
    first, *others = run(3, seeds)
    for traces, _ in others:
        assert traces == first[0]
    for kind, text in [error for _, errors in (first, *others) for error in errors]:
        assert kind == "DistributedError"
        assert "pass the same seed" in text
