"""DuckDB, memory, Prometheus and VictoriaMetrics give the same series, pivots and findings on the same data."""

from __future__ import annotations

import time

import numpy as np
import pytest
import resin_servers as servers

from resin.model import Entity, Sample
from resin.store import Store
from resin.store.memory import MemoryStore
from resin.store.prometheus import PrometheusStore

WINDOW_S = 300.0


def fleet_samples(now_s: float) -> list[Sample]:
    """Six hosts with three processes each over two hours; one component leaks on two hosts from half-time on."""
    random = np.random.default_rng(7)
    start = now_s - now_s % WINDOW_S - 7200.0
    samples = []
    for host in range(6):
        for number, component in enumerate(("train.py", "train.py:worker", 'odd "name"\\')):
            entity = Entity(
                f"host{host}", component, 100 + number, 1_700_000_000.25 + host, "train.py/100@1700000000"
            )
            level = 2.0e8 * (1 + number) * (1 + 0.3 * host)
            for step in range(0, 7200, 60):
                values = {"anon_bytes": round(level * (1 + 0.002 * random.standard_normal()))}
                if component == "train.py" and host < 2 and step > 3600:
                    values["anon_bytes"] += round((step - 3600) * 2.5e5)
                if step % 300 == 0:
                    values["limit_bytes"] = 4.0e9
                if component == "train.py":
                    values["steps_total"] = step * 2.0
                samples.append(Sample(entity, start + step, values))
    samples.sort(key=lambda s: s.time_s)
    return samples


def test_memory_store_equals_duckdb():
    now = 1_750_000_000.0
    samples = fleet_samples(now)
    memory = MemoryStore()
    memory.append(samples)
    with Store() as duck:
        duck.append(samples)
        compare(memory, duck, now)


@pytest.mark.parametrize("server", [servers.prometheus, servers.victoria_metrics])
def test_prometheus_api_equals_duckdb(server, tmp_path):
    now = time.time()
    samples = fleet_samples(now)
    with server(tmp_path) as url, Store() as duck:
        duck.append(samples)
        remote = PrometheusStore(url)
        remote.append(samples)
        wait_until_searchable(remote, duck)
        compare(remote, duck, now)


def wait_until_searchable(remote, duck):
    """Until every sample of every metric is found: VictoriaMetrics takes samples first and indexes them later."""
    servers.flush(remote.url)
    expected = count(duck, duck.metrics())
    deadline = time.monotonic() + 60
    while (found := count(remote, expected)) != expected or remote.metrics() != duck.metrics():
        if time.monotonic() > deadline:
            pytest.fail(f"not searchable after 60 s: samples found by metric {found}, written {expected}")
        time.sleep(0.2)


def count(store, metrics):
    """Samples by metric."""
    return {m: sum(len(s.times_s) for s in store.series(m)) for m in metrics}


def compare(one, other, now_s):
    since = now_s - 3 * 3600
    assert one.metrics() == other.metrics()
    for metric in ("anon_bytes", "limit_bytes"):
        left = list(one.series(metric, since=since, until=now_s + 60))
        right = list(other.series(metric, since=since, until=now_s + 60))
        assert len(left) == 18
        assert left == right
    assert left[0].limit_bytes is None or left[0].limit_bytes == 4.0e9
    key = right[4].entity.key
    assert list(one.series("anon_bytes", since=since, entity=key)) == list(
        other.series("anon_bytes", since=since, entity=key)
    )
    by_host = list(one.series("anon_bytes", since=since, host="host3", component="train.py"))
    assert [s.entity.host for s in by_host] == ["host3"]
    assert by_host[0].work is not None and by_host[0].work[-1] == 2 * 7140.0
    pivots = [s.pivot("anon_bytes", window_s=WINDOW_S, since=since, until=now_s + 60) for s in (one, other)]
    assert pivots[0].components == pivots[1].components
    for name in ("component", "bucket", "window_start_s", "hosts", "hosts_of"):
        np.testing.assert_array_equal(getattr(pivots[0], name), getattr(pivots[1], name))
    assert pivots[0].hosts.sum() == 3 * 6 * 24


@pytest.mark.parametrize("server", [servers.prometheus, servers.victoria_metrics])
def test_many_oddly_named_hosts_come_in_order(server, tmp_path, monkeypatch):
    """Asked for in parts, with names that mean something in a regular expression or sort around the slash."""
    import resin.store.prometheus as module

    monkeypatch.setattr(module, "HOSTS_AT_ONCE", 3)
    now = time.time()
    names = ["h1", "h1-b", "h1a", "h.1", "h+1", "a|b", 'quo"te', "back\\slash", "h(1)", "\u00fcber"]
    samples = [Sample(Entity(n, c, 5, 1.5), now - 100, {"fds": 7.0}) for n in names for c in ("x", "y.py")]
    with server(tmp_path) as url, Store() as duck:
        duck.append(samples)
        remote = PrometheusStore(url)
        remote.append(samples)
        wait_until_searchable(remote, duck)
        expected = list(duck.series("fds"))
        assert len(expected) == 20
        assert list(remote.series("fds")) == expected
        for one in expected[::3]:
            assert list(remote.series("fds", entity=one.entity.key)) == [one]


@pytest.mark.parametrize("server", [servers.prometheus, servers.victoria_metrics])
def test_same_findings(server, tmp_path):
    detect = pytest.importorskip("resin.detect")
    now = time.time()
    samples = fleet_samples(now)
    with server(tmp_path) as url, Store() as duck:
        duck.append(samples)
        remote = PrometheusStore(url)
        remote.append(samples)
        wait_until_searchable(remote, duck)
        expected = detect.scan(duck, now_s=now)
        assert detect.scan(remote, now_s=now) == expected
        leaks = {f.entity.host for f in expected if f.verdict == "leak"}
        assert leaks == {"host0", "host1"}
