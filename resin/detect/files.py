"""Traces from files: CSV (also gzipped) or Parquet in one of two column layouts."""

from __future__ import annotations

import csv
import gzip
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ..model import Entity, Series

LAYOUTS = (("host", "process", "time", "bytes"), ("pod", "minute", "memory_utilisation"))


class TraceError(ValueError):
    """The file is not a trace; the message names the file, the place and the layouts that are read."""


@dataclass(frozen=True)
class Trace:
    """Series of a file and how to write a time of theirs in the file's own terms."""

    series: tuple[Series, ...]
    to_file_time: Callable[[float], float | str]
    names: tuple[str, ...]  # one per series, as the file names the entity


def read_trace(path: str | Path) -> Trace:
    """Read a trace. Rows may come in any order; empty values are skipped.

    Columns host, process, time, bytes: time in seconds since any origin or ISO 8601. Columns pod, minute,
    memory_utilisation: minutes, and the share of the container's limit. Raises TraceError on anything else,
    OSError when the file cannot be read.
    """
    path = Path(path)
    if path.suffix in (".parquet", ".pq"):
        header, rows = _parquet(path)
    else:
        header, rows = _csv(path)
    return _series(path, header, rows)


def _csv(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
                raise TraceError(
                    f"{path}: not readable as CSV near line {reader.line_num}: {error}"
                ) from error

    found = rows()
    header = next(found, None)
    if header is None:
        raise TraceError(f"{path}: empty file; {_expected()}")
    return [name.strip() for name in header[1]], found


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, list]]]:
    try:
        import duckdb
    except ImportError as error:
        raise TraceError(f"{path}: reading Parquet needs duckdb; install `torchroller[resin]`") from error
    if not path.exists():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        with duckdb.connect() as connection:
            cursor = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            header = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
    except duckdb.Error as error:
        raise TraceError(f"{path}: not readable as Parquet: {error}") from error
    return header, ((number, list(row)) for number, row in enumerate(rows, start=1))


def _expected() -> str:
    return "columns must hold " + " or ".join(", ".join(layout) for layout in LAYOUTS)


def _series(path: Path, header: list[str], rows: Iterable[tuple[int, list]]) -> Trace:
    layout = next((layout for layout in LAYOUTS if set(layout) <= set(header)), None)
    if layout is None:
        raise TraceError(f"{path}: found columns {', '.join(header) or 'none'}; {_expected()}")
    at = [header.index(name) for name in layout]
    key_columns, time_column, value_column = at[:-2], at[-2], at[-1]
    times: dict[tuple[str, ...], array] = {}
    values: dict[tuple[str, ...], array] = {}
    as_iso = False
    for line, row in rows:
        if len(row) <= max(at):
            raise TraceError(f"{path}, line {line}: {len(row)} columns where the header has {len(header)}")
        value = row[value_column]
        if value is None or value == "":
            continue
        time = row[time_column]
        try:
            number = float(value)
            if isinstance(time, (int, float)):
                moment = float(time)
            else:
                moment, iso = _moment(time)
                as_iso = as_iso or iso
        except (TypeError, ValueError) as error:
            raise TraceError(f"{path}, line {line}: time {time!r}, value {value!r}: {error}") from error
        key = tuple(str(row[c]) for c in key_columns)
        if key not in times:
            times[key], values[key] = array("d"), array("d")
        times[key].append(moment)
        values[key].append(number)
    pods = layout[0] == "pod"
    scale = 60.0 if pods else 1.0
    series = []
    for key in sorted(times):
        t = np.frombuffer(times[key]) * scale
        y = np.frombuffer(values[key])
        order = np.argsort(t, kind="stable")
        keep = order[np.isfinite(t[order]) & np.isfinite(y[order])]
        entity = Entity(key[0], "container") if pods else Entity(key[0], key[1])
        series.append(
            Series(
                entity,
                "memory_utilisation" if pods else "memory_bytes",
                tuple(t[keep].tolist()),
                tuple(y[keep].tolist()),
                limit_bytes=1.0 if pods else None,
            )
        )

    def to_file_time(seconds: float) -> float | str:
        if as_iso:
            return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat().replace("+00:00", "Z")
        return round(seconds / scale, 3)

    return Trace(tuple(series), to_file_time, tuple("/".join(key) for key in sorted(times)))


def _moment(text: object) -> tuple[float, bool]:
    """Seconds of a number, a timestamp or ISO 8601 text (UTC where it names no zone), and whether it was a date."""
    if isinstance(text, datetime):
        date = text
    else:
        try:
            return float(str(text)), False
        except ValueError:
            date = datetime.fromisoformat(str(text).strip().replace("Z", "+00:00"))
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return date.timestamp(), True
