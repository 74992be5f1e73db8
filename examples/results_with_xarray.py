"""
Results, with xarray
====================

Whatever kpops returns is an `xarray <https://docs.xarray.dev>`_ Dataset: arrays whose dims have
names and whose positions have labels. Five networks with different seeds learned four tasks each;
this page follows them over training, makes one Dataset of all, asks it questions by name, draws it,
writes it to netCDF and to Zarr, and reads it back.
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
# :func:`kpops.over_training` linearises a network at each checkpoint and keeps what a function of
# yours returns. This one joins a measure of the library, effective ranks over time, with a field
# over trials and time: how far the next step of gradient descent would move the states.

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
# The dims are those of the question (``step``, ``operator``, ``kind``) and of the trajectories
# (``trial``, ``time``). The task brought its own labels, and they came through all products: the
# ``angle`` and the ``task`` of every trial, the ``epoch`` of every time.
#
# Merge the seeds
# ---------------
#
# Results with the same labels are laid side by side along a new dim.

seeds = [training.seed for training in GALLERY["interference"]]
seed = xr.DataArray(seeds, dims="seed", attrs={"long_name": "seed of the network", "units": "1"})
result = xr.concat(results, seed, data_vars="all", coords="minimal", compat="override")
print(dict(result.sizes))

# %%
# Where it comes from is in the attributes, which are flat enough for any file: the model, the
# engine, the measure, and options as one JSON string. Tasks and trainings have such a string, too;
# we take them along.

result = result.assign_attrs(
    task=task.attrs["configuration"], training=run.history.attrs["configuration"]
)
for name in ("model", "engine", "dtype", "measure", "reduction", "configuration", "task"):
    print(f"{name:14} {result.attrs[name]}")
print("learning rate:", json.loads(result.attrs["training"])["learning_rate"])

# %%
# Ask by name
# -----------
#
# ``sel`` takes labels, ``groupby`` gathers what has the same label, and arithmetic is by name: no
# axis is ever counted. How does the state change spread over the epochs, at first and at the end?

change = result.state_change
share = (change**2).groupby("epoch").sum(("trial", "time")) / (change**2).sum(("trial", "time"))
epochs = list(dict.fromkeys(task.epoch.values))  # in the order of time
print(share.mean("seed").sel(step=[0, 1500], epoch=epochs).round(2).to_pandas().to_string())

# %%
# The change moves from everywhere to where the memory is kept: the network still learns to hold the
# angle, and no longer to fixate. The same for the tasks, with the spread over seeds; and then for
# one angle, by its value, in the response of the Pro tasks.

by_task = change.groupby("task").mean(("trial", "time")).isel(step=-1)
for name in by_task.task.values:
    of_seeds = by_task.sel(task=name)
    print(f"{name:12} {float(of_seeds.mean()):.3f} +- {float(of_seeds.std(ddof=1)):.3f}")

is_pro = change.task.isin(["memory_pro", "delay_pro"]) & np.isclose(change.angle, np.pi / 2)
quarter = change.sel(trial=is_pro, time=change.epoch == "response").isel(step=-1)
print(f"a quarter of the circle: {dict(quarter.sizes)}, mean {float(quarter.mean()):.3f}")

# %%
# One thing needs care: ``coarsen`` takes the mean of each coordinate as well, which strings do not
# have. Drop them first.

coarse = change.drop_vars("epoch").coarsen(time=10, boundary="trim").mean()
print("in blocks of ten steps:", dict(coarse.sizes))

# %%
# Draw
# ----
#
# Every variable and coordinate knows its name and its unit, so figures label themselves (``[1]`` is
# the unit of what has none). A panel for each operator, a line for each seed:

ranks = result.effective_rank.sel(operator=["K", "P P*", "P K P*"]).squeeze("kind", drop=True)
grid = ranks.plot.line(x="step", hue="seed", col="operator", yscale="log", size=3)
grid.set_titles("{value}")

# %%
# All five tell one story: the rank of :math:`P P^{*}` over time falls from dozens to one or two,
# that of :math:`K` never reaches two. And this is where the states change, by the mean over seeds
# and angles:

courses = change.sel(step=[0, 1500]).groupby("task").mean("trial").mean("seed", keep_attrs=True)
grid = courses.plot.line(x="time", hue="task", col="step", sharey=False, size=3, aspect=1.5)
for ax in grid.axs.flat:
    for end in np.flatnonzero(task.epoch.values[1:] != task.epoch.values[:-1]) + 1.5:
        ax.axvline(end, color="0.6", linestyle=":", linewidth=0.8)

# %%
# The functions of :mod:`kpops.plot` take the same Datasets, for figures that xarray does not know:
# bands of standard errors, fields of eigenfunctions, spectra.
#
# Save and read back
# ------------------
#
# netCDF is one file that everything reads. Zarr is a folder of chunks, for what is large, written
# in parallel or kept in a cloud; ``consolidated=False`` only avoids a warning that consolidated
# metadata are not part of Zarr's version 3. Both give back what was put in, to the bit and to the
# label.

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
# Results of different runs meet again by their labels. If two more seeds are measured tomorrow,
# ``xr.concat([result, more], "seed")`` is the whole of it; if another quantity is measured on the
# same seeds, ``xr.merge([result, other])``; and where labels do not fit, xarray says so.
