"""What is read of each process. A collector is one class with one method; `default_collectors` lists them.

To add one: write a class with `collect(tick)` that puts numbers into `process.values` (or calls `tick.report`
for an entity of its own) and add it to the list. Put in only what was read: absent is absent, never zero.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..config import Config
from ..model import Entity
from .process import Process, ProcessTable
from .procfs import Roots, keyed_kilobytes, read_bytes


@dataclass(slots=True)
class Tick:
    """One pass over the host. Collectors read `processes` and add to their `values`, or `report` entities."""

    time_s: float
    slow: bool  # whether costly collectors are due as well
    host: str
    roots: Roots
    table: ProcessTable
    processes: list[Process]
    others: dict[Entity, dict[str, float]] = field(default_factory=dict)

    def report(self, entity: Entity, values: Mapping[str, float]) -> None:
        """Add values of an entity that is no process (host, kernel, cgroup, group)."""
        if values:
            self.others.setdefault(entity, {}).update(values)


class Collector(Protocol):
    """Reads one kind of number during a tick."""

    def collect(self, tick: Tick) -> None:
        """Add what was read to the tick."""
        ...


_STATUS = re.compile(
    rb"\nVmRSS:\s+(\d+) kB\nRssAnon:\s+(\d+) kB\nRssFile:\s+(\d+) kB\nRssShmem:\s+(\d+) kB\n"
    rb"(?:.*\nVmSwap:\s+(\d+) kB)?.*\nThreads:\s+(\d+)",
    re.DOTALL,
)


_SMALL_EVERY = 8  # ticks between looks at a process that was too small to be reported


class StatusCollector:
    """RSS with its anon/file/shmem split, swap and threads, every tick, from /proc/PID/status.

    Runs first: it drops processes that have ended, and leaves `values` empty for those not (yet) reported. Of the
    small ones, which most processes of a host are, an eighth is looked at in a tick.
    """

    def __init__(self, min_bytes: int, max_processes: int) -> None:
        self.min_bytes = min_bytes
        self.max_processes = max_processes
        self._ticks = 0

    def collect(self, tick: Tick) -> None:
        """Fill `values` of every reported process; `tick.processes` is narrowed to these."""
        reported = []
        self._ticks += 1
        for process in tick.processes:
            if not process.reported and process.visits > 1 and (process.pid + self._ticks) % _SMALL_EVERY:
                continue
            data = tick.table.read_status(process)
            if not data:
                tick.table.drop(process)
                continue
            comm = (
                data[6 : data.index(b"\n")].decode("utf-8", "replace")
                if data[:6] == b"Name:\t"
                else process.comm
            )
            # The second look catches a child that was seen between fork and exec under an unchanged name.
            if comm != process.comm or process.visits == 1:
                tick.table.recheck(process, comm)
            process.visits += 1
            process.values = {}
            match = _STATUS.search(data)
            if match is None:  # a zombie has no memory left
                continue
            rss, anon, file, shmem, swap, threads = match.groups()
            rss_bytes = int(rss) * 1024
            if not process.reported and rss_bytes < self.min_bytes:
                continue
            process.reported = True
            process.values = {
                "rss_bytes": rss_bytes,
                "anon_bytes": int(anon) * 1024,
                "file_bytes": int(file) * 1024,
                "shmem_bytes": int(shmem) * 1024,
                "threads": int(threads),
            }
            if swap and swap != b"0":
                process.values["swap_bytes"] = int(swap) * 1024
            reported.append(process)
        if len(reported) > self.max_processes:
            reported.sort(key=lambda p: p.values["rss_bytes"], reverse=True)
            for process in reported[self.max_processes :]:
                process.values = {}
            tick.report(Entity(tick.host, "agent"), {"elided_processes": len(reported) - self.max_processes})
            del reported[self.max_processes :]
        tick.processes = reported


class DescriptorCollector:
    """Open file descriptors. Since Linux 6.2 the size of /proc/PID/fd is their number; before, they are listed."""

    def __init__(self) -> None:
        self._size_counts: bool | None = None

    def collect(self, tick: Tick) -> None:
        """Add `fds` where permitted; listing, the slow way, only happens at slow ticks."""
        if self._size_counts is None:
            self._size_counts = os.stat(f"{tick.roots.proc}/self/fd").st_size > 0
        if not self._size_counts and not tick.slow:
            return
        for process in tick.processes:
            path = f"{tick.roots.proc}/{process.pid}/fd"
            try:
                if self._size_counts:
                    # The size shows even where listing would be denied; the directory's owner tells whether
                    # the process is dumpable, which does not matter for a count.
                    process.values["fds"] = os.stat(path).st_size
                else:
                    process.values["fds"] = len(os.listdir(path))
            except OSError:
                continue


class SmapsCollector:
    """USS and PSS from smaps_rollup: sees copy-on-write growth that RSS cannot show.

    The kernel walks the page tables for it, so the cost grows with mapped memory. Each process is read every
    `period_s`, workers first, and reading stops for this tick once `budget` (share of one core, over the time
    since the last tick) is used up; the rest stays due and comes first next time.
    """

    RETRY_S = 600.0  # for processes that may not be read

    def __init__(self, period_s: float, budget: float) -> None:
        self.period_s = period_s
        self.budget = budget
        self._last_s: float | None = None

    def collect(self, tick: Tick) -> None:
        """Add `uss_bytes` and `pss_bytes` of the processes that are due."""
        now = time.monotonic()
        elapsed = self.period_s if self._last_s is None else now - self._last_s
        self._last_s = now
        allowance = max(self.budget * elapsed, 0.001)
        due = [p for p in tick.processes if p.smaps_due_s <= now]
        due.sort(key=lambda p: (p.role is None, p.smaps_due_s))
        started = time.process_time()
        for process in due:
            data = read_bytes(f"{tick.roots.proc}/{process.pid}/smaps_rollup")
            if not data:
                process.smaps_due_s = now + self.RETRY_S
                continue
            sizes = keyed_kilobytes(data)
            private = [sizes.get(n) for n in (b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb")]
            if private[0] is not None and private[1] is not None:
                process.smaps["uss_bytes"] = private[0] + private[1] + (private[2] or 0)
            if b"Pss" in sizes:
                process.smaps["pss_bytes"] = sizes[b"Pss"]
            process.values.update(process.smaps)
            process.smaps_due_s = now + self.period_s * 0.99
            if time.process_time() - started > allowance:
                break


class GroupCollector:
    """Sums over a job with its children and workers: many small helpers can leak where no process grows.

    Reported under the component `<leader>:job` for groups that have, or once had, more than one process.
    `anon_bytes` counts pages shared by forked workers once per worker; `pss_bytes` counts them once.
    """

    def __init__(self) -> None:
        self._plural: set[str] = set()

    def collect(self, tick: Tick) -> None:
        """Report the sum of each plural group; USS and PSS when a member was read in this tick and all were once."""
        groups: dict[str, list[Process]] = {}
        for process in tick.processes:
            groups.setdefault(process.entity.group or "", []).append(process)
        self._plural &= groups.keys()
        for group, members in groups.items():
            if len(members) > 1:
                self._plural.add(group)
            elif group not in self._plural:
                continue
            leader = members[0].leader
            values: dict[str, float] = {"children": len(members) - 1}
            for name in ("pss_bytes", "uss_bytes"):
                known = [m.smaps[name] for m in members if name in m.smaps]
                if len(known) == len(members) and any(name in m.values for m in members):
                    values[name] = sum(known)
            for name in ("anon_bytes", "shmem_bytes", "fds", "threads", "gpu_bytes"):
                read = [m.values[name] for m in members if name in m.values]
                if len(read) == len(members):
                    values[name] = max(read) if name == "shmem_bytes" else sum(read)
            room = members[0].values.get("threads_limit", 0.0) - members[0].values["threads"]
            if room > 0:  # a child is a thread at least
                values["children_limit"] = values["children"] + room
                if "threads" in values:
                    values["threads_limit"] = values["threads"] + room
            for name in ("limit_bytes", "steps_total"):
                if name in members[0].values:
                    values[name] = members[0].values[name]
            entity = leader.entity
            job = Entity(tick.host, f"{entity.component}:job", entity.pid, entity.start_time_s, group)
            tick.report(job, values)


def default_collectors(config: Config) -> list[Collector]:
    """Every collector, in the order in which they run."""
    from .cgroup import CgroupCollector
    from .gpu import GpuCollector
    from .host import KernelCollector, SharedMemoryCollector
    from .limits import LimitCollector
    from .work import WorkCollector

    return [
        StatusCollector(config.min_process_bytes, config.max_processes),
        DescriptorCollector(),
        LimitCollector(),
        SmapsCollector(config.slow_tick_s, config.cpu_budget / 3),
        KernelCollector(),
        SharedMemoryCollector(),
        CgroupCollector(),
        GpuCollector(),
        WorkCollector(config.work_sources),
        GroupCollector(),
    ]
