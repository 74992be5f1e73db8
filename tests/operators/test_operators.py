"""What crosses the boundary, and the algebra of operators."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import xarray as xr
from dense import relative

import kpops
from kpops.operators import Restriction


@pytest.fixture
def lin(device):
    torch.manual_seed(0)
    inputs = xr.DataArray(
        np.random.default_rng(0).standard_normal((3, 5, 2)),
        dims=("trial", "time", "input"),
        coords={"angle": ("trial", [0.0, 1.0, 2.0]), "time": np.arange(10, 60, 10)},
    )
    return kpops.linearize(torch.nn.LSTM(2, 2).double(), inputs, device=device)


@pytest.fixture
def q():
    return np.random.default_rng(1).standard_normal((3, 5, 4))


def test_every_kind_of_input_comes_back_as_its_kind(lin, q):
    expected = lin.flow.to_dense() @ q.ravel()
    flat = lin.flow @ q.ravel()
    columns = lin.flow @ np.stack([q.ravel(), 2 * q.ravel()], axis=1)
    shaped = lin.flow @ q
    block = lin.flow @ np.stack([q, 2 * q])
    tensor = lin.flow @ torch.from_numpy(q).to(lin.device)
    labelled = lin.flow @ lin.space.label(q)
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(labelled, xr.DataArray)
    np.testing.assert_allclose(flat, expected, rtol=1e-12)
    np.testing.assert_allclose(columns, np.outer(expected, [1, 2]), rtol=1e-12)
    np.testing.assert_allclose(shaped, expected.reshape(3, 5, 4), rtol=1e-12)
    np.testing.assert_allclose(block[1], 2 * shaped, rtol=1e-12)
    np.testing.assert_allclose(tensor.cpu().numpy(), shaped, rtol=1e-12)
    np.testing.assert_allclose(labelled.values, shaped, rtol=1e-12)
    np.testing.assert_allclose(lin.flow(q), shaped, rtol=1e-12)


def test_labels_of_inputs_reach_every_result(lin, q):
    result = lin.P @ lin.space.label(q)
    for array in (result, lin.states):
        assert array.dims == ("trial", "time", "unit")
        assert array.time.values.tolist() == [10, 20, 30, 40, 50]
        assert array.angle.values.tolist() == [0, 1, 2]
        assert array["variable"].values.tolist() == ["h", "h", "c", "c"]
    by_mode = xr.concat([result, 2 * result], dim="mode").transpose("unit", "mode", ...)
    moved = lin.P.H @ by_mode
    assert moved.dims == ("mode", "trial", "time", "unit")
    np.testing.assert_allclose(moved.values[1], lin.P.H @ by_mode.isel(mode=1))
    step = lin.J.H @ result
    assert step.dims == ("parameter",)
    assert (step.parameter_name == "weight_hh_l0").sum() == 16


def test_misaligned_labels_are_refused(lin, q):
    with pytest.raises(ValueError, match=r"disagree on the labels of \['time'\]"):
        lin.P @ lin.space.label(q).assign_coords(time=np.arange(5))
    with pytest.raises(ValueError, match=r"expected \(trial: 3, time: 5, unit: 4\)"):
        lin.P @ lin.space.label(q).isel(unit=[0])


def test_integers_and_complex_numbers_are_taken_by_linearity(lin, q):
    integers = np.arange(60)
    np.testing.assert_allclose(lin.K @ integers, lin.K @ integers.astype(float))
    z = q.ravel() * (1 + 2j)
    np.testing.assert_allclose(lin.K @ z, (lin.K @ q.ravel()) * (1 + 2j))


def test_noncontiguous_inputs_are_taken(lin, q):
    reversed_twice = np.ascontiguousarray(q[:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(lin.P @ reversed_twice, lin.P @ q)
    readonly = q.copy()
    readonly.flags.writeable = False
    np.testing.assert_array_equal(lin.P @ readonly, lin.P @ q)
    transposed = torch.from_numpy(q).transpose(0, 2).contiguous().transpose(0, 2)
    moved = (lin.flow @ transposed.to(lin.device)).cpu()
    np.testing.assert_allclose(moved.numpy(), lin.flow @ q, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (5, 3, 4), (60, 2, 1), (2, 3, 5, 5)])
def test_wrong_shapes_are_refused_with_the_expected_ones(lin, shape):
    with pytest.raises(ValueError, match=r"expected \(60,\), \(60, k\), \(3, 5, 4\)"):
        lin.P @ np.zeros(shape)


def test_tensors_of_another_dtype_are_refused(lin):
    with pytest.raises(TypeError, match=r"float32, the operator computes in torch.float64"):
        lin.P @ torch.zeros(3, 5, 4, device=lin.device)


def test_blocks_of_another_dtype_are_refused(lin):
    block = torch.zeros(1, *lin.space.shape, dtype=torch.float32)
    for op in (lin.P, lin.K, lin.flow):
        with pytest.raises(TypeError, match=r"block of torch.float32 .* block.to\(torch.float64\)"):
            op.apply(block)
        with pytest.raises(TypeError, match=r"block of torch\.float32"):
            op.apply_adjoint(block)


def test_dtype_is_kept_at_the_boundary():
    lin = kpops.linearize(torch.nn.GRU(2, 4, batch_first=True), torch.zeros(3, 5, 2))
    assert (lin.flow @ np.zeros(60, "float32")).dtype == np.float32
    assert (lin.flow @ torch.zeros(3, 5, 4)).dtype == torch.float32
    assert lin.flow.dtype == np.float32
    assert lin.states.dtype == np.float32
    assert lin.flow.to_dense().dtype == np.float32


def test_algebra_equals_that_of_matrices(lin):
    P, K, S = lin.P.to_dense(), lin.K.to_dense(), lin.sensitivity.to_dense()
    for op, matrix in [
        (lin.P @ lin.K @ lin.P.H, P @ K @ P.T),
        (lin.P + lin.K - lin.P_inv, P + K - np.linalg.inv(P)),
        (3 * lin.P * 0.5, 1.5 * P),
        (lin.K / 4, K / 4),
        (-lin.P.T, -P.T),
        ((lin.P @ lin.J).H, S.T),
        ((lin.P + 2 * lin.K).H, P.T + 2 * K),
    ]:
        assert relative(op.to_dense(), matrix) < 1e-13


def test_multiplication_from_the_left_is_the_transpose(lin, q):
    np.testing.assert_allclose(q.ravel() @ lin.P, lin.P.to_dense().T @ q.ravel(), rtol=1e-12)
    rows = np.stack([q.ravel(), -q.ravel()])
    np.testing.assert_allclose(rows @ lin.J, rows @ lin.J.to_dense(), rtol=1e-12)


def test_structured_arrays_from_the_left_keep_their_dims(lin, q):
    np.testing.assert_allclose(q @ lin.P, lin.P.H @ q)
    total = sum(lin.K_by_parameter.values())
    assert relative(total.to_dense(), lin.K.to_dense()) < 1e-13


def test_products_from_many_threads_do_not_spoil_each_other(lin, q):
    other = kpops.linearize(
        torch.nn.GRU(2, 4).double(), torch.zeros(5, 3, 2).double(), engine="autodiff"
    )
    operators = [lin.K, lin.flow, other.K, other.P, other.flow]
    expected = [op @ q for op in operators]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: operators[i % 5] @ q, range(40)))
    for i, result in enumerate(results):
        np.testing.assert_allclose(result, expected[i % 5], rtol=1e-10, atol=1e-12)


def test_autocast_does_not_lower_the_precision(lin):
    single = kpops.linearize(torch.nn.GRU(2, 4), torch.ones(5, 3, 2))
    probe = torch.ones(3, 5, 4)
    expected = single.flow @ probe
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(single.flow @ probe, expected) < 1e-6


def test_structure_is_inferred_from_the_algebra(lin):
    assert lin.flow.positive
    assert (lin.P @ lin.P.H).positive
    assert (lin.P.H @ lin.P).positive
    assert (2 * lin.flow + lin.K).positive
    assert lin.flow.select(trial=0).positive
    assert lin.flow.expand_average(keep=("time",)).positive
    difference = lin.flow - lin.K
    assert difference.self_adjoint
    assert not difference.positive
    assert not lin.P.self_adjoint
    assert not (lin.P @ lin.K).self_adjoint
    assert lin.K.H is lin.K
    assert lin.P.H.H is lin.P


def test_a_product_times_its_adjoint_is_known_to_be_positive(lin):
    gram = lin.sensitivity @ lin.sensitivity.H
    assert gram.self_adjoint and gram.positive
    D = lin.sensitivity.to_dense()
    np.testing.assert_allclose(gram.to_dense(), D @ D.T, rtol=1e-12, atol=1e-14)
    assert not (lin.sensitivity @ lin.J.H).self_adjoint


def test_products_stay_in_torch(lin, q, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "numpy", lambda *a, **k: calls.append(a))
    lin = kpops.linearize(
        torch.nn.GRU(2, 4, batch_first=True), torch.zeros(3, 5, 2), engine="autodiff"
    )
    lin.flow @ torch.zeros(3, 5, 4)
    assert not calls


def test_incompatible_operators_are_refused(lin):
    with pytest.raises(ValueError, match="must be equal"):
        lin.J @ lin.P
    with pytest.raises(ValueError, match="must be equal"):
        lin.J + lin.P
    inputs = xr.DataArray(np.zeros((3, 5, 2)), dims=("trial", "time", "input"))
    inputs["time"] = lin.states.time
    single = kpops.linearize(torch.nn.LSTM(2, 2), inputs, dtype=torch.float32, device=lin.device)
    with pytest.raises(ValueError, match="different dtypes"):
        lin.P @ single.P
    with pytest.raises(ValueError, match=r"the labels of \['time'\] differ"):
        lin.P @ kpops.linearize(torch.nn.LSTM(2, 2).double(), inputs.drop_vars("time")).P
    with pytest.raises(TypeError, match="real"):
        1j * lin.P
    with pytest.raises(TypeError, match="the number 1 do not add up"):
        lin.P - 1


def test_selection_equals_rows_and_columns_of_the_matrix(lin):
    flow = lin.flow.to_dense().reshape(3, 5, 4, 3, 5, 4)
    part = lin.flow.select(trial=[2, 0], time=slice(1, 4), unit=lin.states["variable"] == "c")
    assert part.domain.shape == (2, 3, 2)
    assert part.domain.coords["time"][1].tolist() == [20, 30, 40]
    assert part.domain.coords["variable"][1].tolist() == ["c", "c"]
    trials, times, units = [2, 0], [1, 2, 3], [2, 3]
    rows = np.ix_(trials, times, units, trials, times, units)
    assert relative(part.to_dense(), flow[rows].reshape(12, 12)) < 1e-14

    J = lin.J.to_dense()
    names = lin.parameter_space.coords["parameter_name"][1]
    chosen = lin.J.select(parameter=["bias_hh_l0", "weight_ih_l0"])
    wanted = np.isin(names, ["bias_hh_l0", "weight_ih_l0"])
    assert relative(chosen.to_dense(), J[:, wanted]) < 1e-14
    assert relative(lin.J.select(trial=-1).to_dense(), J[40:]) < 1e-14


def test_off_diagonal_blocks_come_from_two_restrictions(lin):
    first, second = (Restriction(lin.space, {"trial": b}, lin.dtype, lin.device) for b in (0, 1))
    block = (first @ lin.K @ second.H).to_dense()
    assert relative(block, lin.K.to_dense()[:20, 20:40]) < 1e-14
    assert np.abs((first @ lin.P @ second.H).to_dense()).max() == 0  # P keeps trials apart
    off_diagonal = first @ lin.K @ second.H
    with pytest.raises(ValueError, match=r"the labels of \['trial'\] differ"):
        off_diagonal @ off_diagonal


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        ({"trial": 3}, "does not fit the dimension of size 3"),
        ({"time": slice(5, 9)}, "selects nothing"),
        ({"unit": [1, 1]}, "twice"),
        ({"neuron": 0}, r"no dim \['neuron'\]"),
        ({"trial": [True, False]}, "does not fit"),
        ({"trial": [-1, 2]}, "twice"),
        ({"trial": -4}, "does not fit the dimension of size 3"),
        ({"trial": []}, "selects nothing"),
        ({"trial": slice(2, 1)}, "selects nothing"),
        ({"trial": slice(None, None, 0)}, "step cannot be zero"),
        ({"trial": slice(0.0, 2.0)}, "slice indices must be integers"),
        ({"trial": [False] * 3}, "selects nothing"),
        ({"trial": [[True, False, True]]}, "no selection of positions"),
        ({"trial": [[0, 1]]}, "no selection of positions"),
        ({"trial": True}, "does not fit the dimension of size 3"),
        ({"trial": 1.0}, "no selection of positions"),
        ({"time": [0.0, 2.0]}, "no selection of positions"),
        ({"trial": "first"}, "no selection of positions"),
        ({"trial": None}, "no selection of positions"),
        ({"trial": xr.DataArray([True, False, True], dims="time")}, r"along \('time',\)"),
    ],
)
def test_impossible_selections_are_refused(lin, positions, told):
    with pytest.raises((ValueError, TypeError), match=told):
        lin.P.select(**positions)


@pytest.mark.parametrize(
    "time",
    [slice(None, None, -1), slice(3, 0, -2), [4, 0, 2], np.array([-1, 0]), torch.tensor([3, 1])],
    ids=str,
)
def test_reversed_and_reordered_selections_are_permuted_parts(lin, time):
    kept = np.arange(5)[np.asarray(time) if isinstance(time, torch.Tensor) else time]
    part = lin.flow.select(time=time)
    flow = lin.flow.to_dense().reshape(3, 5, 4, 3, 5, 4)
    n = 12 * len(kept)
    assert relative(part.to_dense(), flow[:, kept][:, :, :, :, kept].reshape(n, n)) < 1e-14
    assert part.domain.coords["time"][1].tolist() == (10 * kept + 10).tolist()
    P = lin.P.to_dense().reshape(3, 5, 4, 3, 5, 4)[:, kept][:, :, :, :, kept]
    norm = float(kpops.frobenius_norm(lin.P.select(time=time), method="exact").estimate)
    assert abs(norm - np.linalg.norm(P)) < 1e-12 * norm


def test_unknown_parameters_are_refused(lin):
    for names in ("weight", ["weight"], np.array(["weight"], dtype=object)):
        with pytest.raises(ValueError, match=r"no parameter \['weight'\]: choose from \['bias_hh"):
            lin.J.select(parameter=names)
    with pytest.raises(ValueError, match="selects nothing"):
        lin.J.select(parameter=[])
    with pytest.raises(TypeError, match="no selection of positions"):
        lin.J.select(parameter=[1.5])


def test_expand_average_copies_in_and_averages_out(lin):
    flow = lin.flow.to_dense().reshape(3, 5, 4, 3, 5, 4)
    reduced = lin.flow.expand_average(keep=("time",))
    expected = flow.sum((3, 5)).mean((0, 2))
    assert reduced.domain.dims == ("time",)
    assert relative(reduced.to_dense(), expected) < 1e-13
    both = lin.flow.expand_average(keep=("trial", "unit")).to_dense()
    expected = flow.sum(4).mean(1).transpose(0, 1, 2, 3).reshape(12, 12)
    assert relative(both, expected) < 1e-13
    with pytest.raises(ValueError, match="choose one or more"):
        lin.flow.expand_average(keep=("neuron",))


def test_matvecs_are_counted(lin, q):
    flow, K = lin.flow, lin.K
    flow @ q
    flow @ np.stack([q, q, q])
    flow.H @ q
    assert flow.num_matvecs == 5
    assert K.num_matvecs == 5
    lin.P.H @ q
    assert lin.P.num_matvecs == lin.P.H.num_matvecs == 11  # twice in each of five, once alone


def test_pickled_operators_compute_the_same(lin, q):
    for op in (lin.P, lin.P_inv, lin.K, lin.flow, lin.flow.H, lin.flow.select(trial=1)):
        again = pickle.loads(pickle.dumps(op))
        probe = np.random.default_rng(0).standard_normal(op.shape[1])
        np.testing.assert_array_equal(again @ probe, op @ probe)
        assert repr(again) == repr(op)
        assert again.domain == op.domain
        assert again.positive == op.positive


def test_repr_says_what_where_and_how(lin):
    assert repr(lin.flow) == f"<P K P* (trial: 3, time: 5, unit: 4), float64 on {lin.device}, PSD>"
    assert repr(lin.J) == (
        f"<J (parameter: 48) -> (trial: 3, time: 5, unit: 4), float64 on {lin.device}>"
    )
    assert "(P + K)*" in repr((lin.P + lin.K).H)
    assert "<P - K (" in repr(lin.P - lin.K)
    assert "<-P (" in repr(-lin.P)
    engine = "gated_numba" if lin.device.type == "cpu" else "gated"
    assert f"engine {engine}: a gated cell; keeps" in repr(lin)


def test_methods_are_the_functions(lin):
    for method, function in [
        (lin.flow.eigsh(k=3, rng=0), kpops.eigsh(lin.flow, k=3, rng=0)),
        (lin.P.svds(2, tol=1e-8, rng=0), kpops.svds(lin.P, 2, tol=1e-8, rng=0)),
        (lin.K.trace(), kpops.trace(lin.K)),
        (lin.P.norm(), kpops.frobenius_norm(lin.P)),
        (lin.P.norm("spectral", rng=0), kpops.spectral_norm(lin.P, rng=0)),
    ]:
        xr.testing.assert_identical(method, function)
    with pytest.raises(ValueError, match="kind='nuclear': choose 'frobenius' or 'spectral'"):
        lin.P.norm("nuclear")
    with pytest.raises(ValueError, match=r"is not self-adjoint: use kpops\.svds"):
        lin.P.eigsh(k=1)


def test_export_to_cupy_needs_a_cuda_device():
    lin = kpops.linearize(torch.nn.GRU(2, 4), torch.zeros(5, 3, 2))
    with pytest.raises(ValueError, match="is on cpu: CuPy needs a CUDA device"):
        lin.flow.to_cupy()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cupy_exchanges_without_copying():
    cupy = pytest.importorskip("cupy")
    gru = torch.nn.GRU(2, 4, batch_first=True).cuda()
    lin = kpops.linearize(gru, torch.randn(3, 5, 2))
    q = cupy.random.standard_normal((60,), dtype=cupy.float32)
    exported = lin.flow.to_cupy()
    assert isinstance(exported.matvec(q), cupy.ndarray)
    expected = lin.flow.to_dense() @ cupy.asnumpy(q)
    np.testing.assert_allclose(cupy.asnumpy(exported.matvec(q)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cupy.asnumpy(lin.flow @ q), expected, rtol=1e-4, atol=1e-4)
