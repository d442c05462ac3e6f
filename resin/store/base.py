"""What detection asks of any store: series one by one, and the bucketization pivot of the whole fleet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..model import Series

MEBIBYTE = 1048576.0
METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


class StoreError(RuntimeError):
    """The store cannot be opened, read or written; the message says what to do."""


@dataclass(frozen=True)
class Pivot:
    """Count of distinct hosts per (component, half-octave memory bucket, time window).

    The five arrays have one entry per non-empty cell, sorted by component, bucket, window. A value v lies in
    bucket floor(2 * log2(v / 1 MiB)) (values under 1 MiB in bucket 0); per host and component the maximum over
    processes and over the window counts. `hosts_of` gives, per cell, the hosts that reported that component in
    that window at all, so hosts / hosts_of is a share that fleet growth does not move.
    Pivots of disjoint host shards add up: see `merge_pivots`.
    """

    metric: str
    window_s: float
    components: tuple[str, ...]
    component: NDArray[np.int32]  # index into `components`
    bucket: NDArray[np.int32]
    window_start_s: NDArray[np.float64]
    hosts: NDArray[np.int64]
    hosts_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hosts)


def bucket_of(value_bytes: NDArray[np.float64]) -> NDArray[np.int32]:
    """Half-octave bucket of each value: floor(2 * log2(value / 1 MiB)), never below 0."""
    mebibytes = np.maximum(np.asarray(value_bytes, dtype=np.float64) / MEBIBYTE, 1.0)
    return np.floor(2.0 * np.log2(mebibytes)).astype(np.int32)


def bucket_edge_bytes(bucket: int) -> float:
    """Lower edge of a bucket in bytes."""
    return float(2.0 ** (bucket / 2.0) * MEBIBYTE)


class SeriesStore(Protocol):
    """The reading half of a store. Both engines (DuckDB, Prometheus API) give the same answers."""

    def series(
        self,
        metric: str,
        *,
        since: float | None = None,
        until: float | None = None,
        component: str | None = None,
        entity: str | None = None,
        host: str | None = None,
    ) -> Iterator[Series]:
        """Series of `metric` with times in [since, until), in order of entity key; filters are exact."""
        ...

    def pivot(
        self,
        metric: str = "anon_bytes",
        *,
        window_s: float = 300.0,
        since: float | None = None,
        until: float | None = None,
    ) -> Pivot:
        """Bucketization pivot over [since, until) in windows aligned to multiples of `window_s`."""
        ...

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that the store holds, sorted."""
        ...


def make_pivot(
    metric: str,
    window_s: float,
    component: NDArray[np.object_],
    bucket: NDArray[np.int64],
    window_start_s: NDArray[np.float64],
    hosts: NDArray[np.int64],
) -> Pivot:
    """Pivot from unsorted cells; cells with equal keys are added up."""
    names, component_index = np.unique(np.asarray(component, dtype=str), return_inverse=True)
    order = np.lexsort((window_start_s, bucket, component_index))
    keys = np.stack([component_index[order], np.asarray(bucket)[order]], axis=1).astype(np.int64)
    starts = np.asarray(window_start_s, dtype=np.float64)[order]
    counts = np.asarray(hosts, dtype=np.int64)[order]
    if len(order):
        new = np.ones(len(order), dtype=bool)
        new[1:] = np.any(keys[1:] != keys[:-1], axis=1) | (starts[1:] != starts[:-1])
        first = np.flatnonzero(new)
        keys, starts, counts = keys[first], starts[first], np.add.reduceat(counts, first)
    # A host is in exactly one bucket per component and window, so the buckets' sum is the hosts that reported.
    window_index = np.unique(starts, return_inverse=True)[1] if len(starts) else np.zeros(0, dtype=np.int64)
    span = int(window_index.max()) + 1 if len(starts) else 1
    cell = keys[:, 0] * span + window_index
    totals = np.bincount(cell, weights=counts, minlength=int(cell.max()) + 1 if len(cell) else 0)
    return Pivot(
        metric,
        window_s,
        tuple(str(n) for n in names),
        keys[:, 0].astype(np.int32),
        keys[:, 1].astype(np.int32),
        starts,
        counts,
        totals[cell].astype(np.int64),
    )


def merge_pivots(shards: list[Pivot]) -> Pivot:
    """Pivot of a fleet from the pivots of disjoint sets of its hosts."""
    if not shards:
        raise ValueError("merge_pivots needs at least one shard")
    if len({(p.metric, p.window_s) for p in shards}) > 1:
        seen = sorted({(p.metric, p.window_s) for p in shards})
        raise ValueError(f"shards differ in metric or window: {seen}; ask all shards for the same pivot")
    return make_pivot(
        shards[0].metric,
        shards[0].window_s,
        np.concatenate([np.asarray(p.components, dtype=object)[p.component] for p in shards]),
        np.concatenate([p.bucket for p in shards]),
        np.concatenate([p.window_start_s for p in shards]),
        np.concatenate([p.hosts for p in shards]),
    )
