"""HTTP handlers. Everything that touches the store runs in worker threads, never in the event loop."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..agent import wire
from ..config import Config
from ..model import Series
from ..store.base import METRIC_NAME, StoreError
from ..store.duck import Store
from ..store.records import diagnosis_from_json
from .findings import Findings, UnknownFinding
from .ingest import Committer, Overloaded
from .metrics import exposition
from .security import BodyTooLarge, limited_body

MAX_POINTS = 2000  # per series in an answer; more are thinned to the lowest and highest of each stretch
MAX_SERIES = 100
STALE_S = 180.0


class Api:
    """Handlers over one store; mounted by `resin.service.app`."""

    def __init__(self, store: Store, config: Config, committer: Committer, findings: Findings) -> None:
        self.store = store
        self.config = config
        self.committer = committer
        self.findings = findings
        self._fleet: tuple[float, dict[str, Any]] = (-1e9, {})

    async def ingest(self, request: Request) -> Response:
        """POST /api/v1/ingest: a batch of an agent. 200 means that it is durable."""
        try:
            body = await limited_body(request, self.config.max_body_bytes)
            batch = await run_in_threadpool(self._decode, body, request.headers.get("content-encoding", ""))
        except BodyTooLarge as error:
            return problem(413, str(error))
        except wire.WireError as error:
            return problem(422, str(error))
        try:
            appended = await asyncio.wrap_future(self.committer.submit(batch))
        except Overloaded as error:
            return problem(503, str(error), {"Retry-After": "5"})
        except StoreError as error:
            return problem(503, str(error), {"Retry-After": "30"})
        return JSONResponse(
            {
                "stored": appended.stored,
                "elided": appended.elided,
                "duplicate": appended.duplicate,
                "diagnose": self.findings.requests_for(batch.host),
            }
        )

    async def list_findings(self, request: Request) -> Response:
        """GET /api/v1/findings?status=open&verdict=leak"""
        status, verdict = request.query_params.get("status"), request.query_params.get("verdict")
        found = await run_in_threadpool(self.findings.all)
        kept = [f for f in found if status in {None, f["status"]} and verdict in {None, f["verdict"]}]
        return JSONResponse(
            {
                "findings": kept,
                "elided": self.findings.elided,
                "last_run_s": self.findings.last_run_s,
                "last_error": self.findings.last_error,
            }
        )

    async def one_finding(self, request: Request) -> Response:
        """GET /api/v1/findings/{id}: the finding, its diagnosis, its actions, its series with the fitted line."""
        try:
            identifier = request.path_params["id"]
            return JSONResponse(
                await run_in_threadpool(finding_with_series, self.findings, self.config, identifier)
            )
        except UnknownFinding as error:
            return problem(404, f"no finding has the id {str(error):.60}")

    async def diagnose(self, request: Request) -> Response:
        """POST /api/v1/findings/{id}/diagnose"""
        return await self._act(lambda: self.findings.diagnose(request.path_params["id"]))

    async def mitigate(self, request: Request) -> Response:
        """POST /api/v1/findings/{id}/mitigate with {"apply": false | true}"""
        try:
            content = json.loads(await limited_body(request, 4096) or b"{}")
            apply = content.get("apply", False) if isinstance(content, dict) else None
        except BodyTooLarge as error:
            return problem(413, str(error))
        except (ValueError, RecursionError) as error:
            return problem(422, f"the body is not valid JSON: {error}")
        if not isinstance(apply, bool):
            return problem(422, 'the body must be {"apply": true} or {"apply": false}')
        return await self._act(
            lambda: {"actions": self.findings.mitigate(request.path_params["id"], apply=apply)}
        )

    async def detect(self, request: Request) -> Response:
        """POST /api/v1/detect: scan now instead of waiting for the next pass."""
        found = await run_in_threadpool(self.findings.detect)
        return JSONResponse({"findings": found})

    async def take_diagnosis(self, request: Request) -> Response:
        """POST /api/v1/diagnoses: what an agent learnt about a process that it was asked to diagnose."""
        try:
            content = json.loads(await limited_body(request, 1 << 20))
            diagnosis = diagnosis_from_json(content)
            await run_in_threadpool(self.findings.get, diagnosis.finding_id or "")
            await run_in_threadpool(self.findings.keep_diagnosis, diagnosis.finding_id or "", diagnosis)
        except BodyTooLarge as error:
            return problem(413, str(error))
        except UnknownFinding:
            return problem(404, "no finding has this id")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return problem(422, f"not a diagnosis: {error}")
        return JSONResponse({"stored": True})

    async def series(self, request: Request) -> Response:
        """GET /api/v1/series?metric=anon_bytes&entity=KEY[&component=][&host=][&since=][&until=]"""
        query = request.query_params
        metric = query.get("metric", "anon_bytes")
        if not METRIC_NAME.match(metric):
            return problem(422, f"metric {metric!r:.80} is not a metric name")
        try:
            since, until = (number_or_none(query.get(name), name) for name in ("since", "until"))
        except ValueError as error:
            return problem(422, str(error))
        found = await run_in_threadpool(
            self._series, metric, since, until, query.get("component"), query.get("entity"), query.get("host")
        )
        return JSONResponse(found)

    async def fleet(self, request: Request) -> Response:
        """GET /api/v1/fleet: hosts, and the last values of every process and group seen lately."""
        return JSONResponse(await run_in_threadpool(self._fleet_view))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics in the Prometheus text format."""
        text = await run_in_threadpool(exposition, self.store, self.committer, self.findings)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(self, request: Request) -> Response:
        """GET /healthz: 200 while the service answers; needs no token and tells nothing."""
        return JSONResponse({"status": "ok"})

    def _decode(self, body: bytes, encoding: str) -> wire.Batch:
        if encoding == "gzip":
            body = wire.inflate(body, self.config.max_body_bytes)
        elif encoding not in {"", "identity"}:
            raise wire.WireError(f"content encoding {encoding!r:.40} is not understood; use gzip or none")
        return wire.decode(body, max_label_length=self.config.max_label_length)

    async def _act(self, what: Any) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(what))
        except UnknownFinding as error:
            return problem(404, f"no finding has the id {str(error):.60}")
        except ValueError as error:
            return problem(409, str(error))

    def _series(
        self,
        metric: str,
        since: float | None,
        until: float | None,
        component: str | None,
        entity: str | None,
        host: str | None,
    ) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        elided = 0
        source = self.findings.source
        for one in source.series(
            metric, since=since, until=until, component=component, entity=entity, host=host
        ):
            if len(found) < MAX_SERIES:
                found.append(series_json(one))
            else:
                elided += 1
        return {"series": found, "elided": elided}

    def _fleet_view(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._fleet[0] < 2.0:
            return self._fleet[1]
        horizon = max(STALE_S, 3 * self.config.slow_tick_s)
        latest = self.store.latest(since=time.time() - horizon)
        hosts: dict[str, dict[str, Any]] = {}
        entities: list[dict[str, Any]] = []
        for entity, values in latest.items():
            host = hosts.setdefault(entity.host, {"host": entity.host, "processes": 0})
            if entity.pid is None:
                if entity.component in {"host", "kernel", "agent"}:
                    host.update(values)
                    continue
            elif not entity.component.endswith(":job"):
                host["processes"] += 1
            entities.append(
                {
                    "key": entity.key,
                    "host": entity.host,
                    "component": entity.component,
                    "pid": entity.pid,
                    "group": entity.group,
                    **values,
                }
            )
        entities.sort(key=lambda e: -e.get("anon_bytes", e.get("cgroup_bytes", 0.0)))
        view = {
            "time_s": time.time(),
            "hosts": sorted(hosts.values(), key=lambda h: h["host"]),
            "entities": entities[:1000],
            "elided": max(0, len(entities) - 1000),
        }
        self._fleet = (now, view)
        return view


def finding_with_series(findings: Findings, config: Config, identifier: str) -> dict[str, Any]:
    """A finding with its diagnosis, actions, series and the line to draw through it."""
    finding = findings.get(identifier)
    since = finding["last_seen_s"] - config.detect_window_s
    found = list(findings.source.series(finding["metric"], since=since, entity=finding["entity"]["key"]))
    finding["series"] = series_json(found[0]) if found else None
    finding["fit"] = fitted_line(found[0], finding) if found else None
    return finding


def series_json(series: Series) -> dict[str, Any]:
    """A series for the page: at most MAX_POINTS points, the lowest and highest of each stretch kept."""
    times, values = np.array(series.times_s), np.array(series.values)
    total = len(times)
    if total > MAX_POINTS:
        bounds = np.linspace(0, total, MAX_POINTS // 2 + 1).astype(int)
        kept: set[int] = {0, total - 1}
        for start, end in zip(bounds[:-1], bounds[1:]):
            kept.add(start + int(np.argmin(values[start:end])))
            kept.add(start + int(np.argmax(values[start:end])))
        index = np.array(sorted(kept))
        times, values = times[index], values[index]
    return {
        "entity": series.entity.key,
        "metric": series.metric,
        "times_s": times.tolist(),
        "values": values.tolist(),
        "points": total,
        "limit_bytes": series.limit_bytes,
    }


def fitted_line(series: Series, finding: dict[str, Any]) -> dict[str, float] | None:
    """Line of the finding's slope through the median of what was seen since its start, to be drawn."""
    slope, start = finding.get("slope_bytes_per_hour"), finding.get("start_s")
    if slope is None or start is None or not series.times_s:
        return None
    times, values = np.array(series.times_s), np.array(series.values)
    end = finding.get("end_s") or float(times[-1])
    inside = (times >= start) & (times <= end)
    if not inside.any():
        return None
    per_second = slope / 3600.0
    level = float(np.median(values[inside] - per_second * (times[inside] - start)))
    return {
        "start_s": float(start),
        "start_value": level,
        "end_s": float(end),
        "end_value": level + per_second * (end - start),
        "per_hour": float(slope),
    }


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Error answer: what happened and what to do, as JSON."""
    return JSONResponse({"error": text}, status, headers=headers)


def number_or_none(text: str | None, name: str) -> float | None:
    """A query parameter as a finite number."""
    if text is None or text == "":
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r:.40}, expected seconds since the epoch") from None
    if not math.isfinite(number) or abs(number) > 1e11:
        raise ValueError(f"{name} is {text!r:.40}, expected seconds since the epoch")
    return number
