"""What the agent reads: identity, roles and groups, memory split, from recorded /proc trees and for real."""

from __future__ import annotations

import os
import signal
import time

import pytest
from recorded import Host, by_component

from resin.agent.agent import Sampler
from resin.agent.identity import is_running, start_time_s
from resin.agent.procfs import HeldFile, read_bytes
from resin.agent.roles import program_name, worker_role
from resin.config import Config
from resin.model import Entity

TRAIN = ["/usr/bin/python3", "-u", "train.py", "--lr", "1"]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_memory_split_and_identity(host):
    host.process(100, TRAIN, anon=50_000, file=9_000, shmem=3_000, swap=17, threads=6, start=123_456)
    sample = next(s for s in host.sampler().sample() if s.entity.pid == 100)
    assert sample.entity == Entity("h", "train.py", 100, 1_700_001_234.56, "train.py/100@1700001235")
    assert sample.time_s == 1_700_001_000.0
    assert {
        k: sample.values[k] for k in ("rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes", "swap_bytes")
    } == {
        "rss_bytes": 62_000 * 1024,
        "anon_bytes": 50_000 * 1024,
        "file_bytes": 9_000 * 1024,
        "shmem_bytes": 3_000 * 1024,
        "swap_bytes": 17 * 1024,
    }
    assert sample.values["threads"] == 6
    assert "uss_bytes" not in sample.values  # smaps_rollup is not there: absent, not zero
    assert "gpu_bytes" not in sample.values


def test_forked_workers_belong_to_their_parents_group(host):
    host.process(100, TRAIN)
    host.process(101, TRAIN, ppid=100, start=5001)
    host.process(102, TRAIN, ppid=100, start=5002, comm="pt_data_worker")
    host.process(103, TRAIN, ppid=101, start=5003)
    host.process(110, ["/opt/bin/torch_shm_manager"], ppid=100, start=5004)
    samples = [s for s in host.sampler().sample() if s.entity.pid]
    names = {s.entity.pid: s.entity.component for s in samples if not s.entity.component.endswith(":job")}
    assert names == {
        100: "train.py",
        101: "train.py:worker",
        102: "train.py:data-worker",
        103: "train.py:worker",
        110: "torch_shm_manager",
    }
    assert {s.entity.group for s in samples} == {"train.py/100@1700000050"}
    job = by_component(samples)["train.py:job"]
    assert job["children"] == 4
    assert job["anon_bytes"] == 5 * 50_000 * 1024


def test_launchers_and_shells_begin_no_group(host):
    host.process(1, ["/sbin/init"])
    host.process(50, ["/bin/bash"], ppid=1)
    host.process(60, ["/usr/bin/python3", "/usr/bin/torchrun", "--nproc", "2", "train.py"], ppid=50)
    host.process(100, TRAIN, ppid=60)
    host.process(200, TRAIN, ppid=60)
    host.process(101, TRAIN, ppid=100)
    groups = {s.entity.pid: s.entity.group for s in host.sampler().sample() if s.entity.pid}
    assert groups[100] != groups[200]
    assert groups[101] == groups[100]


def test_group_sum_stays_when_members_end(host):
    sampler = host.sampler()
    host.process(100, TRAIN)
    assert "train.py:job" not in by_component(sampler.sample())
    host.process(101, TRAIN, ppid=100)
    assert by_component(sampler.sample())["train.py:job"]["children"] == 1
    host.end(101)
    assert by_component(sampler.sample())["train.py:job"]["children"] == 0


def test_worker_keeps_its_group_when_the_parent_ends(host):
    sampler = host.sampler()
    host.process(100, TRAIN)
    host.process(101, TRAIN, ppid=100)
    before = {s.entity.pid: s.entity for s in sampler.sample()}
    host.end(100)
    host.process(101, TRAIN, ppid=1)
    after = {s.entity.pid: s.entity for s in sampler.sample() if not s.entity.component.endswith(":job")}
    assert after[101] == before[101]


def test_reused_pid_is_another_entity(host):
    sampler = host.sampler()
    host.process(100, TRAIN, start=5000)
    first = next(s.entity for s in sampler.sample() if s.entity.pid == 100)
    host.process(100, ["/usr/bin/python3", "serve.py"], start=9000)
    second = next(s.entity for s in sampler.sample() if s.entity.pid == 100)
    assert (first.component, second.component) == ("train.py", "serve.py")
    assert first.start_time_s != second.start_time_s


