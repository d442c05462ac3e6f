"""The audit trail: every mitigation that was tried, as JSON lines; cool-downs and budgets are read from it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model import Action

MOST_A_DAY = 2  # of one action on one finding: what did not help twice will not help
_TAIL_BYTES = 4 * 1048576  # a day of actions is far less


def record(path: str | Path, action: Action) -> None:
    """Append one action and flush it to disk. The file is created readable by its owner only."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(action), separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(path: str | Path) -> Iterator[dict[str, Any]]:
    """Recorded actions, oldest first, of the last part of the file. Torn lines are skipped."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines[1:] if start else lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "time_s" in found and "name" in found:
            yield found


def refusal(
    path: str | Path, finding_id: str, name: str, now_s: float, *, cooldown_s: float, max_per_hour: int
) -> str | None:
    """Why the cool-down or the budget forbids this action now; None when they do not.

    Notifications count for neither: telling somebody harms nothing.
    """
    if name == "notify":
        return None
    recent = taken = 0
    for entry in entries(path):
        if not entry.get("applied") or entry["name"] == "notify":
            continue
        age = now_s - float(entry["time_s"])
        if 0 <= age < 3600.0:
            recent += 1
        if entry.get("finding_id") == finding_id and entry["name"] == name:
            if 0 <= age < cooldown_s:
                return f"done {age:.0f} s ago; the cool-down is {cooldown_s:.0f} s (mitigate_cooldown_s)"
            taken += 0 <= age < 86400.0
    if taken >= MOST_A_DAY:
        return f"done {taken} times in a day and the finding still stands: a heavier action is due"
    if recent >= max_per_hour:
        return f"{recent} actions in the last hour; the budget is {max_per_hour} (mitigate_max_per_hour)"
    return None
