"""Level 1, the metrics of one entity together, the scan of a store, plug-ins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resin.detect import detectors, judge, pivot_of, reconcile, refine, registry, scan, suspicions
from resin.detect.pivot import PivotRule, small_components
from resin.model import Diagnosis, Entity, Finding, Series

MIB = 1048576.0
T = tuple(float(k * 60) for k in range(480))


def make(host, component, values, metric="anon_bytes", pid=1, limit=64 * 1024 * MIB) -> Series:
    return Series(
        Entity(host, component, pid, 0.0), metric, T, tuple(float(v) for v in values), limit_bytes=limit
    )


def fleet(leaking: int, hosts: int = 40, component: str = "server") -> list[Series]:
    """Hosts of one component; the first `leaking` ones leak from the middle."""
    found = []
    for h in range(hosts):
        rng = np.random.default_rng(h)
        y = 1000 * MIB * (1 + 0.3 * rng.random()) + rng.normal(0, 5 * MIB, len(T))
        if h < leaking:
            y = y + np.clip(np.arange(len(T)) - 240, 0, None) * 20 * MIB
        found.append(make(f"h{h:03d}", component, y))
    return found


def test_pivot_counts_hosts_by_bucket():
    cells = pivot_of([make("a", "c", [4 * MIB] * 480), make("b", "c", [64 * MIB] * 480)], window_s=28800.0)
    assert cells.components == ("c",)
    assert cells.bucket.tolist() == [4, 12]
    assert cells.hosts.tolist() == [1, 1]
    assert cells.hosts_of.tolist() == [2, 2]


def test_level_1_flags_the_component_whose_hosts_build_up():
    cells = pivot_of([*fleet(15), *fleet(0, component="quiet")])
    found = suspicions(cells)
    assert [s.component for s in found] == ["server"]
    assert found[0].excess_hosts >= 10
    assert found[0].since_s > T[240]
    assert 0 < found[0].severity <= 1


def test_level_1_is_quiet_on_noise_and_on_a_growing_fleet():
    assert suspicions(pivot_of(fleet(0))) == []
    growing = [
        replace(s, times_s=s.times_s[6 * k :], values=s.values[6 * k :]) for k, s in enumerate(fleet(0))
    ]
    assert suspicions(pivot_of(growing)) == []


def test_small_components_are_left_to_level_2():
    cells = pivot_of(fleet(2, hosts=3))
    assert suspicions(cells) == []
    assert small_components(cells) == {"server"}


class MemoryStore:
    """A store of given series with the interface that detection reads."""

    def __init__(self, series: list[Series]) -> None:
        self.held = series
        self.asked: list[str | None] = []

    def metrics(self):
        return tuple(sorted({s.metric for s in self.held}))

    def series(self, metric, *, since=None, component=None):
        self.asked.append(component)
        for s in self.held:
            if s.metric == metric and component in (None, s.entity.component):
                yield s

    def pivot(self, metric="anon_bytes", *, window_s=300.0, since=None):
        return pivot_of([s for s in self.held if s.metric == metric], window_s=window_s)


def test_scan_finds_the_leaking_hosts_and_names_the_fleet():
    found = scan(MemoryStore(fleet(15)), now_s=T[-1], lookback_s=T[-1])
    leaks = [f for f in found if f.verdict == "leak"]
    assert {f.entity.host for f in leaks} == {f"h{k:03d}" for k in range(15)}
    assert any("level 1" in line for line in leaks[0].why)


def test_scan_of_a_large_fleet_looks_only_where_level_1_points():
    store = MemoryStore([*fleet(15), *fleet(0, component="quiet")])
    found = scan(store, now_s=T[-1], lookback_s=T[-1], level2_series=20)
    assert sum(f.verdict == "leak" for f in found) == 15
    assert store.asked == [None, "server"]


def leak(metric: str) -> Finding:
    return judge(make("h", "c", 500 * MIB + np.arange(480) * MIB, metric=metric, limit=8192 * MIB))


def flat(metric: str) -> Finding:
    return judge(make("h", "c", [500 * MIB] * 480, metric=metric))


def test_one_finding_per_entity_and_family():
    found = reconcile([leak("rss_bytes"), leak("anon_bytes"), leak("uss_bytes"), leak("pss_bytes")])
    assert [f.metric for f in found] == ["anon_bytes"]


def test_pages_of_files_are_no_leak():
    found = reconcile([leak("rss_bytes"), flat("anon_bytes"), flat("uss_bytes")])
    assert [(f.metric, f.verdict) for f in found] == [("rss_bytes", "bounded")]
    assert "pages of files" in found[0].why[-1]


def test_copy_on_write_is_named():
    found = reconcile([leak("uss_bytes"), flat("rss_bytes"), flat("anon_bytes")])
    assert found[0].metric == "uss_bytes"
    assert "copied on write" in found[0].why[-1]


def test_free_memory_of_the_allocator_is_retention():
    grown = leak("anon_bytes")
    free = replace(leak("heap_free_bytes"), metric="heap_free_bytes")
    assert reconcile([grown, free])[0].verdict == "retention"


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("fragmentation", "retention"), ("file-mapping", "bounded"), ("python-heap", "leak")],
)
def test_a_diagnosis_refines_the_finding(kind, verdict):
    diagnosis = Diagnosis(None, 1, kind, (), 0.8, 0.0, (), ("malloc keeps 40 MiB",))
    assert refine(leak("anon_bytes"), diagnosis).verdict == verdict
    assert refine(flat("anon_bytes"), diagnosis).verdict == "bounded"
    unsure = replace(diagnosis, confidence=0.2)
    assert refine(leak("anon_bytes"), unsure).verdict == "leak"


def test_a_broken_detector_is_left_out(monkeypatch, caplog):
    class Point:
        name, value = "broken", "nowhere:Broken"

        @staticmethod
        def load():
            raise ImportError("no such module")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    assert [d.name for d in detectors()] == ["floor", "counter"]
    assert "broken left out: no such module" in caplog.text


def test_rule_is_adjustable():
    assert suspicions(pivot_of(fleet(15)), PivotRule(min_excess_hosts=30)) == []


def test_a_metric_with_too_few_samples_hides_no_other():
    t = np.arange(100) * 0.5
    grown = 8e6 + np.minimum(t * 3e6, 60e6)
    entity = Entity("h", "cache", 7, 1.0)
    often = Series(entity, "anon_bytes", tuple(t), tuple(grown), 23e9)
    seldom = Series(entity, "uss_bytes", tuple(t[::5]), tuple(grown[::5]), 23e9)
    [finding] = reconcile([judge(seldom), judge(often)])
    assert (finding.metric, finding.verdict, finding.growth_class) == ("anon_bytes", "bounded", "plateau")
