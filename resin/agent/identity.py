"""Whether the process of an entity still runs, told from another one that was given its pid."""

from __future__ import annotations

import os

from ..model import Entity
from .process import CLOCK_TICKS
from .procfs import Roots, boot_time_s, read_bytes

# Start times are boot time plus ticks; the boot time an agent keeps may differ from today's reading by what
# the clock was set since, so ages are compared with some room.
TOLERANCE_S = 5.0


def start_time_s(pid: int, roots: Roots | None = None) -> float | None:
    """When the process started, in seconds since the epoch; None when there is none."""
    roots = roots or Roots()
    stat = read_bytes(os.path.join(roots.proc, str(pid), "stat"))
    boot_s = boot_time_s(roots.proc)
    if not stat or boot_s is None:
        return None
    fields = stat[stat.rfind(b")") + 2 :].split()
    return boot_s + int(fields[19]) / CLOCK_TICKS if len(fields) > 19 else None


def is_running(entity: Entity, roots: Roots | None = None) -> bool:
    """Whether the very process that `entity` names is running on this host."""
    if entity.pid is None:
        return False
    started = start_time_s(entity.pid, roots)
    if started is None:
        return False
    return entity.start_time_s is None or abs(started - entity.start_time_s) < TOLERANCE_S
