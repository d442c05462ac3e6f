"""The service over HTTP: acknowledged means durable, strangers stay out, hostile input is refused."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from resin.agent import wire
from resin.config import Config, ConfigError
from resin.model import Diagnosis, Entity, Finding, Sample, Suspect
from resin.service.app import create_app
from resin.store import Store
from resin.store.records import to_json

NOW = 0.0


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """The present when a test begins, not when the file was read: minutes may pass between, and leakers end."""
    monkeypatch.setitem(globals(), "NOW", time.time())


LEAKER = Entity("far", "train.py", 41, 1000.0, "train.py/41@1000")
STEADY = Entity("far", "serve.py", 42, 1000.0)


def leak_samples(points=240, step_s=60.0):
    start = NOW - points * step_s
    for i in range(points):
        at = start + i * step_s
        yield Sample(LEAKER, at, {"anon_bytes": 2e8 + i * 4e6 + (i % 3) * 1e5, "limit_bytes": 4e9, "fds": 12})
        yield Sample(STEADY, at, {"anon_bytes": 3e8 + (i % 5) * 1e5, "limit_bytes": 4e9, "fds": 9})


def body(samples, session="s", seq=0, host="far"):
    return wire.encode(session, seq, host, list(samples))


GZIP = {"Content-Encoding": "gzip", "Content-Type": "application/json"}


@pytest.fixture
def store():
    with Store() as opened:
        yield opened


def client_of(store, base_url="http://127.0.0.1:8790", **options):
    app = create_app(store, Config(host="here", **options), background=False)
    return TestClient(app, base_url=base_url, raise_server_exceptions=False)


@pytest.fixture
def client(store):
    with client_of(store) as opened:
        yield opened


def test_acknowledged_samples_are_stored_once(client, store):
    for expected in (False, True):
        answer = client.post("/api/v1/ingest", content=body(leak_samples(3)), headers=GZIP)
        assert answer.status_code == 200
        assert answer.json()["duplicate"] is expected
    assert store.sample_count() == 3 * 2 * 3
    plain = json.dumps(
        {"v": 1, "session": "p", "seq": 0, "host": "h", "samples": [["c", None, None, None, 5, {"m": 1}]]}
    )
    assert client.post("/api/v1/ingest", content=plain).json()["stored"] == 1


def test_findings_from_samples_to_answers(client):
    client.post("/api/v1/ingest", content=body(leak_samples()), headers=GZIP)
    client.post("/api/v1/detect")
    answer = client.get("/api/v1/findings?status=open&verdict=leak").json()
    assert [f["entity"]["key"] for f in answer["findings"]] == [LEAKER.key]
    found = client.get(f"/api/v1/findings/{answer['findings'][0]['id']}").json()
    assert found["series"]["points"] == 240
    assert found["series"]["limit_bytes"] == 4e9
    assert found["fit"]["per_hour"] == pytest.approx(4e6 * 60, rel=0.1)
    assert found["fit"]["end_value"] > found["fit"]["start_value"]
    assert found["diagnosis"] is None
    assert found["status"] == "open"
    by_prefix = client.get(f"/api/v1/findings/{found['id'][:6]}").json()
    assert by_prefix["id"] == found["id"]
    series = client.get("/api/v1/series", params={"metric": "anon_bytes", "entity": STEADY.key}).json()
    assert len(series["series"]) == 1
    assert client.get("/api/v1/findings/none").status_code == 404


def test_series_of_processes_that_ended_are_not_judged_again(client):
    client.post("/api/v1/ingest", content=body(leak_samples()), headers=GZIP)
    for _ in range(3):
        client.post("/api/v1/detect")
    before = client.get("/api/v1/findings").json()["findings"]
    told = client.get("/metrics").text
    assert 'resin_detection_series{judged="anew"} 0' in told
    assert 'resin_detection_series{judged="before"} 4' in told  # memory and descriptors of two processes
    client.post(
        "/api/v1/ingest", content=body([Sample(STEADY, NOW, {"anon_bytes": 3e8})], seq=1), headers=GZIP
    )
    client.post("/api/v1/detect")
    assert 'resin_detection_series{judged="anew"} 1' in client.get("/metrics").text
    assert [f["id"] for f in client.get("/api/v1/findings").json()["findings"]] == [f["id"] for f in before]


def test_long_series_keep_their_extremes(client, store):
    store.append([Sample(STEADY, float(i), {"anon_bytes": 1e9 if i == 7777 else 5.0}) for i in range(20_000)])
    one = client.get("/api/v1/series", params={"metric": "anon_bytes", "entity": STEADY.key}).json()[
        "series"
    ][0]
    assert one["points"] == 20_000
    assert len(one["times_s"]) <= 2002
    assert max(one["values"]) == 1e9


def finding(**changes):
    values = {
        "id": "f1", "entity": LEAKER, "metric": "anon_bytes", "verdict": "leak", "growth_class": "steady",
        "start_s": NOW - 600, "end_s": NOW, "slope_bytes_per_hour": 1e9, "severity": 0.9, "confidence": 0.9,
    }  # fmt: skip
    return Finding(**{**values, **changes})


def keep(client, *findings):
    client.app.state.findings._keep(list(findings), time.time())


def test_life_of_a_finding(client):
    keep(client, finding())
    first = client.get("/api/v1/findings").json()["findings"][0]
    keep(client, finding(severity=0.95))
    again = client.get("/api/v1/findings").json()["findings"][0]
    assert again["first_seen_s"] == first["first_seen_s"]
    assert again["severity"] == 0.95
    keep(client)
    cleared = client.get("/api/v1/findings").json()["findings"][0]
    assert (cleared["status"], cleared["cleared_s"] is not None) == ("cleared", True)
    keep(client, finding())
    assert client.get("/api/v1/findings").json()["findings"][0]["status"] == "open"


def test_a_finding_on_a_process_that_ended_says_so(client, store):
    store.append(
        [
            Sample(LEAKER, time.time() - 3600, {"anon_bytes": 1.0}),
            Sample(STEADY, time.time(), {"anon_bytes": 1.0}),
        ]
    )
    keep(client, finding(), finding(id="f2", entity=STEADY))
    found = {f["id"]: f for f in client.get("/api/v1/findings").json()["findings"]}
    assert (found["f1"]["status"], found["f2"]["status"]) == ("ended", "open")
    assert found["f1"]["ended_s"] == pytest.approx(time.time() - 3600, abs=60)
    assert 'resin_findings{verdict="leak"} 1' in client.get("/metrics").text


def test_a_job_is_no_second_finding_on_its_one_leaking_process(client):
    job = Entity("far", "train.py:job", 41, 1000.0, LEAKER.group)
    helpers = Entity("far", "other.py:job", 50, 1000.0, "other.py/50@1000")
    keep(
        client,
        finding(),
        finding(id="echo", entity=job, slope_bytes_per_hour=1.2e9),
        finding(id="sum", entity=helpers),
    )
    assert {f["id"] for f in client.get("/api/v1/findings").json()["findings"]} == {"f1", "sum"}
    keep(client, finding(), finding(id="echo", entity=job, slope_bytes_per_hour=9e9))
    assert "echo" in {f["id"] for f in client.get("/api/v1/findings?status=open").json()["findings"]}


def test_a_better_metric_takes_the_finding_over(client):
    keep(client, finding())
    client.app.state.findings.keep_diagnosis("f1", Diagnosis("f1", 41, "unknown", (), 0.1, 0.0, ()))
    keep(client, finding(id="f2", metric="uss_bytes"))
    assert [(f["id"], f["status"]) for f in client.get("/api/v1/findings").json()["findings"]] == [
        ("f2", "open")
    ]
    followed = client.get("/api/v1/findings/f1").json()
    assert followed["id"] == "f2"
    assert followed["diagnosis"]["pid"] == 41  # it is about the same process


def test_flat_and_bounded_series_make_no_list(client):
    keep(
        client,
        finding(verdict="bounded", growth_class="flat"),
        finding(id="f2", verdict="bounded", growth_class="plateau"),
    )
    assert [f["id"] for f in client.get("/api/v1/findings").json()["findings"]] == ["f2"]


def test_diagnosis_is_asked_of_the_hosts_agent(client):
    keep(client, finding())
    assert client.post("/api/v1/findings/f1/diagnose").json() == {"state": "asked", "host": "far"}
    other = client.post("/api/v1/ingest", content=body([], host="elsewhere"), headers=GZIP).json()
    assert other["diagnose"] == []
    asked = client.post("/api/v1/ingest", content=body([], seq=1), headers=GZIP).json()["diagnose"]
    assert [f["id"] for f in asked] == ["f1"]
    assert client.post("/api/v1/ingest", content=body([], seq=2), headers=GZIP).json()["diagnose"] == []
    suspect = Suspect("train.py", 12, "step", 5e6, 0.9, "tracemalloc")
    told = to_json(Diagnosis("f1", 41, "python-heap", (suspect,), 0.8, 3.0, ("helper: ok",)))
    assert client.post("/api/v1/diagnoses", json=told).status_code == 200
    assert client.get("/api/v1/findings/f1").json()["diagnosis"]["suspects"][0]["line"] == 12
    assert client.post("/api/v1/diagnoses", json={**told, "finding_id": "none"}).status_code == 404
    assert client.post("/api/v1/diagnoses", json={"suspects": 3}).status_code == 422


def test_what_cannot_be_diagnosed_or_mitigated_says_so(client):
    keep(
        client,
        finding(id="k1", entity=Entity("here", "kernel")),
        finding(id="g1", entity=Entity("here", "x", 2**22 + 5, 1.0)),
    )
    assert "not a process" in client.post("/api/v1/findings/k1/diagnose").json()["error"]
    assert "has ended" in client.post("/api/v1/findings/g1/diagnose").json()["error"]
    assert client.post("/api/v1/findings/none/diagnose").status_code == 404
    answer = client.post("/api/v1/findings/g1/mitigate", json={"apply": True})
    assert answer.status_code == 409
    assert "mitigations" in answer.json()["error"]
    assert client.post("/api/v1/findings/g1/mitigate", json={"apply": "yes"}).status_code == 422
    assert client.post("/api/v1/findings/g1/mitigate", content=b"[" * 3000).status_code == 422


def test_without_token_only_this_machine_is_answered(store):
    for url, status in (
        ("http://localhost:8790", 200),
        ("http://[::1]:8790", 200),
        ("http://evil.example", 421),  # a foreign page whose name resolves to 127.0.0.1
        ("http://127.0.0.1.evil.example", 421),
        ("http://friend.example", 200),
    ):
        with client_of(store, base_url=url, allowed_hosts=("friend.example",)) as client:
            assert client.get("/api/v1/findings").status_code == status, url


def test_foreign_origins_cannot_write(client):
    refused = client.post("/api/v1/detect", headers={"Origin": "http://evil.example"})
    assert refused.status_code == 403
    assert client.get("/api/v1/findings", headers={"Origin": "http://evil.example"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/").headers


def test_token(store):
    with client_of(store, base_url="http://resin.example", token="s3cret") as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/", "/app.js", "/metrics", "/api/v1/findings"):
            assert client.get(path).status_code == 401, path
        refused = client.post("/api/v1/ingest", content=body(leak_samples(2)), headers=GZIP)
        assert refused.status_code == 401
        assert store.sample_count() == 0
        for header in (
            "Bearer s3cret",
            "Basic " + base64.b64encode(b"anyone:s3cret").decode(),
        ):
            assert client.get("/api/v1/findings", headers={"Authorization": header}).status_code == 200
        for header in (
            "Bearer wrong",
            "Bearer",
            "Basic !!!",
            "Basic " + base64.b64encode(b"\xff").decode(),
            "s3cret",
        ):
            assert client.get("/api/v1/findings", headers={"Authorization": header}).status_code == 401


def test_beyond_loopback_a_token_is_required(store):
    with pytest.raises(ConfigError, match="set the option `token`"):
        create_app(store, Config(listen_host="0.0.0.0"))
    create_app(store, Config(listen_host="0.0.0.0", token="x"), background=False)


def test_bodies_are_bounded(store):
    with client_of(store, max_body_bytes=10_000) as client:
        assert client.post("/api/v1/ingest", content=b"x" * 20_000).status_code == 413

        def endless():
            for _ in range(100):
                yield b"x" * 1000

        assert client.post("/api/v1/ingest", content=endless()).status_code == 413
        bomb = client.post("/api/v1/ingest", content=gzip.compress(b" " * 1_000_000), headers=GZIP)
        assert bomb.status_code == 422
        assert "inflates" in bomb.json()["error"]
        assert (
            client.post("/api/v1/ingest", content=b"", headers={"Content-Encoding": "br"}).status_code == 422
        )


def test_cardinality_is_bounded_and_told():
    with Store(max_entities=10) as store, client_of(store) as client:
        many = [Sample(Entity("far", f"c{i}"), 1.0, {"fds": 1}) for i in range(50)]
        answer = client.post("/api/v1/ingest", content=body(many), headers=GZIP).json()
        assert (answer["stored"], answer["elided"]) == (10, 40)
        assert "resin_ingest_elided_values_total 40" in client.get("/metrics").text


def test_a_store_that_fails_is_not_acknowledged(client, store):
    store._connection.execute("ALTER TABLE samples RENAME TO gone")
    answer = client.post("/api/v1/ingest", content=body(leak_samples(2)), headers=GZIP)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    store._connection.execute("ALTER TABLE gone RENAME TO samples")
    again = client.post("/api/v1/ingest", content=body(leak_samples(2)), headers=GZIP)
    assert again.json() | {"diagnose": []} == {"stored": 12, "elided": 0, "duplicate": False, "diagnose": []}


PATHS = [
    "/api/v1/ingest",
    "/api/v1/diagnoses",
    "/api/v1/findings/f1/mitigate",
    "/api/v1/findings/f1/diagnose",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.binary(max_size=300), st.sampled_from(["", "gzip", "identity", "deflate"]))
def test_hostile_bodies(client, path, data, encoding):
    answer = client.post(path, content=data, headers={"Content-Encoding": encoding} if encoding else {})
    assert answer.status_code in {200, 404, 409, 413, 422}
    assert answer.json()


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["metric", "entity", "component", "host", "since", "until", "status"]), text
    )
)
def test_hostile_queries(client, query):
    for path in ("/api/v1/series", "/api/v1/findings"):
        answer = client.get(path, params=query)
        assert answer.status_code in {200, 422}, (path, query, answer.text)
        assert isinstance(answer.json(), dict)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text.filter(lambda t: t not in {"", ".", ".."}))
def test_hostile_ids(client, identifier):
    import urllib.parse

    answer = client.get("/api/v1/findings/" + urllib.parse.quote(identifier, safe=""))
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_hostile_names_come_out_as_text(client):
    evil = '<script>alert(1)</script>"\\'
    entity = Entity("far", evil, 7, 1.0)
    client.post("/api/v1/ingest", content=body([Sample(entity, NOW, {"anon_bytes": 1e8})]), headers=GZIP)
    keep(client, finding(entity=entity))
    assert client.get("/api/v1/fleet").json()["entities"][0]["component"] == evil
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert evil not in page.text
    line = next(t for t in client.get("/metrics").text.splitlines() if t.startswith("resin_finding_severity"))
    assert r"<script>alert(1)</script>\"\\" in line


def test_metrics_are_as_prometheus_wants_them(client):
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed")
    client.post("/api/v1/ingest", content=body(leak_samples(5)), headers=GZIP)
    keep(client, finding(hours_to_limit=3.5))
    exposition = client.get("/metrics")
    assert exposition.headers["content-type"].startswith("text/plain; version=0.0.4")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exposition.text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        'resin_finding_time_to_limit_seconds{id="f1",host="far",component="train.py",pid="41"'
        in exposition.text
    )


def test_fleet_view(client):
    samples = [
        Sample(Entity("far", "host"), NOW, {"memory_total_bytes": 8e9, "memory_available_bytes": 2e9}),
        Sample(LEAKER, NOW, {"anon_bytes": 5e8}),
        Sample(Entity("far", "train.py:job", 41, 1000.0), NOW, {"anon_bytes": 9e8}),
        Sample(Entity("old", "gone.py", 3, 5.0), NOW - 86400, {"anon_bytes": 5e8}),
    ]
    client.post("/api/v1/ingest", content=body(samples[:3]), headers=GZIP)
    client.post("/api/v1/ingest", content=body(samples[3:], session="t", host="old"), headers=GZIP)
    view = client.get("/api/v1/fleet").json()
    assert [h["host"] for h in view["hosts"]] == ["far"]
    assert view["hosts"][0]["processes"] == 1
    assert view["hosts"][0]["memory_available_bytes"] == 2e9
    assert [e["component"] for e in view["entities"]] == ["train.py:job", "train.py"]


def test_errors_are_json(client):
    assert client.get("/nothing").json() == {"error": "there is nothing at this address"}
    assert client.delete("/api/v1/findings").status_code == 405
