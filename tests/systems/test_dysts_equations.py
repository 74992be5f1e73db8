"""Flows of dysts: which are read, how they agree with ours, and which are refused."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import kpops

installed = pytest.mark.skipif(
    importlib.util.find_spec("dysts") is None, reason="could not import 'dysts': not installed"
)
# Names of our parameters and theirs, where they differ in more than capitals.
SAME = {
    "Lorenz": {"sigma": "sigma", "rho": "rho", "beta": "beta"},
    "Rossler": {"a": "a", "b": "b", "c": "c"},
    "Chen": {"a": "a", "b": "b", "c": "c"},
    "Halvorsen": {"a": "a", "b": "b"},
    "RabinovichFabrikant": {"gamma": "g", "alpha": "a"},
    "Rucklidge": {"kappa": "a", "lambda_": "b"},
    "Aizawa": {k: k for k in "abcdef"},
    "Arneodo": {k: k for k in "abcd"},
    "GenesioTesi": {k: k for k in "abc"},
    "Dadras": {k: k for k in "porce"},
    "Hadley": {k: k for k in "abfg"},
    "HyperRossler": {k: k for k in "abcd"},
    "HenonHeiles": {"coupling": "lam"},
}
SPROTT = [f"Sprott{letter}" for letter in "ABCDEFGHIJKLMNOPQRS"]


@installed
@pytest.mark.parametrize("name", SAME)
def test_vector_fields_of_both_are_the_same(name):
    theirs = kpops.systems.from_dysts(name)
    values = {ours: theirs.settings[key] for ours, key in SAME[name].items()}
    ours = kpops.systems.load(name, **values)
    drawn = np.random.default_rng(1).standard_normal((20, len(theirs.start)))
    states = torch.as_tensor(drawn)
    expected = theirs.field(None, states).detach()
    np.testing.assert_allclose(ours.field(None, states).detach(), expected, rtol=1e-12)


@installed
@pytest.mark.parametrize("name", SPROTT)
def test_cases_of_sprott_are_the_same_with_their_defaults(name):
    states = torch.as_tensor(np.random.default_rng(1).standard_normal((20, 3)))
    ours, theirs = kpops.systems.load(name), kpops.systems.from_dysts(name)
    expected = theirs.field(None, states).detach()
    np.testing.assert_allclose(ours.field(None, states).detach(), expected, rtol=1e-12, atol=1e-14)


@installed
def test_a_flow_of_dysts_is_a_model():
    flow = kpops.systems.from_dysts("Thomas", b=9.0)
    assert flow.settings["b"] == 9.0 and flow.dt > 0 and flow.variables == ("x", "y", "z")
    result = kpops.systems.measure(flow, n_trials=20, n_steps=40, transient=20, rng=0)
    divergence = -3 * flow.settings["a"]
    assert float(result.mean_divergence) == pytest.approx(divergence, rel=1e-12)
    other = pickle.loads(pickle.dumps(flow))
    x = torch.zeros(1, 1, dtype=torch.float64)
    torch.testing.assert_close(other(x, flow.start[None]), flow(x, flow.start[None]))


@installed
def test_lorenz_of_dysts_has_the_right_sum_and_not_the_one_that_dysts_states():
    flow = kpops.systems.from_dysts("Lorenz")
    flow.n_substeps = 4
    result = kpops.lyapunov_spectrum(flow, h0=flow.start, n_steps=200, dt=flow.dt, rng=0)
    sigma, beta = flow.settings["sigma"], flow.settings["beta"]
    assert float(result.exponent.sum()) == pytest.approx(-(sigma + 1 + beta), abs=1e-4)


@installed
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Lorentz", "did you mean Lorenz"),
        ("MackeyGlass", "delay"),
        ("Hopfield", "arrays as parameters"),
        ("Lorenz96", "a state as an array"),
        ("BelousovZhabotinsky", "does not run on tensors"),
        ("FluidTrampoline", "does not run on tensors"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        kpops.systems.from_dysts(name)


@installed
def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match="no parameter 'rh0'"):
        kpops.systems.from_dysts("Lorenz", rh0=1)
    with pytest.raises(TypeError, match="the number 3"):
        kpops.systems.from_dysts(3)


# The equations below are ours, in the place of those of dysts.


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a package named dysts with one equation."""

    def write(equation, n=1):
        folder = tmp_path / "dysts"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "flows.py").write_text(
            f"class Mine(DynSys):\n    @staticjit\n    def _rhs(x, t, a):\n        {equation}\n"
        )
        data = {"parameters": {"a": 2.0}, "initial_conditions": [1.0] * n, "period": 5.0}
        (folder / "data" / "chaotic_attractors.json").write_text(json.dumps({"Mine": data}))
        monkeypatch.setattr("kpops.systems.dysts._folder", lambda: folder)
        kpops.systems.dysts._classes.cache_clear()

    yield write
    kpops.systems.dysts._classes.cache_clear()


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ("return (a * x + t,)", "depends on the time"),
        ("return (a * np.cbrt(x),)", "does not run on tensors"),
        ("return (a * x.round(decimals=7),)", "the derivatives of Mine"),
        ("return (a * x + (0.5 if type(x) is np.ndarray else 0.0),)", "the values of Mine|tensors"),
    ],
)
def test_an_equation_that_torch_would_compute_in_another_way_is_refused(written, equation, message):
    written(equation)
    with pytest.raises(ValueError, match=message):
        kpops.systems.from_dysts("Mine")


def test_a_plain_equation_is_read(written):
    written("return (a * np.sin(x),)")
    flow = kpops.systems.from_dysts("Mine", a=3.0)
    h = torch.tensor([[0.5]], dtype=torch.float64)
    assert float(flow.field(None, h).detach()) == pytest.approx(3 * np.sin(0.5), rel=1e-15)
    assert flow.dt == 0.05


def test_without_dysts_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps dysts"):
        kpops.systems.from_dysts("Lorenz")


@installed
@pytest.mark.slow
def test_more_than_a_hundred_flows_of_dysts_are_read():
    folder = Path(importlib.util.find_spec("dysts").submodule_search_locations[0])
    read, refused = [], []
    for name in json.loads((folder / "data" / "chaotic_attractors.json").read_text()):
        try:
            read.append(kpops.systems.from_dysts(name))
        except ValueError as error:
            refused.append(str(error))
    assert len(read) > 100 and all("dysts" in text for text in refused)
