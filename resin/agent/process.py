"""The table of running processes: identity, parentage, role and group, kept between ticks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ..model import Entity
from .procfs import HeldFile, Roots, boot_time_s, read_bytes
from .roles import BOUNDARIES, program_name, worker_role

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_BOOT_FILE = "boot.json"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may have at most, as last read; None where there is no limit or it is not known."""

    held: tuple[float | None, float]  # its descriptors and threads then
    files: float | None  # RLIMIT_NOFILE
    tasks: float | None  # RLIMIT_NPROC, shared by all of its user
    user: int | None
    cgroup: str | None  # directory of the pids controller


@dataclass(eq=False, slots=True)
class Process:
    """A living process. Mutable: the table updates `values` and the collectors' bookkeeping each tick."""

    pid: int
    ppid: int
    start_ticks: int
    comm: str
    argv: list[str]
    component: str
    role: str | None  # None for a program of its own, else "worker", "data-worker", ...
    root: Process | None  # first process of the group; None for itself
    entity: Entity
    status: HeldFile | None
    values: dict[str, float] = field(default_factory=dict)
    reported: bool = False  # passed the size from which processes are reported, at least once
    visits: int = 0
    smaps_due_s: float = 0.0
    smaps: dict[str, float] = field(default_factory=dict)  # uss_bytes, pss_bytes as last read
    limits: Limits | None = None
    cgroup: str | None = None
    cgroup_known: bool = False
    work_source: str | None = None
    work_known: bool = False

    @property
    def leader(self) -> Process:
        """First process of the group that this one belongs to."""
        return self.root or self


class ProcessTable:
    """Processes below `roots.proc`, refreshed once a tick.

    `only_below` limits the table to the descendants of one pid (that process included); a descendant stays in
    the table when its parents end. `held_files` bounds how many status files are kept open.
    """

    def __init__(
        self, roots: Roots, host: str, *, boot_s: float, held_files: int = 0, only_below: int | None = None
    ) -> None:
        self.roots = roots
        self.host = host
        self.boot_s = boot_s
        self.held_files = held_files
        self.only_below = only_below
        self.processes: dict[int, Process] = {}
        self.on_gone: list[Callable[[Process], None]] = []
        self._ignored: dict[int, int] = {}  # pid -> start ticks of kernel threads and processes of others
        self._held = 0
        self._refreshes = 0

    def refresh(self) -> list[Process]:
        """Find new processes and drop those that ended; returns the living ones."""
        try:
            pids = [int(name) for name in os.listdir(self.roots.proc) if name.isdigit()]
        except OSError as error:
            raise OSError(f"cannot list {self.roots.proc}: {error}; is /proc mounted here?") from error
        self._refreshes += 1
        if self._refreshes % 64 == 0:
            self._ignored.clear()  # the pid of a kernel thread may belong to a process by now
        alive = set(pids)
        for pid in [p for p in self.processes if p not in alive]:
            self.drop(self.processes[pid])
        for pid in [p for p in self._ignored if p not in alive]:
            del self._ignored[pid]
        for pid in sorted(pids):
            known = self.processes.get(pid)
            if known is None:
                if pid not in self._ignored or self.only_below is not None:
                    self._discover(pid)
            elif known.status is None and self._start_ticks(pid) != known.start_ticks:
                self.drop(known)  # the pid was given to another process
                self._discover(pid)
        return list(self.processes.values())

    def drop(self, process: Process) -> None:
        """Forget a process that has ended."""
        if self.processes.get(process.pid) is process:
            del self.processes[process.pid]
        if process.status is not None:
            process.status.close()
            process.status = None
            self._held -= 1
        for tell in self.on_gone:
            tell(process)

    def recheck(self, process: Process, comm: str) -> None:
        """Name a process again after exec: a forked child may have become another program."""
        argv = self._argv(process.pid)
        process.comm = comm
        if argv is None or argv == process.argv:
            return
        process.argv = argv
        self._name(process)

    def read_status(self, process: Process) -> bytes | None:
        """Content of the status file, or None when the process has ended."""
        if process.status is not None:
            return process.status.read()
        return read_bytes(f"{self.roots.proc}/{process.pid}/status")

    def _discover(self, pid: int) -> None:
        stat = self._stat(pid)
        if stat is None:
            return
        comm, ppid, start_ticks, flags = stat
        if flags & _KERNEL_THREAD or pid == os.getpid():
            self._ignored[pid] = start_ticks
            return
        parent = self.processes.get(ppid)
        if self.only_below is not None and pid != self.only_below and parent is None:
            self._ignored[pid] = start_ticks
            return
        status = None
        if self._held < self.held_files:
            try:
                status = HeldFile(f"{self.roots.proc}/{pid}/status")
                self._held += 1
            except OSError:
                if not os.path.isdir(f"{self.roots.proc}/{pid}"):
                    return
        entity = Entity(self.host, "", pid)
        process = Process(pid, ppid, start_ticks, comm, self._argv(pid) or [], "", None, None, entity, status)
        self._name(process)
        self.processes[pid] = process

    def _name(self, process: Process) -> None:
        parent = self.processes.get(process.ppid)
        if parent is process:
            parent = None
        process.role = worker_role(process.argv, parent.argv, process.comm) if parent else None
        if process.role and parent:
            base = parent.component.split(":", 1)[0] if parent.role else parent.component
            process.component = f"{base}:{process.role}"
        else:
            process.component = program_name(process.argv, process.comm)
        # pid 1 starts everything in a container or a machine: only its forked workers are its job.
        starts_jobs = parent is None or parent.pid == 1 or parent.component in BOUNDARIES
        joins = parent is not None and (process.role is not None or not starts_jobs)
        process.root = parent.leader if joins and parent else None
        start_s = round(self.boot_s + process.start_ticks / CLOCK_TICKS, 2)
        leader = process.leader
        group = f"{leader.component}/{leader.pid}@{self.boot_s + leader.start_ticks / CLOCK_TICKS:.0f}"
        process.entity = Entity(self.host, process.component, process.pid, start_s, group)

    def _argv(self, pid: int) -> list[str] | None:
        data = read_bytes(f"{self.roots.proc}/{pid}/cmdline")
        if data is None:
            return None
        return data.rstrip(b"\0").decode("utf-8", "replace").split("\0") if data else []

    def _start_ticks(self, pid: int) -> int | None:
        stat = self._stat(pid)
        return stat[2] if stat else None

    def _stat(self, pid: int) -> tuple[str, int, int, int] | None:
        """(comm, parent pid, start time in clock ticks since boot, flags)."""
        data = read_bytes(f"{self.roots.proc}/{pid}/stat")
        if not data:
            return None
        opening, closing = data.find(b"("), data.rfind(b")")  # comm may hold spaces and parentheses
        fields = data[closing + 2 :].split()
        if opening < 0 or len(fields) < 20:
            return None
        return (
            data[opening + 1 : closing].decode("utf-8", "replace"),
            int(fields[1]),
            int(fields[19]),
            int(fields[6]),
        )


