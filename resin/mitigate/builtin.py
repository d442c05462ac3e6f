"""The built-in mitigations that touch a process or a host, one class each, from light to heavy."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ..diagnose import preload, remote
from ..diagnose.target import Gone, inspect
from . import audit, checkpoint
from .base import Context, Outcome, execute, fill
from .notify import Notify


@dataclass(frozen=True)
class Trim:
    """Have malloc give its free pages back, from within the target: mitigation and test in one."""

    name: str = "trim"
    weight: int = 10

    def why_not(self, context: Context) -> str | None:
        pid = context.finding.entity.pid
        if pid is None:
            return "the finding is about no single process"
        if not context.is_retention:
            return "nothing says that the allocator keeps free memory; a trim would free little"
        return _no_way_in(pid)

    def command(self, context: Context) -> tuple[str, ...]:
        return ("malloc_trim", str(context.finding.entity.pid))

    def apply(self, context: Context) -> Outcome:
        pid = context.finding.entity.pid
        assert pid is not None
        control = preload.control_dir_of(pid)
        request = {"op": "trim"}
        if control is not None:
            found = preload.ask(control, pid, request, timeout_s=30.0)
        else:
            found = remote.ask(inspect(pid), request, timeout_s=30.0)
        if found is None:
            return Outcome(
                True, False, "no answer within 30 s; the target's main thread is in C code or blocked"
            )
        if "error" in found:
            return Outcome(True, False, str(found["error"]))
        freed = found["freed_bytes"] / 1048576.0
        share = found["freed_bytes"] / max(found["resident_bytes"], 1)
        return Outcome(
            True,
            share > 0.02,
            f"freed {freed:.1f} MiB, {100 * share:.0f} % of resident, in {found['pause_ms']:.0f} ms",
        )


def _no_way_in(pid: int) -> str | None:
    try:
        target = inspect(pid)
    except Gone as error:
        return str(error)
    if preload.control_dir_of(pid) is not None:
        return None
    reason = remote.usable(target)
    return (
        None
        if reason is None
        else f"no way into the target that cannot harm it: {reason}, and no helper in it"
    )


@dataclass(frozen=True)
class ProfileNextRestart:
    """Write an environment file that makes the next start carry resin's helper: a line instead of a guess."""

    name: str = "profile-next-restart"
    weight: int = 20

    def why_not(self, context: Context) -> str | None:
        d = context.diagnosis
        if d is not None and any(s.source in ("tracemalloc", "memray") for s in d.suspects):
            return "the line is known already"
        return None

    def _file(self, context: Context) -> Path:
        return Path(context.config.state_dir) / "profile.env"

    def command(self, context: Context) -> tuple[str, ...]:
        return ("write", str(self._file(context)))

    def apply(self, context: Context) -> Outcome:
        path = self._file(context)
        control = path.parent / "helper"
        control.mkdir(parents=True, exist_ok=True, mode=0o700)
        env = preload.environment(control, {})
        path.write_text("".join(f"{name}={value}\n" for name, value in sorted(env.items())))
        return Outcome(
            True,
            True,
            f"wrote {path}; a unit with EnvironmentFile=-{path} carries the helper from its next start",
        )


@dataclass(frozen=True)
class RecycleWorkers:
    """Have a job replace its data-loader workers, by the command that the operator gave."""

    name: str = "recycle-workers"
    weight: int = 30

    def why_not(self, context: Context) -> str | None:
        if not context.config.recycle_command:
            return "recycle_command is not configured (killing a data-loader worker ends its trainer)"
        if context.role != "worker" and context.finding.entity.group is None:
            return "the finding is not about a worker"
        return _runs(context)

    def command(self, context: Context) -> tuple[str, ...]:
        return fill(context.config.recycle_command, context)

    def apply(self, context: Context) -> Outcome:
        return execute(self.command(context))


@dataclass(frozen=True)
class DrainRestart:
    """Take a server worker out of rotation, then end it: its master starts a fresh one."""

    name: str = "drain-restart"
    weight: int = 40

    def why_not(self, context: Context) -> str | None:
        if not context.config.drain_command:
            return "drain_command is not configured"
        if context.role == "trainer":
            return f"{context.finding.entity.component} is not known to be a server"
        return _runs(context)

    def command(self, context: Context) -> tuple[str, ...]:
        return (
            *fill(context.config.drain_command, context),
            "&&",
            "kill",
            "-TERM",
            str(context.finding.entity.pid),
        )

    def apply(self, context: Context) -> Outcome:
        pid = context.finding.entity.pid
        assert pid is not None
        drained = execute(fill(context.config.drain_command, context), timeout_s=600.0)
        if not drained.ok:
            return Outcome(True, False, f"not drained, so not ended: {drained.reason}")
        gone = _runs(context)  # the drain may have ended it, and its pid may belong to another by now
        if gone is not None:
            return Outcome(True, True, "drained; the process ended by itself")
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError as error:
            return Outcome(True, False, f"drained, but process {pid} could not be ended: {error.strerror}")
        return Outcome(True, True, f"drained and sent SIGTERM to {pid}")


