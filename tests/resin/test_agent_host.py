"""Control groups of both versions, kernel memory, shared memory, GPUs and work counters."""

from __future__ import annotations

import http.server
import threading
from types import SimpleNamespace

import pytest
from recorded import Host, by_component

from resin.agent.cgroup import limit_of, memory_cgroup_dir, read_cgroup
from resin.agent.gpu import GpuCollector
from resin.agent.work import WorkCollector, sum_metric
from resin.model import Entity

TRAIN = ["python3", "train.py"]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


V2_STAT = (
    "anon 734003200\nfile 104857600\nkernel 20971520\nslab 10485760\npagetables 2097152\nshmem 1048576\n"
    "slab_reclaimable 8388608\n"
)


def version2(host):
    write(host.cgroup, memory__current="0\n", memory__stat="")
    write(host.cgroup / "kubepods", memory__current="9\n", memory__max="1073741824\n", memory__stat="")
    write(
        host.cgroup / "kubepods" / "pod7",
        memory__current="845152256\n",
        memory__max="max\n",
        memory__stat=V2_STAT + "inactive_file 52428800\n",
        memory__events="low 0\nhigh 3\nmax 12\noom 1\noom_kill 1\n",
        memory__swap__current="4096\n",
    )


def test_version2(host):
    version2(host)
    host.process(100, TRAIN, cgroup="0::/kubepods/pod7\n")
    found = by_component(host.sampler().sample())
    assert found["cgroup:kubepods/pod7"] == {
        "cgroup_bytes": 845152256.0 - 104857600 + 1048576 - 8388608,
        "cgroup_usage_bytes": 845152256.0,
        "cgroup_anon_bytes": 734003200.0,
        "cgroup_file_bytes": 104857600.0,
        "cgroup_kernel_bytes": 20971520.0,
        "cgroup_slab_bytes": 10485760.0,
        "cgroup_page_tables_bytes": 2097152.0,
        "cgroup_shmem_bytes": 1048576.0,
        "cgroup_inactive_file_bytes": 52428800.0,
        "cgroup_swap_bytes": 4096.0,
        "cgroup_high_events_total": 3.0,
        "cgroup_max_events_total": 12.0,
        "cgroup_oom_kills_total": 1.0,
    }
    assert found["train.py"]["limit_bytes"] == 1073741824  # of the parent group; its own is "max"