_boots: dict[tuple[str, str], set[float]] = {}  # boot times that this process has named entities by, per boot


def stable_boot_time_s(roots: Roots, state_dir: str | None) -> float:
    """Boot time that stays the same over agent restarts and clock jumps within one boot.

    The kernel derives btime from the wall clock, so it moves when the clock is set; start times, which are part
    of an entity's identity, must not. The first value seen in a boot is kept beside the boot id.
    """
    now = boot_time_s(roots.proc) or 0.0
    boot_id = _boot_id(roots)
    boot_s = now
    if state_dir and boot_id:
        kept = _kept_boot_s(state_dir, boot_id)
        if kept is not None:
            boot_s = kept
        else:
            path = os.path.join(state_dir, _BOOT_FILE)
            os.makedirs(state_dir, exist_ok=True)
            temporary = f"{path}.{os.getpid()}"
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"boot_id": boot_id, "boot_s": now}, file)
            os.replace(temporary, path)
    _boots.setdefault((roots.proc, boot_id), set()).add(boot_s)
    return boot_s


def boot_times_s(roots: Roots, state_dir: str | None = None) -> set[float]:
    """Boot times by which an entity of this boot may be named: today's, and those before the clock was set."""
    boot_id = _boot_id(roots)
    found = set(_boots.get((roots.proc, boot_id), ()))
    for kept in (
        _kept_boot_s(os.path.join(state_dir, "agent"), boot_id) if state_dir else None,
        boot_time_s(roots.proc),
    ):
        if kept is not None:
            found.add(kept)
    return found


def _boot_id(roots: Roots) -> str:
    return (read_bytes(f"{roots.proc}/sys/kernel/random/boot_id") or b"").decode().strip()


def _kept_boot_s(directory: str, boot_id: str) -> float | None:
    try:
        with open(os.path.join(directory, _BOOT_FILE), encoding="utf-8") as file:
            kept = json.load(file)
        return float(kept["boot_s"]) if kept["boot_id"] == boot_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
