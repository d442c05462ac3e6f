"""Which CPU is compiled for: the host, or the one asked for, never a name that LLVM would abort on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchroller.triton_cpu import cpu, jit
from torchroller.triton_cpu.errors import IncompatibleCPU, UnknownCPU

# An instruction that LLVM selects for this IR exactly when it believes that the CPU has the feature.
PROBES = {
    "avx2": ("%r = add <8 x i32> %a, %a", "<8 x i32>", "vpaddd\t%ymm"),
    "fma": (
        "%r = call <4 x float> @llvm.fma.v4f32(<4 x float> %a, <4 x float> %a, <4 x float> %a)",
        "<4 x float>", "vfm",
    ),
    "f16c": (
        "%h = fptrunc <4 x float> %a to <4 x half>\n  %r = fpext <4 x half> %h to <4 x float>",
        "<4 x float>", "vcvtps2ph",
    ),
    "avx512f": ("%r = fadd <16 x float> %a, %a", "<16 x float>", "%zmm"),
    "avx512bw": ("%r = add <64 x i8> %a, %a", "<64 x i8>", "vpaddb\t%zmm"),
    "avx512fp16": ("%r = fadd <32 x half> %a, %a", "<32 x half>", "vaddph\t%zmm"),
    "avx512bf16": (
        "%h = fptrunc <16 x float> %a to <16 x bfloat>\n  %r = fpext <16 x bfloat> %h to <16 x float>",
        "<16 x float>", "vcvtneps2bf16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", cpu.known_cpus())
def test_the_feature_table_agrees_with_llvm(name: str) -> None:
    chosen = cpu.select_cpu(name)
    if chosen.name == cpu.host_cpu().name:
        pytest.skip("the host's features are read, not looked up")
    for feature, (body, kind, instruction) in PROBES.items():
        source = f"define {kind} @f({kind} %a) {{\n  {body}\n  ret {kind} %r\n}}\n"
        assembly = jit.optimize(feature, source, chosen).assembly()
        assert (instruction in assembly) == chosen.has(feature), f"{name} and {feature}:\n{assembly}"


def test_every_known_name_is_one_of_llvms() -> None:
    code = (
        "import llvmlite.binding as l; l.initialize_native_target(); "
        "l.Target.from_triple(l.get_process_triple()).create_target_machine(cpu='help')"
    )
    listing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    llvm_names = {line.split()[0] for line in listing.splitlines() if line.startswith("  ") and " - " in line}
    assert "haswell" in llvm_names
    assert set(cpu.known_cpus()) <= llvm_names


def test_vector_widths() -> None:
    assert cpu.select_cpu("haswell").vector_bits == 256
    assert cpu.select_cpu("skylake-avx512").vector_bits == 512
    assert cpu.select_cpu("x86-64-v2").vector_bits == 128


def test_the_environment_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHROLLER_CPU", "haswell")
    assert cpu.select_cpu().name == "haswell"
    assert cpu.select_cpu("host") == cpu.host_cpu()
    monkeypatch.delenv("TORCHROLLER_CPU")
    assert cpu.select_cpu() == cpu.host_cpu()


def test_an_unknown_name_gets_the_closest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHROLLER_CPU", "haswel")
    with pytest.raises(UnknownCPU, match=r"'haswel' .*Did you mean 'haswell'.*leave TORCHROLLER_CPU unset"):
        cpu.select_cpu()


def test_host_features_include_the_baseline() -> None:
    assert cpu.host_cpu().vector_bits in (128, 256, 512)
    assert cpu.missing_on_host(cpu.host_cpu()) == ()


def test_a_kernel_for_a_richer_cpu_is_not_launched() -> None:
    error = IncompatibleCPU("softmax", "znver5", ("avx512bf16",), "haswell")
    assert "`softmax` was compiled for 'znver5', which has avx512bf16; this machine ('haswell')" in str(error)


def test_cgroup_quota(tmp_path: Path) -> None:
    assert cpu._cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu._cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu._cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu._cgroup_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert cpu._cgroup_quota(tmp_path) == 4.0


def test_caches_from_sysfs(tmp_path: Path) -> None:
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2048K"), ("Unified", 3, "260M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in {"type": kind, "level": level, "size": size, "coherency_line_size": 64}.items():
            (folder / name).write_text(f"{value}\n")
    assert cpu.caches(tmp_path) == cpu.Caches(48 << 10, 2048 << 10, 260 << 20, 64)
    assert cpu.caches(tmp_path / "absent") == cpu.Caches(None, None, None, 64)


def test_core_count_follows_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {min(before)})
        assert cpu.core_count() == 1
