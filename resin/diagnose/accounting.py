"""What a process holds that is not heap: descriptors by kind, threads, children, segments in /dev/shm."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_KIND = re.compile(r"^(socket|pipe|anon_inode):\[?([^\]]*)")


@dataclass(frozen=True)
class Holdings:
    """Counts at one moment; None where they may not be read."""

    fds: dict[str, int] | None  # by kind: socket, pipe, anon_inode:..., or the path of the file
    threads: int | None
    children: int
    dev_shm_bytes: int
    dev_shm_files: int


def holdings(pid: int) -> Holdings:
    """Read them of a running process; a process that is gone has none."""
    return Holdings(_fds(pid), _threads(pid), _children(pid), *_dev_shm())


def _fds(pid: int) -> dict[str, int] | None:
    counts: dict[str, int] = {}
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        match = _KIND.match(target)
        if match is None:
            kind = target
        elif match.group(1) == "anon_inode":
            kind = f"anon_inode:{match.group(2)}"
        else:
            kind = match.group(1)
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _threads(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None


def _children(pid: int) -> int:
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += len((task / "children").read_text().split())
    except OSError:
        pass
    return total


def _dev_shm() -> tuple[int, int]:
    size = files = 0
    try:
        with os.scandir("/dev/shm") as entries:
            for entry in entries:
                try:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    files += 1
                except OSError:
                    continue
    except OSError:
        pass
    return size, files


def difference(before: Holdings, after: Holdings) -> dict[str, float]:
    """What grew, by name: fds (total and by kind), threads, children, dev_shm_bytes, dev_shm_files."""
    grown: dict[str, float] = {
        "children": after.children - before.children,
        "dev_shm_bytes": after.dev_shm_bytes - before.dev_shm_bytes,
        "dev_shm_files": after.dev_shm_files - before.dev_shm_files,
    }
    if before.threads is not None and after.threads is not None:
        grown["threads"] = after.threads - before.threads
    if before.fds is not None and after.fds is not None:
        grown["fds"] = sum(after.fds.values()) - sum(before.fds.values())
        for kind, count in after.fds.items():
            grown[f"fds of {kind}"] = count - before.fds.get(kind, 0)
    return {name: value for name, value in grown.items() if value > 0}
