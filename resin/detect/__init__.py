"""Detection: level 1 over the fleet's pivot, level 2 over each process. Start at `judge` and `scan`."""

from __future__ import annotations

from .judge import finding_id, judge, judge_many
from .pivot import PivotRule, Suspicion, pivot_of, suspicions
from .reconcile import reconcile, refine
from .registry import Detector, detectors
from .remember import Judgements
from .scan import scan
from .thresholds import DEFAULT, Thresholds

__all__ = [
    "DEFAULT",
    "Detector",
    "Judgements",
    "PivotRule",
    "Suspicion",
    "Thresholds",
    "detectors",
    "finding_id",
    "judge",
    "judge_many",
    "pivot_of",
    "reconcile",
    "refine",
    "scan",
    "suspicions",
]
