"""Operators of other libraries and of users: alone, and beside ours."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
import xarray as xr
from dense import relative

import kpops
import kpops.testing
from kpops.operators import ForeignOperator

pylops = pytest.importorskip("pylops")


class Duck:
    """Whatever has shape, matvec and rmatvec; the rest where it is asked for."""

    def __init__(self, matrix, **also):
        self.matrix, self.shape = matrix, matrix.shape
        for name, value in also.items():
            setattr(self, name, value)

    def matvec(self, x):
        return self.matrix @ x

    def rmatvec(self, x):
        return self.matrix.T @ x


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


SYMMETRIC = random(60, 60) + random(60, 60).T
WIDE = random(12, 60)


@pytest.fixture
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 4, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(3, 5, 2, dtype=torch.float64))


def kinds(matrix):
    """The same matrix as everything that has its action."""
    return {
        "duck": Duck(matrix),
        "duck with dtype": Duck(matrix, dtype="float64"),
        "duck of blocks": Duck(matrix, matmat=lambda X: matrix @ X, rmatmat=lambda X: matrix.T @ X),
        "pylops": pylops.MatrixMult(matrix),
        "scipy": sla.aslinearoperator(matrix),
        "sparse": sp.csr_array(matrix),
    }


@pytest.mark.parametrize("kind", kinds(SYMMETRIC))
def test_solvers_take_them_alone(kind):
    op = kinds(SYMMETRIC)[kind]
    values = np.linalg.eigvalsh(SYMMETRIC)
    largest = values[np.argsort(-np.abs(values))[:3]]
    np.testing.assert_allclose(kpops.eigsh(op, k=3, rng=0).eigenvalue, largest, rtol=1e-10)
    np.testing.assert_allclose(float(kpops.trace(op, method="exact").estimate), values.sum())
    wide = kinds(WIDE)[kind]
    expected = np.linalg.svd(WIDE, compute_uv=False)
    found = kpops.svds(wide, k=3, rng=0).singular_value
    np.testing.assert_allclose(found, expected[:3], rtol=1e-10)
    assert kpops.testing.check_operator(ForeignOperator(wide))["adjoint"] < 1e-14


@pytest.mark.parametrize("kind", kinds(SYMMETRIC))
def test_beside_ours_they_take_its_space(lin, kind):
    theirs = kinds(SYMMETRIC)[kind]
    P = lin.P.to_dense()
    for op, matrix in [
        (lin.P @ theirs, P @ SYMMETRIC),
        (lin.P @ theirs @ lin.P.H, P @ SYMMETRIC @ P.T),
        (lin.P + theirs, P + SYMMETRIC),
        (lin.P - theirs, P - SYMMETRIC),
    ]:
        assert op.domain == op.codomain == lin.space
        assert relative(op.to_dense(), matrix) < 1e-13
        assert relative(op.H.to_dense(), matrix.T) < 1e-13
        assert op.symbol.startswith("P") and type(theirs).__name__ in op.symbol
    modes = kpops.eigsh(lin.P @ theirs @ lin.P.H, k=2, rng=0)
    assert modes.eigenfunction.dims == ("mode", "trial", "time", "unit")


@pytest.mark.parametrize("kind", [k for k in kinds(SYMMETRIC) if k != "sparse"])
def test_on_the_left_of_ours_they_work_whoever_composes(lin, kind):
    theirs = kinds(SYMMETRIC)[kind]
    P, x = lin.P.to_dense(), random(60)
    pairs = [(theirs @ lin.P, SYMMETRIC @ P), (theirs + lin.P, SYMMETRIC + P)]
    if kind.startswith("duck"):  # without an algebra of their own, ours takes over
        pairs.append((theirs - lin.P, SYMMETRIC - P))
        assert all(op.domain == op.codomain == lin.space for op, _ in pairs)
        assert (theirs @ lin.P).symbol == "Duck P"
    for op, matrix in pairs:
        np.testing.assert_allclose(op @ x, matrix @ x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(
            kpops.svds(op, k=1, rng=0).singular_value, np.linalg.norm(matrix, 2)
        )


def test_given_spaces_label_an_operator_of_others(lin):
    theirs = ForeignOperator(sp.csr_array(SYMMETRIC), lin.space)
    assert theirs.codomain == lin.space and theirs.symbol == "csr_array"
    product = theirs @ lin.K
    assert repr(product) == "<csr_array K (trial: 3, time: 5, unit: 4), float64 on cpu>"
    assert relative(product.to_dense(), SYMMETRIC @ lin.K.to_dense()) < 1e-14
    wide = ForeignOperator(WIDE, lin.space)
    assert (wide @ lin.P).codomain.dims == ("index",)
    with pytest.raises(ValueError, match=r"Duck has shape \(12, 60\), expected \(60, 60\)"):
        lin.P + Duck(WIDE)
    with pytest.raises(ValueError, match="has shape"):
        lin.P @ Duck(WIDE)


def test_they_take_the_dtype_of_their_neighbour():
    lin = kpops.linearize(torch.nn.GRU(2, 4), torch.zeros(5, 3, 2))
    product = lin.K @ Duck(SYMMETRIC)
    assert product.torch_dtype == torch.float32
    assert (product @ torch.ones(60)).dtype == torch.float32
    assert relative(product.to_dense(), lin.K.to_dense() @ SYMMETRIC) < 1e-5


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(None, "float64"), ("float32", "float32"), ("float16", "float64"), (int, "float64")],
)
def test_dtypes_of_others(given, dtype):
    op = ForeignOperator(Duck(np.eye(3, dtype="float32"), dtype=given))
    assert op.dtype == dtype
    assert (op @ np.ones(3)).dtype == dtype


def test_complex_ones_are_refused_alone_and_left_to_scipy_beside_ours(lin):
    z = sla.aslinearoperator(1j * np.eye(60))
    for op in (z, Duck(1j * np.eye(3), dtype=complex), sp.eye_array(3) * 1j, 1j * np.eye(3)):
        with pytest.raises(TypeError, match=r"complex.*kpops operators are real"):
            kpops.svds(op, k=1)
    np.testing.assert_allclose((lin.K @ z) @ random(60), 1j * (lin.K @ random(60)))
    np.testing.assert_allclose((z + lin.K) @ random(60), 1j * random(60) + lin.K @ random(60))
    np.testing.assert_allclose((lin.K - z) @ random(60), lin.K @ random(60) - 1j * random(60))
    with pytest.raises(TypeError, match="kpops operators are real"):
        lin.K @ Duck(1j * np.eye(60), dtype="complex128")
    with pytest.raises(ValueError, match="matvec of Duck returned complex128"):
        lin.K @ Duck(1j * np.eye(60)) @ random(60)


def test_what_they_lack_or_get_wrong_is_named():
    forward = sla.LinearOperator((3, 3), matvec=lambda x: 2 * x, dtype=float)
    np.testing.assert_allclose(ForeignOperator(forward) @ np.ones(3), 2)
    with pytest.raises(TypeError, match="_CustomLinearOperator has no rmatvec, which is needed"):
        ForeignOperator(forward).H @ np.ones(3)
    short = Duck(np.eye(3), matmat=lambda X: X[:2])
    with pytest.raises(ValueError, match=r"matvec of Duck returned .* expected .* \(3, 1\)"):
        ForeignOperator(short) @ np.ones(3)


def test_functions_that_write_into_their_argument_or_reuse_their_result_do_no_harm():
    kept = np.empty((3, 1))

    def rude(X):
        kept[:] = 2 * X
        X[:] = 0
        return kept

    op, x = ForeignOperator(Duck(np.eye(3), matmat=rude)), np.array([1.0, 2.0, 3.0])
    first = op @ x
    assert x.tolist() == [1, 2, 3]
    op @ (10 * x)
    assert first.tolist() == [2, 4, 6]


NAN = np.eye(3)
NAN[1, 1] = np.nan
WRONG = {
    "a class": (torch.nn.GRU, "op is the class GRU, no operator"),
    "a model": (torch.nn.GRU(2, 3), r"a model \(GRU\), no .* kpops.linearize\(model, inputs\)"),
    "a task": (xr.Dataset({"inputs": 0}), r"a Dataset of inputs, .*\(model, task.inputs\).flow"),
    "a DataArray": (xr.DataArray(np.eye(3)), r"a DataArray with dims .* pass its .values"),
    "a string": ("flow", "op is the string 'flow', no operator: pass an operator of a"),
    "None": (None, "op is None, no operator"),
    "a number": (3.0, "op is the number 3.0, no operator"),
    "a function": (np.sin, r"op is the function sin, .*LinearOperator\(\(m, n\), matvec=f"),
    "a dict": ({"K": 1}, "op is a dict of 1, no operator: pass one operator, or their sum"),
    "ragged rows": ([[1, 2], [3]], "op is a list of 2, no operator"),
    "another object": (object(), "op is an object, no operator"),
    "a vector": (np.ones(3), r"op has shape \(3,\), expected a matrix"),
    "a block": (np.ones((2, 2, 2)), r"op has shape \(2, 2, 2\), expected a matrix"),
    "an empty matrix": (np.ones((0, 3)), r"op has shape \(0, 3\): it has no entries"),
    "objects": (np.array([[object()]]), "op is a matrix that has dtype object"),
    "strings": (np.array([["a"]]), "op is a matrix that has dtype <U1"),
    "NaN": (NAN, "op is a matrix that is not finite: 1 of 9 entries are NaN or inf"),
    "sparse NaN": (sp.csr_array(NAN), "op is a sparse matrix that is not finite: 1 of 3"),
    "infinity": (torch.full((2, 2), torch.inf), "not finite: 4 of 4"),
    "a complex matrix": (1j * np.eye(3), "dtype complex128: kpops operators are real"),
    "a complex tensor": (1j * torch.eye(3), "dtype complex64: kpops operators are real"),
    "a sparse complex one": (1j * sp.eye_array(3), "dtype complex128: kpops operators are real"),
    "a sparse tensor": (torch.eye(3).to_sparse(), r"layout torch.sparse_coo: pass op.to_dense\(\)"),
    "a masked array": (np.ma.masked_equal(np.eye(3), 0), r"masked entries: .*op.filled\(0\)"),
}
TAKE_AN_OPERATOR = {
    "eigsh": kpops.eigsh,
    "svds": kpops.svds,
    "eigvalsh": kpops.eigvalsh,
    "trace": kpops.trace,
    "diagonal": kpops.diagonal,
    "frobenius_norm": kpops.frobenius_norm,
    "schatten_norm": lambda op: kpops.schatten_norm(op, 3),
    "spectral_norm": kpops.spectral_norm,
    "effective_rank": kpops.effective_rank,
    "alignment": lambda op: kpops.alignment(np.eye(3), op),
    "spectral_density": kpops.spectral_density,
    "truncate": lambda op: kpops.truncate(op, 2),
    "frobenius_map": lambda op: kpops.frobenius_map(op, "time"),
    "check_operator": kpops.testing.check_operator,
}


@pytest.mark.parametrize("function", TAKE_AN_OPERATOR)
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_operator_is_named_everywhere(function, kind):
    given, told = WRONG[kind]
    with pytest.raises((TypeError, ValueError), match=told):
        TAKE_AN_OPERATOR[function](given)


@pytest.mark.parametrize("function", TAKE_AN_OPERATOR)
def test_linearizations_and_lists_of_operators_are_no_operator(lin, function):
    with pytest.raises(TypeError, match=r"a Linearization, .* such as lin.flow, lin.K or lin.P"):
        TAKE_AN_OPERATOR[function](lin)
    with pytest.raises(TypeError, match="op is a list of 2, no operator: pass one operator"):
        TAKE_AN_OPERATOR[function]([lin.K, lin.P])
    with pytest.raises(TypeError, match="op is a dict of 4, no operator: pass one operator, or"):
        TAKE_AN_OPERATOR[function](lin.K_by_parameter)


@pytest.mark.parametrize("function", ["eigsh", "eigvalsh", "trace", "diagonal"])
def test_matrices_that_are_not_square_are_refused(function):
    with pytest.raises(ValueError, match=r"not self-adjoint: use kpops.svds|no trace|k=6: choose"):
        TAKE_AN_OPERATOR[function](np.ones((3, 4)))


TAKE_A_LINEARIZATION = {
    "gradient_flow": lambda lin: kpops.gradient_flow(lin, np.zeros(3)),
    "truncated_flow": lambda lin: kpops.truncated_flow(lin, np.zeros(3)),
    "collapse": kpops.collapse,
    "interference": kpops.interference,
    "interference_operator": lambda lin: kpops.interference_operator(lin, "a", "b"),
    "rank_bounds": kpops.rank_bounds,
    "observability_gramian": kpops.observability_gramian,
    "controllability_gramian": kpops.controllability_gramian,
    "trajectory_dimension": kpops.trajectory_dimension,
    "check_linearization": kpops.testing.check_linearization,
}


@pytest.mark.parametrize("function", TAKE_A_LINEARIZATION)
def test_what_is_no_linearization_is_named_everywhere(lin, function):
    for given, told in [
        (lin.flow, r"the operator <P K P\* .*(and not one of its operators|or its P)"),
        (torch.nn.GRU(2, 3), r"a model \(GRU\).*pass (kpops.linearize\(model, inputs\)|a Lin)"),
        (xr.Dataset({"inputs": 0}), r"a Dataset of inputs.*pass (kpops.*task.inputs|a Lineariz)"),
        ("flow", "the string 'flow'.*pass"),
        (None, "is None.*pass"),
    ]:
        with pytest.raises(TypeError, match=told):
            TAKE_A_LINEARIZATION[function](given)
