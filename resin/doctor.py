"""Examination of this host: each check says what was seen and, where something is missing, how to get it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from .agent.cgroup import memory_cgroup_dir
from .agent.procfs import Roots, read_bytes
from .config import Config

_CAP_SYS_PTRACE = 19


@dataclass(frozen=True)
class Check:
    """`works` None: cannot be told or does not apply. `needed`: without it resin does not do its main work."""

    name: str
    works: bool | None
    seen: str
    advice: str = ""
    needed: bool = False


def examine(config: Config, roots: Roots | None = None) -> list[Check]:
    """Every check on this host, in the order of resin's stages."""
    roots = roots or Roots()
    return [
        _proc(roots),
        _other_users(roots),
        _smaps(roots),
        _descriptors(roots),
        _cgroup(roots),
        _kernel_memory(roots),
        _shared_memory(roots),
        _gpu(),
        _ptrace(roots),
        _python(),
        _program("py-spy", "stacks of running Python processes", "pip install py-spy"),
        _module(
            "memray",
            "allocation stacks of running Python processes",
            "pip install memray (in the target too)",
        ),
        _program("gdb", "attaching memray, malloc_trim and malloc_info", "apt-get install gdb"),
        _malloc_trim(),
        _module("duckdb", "the embedded store of `resin serve`", "pip install 'torchroller[resin]'"),
        _module("uvicorn", "`resin serve`", "pip install 'torchroller[resin]'"),
        _module("cramjam", "Prometheus remote write", "pip install 'torchroller[resin]'"),
        _state_dir(config),
        _service(config),
    ]


def _proc(roots: Roots) -> Check:
    status = read_bytes(f"{roots.proc}/self/status") or b""
    works = b"\nRssAnon:" in status
    seen = "RSS split into anon, file and shmem is readable" if works else "no RssAnon in /proc/self/status"
    return Check("process memory", works, seen, "needs Linux 4.5 or newer with /proc mounted", needed=True)


def _other_users(roots: Roots) -> Check:
    options = ""
    for line in (read_bytes(f"{roots.proc}/self/mounts") or b"").decode("utf-8", "replace").splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[1] == "/proc":
            options = fields[3]
    hidden = any(o.startswith("hidepid=") and o[8:] not in {"0", "off"} for o in options.split(","))
    if os.geteuid() == 0:
        return Check("other users' processes", True, "running as root")
    if hidden:
        return Check(
            "other users' processes", False, "/proc is mounted with hidepid",
            "run the agent as root or in the group of the mount's gid= option",
        )  # fmt: skip
    return Check(
        "other users' processes", None, f"running as uid {os.geteuid()}: RSS of all, USS and fds of own processes",
        "run the agent as root, or give it CAP_SYS_PTRACE, to see copy-on-write growth of others' processes",
    )  # fmt: skip


def _smaps(roots: Roots) -> Check:
    data = read_bytes(f"{roots.proc}/self/smaps_rollup") or b""
    works = b"Private_Dirty:" in data
    seen = "smaps_rollup is readable: copy-on-write growth is seen" if works else "no smaps_rollup"
    return Check("USS and PSS", works, seen, "needs Linux 4.14 or newer (CONFIG_PROC_PAGE_MONITOR)")


def _descriptors(roots: Roots) -> Check:
    counted = os.stat(f"{roots.proc}/self/fd").st_size > 0
    seen = "counted by one stat (Linux 6.2 or newer)" if counted else "counted by listing, at slow ticks"
    return Check("file descriptors", True, seen)


def _cgroup(roots: Roots) -> Check:
    text = (read_bytes(f"{roots.proc}/self/cgroup") or b"").decode("utf-8", "replace")
    directory = memory_cgroup_dir(text, roots.cgroup)
    if directory is None:
        return Check(
            "cgroups", False, "no memory controller found for this process",
            "mount /sys/fs/cgroup into the agent's container (read-only is enough)",
        )  # fmt: skip
    version = 2 if os.path.exists(f"{directory}/memory.current") else 1
    return Check("cgroups", True, f"version {version}, {directory}")


