"""A hundred wrong uses are refused, with the value and the remedy."""

import pytest
from wrong_uses import USES, told


@pytest.mark.parametrize("use", USES, ids=[use.title for use in USES])
def test_the_message_names_the_value_and_the_remedy(use):
    message = str(told(use))
    assert use.value in message and use.remedy in message, message
