"""Mitigation: what is planned, what is refused, and that acting keeps the rules. On real processes."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from resin.agent.identity import start_time_s
from resin.config import make_config
from resin.diagnose import preload
from resin.mitigate import apply, audit, checkpoint, mitigations, plan
from resin.mitigate.base import Context, fill
from resin.mitigate.builtin import CheckpointRestart
from resin.model import Action, Diagnosis, Entity, Finding

NAMES = tuple(mitigations())


def finding(pid=None, *, component="server.py", verdict="leak", start=None, group=None) -> Finding:
    return Finding(
        id="f1",
        entity=Entity("h", component, pid, start, group),
        metric="anon_bytes",
        verdict=verdict,
        growth_class="steady",
        start_s=0.0,
        end_s=1.0,
        slope_bytes_per_hour=1e9,
        severity=0.9,
        confidence=0.9,
        why=("it grows",),
    )


def config(tmp_path, **options):
    base = {"state_dir": str(tmp_path / "state"), "mitigations": NAMES}
    return make_config({**base, **options})


@pytest.fixture
def target(tmp_path):
    """Start a Python program; gives (pid, start time, directory)."""
    running = []

    def begin(text="import time\ntime.sleep(60)\n", *, helper=False):
        path = tmp_path / "job.py"
        path.write_text(textwrap.dedent(text))
        control = tmp_path / "control"
        control.mkdir(exist_ok=True)
        env = preload.environment(control) if helper else None
        process = subprocess.Popen([sys.executable, str(path)], env=env, stdout=subprocess.PIPE, text=True)
        running.append(process)
        deadline = time.monotonic() + 10
        while helper and preload.control_dir_of(process.pid) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return process, start_time_s(process.pid)

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def names(actions):
    return [a.name for a in actions]


def planned(name, found, configuration, diagnosis=None):
    return next(a for a in plan(found, diagnosis, configuration) if a.name == name)


def test_lightest_first_and_nothing_is_done(tmp_path, target):
    process, started = target()
    configuration = config(
        tmp_path,
        webhook_url="http://127.0.0.1:9/",
        drain_command="touch drained",
        restart_command="touch restarted",
    )
    found = plan(finding(process.pid, start=started), None, configuration)
    assert names(found) == ["notify", "profile-next-restart", "drain-restart", "restart-unit"]
    assert all(not a.applied and a.ok is None for a in found)
    assert not (tmp_path / "state").exists()
    assert process.poll() is None


def test_what_is_not_possible_is_told_on_request(tmp_path):
    found = plan(finding(), None, config(tmp_path), with_refused=True)
    reasons = {a.name: a.reason for a in found if a.ok is False}
    assert "webhook_url" in reasons["notify"]
    assert "drain_command is not configured" in reasons["drain-restart"]
    assert "killing a data-loader worker ends its trainer" in reasons["recycle-workers"]


@pytest.mark.parametrize("verdict", ["bounded", "unclear"])
def test_nothing_to_do_once_the_detector_clears(tmp_path, verdict):
    configuration = config(tmp_path, restart_command=f"touch {tmp_path}/restarted")
    cleared = finding(verdict=verdict)
    assert plan(cleared, None, configuration) == []
    done = apply(Action("f1", "restart-unit", (), False, None, "", 0.0), cleared, None, configuration)
    assert (done.applied, done.ok) == (False, False)
    assert not (tmp_path / "restarted").exists()


def test_only_what_is_listed_is_applied(tmp_path):
    configuration = config(tmp_path, mitigations=(), restart_command=f"touch {tmp_path}/restarted")
    action = planned("restart-unit", finding(), configuration)
    assert "list it in the option" in action.reason
    done = apply(action, finding(), None, configuration)
    assert (done.applied, done.ok) == (False, False)
    assert not (tmp_path / "restarted").exists()


def test_restart_runs_the_command_once_and_writes_the_trail(tmp_path):
    configuration = config(tmp_path, restart_command=f"touch '{tmp_path}/{{component}} of {{host}}'")
    action = planned("restart-unit", finding(), configuration)
    assert action.command == ("touch", f"{tmp_path}/server.py of h")
    done = apply(action, finding(), None, configuration)
    assert (done.applied, done.ok) == (True, True)
    assert (tmp_path / "server.py of h").exists()
    [entry] = audit.entries(configuration.audit_file)
    assert (entry["name"], entry["ok"], entry["finding_id"]) == ("restart-unit", True, "f1")
    assert os.stat(configuration.audit_file).st_mode & 0o077 == 0
    again = apply(action, finding(), None, configuration)
    assert (again.applied, again.ok) == (False, False)
    assert "cool-down" in again.reason


def test_budget_and_escalation(tmp_path):
    configuration = config(
        tmp_path, restart_command="true", mitigate_cooldown_s=10.0, mitigate_max_per_hour=2
    )
    now = time.time()
    for age, identifier in ((60, "x"), (120, "y")):
        audit.record(configuration.audit_file, Action(identifier, "trim", (), True, True, "", now - age))
    done = apply(Action("f1", "restart-unit", (), False, None, "", 0.0), finding(), None, configuration)
    assert "budget is 2" in done.reason
    other = config(tmp_path / "b", restart_command="true", mitigate_cooldown_s=10.0)
    for age in (4000, 8000):
        audit.record(other.audit_file, Action("f1", "restart-unit", (), True, True, "", now - age))
    refused = plan(finding(), None, other, with_refused=True)
    assert "a heavier action is due" in next(a.reason for a in refused if a.name == "restart-unit")


def test_torn_lines_of_the_trail_are_skipped(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit.record(path, Action("f1", "trim", (), True, True, "", 1.0))
    with open(path, "a") as file:
        file.write('{"name": "trim", "ti\n[]\n')
    audit.record(path, Action("f1", "trim", (), True, True, "", 2.0))
    assert [e["time_s"] for e in audit.entries(path)] == [1.0, 2.0]
    assert list(audit.entries(tmp_path / "none")) == []


def test_notify_reaches_webhook_and_alertmanager(tmp_path):
    got = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    configuration = config(tmp_path, webhook_url=f"{base}/hook", alertmanager_url=base)
    done = apply(planned("notify", finding(), configuration), finding(), None, configuration)
    server.shutdown()
    server.server_close()
    assert (done.applied, done.ok) == (True, True)
    assert got["/hook"]["finding"]["id"] == "f1"
    [alert] = got["/api/v2/alerts"]
    assert alert["labels"]["alertname"] == "ResinMemoryLeak"
    assert alert["annotations"]["description"] == "it grows"
    failed = apply(planned("notify", finding(), configuration), finding(), None, configuration)
    assert (failed.applied, failed.ok) == (True, False)


def test_trim_frees_what_malloc_keeps(tmp_path, target):
    process, started = target(
        """
        import ctypes, time
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        blocks = [libc.malloc(4000) for _ in range(8000)]
        for block in blocks: ctypes.memset(block, 1, 4000)
        for number, block in enumerate(blocks):
            if number % 50: libc.free(block)
        time.sleep(60)
        """,
        helper=True,
    )
    time.sleep(1.0)
    configuration = config(tmp_path)
    kept = finding(process.pid, start=started, verdict="retention")
    done = apply(planned("trim", kept, configuration), kept, None, configuration)
    assert (done.applied, done.ok) == (True, True), done.reason
    assert "freed" in done.reason
    leaking = finding(process.pid, start=started)
    assert "trim" not in names(plan(leaking, None, configuration))
    fragmented = Diagnosis("f1", process.pid, "fragmentation", (), 0.8, 0.0, ())
    assert "trim" in names(
        plan(finding(process.pid, start=started, verdict="leak"), fragmented, config(tmp_path / "b"))
    )


def test_trim_needs_a_way_in(tmp_path, target):
    process, started = target()
    kept = finding(process.pid, start=started, verdict="retention")
    found = plan(kept, None, config(tmp_path), with_refused=True)
    reason = next(a.reason for a in found if a.name == "trim")
    assert sys.version_info >= (3, 14) or "no way into the target that cannot harm it" in reason


def test_drain_comes_before_the_end(tmp_path, target):
    process, started = target()
    found = finding(process.pid, start=started)
    failing = config(tmp_path / "a", drain_command="false")
    done = apply(planned("drain-restart", found, failing), found, None, failing)
    assert "not drained, so not ended" in done.reason
    assert process.poll() is None
    working = config(tmp_path / "b", drain_command="true")
    assert apply(planned("drain-restart", found, working), found, None, working).ok
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_a_reused_pid_is_left_alone(tmp_path, target):
    process, started = target()
    other = finding(process.pid, start=started - 3600.0)
    reason = plan(other, None, config(tmp_path, drain_command="true"), with_refused=True)
    assert "belongs to another process now" in next(a.reason for a in reason if a.name == "drain-restart")


TRAINER = """
    import os, signal, sys, time
    def save(*_):
        with open({path!r} + ".tmp", "wb") as file:
            file.write(b"weights" * 1000)
        os.rename({path!r} + ".tmp", {path!r})
    {handler}
    print("ready", flush=True)
    while True: time.sleep(0.1)
