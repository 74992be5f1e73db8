"""Partial traces: exact against einsum over dense matrices, estimates against the exact ones."""

from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from cases import BY_NAME, STEPS, slow_but
from dense import relative

import kpops
from kpops.labels import Space
from kpops.operators import DenseOperator, PartialTrace, ProbedGram, ProbedTrace
from kpops.testing import check_operator

DIMS = ("trial", "time", "unit")
SUBSETS = [keep for size in (1, 2, 3) for keep in combinations(DIMS, size)]
MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])
OPERATORS = {
    "P": lambda lin: lin.P,
    "P*": lambda lin: lin.P.H,
    "P^-1": lambda lin: lin.P_inv,
    "K": lambda lin: lin.K,
    "K of a weight": lambda lin: 2.5 * next(iter(lin.K_by_parameter.values())),
    "flow": lambda lin: lin.flow,
    "J J*": lambda lin: lin.J @ lin.J.H,
    "selection": lambda lin: lin.flow.select(time=[3, 0], unit=slice(1, 4)),
}


def linearized(name, mask=None, dtype=torch.float64, **options):
    case = BY_NAME[name]
    model, (inputs, h0) = case.model(dtype), case.data(dtype)
    inputs, mask = (case.as_module_takes(model, array) for array in (inputs, mask))
    return kpops.linearize(model, inputs, h0=h0, mask=mask, **options)


def traced(op, keep):
    """The partial trace of the dense matrix."""
    letters = dict(zip(DIMS, "abc", strict=True))
    left = "".join(letters[d] for d in DIMS)
    right = "".join(letters[d].upper() if d in keep else letters[d] for d in DIMS)
    kept = "".join(letters[d] for d in DIMS if d in keep)
    dense = op.to_dense().reshape(*op.codomain.shape, *op.domain.shape)
    result = np.einsum(f"{left}{right}->{kept}{kept.upper()}", dense)
    return result.reshape(prod(result.shape[: len(kept)]), -1)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
@pytest.mark.parametrize(
    "name",
    slow_but(["gru", "shared_norm_cell"], ["gru", "lstm", "lstm_two_layers", "shared_norm_cell"]),
)
@pytest.mark.parametrize("which", OPERATORS)
def test_exact_partial_traces_are_those_of_the_dense_matrix(which, name, mask, device):
    op = OPERATORS[which](linearized(name, mask, device=device))
    for keep in SUBSETS:
        reduced = op.partial_trace(keep)
        exact = traced(op, keep)
        gap = np.abs(reduced.to_dense() - exact).max()
        assert gap < 1e-12 * np.abs(op.to_dense()).sum(1).max(), keep
        assert np.trace(reduced.to_dense()) == pytest.approx(np.trace(op.to_dense()), rel=1e-12)
        assert reduced.domain == op.domain.keep(keep)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_reductions_of_K_take_no_product(name):
    lin = linearized(name)
    for keep in SUBSETS[:-1]:
        reduced = lin.K.partial_trace(keep)
        assert isinstance(reduced, DenseOperator)
        assert reduced.positive
        reduced.to_dense()
    assert lin.K.num_matvecs == 0
    assert lin.K.partial_trace("unit").block_diagonal_dims == (("unit",) if name == "gru" else ())


def test_K_of_few_units_at_a_time_is_the_same(monkeypatch):
    lin = linearized("lstm")
    whole = [lin.K.partial_trace(keep).to_dense() for keep in SUBSETS]
    monkeypatch.setattr("kpops.engines.gated.unit_blocks._BYTES", {"cpu": 1})
    for keep, matrix in zip(SUBSETS, whole, strict=True):
        assert relative(lin.K.partial_trace(keep).to_dense(), matrix) < 1e-14


def test_large_reductions_of_K_are_exact_without_their_matrix(monkeypatch):
    lin = linearized("gru")
    exact = lin.K.partial_trace(("trial", "time")).to_dense()
    monkeypatch.setattr("kpops.operators.partial_trace.DENSE_SIZE", 10)
    reduced = lin.K.partial_trace(("trial", "time"))
    assert isinstance(reduced, PartialTrace)
    assert relative(reduced.to_dense(), exact) < 1e-13


