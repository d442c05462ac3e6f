"""Agents, service, commands and page as real processes on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request

import pytest
import resin_servers

from resin.store import Store

LEAK = """
import time
kept = []
def remember(size):
    kept.append(bytearray(size))  # the line to be named
end = time.monotonic() + float(__import__("sys").argv[1])
while time.monotonic() < end:
    remember(400_000)
    time.sleep(0.05)
"""
STEADY = """
import random, time
held = bytearray(50_000_000)
end = time.monotonic() + float(__import__("sys").argv[1])
while time.monotonic() < end:
    scratch = bytearray(random.randint(1, 5) * 1_000_000)
    time.sleep(0.05)
"""


@contextlib.contextmanager
def process(*arguments, **options):
    running = subprocess.Popen([sys.executable, "-m", "resin", *arguments], **options)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        try:
            running.wait(timeout=20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if found := condition():
                return found
        time.sleep(0.1)
    pytest.fail(f"not within {seconds} s: {condition}")


def get(url, path, context=None, token=None):
    request = urllib.request.Request(
        url + path, headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        return json.load(answer)


def options_for(tmp_path, port, **more):
    values = {"state_dir": tmp_path, "service_url": f"http://127.0.0.1:{port}", "listen_port": port, **more}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def script(tmp_path, text, name):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_agent_and_service_survive_kills(tmp_path):
    """Both are killed over and over; every tick that the agent put on disk is stored exactly once at the end."""
    port = resin_servers.free_port()
    options = options_for(
        tmp_path, port, tick_s=0.1, slow_tick_s=1, detect_every_s=3600, host="h", cpu_budget=0.5
    )
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    url = f"http://127.0.0.1:{port}"
    for pause in (0.7, 0.4):
        with process(*options, "serve", **silent) as service, process(*options, "agent", **silent) as agent:
            wait_for(lambda: get(url, "/healthz"))
            wait_for(lambda: get(url, "/api/v1/fleet")["entities"])
            time.sleep(pause)
            service.send_signal(signal.SIGKILL)
            time.sleep(0.5)  # the agent goes on and keeps its batches
            agent.send_signal(signal.SIGKILL)
            agent.wait()
    left = os.listdir(tmp_path / "agent" / "buffer")
    assert [n for n in left if n.endswith(".batch")]
    with process(*options, "serve", **silent), process(*options, "agent", **silent) as agent:
        wait_for(lambda: not set(left) & set(os.listdir(tmp_path / "agent" / "buffer")))
        agent.terminate()
        agent.wait(timeout=20)
    with Store(str(tmp_path / "resin.duckdb")) as store:
        own = next(store.series("cpu_seconds_total", entity="h/agent"))
        assert len(set(own.times_s)) == len(own.times_s)
        rows = store._connection.execute("SELECT session, seq FROM sessions").fetchall()
        assert len(rows) == len(set(rows))
        by_session = {}
        for session, seq in rows:
            by_session.setdefault(session, []).append(seq)
        assert len(by_session) == 3
        for seqs in by_session.values():  # no gap: nothing that was taken was lost
            assert sorted(seqs) == list(range(len(seqs)))
        assert len(own.times_s) == len(rows)


@pytest.mark.slow
def test_watch_names_the_leaking_line(tmp_path):
    program = script(tmp_path, LEAK, "leak.py")
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "resin",
        "watch",
        "--json",
        str(report),
        "--",
        sys.executable,
        program,
        "45",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    content = json.loads(report.read_text())
    assert content["verdict"] == "leak"
    assert content["findings"][0]["slope_bytes_per_hour"] == pytest.approx(400_000 * 20 * 3600, rel=0.25)
    suspects = next(iter(content["diagnoses"].values()))["suspects"]
    assert any(
        s["file"] == program and LEAK.splitlines()[s["line"] - 1].strip().startswith("kept.append")
        for s in suspects
    )


@pytest.mark.slow
def test_watch_leaves_a_steady_program_alone(tmp_path):
    program = script(tmp_path, STEADY, "steady.py")
    command = [sys.executable, "-m", "resin", "watch", "--no-diagnose", "--", sys.executable, program, "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def chromium(url, *extra):
    binary = (
        shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium is installed")
    )
    command = [
        binary,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=5000",
        *extra,
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def served(store):
    """The application over `store` on loopback, without detection: what is shown is what the test put in."""
    import uvicorn

    from resin.config import Config
    from resin.service.app import create_app

    port = resin_servers.free_port()
    app = create_app(store, Config(host="h"), background=False)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(url, "/healthz"))
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def test_page_shows_findings_and_a_process(tmp_path):
    from resin.config import Config
    from resin.model import Diagnosis, Entity, Finding, Sample, Suspect
    from resin.service.findings import Findings

    now = time.time()
    evil = "<img src=x onerror=document.title=1>"
    leaker, other = Entity("h", "train.py", 4, 50.0), Entity("h", evil, 5, 51.0)
    with Store(str(tmp_path / "resin.duckdb")) as store:
        for entity, slope in ((leaker, 1e6), (other, 0.0)):
            store.append(
                Sample(
                    entity,
                    now - 3600 + i * 10,
                    {"anon_bytes": 1e8 + max(0, i - 100) * slope, "limit_bytes": 6e8},
                )
                for i in range(360)
            )
        found = Findings(store, Config())
        first = Finding("aaaa000000", leaker, "anon_bytes", "leak", "steady", now - 2600, now, 3.6e8, 0.9, 0.8,
                        hours_to_limit=0.7, why=("the floor rose",))  # fmt: skip
        second = Finding(
            "bbbb000000", other, "anon_bytes", "retention", "stair", now - 2600, now, 1e6, 0.3, 0.6
        )
        found._keep([first, second], now)
        suspect = Suspect("/srv/train.py", 12, "remember", 2.5e8, 0.93, "tracemalloc")
        found.keep_diagnosis(
            "aaaa000000", Diagnosis("aaaa000000", 4, "python-heap", (suspect,), 0.8, 5.0, ("helper: ok",))
        )
    with Store(str(tmp_path / "resin.duckdb")) as store, served(store) as url:
        listed = chromium(f"{url}/")
        assert "1 leaking, 1 retained by the allocator" in listed
        assert re.search(r'class="badge leak">leak</span>', listed)
        assert "<title>resin</title>" in listed  # the name with markup in it stayed text
        assert "&lt;img src=x" in listed
        shown = chromium(f"{url}/#/finding/aaaa000000")
        for part in ('class="fit"', 'class="forecast"', 'class="change"', 'class="data"', "growth starts", "steady",
                     "the floor rose", "/srv/train.py:12", "remember", "93 %", "42 min", "Plan (dry run)"):  # fmt: skip
            assert part in shown, part
        fleet = chromium(f"{url}/#/fleet")
        assert "h/train.py/4@50" in fleet
        entity = chromium(f"{url}/#/entity/h%2Ftrain.py%2F4%4050")
        assert "anon_bytes" in entity
        assert "<polyline" in entity


def test_tls_and_token_between_agent_and_service(tmp_path):
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    port = resin_servers.free_port()
    url = f"https://127.0.0.1:{port}"
    options = options_for(tmp_path, port, service_url=url, token="s3cret", ca_file=certificate, tls_cert=certificate,
                          tls_key=key, listen_host="0.0.0.0", tick_s=0.2, host="h", cpu_budget=0.5)  # fmt: skip
    context = ssl.create_default_context(cafile=str(certificate))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with process(*options, "serve", **silent), process(*options, "agent", **silent):
        wait_for(lambda: get(url, "/healthz", context))
        wait_for(lambda: get(url, "/api/v1/fleet", context, "s3cret")["hosts"])
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url, "/api/v1/fleet", context)
    listed = subprocess.run(
        [sys.executable, "-m", "resin", *options, "agent", "--once"], capture_output=True, text=True
    )
    assert "s3cret" not in listed.stdout


def test_agent_writes_to_a_real_prometheus(tmp_path):
    from resin.store.prometheus import PrometheusStore

    with resin_servers.prometheus(tmp_path) as url:
        options = options_for(
            tmp_path, 1, remote_write_url=f"{url}/api/v1/write", tick_s=0.3, host="h", cpu_budget=0.5
        )
        with process(*options, "agent", stderr=subprocess.DEVNULL):
            store = PrometheusStore(url)
            series = wait_for(lambda: [s for s in store.series("cpu_seconds_total") if len(s.times_s) >= 3])
        assert [s.entity.key for s in series] == ["h/agent"]
        assert series[0].values[-1] > 0


def test_service_alone_samples_its_own_host(tmp_path):
    port = resin_servers.free_port()
    url = f"http://127.0.0.1:{port}"
    errors = (tmp_path / "errors.txt").open("w+")
    options = options_for(
        tmp_path, port, tick_s=0.2, host="h", detect_every_s=3600, min_process_bytes=1_000_000
    )
    with process(*options, "serve", "--with-agent", stdout=subprocess.DEVNULL, stderr=errors):
        wait_for(lambda: get(url, "/api/v1/fleet")["entities"])
    errors.seek(0)
    assert errors.read() == ""
    errors.close()
