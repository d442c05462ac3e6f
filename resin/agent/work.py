"""Work done by a job (training steps, requests), so that growth can be told per step.

A job names its counter by environment variables at start: RESIN_STEPS_FILE (a file whose first word is the
number) or RESIN_METRICS_URL with RESIN_STEPS_METRIC (its own Prometheus endpoint on loopback). The agent's
configuration does the same for jobs that cannot be changed: `work_sources = ["train.py=/run/steps"]`.
"""

from __future__ import annotations

import os
import stat
import urllib.parse
from dataclasses import dataclass

from ..config import is_loopback
from .collectors import Tick
from .process import Process
from .procfs import read_bytes

TIMEOUT_S = 0.5
MAX_RESPONSE_BYTES = 4 << 20


@dataclass(frozen=True)
class WorkSource:
    """Where a job's counter is read: a file, or a metric (summed over its labels) of an HTTP endpoint."""

    location: str
    metric: str | None = None


class WorkCollector:
    """Adds `steps_total` to every process of a group whose job tells its work."""

    def __init__(self, configured: tuple[str, ...] = ()) -> None:
        self._configured = dict(_parse_configured(entry) for entry in configured)

    def collect(self, tick: Tick) -> None:
        """Read each group's source once: files every tick, HTTP endpoints at slow ticks."""
        counts: dict[WorkSource, float | None] = {}
        for process in tick.processes:
            source = self._source(tick, process.leader)
            if source is None or (source.metric and not tick.slow):
                continue
            if source not in counts:
                counts[source] = _scrape(source) if source.metric else _read_count(source.location)
            count = counts[source]
            if count is not None:
                process.values["steps_total"] = count

    def _source(self, tick: Tick, leader: Process) -> WorkSource | None:
        configured = self._configured.get(leader.component)
        if configured:
            return configured
        if not leader.work_known:
            leader.work_known = True
            leader.work_source = _from_environment(
                read_bytes(f"{tick.roots.proc}/{leader.pid}/environ") or b""
            )
        if not leader.work_source:
            return None
        location, _, metric = leader.work_source.partition("#")
        return WorkSource(location, metric or None)


def _parse_configured(entry: str) -> tuple[str, WorkSource]:
    component, _, location = entry.partition("=")
    address, _, metric = location.partition("#")
    if not component or not address or (address.startswith("http") and not metric):
        raise ValueError(
            f"work_sources entry {entry!r} is not COMPONENT=FILE or COMPONENT=http://HOST:PORT/metrics#METRIC"
        )
    return component, WorkSource(address, metric or None)


def _from_environment(environ: bytes) -> str | None:
    variables = dict(
        part.decode("utf-8", "replace").split("=", 1) for part in environ.split(b"\0") if part.startswith(b"RESIN_")
        and b"=" in part
    )  # fmt: skip
    path = variables.get("RESIN_STEPS_FILE")
    if path and os.path.isabs(path) and "#" not in path:
        return path
    url, metric = variables.get("RESIN_METRICS_URL"), variables.get("RESIN_STEPS_METRIC")
    # The agent may run as root: a job must not be able to send it to other machines.
    if url and metric and is_loopback(urllib.parse.urlsplit(url).hostname or ""):
        return f"{url.partition('#')[0]}#{metric}"
    return None


def _read_count(path: str) -> float | None:
    """First word of a regular file as a number. Anything else (a pipe, text) is no counter."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        words = os.read(fd, 128).split()
        count = float(words[0]) if words else None
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return count if count is not None and 0 <= count < 1e18 else None


def _scrape(source: WorkSource) -> float | None:
    import http.client
    import urllib.error
    import urllib.request

    if not source.location.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(source.location, timeout=TIMEOUT_S) as response:
            text = response.read(MAX_RESPONSE_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return sum_metric(text, source.metric or "")


def sum_metric(exposition: str, metric: str) -> float | None:
    """Sum over all label sets of `metric` in Prometheus text format; None when it is absent."""
    total = None
    for line in exposition.splitlines():
        if not line.startswith(metric) or line[len(metric) : len(metric) + 1] not in {" ", "{", "\t"}:
            continue
        rest = line[len(metric) :]
        value_text = rest[rest.rfind("}") + 1 :].split()
        try:
            total = (total or 0.0) + float(value_text[0])
        except (IndexError, ValueError):
            continue
    return total
