"""State-space form: it gives the states, P and outputs of the model back, or refuses the model."""

import numpy as np
import pytest
import torch
import xarray as xr
from dense import relative
from torch import nn

import kpops
from kpops.models import (
    DiagonalSSM,
    LeakyCell,
    LinearAttention,
    LinearTimeVarying,
    MinGRUCell,
    SelectiveLayer,
    SelectiveSSM,
    SwitchingLinear,
    s4d,
)


class Decay(nn.Module):
    """A user's linear cell, of a constant matrix."""

    def __init__(self):
        super().__init__()
        self.input_size, self.hidden_size = 2, 3
        self.A, self.B = nn.Linear(3, 3, bias=False), nn.Linear(2, 3)

    def forward(self, x, h):
        return self.A(h) + self.B(x)


MODELS = {
    "attention": (lambda: LinearAttention(2, 3, 2, rng=0), "linear attention"),
    "gated": (lambda: LinearAttention(2, 3, 2, gated=True, rng=0), "gated linear attention"),
    "normalised": (
        lambda: LinearAttention(2, 3, 2, normalised=True, rng=0),
        "normalised linear attention",
    ),
    "selective_layer": (lambda: SelectiveLayer(2, 3, rng=0), "selective state-space layer"),
    "selective": (lambda: SelectiveSSM(2, 3, rng=0), "selective state-space layer"),
    "real": (lambda: DiagonalSSM(2, 3, form="real", rng=0), "diagonal state-space layer"),
    "complex": (lambda: DiagonalSSM(2, 3, rng=0), "diagonal state-space layer"),
    "s4d": (lambda: s4d(2, 3, rng=0), "diagonal state-space layer"),
    "varying": (lambda: LinearTimeVarying(2, 3, rng=0), "bilinear system"),
    "switching": (lambda: SwitchingLinear(2, 3, rng=0), "switching linear system"),
    "min_gru": (lambda: MinGRUCell(2, 3), "linear time-varying system"),
    "own": (Decay, "linear time-invariant system"),
}
STRUCTURES = {"complex": "complex diagonal", "s4d": "complex diagonal"} | dict.fromkeys(
    ("varying", "switching", "own"), "dense"
)
CONSTANT = ("attention", "normalised", "real", "complex", "s4d", "own")


def linearized(name, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = MODELS[name][0]().to(dtype)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 7, 2, generator=rng, dtype=dtype)
    size = kpops.models.as_recurrence(model).state_size
    h0 = torch.randn(3, size, generator=rng, dtype=dtype)
    return kpops.linearize(model, x, h0=h0, readout=getattr(model, "readout", None), **options)


def real(array):
    """Complex modes as the units of the model."""
    if not np.iscomplexobj(array):
        return array.values
    return np.concatenate([array.values.real, array.values.imag], -1)


def run(form):
    """States of the form, by its recursion alone."""
    h, states = form.start, []
    for t in range(form.sizes["time"]):
        now = form.isel(time=t)
        if "source" in form.dims:
            h = xr.dot(now.transition, h.rename(unit="source"), dim="source") + now.drive
        else:
            h = now.transition * h + now.drive
        states.append(h)
    return xr.concat(states, "time").transpose("trial", "time", ...)


@pytest.mark.parametrize("name", MODELS)
def test_the_recursion_gives_the_states_of_the_model_back(name):
    lin = linearized(name)
    form = kpops.state_space_form(lin)
    assert form.attrs["kind"] == MODELS[name][1]
    assert form.attrs["structure"] == STRUCTURES.get(name, "diagonal")
    assert form.attrs["time_varying"] == (name not in CONSTANT)
    states = lin.states
    if "output_weight" in form:
        states = states.isel(unit=slice(form.sizes["unit"]))
    assert relative(real(run(form)), states.values) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_P_is_the_products_of_the_transitions(name):
    lin = linearized(name)
    form = kpops.state_space_form(lin)
    transition = form.transition.values
    if form.attrs["structure"] != "dense":
        transition = transition[..., None] * np.eye(transition.shape[-1])
    n, m = transition.shape[1:3]
    size = lin.space.shape[-1]
    P = lin.P.to_dense().reshape(3, n, size, 3, n, size)
    for b in range(3):
        for s in range(n):
            product = np.eye(m)
            for t in range(s, n):
                product = product if t == s else transition[b, t] @ product
                own = product
                if form.attrs["structure"] == "complex diagonal":
                    own = np.block([[product.real, -product.imag], [product.imag, product.real]])
                k = len(own)
                assert np.abs(P[b, t, :k, b, s, :k] - own).max() < 1e-12
                if "output_weight" in form and t > s:  # the queries keep nothing
                    assert not P[b, t, k:, b, s].any()


