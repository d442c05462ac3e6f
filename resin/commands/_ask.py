"""Asking the service, or its store when no service runs: shared by `findings` and `explain`."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..client import Client, ServiceError, Unreachable
from ..config import Config


def ask(config: Config, path: str) -> Any:
    """Answer to GET `path`, or None after telling on stderr why there is none."""
    try:
        return Client(config).get(path)
    except ServiceError as error:
        print(f"resin: {error}", file=sys.stderr)
        return None
    except Unreachable as unreachable:
        if not os.path.exists(config.store_file):
            print(f"resin: {unreachable}", file=sys.stderr)
            return None
        return _from_store(config, path)


def _from_store(config: Config, path: str) -> Any:
    """The same answer from the store's file: what the service last knew."""
    from ..service.api import finding_with_series
    from ..service.findings import Findings, UnknownFinding
    from ..service.server import open_store
    from ..store.base import StoreError

    try:
        with open_store(config) as store:
            findings = Findings(store, config)
            if path == "/api/v1/findings":
                found = findings.all()
                last = max((f["last_seen_s"] for f in found), default=None)
                return {"findings": found, "elided": 0, "last_run_s": last, "last_error": None}
            return finding_with_series(findings, config, path.rsplit("/", 1)[-1])
    except UnknownFinding as error:
        print(f"resin: no finding has the id {error}", file=sys.stderr)
    except StoreError as error:
        print(f"resin: {error}", file=sys.stderr)
    return None
