"""Each wrong use is refused with the value and the remedy."""

import re
from pathlib import Path

import pytest
from wrong_uses import message_of, read_uses

USES = read_uses()


def test_there_are_many_and_none_twice():
    assert len({use.code for use in USES}) == len(USES) >= 120


@pytest.mark.parametrize("use", USES, ids=[use.code for use in USES])
def test_the_message_names_the_value_and_the_remedy(use):
    error, text = message_of(use.code)
    assert error == use.error, text
    assert re.search(".*".join(map(re.escape, use.words)), text, re.DOTALL), text


def test_troubleshooting_quotes_messages_that_are_given():
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.rst").read_text()
    errors = page[: page.index("Results\n---")]  # beyond are warnings and questions
    lines = re.findall(r"^(``.*)\n   ", errors, re.MULTILINE)
    quotes = re.findall(r"``(.*?)``", "\n".join(lines))
    given = [message_of(use.code)[1] for use in USES]
    patterns = [".*".join(re.escape(p.strip()) for p in q.split("...")) for q in quotes]
    unsaid = [
        quote
        for quote, pattern in zip(quotes, patterns, strict=True)
        if not any(re.search(pattern, text, re.DOTALL) for text in given)
    ]
    assert len(quotes) > 15 and not unsaid
