"""Systems by name: what they are, how they are run, and what is refused."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import kpops
from kpops.systems.registry import ENTRIES

FLOWS, MAPS = kpops.systems.names("flow"), kpops.systems.names("map")


def test_there_are_more_than_thirty_flows_and_ten_maps_with_a_reference_each():
    assert len(FLOWS) >= 30 and len(MAPS) >= 10
    assert kpops.systems.names() == [n for n in ENTRIES] and len(set(FLOWS) & set(MAPS)) == 0
    assert all(any(c.isdigit() for c in e.reference) for e in ENTRIES.values())
    assert all(e.defaults for e in ENTRIES.values())  # something that can learn


def test_parameters_are_attributes_that_learn_and_settings_follow_them():
    model = kpops.systems.load("Lorenz", rho=30.0)
    assert model.settings == {"sigma": 10.0, "rho": 30.0, "beta": 8 / 3}
    assert [n for n, _ in model.named_parameters()] == ["field.sigma", "field.rho", "field.beta"]
    with torch.no_grad():
        model.field.rho.fill_(20.0)
    assert model.settings["rho"] == 20.0


def test_steps_of_lorenz_follow_a_solver_of_order_eight():
    model = kpops.systems.load("Lorenz")

    def rate(t, h):
        x, y, z = h
        return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]

    states = kpops.systems.trajectory(model, 100)[0]
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    exact = solve_ivp(rate, (0, 1), model.start.numpy(), t_eval=states.time.values, **options)
    np.testing.assert_allclose(states, exact.y.T, atol=1e-6)
    np.testing.assert_allclose(states.time, 0.01 * np.arange(1, 101), rtol=1e-12)


def test_a_map_is_a_cell_without_inputs():
    henon = kpops.systems.load("Henon", a=1.3)
    h = torch.tensor([[0.5, -0.1]], dtype=torch.float64)
    expected = [[1 - 1.3 * 0.25 - 0.1, 0.3 * 0.5]]
    np.testing.assert_allclose(henon(h[:, :0], h).detach(), expected, rtol=1e-15)
    assert henon.dt is None and kpops.systems.trajectory(henon, 3).time.values.tolist() == [1, 2, 3]


def test_sensitivity_to_a_parameter_is_that_of_differences():
    model = kpops.systems.load("Lorenz")
    inputs = torch.zeros(1, 30, 1, dtype=torch.float64)
    lin = kpops.linearize(model, inputs, h0=model.start, parameters=["field.rho"])
    got = np.asarray(lin.sensitivity @ np.ones(1)).reshape(30, 3)
    ends = []
    for rho in (28 + 1e-5, 28 - 1e-5):
        ends.append(kpops.systems.trajectory(kpops.systems.load("Lorenz", rho=rho), 30)[0].values)
    np.testing.assert_allclose(got, (ends[0] - ends[1]) / 2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["Lorenz", "Ikeda", "KuramotoSivashinsky"])
def test_float32_stays_float32(name):
    model = kpops.systems.load(name).float()
    states = kpops.systems.trajectory(model, 20, n_trials=2, rng=0)
    assert states.dtype == np.float32 and model.start.dtype == torch.float32
    result = kpops.lyapunov_spectrum(model, h0=model.start, n_steps=20, dt=model.dt, rng=0)
    assert result.exponent.dtype == np.float32
    measured = kpops.systems.measure(model, n_trials=20, n_steps=12, transient=2, rng=0)
    assert {v.dtype for v in measured.data_vars.values()} == {np.dtype("float32")}
    same = kpops.systems.trajectory(kpops.systems.load(name), 20, n_trials=2, rng=0)
    assert same.dtype == np.float64
    np.testing.assert_allclose(states[:, :5], same[:, :5], rtol=1e-3, atol=1e-3)


def test_trajectories_are_labelled_repeat_and_continue():
    model = kpops.systems.load("Rossler")
    both = [kpops.systems.trajectory(model, 30, n_trials=3, rng=5) for _ in range(2)]
    assert both[0].identical(both[1]) and both[0].dims == ("trial", "time", "unit")
    assert both[0]["variable"].values.tolist() == ["x", "y", "z"]
    late = kpops.systems.trajectory(model, 10, transient=20, n_trials=3, rng=5)
    np.testing.assert_array_equal(late, both[0][:, 20:])
    np.testing.assert_array_equal(late.time, both[0].time[20:])
    one = kpops.systems.trajectory(model, 30)
    np.testing.assert_allclose(one[0], both[0][0], rtol=1e-12)  # the first trial is not moved


def test_trajectories_are_written_and_read(tmp_path):
    states = kpops.systems.trajectory(kpops.systems.load("Henon"), 5)
    states.to_dataset().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    states.to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)


@pytest.mark.parametrize("name", ["Lorenz", "Henon", "KuramotoSivashinsky"])
def test_systems_are_copied_and_pickled(name):
    model = kpops.systems.load(name)
    x, h = torch.zeros(1, model.input_size, dtype=torch.float64), model.start[None]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x, h), model(x, h), rtol=0, atol=0)
        assert other.reference == model.reference


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kpops.systems.load("lorens"), ValueError, "did you mean Lorenz"),
        (lambda: kpops.systems.load("xyzzy"), ValueError, "names"),
        (lambda: kpops.systems.load(3), TypeError, "the number 3"),
        (lambda: kpops.systems.load("Lorenz", rh0=1), TypeError, "did you mean rho"),
        (lambda: kpops.systems.load("Lorenz", rho="x"), TypeError, "rho of Lorenz is the string"),
        (lambda: kpops.systems.load("Lorenz", rho=np.nan), ValueError, "rho of Lorenz is nan"),
        (
            lambda: kpops.systems.trajectory(kpops.systems.load("Henon"), 3, rng="seed"),
            TypeError,
            "rng is the string",
        ),
        (lambda: kpops.systems.names("flows"), ValueError, "'flow', 'map'"),
        (lambda: kpops.systems.trajectory("Lorenz", 3), TypeError, "load"),
        (lambda: _run("Lorenz", 0), ValueError, "n_steps=0"),
        (lambda: _run("Lorenz", 1, n_trials=0), ValueError, "n_trials=0"),
        (lambda: _run("Henon", 40, a=3.0), ValueError, "trial 0 of Henon has left for infinity"),
        (lambda: kpops.systems.measure(torch.nn.GRU(1, 1)), TypeError, "GRU"),
        (lambda: _measure("Henon", n_trials=5), ValueError, "n_trials=5"),
    ],
)
def test_wrong_use_is_refused_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _run(name, n_steps, n_trials=1, **parameters):
    return kpops.systems.trajectory(
        kpops.systems.load(name, **parameters), n_steps, n_trials=n_trials, rng=0
    )


def _measure(name, **options):
    return kpops.systems.measure(kpops.systems.load(name), **options)
