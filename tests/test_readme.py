"""What the README tells a reader to type runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def run(number):
    """Names that a block of Python defines; the words of our own README."""
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[number], names)
    return names


def test_the_ten_lines_of_the_readme_run():
    assert run(0)["lin"].flow.shape == (115_200, 115_200)


def test_the_lines_on_any_network_print_the_top_of_the_ntk_spectrum(capsys):
    names = run(1)
    top, rank = capsys.readouterr().out.splitlines()
    flat = torch.func.vmap(torch.func.jacrev(one_image(names["net"])), (None, 0))
    rows = flat(dict(names["net"].named_parameters()), names["images"])
    J = torch.cat([x.flatten(2) for x in rows.values()], 2).flatten(0, 1).detach()
    expected = torch.linalg.eigvalsh((J @ J.T).double()).flip(0)[:5]
    found = [float(x) for x in top.strip("[]").split()]
    assert found == pytest.approx(expected.tolist(), rel=1e-3)
    assert 1 < float(rank) < 50 * 3600


def one_image(net):
    return lambda theta, x: torch.func.functional_call(net, theta, (x[None],))[0]


def test_all_pages_tell_the_same_times():
    for page in ["README.md", "CONTRIBUTING.md", "Makefile", "docs/start.rst"]:
        words = " ".join((ROOT / page).read_text().split())
        assert "one to two minutes" in words and "about nine minutes" in words, page
