"""The committed network of the Lorenz system forecasts it and keeps its attractor."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction import lorenz


@pytest.fixture(scope="module")
def trained():
    """The network and 10 true runs, none of which it was trained on."""
    cell = lorenz.network()
    cell.load_state_dict(torch.load(lorenz.WEIGHTS, weights_only=True))
    observed, truth = (lorenz.series(10, lorenz.N_STEPS, seed) for seed in (0, 1))
    return cell, lorenz.standardized(truth, observed)


@pytest.mark.slow
def test_the_network_forecasts_two_lyapunov_times_in_the_median_over_twenty_starts(trained):
    valid = lorenz.valid_times(*trained, time=1 / 0.9056, start=None)
    assert valid["network"].sizes["trial"] == 20
    assert float(valid["network"].median_time) > 2
    assert float(valid["linear"].median_time) < 0.5
    assert float(valid["persistence"].median_time) < 0.5


@pytest.mark.slow
def test_free_runs_are_closer_to_the_attractor_than_the_published_network(trained):
    space, spectrum = lorenz.distances(lorenz.free_runs(*trained, start=None), trained[1]).mean(
        axis=0
    )
    assert space < 3.3
    assert spectrum < 0.12
