"""Device specs: data is consistent, and reading a CPU follows what the operating system says."""

import os

import pytest
from roller_expressions import matmul

from torchroller import cpus, device, host
from torchroller.device import SHIPPED, DeviceSpec, KiB, MiB
from torchroller.search import construct

ZEN5 = ("znver5", frozenset({"avx", "avx2", "avx512f", "avx512bf16", "avx512vnni", "fma"}))
HASWELL = ("haswell", frozenset({"avx", "avx2", "fma"}))


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four logical CPUs of two cores: 48 KiB L1, 1 MiB L2 per core, 32 MiB L3, 4 GHz."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for index, (level, kind, size, shared) in enumerate(
        [
            (1, "Data", "48K", "0-1"),
            (1, "Instruction", "32K", "0-1"),
            (2, "Unified", "1024K", "0-1"),
            (3, "Unified", "32M", "0-3"),
        ]
    ):
        base = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        write(tmp_path, f"{base}/level", str(level))
        write(tmp_path, f"{base}/type", kind)
        write(tmp_path, f"{base}/size", size)
        write(tmp_path, f"{base}/shared_cpu_list", shared)
    for cpu in range(4):
        write(
            tmp_path,
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list",
            "0-1" if cpu < 2 else "2-3",
        )
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "4000000")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Test CPU\ncpu MHz : 1800.0\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB")
    return tmp_path


def read(machine, isa=ZEN5, **kwargs):
    return host.read_cpu(root=machine, calibration=None, isa=isa, **kwargs)


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda d: d.name)
def test_shipped_specs_are_consistent(spec):
    assert [lv.name for lv in spec.private_levels] == ["shared"]
    assert len(spec.shared_levels) == 1
    assert spec.program_scratch_bytes <= spec.unit_scratch_bytes == spec.private_levels[0].capacity_bytes
    assert (
        spec.dram.capacity_bytes
        > spec.shared_levels[0].capacity_bytes
        > spec.private_levels[0].capacity_bytes
    )
    assert spec.dram.bandwidth_bytes_per_s < spec.shared_levels[0].bandwidth_bytes_per_s
    inner = spec.private_levels[0].bandwidth_bytes_per_s * spec.units
    assert spec.shared_levels[0].bandwidth_bytes_per_s < inner
    assert not spec.dram.private
    for peak in spec.peaks:
        assert peak.matrix_flops is None or peak.matrix_flops >= peak.vector_flops
    assert spec.source
    assert {"float32", "float16", "bfloat16", "float64"} <= {p.dtype for p in spec.peaks}


def test_a_spec_prints_what_a_person_checks():
    text = str(device.H100)
    for part in (
        "H100",
        "132 units",
        "HBM",
        "80 GiB",
        "3.35 TB/s",
        "50 MiB",
        "227 KiB per program",
        "data sheet",
    ):
        assert part in text


@pytest.mark.parametrize("name", cpus.PARTS)
def test_cpus_by_name_are_consistent(name):
    spec = device.by_name(name.upper())
    wide = spec.vector_bytes == 64
    assert (spec.kind, spec.arch, spec.is_cpu) == ("cpu", name, True)
    assert wide == ("avx512f" in cpus.PARTS[name].features)
    sizes = [lv.capacity_bytes for lv in spec.levels]
    speeds = [lv.unit_bandwidth_bytes_per_s for lv in spec.levels]
    assert sizes == sorted(sizes, reverse=True) and speeds == sorted(speeds)
    part = cpus.PARTS[name]
    fmas = 1 if name == "znver4" else 2
    assert spec.peak("float32").vector_flops == pytest.approx(part.cores * part.hz * 2 * fmas * spec.lanes(4))
    one = cpus.named(name, cores=1)
    assert one.units == 1 and one.dram.bandwidth_bytes_per_s == part.core_gb_s * 1e9
    assert spec.source and spec.name in str(spec)


def test_tiles_follow_the_vectors_of_a_cpu_that_is_not_here():
    best = {n: construct(matmul(256, 768, 768), cpus.named(n, cores=2)).best for n in ("znver3", "znver5")}
    registers = {n: dict(p.levels)["registers"] for n, p in best.items()}
    assert registers["znver3"]["n"] % 8 == 0 and registers["znver5"]["n"] % 16 == 0
    assert best["znver3"].estimate.compute_s > best["znver5"].estimate.compute_s


def test_cores_that_a_cpu_does_not_have_are_refused():
    with pytest.raises(ValueError, match="EPYC 7763 has 64 cores, 65 were asked for"):
        cpus.named("znver3", cores=65)
    with pytest.raises(ValueError, match="no CPU named 'zx80': known are haswell"):
        cpus.named("zx80")


