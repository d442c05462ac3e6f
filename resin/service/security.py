"""Who may ask: bearer token, Host and Origin checks against foreign pages, bounded bodies, headers of answers."""

from __future__ import annotations

import base64
import binascii
import hmac
import urllib.parse

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import Config, is_loopback

_SAFE = {"GET", "HEAD", "OPTIONS"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class BodyTooLarge(ValueError):
    """A request body beyond the configured bound."""


class Guard:
    """ASGI middleware in front of every route except /healthz.

    With a token: `Authorization: Bearer TOKEN`, or Basic with the token as password so that a browser can ask
    for it. Without one (loopback only): the Host header must name this machine, so that a foreign page cannot
    reach the service through a name of its own that resolves to 127.0.0.1. Writing requests must come from no
    other origin.
    """

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self.app = app
        self.config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 403 or 421, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = None if scope["path"] == "/healthz" else self._problem(scope["method"], headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        await (problem or self.app)(scope, receive, send_with_headers)

    def _problem(self, method: str, headers: Headers) -> JSONResponse | None:
        if self.config.token:
            if not self._authorized(headers.get("authorization", "")):
                return JSONResponse(
                    {"error": "a token is required: send 'Authorization: Bearer TOKEN'"},
                    401,
                    headers={"WWW-Authenticate": 'Basic realm="resin (the token is the password)"'},
                )
        elif not self._known_host(headers.get("host", "")):
            return JSONResponse(
                {"error": "this Host name is not this machine; add it to allowed_hosts or set a token"}, 421
            )
        origin = headers.get("origin")
        if method not in _SAFE and origin and urllib.parse.urlsplit(origin).netloc != headers.get("host"):
            return JSONResponse({"error": f"requests from the origin {origin!r:.100} are refused"}, 403)
        return None

    def _authorized(self, header: str) -> bool:
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() == "bearer":
            given = credentials.strip()
        elif scheme.lower() == "basic":
            try:
                given = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        else:
            return False
        return hmac.compare_digest(given.encode(), self.config.token.encode())

    def _known_host(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self.config.allowed_hosts


async def limited_body(request: Request, max_bytes: int) -> bytes:
    """Body of a request; raises BodyTooLarge as soon as it passes `max_bytes`, whatever its headers say."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes, at most {max_bytes} are taken")
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
        parts.append(chunk)
    return b"".join(parts)
