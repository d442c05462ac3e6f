"""Control groups, v1 and v2: use, limits and out-of-memory events of the groups that processes run in."""

from __future__ import annotations

import os

from ..model import Entity
from .collectors import Tick
from .procfs import keyed_numbers, read_bytes, read_number

UNLIMITED = 1 << 60  # v1 shows "no limit" as a page-rounded number near 2^63


class CgroupCollector:
    """At slow ticks: memory of each cgroup with a reported process, and every process's memory limit.

    `limit_bytes` of a process is the smallest of its cgroup's and that group's parents' limits and of the host's
    memory. The entity of a cgroup is `cgroup:<path>`.
    """

    def __init__(self) -> None:
        self._limits: dict[str, float | None] = {}

    def collect(self, tick: Tick) -> None:
        """Report cgroups and add `limit_bytes` to processes."""
        for process in tick.processes:
            if not process.cgroup_known or tick.slow:
                process.cgroup = self._cgroup_dir(tick, process.pid)
                process.cgroup_known = True
                process.values["limit_bytes"] = -1.0
        if tick.slow:
            self._limits.clear()
            for directory in sorted({p.cgroup for p in tick.processes if p.cgroup}):
                values = read_cgroup(directory)
                path = os.path.relpath(directory, tick.roots.cgroup)
                tick.report(Entity(tick.host, f"cgroup:{path}"[:200]), values)
        host = tick.others.get(Entity(tick.host, "host"), {}).get("memory_total_bytes")
        for process in tick.processes:
            if process.values.get("limit_bytes") != -1.0:
                continue
            del process.values["limit_bytes"]
            limits = [host] if host else []
            if process.cgroup:
                if process.cgroup not in self._limits:
                    self._limits[process.cgroup] = limit_of(process.cgroup, tick.roots.cgroup)
                own = self._limits[process.cgroup]
                limits += [own] if own is not None else []
            if limits:
                process.values["limit_bytes"] = min(limits)

    def _cgroup_dir(self, tick: Tick, pid: int) -> str | None:
        data = read_bytes(f"{tick.roots.proc}/{pid}/cgroup")
        if not data:
            return None
        return memory_cgroup_dir(data.decode("utf-8", "replace"), tick.roots.cgroup)


def memory_cgroup_dir(text: str, mount: str) -> str | None:
    """Directory of the memory controller for the content `text` of a /proc/PID/cgroup file, v1 before v2."""
    return controller_dir(text, mount, "memory", "memory.usage_in_bytes", "memory.current")


def controller_dir(text: str, mount: str, controller: str, file_v1: str, file_v2: str) -> str | None:
    """Directory of a controller, known by a file in it, for the content `text` of a /proc/PID/cgroup file.

    Inside a container the path may lie outside of what is mounted; the mount's root then is the container.
    """
    version2 = None
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "?", "")
        names = controllers.split(",")
        if controller in names:
            for base in dict.fromkeys((f"{mount}/{controller}", f"{mount}/{controllers}")):
                found = _existing(base, path, file_v1)
                if found:
                    return found
        elif controllers == "":
            version2 = path
    if version2 is None:
        return None
    for base in (mount, f"{mount}/unified"):
        found = _existing(base, version2, file_v2)
        if found:
            return found
    return None


def _existing(base: str, path: str, file: str) -> str | None:
    for directory in (os.path.normpath(f"{base}/{path.lstrip('/')}"), base):
        inside = directory == base or directory.startswith(base + os.sep)
        if inside and os.path.exists(f"{directory}/{file}"):
            return directory
    return None


def read_cgroup(directory: str) -> dict[str, float]:
    """Memory numbers of one cgroup directory of either version; what a kernel does not offer is left out.

    `cgroup_bytes` is what cannot be reclaimed: use less the page cache of files (shared memory stays in) and, in
    version 2, less reclaimable slab. Files that a job reads fill the cache, and that is no growth of the job.
    `cgroup_usage_bytes` is the kernel's own number, which limits apply to after reclaim.
    """
    stat = keyed_numbers(read_bytes(f"{directory}/memory.stat") or b"")
    if os.path.exists(f"{directory}/memory.current"):
        return _read_v2(directory, stat)
    return _read_v1(directory, stat)


