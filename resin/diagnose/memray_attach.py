"""memray attach: exact, but it injects through a debugger; only when the operator allows it."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..model import Suspect
from .source import is_library
from .target import Target


def usable(target: Target) -> str | None:
    """None when memray can be attached, else why not."""
    if target.python is None:
        return "not a Python process"
    if _tool() is None:
        return "memray is not installed beside resin"
    if shutil.which("gdb") is None and shutil.which("lldb") is None and target.python < (3, 14):
        return "neither gdb nor lldb is installed"
    if not target.readable:
        return "no ptrace access to the target"
    if not _importable(target):
        return "memray is not importable in the target"
    return None


def _tool() -> str | None:
    beside = Path(sys.executable).with_name("memray")
    return str(beside) if beside.exists() else shutil.which("memray")


def _importable(target: Target) -> bool:
    """memray lies on the PYTHONPATH of the target, beside its executable, or beside a library it has mapped."""
    roots = set()
    try:
        with open(f"/proc/{target.pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                path = line.rstrip().partition("/")[2]
                if "site-packages/" in path:
                    roots.add("/" + path.split("site-packages/")[0] + "site-packages")
    except OSError:
        return False
    if target.command and target.python:
        prefix = Path(target.command[0]).parent.parent
        roots.add(str(prefix / "lib" / f"python{target.python[0]}.{target.python[1]}" / "site-packages"))
    try:
        with open(f"/proc/{target.pid}/environ", encoding="utf-8", errors="replace") as file:
            given = [v for v in file.read().split("\0") if v.startswith("PYTHONPATH=")]
    except OSError:
        given = []
    roots.update(path for value in given for path in value.partition("=")[2].split(":") if path)
    return any((Path(root) / "memray").is_dir() for root in roots)


def run(pid: int, seconds: float = 5.0) -> tuple[list[Suspect], float, str]:
    """(suspects, pause in ms, outcome). Allocations made and not freed while attached, by innermost user line."""
    tool = _tool()
    assert tool is not None
    with tempfile.TemporaryDirectory(prefix="resin-") as directory:
        capture = Path(directory) / "capture.bin"
        started = time.monotonic()
        try:
            attached = subprocess.run(
                [tool, "attach", "--duration", str(int(max(1, seconds))), "-o", str(capture), str(pid)],
                capture_output=True,
                text=True,
                timeout=30.0,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [], 0.0, "memray attach did not come back within 30 s"
        pause_ms = 1000.0 * (time.monotonic() - started)
        if attached.returncode:
            return [], pause_ms, f"memray attach failed: {attached.stderr.strip().splitlines()[-1:]}"
        time.sleep(seconds + 1.0)
        table = Path(directory) / "leaks.csv"
        made = subprocess.run(
            [tool, "transform", "csv", "--leaks", "-f", "-o", str(table), str(capture)],
            capture_output=True,
            text=True,
            timeout=60.0,
            check=False,
        )
        if made.returncode or not table.exists():
            return [], pause_ms, f"memray transform failed: {made.stderr.strip()[-200:]}"
        return _suspects(table.read_text()), pause_ms, "memray attach: done"


def _suspects(text: str) -> list[Suspect]:
    """Suspects from memray's CSV: columns allocator, num_allocations, size, tid, thread_name, stack_trace."""
    sizes: dict[tuple[str, int, str], int] = {}
    total = 0
    for row in csv.DictReader(io.StringIO(text)):
        size = int(row.get("size") or 0)
        total += size
        frames = []
        for frame in (row.get("stack_trace") or "").split("|"):
            parts = frame.split(";")
            if len(parts) == 3 and parts[2].isdigit():
                frames.append((parts[1], int(parts[2]), parts[0]))
        place = next((f for f in frames if not is_library(f[0])), None)
        if place is not None:
            sizes[place] = sizes.get(place, 0) + size
    ordered = sorted(sizes.items(), key=lambda item: -item[1])[:10]
    return [
        Suspect(place[0], place[1], place[2], float(size), size / total if total else None, "memray")
        for place, size in ordered
    ]