def test_cpu_is_read_from_sysfs(machine):
    spec = read(machine)
    assert (spec.kind, spec.arch, spec.units, spec.name) == ("cpu", "znver5", 2, "Test CPU")
    assert [(lv.name, lv.capacity_bytes, lv.private) for lv in spec.levels] == [
        ("DRAM", 16 * 1024 * MiB, False),
        ("L3", 32 * MiB, False),
        ("L2", 1 * MiB, True),
        ("L1", 48 * KiB, True),
    ]
    assert spec.peak("float32").vector_flops == 2 * 2 * 2 * 16 * 4e9  # cores, FMA, pipes, lanes, clock
    assert spec.peak("bfloat16").matrix_flops == 2 * spec.peak("float32").vector_flops
    assert spec.peak("int8").matrix_flops == 4 * spec.peak("float32").vector_flops
    assert spec.micro_kernels == ((4, 4), (8, 2), (2, 8), (1, 8), (8, 1))
    assert spec.is_cpu and not device.A100.is_cpu


def test_avx2_has_narrower_vectors_and_register_blocks(machine):
    spec = read(machine, HASWELL)
    assert spec.vector_bytes == 32
    assert spec.micro_kernels == ((4, 2), (2, 4), (1, 8), (8, 1))
    assert spec.peak("bfloat16").matrix_flops is None
    assert spec.peak("float32").vector_flops == 2 * 2 * 2 * 8 * 4e9


@pytest.mark.parametrize(
    ("path", "text"),
    [("sys/fs/cgroup/cpu.max", "100000 100000"), ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")],
)
def test_a_cgroup_quota_limits_the_cores(machine, path, text):
    write(machine, path, text)
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert read(machine).units == 1


@pytest.mark.parametrize("text", ["max 100000", "", "400000 100000"])
def test_no_or_a_large_quota_changes_nothing(machine, text):
    write(machine, "sys/fs/cgroup/cpu.max", text)
    assert read(machine).units == 2


def test_cores_can_be_chosen(machine):
    one = read(machine, cores=1)
    assert one.units == 1
    assert [lv.name for lv in one.private_levels] == ["L2", "L1"]


def test_a_machine_that_tells_nothing_still_gets_a_spec(tmp_path):
    spec = host.read_cpu(root=tmp_path, calibration=None, isa=HASWELL)
    assert [lv.name for lv in spec.levels] == ["DRAM", "L2", "L1"]
    assert spec.units >= 1
    assert spec.peak("float32").vector_flops > 0


def test_the_fingerprint_follows_every_figure(machine):
    assert read(machine).fingerprint == read(machine).fingerprint != read(machine, cores=1).fingerprint


def test_the_cpu_spec_is_the_same_each_time(machine):
    assert read(machine) == read(machine)
    assert device.cpu() is device.cpu()


def test_calibration_round_trip_and_damage(tmp_path):
    found = host.Calibration(1e11, 4e10, 2e10, 2)
    path = host.save_calibration(found, tmp_path / "a" / "host.json")
    assert host.load_calibration(path) == found
    path.write_text("{")
    assert host.load_calibration(path) is None
    assert host.load_calibration(tmp_path / "absent.json") is None


def test_calibration_replaces_the_rules_of_thumb(machine):
    found = host.Calibration(
        fma_flops_per_core=2.5e11, dram_bytes_per_s=4.5e10, core_bytes_per_s=2.4e10, cores=2
    )
    spec = host.read_cpu(root=machine, calibration=found, isa=ZEN5)
    assert spec.peak("float32").vector_flops == 5e11
    assert spec.dram.bandwidth_bytes_per_s == 4.5e10
    assert "measured" in spec.source


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (("cuda", 80), "A100"),
        (("cuda", 90), "H100"),
        (("cuda", 100), "B200"),
        (("cuda", 70), "V100"),
        (("cuda", 50), "V100"),
        (("hip", "gfx90a"), "MI250X"),
        (("hip", "gfx942"), "MI300X"),
    ],
)
def test_for_target_finds_the_shipped_spec(target, name):
    assert DeviceSpec.for_target(*target).name == name


@pytest.mark.parametrize(("arch", "kib"), [(86, 99), (89, 99), (120, 99), (75, 64)])
def test_relatives_keep_their_own_shared_memory_limit(arch, kib):
    spec = DeviceSpec.for_target("cuda", arch)
    assert spec.program_scratch_bytes == kib * KiB
    assert str(arch) in spec.name


def test_for_target_takes_the_number_of_units():
    assert DeviceSpec.for_target("cuda", 90, units=114).units == 114
    assert DeviceSpec.for_target("cpu") == device.cpu()


def test_unknown_backends_and_names_say_what_is_known():
    with pytest.raises(ValueError, match=r"backend 'metal'.*cpu, cuda and hip.*add_a_device"):
        DeviceSpec.for_target("metal", 1)
    with pytest.raises(ValueError, match=r"no device named 'K80'.*V100.*MI300X"):
        device.by_name("K80")
    assert device.by_name("h100") is device.H100
