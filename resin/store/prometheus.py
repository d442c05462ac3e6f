"""Reading series back from the Prometheus HTTP API: Prometheus, VictoriaMetrics, Mimir, Thanos.

Raw samples come from an instant query with a range selector (`resin_anon_bytes[6h]` at one moment), which
returns every sample with its own time; query_range would put them on a grid. The pivot is counted by the server
with query_range, one step per window.
"""

from __future__ import annotations

import math
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import numpy as np

from ..column import Column
from ..model import Entity, Sample, Series
from .base import MEBIBYTE, METRIC_NAME, Pivot, StoreError, make_pivot
from .query import limit_metric
from .remote import HEADERS, PREFIX, compress, entity_of, write_request

DEFAULT_LOOKBACK_S = 86400.0
HOSTS_AT_ONCE = 50
MAX_STEPS = 10_000  # servers refuse more than 11,000 points per series


class PrometheusStore:
    """SeriesStore over a Prometheus API; `append` writes by remote write. Thread-safe.

    Without `since`, series and pivots reach back `lookback_s` from now: the API has no "from the beginning".
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        write_path: str = "/api/v1/write",
        lookback_s: float = DEFAULT_LOOKBACK_S,
        timeout_s: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.write_path = write_path
        self.lookback_s = lookback_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, timeout=timeout_s)

    def append(self, samples: Iterable[Sample]) -> None:
        """Send samples by remote write; raises StoreError when they are refused."""
        body = compress(write_request(samples))
        try:
            answer = self._client.post(self.url + self.write_path, content=body, headers=HEADERS)
        except httpx.HTTPError as error:
            raise StoreError(f"no Prometheus API answers at {self.url}: {error}") from error
        if answer.status_code // 100 != 2:
            raise StoreError(
                f"{self.url}{self.write_path} answered {answer.status_code}: {answer.text[:300].strip()}. Prometheus "
                f"takes remote write only with --web.enable-remote-write-receiver"
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
        """See `SeriesStore.series`. Asked for a number of hosts at a time, which bounds what is in memory."""
        since, until = self._range(since, until)
        hosts = [host] if host is not None else self._label_values("host", metric, since, until, component)
        if entity is not None:
            hosts = [h for h in hosts if entity.startswith(f"{h}/")]
        # In order of entity keys, which begin with the host and a slash.
        hosts.sort(key=lambda h: f"{h}/")
        for first in range(0, len(hosts), HOSTS_AT_ONCE):
            part = hosts[first : first + HOSTS_AT_ONCE]
            found = self._series_of(metric, _matchers(part, component), since, until, entity)
            yield from sorted(found, key=lambda s: s.entity.key)

    def pivot(
        self,
        metric: str = "anon_bytes",
        *,
        window_s: float = 300.0,
        since: float | None = None,
        until: float | None = None,
    ) -> Pivot:
        """See `SeriesStore.pivot`; counted by the server."""
        since, until = self._range(since, until)
        _check(metric)
        first = math.floor(since / window_s)
        last = math.ceil(until / window_s)
        inner = (
            f"floor(2 * log2(clamp_min(max by (component, host) "
            f"(max_over_time({PREFIX}{metric}[{round(window_s * 1000)}ms])) / {MEBIBYTE:.0f}, 1)))"
        )
        expression = f'count_values by (component) ("bucket", {inner})'
        component: list[str] = []
        bucket: list[int] = []
        starts: list[float] = []
        hosts: list[int] = []
        for begin in range(first, last, MAX_STEPS):
            end = min(begin + MAX_STEPS, last)
            # Evaluated a millisecond before each window's end, so that the range covers [start, end) of times in
            # milliseconds whether the server counts the range's left edge in or not.
            answer = self._get(
                "/api/v1/query_range",
                query=expression,
                start=f"{(begin + 1) * window_s - 0.001:.3f}",
                end=f"{end * window_s - 0.001:.3f}",
                step=f"{window_s:g}",
            )
            for one in answer["result"]:
                labels = one["metric"]
                for time_s, value in one["values"]:
                    component.append(labels.get("component", ""))
                    bucket.append(int(float(labels["bucket"])))
                    starts.append((math.floor(float(time_s) / window_s)) * window_s)
                    hosts.append(int(float(value)))
        return make_pivot(
            metric,
            window_s,
            np.array(component, dtype=object),
            np.array(bucket, dtype=np.int64),
            np.array(starts, dtype=np.float64),
            np.array(hosts, dtype=np.int64),
        )

    def metrics(self) -> tuple[str, ...]:
        """See `SeriesStore.metrics`."""
        since, until = self._range(None, None)
        names = self._get(
            "/api/v1/label/__name__/values", start=f"{since:.3f}", end=f"{until:.3f}",
            **{"match[]": f'{{__name__=~"{PREFIX}.+",component!=""}}'},
        )  # fmt: skip
        return tuple(sorted(n.removeprefix(PREFIX) for n in names if n.startswith(PREFIX)))

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _series_of(
        self, metric: str, matchers: str, since: float, until: float, entity: str | None
    ) -> list[Series]:
        points = self._raw(metric, matchers, since, until)
        limits = self._last(limit_metric(metric), matchers, until)
        work = self._raw("steps_total", matchers, since, until) if points else {}
        found = []
        for one, (times, values) in points.items():
            if entity is not None and one.key != entity:
                continue
            found.append(
                Series(
                    one,
                    metric,
                    Column(times),
                    Column(values),
                    limits.get(one),
                    _work_at(times, *work[one]) if one in work else None,
                )
            )
        return found

    def _raw(
        self, metric: str, matchers: str, since: float, until: float
    ) -> dict[Entity, tuple[np.ndarray, np.ndarray]]:
        """Samples with times in [since, until) by entity."""
        duration_ms = max(1, round((until - since) * 1000))
        answer = self._get(
            "/api/v1/query",
            query=f"{_selector(metric, matchers)}[{duration_ms}ms]",
            time=f"{until - 0.001:.3f}",
        )
        found = {}
        for one in answer["result"]:
            entity = entity_of(one["metric"])
            if entity is None or not one.get("values"):
                continue
            times = np.array([round(float(t), 3) for t, _ in one["values"]])
            values = np.array([float(v) for _, v in one["values"]])
            inside = (times >= since) & (times < until) & np.isfinite(values)
            if inside.any():
                found[entity] = (times[inside], values[inside])
        return found

    def _last(self, metric: str | None, matchers: str, until: float) -> dict[Entity, float]:
        if metric is None:
            return {}
        window = f"{round(self.lookback_s * 1000)}ms"
        query = f"last_over_time({_selector(metric, matchers)}[{window}])"
        answer = self._get("/api/v1/query", query=query, time=f"{until - 0.001:.3f}")
        found = {}
        for one in answer["result"]:
            entity = entity_of(one["metric"])
            if entity is not None:
                found[entity] = float(one["value"][1])
        return found

    def _label_values(
        self, label: str, metric: str, since: float, until: float, component: str | None
    ) -> list[str]:
        matcher = _selector(metric, _matchers([], component))
        return list(
            self._get(
                f"/api/v1/label/{label}/values",
                start=f"{since:.3f}",
                end=f"{until:.3f}",
                **{"match[]": matcher},
            )
        )

    def _range(self, since: float | None, until: float | None) -> tuple[float, float]:
        end = time.time() + 1.0 if until is None else until
        return (max(0.0, end - self.lookback_s) if since is None else since), end

    def _get(self, path: str, **query: str) -> Any:
        """`data` of the answer. POST where the API allows it: selectors may be long."""
        try:
            if path in {"/api/v1/query", "/api/v1/query_range"}:
                answer = self._client.post(self.url + path, data=query)
            else:
                answer = self._client.get(f"{self.url}{path}?{urllib.parse.urlencode(query)}")
        except httpx.HTTPError as error:
            raise StoreError(f"no Prometheus API answers at {self.url}: {error}") from error
        try:
            content = answer.json()
        except ValueError:
            content = {}
        if answer.status_code != 200 or content.get("status") != "success":
            detail = content.get("error") or answer.text[:300]
            raise StoreError(f"{self.url}{path} answered {answer.status_code}: {detail} (query: {query})")
        return content.get("data") or []


def _matchers(hosts: list[str], component: str | None) -> str:
    """Label matchers for any of `hosts` (all when empty) and one component (all when None)."""
    parts = []
    if len(hosts) == 1:
        parts.append(f'host="{_escape(hosts[0])}"')
    elif hosts:
        parts.append(f'host=~"{_escape("|".join(re.escape(h) for h in hosts))}"')
    if component is not None:
        parts.append(f'component="{_escape(component)}"')
    return ",".join(parts)


def _selector(metric: str, matchers: str) -> str:
    _check(metric)
    return f"{PREFIX}{metric}{{{matchers}}}" if matchers else f"{PREFIX}{metric}"


def _check(metric: str) -> None:
    if not METRIC_NAME.match(metric):
        raise ValueError(f"{metric!r} is not a metric name: lower case letters, digits and _")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _work_at(times: np.ndarray, work_times: np.ndarray, work: np.ndarray) -> Column:
    at = np.searchsorted(work_times, times, side="right") - 1
    return Column(work[np.maximum(at, 0)])
