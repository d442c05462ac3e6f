"""The live table of `resin top`."""

from __future__ import annotations

import dataclasses
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .agent.agent import Sampler
from .config import Config
from .model import Entity, Finding, Sample
from .show import bytes_text
from .store.memory import MemoryStore

WINDOW_S = 600.0  # growth is told over at most this long
JUDGE_EVERY_S = 10.0
_STYLES = {"leak": "bold red", "retention": "yellow", "unclear": "cyan", "bounded": "green"}


class Top:
    """Samples this host and draws the processes that grow fastest on top."""

    def __init__(self, config: Config, *, tick_s: float, min_bytes: int, rows: int = 0) -> None:
        self.tick_s = tick_s
        self.rows = rows
        self.sampler = Sampler(
            dataclasses.replace(
                config,
                tick_s=tick_s,
                slow_tick_s=max(10.0, tick_s),
                min_process_bytes=min_bytes,
                cpu_budget=0.05,
            )
        )
        self.store = MemoryStore()
        self.findings: dict[Entity, Finding] = {}
        self.trouble: str | None = None
        self._judge_due_s = time.monotonic() + JUDGE_EVERY_S
        self._uss: dict[Entity, float] = {}

    def run(self, *, ticks: int | None = None, console: Console | None = None) -> None:
        """Draw until interrupted, or for `ticks` ticks."""
        console = console or Console()
        done = 0
        with Live(console=console, screen=console.is_terminal and ticks is None, auto_refresh=False) as live:
            while ticks is None or done < ticks:
                started = time.monotonic()
                live.update(self.table(self.tick(), console.height), refresh=True)
                done += 1
                if ticks is None or done < ticks:
                    time.sleep(max(0.0, self.tick_s - (time.monotonic() - started)))

    def tick(self) -> list[Sample]:
        """Sample once, judge when it is time; returns the samples of processes and groups."""
        samples = self.sampler.sample()
        self.store.append(samples)
        if time.monotonic() >= self._judge_due_s:
            self._judge()
        return [s for s in samples if s.entity.pid is not None]

    def table(self, samples: list[Sample], height: int) -> Table:
        """The table for one tick."""
        room = self.rows or max(5, height - 6)
        growth = {s.entity: self._growth_per_minute(s.entity) for s in samples}
        samples = sorted(
            samples,
            key=lambda s: (
                self._verdict(s.entity) != "leak",
                -(growth[s.entity] or 0.0),
                -s.values.get("anon_bytes", 0.0),
            ),
        )
        table = Table(
            box=None, pad_edge=False, title=f"resin top · {self.sampler.host} · {time.strftime('%H:%M:%S')}"
        )
        for title in (
            "pid",
            "process",
            "anon",
            "uss",
            "file",
            "shmem",
            "gpu",
            "fds",
            "threads",
            "growth/min",
        ):
            table.add_column(title, justify="left" if title == "process" else "right", no_wrap=True)
        table.add_column("verdict")
        for sample in samples[:room]:
            table.add_row(*self._row(sample, growth[sample.entity]))
        if len(samples) > room:
            table.caption = f"{len(samples) - room} more processes"
        if self.trouble:
            table.caption = self.trouble
        return table

    def _row(self, sample: Sample, growth: float | None) -> list[Text | str]:
        values, entity = sample.values, sample.entity
        if "uss_bytes" in values:
            self._uss[entity] = values["uss_bytes"]
        sizes = {**values, **({"uss_bytes": self._uss[entity]} if entity in self._uss else {})}
        shown = ("anon_bytes", "uss_bytes", "file_bytes", "shmem_bytes", "gpu_bytes")
        cells: list[Text | str] = [str(entity.pid), entity.component]
        cells += [bytes_text(sizes[n]) if n in sizes else "-" for n in shown]
        cells += [f"{values[n]:.0f}" if n in values else "-" for n in ("fds", "threads")]
        cells.append("-" if growth is None else f"{'+' if growth > 0 else ''}{bytes_text(growth)}")
        verdict = self._verdict(entity)
        cells.append(Text(verdict or "", style=_STYLES.get(verdict or "", "")))
        return cells

    def _verdict(self, entity: Entity) -> str | None:
        finding = self.findings.get(entity)
        return None if finding is None or finding.growth_class == "flat" else finding.verdict

    def _growth_per_minute(self, entity: Entity) -> float | None:
        """Change of the lowest anon value of the last tenth against the first tenth of the window, per minute."""
        found = list(self.store.series("anon_bytes", since=time.time() - WINDOW_S, entity=entity.key))
        if not found or len(found[0].times_s) < 3:
            return None
        times, values = found[0].times_s, found[0].values
        part = max(1, len(values) // 10)
        minutes = (times[-1] - times[0]) / 60.0
        return (min(values[-part:]) - min(values[:part])) / minutes if minutes > 0 else None

    def _judge(self) -> None:
        started = time.monotonic()
        try:
            from .detect import scan

            worst: dict[Entity, Finding] = {}
            for finding in scan(self.store, now_s=time.time()):
                if finding.entity not in worst or finding.verdict == "leak":
                    worst[finding.entity] = finding
            self.findings = worst
        except Exception as error:  # the table goes on without verdicts and says why
            self.trouble = f"no verdicts: {type(error).__name__}: {error}"
        self._judge_due_s = time.monotonic() + max(JUDGE_EVERY_S, 10 * (time.monotonic() - started))
