"""The ASGI application: routes, the page's files, start and end of the background work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from ..config import Config, ConfigError
from ..store.base import SeriesStore
from ..store.duck import Store
from .api import Api, problem
from .findings import DetectionLoop, Findings
from .ingest import Committer
from .security import Guard

ASSETS = Path(__file__).with_name("assets")
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}


def create_app(
    store: Store, config: Config, *, source: SeriesStore | None = None, background: bool = True
) -> Starlette:
    """Application over `store`. `source` is read by detection in its place; `background` runs detection."""
    if config.listens_beyond_loopback and not config.token:
        raise ConfigError(
            f"listen_host {config.listen_host!r} is reachable from other machines: set the option `token` "
            f"(agents send it, browsers ask for it as password), or listen on 127.0.0.1"
        )
    committer = Committer(store)
    findings = Findings(store, config, source)
    api = Api(store, config, committer, findings)
    loop = DetectionLoop(findings, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        committer.start()
        if background:
            loop.start()
        yield
        loop.stop()
        committer.close()

    routes = [
        Route("/api/v1/ingest", api.ingest, methods=["POST"]),
        Route("/api/v1/findings", api.list_findings),
        Route("/api/v1/findings/{id}", api.one_finding),
        Route("/api/v1/findings/{id}/diagnose", api.diagnose, methods=["POST"]),
        Route("/api/v1/findings/{id}/mitigate", api.mitigate, methods=["POST"]),
        Route("/api/v1/detect", api.detect, methods=["POST"]),
        Route("/api/v1/diagnoses", api.take_diagnosis, methods=["POST"]),
        Route("/api/v1/series", api.series),
        Route("/api/v1/fleet", api.fleet),
        Route("/metrics", api.metrics),
        Route("/healthz", api.health),
        *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE_FILES.items()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, config=config)],
        exception_handlers={
            404: lambda _, error: problem(404, "there is nothing at this address"),
            405: lambda _, error: problem(405, "this address takes another method"),
            500: lambda _, error: problem(500, f"{type(error).__name__}: {error}"),
        },
    )
    app.router.redirect_slashes = (
        False  # an address is what it says: `findings//` is not the list of findings
    )
    app.state.findings = findings
    app.state.committer = committer
    return app


def _file(name: str, kind: str):  # noqa: ANN202
    async def answer(_: Request) -> Response:
        return FileResponse(ASSETS / name, media_type=kind)

    return answer
