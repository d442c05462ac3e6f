"""Delivery of buffered batches to a Prometheus remote write endpoint in place of a resin service."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse

from ..config import Config, ConfigError
from ..store.remote import HEADERS, compress, write_request
from . import wire
from .sender import MAX_ANSWER_BYTES, TIMEOUT_S, Outcome


class RemoteWriteTransport:
    """POST of snappy-compressed WriteRequests over one kept connection."""

    def __init__(self, config: Config) -> None:
        url = urllib.parse.urlsplit(config.remote_write_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ConfigError(
                f"remote_write_url {config.remote_write_url!r} is not a URL such as "
                f"http://127.0.0.1:9090/api/v1/write"
            )
        self._config = config
        self._url = url
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes) -> Outcome:
        """Deliver a batch of the agent's own format; 2xx is the receiver's word that it holds the samples.

        400 is final by the specification: duplicates and samples out of order will not be taken later either.
        """
        batch = wire.decode(wire.inflate(body, 1 << 30), max_label_length=1 << 16)
        headers = dict(HEADERS)
        if self._config.prometheus_token:
            headers["Authorization"] = f"Bearer {self._config.prometheus_token}"
        path = self._url.path or "/api/v1/write"
        if self._url.query:
            path += f"?{self._url.query}"
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", path, compress(write_request(batch.samples)), headers)
            response = self._connection.getresponse()
            text = response.read(MAX_ANSWER_BYTES).decode("utf-8", "replace").strip()[:300]
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Outcome("later", f"{self._config.remote_write_url}: {error or type(error).__name__}")
        if 200 <= response.status < 300:
            return Outcome("stored")
        detail = f"HTTP {response.status} from {self._config.remote_write_url}: {text}"
        if response.status == 400:
            return Outcome("refused", detail)
        wait = response.headers.get("Retry-After", "")
        return Outcome("later", detail, float(wait) if wait.isdigit() else 0.0)

    def close(self) -> None:
        """Close the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        context = ssl.create_default_context(cafile=self._config.ca_file or None)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
