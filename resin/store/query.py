"""Reading from DuckDB: series grouped and sorted in numpy, the bucketization pivot in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..column import Column
from ..model import Entity, Series
from .base import MEBIBYTE, Pivot, make_pivot
from .dictionary import EntityDictionary

if TYPE_CHECKING:
    import duckdb

# Samples that are in memory at once while series are read: 20 bytes each, a few times over while sorting.
CHUNK_SAMPLES = 2_000_000
CHUNK_ENTITIES = 60_000  # ranks within a chunk fit 16 bits, where numpy's stable sort is a radix sort

_LIMITS = {
    "gpu_bytes": "gpu_limit_bytes",
    "dev_shm_bytes": "dev_shm_size_bytes",
    "fds": "fds_limit",
    "threads": "threads_limit",
    "children": "children_limit",
}


def limit_metric(metric: str) -> str | None:
    """Metric that holds the limit of `metric`; None where no limit is known."""
    if metric.startswith("cgroup_"):
        return "cgroup_limit_bytes"
    return _LIMITS.get(metric, "limit_bytes" if metric.endswith("_bytes") else None)


def read_series(
    cursor: duckdb.DuckDBPyConnection,
    entities: list[Entity],
    ids: EntityDictionary,
    metric: str,
    metric_id: int,
    metric_ids: dict[str, int],
    since_ms: int,
    until_ms: int,
) -> Iterator[Series]:
    """Series of `entities` in their order, a bounded number of samples in memory at a time."""
    numbers = {ids.ids[e]: e for e in entities if e in ids.ids}
    if not numbers:
        return
    counts = _counts(cursor, metric_id, since_ms, until_ms, numbers)
    limit_name = limit_metric(metric)
    limits = _last_values(cursor, metric_ids.get(limit_name or ""), until_ms, numbers)
    work_id = metric_ids.get("steps_total")
    for chunk in _chunks([(n, counts[n]) for n in numbers if n in counts]):
        split = _split(cursor, metric_id, since_ms, until_ms, chunk)
        work = _split(cursor, work_id, since_ms, until_ms, chunk) if work_id is not None else {}
        for number in chunk:
            times_ms, values = split[number]
            yield Series(
                numbers[number],
                metric,
                Column(times_ms / 1000.0),
                Column(values),
                limits.get(number),
                _work_at(times_ms, *work[number]) if number in work else None,
            )


def _counts(
    cursor: duckdb.DuckDBPyConnection,
    metric_id: int,
    since_ms: int,
    until_ms: int,
    numbers: dict[int, Entity],
) -> dict[int, int]:
    few = f"AND entity IN ({', '.join(map(str, numbers))})" if len(numbers) <= 1000 else ""
    rows = cursor.execute(
        f"SELECT entity, count(*) FROM samples WHERE metric = ? AND time_ms >= ? AND time_ms < ? {few} GROUP BY 1",
        [metric_id, since_ms, until_ms],
    ).fetchall()
    return dict(rows)


def _last_values(
    cursor: duckdb.DuckDBPyConnection, metric_id: int | None, until_ms: int, numbers: dict[int, Entity]
) -> dict[int, float]:
    if metric_id is None:
        return {}
    few = f"AND entity IN ({', '.join(map(str, numbers))})" if len(numbers) <= 1000 else ""
    rows = cursor.execute(
        f"SELECT entity, arg_max(value, time_ms) FROM samples WHERE metric = ? AND time_ms < ? {few} GROUP BY 1",
        [metric_id, until_ms],
    ).fetchall()
    return dict(rows)


def _chunks(counted: list[tuple[int, int]]) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for number, count in counted:
        if chunk and (size + count > CHUNK_SAMPLES or len(chunk) >= CHUNK_ENTITIES):
            yield chunk
            chunk, size = [], 0
        chunk.append(number)
        size += count
    if chunk:
        yield chunk


def _split(
    cursor: duckdb.DuckDBPyConnection, metric_id: int, since_ms: int, until_ms: int, chunk: list[int]
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Times (ms) and values per entity, ascending in time; of samples at the same time the last stored wins."""
    wanted = {"id": np.array(chunk, dtype=np.uint32), "rank": np.arange(len(chunk), dtype=np.uint16)}  # noqa: F841
    found = cursor.execute(
        "SELECT wanted.rank AS rank, time_ms, value FROM samples JOIN wanted ON samples.entity = wanted.id "
        "WHERE metric = ? AND time_ms >= ? AND time_ms < ?",
        [metric_id, since_ms, until_ms],
    ).fetchnumpy()
    rank, times, values = (np.asarray(found[name]) for name in ("rank", "time_ms", "value"))
    order = np.argsort(rank, kind="stable")
    rank, times, values = rank[order], times[order], values[order]
    bounds = np.searchsorted(rank, np.arange(len(chunk) + 1))
    split = {}
    for index, number in enumerate(chunk):
        start, end = bounds[index], bounds[index + 1]
        if start == end:
            continue
        own_times, own_values = times[start:end], values[start:end]
        steps = np.diff(own_times)
        if (steps <= 0).any():
            if (steps < 0).any():
                by_time = np.argsort(own_times, kind="stable")
                own_times, own_values = own_times[by_time], own_values[by_time]
            last = np.append(np.diff(own_times) > 0, True)
            own_times, own_values = own_times[last], own_values[last]
        split[number] = (own_times, own_values)
    return split


def _work_at(
    times_ms: NDArray[np.int64], work_times_ms: NDArray[np.int64], work: NDArray[np.float64]
) -> Column:
    """Work done at each time: the counter as last read by then (before its first reading: that reading)."""
    at = np.searchsorted(work_times_ms, times_ms, side="right") - 1
    return Column(work[np.maximum(at, 0)])


def read_pivot(
    cursor: duckdb.DuckDBPyConnection,
    metric: str,
    metric_id: int,
    window_s: float,
    since_ms: int,
    until_ms: int,
) -> Pivot:
    """Bucketization pivot: hosts per component, half-octave bucket and window, all in the engine.

    Two aggregations: the maximum per process and window needs no join; the few rows that remain are joined to
    (host, component) and counted.
    """
    window_ms = round(window_s * 1000)
    cells: dict[str, Any] = cursor.execute(
        """
        WITH per_process AS (
            SELECT entity, time_ms // $window AS w, max(value) AS v
            FROM samples WHERE metric = $metric AND time_ms >= $since AND time_ms < $until GROUP BY ALL
        ), per_place AS (
            SELECT place, w, max(v) AS v FROM per_process JOIN entities ON entity = id GROUP BY ALL
        ), names AS (
            SELECT place, any_value(component) AS component FROM entities GROUP BY place
        )
        SELECT component, floor(2 * log2(greatest(v / $mebibyte, 1.0)))::INTEGER AS bucket, w, count(*) AS hosts
        FROM per_place JOIN names USING (place) GROUP BY ALL
        """,
        {
            "window": window_ms,
            "metric": metric_id,
            "since": since_ms,
            "until": until_ms,
            "mebibyte": MEBIBYTE,
        },
    ).fetchnumpy()
    return make_pivot(
        metric,
        window_s,
        np.asarray(cells["component"], dtype=object),
        np.asarray(cells["bucket"], dtype=np.int64),
        np.asarray(cells["w"], dtype=np.float64) * window_s,
        np.asarray(cells["hosts"], dtype=np.int64),
    )
