"""The Lorenz system by an almost-linear RNN: ``python -m reproduction.lorenz``.

Trains the network of ``examples/lorenz_by_teacher_forcing.py`` in a few minutes, writes its
weights next to this file, and prints how far it forecasts and how well it keeps the attractor. With
``--trained`` it only measures the weights that are there.

``--published WEIGHTS SERIES`` measures a published network by the same code: the files
``alrnn_python/models/lorenz_m20_p2`` and ``alrnn_python/lorenz63_test.npy`` of
https://github.com/DurstewitzLab/ALRNN-DSR, whose authors print D_stsp = 3.5 and D_H = 0.14.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import kpops
from kpops import reconstruction

WEIGHTS = Path(__file__).with_name("lorenz.pt")
DT = 0.01
UNITS, RECTIFIED = 40, 20
CONTEXT = 20  # observations before a forecast
N_STARTS, HORIZON = 20, 800  # forecasts, and their steps
N_STEPS, TRANSIENT = 10_000, 1000  # of a run, and before it


def field(t: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The vector field of Lorenz (1963)."""
    x, y, z = h.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], dim=-1)


flow = kpops.models.NeuralODE(field, dt=DT, method="rk4")


def series(n_trials: int, n_steps: int, seed: int) -> xr.DataArray:
    """Trajectories on the attractor, in float64."""
    h = torch.from_numpy(np.random.default_rng(seed).normal([0, 0, 25], 5, (n_trials, 3)))
    states = []
    for _ in range(TRANSIENT + n_steps):
        h = flow(h.new_zeros(n_trials, 1), h)
        states.append(h)
    return xr.DataArray(
        torch.stack(states[TRANSIENT:], dim=1).numpy(),
        dims=("trial", "time", "unit"),
        coords={"time": DT * np.arange(1, n_steps + 1), "unit": ["x", "y", "z"]},
    )


def standardized(states: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """States in units of the mean and the standard deviation of others."""
    dims = ("trial", "time")
    return ((states - like.mean(dims)) / like.std(dims)).astype("float32")


def network() -> kpops.models.PLRNNCell:
    """The untrained network, near the identity, since a step of time is short."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        cell = kpops.models.PLRNNCell(0, UNITS, rectified=RECTIFIED)
        cell.A[:3] = 1
        cell.W *= 0.1
    return cell


def train(cell: kpops.models.PLRNNCell, observed: xr.DataArray, folder: str) -> xr.Dataset:
    """Train by sparse teacher forcing, with the default settings."""
    return kpops.training.reconstruct(cell, observed, folder=folder, rng=0, progress=True)


def lyapunov_time() -> float:
    """One over the largest exponent of the true system."""
    h0 = torch.from_numpy(np.random.default_rng(2).normal([0, 0, 25], 5, (16, 3)))
    found = kpops.lyapunov_spectrum(flow, k=1, h0=h0, n_steps=6000, transient=1000, dt=DT, rng=0)
    return 1 / float(found.exponent[0])


def valid_times(
    cell: kpops.models.PLRNNCell, truth: xr.DataArray, time: float, start: torch.Tensor | None
) -> dict[str, xr.Dataset]:
    """Valid prediction times of a network and of baselines, from the same starts.

    `start` maps the first observation to the first state, of a network that has such a matrix.
    """
    n_context = CONTEXT if start is None else 1
    cut = reconstruction.windows(truth, n_context + HORIZON, every=4000)[:N_STARTS]
    context, ahead = cut[:, :n_context], cut[:, n_context:]
    forecasts = {
        "network": reconstruction.forecast(cell, context, HORIZON, h0=first(context, start)),
        "linear": reconstruction.linear_forecast(truth, context, HORIZON),
        "persistence": reconstruction.persistence(context, HORIZON),
    }
    return {
        name: reconstruction.valid_prediction_time(made, ahead, lyapunov_time=time, dt=DT)
        for name, made in forecasts.items()
    }


def first(context: xr.DataArray, start: torch.Tensor | None) -> torch.Tensor | None:
    """The first states, if they are a linear map of the first observations."""
    return None if start is None else torch.from_numpy(context.values[:, 0]) @ start


def free_runs(
    cell: kpops.models.PLRNNCell, truth: xr.DataArray, start: torch.Tensor | None
) -> xr.DataArray:
    """Free runs, each from the beginning of a true one, without their transients."""
    context = truth[:, : CONTEXT if start is None else 1]
    long = reconstruction.forecast(cell, context, TRANSIENT + N_STEPS, h0=first(context, start))
    return long[:, TRANSIENT:]


def distances(runs: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
    """D_stsp of each run from all true states, D_H from the first true run; (run, measure)."""
    return np.array(
        [
            (
                float(reconstruction.state_space_divergence(run, truth).estimate),
                float(reconstruction.power_spectrum_error(run, truth[0]).estimate),
            )
            for run in runs
        ]
    )


def report(
    cell: kpops.models.PLRNNCell, truth: xr.DataArray, start: torch.Tensor | None = None
) -> None:
    """Print the figures of a network."""
    for name, valid in valid_times(cell, truth, lyapunov_time(), start).items():
        low, high = valid.valid_prediction_time.quantile([0.25, 0.75]).values
        middle = float(valid.median_time)
        print(f"valid for {middle:.2f} ({low:.2f} to {high:.2f}) Lyapunov times: {name}")
    found = distances(free_runs(cell, truth, start), truth)
    for name, column in zip(("D_stsp", "D_H"), found.T, strict=True):
        print(f"{name} {column.mean():.3f} +- {column.std(ddof=1):.3f} ({len(column)} free runs)")


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.lorenz", description=__doc__)
    parser.add_argument("--trained", action="store_true", help="measure the weights that are there")
    parser.add_argument("--published", nargs=2, metavar=("WEIGHTS", "SERIES"), help="see above")
    given = parser.parse_args(arguments)
    if given.published is not None:
        cell, start = reconstruction.published_alrnn(given.published[0])
        observed = np.load(given.published[1])[500:].astype(np.float32)
        report(cell, reconstruction.windows(observed, N_STEPS), start)
        return
    observed, truth, other = (series(n, N_STEPS, seed) for n, seed in ((10, 0), (10, 1), (10, 3)))
    truth, other = standardized(truth, observed), standardized(other, observed)
    cell = network()
    if not given.trained:
        with tempfile.TemporaryDirectory() as folder:
            train(cell, standardized(observed, observed), folder)
        torch.save(cell.state_dict(), WEIGHTS)
    cell.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    report(cell, truth)
    least = distances(other, truth).mean(axis=0)
    print(f"of other true runs: D_stsp {least[0]:.3f}, D_H {least[1]:.3f}")


if __name__ == "__main__":
    main()
