"""Level 1: bucketization pivot. Which components of a fleet have hosts piling up in high memory buckets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..model import Series

MEBIBYTE = 1048576.0


class PivotLike(Protocol):
    """Columns of a pivot: one entry per non-empty cell (component, bucket, window)."""

    @property
    def components(self) -> tuple[str, ...]: ...
    @property
    def component(self) -> NDArray[Any]: ...
    @property
    def bucket(self) -> NDArray[Any]: ...
    @property
    def window_start_s(self) -> NDArray[Any]: ...
    @property
    def hosts(self) -> NDArray[Any]: ...
    @property
    def hosts_of(self) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Cells:
    """A pivot computed here from series, for callers without a store."""

    components: tuple[str, ...]
    component: NDArray[np.int64]
    bucket: NDArray[np.int64]
    window_start_s: NDArray[np.float64]
    hosts: NDArray[np.int64]
    hosts_of: NDArray[np.int64]


@dataclass(frozen=True)
class Suspicion:
    """A component whose hosts build up at and above a bucket, since a time.

    `deviation` is in robust standard deviations of the baseline, `excess_hosts` how many hosts more than the
    baseline lie at or above `bucket` now, `severity` in 0..1.
    """

    component: str
    bucket: int
    since_s: float
    deviation: float
    excess_hosts: float
    hosts: int
    severity: float

    @property
    def edge_bytes(self) -> float:
        return float(2.0 ** (self.bucket / 2.0) * MEBIBYTE)


@dataclass(frozen=True)
class PivotRule:
    """Constants of level 1. They are ours; the published description of the method names none."""

    baseline_share: float = 0.4  # first part of the time looked at: what is usual
    recent_windows: int = 6  # a suspicion must hold in most of them
    recent_share: float = 0.75
    min_deviation: float = 4.0
    min_hosts: int = 5  # smaller components go to level 2 unseen
    min_excess_hosts: float = 2.0


def pivot_of(series: Iterable[Series], *, window_s: float = 300.0) -> Cells:
    """Pivot of series: per host, component and window the maximum over processes, in half-octave buckets."""
    highest: dict[tuple[str, str, int], float] = {}
    for one in series:
        t = np.floor(np.asarray(one.times_s) / window_s).astype(np.int64)
        if not t.size:
            continue
        first = np.flatnonzero(np.concatenate(([True], t[1:] != t[:-1])))
        for window, value in zip(
            t[first].tolist(), np.maximum.reduceat(np.asarray(one.values), first).tolist()
        ):
            key = (one.entity.component, one.entity.host, window)
            if value > highest.get(key, -1.0):
                highest[key] = value
    counts: dict[tuple[str, int, int], int] = {}
    totals: dict[tuple[str, int], int] = {}
    for (component, _, window), value in highest.items():
        bucket = int(np.floor(2.0 * np.log2(max(value / MEBIBYTE, 1.0))))
        counts[component, bucket, window] = counts.get((component, bucket, window), 0) + 1
        totals[component, window] = totals.get((component, window), 0) + 1
    names = tuple(sorted({key[0] for key in counts}))
    index = {name: i for i, name in enumerate(names)}
    keys = sorted(counts)
    return Cells(
        names,
        np.array([index[k[0]] for k in keys], dtype=np.int64),
        np.array([k[1] for k in keys], dtype=np.int64),
        np.array([k[2] * window_s for k in keys], dtype=np.float64),
        np.array([counts[k] for k in keys], dtype=np.int64),
        np.array([totals[k[0], k[2]] for k in keys], dtype=np.int64),
    )


def suspicions(pivot: PivotLike, rule: PivotRule = PivotRule()) -> list[Suspicion]:
    """Components with abnormal build-up, most severe first; at most one entry per component.

    Per component the upper tail T[b, w], the share of its hosts at or above bucket b in window w, is compared
    with its own baseline (median and MAD of the first part). Shares, so that a growing fleet is no anomaly;
    tails, so that a host that moves up by one bucket counts in each bucket it has passed.
    """
    found = []
    for index, name in enumerate(pivot.components):
        cells = np.flatnonzero(np.asarray(pivot.component) == index)
        if cells.size:
            worst = _worst_bucket(name, pivot, cells, rule)
            if worst is not None:
                found.append(worst)
    return sorted(found, key=lambda s: (-s.severity, s.component))


def small_components(pivot: PivotLike, rule: PivotRule = PivotRule()) -> frozenset[str]:
    """Components on too few hosts for level 1."""
    index = np.asarray(pivot.component)
    most = np.zeros(len(pivot.components), dtype=np.int64)
    np.maximum.at(most, index, np.asarray(pivot.hosts_of, dtype=np.int64))
    return frozenset(name for name, hosts in zip(pivot.components, most) if hosts < rule.min_hosts)


def _worst_bucket(name: str, pivot: PivotLike, cells: NDArray[np.int64], rule: PivotRule) -> Suspicion | None:
    starts, window = np.unique(np.asarray(pivot.window_start_s)[cells], return_inverse=True)
    if starts.size < 4 * rule.recent_windows // 2:
        return None
    bucket = np.asarray(pivot.bucket, dtype=np.int64)[cells]
    low = int(bucket.min())
    counts = np.zeros((int(bucket.max()) - low + 1, starts.size))
    totals = np.zeros(starts.size)
    np.add.at(counts, (bucket - low, window), np.asarray(pivot.hosts, dtype=np.float64)[cells])
    np.maximum.at(totals, window, np.asarray(pivot.hosts_of, dtype=np.float64)[cells])
    hosts = float(np.median(totals[-rule.recent_windows :]))
    if hosts < rule.min_hosts:
        return None
    tail = np.cumsum(counts[::-1], axis=0)[::-1] / totals
    baseline = tail[:, : max(3, int(starts.size * rule.baseline_share))]
    usual = np.median(baseline, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(baseline - usual), axis=1, keepdims=True)
    # A count that was constant in the baseline still has counting noise of about its square root.
    least = np.sqrt(usual * hosts + 1.0) / hosts * 0.5
    deviation = (tail - usual) / np.maximum(spread, least)
    recent = deviation[:, -rule.recent_windows :]
    excess = (np.median(tail[:, -rule.recent_windows :], axis=1) - usual[:, 0]) * hosts
    holds = np.mean(recent > rule.min_deviation, axis=1) >= rule.recent_share
    holds &= excess >= rule.min_excess_hosts
    if not holds.any():
        return None
    level = np.median(recent, axis=1)
    score = np.where(holds, np.maximum(level, 0.0) * np.maximum(excess, 0.0), -1.0)
    worst = int(score.argmax())
    above = deviation[worst] > rule.min_deviation
    quiet = np.flatnonzero(~above)
    since = starts[quiet[-1] + 1] if quiet.size and quiet[-1] + 1 < starts.size else starts[0]
    share = float(excess[worst]) / hosts
    return Suspicion(
        component=name,
        bucket=worst + low,
        since_s=float(since),
        deviation=float(level[worst]),
        excess_hosts=float(excess[worst]),
        hosts=int(hosts),
        severity=float(np.clip(share * (1.0 - np.exp(-level[worst] / 10.0)), 0.0, 1.0)),
    )
