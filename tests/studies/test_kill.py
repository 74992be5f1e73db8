"""A small form of kill_study.py."""

import kill_study
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pool", "dask", "icechunk"])
def test_a_study_survives_kills_at_random_moments(kind, tmp_path):
    if kind != "pool":
        pytest.importorskip({"dask": "distributed"}.get(kind, kind))
    wanted = kill_study.reference(tmp_path, n_seeds=6)
    for row in kill_study.kill(kind, tmp_path, 6, wanted):
        assert row["done"] == row["bit-equal"] == row["points"] == 30
        assert row["torn"] == 0
