"""The embedded store: exactly once, bounded, the same after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import pytest

from resin.agent.wire import Batch
from resin.model import Action, Diagnosis, Entity, Finding, Sample, Suspect
from resin.store import Store, StoreError, merge_pivots
from resin.store.base import bucket_edge_bytes, bucket_of
from resin.store.records import diagnosis_from_json, finding_from_json, to_json

A = Entity("h1", "train.py", 1, 100.0, "train.py/1@100")
B = Entity("h1", "train.py", 2, 100.0, "train.py/1@100")
C = Entity("h2", "serve.py", 3, 100.0)


def sample(entity, time_s, **values):
    return Sample(entity, time_s, values)


def test_series_come_back_sorted_without_doubles():
    with Store() as store:
        store.append([sample(A, t, anon_bytes=t * 10) for t in (3.0, 1.0, 2.0)])
        store.append([sample(A, 2.0, anon_bytes=99.0), sample(B, 5.5, anon_bytes=7.0)])
        first, second = store.series("anon_bytes")
        assert (first.entity, first.times_s, first.values) == (A, (1.0, 2.0, 3.0), (10.0, 99.0, 30.0))
        assert (second.entity, second.times_s) == (B, (5.5,))
        assert first.limit_bytes is None
        assert first.work is None


def test_filters():
    with Store() as store:
        store.append([sample(e, t, anon_bytes=1.0, fds=2.0) for e in (A, B, C) for t in (1.0, 2.0, 3.0)])
        assert [s.entity for s in store.series("fds", component="train.py")] == [A, B]
        assert [s.entity for s in store.series("fds", host="h2")] == [C]
        assert [s.entity for s in store.series("fds", entity=B.key)] == [B]
        assert [s.times_s for s in store.series("fds", entity=B.key, since=2.0)] == [(2.0, 3.0)]
        assert [s.times_s for s in store.series("fds", entity=B.key, since=2.0, until=3.0)] == [(2.0,)]
        assert list(store.series("fds", since=4.0)) == []
        assert list(store.series("nothing")) == []
        assert store.metrics() == ("anon_bytes", "fds")


def test_limits_and_work_come_along():
    with Store() as store:
        store.append([sample(A, t, anon_bytes=1.0) for t in (1.0, 2.0, 3.0, 4.0)])
        store.append([sample(A, 1.0, limit_bytes=8.0), sample(A, 3.0, limit_bytes=9.0)])
        store.append([sample(A, 2.0, steps_total=20.0), sample(A, 3.5, steps_total=35.0)])
        only = next(store.series("anon_bytes"))
        assert only.limit_bytes == 9.0
        assert only.work == (20.0, 20.0, 20.0, 35.0)


def test_a_batch_is_stored_once():
    with Store() as store:
        batch = Batch("session", 4, "h1", (sample(A, 1.0, anon_bytes=1.0),))
        assert store.append_batches([batch])[0].stored == 1
        again = store.append_batches([batch, Batch("session", 5, "h1", (sample(A, 2.0, anon_bytes=1.0),))])
        assert [r.duplicate for r in again] == [True, False]
        twice = Batch("session", 6, "h1", (sample(A, 3.0, anon_bytes=1.0),))
        assert [r.duplicate for r in store.append_batches([twice, twice])] == [False, True]
        assert store.sample_count() == 3


def test_bounds_are_kept_and_counted():
    with Store(max_entities=5, max_entities_per_host=3) as store:
        many = [sample(Entity("h1", f"c{i}"), 1.0, anon_bytes=1.0, fds=1.0) for i in range(10)]
        assert (store.append(many).stored, store.append(many).elided) == (6, 14)
        more = [sample(Entity("h2", f"c{i}"), 1.0, fds=1.0) for i in range(10)]
        assert store.append(more).stored == 2
        assert len(store.entities()) == 5
        flood = [sample(Entity("h1", "c0"), 2.0, **{f"m{i}": 1.0 for i in range(600)})]
        appended = store.append(flood)
        assert appended.stored + appended.elided == 600
        assert len(store.metrics()) == 512


def test_everything_is_there_after_reopening(tmp_path):
    path = str(tmp_path / "r.duckdb")
    with Store(path) as store:
        store.append_batches(
            [Batch("s", 1, "h1", (sample(A, 1.0, anon_bytes=5.0), sample(Entity("h", "kernel"), 1.0, x=1.0)))]
        )
        store.records.put("finding", "f1", 1.0, {"id": "f1"})
    with Store(path) as store:
        assert [s.entity for s in store.series("anon_bytes")] == [A]
        assert Entity("h", "kernel") in store.entities()
        assert store.append_batches([Batch("s", 1, "h1", (sample(A, 1.0, anon_bytes=5.0),))])[0].duplicate
        store.append([sample(C, 1.0, anon_bytes=6.0)])
        assert [s.entity for s in store.series("anon_bytes")] == [A, C]
        assert store.records.all("finding") == [{"id": "f1"}]
        assert store.size_bytes() > 0


def test_second_process_is_told_who_holds_the_file(tmp_path):
    path = str(tmp_path / "r.duckdb")
    with Store(path):
        code = f"from resin.store import Store, StoreError\ntry:\n Store({path!r})\nexcept StoreError as e:\n print(e)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "service_url" in done.stdout


def test_a_file_that_is_no_store_is_refused(tmp_path):
    path = tmp_path / "r.duckdb"
    path.write_text("this is not a database" * 1000)
    with pytest.raises(StoreError, match="cannot open the store"):
        Store(str(path))


def test_failed_write_leaves_nothing_behind(tmp_path):
    with Store(str(tmp_path / "r.duckdb")) as store:
        store.append([sample(A, 1.0, anon_bytes=1.0)])
        store._connection.execute("ALTER TABLE samples RENAME TO gone")
        with pytest.raises(StoreError, match="cannot write"):
            store.append_batches([Batch("s", 1, "h", (sample(B, 1.0, other=1.0),))])
        store._connection.execute("ALTER TABLE gone RENAME TO samples")
        assert store.entities() == [A]
        assert store.metrics() == ("anon_bytes",)
        assert not store.append_batches([Batch("s", 1, "h", (sample(B, 1.0, other=1.0),))])[0].duplicate
        assert [s.entity for s in store.series("other")] == [B]


def test_retention_forgets_samples_entities_and_sessions(tmp_path):
    with Store(str(tmp_path / "r.duckdb")) as store:
        store.append_batches([Batch("old", n, "h", (sample(A, 10.0 + n, fds=1.0),)) for n in range(5)])
        store.append_batches([Batch("new", n, "h", (sample(C, 100.0 + n, fds=1.0),)) for n in range(5)])
        assert store.forget_before(50.0) == 5
        assert store.entities() == [C]
        assert store.sample_count() == 5
        assert store.append_batches([Batch("new", 4, "h", ())])[0].duplicate
        rows = store._connection.execute("SELECT count(*) FROM sessions").fetchone()
        assert rows == (1,)
        store.append([sample(A, 200.0, fds=3.0)])
        assert [s.entity for s in store.series("fds")] == [A, C]


def test_columns_equal_samples():
    entities = [A, B, C]
    index = np.tile(np.arange(3), 50)
    times = np.repeat(np.arange(50) * 60.0, 3)
    values = np.arange(150) * 1e6
    with Store() as one, Store() as other:
        one.append_columns("anon_bytes", entities, index, times, values)
        other.append([sample(entities[i], t, anon_bytes=v) for i, t, v in zip(index, times, values)])
        assert list(one.series("anon_bytes")) == list(other.series("anon_bytes"))


def pivot_by_hand(samples, window_s):
    highest = {}
    for s in samples:
        key = (s.entity.component, s.entity.host, s.time_s // window_s)
        highest[key] = max(highest.get(key, 0.0), s.values["anon_bytes"])
    cells = {}
    for (component, _, window), value in highest.items():
        cell = (component, int(bucket_of(np.array([value]))[0]), window * window_s)
        cells[cell] = cells.get(cell, 0) + 1
    return cells


def cells_of(pivot):
    return {
        (pivot.components[c], int(b), float(w)): int(n)
        for c, b, w, n in zip(pivot.component, pivot.bucket, pivot.window_start_s, pivot.hosts)
    }


def random_samples(seed=3):
    random = np.random.default_rng(seed)
    return [
        sample(Entity(f"h{h}", f"c{c}", p, 1.0), float(t), anon_bytes=float(random.lognormal(18, 2)))
        for h in range(7) for c in range(3) for p in range(2) for t in range(0, 1200, 37)
    ]  # fmt: skip


def test_pivot_counts_hosts_per_bucket_and_window():
    samples = random_samples()
    with Store() as store:
        store.append(samples)
        pivot = store.pivot(window_s=300.0)
        assert cells_of(pivot) == pivot_by_hand(samples, 300.0)
        assert set(pivot.hosts_of) == {7}
        assert len(store.pivot("nothing")) == 0


def test_pivots_of_shards_add_up():
    samples = random_samples()
    with Store() as whole:
        whole.append(samples)
        shards = []
        for part in range(2):
            with Store() as store:
                store.append([s for s in samples if int(s.entity.host[1:]) % 2 == part])
                shards.append(store.pivot(window_s=300.0))
        merged, expected = merge_pivots(shards), whole.pivot(window_s=300.0)
    assert cells_of(merged) == cells_of(expected)
    np.testing.assert_array_equal(merged.hosts_of, expected.hosts_of)
    with pytest.raises(ValueError, match="differ in metric or window"):
        merge_pivots([merged, Store().pivot(window_s=60.0)])


def test_buckets_are_half_octaves():
    mebibyte = 1048576.0
    values = np.array([0.0, 0.5, 1.0, 1.41, 1.42, 2.0, 1024.0]) * mebibyte
    assert bucket_of(values).tolist() == [0, 0, 0, 0, 1, 2, 20]
    assert bucket_edge_bytes(20) == 1024 * mebibyte


def test_words_survive_json():
    finding = Finding(
        "id", A, "anon_bytes", "leak", "steady", 1.0, 2.0, 3.0, 0.4, 0.5, why=("a", "b"), evidence={"x": 1.0}
    )
    assert finding_from_json(to_json(finding)) == finding
    diagnosis = Diagnosis(
        "id", 1, "python-heap", (Suspect("f.py", 3, "g", 1.0, None, "memray"),), 0.5, 2.0, ("p",)
    )
    assert diagnosis_from_json(to_json(diagnosis)) == diagnosis
    assert to_json(Action("id", "trim", ("a",), False, None, "why", 1.0))["command"] == ("a",)


WRITER = """
import sys
from resin.agent.wire import Batch
from resin.model import Entity, Sample
from resin.store import Store
store = Store(sys.argv[1])
first = int(sys.argv[2])
for seq in range(first, 10**9):
    samples = tuple(Sample(Entity("h", f"c{n}", n, 1.0), float(seq), {"anon_bytes": float(seq)}) for n in range(1, 20))
    store.append_batches([Batch("s", seq, "h", samples)])
    print(seq, flush=True)
