"""Each wrong use is refused with the value and the remedy."""

import re

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
