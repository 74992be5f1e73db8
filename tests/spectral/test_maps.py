"""Frobenius maps: against dense matrices, with error bars that cover."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, STEPS
from dense import relative

import kpops
from kpops.linalg.gramians import propagator_norm
from kpops.operators import Restriction
from kpops.spectral.maps import frobenius_map

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])
DIMS = ("trial", "time", "unit")
OPERATORS = {
    "P": lambda lin: lin.P,
    "P*": lambda lin: lin.P.H,
    "K": lambda lin: lin.K,
    "K of a weight": lambda lin: -2.5 * list(lin.K_by_parameter.values())[-1],
    "flow": lambda lin: lin.flow,
    "P P*": lambda lin: lin.P @ lin.P.H,
    "window": lambda lin: lin.P.select(time=slice(1, 4), unit=[0, 2]),
}


def linearized(name, mask=None, dtype=torch.float64, **options):
    case = BY_NAME[name]
    model, (inputs, h0) = case.model(dtype), case.data(dtype)
    inputs, mask = (case.as_module_takes(model, array) for array in (inputs, mask))
    return kpops.linearize(model, inputs, h0=h0, mask=mask, **options)


def squares(op, dim):
    """Energies of the dense matrix."""
    dense = np.square(op.to_dense()).reshape(*op.codomain.shape, *op.domain.shape)
    row = op.codomain.dims.index(dim)
    column = len(op.codomain.dims) + op.domain.dims.index(dim)
    return dense.sum(tuple(i for i in range(dense.ndim) if i not in (row, column)))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
@pytest.mark.parametrize("name", ["gru", "lstm", "lstm_two_layers", "shared_norm_cell"])
@pytest.mark.parametrize("which", OPERATORS)
def test_exact_maps_are_those_of_the_dense_matrix(which, name, mask, device):
    op = OPERATORS[which](linearized(name, mask, device=device))
    for dim in DIMS:
        result = frobenius_map(op, dim)
        exact = squares(op, dim)
        assert result.method == "exact"
        assert np.abs(result.energy.values - exact).max() < 1e-12 * exact.sum()
        assert float(result.total) == pytest.approx(exact.sum(), rel=1e-12)
        assert not result.stderr.any() and float(result.total_stderr) == 0


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_maps_of_K_take_no_product_whichever_way_is_cheaper(name, dim):
    torch.manual_seed(0)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    for n_trials, n_steps, n_inputs in ((2, 3, 9), (9, 12, 1)):  # M wide, and M tall
        model = kind(n_inputs, 3, batch_first=True).double()
        lin = kpops.linearize(model, torch.randn(n_trials, n_steps, n_inputs).double())
        exact = squares(lin.K, dim)
        before = lin.K.num_matvecs
        result = frobenius_map(lin.K, dim)
        assert lin.K.num_matvecs == before
        assert result.num_matvecs == 0
        assert np.abs(result.energy.values - exact).max() < 1e-13 * exact.max()


def test_lags_fractions_and_range_follow_from_the_energies():
    op = linearized("gru").flow
    energy = squares(op, "time")
    result = frobenius_map(op, "time", lag_cutoff=2)
    lag = np.abs(np.subtract.outer(range(STEPS), range(STEPS)))
    by_lag = [energy[lag == k].sum() for k in range(STEPS)]
    np.testing.assert_allclose(result.energy_by_lag, by_lag, rtol=1e-12)
    np.testing.assert_allclose(result.near_diagonal, np.cumsum(by_lag) / energy.sum(), rtol=1e-12)
    assert float(result.long_range) == pytest.approx(energy[lag > 2].sum() / energy.sum())
    assert result.long_range.long_name == "fraction of the energy beyond lag 2"
    assert "lag" not in frobenius_map(op, "unit").dims


def test_a_scalar_propagator_falls_by_its_square_at_each_lag():
    rnn = torch.nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True).double()
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(0.9)
        rnn.weight_ih_l0.fill_(1.0)
    lin = kpops.linearize(rnn, torch.ones(1, 20, 1).double())
    for method in ("exact", "probes"):
        result = frobenius_map(lin.P, "time", method=method, num_probes=2, rng=0)
        lags = np.arange(20)
        np.testing.assert_allclose(result.energy_by_lag, (20 - lags) * 0.81**lags, rtol=1e-12)
        # One number for each pair: a sign has no spread.
        assert result.stderr.max() < 1e-12


def test_what_is_uncoupled_is_diagonal_and_shares_its_probes():
    lin = linearized("gru", MASK)
    result = frobenius_map(lin.P, "trial", method="probes", num_probes=7, rng=0)
    assert result.num_matvecs == 8  # one finds the scale
    assert not (result.energy - np.diag(np.diag(result.energy))).any()
    times = frobenius_map(lin.P, "time", method="probes", num_probes=7, rng=0)
    assert times.num_matvecs == 7 * STEPS + 1
    assert not np.triu(times.energy, 1).any()


@pytest.mark.parametrize("which", ["P", "flow", "P P*"])
@pytest.mark.parametrize("dim", DIMS)
def test_error_bars_cover(which, dim):
    op = OPERATORS[which](linearized("gru"))
    exact = frobenius_map(op, dim, method="exact")
    names = {"energy": "stderr", "total": "total_stderr"}
    if dim == "time":
        names |= {v: f"{v}_stderr" for v in ("energy_by_lag", "near_diagonal", "long_range")}
    # Of totals, one number in each run, about 0.9 are covered: of 60 runs it may be 0.8 by chance.
    seeds = range(180 if dim == "unit" else 60)
    runs = [frobenius_map(op, dim, method="probes", num_probes=24, rng=seed) for seed in seeds]
    for name, error in names.items():
        truth = exact[name].values
        values = np.stack([run[name].values for run in runs])
        errors = np.stack([run[error].values for run in runs])
        noise = 1e-10 * np.abs(truth).max()
        covered = np.mean(np.abs(values - truth) <= 2 * errors + noise)
        assert 0.87 < covered <= 1, name
        unsure = values.std(0) > noise
        if unsure.any():
            claimed = np.sqrt(np.square(errors).mean(0))[unsure] / values.std(0)[unsure]
            assert 0.7 < np.median(claimed) < 1.4, name
            bias = (values.mean(0) - truth)[unsure] / (values.std(0)[unsure] / len(runs) ** 0.5)
            assert np.abs(bias).max() < 5, name


def test_the_totals_of_all_maps_are_the_norm_of_the_operator():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 12, batch_first=True).double()
    lin = kpops.linearize(gru, torch.randn(4, 20, 2).double())
    exact = propagator_norm(lin.P) ** 2
    for dim in DIMS:
        result = frobenius_map(lin.P, dim, method="probes", rng=0)
        assert abs(float(result.total) - exact) < 4 * float(result.total_stderr)
        assert float(result.energy.sum()) == pytest.approx(float(result.total), rel=1e-12)
        assert float(result.total_stderr) < 0.1 * exact


def test_sides_may_differ_in_their_other_dims():
    torch.manual_seed(0)
    gru, readout = torch.nn.GRU(2, 4, batch_first=True), torch.nn.Linear(4, 3)
    lin = kpops.linearize(gru, torch.randn(3, 5, 2), dtype=torch.float64, readout=readout.double())
    op = lin.C @ lin.P
    for dim in ("trial", "time"):
        exact = squares(op, dim)
        assert relative(frobenius_map(op, dim).energy.values, exact) < 1e-12
        estimate = frobenius_map(op, dim, method="probes", num_probes=400, rng=0)
        assert relative(estimate.energy.values, exact) < 0.1
    with pytest.raises(ValueError, match=r"dim='unit': choose one of the dims \['trial', 'time'\]"):
        frobenius_map(op, "unit")
    late = Restriction(lin.space, {"time": [3, 4]}, lin.dtype, lin.device)
    part = frobenius_map(late @ lin.P, "time")
    assert relative(part.energy.values, squares(lin.P, "time")[3:]) < 1e-12
    assert part.time_in.size == 5
    assert "energy_by_lag" not in part
    early = Restriction(lin.space, {"time": [0, 1]}, lin.dtype, lin.device)
    block = frobenius_map(late @ lin.P @ early.H, "time")
    assert relative(block.energy.values, squares(lin.P, "time")[3:, :2]) < 1e-12
    assert "lag" not in block.coords  # equal positions are different times


@pytest.mark.parametrize("method", ["exact", "probes"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale, method):
    lin = linearized("gru", dtype=torch.float32)
    for op in (lin.K, lin.flow, lin.P):
        plain = frobenius_map(op, "time", method=method, rng=0)
        scaled = frobenius_map(scale * op, "time", method=method, rng=0)
        assert relative(scaled.energy.values.astype(float) / scale**2, plain.energy.values) < 1e-5
        np.testing.assert_allclose(scaled.near_diagonal, plain.near_diagonal, rtol=1e-5)
        assert scaled.energy.dtype == np.float32


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_a_zero_operator_has_no_energy(method):
    lin = linearized("gru")
    for op in (0 * lin.K, 0 * lin.flow, 0 * lin.P):
        result = frobenius_map(op, "time", method=method, rng=0)
        assert not result.energy.any() and float(result.total) == 0
        assert np.isnan(result.near_diagonal).all() and np.isnan(result.long_range)


def test_labels_and_provenance_reach_the_result():
    lin = linearized("lstm", MASK)
    result = frobenius_map(lin.P.select(time=[3, 1]), "time", method="probes", rng=0)
    assert result.energy.dims == ("time", "time_in")
    assert result.time.values.tolist() == result.time_in.values.tolist() == [4, 2]
    assert result.lag.values.tolist() == [0, 1]
    units = frobenius_map(lin.flow, "unit", rng=0)
    assert units.variable_in.values.tolist() == ["h"] * 4 + ["c"] * 4
    assert (units.model, units.method, units.operator) == ("LSTM", "exact", "P K P*")
    for variable in units.data_vars.values():
        assert set(variable.attrs) == {"long_name", "units"}


def test_maps_survive_a_file(tmp_path):
    result = frobenius_map(linearized("lstm").flow, "unit")
    result.to_netcdf(tmp_path / "map.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "map.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again, result)
        assert again.attrs == result.attrs


def test_estimates_are_fixed_by_their_seed():
    op = linearized("gru").flow
    first, again, other = (
        frobenius_map(op, "time", method="probes", rng=seed).energy for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert relative(other.values, first.values) > 1e-3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dim": "neuron"}, r"dim='neuron': choose one of the dims \['trial', 'time', 'unit'\]"),
        ({"dim": "time", "method": "guess"}, "method='guess'"),
        ({"dim": "time", "num_probes": 1}, "num_probes=1"),
        ({"dim": "time", "lag_cutoff": 5}, "lag_cutoff=5: choose an int from 0 to 4"),
        ({"dim": "unit", "lag_cutoff": 1}, "lag_cutoff=1: a lag needs the dim 'time'"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        frobenius_map(linearized("gru").P, **options)


def test_a_cutoff_between_two_lags_is_refused():
    with pytest.raises(TypeError, match=r"lag_cutoff=1.5: pass an int from 0 to 4"):
        frobenius_map(linearized("gru").P, "time", lag_cutoff=1.5)


def test_a_matrix_has_the_one_dim_index():
    matrix = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(frobenius_map(matrix, "index").energy, matrix**2)
    with pytest.raises(ValueError, match=r"dim='time': choose one of the dims \['index'\]"):
        frobenius_map(matrix, "time")


def test_the_old_name_of_the_lag_works_and_warns():
    lin = linearized(next(iter(BY_NAME)))
    with pytest.warns(DeprecationWarning, match="beyond is now called lag_cutoff: version 0.2"):
        old = frobenius_map(lin.P, "time", beyond=2)
    assert float(old.long_range) == float(frobenius_map(lin.P, "time", lag_cutoff=2).long_range)
