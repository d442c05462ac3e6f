"""Programs started for diagnosis."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from resin.diagnose import preload


@pytest.fixture
def start(tmp_path):
    """Start a Python program, with or without the helper; it ends with the test."""
    running = []

    def start(text, *, helper=False, env=None, wait_s=0.5):
        path = tmp_path / "program.py"
        path.write_text(text)
        control = tmp_path / "control"
        control.mkdir(exist_ok=True)
        variables = preload.environment(control, env) if helper else env
        process = subprocess.Popen(
            [sys.executable, str(path)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        deadline = time.monotonic() + 10
        while helper and preload.control_dir_of(process.pid) is None and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.02)
        time.sleep(wait_s)
        return process, path, control

    yield start
    for process in running:
        process.kill()
        process.communicate()
