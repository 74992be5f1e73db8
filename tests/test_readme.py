"""What the README tells a reader to type runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_ten_lines_of_the_readme_run():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(block, names)  # the words of our own README
    assert names["lin"].flow.shape == (115_200, 115_200)


def test_all_pages_tell_the_same_times():
    for page in ["README.md", "CONTRIBUTING.md", "Makefile", "docs/start.rst"]:
        words = " ".join((ROOT / page).read_text().split())
        assert "one to two minutes" in words and "five to six minutes" in words, page
