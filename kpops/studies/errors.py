"""What stops a study."""

from __future__ import annotations

from typing import Any


class StudyError(RuntimeError):
    """A study could not go on: a process died, or its store cannot be read or written.

    What is finished is in the store. :meth:`kpops.Study.run` goes on from there.
    """


def unwritable(where: Any, reason: Any) -> StudyError:
    """The error of a store that cannot be changed."""
    return StudyError(
        f"cannot write into '{where}': {reason}. The points that are done are kept: make space or "
        "mend the permission, and run again"
    )
