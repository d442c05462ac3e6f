"""Findings, diagnoses and actions as JSON beside the samples, the newest under each id."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model import Action, Diagnosis, Entity, Finding, Suspect

if TYPE_CHECKING:
    import duckdb


class Records:
    """Small table of JSON documents by (kind, id)."""

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection], lock: threading.RLock) -> None:
        self._cursor = cursor
        self._lock = lock

    def put(self, kind: str, identifier: str, time_s: float, content: Mapping[str, Any]) -> None:
        """Write one document, replacing the one of the same kind and id."""
        self.put_many(kind, [(identifier, time_s, content)])

    def put_many(self, kind: str, documents: Sequence[tuple[str, float, Mapping[str, Any]]]) -> None:
        """Write documents with distinct ids in one transaction."""
        if not documents:
            return
        with self._lock:
            cursor = self._cursor()
            cursor.execute("BEGIN")
            columns = {  # noqa: F841  (DuckDB finds it by name)
                "kind": np.array([kind] * len(documents), dtype=object),
                "id": np.array([d[0] for d in documents], dtype=object),
                "time_ms": np.array([round(d[1] * 1000) for d in documents], dtype=np.int64),
                "content": np.array([json.dumps(d[2]) for d in documents], dtype=object),
            }
            try:
                cursor.execute(
                    "DELETE FROM records WHERE kind = ? AND id IN (SELECT id FROM columns)", [kind]
                )
                cursor.execute("INSERT INTO records SELECT * FROM columns")
                cursor.execute("COMMIT")
            except Exception:
                cursor.execute("ROLLBACK")
                raise

    def get(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """One document or None."""
        row = (
            self._cursor()
            .execute("SELECT content FROM records WHERE kind = ? AND id = ?", [kind, identifier])
            .fetchone()
        )
        return json.loads(row[0]) if row else None

    def all(self, kind: str) -> list[dict[str, Any]]:
        """All documents of a kind, newest first."""
        rows = (
            self._cursor()
            .execute("SELECT content FROM records WHERE kind = ? ORDER BY time_ms DESC, id", [kind])
            .fetchall()
        )
        return [json.loads(row[0]) for row in rows]


def to_json(value: Finding | Diagnosis | Action | Entity) -> dict[str, Any]:
    """Plain JSON content of one of resin's words; a finding's entity carries its `key` as well."""
    content = dataclasses.asdict(value)
    if isinstance(value, Finding):
        content["entity"]["key"] = value.entity.key
        content["evidence"] = {k: float(v) for k, v in value.evidence.items()}
    if isinstance(value, Entity):
        content["key"] = value.key
    return content


def finding_from_json(content: Mapping[str, Any]) -> Finding:
    """Finding from what `to_json` made of it; fields that are not the finding's are ignored."""
    names = {f.name for f in dataclasses.fields(Finding)}
    fields = {k: v for k, v in content.items() if k in names}
    entity = {k: v for k, v in content["entity"].items() if k != "key"}
    return Finding(**{**fields, "entity": Entity(**entity), "why": tuple(content.get("why", ()))})


def diagnosis_from_json(content: Mapping[str, Any]) -> Diagnosis:
    """Diagnosis from what `to_json` made of it."""
    names = {f.name for f in dataclasses.fields(Diagnosis)}
    fields = {k: v for k, v in content.items() if k in names}
    suspects = tuple(Suspect(**s) for s in content["suspects"])
    return Diagnosis(
        **{
            **fields,
            "suspects": suspects,
            "probes": tuple(content["probes"]),
            "notes": tuple(content.get("notes", ())),
        }
    )