"""


def test_kill_at_any_moment_loses_nothing_acknowledged(tmp_path):
    path = str(tmp_path / "r.duckdb")
    acknowledged = -1
    for round_number in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(acknowledged + 1)], stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 0.4 + 0.13 * round_number
        while time.monotonic() < deadline or acknowledged < 10 * (round_number + 1):
            line = writer.stdout.readline()
            assert line, "the writer ended by itself"
            acknowledged = int(line)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        with Store(path) as store:
            found = list(store.series("anon_bytes"))
            assert len(found) == 19
            for one in found:
                assert set(range(acknowledged + 1)) <= set(one.values)
                assert len(one.values) == len(set(one.times_s))
                assert len(one.values) <= acknowledged + 2  # at most one batch was stored and not yet told
            acknowledged = int(max(found[0].values))
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM samples").fetchone() == (19 * (acknowledged + 1),)


FULL_DISK = """
import os, resource, sys
from resin.agent.wire import Batch
from resin.model import Entity, Sample
from resin.store import Store, StoreError

def batch(seq):
    rows = (Sample(Entity("h", f"c{n}", n, 1.0), float(seq), {"anon_bytes": seq + n / 1e4}) for n in range(1, 2000))
    return Batch("s", seq, "h", tuple(rows))

path = sys.argv[1]
store, acknowledged, failures = Store(path), -1, 0
for seq in range(3):
    store.append_batches([batch(seq)])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path + ".wal") + 200_000, hard))
