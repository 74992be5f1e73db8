"""Theorem 1: ranks against dense Jacobians from autograd, and bounds that linear cells attain."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import BY_NAME, CASES, STEPS, TRIALS
from dense import dense, relative
from test_oracles import linear_rnn
from torch import nn

import kpops
from kpops.learning.rank_bounds import rank_bounds

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])
GATED = [case for case in CASES if case.name != "shared_norm_cell"]


def case_id(case):
    return case.name


def problem(case, mask=None, **options):
    """Linearization of a case, and its dense operators from the module's own forward."""
    model = case.model()
    inputs, h0 = case.data()
    takes = case.as_module_takes(model, inputs)
    given = case.as_module_takes(model, mask)
    lin = kpops.linearize(model, takes, h0=h0, mask=given, **options)
    names = list(lin.parameters)
    return lin, dense(case, model, inputs, h0, names, mask)


def own_part(case, J, name):
    """Rows of J_j in the parameter's own layer: what it forces before that is passed up."""
    if case.layers == 1:
        return J
    layer = int(name[-1])
    size = case.state_size // case.layers
    rows = J.unflatten(0, (TRIALS, STEPS, case.state_size))
    return rows[:, :, layer * size : (layer + 1) * size].flatten(0, 2)


def count(J, tol):
    """Eigenvalues of J J^T above `tol` times the largest."""
    values = torch.linalg.svdvals(J).square()
    return int((values > tol * values.max()).sum())


@pytest.fixture(scope="module")
def linear():
    """Oracle 3: h' = W h + U x + b, and its features [h, x, 1]."""
    rng = np.random.default_rng(0)
    S, features, B, T = 4, 3, 3, 6
    W, U, b = 0.5 * rng.standard_normal((S, S)), rng.standard_normal((S, features)), np.ones(S)
    x = rng.standard_normal((B, T, features))
    x[..., 2] = x[..., 0] - x[..., 1]  # three inputs of two dimensions
    h0 = torch.from_numpy(rng.standard_normal((B, S)))
    x = torch.from_numpy(x)
    lin = kpops.linearize(linear_rnn(W, U, b, "gated"), x, h0=h0)
    previous = np.concatenate([h0[:, None], lin.states.values[:, :-1]], axis=1)
    parts = {"W": previous, "U": x.numpy(), "b": np.ones((B, T, 1))}
    return lin, S, {name: part.reshape(B * T, -1) for name, part in parts.items()}


def test_a_linear_network_attains_its_bounds(linear):
    lin, S, features = linear
    result = rank_bounds(lin)
    expected = {name: np.linalg.matrix_rank(M) for name, M in features.items()}
    assert expected == {"W": 4, "U": 2, "b": 1}
    for name, M in features.items():
        at = result.sel(parameter=name)
        assert int(at.feature_rank) == expected[name]
        figures = (at["bound"], at["bound_at_tol"], at["rank"])
        assert [int(figure) for figure in figures] == [S * expected[name]] * 3
        gram = M @ M.T
        participation = np.trace(gram) ** 2 / (gram**2).sum()
        assert float(at.feature_participation) == pytest.approx(participation, rel=1e-10)
        assert float(at.participation) == pytest.approx(S * participation, rel=1e-10)
    whole = np.linalg.matrix_rank(np.concatenate(list(features.values()), axis=1))
    assert whole == 7
    assert int(result.rank_of_sum) == int(result.bound_of_sum) == S * whole


