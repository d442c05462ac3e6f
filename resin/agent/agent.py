"""The agent's loop: collect, buffer, send, and stay within its own budget."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from ..config import Config
from ..model import Entity, Sample
from .collectors import Collector, Tick, default_collectors
from .process import ProcessTable, stable_boot_time_s
from .procfs import Roots, raise_descriptor_limit


class Sampler:
    """Turns ticks into samples. `only_below` restricts it to one process and its descendants."""

    def __init__(
        self,
        config: Config,
        *,
        roots: Roots | None = None,
        collectors: Sequence[Collector] | None = None,
        only_below: int | None = None,
        state_dir: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.roots = roots or Roots()
        self.host = config.host or socket.gethostname() or "localhost"
        self.collectors = list(collectors) if collectors is not None else default_collectors(config)
        self.table = ProcessTable(
            self.roots,
            self.host,
            boot_s=stable_boot_time_s(self.roots, state_dir),
            held_files=raise_descriptor_limit(),
            only_below=only_below,
        )
        self._clock = clock
        self._slow_due_s = 0.0

    def sample(self, *, slow: bool | None = None) -> list[Sample]:
        """One tick. Costly collectors run when `slow` says so, by default every `slow_tick_s`."""
        now = time.monotonic()
        if slow is None:
            slow = now >= self._slow_due_s
        if slow:
            self._slow_due_s = now + self.config.slow_tick_s * 0.99
        tick = Tick(self._clock(), slow, self.host, self.roots, self.table, self.table.refresh())
        for collector in self.collectors:
            collector.collect(tick)
        samples = [Sample(p.entity, tick.time_s, p.values) for p in tick.processes if p.values]
        samples += [Sample(entity, tick.time_s, values) for entity, values in tick.others.items()]
        return samples


class Agent:
    """Samples the host until stopped, keeps batches on disk and sends them."""

    def __init__(
        self, config: Config, *, sampler: Sampler | None = None, directory: str | None = None
    ) -> None:
        from .buffer import DiskBuffer
        from .sender import Sender, ServiceTransport, Transport

        self.config = config
        state = directory or os.path.join(config.state_dir, "agent")
        self._lock_file = _take_lock(state)
        self.sampler = sampler or Sampler(config, state_dir=state)
        self.session = f"{secrets.token_hex(8)}"
        self.seq = 0
        self.buffer = DiskBuffer(os.path.join(state, "buffer"), config.buffer_max_bytes)
        transport: Transport
        if config.remote_write_url:
            from .remote_write import RemoteWriteTransport

            transport = RemoteWriteTransport(config)
        else:
            transport = ServiceTransport(config)
        self.sender = Sender(self.buffer, transport)
        self.stop_event = threading.Event()
        self.stretch = 1.0
        self.on_answer: Callable[[dict], None] | None = None
        self._said: str | None = None

    def tick(self) -> int:
        """Collect once, keep the batch on disk, send what is due; returns the number of samples."""
        from . import wire

        samples = self.sampler.sample()
        samples.append(self._own_sample(samples[0].time_s if samples else time.time()))
        body = wire.encode(self.session, self.seq, self.sampler.host, samples)
        self.seq += 1
        self.buffer.put(self.session, body)
        for answer in self.sender.flush():
            if self.on_answer:
                self.on_answer(dict(answer))
        self._say_trouble()
        return len(samples)

    def run(self, *, ticks: int | None = None) -> None:
        """Tick every `tick_s` (longer when the CPU budget asks for it) until `stop` or for `ticks` ticks."""
        done = 0
        next_s = time.monotonic()
        while not self.stop_event.is_set() and (ticks is None or done < ticks):
            used = time.process_time()
            self.tick()
            done += 1
            self._pace(time.process_time() - used)
            next_s = max(next_s + self.config.tick_s * self.stretch, time.monotonic())
            if ticks is None or done < ticks:
                self.stop_event.wait(next_s - time.monotonic())
        self.sender.flush(force=True)

    def stop(self) -> None:
        """Make `run` return after the tick in progress."""
        self.stop_event.set()

    def _pace(self, used_s: float) -> None:
        """Stretch ticks smoothly so that used CPU over tick length stays under the budget; at most 12 times."""
        wanted = used_s / (self.config.cpu_budget * self.config.tick_s)
        self.stretch = min(max(0.8 * self.stretch + 0.2 * wanted, 1.0), 12.0)

    def _own_sample(self, time_s: float) -> Sample:
        values = {
            "buffer_batches": float(len(self.buffer)),
            "buffer_bytes": float(self.buffer.size_bytes),
            "dropped_batches_total": float(self.buffer.dropped),
            "refused_batches_total": float(self.sender.refused),
            "cpu_seconds_total": time.process_time(),
            "tick_stretch": self.stretch,
        }
        return Sample(Entity(self.sampler.host, "agent"), time_s, values)

    def _say_trouble(self) -> None:
        trouble = self.sender.last_trouble
        if trouble != self._said:
            if trouble:
                print(f"resin agent: {trouble} ({len(self.buffer)} batches kept on disk)", file=sys.stderr)
            elif self._said:
                print("resin agent: the service takes samples again", file=sys.stderr)
            self._said = trouble


def _take_lock(directory: str) -> int:
    """Hold `<directory>/lock` for this process's lifetime: two agents on one buffer would send out of order."""
    import fcntl

    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise RuntimeError(
            f"another resin agent already uses {directory}; stop it, or give this one its own --state-dir"
        ) from None
    return fd