def _read_v2(directory: str, stat: dict[bytes, int]) -> dict[str, float]:
    events = keyed_numbers(read_bytes(f"{directory}/memory.events") or b"")
    usage = read_number(f"{directory}/memory.current")
    values = {
        "cgroup_bytes": _unreclaimable(
            usage, stat.get(b"file"), stat.get(b"shmem"), stat.get(b"slab_reclaimable")
        ),
        "cgroup_usage_bytes": usage,
        "cgroup_anon_bytes": stat.get(b"anon"),
        "cgroup_file_bytes": stat.get(b"file"),
        "cgroup_shmem_bytes": stat.get(b"shmem"),
        "cgroup_kernel_bytes": stat.get(b"kernel"),
        "cgroup_slab_bytes": stat.get(b"slab"),
        "cgroup_page_tables_bytes": stat.get(b"pagetables"),
        "cgroup_inactive_file_bytes": stat.get(b"inactive_file"),
        "cgroup_limit_bytes": read_number(f"{directory}/memory.max"),
        "cgroup_swap_bytes": read_number(f"{directory}/memory.swap.current"),
        "cgroup_high_events_total": events.get(b"high"),
        "cgroup_max_events_total": events.get(b"max"),
        "cgroup_oom_kills_total": events.get(b"oom_kill"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _read_v1(directory: str, stat: dict[bytes, int]) -> dict[str, float]:
    limit = read_number(f"{directory}/memory.limit_in_bytes")
    kills = keyed_numbers(read_bytes(f"{directory}/memory.oom_control") or b"").get(b"oom_kill")
    usage = read_number(f"{directory}/memory.usage_in_bytes")
    cache = stat.get(b"total_cache", stat.get(b"cache"))
    shmem = stat.get(b"total_shmem", stat.get(b"shmem"))
    values = {
        "cgroup_bytes": _unreclaimable(usage, cache, shmem, None),
        "cgroup_usage_bytes": usage,
        "cgroup_anon_bytes": stat.get(b"total_rss", stat.get(b"rss")),
        "cgroup_file_bytes": cache,
        "cgroup_shmem_bytes": shmem,
        "cgroup_kernel_bytes": read_number(f"{directory}/memory.kmem.usage_in_bytes"),
        "cgroup_inactive_file_bytes": stat.get(b"total_inactive_file", stat.get(b"inactive_file")),
        "cgroup_limit_bytes": limit if limit is not None and limit < UNLIMITED else None,
        "cgroup_swap_bytes": stat.get(b"total_swap", stat.get(b"swap")),
        "cgroup_max_events_total": read_number(f"{directory}/memory.failcnt"),
        "cgroup_oom_kills_total": kills,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _unreclaimable(
    usage: int | None, file: int | None, shmem: int | None, slab_reclaimable: int | None
) -> int | None:
    if usage is None or file is None:
        return None
    return max(0, usage - file + (shmem or 0) - (slab_reclaimable or 0))


def limit_of(directory: str, mount: str) -> float | None:
    """Smallest memory limit from `directory` up to the mount, None when there is none."""
    limits = []
    hierarchical = keyed_numbers(read_bytes(f"{directory}/memory.stat") or b"").get(
        b"hierarchical_memory_limit"
    )
    if hierarchical is not None and hierarchical < UNLIMITED:
        limits.append(hierarchical)
    at = directory
    while at.startswith(mount):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_number(f"{at}/{name}")
            if limit is not None and limit < UNLIMITED:
                limits.append(limit)
        if at == mount:
            break
        at = os.path.dirname(at)
    return float(min(limits)) if limits else None
