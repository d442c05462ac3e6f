"""What resin itself costs: the agent beside many processes, the store with 20 million samples, a flood of agents.

    python benchmarks/resin_system.py agent [--processes 200] [--seconds 120]
    python benchmarks/resin_system.py store [--hosts 1000]
    python benchmarks/resin_system.py flood [--agents 1000] [--seconds 60]

Prints one JSON object with the machine, the versions and the numbers as measured.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from resin.agent import wire
from resin.agent.procfs import keyed_kilobytes, read_bytes
from resin.model import Entity, Sample

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FORKS = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        held = bytearray(5_000_000)
        signal.pause()
print("ready", flush=True)
signal.pause()
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["agent", "store", "flood"])
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--tick", type=float, default=10.0)
    args = parser.parse_args()
    measure = {"agent": measure_agent, "store": measure_store, "flood": measure_flood}[args.part]
    print(json.dumps({"part": args.part, **measure(args), "machine": machine()}, indent=1))
    return 0


def machine() -> dict[str, object]:
    """Where this was measured."""
    lines = (read_bytes("/proc/cpuinfo") or b"").decode("utf-8", "replace").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    versions = {
        name: importlib.metadata.version(name) for name in ("duckdb", "numpy", "starlette", "uvicorn")
    }
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
    }


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = (read_bytes(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mb(pid: int | str, name: bytes = b"VmRSS") -> float:
    """Resident memory (VmHWM: its peak) in units of 10^6 bytes."""
    return keyed_kilobytes(read_bytes(f"/proc/{pid}/status") or b"")[name] / 1e6


def measure_agent(args: argparse.Namespace) -> dict[str, object]:
    """CPU and memory of `resin agent` at its default ticks, a receiver that only counts on the other side."""
    seconds = args.seconds or 120.0
    received: list[int] = []
    with receiver(received) as server, tempfile.TemporaryDirectory() as state:
        crowd = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(args.processes)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert crowd.stdout is not None
        crowd.stdout.readline()
        url = f"http://127.0.0.1:{server.server_port}"
        settings = {"state_dir": state, "tick_s": args.tick, "service_url": url}
        options = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        agent = subprocess.Popen(
            [sys.executable, "-m", "resin", *options, "agent"], stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(2.5 * args.tick)  # start-up and the first look at every process are not steady state
            before, started = cpu_s(agent.pid), time.monotonic()
            time.sleep(seconds)
            used, elapsed = cpu_s(agent.pid) - before, time.monotonic() - started
            return {
                "processes": args.processes,
                "tick_s": args.tick,
                "seconds": round(elapsed, 1),
                "cpu_percent_of_one_core": round(100 * used / elapsed, 3),
                "rss_mb": memory_mb(agent.pid),
                "peak_rss_mb": memory_mb(agent.pid, b"VmHWM"),
                "bytes_per_batch": round(float(np.mean(received))) if received else None,
            }
        finally:
            agent.terminate()
            agent.wait()
            os.killpg(crowd.pid, signal.SIGKILL)
            crowd.wait()


def receiver(received: list[int]) -> http.server.ThreadingHTTPServer:
    """A server that takes every batch and remembers its size."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            received.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = b'{"stored": 1, "diagnose": []}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def measure_store(args: argparse.Namespace) -> dict[str, object]:
    """Ingest, pivot, reading and whole-fleet detection over hosts x 20 processes x 1,000 points."""
    from resin.detect import scan
    from resin.store import Store

    hosts, processes, points, at_once = args.hosts, 20, 1000, 50
    entities = [Entity(f"h{h:04d}", f"c{p}", 100 + p, 1e9) for h in range(hosts) for p in range(processes)]
    random = np.random.default_rng(0)
    base = random.uniform(50e6, 5e9, len(entities))
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Store(os.path.join(folder, "r.duckdb"), threads=2) as store:
        times["ingest_s"] = 0.0
        for first in range(0, points, at_once):
            index = np.tile(np.arange(len(entities)), at_once)
            when = np.repeat(1.7e9 + 60.0 * np.arange(first, first + at_once), len(entities))
            values = base[index] * random.uniform(0.98, 1.02, len(index))
            started = time.perf_counter()
            store.append_columns("anon_bytes", entities, index, when, values)
            times["ingest_s"] += time.perf_counter() - started
        size = store.size_bytes()
        for name, work in (
            ("pivot_s", lambda: store.pivot()),
            ("read_all_series_s", lambda: sum(1 for _ in store.series("anon_bytes"))),
            ("one_series_s", lambda: list(store.series("anon_bytes", entity=entities[7].key))),
            ("whole_fleet_detection_s", lambda: scan(store, now_s=1.7e9 + 60.0 * points)),
        ):
            cpu, started = time.process_time(), time.perf_counter()
            work()
            times[name] = time.perf_counter() - started
            times[name.removesuffix("_s") + "_cpu_s"] = time.process_time() - cpu
    return {
        "samples": len(entities) * points,
        **{name: round(value, 3) for name, value in times.items()},
        "bytes_per_sample": round(size / (len(entities) * points), 2),
        "peak_rss_mb": memory_mb("self", b"VmHWM"),
    }


