"""Samples of one run in memory: what `resin watch` and `resin top` detect over, with no file and no server."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from ..model import Entity, Sample, Series
from .base import Pivot, bucket_of, make_pivot
from .query import limit_metric

MAX_POINTS = 8192


class MemoryStore:
    """SeriesStore over samples appended by one thread. A series that reaches MAX_POINTS loses every second point."""

    def __init__(self) -> None:
        self._data: dict[tuple[Entity, str], tuple[array[float], array[float]]] = {}

    def append(self, samples: Iterable[Sample]) -> None:
        """Keep samples; times must not go back per entity (those that do are left out)."""
        for sample in samples:
            for metric, value in sample.values.items():
                times, values = self._data.setdefault((sample.entity, metric), (array("d"), array("d")))
                if times and sample.time_s <= times[-1]:
                    continue
                times.append(sample.time_s)
                values.append(value)
                if len(times) >= MAX_POINTS:
                    # In pairs, the lower value stays: detection looks at the floor of a series.
                    kept = [i if values[i] <= values[i + 1] else i + 1 for i in range(0, len(times) - 1, 2)]
                    self._data[sample.entity, metric] = (
                        array("d", (times[i] for i in kept)),
                        array("d", (values[i] for i in kept)),
                    )

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
        """See `SeriesStore.series`."""
        wanted = [
            e
            for e, name in self._data
            if name == metric
            and (component is None or e.component == component)
            and (entity is None or e.key == entity)
            and (host is None or e.host == host)
        ]
        low, high = since if since is not None else -math.inf, until if until is not None else math.inf
        limit_name = limit_metric(metric) or ""
        for one in sorted(wanted, key=lambda e: e.key):
            times, values = self._data[one, metric]
            inside = [i for i, t in enumerate(times) if low <= t < high]
            if not inside:
                continue
            limits = self._data.get((one, limit_name))
            yield Series(
                one,
                metric,
                tuple(times[i] for i in inside),
                tuple(values[i] for i in inside),
                limits[1][-1] if limits else None,
                self._work(one, [times[i] for i in inside]),
            )

    def pivot(
        self,
        metric: str = "anon_bytes",
        *,
        window_s: float = 300.0,
        since: float | None = None,
        until: float | None = None,
    ) -> Pivot:
        """See `SeriesStore.pivot`."""
        highest: dict[tuple[str, str, float], float] = {}
        for one in self.series(metric, since=since, until=until):
            for time_s, value in zip(one.times_s, one.values):
                cell = (one.entity.component, one.entity.host, time_s // window_s * window_s)
                highest[cell] = max(highest.get(cell, -math.inf), value)
        return make_pivot(
            metric,
            window_s,
            np.array([c[0] for c in highest], dtype=object),
            bucket_of(np.array(list(highest.values()), dtype=np.float64)).astype(np.int64),
            np.array([c[2] for c in highest], dtype=np.float64),
            np.ones(len(highest), dtype=np.int64),
        )

    def metrics(self) -> tuple[str, ...]:
        """See `SeriesStore.metrics`."""
        return tuple(sorted({name for _, name in self._data}))

    def _work(self, entity: Entity, times: list[float]) -> tuple[float, ...] | None:
        steps = self._data.get((entity, "steps_total"))
        if not steps:
            return None
        at = np.searchsorted(np.array(steps[0]), np.array(times), side="right") - 1
        return tuple(np.array(steps[1])[np.maximum(at, 0)].tolist())
