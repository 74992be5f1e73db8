"""How many cases are drawn, and what was counted.

`make test` draws the same 160 cases each time; `make fuzz` draws 10,000 from a seed.
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

CASES = int(os.environ.get("KPOPS_FUZZ_CASES", "160"))
_counts: Counter[str] = Counter()

settings.register_profile(
    "fuzz",
    deadline=None,  # a case takes as long as the machine is busy
    database=None,
    derandomize="KPOPS_FUZZ_CASES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("fuzz")


@pytest.fixture(scope="session")
def tally():
    """Count what was drawn and compared, by name; printed at the end."""

    def add(**numbers: int) -> None:
        _counts.update(numbers)

    return add


def pytest_terminal_summary(terminalreporter):
    if _counts:
        figures = ", ".join(f"{count:,} {name}" for name, count in sorted(_counts.items()))
        wrong = len(terminalreporter.stats.get("failed", []))
        terminalreporter.write_line(f"fuzz: {figures}; {wrong} tests found a wrong one")
