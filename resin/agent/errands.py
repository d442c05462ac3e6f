"""What the service asks of an agent: diagnose a process of this host. Only with allow_remote_diagnosis."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..config import Config

TIMEOUT_S = 180.0

# Runs in a process of its own: diagnosis needs libraries that the agent's budget has no room for, and whatever
# befalls it leaves the agent alone.
_PROGRAM = """
import json, sys, urllib.request
from resin.agent.identity import is_running
from resin.client import Client
from resin.config import load_config, make_config
from resin.store.records import finding_from_json, to_json
task = json.load(sys.stdin)
config = make_config(task["config"], base=load_config())
finding = finding_from_json(task["finding"])
if is_running(finding.entity, state_dir=config.state_dir):
    from resin.diagnose import diagnose
    Client(config).post("/api/v1/diagnoses", to_json(diagnose(finding.entity.pid, finding=finding)))
"""


class Errands:
    """Takes the service's answers and runs one diagnosis at a time in the background."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._busy = threading.Lock()

    def take(self, answer: Mapping[str, Any]) -> None:
        """Start on the first finding of `answer["diagnose"]` unless a diagnosis is under way."""
        asked = answer.get("diagnose")
        if isinstance(asked, list) and asked and self._busy.acquire(blocking=False):
            threading.Thread(target=self._diagnose, args=(asked[0],), daemon=True).start()

    def _diagnose(self, finding: object) -> None:
        import json

        try:
            task = {
                "finding": finding,
                "config": {
                    "service_url": self.config.service_url,
                    "token": self.config.token,
                    "ca_file": self.config.ca_file,
                    "state_dir": self.config.state_dir,
                },
            }
            subprocess.run(
                [sys.executable, "-c", _PROGRAM],
                input=json.dumps(task).encode(),
                timeout=TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            print(f"resin agent: the diagnosis that the service asked for failed: {error}", file=sys.stderr)
        finally:
            self._busy.release()
