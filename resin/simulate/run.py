"""Running the corpus for real under resin, and comparing what it says with what is true."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..config import Config, make_config
from ..model import Diagnosis, Finding
from .corpus import Case, culprit_lines

_RANK = {"leak": 0, "retention": 1, "unclear": 2, "bounded": 3}
_METRICS = {"memory": ("anon_bytes", "uss_bytes", "pss_bytes", "rss_bytes")}


@dataclass(frozen=True)
class Result:
    """What resin said of one program. `line_rank` counts from 1; None when no culprit line was named."""

    case: Case
    verdict: str
    growth_class: str
    metric: str | None
    line_rank: int | None
    pause_ms: float | None
    seconds: float
    findings: tuple[Finding, ...]
    diagnoses: tuple[Diagnosis, ...]

    @property
    def flagged(self) -> bool:
        return self.verdict == "leak"

    @property
    def right_verdict(self) -> bool:
        return self.verdict in self.case.verdicts

    @property
    def right_class(self) -> bool:
        return not self.case.classes or self.growth_class in self.case.classes


def run_case(case: Case, *, seconds: float = 60.0, config: Config | None = None) -> Result:
    """Run one program for `seconds` under `resin watch`'s machinery. Raises OSError when it cannot start."""
    from ..watch import Watch

    config = make_config({}, base=config)
    # Long enough for a diagnosis at the end on a loaded machine; the watch ends it.
    watch = Watch((sys.executable, str(case.path), f"{seconds + 180:.0f}"), config, duration_s=seconds)
    outcome = watch.run()
    wanted = _METRICS.get(case.metric, (case.metric,))
    found = [f for f in outcome.findings if f.verdict != "bounded" or f.growth_class != "flat"]
    if not case.alone:
        found = [f for f in found if f.entity.component != "host"]
    # The verdict of a program is its worst finding; its class is that of the finding on what should grow.
    worst = min(found, key=lambda f: _RANK[f.verdict], default=None)
    telling = [f for f in found if f.metric in wanted and (worst is None or f.verdict == worst.verdict)]
    best = telling[0] if telling else worst
    diagnoses = tuple(outcome.diagnoses.values())
    lines = culprit_lines(case)
    rank = None
    for diagnosis in diagnoses:
        for place, suspect in enumerate(diagnosis.suspects, start=1):
            if suspect.file == str(case.path) and suspect.line in lines:
                rank = place if rank is None else min(rank, place)
    return Result(
        case=case,
        verdict="bounded" if worst is None else worst.verdict,
        growth_class="flat" if best is None else best.growth_class,
        metric=None if best is None else best.metric,
        line_rank=rank,
        pause_ms=max((d.pause_ms for d in diagnoses), default=None),
        seconds=outcome.seconds,
        findings=tuple(outcome.findings),
        diagnoses=diagnoses,
    )
