"""What a result is of stays with it: through concatenation, netCDF and Zarr."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import kpops


@pytest.fixture(scope="module")
def lin():
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 3, batch_first=True).double()
    return kpops.linearize(gru, torch.randn(2, 4, 2, dtype=torch.float64))


def results(lin):
    return {
        "eigsh": lambda op: kpops.eigsh(op, 2, rng=0),
        "eigvalsh": kpops.eigvalsh,
        "svds": lambda op: kpops.svds(op, 2, rng=0),
        "effective_rank": kpops.effective_rank,
        "trace": kpops.trace,
        "diagonal": kpops.diagonal,
        "frobenius_norm": kpops.frobenius_norm,
        "schatten_norm": lambda op: kpops.schatten_norm(op, 1),
        "spectral_norm": kpops.spectral_norm,
        "spectral_density": lambda op: kpops.spectral_density(op, points=8),
        "frobenius_map": lambda op: kpops.frobenius_map(op, "time"),
        "alignment": lambda op: kpops.alignment(op, lin.K),
    }


@pytest.mark.parametrize("name", results(None))
def test_concatenated_results_say_of_which_operator_each_is(lin, name, tmp_path):
    function = results(lin)[name]
    parts = [function(op) for op in (lin.K, lin.P @ lin.P.H, lin.flow)]
    if name == "eigvalsh":
        parts = [part.drop_vars("unit", errors="ignore") for part in parts]
    if name == "spectral_density":  # each has a grid of its own
        parts = [part.drop_dims("value") for part in parts]
    symbols = ["K", "P P*", "P K P*"]
    assert [part.operator.item() for part in parts] == symbols
    assert "operator" not in parts[0].attrs
    joined = xr.concat(parts, "operator", join="outer", combine_attrs="drop_conflicts")
    assert joined.operator.values.tolist() == symbols
    along_other = xr.concat(parts, "run", join="outer", combine_attrs="drop_conflicts")
    assert along_other.operator.values.tolist() == symbols
    parts[0].to_netcdf(tmp_path / "one.nc")
    along_other.to_netcdf(tmp_path / "all.nc")
    parts[0].to_zarr(tmp_path / "one.zarr", consolidated=False)
    along_other.to_zarr(tmp_path / "all.zarr", consolidated=False)
    for one, several in (
        (xr.open_dataset(tmp_path / "one.nc"), xr.open_dataset(tmp_path / "all.nc")),
        (
            xr.open_zarr(tmp_path / "one.zarr", consolidated=False),
            xr.open_zarr(tmp_path / "all.zarr", consolidated=False),
        ),
    ):
        assert one.operator.item() == "K"
        assert several.operator.values.tolist() == symbols
        one.close(), several.close()


def test_kinds_of_rank_stay_with_the_ranks(lin):
    kinds = ["participation", "variance", "entropy"]
    joined = xr.concat([kpops.effective_rank(lin.K, kind) for kind in kinds], "kind")
    assert joined.kind.values.tolist() == kinds
    assert joined.operator.item() == "K"


def test_alignment_names_both_operators(lin):
    cosines = [kpops.alignment(lin.K, op) for op in (lin.K, lin.flow)]
    joined = xr.concat(cosines, "operator2")
    assert joined.operator2.values.tolist() == ["K", "P K P*"]
    assert joined.operator.item() == "K"


def test_named_numbers_over_training_are_of_different_operators(lin):
    torch.manual_seed(0)
    gru = torch.nn.GRU(2, 3, batch_first=True)

    def measure(lin):
        return {op.symbol: kpops.effective_rank(op).estimate for op in (lin.K, lin.flow)}

    followed = kpops.over_training(gru, [(0, gru.state_dict())], torch.zeros(2, 4, 2), measure)
    assert followed.to_dataarray("operator").operator.values.tolist() == ["K", "P K P*"]


def test_settings_may_be_numbers_of_numpy(lin):
    few, half = np.int64(4), np.float32(0.5)
    for found, name, value in (
        (kpops.alignment(lin.K, lin.K, num_matvecs=few), "num_matvecs", 4),
        (kpops.frobenius_map(lin.P, "time", num_probes=few), "num_probes", 4),
        (kpops.spectral_density(lin.K, points=few), "points", 4),
        (kpops.trace(lin.K, tol=half), "tol", 0.5),
        (kpops.effective_rank(lin.K, "variance", threshold=half), "threshold", 0.5),
        (kpops.lyapunov_spectrum(lin, interval=few), "interval", 4),
        (kpops.covariant_lyapunov_vectors(lin, dt=half), "dt", 0.5),
    ):
        assert json.loads(found.attrs["configuration"])[name] == value
