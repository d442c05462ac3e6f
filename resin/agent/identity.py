"""Whether the process of an entity still runs, told from another one that was given its pid."""

from __future__ import annotations

import os

from ..model import Entity
from .process import CLOCK_TICKS, boot_times_s
from .procfs import Roots, boot_time_s, read_bytes

# Start times are boot time plus ticks. The kernel tells its boot time in whole seconds and takes it from the wall
# clock, which is corrected all the time.
TOLERANCE_S = 5.0


def started_after_boot_s(pid: int, roots: Roots | None = None) -> float | None:
    """Seconds from boot to the start of the process; None when there is none."""
    roots = roots or Roots()
    stat = read_bytes(os.path.join(roots.proc, str(pid), "stat"))
    fields = stat[stat.rfind(b")") + 2 :].split() if stat else []
    return int(fields[19]) / CLOCK_TICKS if len(fields) > 19 else None


def start_time_s(pid: int, roots: Roots | None = None) -> float | None:
    """When the process started, in seconds since the epoch by today's clock; None when there is none."""
    roots = roots or Roots()
    boot_s, after_s = boot_time_s(roots.proc), started_after_boot_s(pid, roots)
    return None if boot_s is None or after_s is None else boot_s + after_s


def is_running(entity: Entity, roots: Roots | None = None, *, state_dir: str | None = None) -> bool:
    """Whether the very process that `entity` names is running on this host.

    An entity keeps the start time by which it was first named although the clock was set since: the boot time
    that the agent below `state_dir` (or a sampler in this process) keeps counts beside today's.
    """
    if entity.pid is None:
        return False
    roots = roots or Roots()
    after_s = started_after_boot_s(entity.pid, roots)
    if after_s is None:
        return False
    if entity.start_time_s is None:
        return True
    return any(
        abs(boot_s + after_s - entity.start_time_s) < TOLERANCE_S for boot_s in boot_times_s(roots, state_dir)
    )
