"""
Results, with xarray
====================

kpops returns `xarray <https://docs.xarray.dev>`_ Datasets: arrays whose dimensions have names and
whose positions have labels. Five networks with different seeds learned four tasks each. This page
follows them over training, combines them in one Dataset, queries it by name, draws it, writes it to
netCDF and to Zarr, and reads it back.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from networks import GALLERY, TASKS, trained

import kpops

# %%
# A measure of your own
# ---------------------
#
# :func:`kpops.over_training` linearises a network at each checkpoint and keeps the results of your
# measure. This one combines a measure of the library, effective ranks over time, with a field over
# trials and time: the distance by which the next step of gradient descent would move the states.

task = TASKS["four_tasks"](16, angles="even", noise=0)


def measure(lin):
    """Ranks over time, and the size of the state change by a gradient step."""
    ranks = kpops.collapse(lin, of_whole=(), num_modes=0)
    change = kpops.gradient_flow(lin, task.targets).state_change
    size = np.sqrt((change**2).mean("unit"))
    attrs = {"long_name": "size of the state change per learning rate", "units": "1"}
    return ranks.assign(state_change=size.assign_attrs(attrs))


results = []
for run in map(trained, GALLERY["interference"]):  # put your models here
    chosen = kpops.training.checkpoints(run.folder)[::6]
    followed = kpops.over_training(run.network, chosen, task.inputs, measure)
    loss = run.history.loss.rolling(step=20, min_periods=1).mean()
    results.append(followed.assign(loss=loss.sel(step=followed.step)))
print(results[0])

# %%
# The dimensions are those of the question (``step``, ``operator``, ``kind``) and of the
# trajectories (``trial``, ``time``). The labels of the task came through all operations: the
# ``angle`` and the ``task`` of every trial, the ``epoch`` of every time.
#
# Merge the seeds
# ---------------
#
# Results with the same labels are concatenated along a new dimension.

seeds = [training.seed for training in GALLERY["interference"]]
seed = xr.DataArray(seeds, dims="seed", attrs={"long_name": "seed of the network", "units": "1"})
result = xr.concat(results, seed, data_vars="all", coords="minimal", compat="override")
print(dict(result.sizes))

# %%
# The attributes, which are flat enough for any file, record the origin of a result: the model, the
# engine, the measure, and options as one JSON string. Tasks and trainings have such a string, too;
# we add them.

result = result.assign_attrs(
    task=task.attrs["configuration"], training=run.history.attrs["configuration"]
)
for name in ("model", "engine", "dtype", "measure", "reduction", "configuration", "task"):
    print(f"{name:14} {result.attrs[name]}")
print("learning rate:", json.loads(result.attrs["training"])["learning_rate"])

# %%
# Query by name
# -------------
#
# ``sel`` takes labels, ``groupby`` collects equal labels, and arithmetic is by name: you never
# count axes. How is the state change distributed over the epochs, at first and at the end?

change = result.state_change
share = (change**2).groupby("epoch").sum(("trial", "time")) / (change**2).sum(("trial", "time"))
epochs = list(dict.fromkeys(task.epoch.values))  # in the order of time
print(share.mean("seed").sel(step=[0, 1500], epoch=epochs).round(2).to_pandas().to_string())

# %%
# The change moves from everywhere to the memory epoch: the network still learns to hold the angle,
# and no longer to fixate. Here is the same for the tasks, with the spread over seeds; and then for
# one angle, by its value, in the response of the Pro tasks.

by_task = change.groupby("task").mean(("trial", "time")).isel(step=-1)
for name in by_task.task.values:
    of_seeds = by_task.sel(task=name)
    print(f"{name:12} {float(of_seeds.mean()):.3f} +- {float(of_seeds.std(ddof=1)):.3f}")

is_pro = change.task.isin(["memory_pro", "delay_pro"]) & np.isclose(change.angle, np.pi / 2)
quarter = change.sel(trial=is_pro, time=change.epoch == "response").isel(step=-1)
print(f"a quarter of the circle: {dict(quarter.sizes)}, mean {float(quarter.mean()):.3f}")

# %%
# Take care with ``coarsen``: it also averages each coordinate, which fails for strings. Drop them
# first.

coarse = change.drop_vars("epoch").coarsen(time=10, boundary="trim").mean()
print("in blocks of ten steps:", dict(coarse.sizes))

# %%
# Draw
# ----
#
# Every variable and coordinate has a name and a unit, so figures label themselves (``[1]`` is the
# unit of dimensionless numbers). One panel for each operator, one line for each seed:

ranks = result.effective_rank.sel(operator=["K", "P P*", "P K P*"]).squeeze("kind", drop=True)
grid = ranks.plot.line(x="step", hue="seed", col="operator", yscale="log", size=3)
grid.set_titles("{value}")

# %%
# All five agree: the rank of :math:`P P^{*}` over time falls from dozens to one or two, that of
# :math:`K` never reaches two. Here is where the states change, averaged over seeds and angles:

courses = change.sel(step=[0, 1500]).groupby("task").mean("trial").mean("seed", keep_attrs=True)
grid = courses.plot.line(x="time", hue="task", col="step", sharey=False, size=3, aspect=1.5)
for ax in grid.axs.flat:
    for end in np.flatnonzero(task.epoch.values[1:] != task.epoch.values[:-1]) + 1.5:
        ax.axvline(end, color="0.6", linestyle=":", linewidth=0.8)

# %%
# The functions of :mod:`kpops.plot` take the same Datasets and draw what xarray cannot: bands of
# standard errors, fields of eigenfunctions, spectra.
#
# Save and read back
# ------------------
#
# netCDF is one file, which every program reads. Zarr is a folder of chunks, for results that are
# large, written in parallel or kept in a cloud. ``consolidated=False`` only avoids a warning that
# consolidated metadata are not part of version 3 of Zarr. Both return exactly what was stored,
# numbers and labels.

with tempfile.TemporaryDirectory() as folder:
    result.to_netcdf(Path(folder) / "result.nc")
    result.to_zarr(Path(folder) / "result.zarr", consolidated=False)
    from_netcdf = xr.load_dataset(Path(folder) / "result.nc")
    with xr.open_zarr(Path(folder) / "result.zarr", consolidated=False) as opened:
        from_zarr = opened.sel(step=1500).load()  # nothing else is read
xr.testing.assert_identical(result, from_netcdf)
xr.testing.assert_identical(result.sel(step=1500), from_zarr)
print("identical, and a part alone:", dict(from_zarr.sizes))

# %%
# Labels also combine the results of different runs. If you measure two more seeds tomorrow, call
# ``xr.concat([result, more], "seed")``. If you measure another quantity on the same seeds, call
# ``xr.merge([result, other])``. Where labels do not match, xarray raises an error.