def test_exec_gives_a_new_name(host):
    sampler = host.sampler()
    host.process(100, TRAIN)
    host.process(101, TRAIN, ppid=100)  # just forked
    assert "train.py:worker" in by_component(sampler.sample())
    host.process(101, ["ffmpeg", "-i", "x"], ppid=100)
    assert "ffmpeg" in by_component(sampler.sample())


def test_exec_under_the_same_name_is_seen_at_the_second_look(host):
    sampler = host.sampler()
    host.process(100, TRAIN, comm="python3")
    host.process(101, TRAIN, ppid=100, comm="python3")
    sampler.sample()
    host.process(101, ["/usr/bin/python3", "other.py"], ppid=100, comm="python3")
    assert "other.py" in by_component(sampler.sample())


def test_small_processes_kernel_threads_and_zombies_are_left_out(host):
    host.process(2, [], comm="kthreadd", flags=0x200000 | 0x40)
    host.process(100, TRAIN, anon=100, file=100)
    host.process(101, ["python3", "gone.py"], zombie=True)
    sampler = host.sampler()
    assert not [s for s in sampler.sample() if s.entity.pid]
    host.process(100, TRAIN, anon=5000)
    assert "train.py" in by_component(sampler.sample())
    host.process(100, TRAIN, anon=100, file=100)  # once reported, always reported
    assert "train.py" in by_component(sampler.sample())


def test_small_processes_are_looked_at_now_and_then(host):
    for pid in range(200, 216):
        host.process(pid, ["small"], anon=100, file=100)
    sampler = host.sampler()
    for _ in range(2):
        sampler.sample()
    for pid in range(200, 216):
        host.process(pid, ["small"], anon=90_000)
    seen = [sum(s.entity.pid is not None for s in sampler.sample()) for _ in range(8)]
    assert seen == [2, 4, 6, 8, 10, 12, 14, 16]


def test_processes_beyond_the_bound_are_counted(host):
    for pid in range(100, 110):
        host.process(pid, ["python3", f"p{pid}.py"], anon=pid * 100)
    found = by_component(host.sampler(max_processes=4).sample())
    assert sorted(n for n in found if n.startswith("p1")) == ["p106.py", "p107.py", "p108.py", "p109.py"]
    assert found["agent"]["elided_processes"] == 6


def test_vanishing_and_unreadable_files_are_survived(host):
    host.process(100, TRAIN)
    host.process(101, ["python3", "a.py"])
    host.process(102, ["python3", "b.py"])
    sampler = host.sampler()
    (host.proc / "101" / "status").unlink()  # ends between listing and reading
    (host.proc / "102" / "stat").write_text("garbage")
    (host.proc / "103").mkdir()  # ended before its files could be opened
    assert {s.entity.pid for s in sampler.sample() if s.entity.pid} == {100}


