"""The CPU backend, found by entry point, for these tests and for the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _write_distribution(folder: Path) -> None:
    """An installed distribution's metadata: all that entry points need."""
    info = folder / "torchroller-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchroller\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[triton.backends]\ncpu = torchroller.triton_cpu\n")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which torchroller is installed, whether or not it is in this environment."""
    folder = tmp_path_factory.mktemp("site")
    _write_distribution(folder)
    return os.pathsep.join([str(ROOT), str(folder)])


@pytest.fixture
def run_python(installed: str, tmp_path: Path) -> Callable[..., str]:
    """run_python(code, **environment) → standard output of a fresh process with the backend installed.

    Triton's cache is the test's own folder, so two calls share it.
    """

    def run(
        code: str, *, backend: bool = True, check: bool = True, timeout_s: int = 300, **variables: str
    ) -> str:
        script = tmp_path / f"script{len(list(tmp_path.glob('script*')))}.py"  # Triton reads kernels' source
        script.write_text(code)
        environment = {
            **os.environ,
            "PYTHONPATH": installed if backend else str(ROOT),
            "TRITON_CACHE_DIR": str(tmp_path / "triton"),
            "OMP_NUM_THREADS": "2",
            **variables,
        }
        environment = {name: value for name, value in environment.items() if value}
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout if check else f"{done.returncode}\n{done.stdout}{done.stderr}"

    return run


@pytest.fixture
def cpu_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The backend registered and active in this process, with a cache of the test's own."""
    triton = pytest.importorskip("triton")
    from triton.backends import Backend, backends

    from torchroller.triton_cpu.compiler import CPUBackend
    from torchroller.triton_cpu.driver import CPUDriver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
    driver = triton.runtime.driver
    monkeypatch.setattr(driver, "_active", CPUDriver())
