"""The command line: lazy imports, refusals with the closest name, configuration, text output."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from resin import cli
from resin.config import Config, ConfigError, is_loopback, load_config, make_config
from resin.show import bytes_text, finding_lines, plot
from resin.watch import Watch


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "resin", *arguments], capture_output=True, text=True, **options
    )


def modules_after(statement):
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_agent_stays_light():
    loaded = modules_after(
        "import resin.agent.agent, resin.agent.sender, resin.agent.buffer, resin.commands.agent"
    )
    assert not loaded & {
        "numpy",
        "duckdb",
        "rich",
        "starlette",
        "uvicorn",
        "httpx",
        "google.protobuf",
        "psutil",
    }


def test_commands_import_only_themselves():
    loaded = modules_after("import resin.cli\nresin.cli.command('findings')\nresin.cli.command('watch')")
    assert not loaded & {"uvicorn", "starlette", "duckdb", "numpy", "rich", "resin.commands.serve"}


def test_every_command_has_help():
    names = cli.command_names()
    assert {"agent", "serve", "top", "findings", "explain", "watch", "doctor"} <= set(names)
    text = cli.overview()
    for name in names:
        assert cli.command(name).HELP in text
    assert run("--help").returncode == 0
    assert "--once" in run("agent", "--help").stdout


def test_unknown_names_are_refused_with_the_closest():
    done = run("agnet")
    assert (done.returncode, "did you mean 'agent'" in done.stderr) == (2, True)
    done = run("--set", "tick=3", "doctor", "--options")
    assert (done.returncode, "tick_s" in done.stderr) == (2, True)
    done = run("--set", "tick_s", "doctor", "--options")
    assert (done.returncode, "NAME=VALUE" in done.stderr) == (2, True)


def test_config_from_file_environment_and_options(tmp_path):
    path = tmp_path / "resin.toml"
    path.write_text('tick_s = 5\nmitigations = ["notify", "trim"]\nhost = "from-file"\n')
    config = load_config(str(path), environ={"RESIN_HOST": "from-env", "RESIN_MAX_ENTITIES": "7", "OTHER": "x",
                                             "RESIN_STEPS_FILE": "/run/steps"})  # fmt: skip
    assert (config.tick_s, config.mitigations, config.host, config.max_entities) == (
        5.0,
        ("notify", "trim"),
        "from-env",
        7,
    )
    done = run("--config", str(path), "--set", "host=given", "doctor", "--options")
    assert "host = 'given'" in done.stdout
    assert "tick_s = 5.0" in done.stdout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tikc_s": 1}, "did you mean 'tick_s'"),
        ({"zzzzzz": 1}, "valid names"),
        ({"tick_s": "soon"}, "expected float"),
        ({"tick_s": 0}, "greater than 0"),
        ({"listen_port": 1.5}, "expected int"),
        ({"listen_port": True}, "expected int"),
        ({"auto_diagnose": "maybe"}, "expected bool"),
        ({"auto_diagnose": 1}, "expected bool"),
        ({"host": 3}, "expected str"),
        ({"mitigations": [1]}, "expected tuple"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_config(str(tmp_path / "none.toml"), environ={})
    (tmp_path / "bad.toml").write_text("tick_s = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(tmp_path / "bad.toml"), environ={})


def test_loopback():
    assert all(is_loopback(h) for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "127.0.0.1.evil.example", "10.0.0.1", ""))


def test_secrets_are_not_printed():
    done = run("--set", "token=hunter2", "doctor", "--options")
    assert "hunter2" not in done.stdout
    assert "token = (set)" in done.stdout


def test_doctor_tells_what_it_saw():
    done = run("doctor", "--json")
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert checks["process memory"]["works"] is True
    assert {"cgroups", "USS and PSS", "attaching (ptrace)", "GPU memory", "sys.remote_exec"} <= set(checks)
    assert all(c["seen"] for c in checks.values())


def test_findings_without_a_service_say_what_to_do(tmp_path):
    import resin_servers

    url = f"http://127.0.0.1:{resin_servers.free_port()}"
    done = run("--set", f"service_url={url}", "--set", f"state_dir={tmp_path}", "findings")
    assert (done.returncode, "resin serve" in done.stderr) == (2, True)


def test_findings_and_explain_read_the_store_when_no_service_runs(tmp_path):
    import resin_servers

    from resin.model import Entity, Finding, Sample
    from resin.service.findings import Findings
    from resin.store import Store

    entity = Entity("h", "train.py", 4, 50.0)
    finding = Finding(
        "abcdef0123",
        entity,
        "anon_bytes",
        "leak",
        "steady",
        1000.0,
        4000.0,
        3.6e9,
        0.9,
        0.8,
        why=("it grows",),
    )
    with Store(str(tmp_path / "resin.duckdb")) as store:
        store.append([Sample(entity, 10.0 * i, {"anon_bytes": 1e8 + 1e7 * i}) for i in range(400)])
        Findings(store, Config())._keep([finding], 4000.0)
    url = f"http://127.0.0.1:{resin_servers.free_port()}"
    options = ["--set", f"service_url={url}", "--set", f"state_dir={tmp_path}"]
    listed = run(*options, "findings")
    assert listed.returncode == 1
    assert "h/train.py/4@50" in listed.stdout
    assert json.loads(run(*options, "findings", "--json").stdout)["findings"][0]["id"] == "abcdef0123"
    explained = run(*options, "explain", "abcdef")
    assert explained.returncode == 0, explained.stderr
    assert "it grows" in explained.stdout
    assert "growth starts" in explained.stdout
    assert run(*options, "explain", "ffff").returncode == 2


def test_top_draws_a_table():
    done = run("top", "--ticks", "2", "--tick", "0.1", "--min", "1")
    assert done.returncode == 0, done.stderr
    assert "growth" in done.stdout


def test_agent_once_prints_samples():
    done = run("--set", "min_process_bytes=1000000", "agent", "--once")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"host", "kernel"} <= {r["entity"]["component"] for r in rows}
    assert any(r["values"].get("uss_bytes") for r in rows)


def test_watch_passes_output_and_exit_code_through():
    done = run("watch", "--tick", "0.1", "--", sys.executable, "-c", "print('hello'); raise SystemExit(7)")
    assert (done.returncode, done.stdout) == (7, "hello\n")
    assert "verdict: bounded" in done.stderr
    done = run("watch", "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 15)")
    assert done.returncode == 128 + 15
    assert run("watch", "--", "/no/such/program").returncode == 127
    assert run("watch").returncode == 2


def test_watch_for_a_while_ends_the_whole_tree(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, time\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0: break\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(600)"
    )
    done = run("watch", "--tick", "0.1", "--for", "1.5", "--", sys.executable, "-c", code, timeout=60)
    assert done.returncode == 0, done.stderr
    for pid in pids.read_text().split():
        stat = pathlib.Path(f"/proc/{pid}/stat")
        assert not stat.exists() or ") Z " in stat.read_text()


def test_byte_texts():
    assert [bytes_text(v) for v in (0, 1023, 1536, -(2**20), 250 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "-1.0 MiB",
        "250 GiB",
    ]


def test_plot_has_its_shape():
    lines = plot([0.0, 50.0, 100.0], [0.0, 5.0, 10.0], metric="fds", width=20, height=5)
    assert len(lines) == 7
    assert {len(line) for line in lines[:6]} == {32}
    assert lines[0].endswith("⠈")
    assert plot([], [], metric="fds") == ["(no samples)"]
    assert plot([1.0], [5.0], metric="fds")


def test_finding_lines_hold_the_numbers():
    content = {
        "entity": {"key": "h/a/1@2"}, "metric": "anon_bytes", "verdict": "leak", "growth_class": "steady",
        "start_s": 5.0,
        "slope_bytes_per_hour": 2.0**30, "bytes_per_step": 2048.0, "hours_to_limit": 2.5, "severity": 0.5,
        "confidence": 0.75, "why": ["reason"], "would_settle": "more time",
    }  # fmt: skip
    text = "\n".join(finding_lines(content))
    for part in ("LEAK h/a/1@2", "1.0 GiB/h", "2.0 KiB per step", "limit in 2.5 h", "reason", "? more time"):
        assert part in text


def test_a_confirmed_leak_that_its_diagnosis_slows_down_stays_a_leak():
    import dataclasses

    from resin.detect import judge
    from resin.model import Entity, Series

    entity = Entity("h", "job", 7, 0.0)
    t = [0.5 * i for i in range(120)]
    leak = judge(Series(entity, "anon_bytes", tuple(t), tuple(1e8 + 1e6 * x for x in t), 1e10))
    assert leak.verdict == "leak"
    slower = dataclasses.replace(leak, verdict="unclear", growth_class="sublinear", end_s=70.0)
    ended = dataclasses.replace(leak, verdict="bounded", growth_class="plateau")
    watch = Watch(("true",), make_config({}))
    assert watch._as_before(slower) is slower
    watch._before[leak.id] = leak
    kept = watch._as_before(slower)
    assert (kept.verdict, kept.growth_class, kept.end_s) == ("leak", "steady", 70.0)
    assert "slows a program down" in kept.why[-1]
    assert watch._as_before(ended) is ended