@pytest.mark.parametrize("tol", [0.5, 1e-1, 1e-2])
def test_a_linear_network_attains_its_bounds_at_every_tolerance(linear, tol):
    lin, S, features = linear
    result = rank_bounds(lin, tol=tol)
    for name, M in features.items():
        values = np.linalg.svd(M, compute_uv=False) ** 2
        above = S * int((values > tol * values[0]).sum())
        at = result.sel(parameter=name)
        assert int(at["rank"]) == int(at["bound_at_tol"]) == above


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_ranks_shares_and_participations_are_those_of_dense_jacobians(case, masked):
    lin, reference = problem(case, MASK if masked else None)
    result = rank_bounds(lin)
    tol = 1e-6
    K = 0
    for name in lin.parameters:
        J = reference.J[:, reference.columns(name)]
        K = K + J @ J.T
        at = result.sel(parameter=name)
        values = torch.linalg.svdvals(J).square()
        if not values.any():
            assert float(at["rank"]) == float(at.trace_share) == 0
            continue
        assert int(at["rank"]) == count(own_part(case, J, name), tol)
        assert int(at["rank"]) <= int(at["bound"]) <= J.shape[1]
        participation = float(values.sum() ** 2 / values.square().sum())
        assert float(at.participation) == pytest.approx(participation, rel=1e-9)
        share = float(J.square().sum() / reference.J.square().sum())
        assert float(at.trace_share) == pytest.approx(share, rel=1e-10)
    assert relative(sum(K_j.to_dense() for K_j in lin.K_by_parameter.values()), K) < 1e-12
    assert relative(lin.K.to_dense(), K) < 1e-12
    assert float(result.trace_share.sum()) == pytest.approx(1, rel=1e-13)
    assert count(reference.J, 1e-12) <= int(result.bound_of_sum)
    assert float(result.participation_of_sum) <= float(result.participation.sum())
    if case.layers == 1:
        assert int(result.rank_of_sum) == count(reference.J, tol)


@pytest.mark.parametrize("tol", [1e-1, 1e-4, 1e-10])
@pytest.mark.parametrize("case", GATED, ids=case_id)
def test_bounds_at_a_tolerance_lie_between_rank_and_bound(case, tol):
    result = rank_bounds(problem(case)[0], tol=tol)
    assert (result["rank"] <= result.bound_at_tol).all()
    assert (result.bound_at_tol <= result.bound).all()
    assert (result["rank"] > 0).all()


@pytest.mark.parametrize("name", ["gru", "lstm", "lstm_two_layers", "rnn_tanh"])
def test_propagation_through_time_and_layers_keeps_the_rank(name):
    case = BY_NAME[name]
    lin, reference = problem(case)
    result = rank_bounds(lin, tol=1e-10)
    for parameter in lin.parameters:
        J = reference.J[:, reference.columns(parameter)]
        flow = reference.sensitivity[:, reference.columns(parameter)]
        for forced in (J, flow):
            assert np.linalg.matrix_rank(forced, tol=1e-9) == np.linalg.matrix_rank(
                own_part(case, J, parameter), tol=1e-9
            )
        assert np.linalg.matrix_rank(flow, tol=1e-9) <= int(result.bound.sel(parameter=parameter))


def test_participation_exceeds_that_of_the_features_by_the_spread_of_the_gains_at_most():
    lin, _ = problem(BY_NAME["rnn_tanh"])
    result = rank_bounds(lin)
    gains = 1 - lin.states.values**2  # the slope of tanh
    spread = (gains.max((0, 1)) / gains.min((0, 1))) ** 4
    assert (result.participation <= spread.sum() * result.feature_participation).all()
    assert (result.participation <= result["rank"]).all()


def test_the_number_of_maps_is_that_of_gates_that_enter_differently():
    expected = {"rnn_tanh": 1, "leaky_rate": 1, "gru": 3, "lstm": 4, "oscillator": 1}
    for name, maps in expected.items():
        result = rank_bounds(problem(BY_NAME[name])[0])
        assert (result.maps == maps).all(), name


def test_features_are_named_layer_by_layer():
    result = rank_bounds(problem(BY_NAME["lstm_two_layers"])[0])
    assert dict(zip(result.parameter.values, result.features.values, strict=True)) == {
        "weight_ih_l0": "x[t]",
        "weight_hh_l0": "h[t-1]",
        "bias_ih_l0": "1",
        "bias_hh_l0": "1",
        "weight_ih_l1": "h[t] below",
        "weight_hh_l1": "h[t-1]",
        "bias_ih_l1": "1",
        "bias_hh_l1": "1",
    }
    assert result.attrs["structure"] == "known of 8 of 8 parameters"


