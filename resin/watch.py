"""One command under watch: start it, sample its processes, judge, diagnose while it runs, and say the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .agent.agent import Sampler
from .agent.identity import is_running
from .agent.process import ProcessTable
from .config import Config
from .model import Diagnosis, Finding
from .store.memory import MemoryStore

FIRST_JUDGEMENT_S = 15.0
JUDGE_EVERY_S = 5.0
MAX_DIAGNOSES = 2
# Seen of the machine as a whole: they may move for reasons of other programs.
HOST_COMPONENTS = {"host", "kernel", "agent"}


@dataclass
class Outcome:
    """What a watch ended with. `findings` are the last judgement, worst first."""

    command: tuple[str, ...]
    exit_code: int | None  # of the command; negative: ended by that signal
    seconds: float
    samples: int
    findings: list[Finding] = field(default_factory=list)
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)  # by key of the entity
    troubles: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst verdict over all processes; 'bounded' when nothing grew."""
        verdicts = {f.verdict for f in self.findings}
        return next((v for v in ("leak", "retention", "unclear") if v in verdicts), "bounded")


class Watch:
    """Runs one command to its end (or for `duration_s`) and judges it."""

    def __init__(
        self,
        command: Sequence[str],
        config: Config,
        *,
        duration_s: float | None = None,
        diagnose: bool = True,
        helper: bool = True,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.command = tuple(command)
        self.duration_s = duration_s
        self.diagnose = diagnose
        self.helper = helper and diagnose
        self.tell = tell
        tick_s = config.watch_tick_s
        self.config = dataclasses.replace(
            config, tick_s=tick_s, slow_tick_s=max(tick_s, 1.0), min_process_bytes=1, cpu_budget=0.05
        )
        self.store = MemoryStore()
        self._diagnoses: dict[str, Diagnosis] = {}
        self._diagnosed_pids: set[int] = set()
        self._troubles: list[str] = []
        self._diagnosing: threading.Thread | None = None
        self._confirmed: dict[str, int] = {}
        self._before: dict[str, Finding] = {}  # confirmed leaks as they stood when their diagnosis began

    def run(self) -> Outcome:
        """Start the command and wait for its end. Raises OSError when it cannot be started."""
        if not self.helper:
            return self._run(None)
        # A Python command carries resin's helper, which sleeps until a diagnosis asks it for allocations.
        from .diagnose import preload

        with tempfile.TemporaryDirectory(prefix="resin-") as control:
            return self._run(preload.environment(control))

    def _run(self, environment: Mapping[str, str] | None) -> Outcome:
        started = time.monotonic()
        child = subprocess.Popen(self.command, env=environment)
        restore = _forward_signals(child)
        samples = ticks = 0
        tick_s = self.config.tick_s
        ended_by_us = False
        judge_due = started + FIRST_JUDGEMENT_S
        try:
            sampler = Sampler(self.config, only_below=child.pid)
            next_s = started
            while child.poll() is None:
                seen = self._keep(sampler)
                samples += seen
                ticks += 1
                if ticks == 8192:  # a long run: the store thins its series out, sampling follows
                    tick_s, ticks = 2 * tick_s, 4096
                now = time.monotonic()
                if now >= judge_due:
                    self._judge_live()
                    judge_due = time.monotonic() + max(JUDGE_EVERY_S, 10 * (time.monotonic() - now), tick_s)
                if self.duration_s is not None and now - started >= self.duration_s and not ended_by_us:
                    ended_by_us = True
                    self._finish_diagnosis()
                    self._judge_live(last=True)  # what only now is a leak: the target will not be there later
                    self._finish_diagnosis()
                    _end(child, sampler.table)
                next_s = max(next_s + tick_s, time.monotonic())
                try:
                    child.wait(timeout=max(0.0, next_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        finally:
            restore()
            if child.poll() is None:
                child.kill()
                child.wait()
        self._finish_diagnosis()
        return Outcome(
            self.command,
            None if ended_by_us else child.returncode,
            time.monotonic() - started,
            samples,
            self.judge(),
            dict(self._diagnoses),
            list(self._troubles),
        )

    def judge(self) -> list[Finding]:
        """Findings on what was seen so far, worst first; what belongs to the whole machine only for /dev/shm.

        A diagnosis may turn a verdict: what the allocator keeps is retention, not a leak.
        """
        from .detect import refine, scan
        from .service.echoes import without_echoes

        seen = [self._as_before(f) for f in scan(self.store, now_s=time.time())]
        found = [
            refine(f, self._diagnoses[f.entity.key]) if f.entity.key in self._diagnoses else f for f in seen
        ]
        kept = [
            f for f in found if f.entity.component not in HOST_COMPONENTS or f.metric in {"dev_shm_bytes"}
        ]
        kept = [f for f in kept if not f.entity.component.startswith(("cgroup:", "gpu:"))]
        kept = without_echoes(kept)
        order = {"leak": 0, "retention": 1, "unclear": 2, "bounded": 3}
        return sorted(kept, key=lambda f: (order[f.verdict], -f.severity, f.entity.pid is None, f.id))

    def _as_before(self, finding: Finding) -> Finding:
        """A confirmed leak stays one while it goes on: tracing slows the target down, and so its growth."""
        before = self._before.get(finding.id)
        if before is None or finding.verdict != "unclear":
            return finding
        return dataclasses.replace(
            before,
            end_s=finding.end_s,
            why=(*before.why, "it went on more slowly while it was looked into, which slows a program down"),
        )

    def _keep(self, sampler: Sampler) -> int:
        samples = sampler.sample()
        self.store.append(samples)
        return len(samples)

    def _judge_live(self, *, last: bool = False) -> None:
        leaks = [f for f in self.judge() if f.verdict in {"leak", "retention"}]
        for finding in leaks:
            self._confirmed[finding.id] = self._confirmed.get(finding.id, 0) + 1
            if self._confirmed[finding.id] == 2:
                self.tell(f"{finding.verdict}: {finding.entity.key} {finding.metric} grows, watching on")
        if not self.diagnose or (self._diagnosing and self._diagnosing.is_alive()):
            return
        for finding in leaks:
            pid = finding.entity.pid
            # Twice in a row: one judgement on the first seconds of a program is not worth a debugger.
            due = (
                (last or self._confirmed[finding.id] >= 2)
                and pid is not None
                and pid not in self._diagnosed_pids
            )
            if due and len(self._diagnosed_pids) < MAX_DIAGNOSES and is_running(finding.entity):
                self._diagnosed_pids.add(pid or 0)
                if self._confirmed[finding.id] >= 2 and finding.verdict == "leak":
                    self._before[finding.id] = finding
                self._diagnosing = threading.Thread(target=self._diagnose, args=(finding,), daemon=True)
                self._diagnosing.start()
                return

    def _diagnose(self, finding: Finding) -> None:
        try:
            from .diagnose import diagnose

            self.tell(f"diagnosing {finding.entity.key}")
            self._diagnoses[finding.entity.key] = diagnose(finding.entity.pid or 0, finding=finding)
        except Exception as error:  # the watched program and its verdict come first
            self._troubles.append(
                f"diagnosis of {finding.entity.key} failed: {type(error).__name__}: {error}"
            )

    def _finish_diagnosis(self) -> None:
        if self._diagnosing:
            self._diagnosing.join(timeout=60.0)


def _end(child: subprocess.Popen, table: ProcessTable) -> None:
    """End the command and all that it started: first asked, after ten seconds forced."""
    for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + patience_s
        asked: set[int] = set()
        while time.monotonic() < deadline:
            child.poll()
            living = [p for p in table.refresh() if p.pid != child.pid or child.returncode is None]
            if not living:
                return
            for process in living:
                if process.pid not in asked and is_running(process.entity):
                    asked.add(process.pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process.pid, number)
            time.sleep(0.05)


def _forward_signals(child: subprocess.Popen) -> Callable[[], None]:
    """Interrupts at the terminal reach the command by themselves; a TERM to us is handed on to it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def hand_on(number: int, _: object) -> None:
        if child.poll() is None:
            os.kill(child.pid, number)

    old = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore


def report_lines(outcome: Outcome) -> list[str]:
    """The end of a watch as text."""
    from .show import diagnosis_lines, finding_lines
    from .store.records import to_json

    lines = [f"watched {' '.join(outcome.command)} for {outcome.seconds:.0f} s ({outcome.samples} samples)"]
    shown = [f for f in outcome.findings if f.verdict != "bounded"]
    untold = dict(outcome.diagnoses)
    for finding in shown[:10]:
        lines += finding_lines(to_json(finding))
        diagnosis = untold.pop(finding.entity.key, None)
        if diagnosis is not None:
            lines += diagnosis_lines(to_json(diagnosis))
    if len(shown) > 10:
        lines.append(f"... and {len(shown) - 10} more")
    grown = [f for f in outcome.findings if f.verdict == "bounded" and f.growth_class != "flat"]
    for finding in grown[:3]:
        lines += finding_lines(to_json(finding))[:2]
    lines += [f"note: {trouble}" for trouble in outcome.troubles]
    lines.append(f"verdict: {outcome.verdict}")
    return lines


def print_line(line: str) -> None:
    """Progress goes to stderr: stdout belongs to the watched command."""
    print(f"resin: {line}", file=sys.stderr, flush=True)
