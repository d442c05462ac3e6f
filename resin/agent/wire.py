"""How samples travel from agents to the service: gzipped JSON batches with a session and a sequence number.

A batch: {"v": 1, "session": str, "seq": int, "host": str, "samples": [[component, pid|null, start_s|null,
group|null, time_s, {metric: number}], ...]}. (session, seq) lets the service recognise a batch that it has
already stored, so that sending again after a lost answer stores nothing twice.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..model import Entity, Sample

VERSION = 1
MAX_METRICS = 64
MAX_SAMPLES = 100_000
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_SESSION = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_MAX_TIME_S = 1e11  # year 5138: whatever is beyond is not seconds


class WireError(ValueError):
    """A batch that cannot be read: what is wrong and where."""


@dataclass(frozen=True)
class Batch:
    """What an agent saw in one tick (or several, after a pause)."""

    session: str
    seq: int
    host: str
    samples: tuple[Sample, ...]


def encode(session: str, seq: int, host: str, samples: Sequence[Sample]) -> bytes:
    """Gzipped batch. All samples must be of `host`."""
    rows = [
        (
            s.entity.component,
            s.entity.pid,
            s.entity.start_time_s,
            s.entity.group,
            round(s.time_s, 3),
            s.values,
        )
        for s in samples
    ]
    text = json.dumps(
        {"v": VERSION, "session": session, "seq": seq, "host": host, "samples": rows}, separators=(",", ":")
    )
    compressor = zlib.compressobj(1, wbits=31)
    return compressor.compress(text.encode()) + compressor.flush()


def inflate(body: bytes, max_bytes: int) -> bytes:
    """Gunzipped body; raises WireError when it is no gzip or would exceed `max_bytes`."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        data = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise WireError(f"the body is not valid gzip: {error}") from error
    if len(data) > max_bytes:
        raise WireError(f"the body inflates to more than {max_bytes} bytes; send smaller batches")
    if not decompressor.eof:
        raise WireError("the gzip body is cut off")
    return data


def decode(data: bytes, *, max_label_length: int = 256) -> Batch:
    """Batch from its JSON text; every field is checked, WireError names the first that is wrong."""
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise WireError(f"the batch is a {type(content).__name__}, expected an object")
    if content.get("v") != VERSION:
        raise WireError(
            f"batch version {content.get('v')!r} is not {VERSION}; upgrade the agent or the service"
        )
    session, seq, rows = content.get("session"), content.get("seq"), content.get("samples")
    if not isinstance(session, str) or not _SESSION.match(session):
        raise WireError("session must be 1 to 64 letters, digits, '_', '.', '-'")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 1 << 53:
        raise WireError("seq must be a whole number from 0 to 2^53")
    host = _label(content.get("host"), "host", max_label_length)
    if not isinstance(rows, list) or len(rows) > MAX_SAMPLES:
        raise WireError(f"samples must be a list of at most {MAX_SAMPLES} rows")
    samples = tuple(_sample(row, index, host, max_label_length) for index, row in enumerate(rows))
    return Batch(session, seq, host, samples)


def _sample(row: object, index: int, host: str, max_label_length: int) -> Sample:
    if not isinstance(row, list) or len(row) != 6:
        raise WireError(f"samples[{index}] must be [component, pid, start_s, group, time_s, values]")
    component, pid, start_s, group, time_s, values = row
    where = f"samples[{index}]"
    _label(component, f"{where}.component", max_label_length)
    if group is not None:
        _label(group, f"{where}.group", 2 * max_label_length)
    if pid is not None and (not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31):
        raise WireError(f"{where}.pid is {pid!r:.60}, expected null or a whole number from 1 to 2^31")
    if start_s is not None:
        start_s = _number(start_s, f"{where}.start_s", _MAX_TIME_S)
    time_number = _number(time_s, f"{where}.time_s", _MAX_TIME_S)
    if time_number < 0 or (start_s or 0) < 0:
        raise WireError(f"{where} has a negative time")
    if not isinstance(values, dict) or len(values) > MAX_METRICS:
        raise WireError(f"{where}.values must be an object of at most {MAX_METRICS} metrics")
    checked = {}
    for name, value in values.items():
        if not _METRIC.match(name):
            raise WireError(f"{where} has the metric name {name!r:.80}; use lower case letters, digits and _")
        checked[name] = _number(value, f"{where}.values.{name}", 1e300)
    return Sample(Entity(host, component, pid, start_s, group), time_number, checked)


def _label(value: object, where: str, max_length: int) -> str:
    if not isinstance(value, str) or not value or len(value) > max_length or not value.isprintable():
        raise WireError(f"{where} must be 1 to {max_length} printable characters, got {value!r:.60}")
    return value


def _number(value: object, where: str, largest: float) -> float:
    # Compared before converting: float() of a huge whole number raises OverflowError.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -largest <= value <= largest:
        raise WireError(f"{where} is {value!r:.60}, expected a number of at most {largest:.0e}")
    number = float(value)
    if not math.isfinite(number):
        raise WireError(f"{where} is {value!r:.60}, expected a finite number")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
