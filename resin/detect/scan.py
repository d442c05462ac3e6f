"""The whole fleet: level 1 narrows it down, level 2 judges, the metrics of each entity are reconciled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
    findings: list[Finding] = []
    # The store reads the next series, and works on the pivot, while this thread judges: both let go of the GIL.
    with ThreadPoolExecutor(2, thread_name_prefix="resin-scan") as pool:
        pivot = pool.submit(_pivot, store, held, since, lookback_s)
        for detector in using if using is not None else detectors():
            for metric in detector.metrics:
                if metric in held:
                    findings.extend(_judge(store, detector, metric, since, level2_series, pivot, pool))
        found = pivot.result()
    suspected = {} if found is None else {s.component: s for s in suspicions(found)}
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
    pivot: Future[PivotLike | None],
    pool: ThreadPoolExecutor,
) -> list[Finding]:
    found: list[Finding] = []
    seen = 0
    for batch in _batches(store.series(metric, since=since), pool):
        seen += len(batch)
        if seen > level2_series and pivot.result() is not None:
            break
        found.extend(detector.judge_many(batch))
    else:
        return found
    found = []
    narrowed = pivot.result()
    assert narrowed is not None
    components = {*(s.component for s in suspicions(narrowed)), *small_components(narrowed)}
    for component in sorted(components):
        for batch in _batches(store.series(metric, since=since, component=component), pool):
            found.extend(detector.judge_many(batch))
    return found


def _batches(stream: Iterator[Series], pool: ThreadPoolExecutor) -> Iterator[list[Series]]:
    """A part of the stream at a time, the next one being read meanwhile; all of a fleet would be gigabytes."""
    batch = list(islice(stream, _SERIES_AT_ONCE))
    while len(batch) == _SERIES_AT_ONCE:
        ahead = pool.submit(lambda: list(islice(stream, _SERIES_AT_ONCE)))
        yield batch
        batch = ahead.result()
    if batch:
        yield batch


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
