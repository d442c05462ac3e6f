"""Diagnosis of real processes: with the helper, from outside, fragmented, gone."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from resin.diagnose import Gone, diagnose, heapwalk, preload, remote, stacks
from resin.diagnose.mappings import read_smaps
from resin.diagnose.target import Target, inspect

LEAK = textwrap.dedent(
    """\
    import time
    kept = []

    def handle(number):
        kept.append(bytearray(20_000 + number % 10))

    number = 0
    while True:
        handle(number)
        number += 1
        time.sleep(0.005)
    """
)


def test_the_helper_names_the_line(start):
    process, path, _ = start(LEAK, helper=True)
    found = diagnose(process.pid, seconds=1.5)
    assert found.kind == "python-heap"
    assert found.confidence >= 0.5
    first = found.suspects[0]
    assert (first.file, first.line, first.function, first.source) == (str(path), 5, "handle", "tracemalloc")
    assert first.share > 0.9
    assert found.pause_ms < 1000
    assert process.poll() is None


def test_from_outside_without_touching_it(start):
    if stacks.py_spy() is None:
        pytest.skip("py-spy is not installed")
    process, path, _ = start(LEAK)
    found = diagnose(process.pid, seconds=1.5)
    assert (str(path), 5) in {(s.file, s.line) for s in found.suspects[:3]}
    assert found.pause_ms == 0
    assert any("remote_exec: not possible" in line for line in found.probes) or sys.version_info >= (3, 14)
    assert process.poll() is None


def test_requests_are_answered_and_errors_are_answers(start):
    process, _, control = start(LEAK, helper=True)
    allocator = preload.ask(control, process.pid, {"op": "allocator"}, timeout_s=5)["allocator"]
    assert allocator is None or allocator["used_bytes"] > 100_000
    assert preload.ask(control, process.pid, {"op": "trim"}, timeout_s=5)["pause_ms"] >= 0
    assert "growth" in preload.ask(control, process.pid, {"op": "types", "seconds": 0.1}, timeout_s=5)
    assert "unknown op 'dance'" in preload.ask(control, process.pid, {"op": "dance"}, timeout_s=5)["error"]
    (control / f"{process.pid}.request").write_text("{")
    time.sleep(0.6)
    assert "unreadable request" in json.loads((control / f"{process.pid}.answer").read_text())["error"]


def test_a_program_that_traces_itself_is_left_alone(start):
    process, _, control = start("import tracemalloc\ntracemalloc.start()\n" + LEAK, helper=True)
    answer = preload.ask(control, process.pid, {"op": "window", "seconds": 0.3}, timeout_s=5)
    assert "traces its own allocations" in answer["error"]


def test_the_helper_hides_no_other_sitecustomize(start, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import os\nos.environ['OTHER_RAN'] = '1'\n")
    text = "import os, sys\nprint(os.environ.get('OTHER_RAN'), sys.modules['sitecustomize'].__file__, flush=True)\n"
    process, _, _ = start(text, helper=True, env={**os.environ, "PYTHONPATH": str(other)}, wait_s=0)
    out, err = process.communicate(timeout=20)
    assert out.split() == ["1", str(other / "sitecustomize.py")]
    assert err == ""


def test_the_helper_follows_forks(start):
    text = "import os, time\npid = os.fork()\nif pid:\n    print(pid, flush=True)\ntime.sleep(30)\n"
    process, _, control = start(text, helper=True)
    child = int(process.stdout.readline())
    try:
        deadline = time.monotonic() + 5
        while not (control / f"{child}.ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert preload.ask(control, child, {"op": "trim"}, timeout_s=5)["pid"] == child
    finally:
        os.kill(child, 9)


def test_a_target_that_ends_is_no_error(start):
    process, _, control = start("import time\ntime.sleep(1.0)\n", helper=True, wait_s=0)
    found = diagnose(process.pid, seconds=3.0)
    assert found.suspects == ()
    assert preload.ask(control, 2**22 + 1, {"op": "trim"}, timeout_s=1) is None


def test_no_such_process():
    with pytest.raises(Gone, match="is it still running"):
        diagnose(2**22 + 1)


def test_what_is_sent_to_a_314_interpreter_runs(tmp_path):
    """The text handed to sys.remote_exec, run by this interpreter instead."""
    answer = tmp_path / "answer.json"
    code = remote.script({"op": "window", "seconds": 0.6}, answer) + textwrap.dedent(
        f"""
        import os, time
        kept = []
        while not os.path.exists({str(answer)!r}):
            kept.append(bytearray(5000))
            time.sleep(0.005)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    found = json.loads(answer.read_text())
    assert found["places"][0]["stack"][-1][0] == "<string>"
    assert found["places"][0]["steady_bytes"] > 50_000


