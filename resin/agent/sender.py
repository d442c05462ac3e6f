"""Delivery of buffered batches to the resin service over HTTP, oldest first, until acknowledged."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..config import Config, ConfigError
from .buffer import DiskBuffer

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of one batch: stored, refused for good, or to be sent again after `wait_s`."""

    kind: Literal["stored", "refused", "later"]
    detail: str = ""
    wait_s: float = 0.0
    answer: Mapping[str, Any] | None = None


class Transport(Protocol):
    """Sends one encoded batch."""

    def send(self, body: bytes) -> Outcome:
        """Deliver `body` (see `resin.agent.wire`); never raises for network trouble."""
        ...


class ServiceTransport:
    """POST to a resin service over one kept connection."""

    def __init__(self, config: Config) -> None:
        url = urllib.parse.urlsplit(config.service_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ConfigError(
                f"service_url {config.service_url!r} is not http://HOST:PORT or https://HOST:PORT"
            )
        self._config = config
        self._url = url
        self._path = url.path.rstrip("/") + "/api/v1/ingest"
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes) -> Outcome:
        """Deliver a batch; the service answers once it is durable."""
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        if self._config.token:
            headers["Authorization"] = f"Bearer {self._config.token}"
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Outcome("later", f"{self._config.service_url}: {error or type(error).__name__}")
        text = data.decode("utf-8", "replace")[:300]
        if response.status == 200:
            try:
                answer = json.loads(data)
            except ValueError:
                answer = None
            if isinstance(answer, dict):
                return Outcome("stored", answer=answer)
            self.close()
            return Outcome(
                "later", f"{self._config.service_url} answered 200 but not as resin does: {text!r}"
            )
        if response.status in {400, 413, 422}:
            return Outcome("refused", f"HTTP {response.status}: {text}")
        wait = response.headers.get("Retry-After", "")
        return Outcome("later", f"HTTP {response.status}: {text}", float(wait) if wait.isdigit() else 0.0)

    def close(self) -> None:
        """Close the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        import ssl

        context = ssl.create_default_context(cafile=self._config.ca_file or None)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


class Sender:
    """Moves batches from a DiskBuffer through a transport, backing off while the other side is away."""

    FIRST_WAIT_S = 1.0
    LONGEST_WAIT_S = 60.0

    def __init__(self, buffer: DiskBuffer, transport: Transport) -> None:
        self.buffer = buffer
        self.transport = transport
        self.refused = 0
        self.last_trouble: str | None = None
        self._wait_s = 0.0
        self._not_before_s = 0.0

    def flush(self, *, max_batches: int = 50, force: bool = False) -> list[Mapping[str, Any]]:
        """Send what is due, at most `max_batches`; returns the service's answers.

        After a failure nothing is tried for 1 s, 2 s, 4 s … at most a minute, unless `force` is set.
        """
        answers: list[Mapping[str, Any]] = []
        if not force and time.monotonic() < self._not_before_s:
            return answers
        for _ in range(max_batches):
            waiting = self.buffer.oldest()
            if waiting is None:
                break
            name, body = waiting
            outcome = self.transport.send(body)
            if outcome.kind == "later":
                self.last_trouble = outcome.detail
                self._wait_s = min(max(2 * self._wait_s, self.FIRST_WAIT_S), self.LONGEST_WAIT_S)
                self._not_before_s = time.monotonic() + max(self._wait_s, min(outcome.wait_s, 600.0))
                break
            self._wait_s = 0.0
            if outcome.kind == "refused":
                self.refused += 1
                self.last_trouble = outcome.detail
            else:
                self.last_trouble = None
                if outcome.answer:
                    answers.append(outcome.answer)
            self.buffer.remove(name)
        return answers