def measure_flood(args: argparse.Namespace) -> dict[str, object]:
    """Simulated agents with 20 processes each, one batch per tick, against a real service on loopback."""
    seconds = args.seconds or 60.0
    with tempfile.TemporaryDirectory() as state:
        port = 18790
        settings = {"state_dir": state, "listen_port": port, "detect_every_s": 30}
        options = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        service = subprocess.Popen(
            [sys.executable, "-m", "resin", *options, "serve"], stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(3.0)
            result = asyncio.run(flood(port, args.agents, seconds, args.tick))
            result["service_cpu_percent_of_one_core"] = round(100 * cpu_s(service.pid) / seconds, 1)
            result["service_peak_rss_mb"] = memory_mb(service.pid, b"VmHWM")
            return result
        finally:
            service.terminate()
            service.wait()


async def flood(port: int, agents: int, seconds: float, tick_s: float) -> dict[str, object]:
    latencies: list[float] = []
    failures: list[str] = []
    end = time.monotonic() + seconds

    async def agent(number: int) -> None:
        await asyncio.sleep(tick_s * number / agents)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seq = 0
        while time.monotonic() < end:
            now = time.time()
            names = ("rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes", "threads", "fds")
            samples = [
                Sample(Entity(f"h{number}", f"c{p}", p, 1.0), now, {n: 1e8 + p * seq for n in names})
                for p in range(1, 21)
            ]
            body = wire.encode(f"flood{number}", seq, f"h{number}", samples)
            head = (
                f"POST /api/v1/ingest HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Encoding: gzip\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            started = time.monotonic()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(h.split(b":")[1])
                for h in answer.split(b"\r\n")
                if h.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                failures.append(answer.split(b"\r\n", 1)[0].decode())
            latencies.append(time.monotonic() - started)
            seq += 1
            await asyncio.sleep(max(0.0, tick_s - (time.monotonic() - started)))
        writer.close()

    results = await asyncio.gather(*(agent(n) for n in range(agents)), return_exceptions=True)
    broken = [repr(r) for r in results if isinstance(r, BaseException)]
    return {
        "agents": agents,
        "tick_s": tick_s,
        "seconds": seconds,
        "batches_acknowledged": len(latencies) - len(failures),
        "refused": len(failures),
        "broken_connections": len(broken),
        "first_trouble": (failures + broken)[:1],
        "ack_p50_ms": round(1000 * float(np.percentile(latencies, 50)), 1),
        "ack_p99_ms": round(1000 * float(np.percentile(latencies, 99)), 1),
        "ack_max_ms": round(1000 * max(latencies), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
