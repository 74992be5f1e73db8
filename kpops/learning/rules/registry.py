"""The learning rules by their names; each is a function of a linearization and its options."""

from __future__ import annotations

from collections.abc import Callable

from kpops.learning.rules.feedback import feedback_alignment, output_feedback, random_update, rflo
from kpops.learning.rules.gauss_newton import gauss_newton
from kpops.learning.rules.momentum import momentum
from kpops.learning.rules.natural import critical_channel_rule
from kpops.learning.rules.preconditioned import optimizer, preconditioned
from kpops.learning.rules.through_time import (
    detached_bptt,
    functional_gradient,
    gradient_descent,
    truncated_bptt,
)
from kpops.operators import TrajectoryOperator

RULES: dict[str, Callable[..., TrajectoryOperator]] = {
    "gradient descent": gradient_descent,
    "truncated bptt": truncated_bptt,
    "detached bptt": detached_bptt,
    "output feedback": output_feedback,
    "feedback alignment": feedback_alignment,
    "rflo": rflo,
    "random update": random_update,
    "functional gradient": functional_gradient,
    "preconditioned": preconditioned,
    "optimizer": optimizer,
    "gauss-newton": gauss_newton,
    "critical channel": critical_channel_rule,
    "momentum": momentum,
}
