"""The lightest mitigation: telling somebody, through a webhook or Alertmanager."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass

from .base import Context, Outcome


@dataclass(frozen=True)
class Notify:
    """Tell a webhook and Alertmanager."""

    name: str = "notify"
    weight: int = 0

    def why_not(self, context: Context) -> str | None:
        if not context.config.webhook_url and not context.config.alertmanager_url:
            return "neither webhook_url nor alertmanager_url is configured"
        return None

    def command(self, context: Context) -> tuple[str, ...]:
        targets = [u for u in (context.config.webhook_url, _alerts_url(context)) if u]
        return ("POST", *targets)

    def apply(self, context: Context) -> Outcome:
        failures = []
        if context.config.webhook_url:
            failures += _post(context.config.webhook_url, _message(context))
        if context.config.alertmanager_url:
            failures += _post(_alerts_url(context), [_alert(context)])
        return Outcome(True, not failures, "; ".join(failures) or "delivered")


def _alerts_url(context: Context) -> str:
    base = context.config.alertmanager_url.rstrip("/")
    return base if not base or base.endswith("/api/v2/alerts") else f"{base}/api/v2/alerts"


def _message(context: Context) -> dict[str, object]:
    message: dict[str, object] = {"source": "resin", "finding": asdict(context.finding)}
    if context.diagnosis is not None:
        message["diagnosis"] = asdict(context.diagnosis)
    return message


def _alert(context: Context) -> dict[str, object]:
    f = context.finding
    summary = f"{f.entity.key}: {f.verdict} of {f.metric}"
    place = ""
    if context.diagnosis is not None and context.diagnosis.suspects:
        first = context.diagnosis.suspects[0]
        place = f" at {first.file}:{first.line}"
    starts = time.strftime(
        "%Y-%m-%dT%H:%M:%SZ", time.gmtime(f.start_s if f.start_s is not None else context.now_s)
    )
    return {
        "labels": {
            "alertname": "ResinMemoryLeak" if f.verdict == "leak" else "ResinMemoryRetention",
            "severity": "critical" if f.severity >= 0.7 else "warning",
            "host": f.entity.host,
            "component": f.entity.component,
            "finding": f.id,
        },
        "annotations": {"summary": summary + place, "description": "; ".join(f.why)},
        "startsAt": starts,
    }


def _post(url: str, content: object) -> list[str]:
    if not url.startswith(("http://", "https://")):
        return [f"{url}: only http and https are spoken"]
    body = json.dumps(content, default=str).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return [] if answer.status < 300 else [f"{url}: HTTP {answer.status}"]
    except urllib.error.HTTPError as error:
        return [f"{url}: HTTP {error.code}"]
    except (OSError, ValueError) as error:
        return [f"{url}: {error}"]
