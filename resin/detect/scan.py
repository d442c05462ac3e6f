"""The whole fleet: level 1 narrows it down, level 2 judges, the metrics of each entity are reconciled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from ..model import Finding, Series
from .pivot import PivotLike, Suspicion, small_components, suspicions
from .reconcile import reconcile
from .registry import Detector, detectors
from .words import amount

_SERIES_AT_ONCE = 2048
PIVOT_METRICS = ("anon_bytes", "uss_bytes", "rss_bytes")


class Store(Protocol):
    """The reading half of a store, as `resin.store` provides it."""

    def series(
        self, metric: str, *, since: float | None = ..., component: str | None = ...
    ) -> Iterator[Series]: ...

    def pivot(self, metric: str = ..., *, window_s: float = ..., since: float | None = ...) -> Any: ...

    def metrics(self) -> tuple[str, ...]: ...


def scan(
    store: Store,
    *,
    now_s: float,
    lookback_s: float = 86400.0,
    level2_series: int = 25_000,
    using: Iterable[Detector] | None = None,
) -> list[Finding]:
    """Findings on everything the store saw in the last `lookback_s`, worst first.

    A fleet of up to `level2_series` series per metric is judged whole. Beyond, level 2 looks at the components
    that level 1 suspects and at those on too few hosts for level 1.
    """
    since = now_s - lookback_s
    held = set(store.metrics())
    pivot = _pivot(store, held, since, lookback_s)
    suspected = {} if pivot is None else {s.component: s for s in suspicions(pivot)}
    findings: list[Finding] = []
    for detector in using if using is not None else detectors():
        for metric in detector.metrics:
            if metric in held:
                findings.extend(_judge(store, detector, metric, since, level2_series, pivot, suspected))
    return [_with_fleet(finding, suspected) for finding in reconcile(findings)]


def _pivot(store: Store, held: set[str], since: float, lookback_s: float) -> PivotLike | None:
    metric = next((name for name in PIVOT_METRICS if name in held), None)
    if metric is None:
        return None
    # At most 288 windows, at least a minute each: the pivot stays small whatever the lookback.
    return store.pivot(metric, window_s=max(60.0, lookback_s / 288.0), since=since)


def _judge(
    store: Store,
    detector: Detector,
    metric: str,
    since: float,
    level2_series: int,
    pivot: PivotLike | None,
    suspected: Mapping[str, Suspicion],
) -> list[Finding]:
    found: list[Finding] = []
    stream = store.series(metric, since=since)
    seen = 0
    # A part at a time: all series of a fleet together would be gigabytes of Python floats.
    while batch := list(islice(stream, _SERIES_AT_ONCE)):
        seen += len(batch)
        if seen > level2_series and pivot is not None:
            break
        found.extend(detector.judge_many(batch))
    else:
        return found
    found = []
    for component in sorted({*suspected, *small_components(pivot)}):
        stream = store.series(metric, since=since, component=component)
        while batch := list(islice(stream, _SERIES_AT_ONCE)):
            found.extend(detector.judge_many(batch))
    return found


def _with_fleet(finding: Finding, suspected: Mapping[str, Suspicion]) -> Finding:
    """A leak whose component piles up across hosts is a matter of code: say so, and rank it higher."""
    seen = suspected.get(finding.entity.component)
    if seen is None or finding.verdict not in ("leak", "unclear"):
        return finding
    line = (
        f"level 1: {seen.excess_hosts:.0f} of {seen.hosts} hosts more than usual run {seen.component} at or above "
        f"{amount('x_bytes', seen.edge_bytes)} (deviation {seen.deviation:.1f})"
    )
    lifted = finding.severity + (1.0 - finding.severity) * 0.5 * seen.severity
    return replace(finding, severity=lifted, why=(*finding.why, line))
