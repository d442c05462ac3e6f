"""Traces from files: CSV (also gzipped) or Parquet in one of two column layouts."""

from __future__ import annotations

import csv
import gzip
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

import numpy as np

from ..column import Column
from ..model import Entity, Series

# Other names that such columns go by; case and blanks around a name do not matter.
ALIASES = {"memory_utilization": "memory_utilisation", "timestamp": "time", "container": "pod"}
# What stands for a value that was not there.
ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "<na>", "\\n"})
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
    memory_utilisation: minutes, and the share of the container's limit or per cent of it. Times since 1970 in milli-,
    micro- or nanoseconds are told by their size. The content tells gzip and Parquet; the header tells whether
    commas, semicolons or tabs part the columns. Absent, infinite and negative values are left out. Raises TraceError
    on anything else, OSError when the file cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        header, rows = _parquet(path)
    else:
        header, rows = _csv(path)
    return _series(path, header, rows)


def _csv(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        with open(path, "rb") as raw:
            opened = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            line = 0
            try:
                first = file.readline()
                reader = csv.reader(
                    chain([first], file), delimiter=max(",;\t", key=first.count), skipinitialspace=True
                )
                for row in reader:
                    line = reader.line_num
                    if row:
                        yield line, row
            except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise TraceError(f"{path}: not readable as CSV near line {line}: {error}") from error

    found = rows()
    header = next(found, None)
    if header is None or not any(name.strip() for name in header[1]):
        raise TraceError(f"{path}: empty file; {_expected()}")
    return [name.strip() for name in header[1]], found


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, list]]]:
    try:
        import duckdb
    except ImportError as error:
        raise TraceError(f"{path}: reading Parquet needs duckdb; install `torchroller[resin]`") from error
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
    known = [name.strip().lower() for name in header]
    known = [name if name not in ALIASES or ALIASES[name] in known else ALIASES[name] for name in known]
    layout = next((layout for layout in LAYOUTS if set(layout) <= set(known)), None)
    if layout is None:
        raise TraceError(f"{path}: found columns {', '.join(header) or 'none'}; {_expected()}")
    at = [known.index(name) for name in layout]
    key_columns, time_column, value_column = at[:-2], at[-2], at[-1]
    times: dict[tuple[str, ...], array] = {}
    values: dict[tuple[str, ...], array] = {}
    as_iso = False
    for line, row in rows:
        if len(row) <= max(at):
            raise TraceError(f"{path}, line {line}: {len(row)} columns where the header has {len(header)}")
        key = tuple(str(row[c]).strip() for c in key_columns)
        if key not in times:
            times[key], values[key] = array("d"), array("d")  # an entity counts, even without a value
        time, value = row[time_column], row[value_column]
        if _absent(value) or _absent(time):
            continue
        try:
            number = float(value)
            if isinstance(time, (int, float)):
                moment = float(time)
            else:
                moment, iso = _moment(time)
                as_iso = as_iso or iso
        except (TypeError, ValueError, OverflowError) as error:
            raise TraceError(f"{path}, line {line}: time {time!r}, value {value!r}: {error}") from error
        if number >= 0.0:  # neither NaN; no process holds less than nothing
            times[key].append(moment)
            values[key].append(number)
    pods = layout[0] == "pod"
    largest = max((abs(max(t, key=abs)) for t in times.values() if len(t)), default=0.0)
    scale = 60.0 if pods and not as_iso else 1.0 if as_iso else _second_of(largest)
    limit = None
    if pods:
        # A share never exceeds the limit by half; per cent do.
        limit = 100.0 if max((max(v) for v in values.values() if len(v)), default=0.0) > 1.5 else 1.0
    series = []
    for key in sorted(times):
        t = np.frombuffer(times[key]) * scale
        y = np.frombuffer(values[key])
        order = np.argsort(t, kind="stable")
        keep = order[np.isfinite(t[order]) & np.isfinite(y[order])]
        entity = Entity(key[0], "container") if pods else Entity(key[0], key[1])
        metric = "memory_utilisation" if pods else "memory_bytes"
        series.append(Series(entity, metric, Column(t[keep]), Column(y[keep]), limit_bytes=limit))

    def to_file_time(seconds: float) -> float | str:
        if as_iso:
            return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat().replace("+00:00", "Z")
        return round(seconds / scale, 3)

    return Trace(tuple(series), to_file_time, tuple("/".join(key) for key in sorted(times)))


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ABSENT)


def _second_of(largest: float) -> float:
    """Seconds in one unit of a column of times: 1, or a fraction for times since 1970 in finer units.

    Seconds reach 1e11 in the year 5138; milliseconds were there in 1973.
    """
    for bound, second in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)):
        if largest >= bound:
            return second
    return 1.0


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
