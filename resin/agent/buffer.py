"""Batches on disk until the service has acknowledged them: survives kill -9 of the agent and a service outage."""

from __future__ import annotations

import contextlib
import os
import re

_NAME = re.compile(r"(\d{20})-[A-Za-z0-9_.\-]{1,64}\.batch\Z")


class DiskBuffer:
    """A directory of batch files, oldest first, bounded in bytes.

    A batch is written to a temporary file and renamed, so a reader never meets half a batch. When the bound is
    reached, or the disk is full, the oldest batches go and are counted in `dropped`.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.dropped = 0
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._files: dict[str, int] = {}
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if _NAME.match(name):
                self._files[name] = os.path.getsize(path)
            elif name.endswith(".tmp"):  # left by a kill in the middle of a write
                os.unlink(path)
        self._next = 1 + max((int(name[:20]) for name in self._files), default=0)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all waiting batches."""
        return sum(self._files.values())

    def put(self, session: str, body: bytes) -> bool:
        """Keep a batch; False (and counted as dropped) when even without all others it does not fit."""
        while self._files and self.size_bytes + len(body) > self.max_bytes:
            self._drop_oldest()
        while True:
            name = f"{self._next:020d}-{session}.batch"
            temporary = os.path.join(self.directory, f"{name}.tmp")
            try:
                with open(temporary, "wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, os.path.join(self.directory, name))
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                if not self._files:
                    self.dropped += 1
                    return False
                self._drop_oldest()  # a full disk: make room with our own oldest
                continue
            self._next += 1
            self._files[name] = len(body)
            return True

    def oldest(self) -> tuple[str, bytes] | None:
        """Name and content of the batch that is to be sent next; None when the buffer is empty."""
        for name in list(self._files):
            try:
                with open(os.path.join(self.directory, name), "rb") as file:
                    return name, file.read()
            except OSError:
                del self._files[name]
                self.dropped += 1
        return None

    def remove(self, name: str) -> None:
        """Forget a batch that was acknowledged."""
        self._files.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, name))

    def _drop_oldest(self) -> None:
        self.remove(next(iter(self._files)))
        self.dropped += 1
