"""The verdicts of the page Reproduction on numbers whose verdict is known."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction.verdicts import (
    IN_PART,
    NOT,
    REPRODUCED,
    UNKNOWN,
    Check,
    between,
    check,
    number,
    rises,
    settled,
    spread,
    verdict,
)


def test_a_claim_is_reproduced_only_if_every_check_holds_for_all():
    holds, most, some = (Check("", "", passed, 3) for passed in (3, 2, 1))
    assert verdict([holds, holds]) == REPRODUCED
    assert verdict([holds, some]) == IN_PART
    assert verdict([some, most]) == IN_PART
    assert verdict([some, some]) == NOT
    assert verdict([Check("", "", 1, 2)]) == NOT  # half is not more than half


def test_what_was_not_measured_makes_no_verdict():
    nothing = Check("", "", 0, 0)
    assert verdict([]) == verdict([nothing]) == UNKNOWN
    assert verdict([nothing, Check("", "", 3, 3)]) == REPRODUCED
    assert not nothing.holds


def test_check_counts_the_values_that_meet_the_criterion():
    found = check("about 2", [1.5, 2.0, 2.6], between(1.5, 2.5))
    assert (found.passed, found.of, found.found) == (2, 3, "2 (1.50 to 2.60)")


def test_rank_correlation_of_four_values_with_one_exchange_is_exactly_strong():
    assert rises([0.5, 1, 2, 3], [1, 3, 2, 4]) == 0.8
    assert rises([0.5, 1, 2, 3], [4, 3, 2, 1]) == -1
    assert rises([1, 2, 3], [7.0, 7.0, 7.0]) == 0
    assert rises([1, 2, 3], [np.inf, 20, 10]) == -1


def test_settled_is_the_first_step_after_the_last_one_that_is_not_above():
    assert settled([0, 10, 20], [1, 2, 3]) == 0
    assert settled([0, 10, 20], [1, 0, 3]) == 20
    assert settled([0, 10, 20], [1, 2, -1]) == np.inf
    assert settled([0, 10, 20], [np.nan, 1, 1]) == 10


def test_numbers_have_three_digits():
    values = [3.0, 0.0, -0.4176, 0.9996, 43.365, 12345.6, 2.3e-5, np.nan]
    texts = ["3", "0", "-0.418", "1.000", "43.4", "12,346", "2.30e-5", "\N{EN DASH}"]
    assert [number(v) for v in values] == texts
    assert spread([]) == "\N{EN DASH}"
    assert spread([np.inf, 100, 200]) == "200 (100 to never)"
