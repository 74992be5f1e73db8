"""What the README tells a reader to type runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_ten_lines_of_the_readme_run():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(block, names)  # the words of our own README
    assert names["lin"].flow.shape == (115_200, 115_200)
