"""The verdicts of the page Reproduction on numbers whose verdict is known."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

from reproduction import claims_of_learning as learning
from reproduction import claims_of_ranks as ranks
from reproduction.results import Results, iterations_to, loss_blocks
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

STEPS = [0, 100, 500, 1000, 2000, 4000]
TASKS = ["memory_pro", "memory_anti", "delay_pro", "delay_anti"]


def network(task, cell, seed=0, g=1.0):
    return {"task": task, "cell": cell, "seed": seed, "g": g, "max_steps": 4000, "batch_size": 64}


def rank_result(P, K, *, participation=(9.0, 3.0), losses=None, needed=3.0, accuracy=1.0):
    """A file of ranks with the given variance ranks of P and K (step)."""
    P, K = np.broadcast_arrays(np.asarray(P, float), np.asarray(K, float), np.zeros(6))[:2]
    variance = np.stack([K, P, K], 1)
    whole = np.tile([participation[1], participation[0], participation[1]], (6, 1))
    share = np.full((2, 3, 6), 0.1)
    return loss_blocks(np.full(100, 0.5) if losses is None else losses, 0.6).assign(
        effective_rank=(("step", "operator", "kind"), np.stack([variance, whole], 2)),
        share=(("moment", "reduction", "mode"), share),
        modes_needed=(("moment", "reduction"), np.full((2, 3), needed)),
        accuracy=("step", np.full(6, accuracy)),
    ).assign_coords(
        step=STEPS,
        operator=["K", "P P*", "P K P*"],
        kind=["variance over time", "participation"],
        reduction=["none", "trial, time", "time"],
    )  # fmt: skip


def collection(entries):
    """Results of pairs of a configuration and a file."""
    named = {f"network {i}": entry for i, entry in enumerate(entries)}
    return Results({k: e[0] for k, e in named.items()}, {k: e[1] for k, e in named.items()})


def both_cells(task, **ranks_of_cell):
    return collection(
        [
            (network(task, cell, seed), rank_result(*ranks_of_cell[cell]))
            for cell in ("gru", "rnn")
            for seed in range(3)
        ]
    )


COLLAPSING = [38, 20, 1.2, 1.0, 2.5, 2.5]


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


def test_losses_are_averaged_by_blocks_and_thresholds_found_among_them():
    losses = np.concatenate([np.full(25, 0.5), np.full(25, 0.2), np.full(10, 0.05)])
    blocks = loss_blocks(losses, 0.6)
    np.testing.assert_allclose(blocks.loss, [0.5, 0.2, 0.05], rtol=1e-7)
    assert int(blocks.last_iteration) == 59
    assert [iterations_to(blocks, t) for t in (0.6, 0.2, 0.1, 0.01)] == [0, 25, 50, np.inf]


def test_initial_ranks_of_the_paper_are_reproduced_and_others_are_not():
    paper = both_cells("memory_pro", gru=(38, 0.96), rnn=(82, 0.96))
    assert ranks.initial(paper).verdict == REPRODUCED
    other = both_cells("memory_pro", gru=(44, 0.96), rnn=(82, 0.96))
    assert ranks.initial(other).verdict == IN_PART
    wrong = both_cells("memory_pro", gru=(44, 2), rnn=(20, 2))
    assert ranks.initial(wrong).verdict == NOT


def test_collapse_is_asked_for_when_and_where_the_paper_shows_it():
    yes = both_cells("memory_pro", gru=(COLLAPSING, 1.0), rnn=(COLLAPSING, 1.0))
    assert ranks.memory(yes).verdict == REPRODUCED
    late = [38, 38, 38, 38, 38, 1.0]
    by_text = {
        c.text: c for c in ranks.memory(both_cells("memory_pro", gru=(late, 2), rnn=(38, 2))).checks
    }
    passed = {text: c.passed for text, c in by_text.items()}
    assert passed["GRU: P falls to 1.5 or less"] == 3
    assert passed["GRU: it is lowest at iterations 500 to 1,500"] == 0
    assert passed["GRU: P ends from 1.5 to 3.5"] == 0
    assert passed["GRU: K is never above 1.5"] == 0
    assert passed["RNN: P falls to 1.5 or less"] == 0


def test_networks_that_did_not_learn_are_named():
    entries = [
        (network("memory_pro", cell, seed), rank_result(5, 1, accuracy=accuracy))
        for cell, seed, accuracy in (("gru", 0, 1.0), ("rnn", 0, 0.2), ("rnn", 1, 0.9))
    ]
    told = [note for note in ranks.memory(collection(entries)).notes if "had not learned" in note]
    assert len(told) == 1 and "1 of 2 RNNs had" in told[0] and "GRU" not in told[0]


def test_flip_flop_is_asked_for_its_last_rank():
    good, bad = [40] * 5 + [54], [54] * 5 + [2]
    assert (
        ranks.flip_flop(both_cells("flip_flop", gru=(good, 1), rnn=(good, 1))).verdict == REPRODUCED
    )
    assert ranks.flip_flop(both_cells("flip_flop", gru=(bad, 2), rnn=(bad, 2))).verdict == NOT


def test_order_of_ranks_is_counted_by_both_definitions():
    yes = both_cells("memory_pro", gru=(5, 1), rnn=(5, 1))
    claim = ranks.ordering(yes)
    assert claim.verdict == REPRODUCED
    assert claim.number == (
        "variance over time: P above K at 36 of 36 checkpoints; participation: at 36 of 36"
    )
    crossing = rank_result([5, 5, 0.5, 5, 5, 5], 1, participation=(3, 9))
    claim = ranks.ordering(collection([(network("memory_pro", "gru"), crossing)]))
    assert claim.verdict == NOT
    (row,) = claim.tables[0][2]
    assert row == ["Memory-Pro, GRU, g = 1", "6", "5", "0.500", "0", "0 to 4,000"]


def test_eigenfunctions_that_dominate_are_counted():
    few = both_cells("memory_pro", gru=(5, 1), rnn=(5, 1))
    assert ranks.eigenfunctions(few).verdict == REPRODUCED
    many = collection([(network("memory_pro", "gru"), rank_result(5, 1, needed=9))])
    assert ranks.eigenfunctions(many).verdict == NOT


def sweep(direction):
    """Four g, on which ranks rise and times fall, or the reverse."""
    entries = []
    for cell, seed in product(("rnn", "gru"), range(3)):
        for g in (0.5, 1.0, 2.0, 3.0):
            order = g if direction > 0 else 4 - g
            slow = int(100 / order)
            losses = np.concatenate([np.full(25 * slow, 0.5), np.full(25, 1e-3)])
            falling = 40 * np.array([1, 1, 1, order / 5, 1, 1])
            result = rank_result(falling, order, losses=losses)
            entries.append((network("memory_pro", cell, seed, g), result))
    return collection(entries)


def test_larger_g_with_more_rank_and_more_speed_is_reproduced_and_the_reverse_is_not():
    claim = learning.over_g(sweep(1))
    assert claim.verdict == REPRODUCED
    assert all(c.of == 3 for c in claim.checks)
    assert learning.over_g(sweep(-1)).verdict == NOT


def test_a_seed_that_lacks_a_g_is_not_asked():
    whole = sweep(1)
    found = {k: v for k, v in whole.found.items() if k != "network 0"}
    claim = learning.over_g(Results(whole.planned, found))
    assert {c.of for c in claim.checks if c.text.startswith("RNN")} == {2}
    assert {c.of for c in claim.checks if c.text.startswith("GRU")} == {3}
    assert claim.verdict == "reproduced; 23 of 24 networks measured"


def test_scales_that_never_learn_have_no_speed():
    entries = [
        (network("memory_pro", "gru", seed, g), rank_result(5, 1, losses=np.full(100, 0.5)))
        for seed in range(3)
        for g in (0.5, 1.0, 2.0, 3.0)
    ]
    speeds = [c for c in learning.over_g(collection(entries)).checks if "iterations" in c.text]
    assert all((c.passed, c.found) == (0, "0") for c in speeds if c.text.startswith("GRU"))


def matrix(response, timing):
    """Alignments (step, task, task_in) with the given values within response and timing."""
    values = np.zeros((6, 4, 4))
    for i, a in enumerate(TASKS):
        for j, b in enumerate(TASKS):
            same_response = a.split("_")[1] == b.split("_")[1]
            same_timing = a.split("_")[0] == b.split("_")[0]
            one = np.ones(6)
            values[:, i, j] = (
                one if i == j else response if same_response else timing if same_timing else 0 * one
            )
    return ("step", "task", "task_in"), values


def aligned(states, operators):
    """A file of alignments with these contrasts of states, and of all operators (step)."""
    zero = np.zeros(6)
    variables = {name: matrix(np.array(states), zero) for name in learning.STATES}
    variables |= {name: matrix(np.array(operators), zero) for name in learning.OPERATORS}
    variables["trace_alignment_stderr"] = matrix(zero + 0.01, zero)
    coords = {"step": STEPS, "task": TASKS, "task_in": TASKS}
    return xr.Dataset(variables, coords)


def test_contrast_is_response_less_timing():
    result = xr.Dataset({"x": matrix(np.full(6, 0.7), np.full(6, 0.4))},
                        {"step": STEPS, "task": TASKS, "task_in": TASKS})  # fmt: skip
    np.testing.assert_allclose(learning.contrast(result, "x"), 0.3, rtol=1e-12)


def four(states, operators):
    return collection(
        [(network("four_tasks", "gru", s), aligned(states, operators)) for s in range(5)]
    )


def test_operators_before_states_are_told_from_states_before_operators():
    late, early = [-1, -1, -1, 1, 1, 1], [1] * 6
    assert learning.tasks(four(late, early)).verdict == REPRODUCED
    claim = learning.tasks(four(early, late))
    assert claim.verdict == IN_PART  # states do end as Pro/Anti, and together
    passed = {c.text.split(":")[-1].strip(): c.passed for c in claim.checks}
    assert passed["Delay/Memory before training (contrast below 0)"] == 0
    assert passed["Pro/Anti from the start (contrast)"] == passed["before states"] == 0
    assert learning.tasks(four([-1] * 6, [-1] * 6)).checks[1].passed == 0


def test_the_claim_on_operators_needs_those_alone_and_those_between_errors():
    late, early = np.array([-1, -1, -1, 1, 1, 1.0]), np.ones(6)
    runs = four(late, late)
    for result in runs:
        result["gradient_tuning_cosine"] = aligned(late, early)["gradient_tuning_cosine"]
    claim = learning.tasks(runs)
    assert claim.verdict == IN_PART
    assert {c.text.split(":")[0]: c.passed for c in claim.checks if "before states" in c.text} == {
        "operators alone": 0,
        "operators between errors": 5,
    }


def test_runs_that_turn_far_apart_do_not_turn_together():
    entries = [([-1, 1, 1, 1, 1, 1], 0), ([-1] * 5 + [1], 1), ([-1] * 3 + [1] * 3, 2)]
    found = [(network("four_tasks", "gru", s), aligned(states, [1] * 6)) for states, s in entries]
    (same,) = [c for c in learning.tasks(collection(found)).checks if "factor of 2" in c.text]
    assert same.passed == 1  # 100, 4,000 and the median of 1,000


@pytest.mark.parametrize(("power", "expected"), [(1, REPRODUCED), (2, IN_PART), (0, NOT)])
def test_slope_of_the_error_in_the_learning_rate(power, expected):
    rates = np.array([0.001, 0.01, 0.1])
    size = 0.01 if power else 1.0
    errors = np.repeat(size * rates[:, None] ** power, 20, axis=1)
    result = xr.Dataset(
        {"relative_error": (("learning_rate", "step"), errors)},
        {"learning_rate": rates, "step": range(20)},
    )
    assert learning.slope(result) == pytest.approx(power, abs=1e-12)
    models = [{"measured": "state change", "cell": c, "seed": 0} for c in ("gru", "rnn")]
    claim = learning.steps(collection([(model, result) for model in models]))
    assert claim.verdict == expected


def test_nothing_measured_gives_no_verdict_and_no_error():
    planned = {"a": network("memory_pro", "gru"), "b": network("four_tasks", "gru")}
    planned |= {"c": network("flip_flop", "rnn"), "d": network("memory_pro", "rnn")}
    nothing = Results(planned, {})
    claims = (ranks.initial, ranks.memory, ranks.flip_flop, ranks.ordering, ranks.eigenfunctions,
              learning.over_g, learning.tasks, learning.steps)  # fmt: skip
    assert [claim(nothing).verdict for claim in claims] == [UNKNOWN] * len(claims)
