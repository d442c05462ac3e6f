"""Which lines run while the process grows: py-spy from outside, one stack at a time beside the resident set."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .source import is_library
from .target import resident_bytes


@dataclass
class StackGrowth:
    """Resident growth by the innermost user line that was running. `reason` says why there is none."""

    samples: int = 0
    grown_bytes: int = 0
    by_line: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # bytes, active threads only
    seen: Counter[tuple[str, int, str]] = field(
        default_factory=Counter
    )  # samples in which a line was on a stack
    files: tuple[str, ...] = ()  # user files met on stacks, most frequent first
    pause_ms: float = 0.0
    reason: str | None = None


def py_spy() -> str | None:
    """Path of py-spy: beside our interpreter or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def sample(pid: int, seconds: float = 5.0, *, rate_hz: float = 20.0) -> StackGrowth:
    """Sample stacks without pausing the target (`--nonblocking`) and attribute growth to running lines.

    A stack read from a running process may be torn; py-spy then reports an error and the sample is skipped.
    """
    found = StackGrowth()
    tool = py_spy()
    if tool is None:
        found.reason = "py-spy is not installed"
        return found
    files: Counter[str] = Counter()
    last = resident_bytes(pid)
    if last is None:
        found.reason = "the process is gone"
        return found
    end = time.monotonic() + seconds
    failures = 0
    while time.monotonic() < end:
        due = time.monotonic() + 1.0 / rate_hz
        threads = _dump(tool, pid)
        now = resident_bytes(pid)
        if now is None:
            found.reason = "the process ended"
            break
        if threads is None:
            failures += 1
            if failures >= 5 and found.samples == 0:
                found.reason = "py-spy cannot read this process (not Python, or ptrace is not permitted)"
                break
        else:
            found.samples += 1
            grown = max(0, now - last)
            found.grown_bytes += grown
            _account(found, files, threads, grown)
        last = now
        time.sleep(max(0.0, due - time.monotonic()))
    found.files = tuple(path for path, _ in files.most_common())
    return found


def _account(found: StackGrowth, files: Counter[str], threads: list[dict], grown: int) -> None:
    for thread in threads:
        places = [
            (frame["filename"], int(frame["line"]), frame["name"])
            for frame in thread.get("frames", ())
            if frame.get("line") and not is_library(frame["filename"])
        ]
        for place in dict.fromkeys(places):
            found.seen[place] += 1
            files[place[0]] += 1
        if places and grown and thread.get("active"):
            found.by_line[places[0]] += grown


def _dump(tool: str, pid: int) -> list[dict] | None:
    try:
        done = subprocess.run(
            [tool, "dump", "--json", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            timeout=5.0,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, OSError):
        return None
