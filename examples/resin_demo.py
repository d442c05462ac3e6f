"""Three jobs, three verdicts: a leaking trainer, a caching server, a fragmenting server. `make demo-resin`.

Starts resin's service with its agent and the three jobs, shows what resin makes of them in the terminal and at
the address printed first, and ends as soon as all three are judged, or after 90 seconds. Exit code 0 when the
verdicts are leak (with its line), bounded and retention.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from resin.client import Client, ServiceError, Unreachable  # noqa: E402
from resin.config import Config, make_config  # noqa: E402
from resin.diagnose import preload  # noqa: E402
from resin.show import amount_text  # noqa: E402

JOBS = {"trainer.py": "leak", "cache_server.py": "bounded", "fragmenting_server.py": "retention"}
COLOURS = {"leak": "31;1", "retention": "33;1", "bounded": "32;1", "unclear": "36", "watching": "2"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_jobs(control: Path, seconds: float) -> dict[int, str]:
    """The jobs, as `resin watch` would start them: with the helper that names lines. Returns pid -> name."""
    env = preload.environment(control)
    started = {}
    for name in JOBS:
        command = [sys.executable, str(HERE / "resin_jobs" / name), str(seconds)]
        started[subprocess.Popen(command, env=env).pid] = name
    return started


def start_service(config: Config, state: Path) -> subprocess.Popen:
    options = {
        "state_dir": str(state),
        "service_url": config.service_url,
        "tick_s": "0.5",
        "slow_tick_s": "2",
        "cpu_budget": "0.2",
        "detect_every_s": "4",
        "auto_diagnose": "true",
    }
    command = [sys.executable, "-m", "resin"]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    port = config.service_url.rsplit(":", 1)[1]
    command += ["serve", "--port", port, "--with-agent"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    log = open(state / "service.log", "w")  # noqa: SIM115  (belongs to the child)
    return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)


def judged(client: Client, jobs: dict[int, str]) -> dict[str, dict[str, Any]]:
    """What the service says of each job now: its most telling finding, with the diagnosis."""
    found: dict[str, dict[str, Any]] = {}
    rank = {"leak": 0, "retention": 0, "unclear": 1, "bounded": 2}
    for finding in client.get("/api/v1/findings")["findings"]:
        name = jobs.get(finding["entity"]["pid"])
        if name is None or finding["status"] != "open" or not finding["metric"].endswith("_bytes"):
            continue
        if name not in found or rank[finding["verdict"]] < rank[found[name]["verdict"]]:
            found[name] = finding
    return {name: client.get(f"/api/v1/findings/{finding['id']}") for name, finding in found.items()}


def line_of(finding: dict[str, Any]) -> str:
    """The culprit line, for leaks that were diagnosed."""
    suspects = (finding.get("diagnosis") or {}).get("suspects") or []
    if finding["verdict"] != "leak" or not suspects:
        return ""
    return f"{Path(suspects[0]['file']).name}:{suspects[0]['line']} in {suspects[0]['function']}"


def is_settled(found: dict[str, dict[str, Any]]) -> bool:
    return all(
        name in found and found[name]["verdict"] == verdict for name, verdict in JOBS.items()
    ) and bool(line_of(found["trainer.py"]))


def show(found: dict[str, dict[str, Any]], seconds: float) -> None:
    print(f"\n{seconds:4.0f} s  {'job':24}{'verdict':12}{'class':12}{'per hour':>12}  line")
    for name in JOBS:
        finding = found.get(name)
        verdict = finding["verdict"] if finding else "watching"
        painted = f"\033[{COLOURS[verdict]}m{verdict:12}\033[0m" if sys.stdout.isatty() else f"{verdict:12}"
        growth = finding["growth_class"] if finding else "-"
        slope = finding["slope_bytes_per_hour"] if finding else None
        rate = amount_text(finding["metric"], slope) if finding and slope else "-"
        print(f"        {name:24}{painted}{growth:12}{rate:>12}  {line_of(finding) if finding else ''}")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="give up after this (default 90)")
    parser.add_argument("--stay", action="store_true", help="keep service and jobs running until interrupted")
    args = parser.parse_args()
    config = make_config({"service_url": f"http://127.0.0.1:{free_port()}"})
    with tempfile.TemporaryDirectory(prefix="resin-demo-") as directory:
        state, control = Path(directory) / "state", Path(directory) / "helper"
        state.mkdir()
        control.mkdir()
        service = start_service(config, state)
        client = Client(config)
        jobs: dict[int, str] = {}
        try:
            if not wait_for(client, service):
                print(
                    f"the service did not start:\n{(state / 'service.log').read_text()[-2000:]}",
                    file=sys.stderr,
                )
                return 2
            print(f"page: {config.service_url}")
            jobs = start_jobs(control, 3600.0 if args.stay else args.seconds + 30.0)
            return watch(client, jobs, service, state, args)
        except KeyboardInterrupt:
            return 130
        finally:
            for pid in jobs:
                os.kill(pid, 15)
                os.waitpid(pid, 0)
            service.terminate()
            service.wait(timeout=30)


def wait_for(client: Client, service: subprocess.Popen, *, seconds: float = 30.0) -> bool:
    """Wait until the service answers: growth that nobody saw would be no growth to it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and service.poll() is None:
        try:
            client.get("/api/v1/findings")
        except (Unreachable, ServiceError):
            time.sleep(0.2)
            continue
        return True
    return False


def watch(
    client: Client, jobs: dict[int, str], service: subprocess.Popen, state: Path, args: argparse.Namespace
) -> int:
    """Show the verdicts until they are settled or time is up."""
    started = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    shown: object = None
    while time.monotonic() - started < args.seconds:
        time.sleep(1.0)
        if service.poll() is not None:
            print(f"the service ended:\n{(state / 'service.log').read_text()[-2000:]}", file=sys.stderr)
            return 2
        try:
            found = judged(client, jobs)
        except (Unreachable, ServiceError):
            continue  # the service is still starting, or a finding was replaced between two questions
        state_now = [(name, f["verdict"], line_of(f)) for name, f in sorted(found.items())]
        if state_now != shown:
            shown = state_now
            show(found, time.monotonic() - started)
        if is_settled(found):
            break
    ok = is_settled(found)
    print()
    for name in JOBS:
        reasons = list(found.get(name, {}).get("why", ()))
        for reason in dict.fromkeys([*reasons[:1], *reasons[-1:]]):
            print(f"{name}: {reason}")
    print("\nall three judged" if ok else f"\nnot settled within {args.seconds:.0f} s")
    while args.stay:
        time.sleep(1.0)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
