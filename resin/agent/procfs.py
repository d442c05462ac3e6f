"""Reading /proc and cgroup files at little cost, from the real roots or from a recorded tree."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Roots:
    """Where the kernel's file systems are mounted. Tests point these at recorded trees."""

    proc: str = "/proc"
    cgroup: str = "/sys/fs/cgroup"
    shm: str = "/dev/shm"


def read_bytes(path: str) -> bytes | None:
    """Content of a small kernel file; None when it is absent, unreadable or its process has gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, READ_BYTES):  # kernel files may hand out less than asked before their end
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def read_number(path: str) -> int | None:
    """The whole number that a kernel file holds; None when there is no such file or it says something else."""
    data = read_bytes(path)
    text = data.strip() if data else b""
    return int(text) if text.isdigit() else None


class HeldFile:
    """A kernel file kept open and read again from the start: saves open, path walk and close per tick.

    A held /proc/PID file belongs to that very process: once it is gone, reading fails (ESRCH) even if the pid
    was given to another process meanwhile. `read` then returns None.
    """

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes | None:
        """First 64 KiB of the file as it is now, or None."""
        if self.fd < 0:
            return None
        try:
            return os.pread(self.fd, READ_BYTES, 0)
        except OSError:
            return None

    def close(self) -> None:
        """Give the descriptor back; `read` returns None from then on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns how many files may be held open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    return max(0, soft - 128)


def boot_time_s(proc: str) -> float | None:
    """Seconds since the epoch when this kernel booted (`btime` of /proc/stat)."""
    data = read_bytes(os.path.join(proc, "stat"))
    if data is None:
        return None
    at = data.find(b"\nbtime ")
    return float(data[at + 7 :].split(None, 1)[0]) if at >= 0 else None


def keyed_kilobytes(data: bytes) -> dict[bytes, int]:
    """`Name:  123 kB` lines as bytes by name (meminfo, smaps_rollup)."""
    found: dict[bytes, int] = {}
    for line in data.splitlines():
        name, _, rest = line.partition(b":")
        fields = rest.split()
        if len(fields) == 2 and fields[1] == b"kB" and fields[0].isdigit():
            found[name] = int(fields[0]) * 1024
    return found


def keyed_numbers(data: bytes) -> dict[bytes, int]:
    """`name 123` lines as numbers by name (memory.stat, memory.events)."""
    found: dict[bytes, int] = {}
    for line in data.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[1].isdigit():
            found[fields[0]] = int(fields[1])
    return found
