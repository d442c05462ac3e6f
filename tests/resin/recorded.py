"""Recorded /proc and cgroup trees, written to a temporary directory and changed between ticks."""

from __future__ import annotations

import shutil
from pathlib import Path

from resin.agent.agent import Sampler
from resin.agent.procfs import Roots
from resin.config import Config

STATUS = """Name:\t{name}
Umask:\t0022
State:\t{state}
Tgid:\t{pid}
PPid:\t{ppid}
VmPeak:\t  500000 kB
VmRSS:\t{rss:8d} kB
RssAnon:\t{anon:8d} kB
RssFile:\t{file:8d} kB
RssShmem:\t{shmem:8d} kB
VmData:\t  100000 kB
VmSwap:\t{swap:8d} kB
HugetlbPages:\t       0 kB
CoreDumping:\t0
THP_enabled:\t1
Threads:\t{threads}
SigQ:\t0/96365
"""
ZOMBIE = "Name:\t{name}\nState:\tZ (zombie)\nPid:\t{pid}\nPPid:\t{ppid}\nThreads:\t1\n"
SMAPS = """00400000-7ffd3c5f4000 ---p 00000000 00:00 0                          [rollup]
Rss:              {rss} kB
Pss:              {pss} kB
Pss_Dirty:        {private} kB
Shared_Clean:     1000 kB
Shared_Dirty:     2000 kB
Private_Clean:    100 kB
Private_Dirty:    {private} kB
Referenced:       1736 kB
Private_Hugetlb:  0 kB
"""
MEMINFO = """MemTotal:       24684092 kB
MemFree:        20000000 kB
MemAvailable:   23960396 kB
SwapTotal:             0 kB
SwapFree:              0 kB
Shmem:              8856 kB
Slab:             179540 kB
SReclaimable:     153020 kB
SUnreclaim:        26520 kB
KernelStack:        1504 kB
PageTables:         2532 kB
VmallocTotal:   34359738367 kB
VmallocUsed:       14268 kB
Percpu:              712 kB
"""


class Host:
    """One recorded host below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.roots = Roots(str(directory / "proc"), str(directory / "cgroup"), str(directory / "shm"))
        self.proc = directory / "proc"
        self.cgroup = directory / "cgroup"
        for folder in (self.proc / "self" / "fd", self.cgroup, directory / "shm"):
            folder.mkdir(parents=True)
        (self.proc / "stat").write_text("cpu  1 2 3\nbtime 1700000000\nprocesses 5\n")
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "sys/kernel/random").mkdir(parents=True)
        (self.proc / "sys/kernel/random/boot_id").write_text("0c0ffee0-0000\n")

    def process(
        self, pid: int, argv: list[str], *, ppid: int = 1, start: int = 5000, comm: str | None = None,
        anon: int = 50_000, file: int = 9_000, shmem: int = 0, swap: int = 0, threads: int = 1,
        private: int = 0, pss: int = 0, cgroup: str = "", environ: dict[str, str] | None = None,
        flags: int = 0x400000, zombie: bool = False,
    ) -> None:  # fmt: skip
        """Write or rewrite the files of one process; memory in kB."""
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        name = comm or Path(argv[0]).name[:15] if argv else comm or "kthread"
        rest = f"{'Z' if zombie else 'S'} {ppid} {pid} {pid} 0 -1 {flags} " + "0 " * 12 + f"{start} 0 0"
        (folder / "stat").write_text(f"{pid} ({name}) {rest}\n")
        (folder / "cmdline").write_bytes(b"".join(a.encode() + b"\0" for a in argv))
        fields = {"name": name, "pid": pid, "ppid": ppid, "state": "S (sleeping)", "threads": threads}
        sizes = {"rss": anon + file + shmem, "anon": anon, "file": file, "shmem": shmem, "swap": swap}
        (folder / "status").write_text((ZOMBIE if zombie else STATUS).format(**fields, **sizes))
        if private:
            text = SMAPS.format(rss=anon + file + shmem, pss=pss or private, private=private)
            (folder / "smaps_rollup").write_text(text)
        (folder / "cgroup").write_text(cgroup)
        variables = "".join(f"{k}={v}\0" for k, v in (environ or {}).items())
        (folder / "environ").write_bytes(variables.encode())

    def end(self, pid: int) -> None:
        """Remove a process."""
        shutil.rmtree(self.proc / str(pid))

    def sampler(self, *, held_files: int = 0, **options: object) -> Sampler:
        """A sampler over this host. Files are not held: a recorded file would not fail once its process is gone."""
        values = {"host": "h", "slow_tick_s": 1e-9, "min_process_bytes": 4 << 20, **options}
        sampler = Sampler(Config(**values), roots=self.roots, clock=lambda: 1_700_001_000.0)
        sampler.table.held_files = held_files
        return sampler


def by_component(samples: list) -> dict[str, dict[str, float]]:
    """Values of each component (the last one where several share it)."""
    return {s.entity.component: dict(s.values) for s in samples}
