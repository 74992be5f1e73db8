"""What Python's operators mean, with every kind of operand: right, or refused by name."""

import operator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import xarray as xr
from dense import relative

import kpops


@pytest.fixture
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 4, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 5, 2, dtype=torch.float64))


@pytest.fixture
def single():
    torch.manual_seed(0)
    return kpops.linearize(torch.nn.GRU(2, 4, batch_first=True), torch.randn(3, 5, 2))


TWO = [
    2,
    2.0,
    np.float32(2),
    np.int64(2),
    np.array(2.0),
    torch.tensor(2.0),
    torch.tensor(2, requires_grad=False),
    xr.DataArray(2.0),
    Fraction(2),
]


@pytest.mark.parametrize("two", TWO, ids=lambda x: type(x).__name__)
def test_real_numbers_of_every_kind_scale(lin, two):
    matrix = lin.flow.to_dense()
    assert relative((lin.flow * two).to_dense(), 2 * matrix) < 1e-15
    assert relative((lin.flow / two).to_dense(), matrix / 2) < 1e-15
    assert (lin.flow * two).symbol == "2 (P K P*)"
    if not isinstance(two, xr.DataArray):  # xarray wraps what it multiplies, and is told so below
        assert relative((two * lin.flow).to_dense(), 2 * matrix) < 1e-15


