"""From tiny networks to files, and what the committed files are."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from reproduction import alignments, measure, ranks, results, trained
from reproduction.registry import ROWS
from reproduction.row import run
from reproduction.rows import state_change

ROOT = Path(__file__).parents[2]

# PyTorch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A training of a few steps, in a cache of its own, evaluated on short trials."""
    monkeypatch.setattr(trained.networks, "CACHE", tmp_path / "cache")
    short = partial(ranks.EVALUATION["memory_pro"].func, 6, angles="even", noise=0, steps=(4, 3, 3))
    monkeypatch.setitem(ranks.EVALUATION, "memory_pro", short)
    four = partial(alignments.EVALUATION.func, 8, angles="even", noise=0, steps=(3, 3, 3, 3))
    monkeypatch.setattr(alignments, "EVALUATION", four)

    def training(task, cell="gru", **options):
        settings = {"n_trials": 8, "batch_size": 4, "max_steps": 2, "checkpoint_every": 2}
        return trained.Training(task, cell, 6, seed=0, **{**settings, **options})

    return training


def written(training, folder):
    measure.run(list(measure.plan([training])), folder=folder)
    return results.read(folder / f"{training.name}.nc")


def test_ranks_of_a_tiny_network_are_those_of_its_checkpoints(tiny, tmp_path):
    training = tiny("memory_pro")
    history = trained.networks.trained(training).history
    found = written(training, tmp_path)
    assert found.step.values.tolist() == [0, 2]
    assert results.network_of(found) == dataclasses.asdict(training)
    np.testing.assert_allclose(found.loss, [history.loss.values.mean()], rtol=1e-6)

    network, task = training.network(), ranks.EVALUATION["memory_pro"]()
    network.load_state_dict(
        kpops.training.checkpoints(trained.networks.CACHE / training.name)[-1][1]
    )
    lin = kpops.linearize(network, task.inputs)
    expected = kpops.effective_rank(lin.P @ lin.P.H, "variance", keep=("time",))
    rank = found.effective_rank.sel(operator="P P*", kind="variance over time")[-1]
    np.testing.assert_allclose(rank, expected.estimate, rtol=1e-5)
    with torch.no_grad():
        outputs = network(torch.from_numpy(task.inputs.values)).numpy()
    loss = ((outputs - task.targets.values) ** 2).mean()
    np.testing.assert_allclose(found.evaluation_loss[-1], loss, rtol=1e-5)
    assert found.eigenfunction.shape == (2, ranks.NUM_MODES, 2, 10)


@pytest.mark.parametrize("cell", [torch.nn.RNN, torch.nn.GRU])
def test_shares_of_eigenvalues_are_those_of_dense_matrices(cell):
    torch.manual_seed(0)
    lin = kpops.linearize(cell(3, 4, batch_first=True).double(), torch.randn(3, 7, 3).double())
    dense = lin.K.to_dense().reshape(3, 7, 4, 3, 7, 4)
    matrices = {
        "none": dense.reshape(84, 84),
        "trial, time": dense.sum((2, 5)).reshape(21, 21) / 4,
        "time": dense.sum((0, 2, 3, 5)) / 12,
    }
    found = ranks.modes_of(lin.K)
    for reduction, matrix in matrices.items():
        values = np.linalg.eigvalsh(matrix)[::-1]
        share = values / values.sum()
        ours = found.share.sel(reduction=reduction).values
        np.testing.assert_allclose(ours[: len(share)], share[:6], rtol=1e-6, atol=1e-7)
        needed = 1 + np.flatnonzero(share.cumsum() >= 0.9)[0]
        assert found.modes_needed.sel(reduction=reduction) == needed


def test_alignments_of_a_tiny_network_are_those_of_its_checkpoints(tiny, tmp_path):
    training = tiny("four_tasks", max_steps=1)
    trained.networks.trained(training)
    found = written(training, tmp_path)
    assert found.step.values.tolist() == [0, 1]
    task = alignments.EVALUATION()
    lin = kpops.linearize(training.network(), task.inputs)
    expected = kpops.interference(lin, targets=task.targets, condition="angle", rng=0)
    for name in alignments.QUANTITIES:
        np.testing.assert_allclose(found[name][0], expected[name], rtol=1e-4, atol=1e-5)


def test_a_training_that_has_not_ended_is_left_alone(tiny, tmp_path, capsys):
    training = tiny("memory_pro")
    assert trained.finished(training) is None
    trained.networks.trained(dataclasses.replace(training, max_steps=1))  # in the same folder
    assert trained.finished(training) is None
    measure.run(list(measure.plan([training])), folder=tmp_path)
    assert "not trained yet" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.nc"))


def test_a_training_that_stopped_at_its_loss_has_ended(tiny):
    training = tiny("memory_pro", stop_loss=100.0)
    trained.networks.trained(training)
    assert trained.finished(training).losses.shape == (1,)