def test_version1(host):
    folder = host.cgroup / "memory" / "docker" / "abc"
    write(
        host.cgroup / "memory", memory__usage_in_bytes="1\n", memory__limit_in_bytes="9223372036854771712\n"
    )
    write(
        folder,
        memory__usage_in_bytes="500\n",
        memory__limit_in_bytes="9223372036854771712\n",
        memory__failcnt="4\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        memory__kmem__usage_in_bytes="77\n",
        memory__stat="cache 1\nrss 2\ntotal_cache 10\ntotal_shmem 3\n"
        "total_rss 20\nhierarchical_memory_limit 2147483648\n",
    )
    host.process(100, TRAIN, cgroup="5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    found = by_component(host.sampler().sample())
    values = found["cgroup:memory/docker/abc"]
    assert values["cgroup_anon_bytes"] == 20
    assert values["cgroup_kernel_bytes"] == 77
    assert (values["cgroup_usage_bytes"], values["cgroup_bytes"]) == (500, 490 + 3)
    assert values["cgroup_oom_kills_total"] == 2
    assert "cgroup_limit_bytes" not in values  # unlimited is absent
    assert found["train.py"]["limit_bytes"] == 2147483648


def test_path_outside_of_the_mount_means_the_mounts_root(host):
    version2(host)
    assert memory_cgroup_dir("0::/../../escape\n", host.roots.cgroup) == str(host.cgroup)
    assert memory_cgroup_dir("0::/not/mounted/here\n", host.roots.cgroup) == str(host.cgroup)
    assert memory_cgroup_dir("", host.roots.cgroup) is None
    assert memory_cgroup_dir("nonsense\n1:2", host.roots.cgroup) is None


def test_without_cgroups_the_hosts_memory_is_the_limit(host):
    host.process(100, TRAIN)
    assert by_component(host.sampler().sample())["train.py"]["limit_bytes"] == 24684092 * 1024
    assert limit_of(str(host.cgroup), str(host.cgroup)) is None
    assert read_cgroup(str(host.cgroup)) == {}


def test_kernel_and_shared_memory(host):
    found = by_component(host.sampler().sample())
    assert found["kernel"]["slab_bytes"] == 26520 * 1024
    assert found["kernel"]["slab_reclaimable_bytes"] == 153020 * 1024
    assert found["kernel"]["page_tables_bytes"] == 2532 * 1024
    assert found["kernel"]["vmalloc_bytes"] == 14268 * 1024
    assert found["host"]["memory_total_bytes"] == 24684092 * 1024
    assert found["host"]["dev_shm_bytes"] > 0  # of the file system that the recorded folder lies in
    assert found["host"]["dev_shm_files"] == 0


class FakeNvml:
    """Two devices; process 100 is on both, and listed twice on the first."""

    class NVMLError(Exception):
        pass

    broken = False

    def nvmlDeviceGetCount(self):
        if self.broken:
            raise self.NVMLError("driver lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, device):
        return SimpleNamespace(used=10 + device, total=80)

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        clients = [SimpleNamespace(pid=100, usedGpuMemory=5), SimpleNamespace(pid=7, usedGpuMemory=1)]
        return clients + [SimpleNamespace(pid=101, usedGpuMemory=None)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, device):
        return [SimpleNamespace(pid=100, usedGpuMemory=5)] if device == 0 else []


def test_gpu_memory_is_summed_over_devices(host):
    host.process(100, TRAIN)
    host.process(101, ["python3", "hidden.py"])
    sampler = host.sampler()
    nvml = FakeNvml()
    sampler.collectors.append(GpuCollector(nvml))
    samples = sampler.sample()
    found = by_component(samples)
    assert found["train.py"]["gpu_bytes"] == 10
    assert "gpu_bytes" not in found["hidden.py"]
    assert found["gpu:1"] == {"gpu_bytes": 11.0, "gpu_limit_bytes": 80.0}
    nvml.broken = True
    assert "gpu_bytes" not in by_component(sampler.sample())["train.py"]


def test_steps_from_a_file_reach_the_whole_group(host, tmp_path):
    steps = tmp_path / "steps"
    steps.write_text("1234 whatever follows\n")
    host.process(100, TRAIN, environ={"RESIN_STEPS_FILE": str(steps), "HOME": "/"})
    host.process(101, TRAIN, ppid=100)
    sampler = host.sampler()
    found = by_component(sampler.sample())
    assert found["train.py"]["steps_total"] == found["train.py:worker"]["steps_total"] == 1234
    assert found["train.py:job"]["steps_total"] == 1234
    steps.write_text("not a number")
    assert "steps_total" not in by_component(sampler.sample())["train.py"]


@pytest.mark.parametrize("text", ["", "nan", "-1", "inf", "1e400", "\0\0"])
def test_a_file_without_a_count_gives_no_steps(host, tmp_path, text):
    steps = tmp_path / "steps"
    steps.write_text(text)
    host.process(100, TRAIN)
    sampler = host.sampler(work_sources=(f"train.py={steps}",))
    assert "steps_total" not in by_component(sampler.sample())["train.py"]


def test_a_pipe_in_place_of_the_file_does_not_block(host, tmp_path):
    import os

    os.mkfifo(tmp_path / "steps")
    host.process(100, TRAIN, environ={"RESIN_STEPS_FILE": str(tmp_path / "steps")})
    assert "steps_total" not in by_component(host.sampler().sample())["train.py"]


def test_requests_from_the_jobs_own_endpoint(host):
    text = b'# TYPE req counter\nreq_total{code="200"} 40\nreq_total{code="500",a="}"} 2 1700000000\nreq_total_x 9\n'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        host.process(100, TRAIN, environ={"RESIN_METRICS_URL": url, "RESIN_STEPS_METRIC": "req_total"})
        host.process(200, ["python3", "b.py"], environ={"RESIN_METRICS_URL": "http://example.com/metrics",
                                                       "RESIN_STEPS_METRIC": "req_total"})  # fmt: skip
        found = by_component(host.sampler().sample())
        server.shutdown()
    assert found["train.py"]["steps_total"] == 42
    assert "steps_total" not in found["b.py"]  # a job cannot send the agent to another machine


def test_sum_metric():
    assert sum_metric("a 1\nab 2\n", "a") == 1
    assert sum_metric("", "a") is None
    assert sum_metric('a{x="1"} nonsense\n', "a") is None


def test_malformed_work_source_is_refused():
    with pytest.raises(ValueError, match="COMPONENT=FILE"):
        WorkCollector(("train.py",))
    with pytest.raises(ValueError, match="#METRIC"):
        WorkCollector(("train.py=http://127.0.0.1/metrics",))


def test_entity_keys():
    assert Entity("h", "kernel").key == "h/kernel"
    assert Entity("h", "a", 5, 1.4).key == "h/a/5@1"