VECTOR = np.ones(60)
NONSENSE = {
    "divided by a vector": (lambda op: op / VECTOR, "divided by an array of shape"),
    "divided by a tensor": (lambda op: op / torch.ones(60), "divided by a tensor of shape"),
    "divided by a DataArray": (lambda op: op / xr.DataArray(VECTOR), "divided by a DataArray"),
    "divided by an operator": (lambda op: op / op, "divided by the operator <P K P"),
    "divided by a string": (lambda op: op / "a", "divided by the string 'a'"),
    "divided by None": (lambda op: op / None, "divided by None"),
    "divided by 1j": (lambda op: op / 1j, "divide by a real number"),
    "divided by zero": (lambda op: op / 0, "is divided by zero"),
    "times a string": (lambda op: op * "a", "factor 'a': .* real"),
    "a string times": (lambda op: "a" * op, "factor 'a': .* real"),
    "times None": (lambda op: op * None, "applied to None"),
    "times 1j": (lambda op: op * 1j, "factor 1j: .* real"),
    "times a Decimal": (lambda op: op * Decimal("0.5"), "real number"),
    "times NaN": (lambda op: op * float("nan"), "factor nan: use a finite number"),
    "times a long int": (lambda op: op * 10**400, "factor inf: use a finite number"),
    "times infinity": (lambda op: op * np.inf, "factor inf: use a finite number"),
    "a 0-d DataArray times": (lambda op: xr.DataArray(2.0) * op, "is matrix-free, neither array"),
    "plus one": (lambda op: op + 1, "and the number 1 do not add up"),
    "one plus": (lambda op: 1 + op, "and the number 1 do not add up"),
    "one minus": (lambda op: 1 - op, "and the number 1 do not add up"),
    "plus an array": (lambda op: op + np.eye(60), "aslinearoperator"),
    "minus an array": (lambda op: op - np.eye(60), "an array of shape .* do not add up"),
    "an array plus": (lambda op: np.eye(60) + op, "an array of shape .* do not add up"),
    "an array minus": (lambda op: np.eye(60) - op, "an array of shape .* do not add up"),
    "plus a tensor": (lambda op: op + torch.eye(60), "a tensor of shape .* do not add up"),
    "a tensor minus": (lambda op: torch.eye(60) - op, "a tensor of shape .* do not add up"),
    "plus a string": (lambda op: op + "a", "the string 'a' do not add up"),
    "to the power -1": (lambda op: op**-1, "to the power -1: choose an int of 1 or more"),
    "to the power 0": (lambda op: op**0, "to the power 0: choose an int"),
    "to the power 0.5": (lambda op: op**0.5, "to the power 0.5: choose an int"),
    "to the power True": (lambda op: op**True, "to the power True: choose an int"),
    "two to the power": (lambda op: 2**op, "unsupported operand"),
    "applied to None": (lambda op: op @ None, "applied to None: pass a vector"),
    "applied to a string": (lambda op: op @ "a", "applied to the string 'a': apply it to a vector"),
    "applied to a number": (lambda op: op @ 2, "Scalar operands"),
    "applied to a 0-d array": (lambda op: op @ np.array(2.0), "Scalar operands"),
    "from a 0-d tensor": (lambda op: torch.tensor(2.0) @ op, "Scalar operands"),
    "applied to a class": (lambda op: op @ torch.nn.GRU, "applied to the class GRU"),
    "applied to a model": (lambda op: op @ torch.nn.GRU(2, 3), r"applied to a model \(GRU\)"),
    "applied to a Dataset": (lambda op: op @ xr.Dataset({"a": 1}), "applied to a Dataset of a"),
    "applied to a dict": (lambda op: op @ {"a": 1}, "applied to a dict of 1"),
    "truth": (bool, "the truth of .* is not defined"),
    "length": (len, "neither array nor sequence"),
    "iteration": (list, "neither array nor sequence"),
    "index": (lambda op: op[0, 0], r"op.select\(\.\.\.\) restricts it"),
    "equal to an array": (lambda op: op == VECTOR, r"op.to_dense\(\) makes the matrix"),
    "an array equals": (lambda op: operator.eq(VECTOR, op), r"op.to_dense\(\) makes the matrix"),
    "not equal to a tensor": (lambda op: op != torch.ones(60), r"op.to_dense\(\) makes"),
    "absolute": (abs, "abs"),
    "float": (float, "float"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_by_name(lin, case):
    act, told = NONSENSE[case]
    with pytest.raises((TypeError, ValueError, ZeroDivisionError), match=told):
        act(lin.flow)


def test_linearizations_are_no_operands(lin):
    for act in (lambda: lin.K @ lin, lambda: lin @ lin.K, lambda: lin.K + lin):
        with pytest.raises(TypeError, match="a Linearization"):
            act()


def test_powers_are_products(lin):
    P, K = lin.P.to_dense(), lin.K.to_dense()
    assert relative((lin.P**3).to_dense(), P @ P @ P) < 1e-13
    assert relative((lin.K**2).to_dense(), K @ K) < 1e-13
    assert lin.K**1 is lin.K
    assert (lin.K**2).positive and not (lin.P**2).self_adjoint
    assert (lin.P**2).domain == lin.space
    with pytest.raises(ValueError, match="must be equal"):
        lin.J**2


def test_operators_are_equal_to_themselves_only(lin):
    assert lin.P == lin.P and lin.P in {lin.P, lin.K}
    assert lin.P != lin.K and lin.P != None and lin.P != "P"  # noqa: E711
    assert [lin.K, lin.P].index(lin.P) == 1


def test_sparse_matrices_add_and_multiply_as_operators(lin):
    shift = sp.diags_array(np.arange(60.0))
    K, D = lin.K.to_dense(), shift.toarray()
    for op, matrix in [
        (lin.K + shift, K + D),
        (shift + lin.K, K + D),
        (lin.K - shift, K - D),
        (shift - lin.K, D - K),
        (lin.K @ shift, K @ D),
    ]:
        assert relative(op.to_dense(), matrix) < 1e-14
        assert op.domain == op.codomain == lin.space
    assert (lin.K - shift).symbol == "K - dia_array"
    with pytest.raises(TypeError, match="is matrix-free"):
        shift @ lin.K  # SciPy asks for an array and hears how to go on


ASKED_FOR_ENTRIES = {
    "np.asarray": np.asarray,
    "np.array with a dtype": lambda op: np.array(op, dtype=float),
    "a list of operators": lambda op: np.array([op, op]),
    "torch.as_tensor": torch.as_tensor,
    "torch.tensor": torch.tensor,
    "np.linalg.svd": np.linalg.svd,
    "np.linalg.eigh": np.linalg.eigh,
    "np.trace": np.trace,
    "np.dot": lambda op: np.dot(op, VECTOR),
    "np.mean": np.mean,
    "DataArray": xr.DataArray,
}


@pytest.mark.parametrize("function", ASKED_FOR_ENTRIES)
def test_who_asks_for_entries_hears_of_to_dense_and_its_size(lin, function):
    with pytest.raises(TypeError, match=r"to_dense\(\) makes the matrix, 60 x 60, .* 0.02747 MiB"):
        ASKED_FOR_ENTRIES[function](lin.flow)


def test_sizes_of_large_matrices_are_in_gib():
    lin = kpops.linearize(torch.nn.GRU(2, 64), torch.zeros(90, 20, 2))
    with pytest.raises(TypeError, match=r"115200 x 115200, which takes 49\.44 GiB"):
        np.asarray(lin.flow)


def test_a_zero_operator_works_everywhere(lin):
    zero = 0 * lin.flow
    assert zero.positive and zero.self_adjoint
    assert not (zero @ VECTOR).any()
    assert not zero.to_dense().any()
    assert not kpops.eigsh(zero, k=3).eigenvalue.any()
    assert not kpops.svds(0 * lin.P, k=3).singular_value.any()
    assert float(kpops.trace(zero).estimate) == 0
    assert float(kpops.trace(0 * lin.K).estimate) == 0
    assert float(kpops.frobenius_norm(0 * lin.P).estimate) == 0
    assert float(kpops.spectral_norm(zero).estimate) == 0
    assert float(kpops.schatten_norm(0 * lin.J, 3).estimate) == 0
    assert float(kpops.effective_rank(zero).estimate) == 0
    assert np.isnan(float(kpops.alignment(zero, lin.K).estimate))
    assert not kpops.truncate(zero, 2).to_dense().any()
    for method in ("block-krylov", "lobpcg", "arpack"):
        assert not kpops.eigsh(zero, k=2, method=method, rng=0).eigenvalue.any()
    assert not zero.partial_trace(keep=("time",)).to_dense().any()
    assert relative((zero + lin.K).to_dense(), lin.K.to_dense()) < 1e-15


@pytest.mark.parametrize("factor", [1e39, -1e39, 1e-39, 1e300])
def test_factors_beyond_float32_are_refused(single, lin, factor):
    with pytest.raises(ValueError, match=r"beyond torch.float32, which reaches from .*float64"):
        factor * single.K
    np.testing.assert_allclose((factor * lin.K) @ VECTOR, factor * (lin.K @ VECTOR), rtol=1e-14)


def test_products_that_overflow_are_named(single):
    op = 1e30 * (1e30 * single.P)
    with pytest.raises(OverflowError, match=r"1e\+30 \(1e\+30 P\).* leaves the range of torch.fl"):
        op @ np.ones(60)
    with pytest.raises(OverflowError, match="leaves the range"):
        op.H @ np.ones(60)
    tiny = 1e30 * (1e-30 * single.P)
    np.testing.assert_allclose(tiny @ np.ones(60), single.P @ np.ones(60), rtol=1e-6)
    infinite = np.full(60, np.inf)  # is the user's, and stays
    assert np.isinf((2 * single.P) @ infinite).any()
