"""What can be learnt of a process without touching it: alive, language, version, what we may read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_PYTHON = re.compile(r"(?:^|/)(?:lib)?python(3)\.(\d+)[a-z]*(?:\.so[\d.]*)?$")


@dataclass(frozen=True)
class Target:
    """A running process. `python` is (major, minor) where it is a Python program."""

    pid: int
    executable: str
    command: tuple[str, ...]
    python: tuple[int, int] | None
    readable: bool  # /proc/PID/mem opens: same user or CAP_SYS_PTRACE, and no Yama in the way


class Gone(RuntimeError):
    """The process does not exist (any more), or belongs to somebody else."""


def inspect(pid: int) -> Target:
    """Read /proc of `pid`. Raises Gone when there is no such process or it may not be looked at."""
    proc = Path(f"/proc/{pid}")
    try:
        command = tuple(os.fsdecode(part) for part in (proc / "cmdline").read_bytes().split(b"\0") if part)
    except OSError as error:
        raise Gone(f"process {pid}: {error.strerror}; is it still running on this host?") from error
    try:
        executable = os.readlink(proc / "exe")
    except OSError:
        executable = ""
    return Target(pid, executable, command, _python_version(proc, executable), _readable(proc))


def _python_version(proc: Path, executable: str) -> tuple[int, int] | None:
    found = _PYTHON.search(executable)
    if found is None:
        try:
            with open(proc / "maps", encoding="utf-8", errors="replace") as file:
                for line in file:
                    found = _PYTHON.search(line.rstrip())
                    if found is not None:
                        break
        except OSError:
            return None
    return None if found is None else (int(found.group(1)), int(found.group(2)))


def _readable(proc: Path) -> bool:
    try:
        with open(proc / "mem", "rb"):
            return True
    except OSError:
        return False


def resident_bytes(pid: int) -> int | None:
    """Resident set of the process, None when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read()
    except OSError:
        return False
    return content[content.rfind(b")") + 2 : content.rfind(b")") + 3] not in (b"Z", b"X")
