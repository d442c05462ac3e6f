"""Limits of descriptors and threads: read, shared out, and what they mean for a forecast."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
from recorded import Host, by_component

from resin.agent import limits as module
from resin.agent.agent import Sampler
from resin.config import Config
from resin.detect import judge_many
from resin.model import Entity, Finding, Series
from resin.service.echoes import without_echoes
from resin.show import hours_text

TRAIN = ["python3", "train.py"]
LIMITS = """Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max processes             {tasks:<20} {tasks:<20} processes 
Max open files            {files:<20} 1048576              files     
Max locked memory         8388608              8388608              bytes     
"""  # noqa: W291 (as the kernel writes it)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def give(host, pid, *, files="1024", tasks="unlimited", **more):
    host.process(pid, TRAIN, **more)
    (host.proc / str(pid) / "limits").write_text(LIMITS.format(files=files, tasks=tasks))


def kernel(host, *, total, threads_max, pid_max=4194304):
    (host.proc / "loadavg").write_text(f"0.00 0.01 0.05 2/{total} 4711\n")
    folder = host.proc / "sys/kernel"
    (folder / "threads-max").write_text(f"{threads_max}\n")
    (folder / "pid_max").write_text(f"{pid_max}\n")


def as_user(monkeypatch, user):
    monkeypatch.setattr(
        module, "os", SimpleNamespace(stat=lambda path: SimpleNamespace(st_uid=user), path=os.path)
    )


def test_descriptors(host):
    give(host, 100)
    assert by_component(host.sampler().sample())["train.py"]["fds_limit"] == 1024


def test_no_limit_and_no_permission_are_absent(host):
    give(host, 100, files="unlimited")
    host.process(101, ["server"])
    found = by_component(host.sampler().sample())
    for values in (found["train.py"], found["server"]):
        assert "fds_limit" not in values
        assert "threads_limit" not in values


def test_the_kernels_own_limit_less_what_others_use(host):
    kernel(host, total=900, threads_max=1000)
    give(host, 100, threads=7)
    assert by_component(host.sampler().sample())["train.py"]["threads_limit"] == 7 + 100
    kernel(host, total=900, threads_max=100000, pid_max=960)
    assert by_component(host.sampler().sample())["train.py"]["threads_limit"] == 7 + 60


def test_limit_of_the_user_is_shared(host, monkeypatch):
    as_user(monkeypatch, 1000)
    give(host, 100, tasks="50", threads=10)
    give(host, 101, tasks="50", threads=15)
    for sample in host.sampler().sample():
        if sample.entity.pid:
            assert sample.values["threads_limit"] == sample.values["threads"] + 25


def test_root_is_exempt_from_it(host, monkeypatch):
    as_user(monkeypatch, 0)
    give(host, 100, tasks="50")
    assert "threads_limit" not in by_component(host.sampler().sample())["train.py"]


@pytest.mark.parametrize(("text", "base"), [("0::/pod/box\n", "."), ("8:pids:/pod/box\n0::/\n", "pids")])
def test_cgroups_of_both_versions_and_their_parents(host, text, base):
    for path, most, now in (("pod", "300", "280"), ("pod/box", "200", "90")):
        folder = host.cgroup / base / path
        folder.mkdir(parents=True)
        (folder / "pids.max").write_text(f"{most}\n")
        (folder / "pids.current").write_text(f"{now}\n")
    give(host, 100, threads=3, cgroup=text)
    assert by_component(host.sampler().sample())["train.py"]["threads_limit"] == 3 + 20
    (host.cgroup / base / "pod" / "pids.max").write_text("max\n")
    assert by_component(host.sampler().sample())["train.py"]["threads_limit"] == 3 + 110


def test_who_holds_as_many_as_before_is_not_read_again(host):
    give(host, 100, threads=3)
    sampler = host.sampler()
    sampler.sample()
    (host.proc / "100" / "limits").write_text(LIMITS.format(files="9", tasks="9"))
    assert by_component(sampler.sample())["train.py"]["fds_limit"] == 1024
    host.process(100, TRAIN, threads=4)
    assert by_component(sampler.sample())["train.py"]["fds_limit"] == 9
    assert "fds_limit" not in by_component(sampler.sample(slow=False))["train.py"]


def test_a_group_has_room_for_children_and_threads(host):
    kernel(host, total=900, threads_max=1000)
    give(host, 100, threads=4)
    host.process(101, TRAIN, ppid=100, threads=6)
    values = by_component(host.sampler().sample())["train.py:job"]
    assert (values["children"], values["children_limit"]) == (1, 101)
    assert (values["threads"], values["threads_limit"]) == (10, 110)


def test_a_real_process():
    code = (
        "import resource, time\nresource.setrlimit(resource.RLIMIT_NOFILE, (321, 400))\n"
        "print(flush=True)\ntime.sleep(30)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            child.stdout.readline()
            sampler = Sampler(Config(min_process_bytes=1), only_below=child.pid)
            (values,) = [s.values for s in sampler.sample() if s.entity.pid == child.pid]
            assert values["fds_limit"] == 321
            assert values["threads_limit"] > values["threads"]
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 321
        finally:
            child.kill()


def fds(limit):
    """One more each second, 10 at the start."""
    times = tuple(float(t) for t in range(400))
    return Series(Entity("h", "server", 5, 0.0), "fds", times, tuple(10.0 + t for t in times), limit)


def test_time_to_the_limit_is_a_forecast():
    (found,) = judge_many([fds(1024.0)])
    assert found.verdict == "leak"
    assert found.hours_to_limit == pytest.approx((1024 - 409) / 3600.0, rel=0.01)
    assert any("the limit of 1,024 is reached in 10." in line for line in found.why)
    assert found.severity == 1.0


def test_a_limit_beyond_all_use_hides_no_leak():
    (found,) = judge_many([fds(1073741816.0)])
    assert found.verdict == "leak"
    assert found.severity < 0.1


def test_without_a_limit_it_doubles_from_where_it_stands():
    (found,) = judge_many([fds(None)])
    assert any("it doubles in 6." in line for line in found.why)


def found(component, metric, slope, group="g"):
    return Finding(
        f"{component}{metric}",
        Entity("h", component, 5, 0.0, group),
        metric,
        "leak",
        "steady",
        0.0,
        1.0,
        slope,
        1.0,
        1.0,
    )


def test_a_job_does_not_repeat_what_one_process_says():
    process, job = found("server", "fds", 100.0), found("server:job", "fds", 110.0)
    assert without_echoes([process, job]) == [process]
    memory = found("server:job", "anon_bytes", 50.0)  # bytes are not compared with descriptors
    assert without_echoes([process, memory]) == [process, memory]
    assert without_echoes([process, found("server:job", "fds", 900.0)])[1:]


def test_children_bring_descriptors_and_threads_with_them():
    many = [found("server:job", m, 9.0) for m in ("children", "fds", "threads", "anon_bytes")]
    assert [f.metric for f in without_echoes(many)] == ["children", "anon_bytes"]
    assert len(without_echoes(many[1:])) == 3


def test_hours_in_the_unit_that_suits_them():
    assert [hours_text(h) for h in (0.001, 0.5, 1.0, 71.0, 75.0)] == [
        "1 min",
        "30 min",
        "1.0 h",
        "71.0 h",
        "3.1 days",
    ]
