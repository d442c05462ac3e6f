"""Is there a checkpoint fresh enough to restart a trainer from, and did the one just asked for arrive whole?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_PARTIAL = (".tmp", ".part", ".partial", ".incomplete", ".lock")


@dataclass(frozen=True)
class Checkpoint:
    """Newest file of a checkpoint path. `size_bytes` counts every file of a directory checkpoint."""

    path: Path
    modified_s: float
    size_bytes: int


def newest(path: str | Path) -> Checkpoint | None:
    """Newest complete-looking checkpoint at `path` (a file, or a directory of checkpoints); None when there is none."""
    path = Path(path)
    if path.is_file():
        return _of(path)
    if not path.is_dir():
        return None
    entries = [e for e in path.iterdir() if not e.name.startswith(".") and e.suffix not in _PARTIAL]
    found = [c for c in map(_of, entries) if c is not None]
    return max(found, key=lambda c: (c.modified_s, c.path.name), default=None)


def _of(path: Path) -> Checkpoint | None:
    try:
        if path.is_file():
            stat = path.stat()
            return Checkpoint(path, stat.st_mtime, stat.st_size) if stat.st_size else None
        files = [f for f in path.rglob("*") if f.is_file()]
        if any(f.suffix in _PARTIAL for f in files):
            return None  # still being written
        sizes = [(f.stat().st_mtime, f.stat().st_size) for f in files]
    except OSError:
        return None
    total = sum(size for _, size in sizes)
    return Checkpoint(path, max(m for m, _ in sizes), total) if total else None


def confirm(
    path: str | Path,
    since_s: float,
    *,
    timeout_s: float,
    settle_s: float = 2.0,
    usual_bytes: int | None = None,
) -> Checkpoint | None:
    """Wait for a checkpoint written after `since_s` whose size and time no longer change for `settle_s`.

    One much smaller than `usual_bytes` (under half) is not believed. None when none was confirmed in time.
    """
    deadline = time.monotonic() + timeout_s
    last: Checkpoint | None = None
    stable_since = time.monotonic()
    while time.monotonic() < deadline:
        found = newest(path)
        if found is None or found.modified_s <= since_s or found != last:
            last, stable_since = found, time.monotonic()
        elif time.monotonic() - stable_since >= settle_s and (
            usual_bytes is None or found.size_bytes >= usual_bytes / 2
        ):
            return found
        time.sleep(min(0.2, settle_s / 2))
    return None