def test_files_are_what_the_measure_returns(tiny, tmp_path):
    """Networks that were saved at other steps share a study."""
    trainings = [tiny("memory_pro"), tiny("flip_flop", "rnn", max_steps=5)]
    for training in trainings:
        trained.networks.trained(training)
    measure.run(list(measure.plan(trainings)), folder=tmp_path)
    for training in trainings:
        direct = ranks.measure(trained.finished(training))
        found = results.read(tmp_path / f"{training.name}.nc")
        settings = json.loads(direct.attrs["configuration"])
        settings["network"] = dataclasses.asdict(training)
        direct.attrs["configuration"] = json.dumps(settings, sort_keys=True)
        xr.testing.assert_identical(found, direct)
        assert found.step.dtype == found.last_iteration.dtype == np.int64
    assert not list((tmp_path / "studies").iterdir())  # all is written


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Runs with a measure that notes which networks it measured."""
    made = []

    def noted(network):
        made.append(network.seed)
        if (tmp_path / "stop").exists() and network.seed == 1:
            raise KeyboardInterrupt
        found = xr.Dataset({"x": ("step", np.arange(3.0))}, {"step": np.arange(3)})
        return found.assign_attrs(configuration="{}")

    at_point = partial(measure._point, noted, trained.Training)
    monkeypatch.setitem(measure.MEASURES, "ranks", at_point)
    monkeypatch.setattr(measure, "finished", lambda training: training)
    monkeypatch.setattr(trained.networks, "CACHE", tmp_path / "cache")

    def measured(trainings, **options):
        made.clear()
        measure.run(list(measure.plan(trainings)), folder=tmp_path, **options)
        return made

    return measured


def _trainings(count):
    return [trained.Training("memory_pro", "gru", 6, seed) for seed in range(count)]


def test_a_file_is_made_again_only_if_asked_for_or_of_another_network(counted):
    models = _trainings(2)
    assert counted(models) == [0, 1]
    assert counted(models) == []
    assert counted([dataclasses.replace(models[0], max_steps=7), models[1]]) == [0]
    assert counted(models[1:], again=True) == [1]


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_run_goes_on_where_it_was(counted, tmp_path, again):
    models = _trainings(3)
    (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        counted(models, again=again)
    (tmp_path / "stop").unlink()
    assert counted(models, again=again) == [1, 2]


def test_positions_hold_the_first_the_last_and_more_of_the_early_ones():
    assert trained.positions(5) == [0, 1, 2, 3, 4]
    assert trained.positions(18) == list(range(18))
    chosen = trained.positions(41)
    assert chosen[:4] == [0, 1, 2, 3] and chosen[-1] == 40 and len(chosen) <= 18
    assert (np.diff(chosen, 2) >= -1).all()
    assert trained.positions(1) == [0]


def test_predicted_state_change_is_right_to_first_order():
    found = state_change.measure(0, cells=["gru"], units=5, learning_rates=[1e-4, 1e-3], steps=2)
    first = found.relative_error.isel(cell=0, step=0).values
    assert first[1] < 1e-3
    assert first[1] / first[0] == pytest.approx(10, rel=1e-2)
    assert found.loss.dtype == found.relative_error.dtype == np.float64


def test_a_row_is_measured_over_seeds_with_its_provenance(tmp_path):
    row = ROWS["state_change"]
    found = run(row, quick=True, folder=tmp_path)
    assert found.sizes["seed"] == 2
    one = row.measure(1, **{**row.settings, **row.quick})
    np.testing.assert_array_equal(found.relative_error.isel(seed=1), one.relative_error)
    assert json.loads(found.attrs["settings"])["units"] == 16
    assert len(found.attrs["script_sha256"]) == 64
    xr.testing.assert_identical(results.read(tmp_path / "state_change.nc"), found)
    assert not list(tmp_path.glob("*.zarr"))


def test_a_row_that_fails_says_why(tmp_path):
    row = dataclasses.replace(ROWS["state_change"], quick={"units": 16, "steps": -1})
    with pytest.warns(kpops.FailedPointsWarning), pytest.raises(RuntimeError, match="AxisError"):
        run(row, quick=True, folder=tmp_path)


def test_plan_names_each_network_once_and_is_that_of_the_committed_files():
    entries = {entry.name: entry.configuration for entry in measure.plan()}
    assert len(entries) == len(list(measure.plan()))
    assert json.loads((results.FOLDER / results.PLAN).read_text()) == entries
    for name, result in results.load(results.FOLDER).found.items():
        assert results.network_of(result) == entries[name]


def test_committed_files_are_small_and_labelled():
    paths = sorted(results.FOLDER.glob("*.nc"))
    assert paths
    for path in paths:
        assert path.stat().st_size < 100 * 1024
        found = results.read(path)
        for name, values in found.variables.items():
            assert {"long_name", "units"} <= values.attrs.keys(), (path.name, name)
