"""The gallery decides what is experimental, and documentation shows the mark."""

import re
from inspect import signature
from pathlib import Path

import pytest

import kpops
from kpops.maturity import experimental
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.precision import in_full_precision
from kpops.work import shown

GALLERY = "\n".join(
    path.read_text() for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
)
NOTE = [".. admonition:: Experimental", "", "   May change in a later version"]
# Nobody calls these by name: warnings, errors, and what `linearize` makes. The gallery's
# `four_task_mix` is a `mix`.
ERRORS = {"MeasureError", "StudyError"}
MADE = {"Linearization", "SiteLinearization", "ModuleRecurrence", "TorchRecurrence"}
SETTLED = {*MADE, "mix", *ERRORS}


def public():
    rooms = kpops.models, kpops.tasks, kpops.training, kpops.plot, kpops.reconstruction
    for room in (kpops, *rooms, kpops.koopman):
        for name in room.__all__:
            thing = getattr(room, name)
            if callable(thing) and name not in SETTLED and not name.endswith("Warning"):
                yield name, thing


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*p, id=p[0]) for p in public()])
def test_what_no_script_of_the_gallery_uses_is_experimental(name, thing):
    marked = NOTE[0] in thing.__doc__
    assert marked == (re.search(rf"\b{name}\b", GALLERY) is None)


@pytest.mark.parametrize(
    ("thing", "parser", "summary"),
    [
        (kpops.schatten_norm, "FunctionDoc", "Schatten norm of any operator"),
        (kpops.models.DiagonalSSM, "ClassDoc", "A diagonal state-space layer"),
    ],
)
def test_the_mark_follows_the_summary_of_a_numpydoc_docstring(thing, parser, summary):
    parsed = getattr(pytest.importorskip("numpydoc.docscrape"), parser)(thing)
    assert parsed["Summary"][0].startswith(summary)
    extended = parsed["Extended Summary"]
    assert extended[:2] == NOTE[:2]
    assert extended[2].startswith(NOTE[2])
    assert parsed["Parameters"]
    assert ">>> " in "\n".join(parsed["Examples"])


@pytest.mark.parametrize("outermost", [True, False])
def test_other_decorators_and_the_signature_stay(monkeypatch, outermost):
    monkeypatch.setattr(TrajectoryOperator, "twice", None, raising=False)

    def twice(op, *, progress=False):
        """Double an operator.

        Twice.
        """
        return 2 * op

    if outermost:
        marked = experimental(as_method(in_full_precision(shown(twice))))
    else:
        marked = as_method(in_full_precision(shown(experimental(twice))))
    assert TrajectoryOperator.twice is marked
    assert marked.__name__ == "twice"
    assert signature(marked) == signature(twice)
    assert marked.__doc__.splitlines()[0] == "Double an operator."
    assert marked.__doc__.splitlines()[2:5:2] == [NOTE[0], NOTE[2] + " without a deprecated alias."]
    assert marked.__doc__.endswith("\n\nTwice.")
    assert marked(3) == 6
