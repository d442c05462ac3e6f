"""The life of findings: detection in the background, what is open, what has cleared, diagnosis and actions."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..config import Config
from ..detect import Judgements, detectors, scan
from ..model import Action, Diagnosis, Finding
from ..store.base import SeriesStore
from ..store.duck import Store
from ..store.records import finding_from_json, to_json
from .echoes import without_echoes

MAX_KEPT = 2000  # findings written per detection, the most severe first
MAX_HISTORY = 120
ENDED_AFTER_S = 300.0
FAMILY = {
    "uss_bytes",
    "anon_bytes",
    "pss_bytes",
    "rss_bytes",
}  # metrics that tell one growth of private memory


class UnknownFinding(KeyError):
    """No finding has this id."""


class Findings:
    """Detects over `source` and keeps findings, diagnoses and actions in `store`. Thread-safe."""

    def __init__(self, store: Store, config: Config, source: SeriesStore | None = None) -> None:
        self.store = store
        self.config = config
        self.source: SeriesStore = source or store
        self.host = config.host or socket.gethostname()
        self.last_run_s: float | None = None
        self.last_duration_s: float | None = None
        self.last_error: str | None = None
        self.runs = 0
        self.elided = 0
        self.judgements = Judgements()
        self._busy = threading.Lock()
        self._pending: dict[str, dict[str, dict[str, Any]]] = {}  # host -> finding id -> finding

    def detect(self, *, now_s: float | None = None) -> list[dict[str, Any]]:
        """Scan once and write what changed; returns the open findings. One scan runs at a time."""
        with self._busy:
            now = time.time() if now_s is None else now_s
            started = time.monotonic()
            try:
                with self.judgements.one_pass(detectors()) as using:
                    said = scan(self.source, now_s=now, using=using)
                found = [self._refined(finding) for finding in said]
            except Exception as error:
                self.last_error = f"{type(error).__name__}: {error}"
                raise
            finally:
                self.last_duration_s = time.monotonic() - started
            self.last_error = None
            self.last_run_s = now
            self.runs += 1
            self._keep(found, now)
        return self.open()

    def _refined(self, finding: Finding) -> Finding:
        """The finding in the light of a diagnosis of the same process, where there is one."""
        from ..detect import refine
        from ..store.records import diagnosis_from_json

        if finding.entity.pid is None or finding.verdict not in {"leak", "unclear"}:
            return finding
        content = self.store.records.get("diagnosis", f"entity:{finding.entity.key}")
        return refine(finding, diagnosis_from_json(content)) if content else finding

    def open(self) -> list[dict[str, Any]]:
        """Findings that hold now: leaks first, then by severity."""
        return [f for f in self.all() if f["status"] == "open"]

    def all(self) -> list[dict[str, Any]]:
        """Open and cleared findings: open before cleared, leaks first, then by severity."""
        order = {"leak": 0, "retention": 1, "unclear": 2, "bounded": 3}
        return sorted(
            (f for f in self.store.records.all("finding") if f["status"] != "superseded"),
            key=lambda f: (f["status"] != "open", order.get(f["verdict"], 9), -f["severity"], f["id"]),
        )

    def get(self, finding_id: str) -> dict[str, Any]:
        """One finding with its diagnosis and actions; an unambiguous beginning of the id will do."""
        records = self.store.records
        found = records.get("finding", finding_id)
        if found is None and len(finding_id) >= 4:
            matches = [f for f in records.all("finding") if f["id"].startswith(finding_id)]
            found = matches[0] if len(matches) == 1 else None
        if found is not None and found["status"] == "superseded":
            found = records.get("finding", found["superseded_by"])
        if found is None:
            raise UnknownFinding(finding_id)
        return {
            **found,
            "diagnosis": records.get("diagnosis", found["id"])
            or records.get("diagnosis", f"entity:{found['entity']['key']}"),
            "actions": [a for a in self.store.records.all("action") if a["finding_id"] == found["id"]],
        }

    def diagnose(self, finding_id: str) -> dict[str, Any]:
        """Diagnose the finding's process here, or leave the request for the agent of its host.

        Raises UnknownFinding, or ValueError when the finding is not about a process or that has ended.
        """
        content = self.get(finding_id)
        finding = finding_from_json(content)
        if finding.entity.pid is None:
            raise ValueError(f"{finding.entity.key} is not a process: there is nothing to attach to")
        if finding.entity.host != self.host:
            self._pending.setdefault(finding.entity.host, {})[finding.id] = to_json(finding)
            return {"state": "asked", "host": finding.entity.host}
        from ..agent.identity import is_running

        if not is_running(finding.entity):
            raise ValueError(
                f"process {finding.entity.pid} has ended, or its pid belongs to another process now"
            )
        from ..diagnose import diagnose

        diagnosis = diagnose(finding.entity.pid, finding=finding)
        self.keep_diagnosis(finding.id, diagnosis)
        return {"state": "done", "diagnosis": to_json(diagnosis)}

    def keep_diagnosis(self, finding_id: str, diagnosis: Diagnosis) -> None:
        """Write a diagnosis that was made here or by an agent.

        It is about the process, so other findings on the same process show it as well.
        """
        content, now = to_json(diagnosis), time.time()
        documents = [(finding_id, now, content)]
        finding = self.store.records.get("finding", finding_id)
        if finding is not None:
            documents.append((f"entity:{finding['entity']['key']}", now, content))
        self.store.records.put_many("diagnosis", documents)

    def requests_for(self, host: str) -> list[dict[str, Any]]:
        """Findings that the agent of `host` is asked to diagnose; each is handed out once."""
        return list(self._pending.pop(host, {}).values())

    def mitigate(self, finding_id: str, *, apply: bool) -> list[dict[str, Any]]:
        """Plan mitigations, and with `apply` take those that the configuration lists, lightest first.

        Applying stops at the first action that was tried. Raises ValueError where it must not be done here.
        """
        from ..mitigate import apply as take
        from ..mitigate import plan
        from ..store.records import diagnosis_from_json

        content = self.get(finding_id)
        finding = finding_from_json(content)
        diagnosis = diagnosis_from_json(content["diagnosis"]) if content["diagnosis"] else None
        planned = list(plan(finding, diagnosis, self.config))
        if not apply:
            return [to_json(action) for action in planned]
        if content["status"] != "open" or finding.verdict not in {"leak", "retention"}:
            raise ValueError(
                f"finding {finding.id} is {content['status']} ({finding.verdict}): nothing to act on"
            )
        if finding.entity.host != self.host:
            raise ValueError(
                f"{finding.entity.host} is another host: run `resin mitigate {finding.id}` there"
            )
        taken: list[Action] = []
        for action in planned:
            if action.name in self.config.mitigations and not action.applied:
                taken.append(take(action, finding, diagnosis, self.config))
                if action.name != "notify":
                    break
        if not taken:
            raise ValueError("no planned action is listed in the option `mitigations`; nothing was applied")
        for index, action in enumerate(taken):
            identifier = f"{finding.id}-{action.name}-{action.time_s:.3f}-{index}"
            self.store.records.put("action", identifier, action.time_s, to_json(action))
        return [to_json(action) for action in taken]

    def _keep(self, found: list[Finding], now: float) -> None:
        worth = [f for f in found if f.verdict in {"leak", "retention"} or f.growth_class != "flat"]
        worth = without_echoes(worth)
        worth.sort(key=lambda f: (f.verdict != "leak", -f.severity))
        self.elided = max(0, len(worth) - MAX_KEPT)
        before = {f["id"]: f for f in self.store.records.all("finding")}
        documents: list[tuple[str, float, Mapping[str, Any]]] = []
        current = set()
        silent_s = max(ENDED_AFTER_S, 5 * self.config.slow_tick_s)
        last_seen = self.store.last_seen(f.entity for f in worth[:MAX_KEPT])
        for finding in worth[:MAX_KEPT]:
            current.add(finding.id)
            old = before.get(finding.id)
            content = to_json(finding)
            history = (old or {}).get("history", [])
            if not history or history[-1]["verdict"] != finding.verdict or now - history[-1]["time_s"] >= 600:
                point: dict[str, Any] = {
                    "time_s": now,
                    "verdict": finding.verdict,
                    "severity": finding.severity,
                }
                point["slope_bytes_per_hour"] = finding.slope_bytes_per_hour
                history = [*history, point][-MAX_HISTORY:]
            # A process without new samples has ended (or its host is away): what it did stays on record.
            ended_s = last_seen.get(finding.entity, now)
            content.update(
                status="ended" if now - ended_s > silent_s else "open",
                ended_s=ended_s if now - ended_s > silent_s else None,
                first_seen_s=(old or {}).get("first_seen_s", now),
                last_seen_s=now,
                cleared_s=None,
                history=history,
            )
            documents.append((finding.id, now, content))
        # Another metric of the same process may tell the same growth better once it has more samples (USS
        # after anonymous memory): the finding goes on under that id, it has not cleared.
        heirs = {(f.entity.key, f.verdict): f.id for f in reversed(worth[:MAX_KEPT]) if f.metric in FAMILY}
        for identifier, old in before.items():
            if identifier in current or old["status"] not in {"open", "ended"}:
                continue
            heir = heirs.get((old["entity"]["key"], old["verdict"])) if old["metric"] in FAMILY else None
            if heir:
                documents.append((identifier, now, {**old, "status": "superseded", "superseded_by": heir}))
            else:
                documents.append((identifier, now, {**old, "status": "cleared", "cleared_s": now}))
        self.store.records.put_many("finding", documents)


class DetectionLoop:
    """Background thread: detection, retention, and what the configuration lets happen by itself."""

    def __init__(self, findings: Findings, config: Config) -> None:
        self.findings = findings
        self.config = config
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resin-detect", daemon=True)
        self._diagnosing = ThreadPoolExecutor(1, thread_name_prefix="resin-diagnose")
        self._leaking: dict[str, int] = {}  # finding id -> detections in a row that called it a leak
        self._acted: dict[str, float] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the scan in progress."""
        self._stop.set()
        self._diagnosing.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        pause = min(5.0, self.config.detect_every_s)
        retention_due = time.monotonic() + 60.0
        while not self._stop.wait(pause):
            started = time.monotonic()
            try:
                self._react(self.findings.detect())
                if time.monotonic() > retention_due:
                    self.findings.store.forget_before(time.time() - self.config.retention_s)
                    retention_due = time.monotonic() + min(3600.0, self.config.retention_s / 4)
            except (
                Exception
            ) as error:  # one failed pass must not end detection; /metrics and the page show it
                self.findings.last_error = f"{type(error).__name__}: {error}"
            # A large fleet's scan takes a while: never use more than a fifth of the time for it.
            pause = max(self.config.detect_every_s, 4 * (time.monotonic() - started))

    def _react(self, open_findings: list[dict[str, Any]]) -> None:
        leaking = {f["id"] for f in open_findings if f["verdict"] in {"leak", "retention"}}
        self._leaking = {i: self._leaking.get(i, 0) + 1 for i in leaking}
        for finding in open_findings:
            local = finding["entity"]["host"] == self.findings.host and finding["entity"]["pid"] is not None
            if finding["verdict"] not in {"leak", "retention"} or not local:
                continue
            identifier = finding["id"]
            try:
                # Confirmed once: the first judgement on a young process may be of its warm-up.
                if self.config.auto_diagnose and self._leaking[identifier] == 2:
                    self._diagnosing.submit(self._diagnose, identifier)
                due = time.monotonic() - self._acted.get(identifier, -1e9) >= self.config.mitigate_cooldown_s
                if self.config.mitigations and due:
                    self._acted[identifier] = time.monotonic()
                    self.findings.mitigate(identifier, apply=True)
            except (ValueError, OSError, KeyError) as error:
                self.findings.last_error = f"{identifier}: {error}"

    def _diagnose(self, identifier: str) -> None:
        """One diagnosis at a time, beside detection: it takes seconds in which others may clear."""
        try:
            self.findings.diagnose(identifier)
        except Exception as error:  # a process that ends while it is looked at is not the service's end
            self.findings.last_error = f"diagnosis of {identifier}: {type(error).__name__}: {error}"
