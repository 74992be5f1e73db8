"""Every operator of every model keeps the public contract, in both dtypes, on every device."""

import numpy as np
import pytest
import torch
from cases import CASES_AND_ENGINES, ENGINES, STEPS, serving, skip_compiled_elsewhere

import kpops
from kpops.labels import Space
from kpops.operators import TrajectoryOperator
from kpops.testing import check_linearization, check_operator

MASK = torch.arange(STEPS) < torch.tensor([[STEPS], [3], [1]])


# In double precision all of them are compared with dense matrices in tests/engines.
SOME = {"gru", "lstm_two_layers", "shared_norm_cell"}
SINGLE = [
    pytest.param(case, engine, torch.float32, marks=[pytest.mark.slow] * (not quick))
    for case, engine in CASES_AND_ENGINES
    for quick in [case.name in SOME or engine == serving(case.model())[0]]
]
DOUBLE = [(case, engine, torch.float64) for case, engine in CASES_AND_ENGINES if case.name in SOME]


@pytest.mark.parametrize(
    ("case", "engine", "dtype"), SINGLE + DOUBLE, ids=lambda value: getattr(value, "name", value)
)
def test_every_model_keeps_the_contract(case, engine, dtype, device):
    skip_compiled_elsewhere(engine, device)
    model, (inputs, h0) = case.model(dtype), case.data(dtype)
    options = {"h0": h0, "engine": engine, "device": device, "measure": "mean"}
    options["mask"] = case.as_module_takes(model, MASK)
    lin = kpops.linearize(model, case.as_module_takes(model, inputs), **options)
    figures = check_linearization(lin)
    worst = max(max(f.values()) for f in figures.values())
    assert worst < 200 * torch.finfo(dtype).eps, figures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_readouts_reductions_and_algebra_keep_the_contract(dtype, device):
    torch.manual_seed(0)
    gru, readout = torch.nn.GRU(2, 4, batch_first=True).to(dtype), torch.nn.Linear(4, 3).to(dtype)
    lin = kpops.linearize(gru, torch.randn(3, 5, 2, dtype=dtype), readout=readout, device=device)
    for op in [
        lin.C,
        lin.output_ntk,
        lin.P @ lin.P.H,
        2.5 * lin.K - lin.flow,
        lin.flow.select(trial=[0, 2], time=slice(1, 4)),
        lin.J.select(parameter="weight_hh_l0", unit=[1]),
        lin.flow.expand_average(keep=("time",)),
        lin.sensitivity.H,
    ]:
        check_operator(op)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_float32_adjoint_holds_at_a_million_unknowns(engine):
    torch.manual_seed(0)
    gru = torch.nn.GRU(3, 64, batch_first=True)
    lin = kpops.linearize(gru, torch.randn(125, 125, 3), engine=engine)
    assert lin.P.shape[0] == 1_000_000
    for op in (lin.P, lin.K, lin.flow, lin.sensitivity):
        u = torch.randn(1, *op.domain.shape)
        v = torch.randn(1, *op.codomain.shape)
        image, back = op.apply(u), op.apply_adjoint(v)
        assert image.dtype == back.dtype == torch.float32
        gap = abs(float((image.double() * v).sum() - (u.double() * back).sum()))
        scale = float(image.norm() * v.norm() + u.norm() * back.norm())
        assert gap < torch.finfo(torch.float32).eps * scale


class Broken(TrajectoryOperator):
    """A matrix whose adjoint, linearity or claims can be spoilt."""

    def __init__(self, fault):
        space = Space(("time", "unit"), (3, 2))
        claims = {"self_adjoint": fault == "self_adjoint", "positive": fault == "positive"}
        super().__init__(
            space,
            space,
            dtype=torch.float64,
            device=torch.device("cpu"),
            symbol="M",
            self_adjoint=claims["self_adjoint"] or claims["positive"],
            positive=claims["positive"],
        )
        matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 6)))
        if fault == "positive":  # one negative eigenvalue among positive ones
            vectors = torch.linalg.qr(matrix)[0]
            matrix = vectors * torch.tensor([-0.1, 1, 1, 1, 1, 1], dtype=matrix.dtype) @ vectors.T
        self.matrix = matrix
        self.fault = fault
        self.calls = 0

    def _apply(self, block):
        self.calls += 1
        result = (block.reshape(-1, 6) @ self.matrix.T).reshape(block.shape)
        if self.fault == "linearity":
            result = result + 1e-6
        if self.fault == "block" and len(block) > 1:
            result = result.flip(0)
        if self.fault == "deterministic":
            result = result * (1 + 1e-13 * self.calls)
        return result.float() if self.fault == "dtype" else result

    def _apply_adjoint(self, block):
        matrix = self.matrix * (1 + 1e-9) if self.fault == "adjoint" else self.matrix
        if self.fault == "adjoint_only_when_single":
            matrix = self.matrix if len(block) > 1 else 2 * self.matrix
        return (block.reshape(-1, 6) @ matrix).reshape(block.shape)


def test_contract_accepts_a_correct_operator():
    assert max(check_operator(Broken("none")).values()) < 1e-14


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("adjoint", "adjoint"),
        ("adjoint_only_when_single", "block"),
        ("linearity", "linearity"),
        ("block", "block"),
        ("deterministic", "deterministic"),
        ("dtype", "float32"),
        ("self_adjoint", "self_adjoint"),
        ("positive", "positive"),
    ],
)
def test_contract_finds_a_broken_operator(fault, told):
    with pytest.raises(AssertionError, match=told):
        check_operator(Broken(fault))