def test_uncoupled_dims_cost_nothing():
    lin = linearized("gru")
    trial, time, unit = lin.space.shape
    for keep, cost in [(("time",), unit), (("time", "unit"), 1), (("trial",), time * unit)]:
        assert lin.P.partial_trace(keep).num_vectors == cost
    before = lin.P.num_matvecs
    lin.P.partial_trace("time") @ np.ones(time)
    assert lin.P.num_matvecs - before == unit
    assert lin.flow.partial_trace("time").num_vectors == trial * unit


def test_partial_traces_of_P_know_their_diagonal():
    # P has a unit diagonal and is lower triangular in time.
    lin = linearized("gru")
    reduced = lin.P.partial_trace("time").to_dense()
    assert np.allclose(np.diag(reduced), 3 * 4)
    assert np.abs(np.triu(reduced, 1)).max() < 1e-14
    np.testing.assert_allclose(lin.P.partial_trace("trial").to_dense(), STEPS * 4 * np.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_reduction_keeps_the_contract(dtype, device):
    lin = linearized("lstm", MASK, dtype, device=device)
    difference = lin.flow - lin.K
    for op in (
        lin.flow.partial_trace("time"),
        lin.K.partial_trace(("trial", "unit")),
        lin.P.partial_trace("unit"),
        difference.partial_trace("time"),
        lin.flow.partial_trace("time", num_probes=3, rng=0),
        lin.flow.partial_trace(("trial", "time"), num_probes=3, rng=0),
        lin.P.partial_trace("time", num_probes=3, rng=0),
        difference.partial_trace("time", num_probes=3, rng=0),
    ):
        check_operator(op)
        assert op.torch_dtype == dtype


def test_structure_is_kept():
    lin = linearized("gru")
    difference = lin.flow - lin.K
    for num_probes in (None, 2):
        assert lin.flow.partial_trace("time", num_probes=num_probes).positive
        assert (lin.flow + lin.K).partial_trace("time", num_probes=num_probes).positive
        indefinite = difference.partial_trace("unit", num_probes=num_probes)
        assert indefinite.self_adjoint and not indefinite.positive
        assert not lin.P.partial_trace("time", num_probes=num_probes).self_adjoint
    assert lin.P.partial_trace(("trial", "time")).block_diagonal_dims == ("trial",)


@pytest.mark.parametrize(
    ("which", "kind"),
    [
        ("P", ProbedTrace),
        ("flow", ProbedGram),
        ("K", ProbedGram),
        ("sum", ProbedTrace),
        ("PP*", ProbedGram),
    ],
)
@pytest.mark.parametrize("keep", [("time",), ("trial", "unit")], ids=str)
def test_estimates_are_unbiased_with_the_spread_they_show(which, kind, keep):
    lin = linearized("gru")
    op = {**OPERATORS, "sum": lambda lin: lin.flow + lin.K, "PP*": lambda lin: lin.P @ lin.P.H}[
        which
    ](lin)
    exact = torch.from_numpy(traced(op, keep))
    reduced = op.partial_trace(keep, num_probes=2000, rng=0)
    assert type(reduced) is kind
    samples = reduced.dense_per_probe()
    error = samples.mean(0) - exact
    stderr = samples.std(0) / 2000**0.5
    spread = error.norm() / stderr.norm()
    assert stderr.norm() < 0.2 * exact.norm()
    assert spread < 3
    assert relative(reduced.to_dense(), samples.mean(0)) < 1e-12


@pytest.mark.parametrize("which", ["P", "flow"])
def test_what_is_left_without_a_probe_is_the_mean_of_the_others(which):
    reduced = OPERATORS[which](linearized("gru")).partial_trace("time", num_probes=5, rng=3)
    samples = reduced.dense_per_probe()
    for j in range(5):
        others = torch.cat([samples[:j], samples[j + 1 :]]).mean(0)
        assert relative(reduced.without(j).to_dense(), others) < 1e-13
    with pytest.raises(ValueError, match="the only probe"):
        OPERATORS[which](linearized("gru")).partial_trace("time", num_probes=1).without(0)


def test_probes_over_uncoupled_dims_are_exact():
    lin = linearized("gru")
    reduced = lin.P.partial_trace(("time", "unit"), num_probes=2, rng=0)
    assert relative(reduced.to_dense(), traced(lin.P, ("time", "unit"))) < 1e-13


def test_estimates_are_fixed_by_their_seed():
    lin = linearized("gru")
    for op in (lin.P, lin.flow):
        first, again, other = (
            op.partial_trace("time", num_probes=4, rng=seed).to_dense() for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert relative(other, first) > 1e-3


def test_the_root_makes_all_entries_with_one_product_per_probe():
    lin = linearized("gru")
    before = lin.P.num_matvecs
    reduced = lin.flow.partial_trace(("trial", "time"), num_probes=7, rng=0)
    reduced.to_dense()
    assert lin.P.num_matvecs - before == 7
    assert lin.flow.num_matvecs == 0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale):
    lin = linearized("gru", dtype=torch.float32)
    for options in ({}, {"num_probes": 4, "rng": 0}):
        expected = lin.flow.partial_trace("time", **options).to_dense()
        scaled = (scale * lin.flow).partial_trace("time", **options).to_dense()
        assert relative(scaled / scale, expected) < 1e-5


def test_a_zero_operator_has_a_zero_partial_trace():
    lin = linearized("gru")
    for options in ({}, {"num_probes": 2, "rng": 0}):
        assert not (0 * lin.flow).partial_trace("time", **options).to_dense().any()
        assert not (0 * lin.K).partial_trace("time", **options).to_dense().any()


def test_labels_and_provenance_are_kept():
    lin = linearized("lstm")
    reduced = lin.flow.partial_trace(("unit", "time"))
    assert reduced.domain.dims == ("time", "unit")
    result = reduced @ reduced.domain.label(np.ones((STEPS, 8)))
    assert result["variable"].values.tolist() == ["h"] * 4 + ["c"] * 4
    assert reduced.attrs["model"] == "LSTM"
    assert repr(reduced) == "<tr[trial] (P K P*) (time: 5, unit: 8), float64 on cpu, PSD>"
    assert lin.K.partial_trace("time").attrs == lin.K.attrs


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"keep": ("neuron",)}, ValueError, r"keep=\('neuron',\): choose one or more of the dims"),
        ({"keep": ()}, ValueError, "choose one or more"),
        ({"keep": "time", "num_probes": 0}, ValueError, "num_probes=0: give 1 or more"),
        ({"keep": "time", "num_probes": 2.0}, TypeError, r"num_probes=2\.0: give an int"),
    ],
)
def test_wrong_options_are_refused(options, error, told):
    with pytest.raises(error, match=told):
        linearized("gru").P.partial_trace(**options)


def test_operators_between_different_spaces_are_refused():
    with pytest.raises(ValueError, match="the same space on both sides"):
        linearized("gru").J.partial_trace("time")


def test_dense_operators_are_their_matrix():
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 4)))
    op = DenseOperator(matrix, Space(("unit",), (4,)), Space(("trial", "time"), (2, 3)), symbol="M")
    np.testing.assert_allclose(op.to_dense(), matrix, rtol=1e-14)
    check_operator(op)


def test_the_old_name_of_block_diagonal_dims_works_and_warns():
    lin = kpops.linearize(torch.nn.GRU(2, 3), torch.zeros(4, 2, 2))
    with pytest.warns(DeprecationWarning, match="uncoupled is now called block_diagonal_dims"):
        assert lin.P.uncoupled == lin.P.block_diagonal_dims == ("trial",)


def test_a_wrong_seed_is_refused_before_the_root_is_made():
    K = linearized("gru", None).K
    with pytest.raises(TypeError):
        K.partial_trace("time", num_probes=4, rng="seed")
    assert "root" not in vars(K)
