"""The snippets of the page "With other libraries" run, each where its library is installed.

Those of scikit-learn and PyLops are doctests of the page.
"""

import doctest
import importlib
import re
import textwrap
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "with_others.rst").read_text()
TITLES = re.compile(r"^(\S.*)\n-+\n", re.MULTILINE)
MODULES = {
    "neurogym": "neurogym",
    "Lightning": "lightning",
    "torchdiffeq": "torchdiffeq",
    "PyDMD": "pydmd",
    "DSA": "DSA",
    "xeofs": "xeofs",
    "ArviZ": "arviz",
}


def sections():
    start, *pieces = TITLES.split(PAGE)
    return start, dict(zip(pieces[::2], pieces[1::2], strict=True))


def test_every_section_is_a_doctest_or_run_here():
    _, bodies = sections()
    for title, body in bodies.items():
        assert (".. code-block:: python" in body) == (title in MODULES), title
        assert (">>> " in body) == (title not in MODULES), title


@pytest.mark.filterwarnings("ignore")  # those of the libraries are theirs
@pytest.mark.parametrize("title", MODULES)
def test_the_snippet_runs_where_the_library_is_installed(title):
    try:
        importlib.import_module(MODULES[title])
    except ImportError as error:
        pytest.skip(str(error))
    start, bodies = sections()
    names: dict = {}
    for example in doctest.DocTestParser().get_examples(start):
        exec(example.source, names)
    (snippet,) = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", bodies[title])
    exec(textwrap.dedent(snippet), names)
