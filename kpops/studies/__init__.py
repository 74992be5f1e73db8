"""Studies: the same measure at every point of a grid, in a store that survives, on any executor."""

from kpops.studies.errors import StudyError
from kpops.studies.study import FailedPointsWarning, Study

__all__ = ["FailedPointsWarning", "Study", "StudyError"]
