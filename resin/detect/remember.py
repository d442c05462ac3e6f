"""Judgements kept while their series stays as it is: of processes that ended, hosts that are away, slow ticks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..model import Finding, Series
from .registry import Detector

MOST = (
    100_000  # series that are remembered; 150 bytes each while they change, a finding more when they do not
)


class Judgements:
    """What detectors said in the pass before, by all that they looked at. For one pass at a time.

    A living process has new samples at every pass, and to hold on to what was said of it would be waste: a finding
    is kept from the second time on that the same series is seen. What a pass did not meet is forgotten with it.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.judged = 0  # series that the last pass looked at anew
        self.reused = 0  # ... and those whose judgement stood
        self._before: dict[bytes, Finding | None] = {}
        self._now: dict[bytes, Finding | None] = {}

    @contextmanager
    def one_pass(self, detectors: Iterable[Detector]) -> Iterator[tuple[Detector, ...]]:
        """The detectors, remembering, for one pass; a pass that fails leaves what was known before it."""
        self._now, self.judged, self.reused = {}, 0, 0
        try:
            yield tuple(_Remembering(d.name, d.metrics, d, self) for d in detectors)
            self._before = self._now
        finally:
            self._now = {}

    def judge_many(self, detector: Detector, series: Sequence[Series]) -> list[Finding]:
        """What the detector says of each series, asked only for those that are not as they were."""
        keys = [digest(detector.name, one) for one in series]
        found = [self._before.get(key) for key in keys]
        anew = [i for i, finding in enumerate(found) if finding is None]
        said = detector.judge_many([series[i] for i in anew]) if anew else []
        if len(said) != len(anew):
            raise ValueError(
                f"detector {detector.name}: {len(said)} findings on {len(anew)} series; it must give one for each"
            )
        for i, finding in zip(anew, said):
            found[i] = finding
        told = [finding for finding in found if finding is not None]
        self.judged += len(anew)
        self.reused += len(series) - len(anew)
        for key, finding in zip(keys, told):
            if len(self._now) < self.most:
                self._now[key] = finding if key in self._before else None
        return told


@dataclass
class _Remembering:
    """A detector that asks `judgements` first."""

    name: str
    metrics: tuple[str, ...]
    detector: Detector
    judgements: Judgements

    def judge_many(self, series: Sequence[Series]) -> list[Finding]:
        return self.judgements.judge_many(self.detector, series)


def digest(detector: str, series: Series) -> bytes:
    """Sixteen bytes that stand for all that a judgement depends on: detector, entity, metric, limit, every sample."""
    columns = [series.times_s, series.values, *(() if series.work is None else (series.work,))]
    lengths = [len(column) for column in columns]
    head = (detector, series.entity, series.metric, series.limit_bytes, lengths)
    hashed = hashlib.blake2b(repr(head).encode(), digest_size=16)
    for column in columns:
        hashed.update(np.ascontiguousarray(column, dtype=np.float64).data)
    return hashed.digest()