"""


def trainer(target, tmp_path, handler="signal.signal(signal.SIGUSR1, save)"):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    process, started = target(TRAINER.format(path=str(directory / "last.pt"), handler=handler))
    assert process.stdout.readline() == "ready\n"
    configuration = config(
        tmp_path,
        checkpoint_path=str(directory),
        restart_command=f"touch {tmp_path}/restarted",
        checkpoint_max_age_s=3.0,
    )
    return process, finding(process.pid, component="train.py", start=started), configuration, directory


def quick(monkeypatch):
    real = CheckpointRestart(confirm_s=3.0, settle_s=0.3)
    monkeypatch.setattr("resin.mitigate.BUILT_IN", (lambda: real,))


def test_a_trainer_is_restarted_after_a_confirmed_checkpoint(tmp_path, target, monkeypatch):
    process, found, configuration, directory = trainer(target, tmp_path)
    quick(monkeypatch)
    done = apply(planned("checkpoint-restart", found, configuration), found, None, configuration)
    assert (done.applied, done.ok) == (True, True), done.reason
    assert (directory / "last.pt").stat().st_size == 7000
    assert (tmp_path / "restarted").exists()


def test_a_trainer_without_a_handler_is_not_signalled(tmp_path, target, monkeypatch):
    process, found, configuration, _ = trainer(target, tmp_path, handler="pass")
    quick(monkeypatch)
    done = apply(planned("checkpoint-restart", found, configuration), found, None, configuration)
    assert (done.applied, done.ok) == (False, False)
    assert "does not handle SIGUSR1" in done.reason
    assert process.poll() is None
    assert not (tmp_path / "restarted").exists()


def test_a_trainer_whose_checkpoint_does_not_come_is_not_restarted(tmp_path, target, monkeypatch):
    process, found, configuration, _ = trainer(
        target, tmp_path, "signal.signal(signal.SIGUSR1, lambda *_: None)"
    )
    quick(monkeypatch)
    done = apply(planned("checkpoint-restart", found, configuration), found, None, configuration)
    assert done.ok is False
    assert "not restarted" in done.reason
    assert process.poll() is None
    assert not (tmp_path / "restarted").exists()


def test_a_trainer_is_never_restarted_by_the_unit(tmp_path):
    configuration = config(tmp_path, restart_command="true", drain_command="true")
    for component in ("train.py", "pretrain_gpt.py", "python-c", "job.py"):
        assert not {"restart-unit", "drain-restart"} & set(
            names(plan(finding(component=component), None, configuration))
        )


def test_checkpoints_half_written_do_not_count(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    (tmp_path / "a.pt").write_bytes(b"x" * 10)
    os.utime(tmp_path / "a.pt", (1000, 1000))
    (tmp_path / "b.pt.tmp").write_bytes(b"x")
    (tmp_path / "empty.pt").touch()
    sharded = tmp_path / "step-2"
    sharded.mkdir()
    (sharded / "rank0.pt").write_bytes(b"x" * 5)
    (sharded / "rank1.part").write_bytes(b"x")
    assert checkpoint.newest(tmp_path).path.name == "a.pt"
    (sharded / "rank1.part").unlink()
    assert checkpoint.newest(tmp_path).path.name == "step-2"
    assert checkpoint.confirm(tmp_path, time.time() + 60, timeout_s=0.3, settle_s=0.1) is None
    assert checkpoint.confirm(tmp_path, 0.0, timeout_s=2, settle_s=0.1).path.name == "step-2"
    assert checkpoint.confirm(tmp_path, 0.0, timeout_s=0.5, settle_s=0.1, usual_bytes=100) is None


def test_cordon_waits_for_a_restart_in_vain(tmp_path):
    configuration = config(tmp_path, cordon_command="true", mitigate_cooldown_s=1.0)
    assert "cordon" not in names(plan(finding(), None, configuration))
    audit.record(
        configuration.audit_file, Action("f1", "restart-unit", (), True, True, "", time.time() - 3000)
    )
    assert "cordon" in names(plan(finding(), None, configuration))
    assert "cordon" in names(
        plan(finding(component="kernel"), None, config(tmp_path / "b", cordon_command="true"))
    )


def test_profile_at_the_next_restart_makes_the_next_start_carry_the_helper(tmp_path):
    configuration = config(tmp_path)
    done = apply(planned("profile-next-restart", finding(), configuration), finding(), None, configuration)
    assert done.ok
    text = (tmp_path / "state" / "profile.env").read_text()
    env = {**os.environ, **dict(line.split("=", 1) for line in text.splitlines())}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], env=env)
    try:
        deadline = time.monotonic() + 10
        while preload.control_dir_of(process.pid) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert preload.control_dir_of(process.pid) is not None
    finally:
        process.kill()
        process.wait()


def test_placeholders(tmp_path):
    context = Context(finding(5, component="a b"), None, config(tmp_path), 0.0)
    assert fill("kill -HUP {pid} '{component}'", context) == ("kill", "-HUP", "5", "a b")
    with pytest.raises(ValueError, match=r"placeholders: \{pid\}"):
        fill("kill {parent}", context)


def test_a_failing_action_is_a_result(tmp_path):
    configuration = config(tmp_path, restart_command="kill {parent}")
    done = apply(Action("f1", "restart-unit", (), False, None, "", 0.0), finding(), None, configuration)
    assert (done.applied, done.ok) == (True, False)
    assert "placeholders" in done.reason
    missing = config(tmp_path / "b", restart_command="/no/such/program")
    assert (
        "no such program"
        in apply(planned("restart-unit", finding(), missing), finding(), None, missing).reason
    )


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are: notify, trim"):
        apply(Action("f1", "reboot", (), False, None, "", 0.0), finding(), None, config(tmp_path))
    with pytest.raises(ValueError, match="not f1"):
        apply(
            dataclasses.replace(Action("f2", "trim", (), False, None, "", 0.0)),
            finding(),
            None,
            config(tmp_path),
        )
