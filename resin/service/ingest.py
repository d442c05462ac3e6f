"""Group commit: batches of many agents in one transaction, each acknowledged only once it is durable."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from ..agent.wire import Batch
from ..store.duck import Appended, Store

MAX_WAITING = 2000
MAX_TOGETHER = 256
MAX_HOSTS = 20_000  # whose last sample is remembered for /metrics


class Overloaded(RuntimeError):
    """More batches are waiting than the store keeps up with; agents keep theirs and try again."""


@dataclass
class IngestCounts:
    """Running totals since the service started, for /metrics."""

    batches: int = 0
    duplicates: int = 0
    values: int = 0
    elided: int = 0
    failures: int = 0


class Committer:
    """One writer thread in front of the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counts = IngestCounts()
        self.last_sample_s: dict[str, float] = {}  # by host
        self._queue: queue.Queue[tuple[Batch, Future[Appended]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="resin-commit", daemon=True)

    def start(self) -> None:
        """Begin committing; what was submitted before waits."""
        self._thread.start()

    def submit(self, batch: Batch) -> Future[Appended]:
        """Hand over a batch; the future completes after the commit. Raises Overloaded when too many wait."""
        future: Future[Appended] = Future()
        try:
            self._queue.put_nowait((batch, future))
        except queue.Full:
            raise Overloaded(f"{MAX_WAITING} batches are waiting to be stored") from None
        return future

    def close(self) -> None:
        """Commit what is waiting and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            first = self._queue.get()
            if first is None:
                return
            taken = [first]
            while len(taken) < MAX_TOGETHER:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    closing = True
                    break
                taken.append(more)
            self._commit(taken)

    def _commit(self, taken: list[tuple[Batch, Future[Appended]]]) -> None:
        try:
            results = self.store.append_batches([batch for batch, _ in taken])
        except Exception as error:
            self.counts.failures += len(taken)
            for _, future in taken:
                future.set_exception(error)
            return
        for (batch, future), result in zip(taken, results):
            if batch.samples and (batch.host in self.last_sample_s or len(self.last_sample_s) < MAX_HOSTS):
                newest = max(s.time_s for s in batch.samples)
                self.last_sample_s[batch.host] = max(newest, self.last_sample_s.get(batch.host, 0.0))
            self.counts.batches += 1
            self.counts.duplicates += result.duplicate
            self.counts.values += result.stored
            self.counts.elided += result.elided
            future.set_result(result)
