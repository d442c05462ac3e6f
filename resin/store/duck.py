"""The embedded store: one DuckDB file, owned by the service, appended in batches, bounded by retention."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..agent.wire import Batch
from ..model import Entity, Sample, Series
from .base import Pivot, StoreError, make_pivot
from .dictionary import EntityDictionary, MetricDictionary
from .query import read_pivot, read_series
from .records import Records

SCHEMA = """
CREATE TABLE IF NOT EXISTS entities (id UINTEGER, host VARCHAR, component VARCHAR, pid INTEGER,
    start_time_s DOUBLE, grp VARCHAR, place UINTEGER);
CREATE TABLE IF NOT EXISTS metrics (id USMALLINT, name VARCHAR);
CREATE TABLE IF NOT EXISTS samples (entity UINTEGER, metric USMALLINT, time_ms BIGINT, value DOUBLE);
CREATE TABLE IF NOT EXISTS sessions (session VARCHAR, seq BIGINT, time_ms BIGINT);
CREATE TABLE IF NOT EXISTS records (kind VARCHAR, id VARCHAR, time_ms BIGINT, content VARCHAR);
"""
FAR_MS = 1 << 62


@dataclass(frozen=True)
class Appended:
    """What became of a batch: values stored, values left out because a bound was reached, seen before or not."""

    stored: int
    elided: int
    duplicate: bool = False


class Store:
    """Samples in DuckDB. Thread-safe: one writer at a time, readers on cursors of their own.

    `path` None keeps everything in memory. What `append` returned from is on disk (DuckDB's write-ahead log is
    synced at commit). One process may hold a file open; a second gets a StoreError.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        memory_bytes: int = 1 << 30,
        threads: int | None = None,
        max_entities: int = 500_000,
        max_entities_per_host: int = 50_000,
    ) -> None:
        self.path = path
        self._settings: dict[str, Any] = {"memory_limit": f"{memory_bytes // (1 << 20)}MiB"}
        if threads:
            self._settings["threads"] = threads
        self._bounds = (max_entities, max_entities_per_host)
        self._write = threading.RLock()
        self._open()

    def append(self, samples: Iterable[Sample]) -> Appended:
        """Store samples durably in one transaction."""
        rows = tuple(samples)
        return self._append([Batch("", 0, "", rows)])[0]

    def append_batches(self, batches: Sequence[Batch]) -> list[Appended]:
        """Store batches of agents in one transaction; one that was stored before is recognised and left out."""
        return self._append(list(batches))

    def append_columns(
        self,
        metric: str,
        entities: Sequence[Entity],
        entity_index: ArrayLike,
        times_s: ArrayLike,
        values: ArrayLike,
    ) -> Appended:
        """Store many values of one metric at once: value i belongs to entities[entity_index[i]] at times_s[i]."""
        with self._write:
            numbers = np.array(
                [-1 if (n := self._entities.id_of(e)) is None else n for e in entities], dtype=np.int64
            )
            metric_id = self._metrics.id_of(metric)
            index = np.asarray(entity_index)
            own = numbers[index] if metric_id is not None else np.full(len(index), -1)
            kept = own >= 0
            columns: dict[str, NDArray[Any]] = {
                "entity": own[kept].astype(np.uint32),
                "metric": np.full(int(kept.sum()), metric_id or 0, dtype=np.uint16),
                "time_ms": np.rint(np.asarray(times_s, dtype=np.float64)[kept] * 1000).astype(np.int64),
                "value": np.asarray(values, dtype=np.float64)[kept],
            }
            self._insert(columns, [])
            return Appended(int(kept.sum()), int((~kept).sum()))

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
        """Series of `metric` with times in [since, until), in order of entity key. See `SeriesStore.series`."""
        with self._write:
            metric_ids = dict(self._metrics.ids)
            entities = self._entities.matching(component=component, entity=entity, host=host)
        if metric not in metric_ids:
            return
        yield from read_series(
            self._cursor(),
            entities,
            self._entities,
            metric,
            metric_ids[metric],
            metric_ids,
            _ms(since, 0),
            _ms(until, FAR_MS),
        )

    def pivot(
        self,
        metric: str = "anon_bytes",
        *,
        window_s: float = 300.0,
        since: float | None = None,
        until: float | None = None,
    ) -> Pivot:
        """Hosts per component, half-octave bucket and window. See `SeriesStore.pivot`."""
        metric_id = self._metrics.ids.get(metric)
        if metric_id is None:
            none: NDArray[Any] = np.zeros(0)
            return make_pivot(metric, window_s, none.astype(object), none.astype(np.int64), none, none)
        return read_pivot(self._cursor(), metric, metric_id, window_s, _ms(since, 0), _ms(until, FAR_MS))

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics stored, sorted."""
        return tuple(sorted(self._metrics.ids))

    def entities(self) -> list[Entity]:
        """Every entity, in order of its key."""
        with self._write:
            return self._entities.matching(component=None, entity=None, host=None)

    def latest(self, *, since: float | None = None) -> dict[Entity, dict[str, float]]:
        """Last value of each metric of each entity, of samples since `since`; `time_s` tells when."""
        names = {number: name for name, number in self._metrics.ids.items()}
        rows = self._cursor().execute(
            "SELECT entity, metric, arg_max(value, time_ms), max(time_ms) FROM samples WHERE time_ms >= ? GROUP BY ALL",
            [_ms(since, 0)],
        )
        found: dict[Entity, dict[str, float]] = {}
        for number, metric_id, value, time_ms in rows.fetchall():
            entity = self._entities.by_id.get(number)
            if entity is None:
                continue
            values = found.setdefault(entity, {"time_s": 0.0})
            values[names[metric_id]] = value
            values["time_s"] = max(values["time_s"], time_ms / 1000.0)
        return found

    def last_seen(self, entities: Iterable[Entity]) -> dict[Entity, float]:
        """Time of the newest sample of each of these entities that has any."""
        with self._write:
            numbers = {self._entities.ids[e]: e for e in entities if e in self._entities.ids}
        if not numbers:
            return {}
        rows = self._cursor().execute(
            "SELECT entity, max(time_ms) FROM samples WHERE entity IN (SELECT unnest(?)) GROUP BY 1",
            [list(numbers)],
        )
        return {numbers[number]: time_ms / 1000.0 for number, time_ms in rows.fetchall()}

    def sample_count(self) -> int:
        """Number of values stored."""
        row = self._cursor().execute("SELECT count(*) FROM samples").fetchone()
        return int(row[0]) if row else 0

    def size_bytes(self) -> int:
        """Bytes on disk, write-ahead log included (0 in memory)."""
        paths = (self.path, f"{self.path}.wal") if self.path else ()
        return sum(os.path.getsize(p) for p in paths if os.path.exists(p))

    @property
    def records(self) -> Records:
        """Findings, diagnoses and actions, kept beside the samples."""
        return Records(self._cursor, self._write)

    def forget_before(self, time_s: float) -> int:
        """Delete samples older than `time_s`, entities left without any, and old sessions; returns the values."""
        cutoff = [_ms(time_s, 0)]
        with self._write:
            connection = self._connection
            try:
                connection.execute("BEGIN")
                row = connection.execute("DELETE FROM samples WHERE time_ms < ?", cutoff).fetchone()
                connection.execute("DELETE FROM records WHERE time_ms < ?", cutoff)
                connection.execute(
                    "DELETE FROM sessions WHERE time_ms < ? OR (session, seq) NOT IN "
                    "(SELECT (session, max(seq)) FROM sessions GROUP BY session)",
                    cutoff,
                )
                connection.execute(
                    "DELETE FROM entities WHERE id NOT IN (SELECT DISTINCT entity FROM samples)"
                )
                connection.execute("COMMIT")
            except duckdb.Error as error:
                self._recover(error)
                raise StoreError(f"cannot forget old samples of the store {self.path}: {error}") from error
            self._load()
            # Gives the space back now; with readers at work DuckDB may refuse, and does it at the next occasion.
            with contextlib.suppress(duckdb.Error):
                connection.execute("CHECKPOINT")
            return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the file; writes that were acknowledged are in it."""
        with self._write:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        if self.path:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        try:
            self._connection = duckdb.connect(self.path or ":memory:", config=self._settings)
            self._connection.execute(SCHEMA)
        except duckdb.Error as error:
            raise StoreError(
                f"cannot open the store {self.path}: {error}. If another resin process holds it, ask that "
                f"service (service_url) instead of opening the file; otherwise check the disk and permissions."
            ) from error
        self._load()

    def _load(self) -> None:
        self._entities = EntityDictionary(*self._bounds)
        self._entities.load(
            self._connection.execute(
                "SELECT id, host, component, pid, start_time_s, grp, place FROM entities"
            ).fetchall()
        )
        self._metrics = MetricDictionary()
        self._metrics.ids.update(self._connection.execute("SELECT name, id FROM metrics").fetchall())
        self._sessions: dict[str, int] = dict(
            self._connection.execute("SELECT session, max(seq) FROM sessions GROUP BY session").fetchall()
        )

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        return self._connection.cursor()

    def _append(self, batches: list[Batch]) -> list[Appended]:
        with self._write:
            entity: list[int] = []
            metric: list[int] = []
            time_ms: list[int] = []
            value: list[float] = []
            results = []
            sessions: dict[str, tuple[int, int]] = {}
            for batch in batches:
                known = sessions.get(batch.session, (self._sessions.get(batch.session, -1), 0))[0]
                if batch.session and batch.seq <= known:
                    results.append(Appended(0, 0, duplicate=True))
                    continue
                stored = elided = 0
                newest_ms = 0
                for sample in batch.samples:
                    number = self._entities.id_of(sample.entity)
                    if number is None:
                        elided += len(sample.values)
                        continue
                    at = round(sample.time_s * 1000)
                    newest_ms = max(newest_ms, at)
                    for name, number_read in sample.values.items():
                        metric_id = self._metrics.id_of(name)
                        if metric_id is None:
                            elided += 1
                            continue
                        entity.append(number)
                        metric.append(metric_id)
                        time_ms.append(at)
                        value.append(number_read)
                        stored += 1
                if batch.session:
                    sessions[batch.session] = (batch.seq, newest_ms)
                results.append(Appended(stored, elided))
            columns: dict[str, NDArray[Any]] = {
                "entity": np.array(entity, dtype=np.uint32),
                "metric": np.array(metric, dtype=np.uint16),
                "time_ms": np.array(time_ms, dtype=np.int64),
                "value": np.array(value, dtype=np.float64),
            }
            self._insert(columns, [(s, seq, at) for s, (seq, at) in sessions.items()])
            for session, (seq, _) in sessions.items():
                self._sessions[session] = seq
            return results

    def _insert(self, columns: Mapping[str, NDArray[Any]], sessions: list[tuple[str, int, int]]) -> None:
        """Write new dictionary entries and sample columns in one transaction; on failure nothing is kept."""
        connection = self._connection
        new_entities = self._entities.columns(self._entities.new)
        sample_columns = dict(columns)
        try:
            connection.execute("BEGIN")
            if self._entities.new:
                connection.execute("INSERT INTO entities SELECT * FROM new_entities")
            for name in self._metrics.new:
                connection.execute("INSERT INTO metrics VALUES (?, ?)", [self._metrics.ids[name], name])
            for session in sessions:
                connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", list(session))
            if len(sample_columns["entity"]):
                connection.execute("INSERT INTO samples SELECT * FROM sample_columns")
            connection.execute("COMMIT")
        except duckdb.Error as error:
            self._recover(error)
            raise StoreError(f"cannot write to the store {self.path or '(memory)'}: {error}") from error
        del new_entities, sample_columns
        self._entities.new.clear()
        self._metrics.new.clear()

    def _recover(self, error: duckdb.Error) -> None:
        """Bring connection and dictionaries back to what is on disk after a failed transaction."""
        with contextlib.suppress(duckdb.Error):
            self._connection.execute("ROLLBACK")
        if isinstance(error, (duckdb.FatalException, duckdb.InternalException)) and self.path:
            self._connection.close()  # DuckDB refuses to go on with this instance
            self._open()
        else:
            self._load()


def _ms(time_s: float | None, absent: int) -> int:
    return absent if time_s is None else round(time_s * 1000)
