"""Which role a process plays: component names that are the same for the same program on every host."""

from __future__ import annotations

import os
import re

MAX_NAME = 80

# Programs that start jobs but are no part of them: their children begin groups of their own.
_STARTERS = """
    init systemd sh bash dash zsh fish ash ksh tcsh csh sshd login su sudo tmux screen cron crond atd
    containerd-shim containerd-shim-runc-v2 containerd dockerd runc crun conmon tini dumb-init docker-init
    supervisord slurmd slurmstepd slurm_script kubelet pause torchrun torch.distributed.run
    torch.distributed.launch accelerate deepspeed mpirun mpiexec orted srun prun xargs make nohup timeout nice
    env script setsid watch resin
"""
BOUNDARIES = frozenset(_STARTERS.split())
_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*t?\Z")
_SCRIPT_RUNNERS = re.compile(r"(node|nodejs|ruby|perl|deno|bun|Rscript|julia)[0-9.]*\Z")
_WITH_ARGUMENT = {"-W", "-X", "--check-hash-based-pycs"}
# Names that say little without the directory that they lie in.
_GENERIC = {
    "main.py",
    "run.py",
    "app.py",
    "__main__.py",
    "server.py",
    "start.py",
    "manage.py",
    "main.js",
    "index.js",
}


def program_name(argv: list[str], comm: str) -> str:
    """Component name of a program that was started by exec with `argv` (may be empty: kernel name `comm`)."""
    if not argv or not argv[0]:
        return _bounded(comm)
    head = argv[0].split()[0] if " " in argv[0] and len(argv) == 1 else argv[0]  # set by setproctitle
    base = os.path.basename(head.lstrip("-").rstrip(":")) or comm
    if _INTERPRETER.match(base):
        return _bounded(_python_program(argv[1:]) or base)
    if _SCRIPT_RUNNERS.match(base):
        scripts = [a for a in argv[1:] if not a.startswith("-")]
        return _bounded(_script_name(scripts[0]) if scripts else base)
    if base == "java":
        return _bounded(_java_program(argv[1:]) or base)
    return _bounded(base)


def _python_program(arguments: list[str]) -> str | None:
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "-m":
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if argument.startswith("-m") and len(argument) > 2:
            return argument[2:]
        if argument == "-c" or argument.startswith("-c"):
            return "python-c"
        if argument in _WITH_ARGUMENT:
            index += 2
            continue
        if argument == "-" or not argument:
            return "python-stdin"
        if not argument.startswith("-"):
            return _script_name(argument)
        if not argument.startswith("--") and argument.endswith("m") and index + 1 < len(arguments):
            return arguments[index + 1]  # flags in one word, as in -um
        if not argument.startswith("--") and argument.endswith("c"):
            return "python-c"
        index += 1
    return None


def _script_name(path: str) -> str:
    base = os.path.basename(path.rstrip("/")) or path
    parent = os.path.basename(os.path.dirname(path))
    return f"{parent}/{base}" if base in _GENERIC and parent else base


def _java_program(arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == "-jar" and index + 1 < len(arguments):
            return os.path.basename(arguments[index + 1])
        if not argument.startswith("-") and (index == 0 or arguments[index - 1] not in {"-cp", "-classpath"}):
            return argument.rsplit(".", 1)[-1]
    return None


def worker_role(argv: list[str], parent_argv: list[str], comm: str) -> str | None:
    """Role of a process inside its parent's program, or None when it is a program of its own.

    A child with the parent's command line was forked without exec; multiprocessing's spawn and forkserver
    children announce themselves in theirs.
    """
    text = " ".join(argv[1:8])
    if "multiprocessing.resource_tracker" in text:
        return "resource-tracker"
    if "multiprocessing.forkserver" in text and argv != parent_argv:
        return "forkserver"
    spawned = "multiprocessing.spawn" in text or "--multiprocessing-fork" in text
    if spawned or (argv and argv == parent_argv):
        return "data-worker" if comm.startswith("pt_data") else "worker"
    return None


def _bounded(name: str) -> str:
    """Printable, at most 80 characters; ranks at the end of titles such as `VLLM::Worker_TP3` made equal."""
    cleaned = "".join(c if c.isprintable() and c not in '"\\{}' else "_" for c in name)
    if ":" in cleaned:
        cleaned = re.sub(r"\d+\Z", "#", cleaned)
    return cleaned[:MAX_NAME] or "unknown"