@dataclass(frozen=True)
class CheckpointRestart:
    """Have a trainer write a checkpoint, see it arrive whole, and only then restart it."""

    name: str = "checkpoint-restart"
    weight: int = 60
    confirm_s: float = 600.0
    settle_s: float = 2.0

    def why_not(self, context: Context) -> str | None:
        config = context.config
        if context.role != "trainer":
            return "not a trainer"
        if not config.checkpoint_path or not config.restart_command:
            return "checkpoint_path and restart_command are not both configured"
        if not hasattr(signal, config.checkpoint_signal):
            return f"checkpoint_signal {config.checkpoint_signal!r} is no signal of this system"
        return _runs(context)

    def command(self, context: Context) -> tuple[str, ...]:
        signal_words = ("kill", f"-{context.config.checkpoint_signal.removeprefix('SIG')}")
        return (
            *signal_words,
            str(context.finding.entity.pid),
            "&&",
            "confirm",
            context.config.checkpoint_path,
            "&&",
            *fill(context.config.restart_command, context),
        )

    def apply(self, context: Context) -> Outcome:
        config = context.config
        pid = context.finding.entity.pid
        assert pid is not None
        before = checkpoint.newest(config.checkpoint_path)
        recent = before is not None and context.now_s - before.modified_s <= min(
            60.0, config.checkpoint_max_age_s
        )
        if not recent:
            number = getattr(signal, config.checkpoint_signal)
            if not _handles(pid, number):
                return Outcome(
                    False,
                    False,
                    f"process {pid} does not handle {config.checkpoint_signal}: it would end it instead",
                )
            asked = time.time()
            try:
                os.kill(pid, number)
            except OSError as error:
                return Outcome(False, False, f"process {pid} could not be signalled: {error.strerror}")
            # File times may lag the clock by a tick.
            since = asked - 1.0 if before is None else max(before.modified_s, asked - 1.0)
        else:
            assert before is not None
            since = before.modified_s - 1.0
        found = checkpoint.confirm(
            config.checkpoint_path,
            since,
            timeout_s=self.confirm_s,
            settle_s=self.settle_s,
            usual_bytes=None if before is None else before.size_bytes,
        )
        if found is None:
            return Outcome(
                True, False, f"no fresh checkpoint confirmed in {config.checkpoint_path}; not restarted"
            )
        done = execute(fill(config.restart_command, context))
        return Outcome(
            True, done.ok, f"checkpoint {found.path.name} ({found.size_bytes} bytes); restart: {done.reason}"
        )


@dataclass(frozen=True)
class RestartUnit:
    """Restart the unit of a server (systemd, Kubernetes rollout, Slurm requeue): the configured command."""

    name: str = "restart-unit"
    weight: int = 70

    def why_not(self, context: Context) -> str | None:
        if not context.config.restart_command:
            return "restart_command is not configured"
        if context.role == "trainer":
            return "may be a trainer: only checkpoint-restart restarts one"
        return None

    def command(self, context: Context) -> tuple[str, ...]:
        return fill(context.config.restart_command, context)

    def apply(self, context: Context) -> Outcome:
        return execute(self.command(context))


@dataclass(frozen=True)
class Cordon:
    """Take no more work on the host: for leaks of the kernel, or when a restart has not helped."""

    name: str = "cordon"
    weight: int = 90

    def why_not(self, context: Context) -> str | None:
        if not context.config.cordon_command:
            return "cordon_command is not configured"
        kernel = context.finding.entity.component in ("kernel", "host")
        if not kernel and not self._restarted_in_vain(context):
            return "neither a leak of the kernel nor one that outlived a restart"
        return None

    def _restarted_in_vain(self, context: Context) -> bool:
        names = {"restart-unit", "checkpoint-restart", "drain-restart"}
        return any(
            entry["name"] in names
            and entry.get("ok")
            and entry.get("finding_id") == context.finding.id
            and 0 < context.now_s - float(entry["time_s"]) < 86400.0
            for entry in audit.entries(context.config.audit_file)
        )

    def command(self, context: Context) -> tuple[str, ...]:
        return fill(context.config.cordon_command, context)

    def apply(self, context: Context) -> Outcome:
        return execute(self.command(context))


def _runs(context: Context) -> str | None:
    """None when the very process of the finding runs on this host."""
    from ..agent.identity import is_running

    entity = context.finding.entity
    if entity.pid is None:
        return "the finding is about no single process"
    if not is_running(entity, state_dir=context.config.state_dir):
        return f"process {entity.pid} has ended, or its pid belongs to another process now"
    return None


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal: without one most signals end it."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass
    return False


BUILT_IN: tuple[type, ...] = (
    Notify,
    Trim,
    ProfileNextRestart,
    RecycleWorkers,
    DrainRestart,
    CheckpointRestart,
    RestartUnit,
    Cordon,
)
