"""Asking a running resin service, for the commands that show what it knows."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from .config import Config


class ServiceError(RuntimeError):
    """The service answered with an error; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(RuntimeError):
    """No service answers at service_url."""


class Client:
    """GET and POST of JSON with the configured token and CA."""

    def __init__(self, config: Config, *, timeout_s: float = 60.0) -> None:
        self.config = config
        self.timeout_s = timeout_s

    def get(self, path: str, **query: Any) -> Any:
        """Content of GET `path`. Raises Unreachable or ServiceError."""
        text = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        return self._ask(f"{path}?{text}" if text else path, None)

    def post(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """Content of the answer to POST `path`. Raises Unreachable or ServiceError."""
        return self._ask(path, json.dumps(content or {}).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        base = self.config.service_url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if self.config.token:
            headers["Authorization"] = f"Bearer {self.config.token}"
        request = urllib.request.Request(base + path, data=body, headers=headers)
        context = None
        if base.startswith("https"):
            import ssl

            context = ssl.create_default_context(cafile=self.config.ca_file or None)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s, context=context) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"]
            raise ServiceError(error.code, f"{base} answered {error.code}: {text}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(
                f"no resin service answers at {base} ({reason}); start one with `resin serve`, or name it with "
                f"--set service_url=URL"
            ) from error