seq = 3
while failures < 4:
    try:
        store.append_batches([batch(seq)])
        seq += 1
    except StoreError as error:
        failures += 1
        assert "cannot write to the store" in str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
store.append_batches([batch(seq)])
print(seq)
"""


def test_full_disk_refuses_and_goes_on_when_there_is_room_again(tmp_path):
    path = str(tmp_path / "r.duckdb")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 3
    with Store(path) as store:
        found = list(store.series("anon_bytes"))
        assert len(found) == 1999
        assert {s.times_s for s in found} == {tuple(float(t) for t in range(last + 1))}


CHURN = """
import sys
from resin.agent.wire import Batch
from resin.model import Entity, Sample
from resin.store import Store

def anon_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1000

entities = [Entity("h", f"c{i}", i + 1, 1.0, "g") for i in range(60)]
values = {"anon_bytes": 1e8, "rss_bytes": 2e8, "fds": 3.0, "threads": 4.0, "uss_bytes": 1.0}
store = Store(sys.argv[1], memory_bytes=50_000_000, threads=2)
for seq in range(1, 4501):
    store.append_batches([Batch("s", seq, "h", tuple(Sample(e, seq * 0.5, values) for e in entities))])
    if seq % 150 == 0:
        store.forget_before(seq * 0.5 - 60)
        store.records.put_many("finding", [(f"f{i}", seq * 0.5, {"text": "y" * 2000}) for i in range(50)])
    if seq in (1500, 4500):
        print(anon_mb())
"""


@pytest.mark.slow
def test_memory_stays_level_over_thousands_of_transactions(tmp_path):
    command = [sys.executable, "-c", CHURN, str(tmp_path / "r.duckdb")]
    early, late = map(
        float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    # A leak of one transaction's own columns (6.6 kB) would be 20 MB.
    assert late - early < 8
