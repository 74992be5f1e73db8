"""The measure of collapse against dense matrices from autograd, and over training."""

import functools

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, CASES, STEPS, TRIALS
from dense import dense
from torch import nn

import kpops
from kpops.learning.collapse import collapse

OPERATORS = ["K", "P P*", "P K P*", "trajectories"]
DIMS = ("trial", "time", "unit")
MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


def problem(case, mask=None, **options):
    model = case.model()
    inputs, h0 = case.data()
    takes = case.as_module_takes(model, inputs)
    given = case.as_module_takes(model, mask)
    lin = kpops.linearize(model, takes, h0=h0, mask=given, **options)
    return lin, dense(case, model, inputs, h0, list(lin.parameters), mask)


def matrices(reference):
    D = reference.sensitivity
    pairs = (reference.J, reference.J), (reference.P, reference.P), (D, D)
    return [(a @ b.T).numpy() for a, b in pairs]


def reduced(matrix, n_units, keep):
    """Copy in, apply, average out: the mean over pairs of the dims left out, times their number."""
    shape = (TRIALS, STEPS, n_units)
    axes = [i for i, d in enumerate(DIMS) if d not in keep]
    copies = int(np.prod([shape[i] for i in axes]))
    tensor = matrix.reshape(*shape, *shape).mean((*axes, *(3 + i for i in axes)))
    size = int(np.sqrt(tensor.size))
    return copies * tensor.reshape(size, size)


def ranks_of(values, threshold=0.95):
    """Variance rank, participation, entropy and stable rank of falling values, by loops."""
    squares = values**2
    held = 0.0
    for count, square in enumerate(squares):
        if held + square >= threshold * squares.sum():
            variance = count + (threshold * squares.sum() - held) / square
            break
        held += square
    p = values[values > 1e-15 * values[0]] / values.sum()
    return {
        "variance": variance,
        "participation": values.sum() ** 2 / squares.sum(),
        "entropy": np.exp(-(p * np.log(p)).sum()),
        "stable": squares.sum() / squares[0],
    }


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_are_those_of_dense_operators(case, masked):
    lin, reference = problem(case, MASK if masked else None)
    result = collapse(lin)
    assert result.operator.values.tolist() == OPERATORS
    assert result.kind.values.tolist() == ["variance over time", "participation"]
    assert not result.stderr.any()  # so small that all is exact
    for name, matrix in zip(OPERATORS, matrices(reference), strict=False):
        over_time = reduced(matrix, lin.space.shape[2], ("time",))
        variance = ranks_of(np.linalg.eigvalsh(over_time)[::-1].clip(0))["variance"]
        participation = np.trace(matrix) ** 2 / (matrix**2).sum()
        found = result.effective_rank.sel(operator=name).values
        np.testing.assert_allclose(found, [variance, participation], rtol=1e-9)


@pytest.mark.parametrize("keep", ["time", "unit", ("trial", "time"), DIMS])
def test_any_dims_can_be_kept_and_any_kind_be_asked_for(keep):
    lin, reference = problem(BY_NAME["gru"])
    kinds = ("variance", "participation", "entropy", "stable")
    result = collapse(lin, keep=keep, of_reduction=kinds, of_whole=kinds, threshold=0.8)
    dims = (keep,) if isinstance(keep, str) else keep
    labels = [f"{kind} over {', '.join(dims)}" for kind in kinds]
    assert result.kind.values.tolist() == [*labels, *kinds]
    for name, matrix in zip(OPERATORS, matrices(reference), strict=False):
        small = reduced(matrix, 4, dims)
        for part, names in ((small, labels), (matrix, kinds)):
            values = np.linalg.eigvalsh(part)[::-1].clip(0)
            expected = list(ranks_of(values, 0.8).values())
            found = result.effective_rank.sel(operator=name, kind=list(names))
            np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_modes_are_those_of_the_reduced_operators():
    lin, reference = problem(BY_NAME["lstm"])
    result = collapse(lin, num_modes=3)
    assert result.eigenfunction.dims == ("operator", "mode", "time")
    for name, matrix in zip(OPERATORS, matrices(reference), strict=False):
        small = reduced(matrix, 8, ("time",))
        values = np.linalg.eigvalsh(small)[::-1]
        at = result.sel(operator=name)
        np.testing.assert_allclose(at.eigenvalue, values[:3], atol=1e-10 * values[0])
        functions = at.eigenfunction.values
        np.testing.assert_allclose(functions @ functions.T, np.eye(3), atol=1e-10)
        np.testing.assert_allclose(
            functions @ small, values[:3, None] * functions, atol=1e-10 * values[0]
        )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_trajectories_have_the_ranks_of_their_principal_components(masked):
    lin, reference = problem(BY_NAME["gru"], MASK if masked else None)
    states = reference.states
    rows = (states[MASK] if masked else states.flatten(0, 1)).numpy()
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    result = collapse(lin, num_modes=6, of_whole=("participation", "stable")).sel(
        operator="trajectories"
    )
    expected = ranks_of(np.sqrt(variances))
    np.testing.assert_allclose(
        result.effective_rank,
        [expected["variance"], variances.sum() ** 2 / (variances**2).sum(), expected["stable"]],
        rtol=1e-10,
    )
    np.testing.assert_allclose(result.eigenvalue[:4], variances, rtol=1e-10)
    assert result.eigenvalue[4:].isnull().all()  # four units have no more
    assert result.eigenfunction.isnull().all()