@pytest.mark.parametrize("name", ["attention", "gated", "normalised", "selective_layer"])
def test_outputs_are_sums_over_the_memory_with_the_weights_of_the_query(name):
    lin = linearized(name)
    form = kpops.state_space_form(lin)
    sums = (form.output_weight * run(form)).groupby("value").sum()
    if name == "normalised":
        sums = sums.sel(value=slice(0, None)) / sums.sel(value=-1)
    assert relative(sums.transpose("trial", "time", "value").values, lin.outputs.values) < 1e-12


class Delta(LinearAttention):
    """The delta rule, which first takes from the memory what the key reads."""

    def forward(self, x, h):
        memory, _ = self.readout.split(h)
        key = nn.functional.linear(x, self.key_weight)
        read = torch.einsum("...k,...kv->...v", key, memory)
        erased = key[..., None] * read[..., None, :]
        return super().forward(x, h) - nn.functional.pad(erased.flatten(-2), (0, self.key_size))


def test_a_change_of_the_step_is_seen():
    x = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    lin = kpops.linearize(Delta(2, 3, 2, rng=0).double(), x)
    assert lin.engine.name == "jacobian"  # it is not taken for diagonal either
    form = kpops.state_space_form(lin)
    assert form.attrs["kind"] == "linear time-varying system"
    assert form.attrs["structure"] == "dense"
    assert relative(run(form).values, lin.states.values) < 1e-12


class Pairs(nn.Module):
    """Two variables of each unit that act on each other, but turn nothing."""

    state_size, input_size = 4, 2

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, h):
        return torch.einsum("vwi,...wi->...vi", self.mix, h.unflatten(-1, (2, 2))).flatten(-2)


@kpops.models.as_recurrence.register
def _(model: Pairs) -> kpops.models.Recurrence:
    return kpops.models.DiagonalRecurrence(model, ("y", "z"))


def test_pairs_of_variables_that_are_no_complex_numbers_are_dense():
    lin = kpops.linearize(
        Pairs().double(), torch.zeros(1, 4, 2).double(), h0=torch.ones(4).double()
    )
    assert lin.engine.name == "scan"
    form = kpops.state_space_form(lin)
    assert form.attrs["structure"] == "dense"
    assert relative(run(form).values, lin.states.values) < 1e-14


@pytest.mark.parametrize("name", ["gated", "complex", "varying"])
def test_padded_steps_are_zero(name):
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    form = kpops.state_space_form(linearized(name, mask=mask))
    whole = kpops.state_space_form(linearized(name))
    for variable in ("transition", "drive"):
        assert not form[variable][1, 4:].any()
        np.testing.assert_array_equal(form[variable][0], whole[variable][0])
        np.testing.assert_array_equal(form[variable][1, :4], whole[variable][1, :4])


@pytest.mark.parametrize("name", ["normalised", "complex", "varying"])
def test_float32_stays_and_the_form_is_saved(name, tmp_path):
    form = kpops.state_space_form(linearized(name, torch.float32))
    assert form.transition.dtype == ("complex64" if name == "complex" else "float32")
    assert form.drive.dtype == form.transition.dtype
    form.to_netcdf(tmp_path / "form.nc", engine="h5netcdf")
    form.to_zarr(tmp_path / "form.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "form.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again.load(), form)
    with xr.open_zarr(tmp_path / "form.zarr", consolidated=False) as again:
        xr.testing.assert_equal(again.load(), form)


@pytest.mark.parametrize(
    "model",
    [
        nn.GRU(2, 3, batch_first=True),
        nn.LSTM(2, 3, batch_first=True),
        nn.RNNCell(2, 3, nonlinearity="relu"),
        LeakyCell(2, 3, alpha=0.1),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_models_are_refused_by_name(model, dtype):
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    lin = kpops.linearize(model.to(dtype), x)
    told = f"{type(model).__name__} is not of the form .*: Lambda depends on the state"
    with pytest.raises(ValueError, match=told):
        kpops.state_space_form(lin)


def test_a_corner_far_from_the_trajectory_is_seen():
    cell = nn.RNNCell(2, 3, nonlinearity="relu").double()
    with torch.no_grad():
        cell.bias_hh.fill_(10)
        cell.weight_hh.mul_(0.01)
    lin = kpops.linearize(cell, torch.zeros(2, 5, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="RNNCell is not of the form"):
        kpops.state_space_form(lin)


def test_a_model_alone_is_refused():
    with pytest.raises(TypeError, match=r"lin is a model \(DiagonalSSM\).*kpops.linearize"):
        kpops.state_space_form(DiagonalSSM(2, 3))