def test_without_known_structure_features_are_unknown():
    result = rank_bounds(problem(BY_NAME["shared_norm_cell"])[0])
    assert set(result.features.values) == {"unknown"}
    assert result.attrs["structure"].startswith("known of 0 of")
    for name in ("feature_rank", "feature_participation", "maps", "bound_at_tol"):
        assert result[name].isnull().all()
    sizes = [p.numel() for p in BY_NAME["shared_norm_cell"].model().parameters()]
    assert result["bound"].values.tolist() == sizes


@pytest.mark.parametrize("name", ["gru", "lstm_two_layers"])
def test_every_engine_tells_the_same(name):
    results = [
        rank_bounds(problem(BY_NAME[name], engine=engine)[0])
        for engine in ("gated", "autodiff", "jacobian")
    ]
    for other in results[1:]:
        xr.testing.assert_allclose(results[0].drop_attrs(), other.drop_attrs(), rtol=1e-9)


def test_inputs_that_are_zero_force_nothing():
    torch.manual_seed(0)
    lin = kpops.linearize(nn.GRU(2, 3, batch_first=True).double(), torch.zeros(2, 4, 2).double())
    at = rank_bounds(lin).sel(parameter="weight_ih_l0")
    for name in ("feature_rank", "bound", "bound_at_tol", "rank", "participation", "trace_share"):
        assert float(at[name]) == 0


def test_few_samples_bound_the_rank_of_many_features():
    torch.manual_seed(0)
    rnn = nn.RNN(9, 2, batch_first=True).double()
    result = rank_bounds(kpops.linearize(rnn, torch.randn(1, 3, 9).double()))
    at = result.sel(parameter="weight_ih_l0")
    assert int(at.feature_rank) == 3
    assert int(at["bound"]) == int(at["rank"]) == 6
    assert int(result.bound_of_sum) == 6  # trials times steps times units


def test_only_the_parameters_that_learn_are_counted():
    lin = problem(BY_NAME["gru"])[0]
    only = kpops.linearize(
        BY_NAME["gru"].model(),
        BY_NAME["gru"].data()[0],
        h0=BY_NAME["gru"].data()[1],
        parameters=["weight_ih_l0"],
    )
    result = rank_bounds(only)
    assert result.parameter.values.tolist() == ["weight_ih_l0"]
    assert float(result.trace_share[0]) == 1
    assert int(result.bound_of_sum) == int(result["bound"][0])
    whole = rank_bounds(lin).sel(parameter="weight_ih_l0")
    assert float(whole.participation) == pytest.approx(float(result.participation[0]), rel=1e-12)


def test_float32_stays_and_the_tolerance_is_not_below_its_noise():
    case = BY_NAME["gru"]
    inputs, h0 = case.data(torch.float32)
    result = rank_bounds(kpops.linearize(case.model(torch.float32), inputs, h0=h0), tol=0)
    assert all(v.dtype == np.float32 for v in result.data_vars.values())
    assert result.attrs["tol"] == 64 * np.finfo("float32").eps
    assert (result["rank"] <= result.bound_at_tol).all()


def test_the_result_is_labelled_and_can_be_saved(tmp_path):
    result = rank_bounds(problem(BY_NAME["gru"])[0])
    labelled = [*result.data_vars.values(), *result.coords.values()]
    assert all({"long_name", "units"} <= set(v.attrs) for v in labelled)
    result.to_netcdf(tmp_path / "bounds.nc", engine="h5netcdf")
    again = xr.load_dataset(tmp_path / "bounds.nc", engine="h5netcdf")
    xr.testing.assert_identical(again, result)
    result.to_zarr(tmp_path / "bounds.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "bounds.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, result)


def test_on_the_device(device):
    case = BY_NAME["lstm_two_layers"]
    here, there = rank_bounds(problem(case)[0]), rank_bounds(problem(case, device=device)[0])
    xr.testing.assert_allclose(here.drop_attrs(), there.drop_attrs(), rtol=1e-9)


@pytest.mark.parametrize("tol", [-0.1, 1.0, np.nan])
def test_wrong_tolerances_are_refused(tol):
    with pytest.raises(ValueError, match=f"tol={tol}: choose a fraction"):
        rank_bounds(problem(BY_NAME["rnn_tanh"])[0], tol=tol)
