"""Detection: level 1 over the fleet's pivot, level 2 over each process. Start at `judge` and `scan`."""

from __future__ import annotations

from .judge import finding_id, judge, judge_many
from .thresholds import DEFAULT, Thresholds

__all__ = ["DEFAULT", "Thresholds", "finding_id", "judge", "judge_many"]