def test_the_reductions_take_one_backpropagation_for_each_kept_position():
    lin, _ = problem(BY_NAME["gru"])
    collapse(lin, of_whole=())
    assert lin.P.num_matvecs == STEPS  # which P P* and P K P* share


def test_modes_and_kinds_can_be_left_out():
    lin, _ = problem(BY_NAME["rnn_tanh"])
    result = collapse(lin, of_reduction=(), num_modes=0)
    assert set(result.variables) == {"effective_rank", "stderr", "operator", "kind"}
    assert result.kind.values.tolist() == ["participation"]
    assert collapse(lin, num_modes=99).sizes["mode"] == STEPS


def large():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 24, batch_first=True).double()
    return kpops.linearize(lstm, torch.randn(2, 30, 3).double())


def test_estimates_follow_the_seed_and_their_error_bars():
    lin = large()
    one, same, other = (collapse(lin, rng=seed) for seed in (0, 0, 1))
    xr.testing.assert_identical(one, same)
    at = {"operator": "P P*", "kind": "participation"}
    assert float(one.stderr.sel(at)) > 0
    assert float(one.effective_rank.sel(at)) != float(other.effective_rank.sel(at))
    exact = float(kpops.effective_rank(lin.P @ lin.P.H, method="exact").estimate)
    for result in (one, other):
        gap = abs(float(result.effective_rank.sel(at)) - exact)
        assert gap < 5 * float(result.stderr.sel(at))


def test_a_reduction_too_large_for_a_matrix_is_measured_by_its_products():
    lin = large()
    result = collapse(lin, keep=("time", "unit"), of_whole=(), num_modes=2, rng=0)
    wide = lin.flow.expand_average(("time", "unit"))
    assert wide.shape[0] > 1024
    exact = kpops.effective_rank(wide, "variance", method="exact").estimate
    found = result.sel(operator="P K P*")
    gap = abs(float(found.effective_rank[0]) - float(exact))
    assert gap <= 5 * float(found.stderr[0]) + 1e-8
    values = np.linalg.eigvalsh(wide.to_dense())[::-1]
    np.testing.assert_allclose(found.eigenvalue, values[:2], rtol=1e-8)


def test_over_training_one_line_measures_every_checkpoint(tmp_path):
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))
    task = kpops.tasks.memory_pro(6, angles="even", noise=0, steps=(2, 2, 2))
    kpops.training.train(
        network, task, folder=tmp_path, max_steps=4, batch_size=3, checkpoint_every=2, rng=0
    )
    result = kpops.over_training(network, tmp_path, task.inputs, functools.partial(collapse, rng=0))
    assert result.effective_rank.dims == ("step", "operator", "kind")
    assert result.eigenfunction.dims == ("step", "operator", "mode", "time")
    assert result.epoch.dims == ("time",)
    last = collapse(kpops.linearize(network, task.inputs), rng=0)
    xr.testing.assert_allclose(result.isel(step=-1, drop=True), last)
    labelled = [*result.data_vars.values(), result.operator, result.kind, result["mode"]]
    assert all({"long_name", "units"} <= set(v.attrs) for v in labelled)
    assert all(v.dtype == np.float32 for v in result.data_vars.values())
    result.to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "c.nc", engine="h5netcdf"), result)
    result.to_zarr(tmp_path / "c.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "c.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, result)


def test_on_the_device(device):
    here, there = (collapse(problem(BY_NAME["lstm"], device=d)[0]) for d in ("cpu", device))
    np.testing.assert_allclose(here.effective_rank, there.effective_rank, rtol=1e-9)
    np.testing.assert_allclose(here.eigenvalue, there.eigenvalue, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": "neuron"}, r"keep=\('neuron',\): choose one or more of the dims"),
        ({"of_whole": "rank"}, r"of_whole=\('rank',\): choose from"),
        ({"of_reduction": ("stable", "stable")}, "each at most once"),
        ({"of_reduction": (), "of_whole": ()}, "name a kind of effective rank"),
        ({"num_modes": -1}, "num_modes=-1: choose a number of modes"),
        ({"threshold": 1.5}, "threshold=1.5: choose a fraction"),
        ({"num_matvecs": 1}, "num_matvecs=1: choose an int of 2 or more"),
    ],
)
def test_wrong_use_is_refused(options, told):
    lin, _ = problem(BY_NAME["rnn_cell"])
    with pytest.raises(ValueError, match=told):
        collapse(lin, **options)