def test_no_link_of_the_target_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    control = tmp_path / "control"
    control.mkdir()
    pid = os.getpid()
    (control / f"{pid}.request.part").symlink_to(victim)
    (control / f"{pid}.request").symlink_to(victim)
    assert preload.ask(control, pid, {"op": "trim"}, timeout_s=0.2) is None
    assert victim.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(control)
    assert "error" in preload.ask(link, pid, {"op": "trim"}, timeout_s=0.2)


@pytest.mark.parametrize("answer", ["[]", "{", '{"places": 3, "pause_ms": 1}'])
def test_a_strange_answer_is_told_and_left(tmp_path, answer):
    directory = tmp_path / "control"
    directory.mkdir()
    text = textwrap.dedent(
        f"""
        import os, time
        base = os.path.join({str(directory)!r}, str(os.getpid()))
        open(base + ".ready", "w").close()
        while not os.path.exists(base + ".request"):
            time.sleep(0.01)
        open(base + ".part", "w").write({answer!r})
        os.rename(base + ".part", base + ".answer")
        time.sleep(20)
        """
    )
    env = {**os.environ, preload.CONTROL_VARIABLE: str(directory)}
    process = subprocess.Popen([sys.executable, "-c", text], env=env)
    try:
        while preload.control_dir_of(process.pid) is None:
            time.sleep(0.02)
        found = diagnose(process.pid, seconds=0.5)
        assert any(
            "helper: " in line and ("unreadable" in line or "understood" in line) for line in found.probes
        )
    finally:
        process.kill()
        process.wait()


def test_another_version_is_asked_by_an_interpreter_like_it(tmp_path):
    python = tmp_path / "python3.99"
    python.write_text('#!/bin/sh\nprintf \'{"pid": %s}\' "$5" > "$(dirname "$6")/answer.json"\n')
    python.chmod(0o755)
    target = Target(os.getpid(), str(python), (str(python),), (3, 99), True)
    assert remote.usable(target) is None
    assert remote.ask(target, {"op": "trim"}, timeout_s=5) == {"pid": os.getpid()}
    python.write_text("#!/bin/sh\necho 'PermissionError: not allowed' >&2\nexit 1\n")
    assert "not allowed" in remote.ask(target, {"op": "trim"}, timeout_s=5)["error"]
    gone = Target(1, "/no/python3.99", (), (3, 99), True)
    assert "cannot be started from here" in remote.usable(gone)


FRAGMENTED = textwrap.dedent(
    """\
    import ctypes, time
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(4000) for _ in range(8000)]
    for block in blocks:
        ctypes.memset(block, 1, 4000)
    for number, block in enumerate(blocks):
        if number % 50:
            libc.free(block)
    time.sleep(60)
    """
)


@pytest.mark.skipif(
    ctypes.sizeof(ctypes.c_void_p) != 8 or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the walk knows 64-bit glibc",
)
def test_heap_walk_agrees_with_malloc_and_a_trim_proves_it(start):
    process, _, control = start(FRAGMENTED, helper=True, wait_s=1.0)
    walked = heapwalk.walk(process.pid, read_smaps(process.pid))
    said = preload.ask(control, process.pid, {"op": "allocator"}, timeout_s=5)["allocator"]
    assert walked is not None
    assert walked.complete
    assert walked.free_bytes == pytest.approx(said["free_bytes"], rel=0.2)
    assert walked.retained_bytes > 20e6
    found = diagnose(process.pid, seconds=0.6)
    assert found.kind == "fragmentation"
    assert any("trim" in note for note in found.notes)
    assert (
        preload.ask(control, process.pid, {"op": "trim"}, timeout_s=5)["freed_bytes"]
        > 0.7 * walked.retained_bytes
    )


def test_target_is_described():
    found = inspect(os.getpid())
    assert found.python == sys.version_info[:2]
    assert found.readable


def test_command(start, capsys):
    from resin.cli import main

    process, path, _ = start(LEAK, helper=True)
    assert main(["diagnose", str(process.pid), "--seconds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suspects"][0]["file"] == str(path)
    assert main(["diagnose", str(process.pid), "--seconds", "0"]) == 2
    assert "between 0.5 and 60" in capsys.readouterr().err
    assert Path(path).exists()
