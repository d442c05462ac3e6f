"""Detectors by name: the built-in ones and those of installed packages (entry point group `resin.detectors`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from ..model import Finding, Series
from .judge import MEMORY_FAMILY, judge_many
from .rule import COUNTS
from .thresholds import DEFAULT, Thresholds

GROUP = "resin.detectors"
MEMORY_METRICS = (
    *MEMORY_FAMILY,
    "shmem_bytes",
    "dev_shm_bytes",
    "cgroup_bytes",
    "gpu_bytes",
    "slab_bytes",
    "kernel_stack_bytes",
    "page_tables_bytes",
    "vmalloc_bytes",
)
log = logging.getLogger("resin.detect")


@runtime_checkable
class Detector(Protocol):
    """What a detector has: a name, the metrics that it reads, and one judgement per series."""

    name: str
    metrics: tuple[str, ...]

    def judge_many(self, series: Sequence[Series]) -> list[Finding]:
        """One finding per series, in order, that depends on the series alone: it stands until that changes."""
        ...


@dataclass(frozen=True)
class FloorDetector:
    """Memory that is not given back: ramp on the floor of the series (see `resin.detect.rule`)."""

    name: str = "floor"
    metrics: tuple[str, ...] = MEMORY_METRICS
    thresholds: Thresholds = DEFAULT

    def judge_many(self, series: Sequence[Series]) -> list[Finding]:
        return judge_many(series, self.thresholds)


@dataclass(frozen=True)
class CounterDetector:
    """Descriptors, threads and children: the same rule; counts restart less often and move in whole numbers."""

    name: str = "counter"
    metrics: tuple[str, ...] = COUNTS
    thresholds: Thresholds = replace(DEFAULT, min_relative_growth=0.1)

    def judge_many(self, series: Sequence[Series]) -> list[Finding]:
        return judge_many(series, self.thresholds)


BUILT_IN: tuple[type, ...] = (FloorDetector, CounterDetector)


def detectors() -> tuple[Detector, ...]:
    """All detectors, built-in first. One that fails to load is logged and left out, never fatal."""
    found: dict[str, Detector] = {}
    for make in BUILT_IN:
        one = make()
        found[one.name] = one
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        if point.name in found:
            continue
        try:
            one = point.load()()
            if not isinstance(one, Detector):
                raise TypeError(f"{point.value} has no name, metrics and judge_many")
        except Exception as error:  # a broken plug-in must not stop detection of everything else
            log.warning("detector %s left out: %s", point.name, error)
            continue
        found[point.name] = one
    return tuple(found.values())
