"""Real servers on loopback for tests: started in a temporary directory, stopped at the end."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    """A port of loopback that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def prometheus(directory: Path, rules: Path | None = None) -> Iterator[str]:
    """URL of a Prometheus with the remote write receiver; skips the test when the binary is absent."""
    binary = shutil.which("prometheus") or pytest.skip("prometheus is not installed")
    port = free_port()
    config = directory / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1h}\n" + (f"rule_files: ['{rules}']\n" if rules else ""))
    arguments = [
        binary, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver", "--log.level=error",
    ]  # fmt: skip
    with _running(arguments, f"http://127.0.0.1:{port}", "/-/ready", directory) as url:
        yield url


@contextlib.contextmanager
def victoria_metrics(directory: Path) -> Iterator[str]:
    """URL of a single-node VictoriaMetrics; skips the test when the binary is absent."""
    binary = shutil.which("victoria-metrics") or pytest.skip("victoria-metrics is not installed")
    port = free_port()
    arguments = [
        binary, f"-storageDataPath={directory / 'data'}", f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y", "-search.latencyOffset=0s", "-dedup.minScrapeInterval=0s",
        "-search.disableCache",  # an answer from before the last samples became searchable must not be kept
    ]  # fmt: skip
    with _running(arguments, f"http://127.0.0.1:{port}", "/health", directory) as url:
        yield url


def flush(url: str) -> None:
    """Make what VictoriaMetrics has taken searchable now; Prometheus, which searches at once, knows no such call."""
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url + "/internal/force_flush", timeout=30).close()


@contextlib.contextmanager
def _running(arguments: list[str], url: str, ready: str, directory: Path) -> Iterator[str]:
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=directory)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    urllib.request.urlopen(url + ready, timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        text = (directory / "server.log").read_text()[-2000:]
                        pytest.fail(f"{arguments[0]} did not become ready:\n{text}")
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