def _kernel_memory(roots: Roots) -> Check:
    data = read_bytes(f"{roots.proc}/meminfo") or b""
    works = b"Slab:" in data and b"PageTables:" in data
    detail = " (slabinfo too)" if read_bytes(f"{roots.proc}/slabinfo") else ""
    return Check(
        "kernel memory", works, f"slab, page tables, vmalloc{detail}" if works else "no Slab in meminfo"
    )


def _shared_memory(roots: Roots) -> Check:
    try:
        usage = os.statvfs(roots.shm)
    except OSError as error:
        return Check("/dev/shm", False, str(error), "share the host's or the job's /dev/shm with the agent")
    mebibytes = usage.f_blocks * usage.f_frsize >> 20
    return Check("/dev/shm", True, f"{mebibytes} MiB, {len(os.listdir(roots.shm))} files")


def _gpu() -> Check:
    if importlib.util.find_spec("pynvml") is None:
        there = os.path.exists("/dev/nvidiactl")
        seen = "pynvml is not importable" + ("" if there else ", and no NVIDIA device is here")
        return Check("GPU memory", False if there else None, seen, "pip install nvidia-ml-py")
    import pynvml

    try:
        pynvml.nvmlInit()
        return Check("GPU memory", True, f"NVML sees {pynvml.nvmlDeviceGetCount()} devices")
    except pynvml.NVMLError as error:
        return Check("GPU memory", None, f"NVML: {error}", "needs an NVIDIA driver")


def _ptrace(roots: Roots) -> Check:
    scope = (read_bytes(f"{roots.proc}/sys/kernel/yama/ptrace_scope") or b"").strip().decode() or "absent"
    status = (read_bytes(f"{roots.proc}/self/status") or b"").decode("ascii", "replace")
    effective = next(
        (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0
    )
    capable = bool(effective >> _CAP_SYS_PTRACE & 1)
    works = scope != "3" and (capable or scope in {"0", "absent"})
    seen = f"yama ptrace_scope {scope}, CAP_SYS_PTRACE {'held' if capable else 'not held'}"
    advice = (
        "diagnosis of running processes: sysctl kernel.yama.ptrace_scope=0, or run as root; in Docker "
        "--cap-add SYS_PTRACE, in Kubernetes securityContext.capabilities.add: [SYS_PTRACE] and "
        "shareProcessNamespace. `resin watch` may attach to its own children even under scope 1"
    )
    return Check("attaching (ptrace)", works or (None if scope == "1" else False), seen, advice)


def _python() -> Check:
    version = platform.python_version()
    works = hasattr(sys, "remote_exec")
    seen = f"this Python is {version}" + ("; sys.remote_exec is there" if works else "")
    return Check(
        "sys.remote_exec", works or None, seen, "targets on Python 3.14 or newer need resin on 3.14 or newer"
    )


def _program(name: str, purpose: str, advice: str) -> Check:
    beside = os.path.join(os.path.dirname(sys.executable), name)
    path = shutil.which(name) or (beside if os.access(beside, os.X_OK) else None)
    return Check(name, path is not None, path or f"not found; it is for {purpose}", advice)


def _module(name: str, purpose: str, advice: str) -> Check:
    found = importlib.util.find_spec(name) is not None
    return Check(
        name, found, f"importable, for {purpose}" if found else f"not importable; it is for {purpose}", advice
    )


def _malloc_trim() -> Check:
    try:
        works = hasattr(ctypes.CDLL(None), "malloc_trim")
    except OSError:
        works = False
    return Check(
        "malloc_trim", works, "glibc" if works else "this libc has none: retention cannot be trimmed"
    )


def _state_dir(config: Config) -> Check:
    at = os.path.abspath(config.state_dir)
    while not os.path.exists(at):
        at = os.path.dirname(at)
    works = os.access(at, os.W_OK)
    free = shutil.disk_usage(at).free >> 20
    return Check(
        "state directory",
        works,
        f"{config.state_dir}, {free} MiB free",
        "set the option state_dir",
        needed=True,
    )


def _service(config: Config) -> Check:
    from .client import Client, ServiceError, Unreachable

    try:
        Client(config, timeout_s=3.0).get("/healthz")
        return Check("service", True, f"answers at {config.service_url}")
    except (ServiceError, Unreachable) as error:
        return Check("service", None, str(error))