def test_copy_on_write_growth_shows_in_uss_of_recorded_workers(host):
    sampler = host.sampler()
    seen = []
    for private in (100, 25_000, 50_000):
        host.process(100, TRAIN, anon=160_000, private=150_000 - private)
        host.process(101, TRAIN, ppid=100, anon=160_000, private=private, pss=80_000 + private // 2)
        seen.append(by_component(sampler.sample())["train.py:worker"])
        time.sleep(0.002)
    assert len({v["rss_bytes"] for v in seen}) == 1
    assert [v["uss_bytes"] for v in seen] == [(100 + p) * 1024 for p in (100, 25_000, 50_000)]
    assert seen[2]["pss_bytes"] == 105_000 * 1024


def test_copy_on_write_growth_shows_in_uss_for_real():
    """A forked worker that only reads its parent's strings: each reference count written copies a page."""
    data = [f"sample {i}" * 3 for i in range(200_000)]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(reader, 1)
            kept = [text for text in data]  # noqa: C416  (touches every reference count)
            os.write(writer, b"x" if kept else b"")
            signal.pause()
        finally:
            os._exit(0)
    try:
        sampler = Sampler(Config(min_process_bytes=1, slow_tick_s=1e-9), only_below=pid)
        before = next(s for s in sampler.sample(slow=True) if s.entity.pid == pid)
        os.write(writer, b"g")
        deadline = time.monotonic() + 20
        grown = 0.0
        while grown < 10e6 and time.monotonic() < deadline:
            time.sleep(0.1)
            after = next(s for s in sampler.sample(slow=True) if s.entity.pid == pid)
            grown = after.values["uss_bytes"] - before.values["uss_bytes"]
        assert grown >= 10e6
        assert after.values["rss_bytes"] - before.values["rss_bytes"] < grown / 2
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_held_file_of_an_ended_process_reads_as_gone():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    held = HeldFile(f"/proc/{pid}/status")
    assert held.read()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert held.read() is None
    held.close()
    assert held.read() is None


def test_only_below_follows_descendants(host):
    host.process(100, TRAIN)
    host.process(200, ["python3", "other.py"])
    host.process(101, ["sh", "-c", "x"], ppid=100)
    host.process(102, ["ffmpeg"], ppid=101)
    sampler = Sampler(Config(host="h", min_process_bytes=1), roots=host.roots, only_below=100)
    sampler.table.held_files = 0
    assert {s.entity.pid for s in sampler.sample() if s.entity.pid} == {100, 101, 102}


def test_start_times_survive_a_clock_jump(host, tmp_path):
    host.process(100, TRAIN)
    options = {"roots": host.roots, "state_dir": str(tmp_path / "state")}
    first = Sampler(Config(host="h"), **options).sample()
    (host.proc / "stat").write_text("btime 1700003600\n")  # the clock was set an hour ahead
    again = Sampler(Config(host="h"), **options).sample()
    assert [s.entity for s in first] == [s.entity for s in again]
    (host.proc / "sys/kernel/random/boot_id").write_text("another boot\n")
    rebooted = Sampler(Config(host="h"), **options).sample()
    assert [s.entity for s in first if s.entity.pid] != [s.entity for s in rebooted if s.entity.pid]


def test_is_running_tells_processes_apart():
    started = start_time_s(os.getpid())
    assert is_running(Entity("h", "x", os.getpid(), started))
    assert not is_running(Entity("h", "x", os.getpid(), started - 3600))
    assert not is_running(Entity("h", "x"))
    assert read_bytes("/proc/0/stat") is None


@pytest.mark.parametrize(
    ("argv", "comm", "expected"),
    [
        (["/usr/bin/python3.11", "-u", "/a/b/train.py", "--lr=1"], "python3.11", "train.py"),
        (["python", "/srv/shop/main.py"], "python", "shop/main.py"),
        (
            ["python", "-W", "ignore", "-m", "vllm.entrypoints.api_server"],
            "python",
            "vllm.entrypoints.api_server",
        ),
        (["python", "-um", "http.server"], "python", "http.server"),
        (["python3", "-c", "import time"], "python3", "python-c"),
        (["python3"], "python3", "python3"),
        (["-bash"], "bash", "bash"),
        (["nginx: worker process"], "nginx", "nginx"),
        (["VLLM::Worker_TP3"], "VLLM::Worker_TP", "VLLM::Worker_TP#"),
        (["ray::train_step()"], "ray::train_step", "ray::train_step()"),
        (["java", "-Xmx1g", "-jar", "/opt/app.jar"], "java", "app.jar"),
        (["node", "--inspect", "server.js"], "node", "server.js"),
        ([], "some-thread2", "some-thread2"),
        (['evil\n{name}"\\x'], "e", "evil__name___x"),
    ],
)
def test_component_names(argv, comm, expected):
    assert program_name(argv, comm) == expected


def test_worker_roles():
    assert worker_role(TRAIN, TRAIN, "python3") == "worker"
    spawned = [
        "python3",
        "-c",
        "from multiprocessing.spawn import spawn_main; spawn_main()",
        "--multiprocessing-fork",
    ]
    assert worker_role(spawned, TRAIN, "python3") == "worker"
    tracker = ["python3", "-c", "from multiprocessing.resource_tracker import main;main(5)"]
    assert worker_role(tracker, TRAIN, "python3") == "resource-tracker"
    assert worker_role(["ffmpeg"], TRAIN, "ffmpeg") is None
    assert worker_role([], [], "x") is None
