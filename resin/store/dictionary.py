"""Numbers for entities and metrics, so that a sample row is four numbers and no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import Entity

# Absent numbers in the entity table; an agent never sends negative ones.
NO_PID = -1
NO_START = -1.0


class EntityDictionary:
    """Entity ⇄ id, mirrored in the table `entities`. Bounded in all and per host.

    `place` numbers a (host, component) pair: the key that the pivot counts by.
    """

    def __init__(self, max_entities: int, max_per_host: int) -> None:
        self.max_entities = max_entities
        self.max_per_host = max_per_host
        self.ids: dict[Entity, int] = {}
        self.by_id: dict[int, Entity] = {}
        self.places: dict[tuple[str, str], int] = {}
        self.per_host: Counter[str] = Counter()
        self.new: list[Entity] = []
        self._next = 0
        self._next_place = 0

    def load(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Fill from rows (id, host, component, pid, start_time_s, grp, place)."""
        for number, host, component, pid, start_s, group, place in rows:
            entity = Entity(
                host,
                component,
                None if pid == NO_PID else pid,
                None if start_s == NO_START else start_s,
                group or None,
            )
            self._add(entity, number, place)

    def id_of(self, entity: Entity) -> int | None:
        """Number of `entity`, given out when it is new; None when that would pass a bound."""
        known = self.ids.get(entity)
        if known is not None:
            return known
        if len(self.ids) >= self.max_entities or self.per_host[entity.host] >= self.max_per_host:
            return None
        place = self.places.get((entity.host, entity.component), self._next_place)
        number = self._next
        self._add(entity, number, place)
        self.new.append(entity)
        return number

    def forget(self, entities: Iterable[Entity]) -> None:
        """Take back numbers (of a transaction that failed, or of entities without samples)."""
        for entity in entities:
            number = self.ids.pop(entity, None)
            if number is not None:
                del self.by_id[number]
                self.per_host[entity.host] -= 1

    def columns(self, entities: list[Entity]) -> dict[str, NDArray[Any]]:
        """Columns of the table `entities` for these."""
        return {
            "id": np.array([self.ids[e] for e in entities], dtype=np.uint32),
            "host": np.array([e.host for e in entities], dtype=object),
            "component": np.array([e.component for e in entities], dtype=object),
            "pid": np.array([NO_PID if e.pid is None else e.pid for e in entities], dtype=np.int32),
            "start_time_s": np.array(
                [NO_START if e.start_time_s is None else e.start_time_s for e in entities], dtype=np.float64
            ),
            "grp": np.array([e.group or "" for e in entities], dtype=object),
            "place": np.array([self.places[e.host, e.component] for e in entities], dtype=np.uint32),
        }

    def matching(self, *, component: str | None, entity: str | None, host: str | None) -> list[Entity]:
        """Entities that pass the filters, in order of their key."""
        found = [
            e
            for e in self.ids
            if (component is None or e.component == component)
            and (host is None or e.host == host)
            and (entity is None or e.key == entity)
        ]
        return sorted(found, key=lambda e: e.key)

    def _add(self, entity: Entity, number: int, place: int) -> None:
        self.ids[entity] = number
        self.by_id[number] = entity
        self.places[entity.host, entity.component] = place
        self.per_host[entity.host] += 1
        self._next = max(self._next, number + 1)
        self._next_place = max(self._next_place, place + 1)


class MetricDictionary:
    """Metric name ⇄ id, mirrored in the table `metrics`. At most 512 names."""

    MAX = 512

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.new: list[str] = []

    def id_of(self, name: str) -> int | None:
        """Number of `name`, given out when it is new; None when there are too many."""
        known = self.ids.get(name)
        if known is None:
            if len(self.ids) >= self.MAX:
                return None
            known = self.ids[name] = max(self.ids.values(), default=-1) + 1
            self.new.append(name)
        return known
