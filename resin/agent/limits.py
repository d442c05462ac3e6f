"""How many descriptors and threads a process may have: what the kernel would refuse next."""

from __future__ import annotations

import os
import re

from .cgroup import controller_dir
from .collectors import Tick
from .process import Limits
from .procfs import read_bytes, read_number

_FILES = re.compile(rb"^Max open files +(\d+)", re.MULTILINE)
_TASKS = re.compile(rb"^Max processes +(\d+)", re.MULTILINE)


class LimitCollector:
    """`fds_limit` and `threads_limit` of processes, at slow ticks.

    `fds_limit` is RLIMIT_NOFILE. `threads_limit` is the number of threads at which this process meets the first
    of: RLIMIT_NPROC of its user (root is exempt), pids.max of its cgroup or of one above, the kernel's threads-max
    and pid_max. These are shared, so what others use now is taken off; of the user's other processes those that
    are reported. Both are absent where there is no limit or it may not be read. A process that holds as many as
    when it was last looked at comes no nearer to a limit: its own limits are not read again.
    """

    def collect(self, tick: Tick) -> None:
        """Add limits to processes at slow ticks, and when a process is seen for the first time."""
        due = [p for p in tick.processes if tick.slow or p.limits is None]
        if not due:
            return
        for process in due:
            held = (process.values.get("fds"), process.values["threads"])
            if process.limits is None or held != process.limits.held:
                process.limits = _read(tick, process.pid, held)
        host_free = _host_free(tick)
        user_threads: dict[int, float] = {}
        for process in tick.processes:
            user = process.limits.user if process.limits else None
            if user is not None:
                user_threads[user] = user_threads.get(user, 0.0) + process.values["threads"]
        cgroup_free: dict[str, float | None] = {}
        for process in due:
            limits = process.limits
            assert limits is not None
            if limits.files is not None:
                process.values["fds_limit"] = limits.files
            rooms = [host_free]
            if limits.cgroup is not None:
                if limits.cgroup not in cgroup_free:
                    cgroup_free[limits.cgroup] = _cgroup_free(limits.cgroup, tick.roots.cgroup)
                rooms.append(cgroup_free[limits.cgroup])
            if limits.tasks is not None and limits.user:
                rooms.append(max(limits.tasks - user_threads[limits.user], 0.0))
            known = [room for room in rooms if room is not None]
            if known:
                process.values["threads_limit"] = process.values["threads"] + min(known)


def _read(tick: Tick, pid: int, held: tuple[float | None, float]) -> Limits:
    path = f"{tick.roots.proc}/{pid}"
    data = read_bytes(f"{path}/limits") or b""
    files, tasks = _FILES.search(data), _TASKS.search(data)
    try:
        user: int | None = os.stat(path).st_uid
    except OSError:
        user = None
    text = (read_bytes(f"{path}/cgroup") or b"").decode("utf-8", "replace")
    return Limits(
        held,
        float(files.group(1)) if files else None,
        float(tasks.group(1)) if tasks else None,
        user,
        controller_dir(text, tick.roots.cgroup, "pids", "pids.current", "pids.current"),
    )


def _host_free(tick: Tick) -> float | None:
    """Threads that the kernel would still start, whoever asks."""
    used = re.search(rb"\d+/(\d+)", read_bytes(f"{tick.roots.proc}/loadavg") or b"")  # running/all tasks
    limits = [read_number(f"{tick.roots.proc}/sys/kernel/{name}") for name in ("threads-max", "pid_max")]
    known = [limit for limit in limits if limit is not None]
    return max(min(known) - float(used.group(1)), 0.0) if used and known else None


def _cgroup_free(directory: str, mount: str) -> float | None:
    """Tasks that a cgroup and those above it would still admit; None without a limit."""
    rooms = []
    while directory.startswith(mount):
        most, now = read_number(f"{directory}/pids.max"), read_number(f"{directory}/pids.current")
        if most is not None and now is not None:
            rooms.append(float(max(most - now, 0)))
        if directory == mount:
            break
        directory = os.path.dirname(directory)
    return min(rooms) if rooms else None
