"""The gallery of the documentation: its order, its trainings and the committed ones."""

import re
import sys
from pathlib import Path

import pytest
import torch

import kpops

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import gallery_order
import networks

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(path.name for path in networks.COMMITTED.iterdir())


def test_every_script_has_its_place_in_the_gallery():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"networks.py"}
    assert sorted(gallery_order.ORDER) == sorted(scripts)


def test_scripts_ask_for_networks_that_there_are():
    for name in gallery_order.ORDER:
        asked = re.findall(r'GALLERY\["(.*?)"\]', (ROOT / "examples" / name).read_text())
        assert set(asked) <= set(networks.GALLERY), name


def test_no_two_networks_share_a_folder():
    every = [t for group in networks.GALLERY.values() for t in group]
    assert len({training.name for training in every}) == len(every)


def test_untrained_networks_depend_on_the_seed_alone():
    training = networks.GALLERY["g"][0]
    state = torch.random.get_rng_state()
    first, second = (training.network().state_dict() for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_networks_are_those_of_the_gallery_and_need_no_training(
    name, tmp_path, monkeypatch
):
    (training,) = [t for group in networks.GALLERY.values() for t in group if t.name == name]
    committed = networks.COMMITTED / name
    assert sum(path.stat().st_size for path in committed.iterdir()) < 2**20
    monkeypatch.setattr(networks, "CACHE", tmp_path)
    monkeypatch.setattr(torch.Tensor, "backward", None)  # a training would fail
    run = networks.trained(training)
    assert run.history.sizes["step"] == training.max_steps + 1
    assert {p.name: p.read_bytes() for p in run.folder.iterdir()} == {
        p.name: p.read_bytes() for p in committed.iterdir()
    }
    step, state = kpops.training.checkpoints(committed)[-1]
    assert step == training.max_steps
    assert all(torch.equal(state[k], v) for k, v in run.network.state_dict().items())
