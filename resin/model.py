"""The words that resin's stages exchange: Sample → Series → Finding → Diagnosis → Action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["leak", "retention", "bounded", "unclear"]
GrowthClass = Literal["steady", "spike", "stair", "sublinear", "plateau", "saw-tooth", "flat"]


@dataclass(frozen=True)
class Entity:
    """One watched thing: a process, a group of processes, a container or a kernel counter.

    Identity of a process is (host, pid, start_time): a reused pid is another entity.
    `component` is the role shared by the same program on all hosts (the key of the pivot);
    `group` names the parent job that forked workers belong to.
    """

    host: str
    component: str
    pid: int | None = None
    start_time_s: float | None = None
    group: str | None = None

    @property
    def is_one_process(self) -> bool:
        """Whether this is one process for certain: it cannot have been started again."""
        return self.pid is not None and self.start_time_s is not None

    @property
    def key(self) -> str:
        tail = "" if self.pid is None else f"/{self.pid}@{self.start_time_s or 0:.0f}"
        return f"{self.host}/{self.component}{tail}"


@dataclass(frozen=True)
class Sample:
    """What one tick saw of one entity. `values` holds only what was read: absent is absent, never zero.

    Metric names carry their unit: rss_bytes, anon_bytes, file_bytes, shmem_bytes, uss_bytes, pss_bytes,
    fds, threads, dev_shm_bytes, cgroup_bytes, cgroup_limit_bytes, slab_bytes, gpu_bytes, steps_total, ...
    """

    entity: Entity
    time_s: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """One metric of one entity over time; `times_s` ascending, no NaN; restarts not yet cut."""

    entity: Entity
    metric: str
    times_s: Sequence[float]  # tuples, or columns of arrays (`resin.column`)
    values: Sequence[float]
    limit_bytes: float | None = None
    work: Sequence[float] | None = None  # steps or requests done at the same times, where the job tells


@dataclass(frozen=True)
class Finding:
    """A judgement on one series. Slopes are in bytes per hour; severity and confidence lie in 0..1."""

    id: str
    entity: Entity
    metric: str
    verdict: Verdict
    growth_class: GrowthClass
    start_s: float | None
    end_s: float | None
    slope_bytes_per_hour: float | None
    severity: float
    confidence: float
    bytes_per_step: float | None = None
    hours_to_limit: float | None = None
    why: tuple[str, ...] = ()  # the numbers that led to the verdict, as sentences
    would_settle: str | None = None  # for `unclear`: what would decide it
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suspect:
    """One place in the code, with the share of the growth that was seen there."""

    file: str
    line: int
    function: str
    growth_bytes: float | None
    share: float | None
    source: str  # which probe named it: memray, tracemalloc, py-spy, remote_exec, mapping


@dataclass(frozen=True)
class Diagnosis:
    """What was learnt of a running process, how sure, and what it cost the target."""

    finding_id: str | None
    pid: int
    kind: str  # python-heap, native-heap, fragmentation, shm, fds, threads, file-mapping, kernel, unknown
    suspects: tuple[Suspect, ...]
    confidence: float
    pause_ms: float
    probes: tuple[str, ...]  # what was tried, with the outcome
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Action:
    """One mitigation step, planned or taken."""

    finding_id: str
    name: str  # notify, trim, recycle-workers, drain-restart, checkpoint-restart, restart-unit, cordon
    command: tuple[str, ...]
    applied: bool
    ok: bool | None
    reason: str
    time_s: float
