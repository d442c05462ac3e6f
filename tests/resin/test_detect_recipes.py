"""The recipes of docs/resin.md, run as they stand."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resin.mitigate
from resin.config import make_config
from resin.detect import detectors, registry, scan
from resin.mitigate import apply, mitigations, plan
from resin.model import Entity, Finding, Series

DOCS = Path(__file__).resolve().parents[2] / "docs" / "resin.md"


def recipe(name: str) -> dict:
    """Names that the recipe's code block defines."""
    match = re.search(
        rf"<!-- recipe: {name} -->\n```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S
    )
    assert match, f"docs/resin.md has no recipe {name!r}"
    names: dict = {"__name__": "my_package"}
    sys.modules.setdefault("my_package", type(sys)("my_package"))
    exec(compile(match.group(1), str(DOCS), "exec", dont_inherit=True), names)
    return names


def point(name: str, made: type):
    class Point:
        value = f"my_package:{made.__name__}"

        @staticmethod
        def load():
            return made

    Point.name = name
    return Point()


class Queue:
    """A store that holds one growing and one quiet queue."""

    def metrics(self):
        return ("queue_length",)

    def series(self, metric, *, since=None, component=None):
        t = tuple(float(k) for k in range(0, 6000, 10))
        for host, slope in (("a", 1.0), ("b", 0.0)):
            values = 50 + slope * np.arange(len(t))
            yield Series(Entity(host, "api"), metric, t, tuple(values.tolist()))

    def pivot(self, metric="anon_bytes", **_):
        raise AssertionError("no memory metric is held")


def test_add_a_detector(monkeypatch):
    made = recipe("detector")["QueueDetector"]
    monkeypatch.setattr(registry, "entry_points", lambda group: [point("queue", made)])
    assert [d.name for d in detectors()] == ["floor", "counter", "queue"]
    [found] = scan(Queue(), now_s=6000.0)
    assert (found.entity.host, found.metric, found.verdict) == ("a", "queue_length", "leak")


def test_add_a_mitigation(monkeypatch, tmp_path):
    made = recipe("mitigation")["DropCaches"]
    monkeypatch.setattr(resin.mitigate, "entry_points", lambda group: [point("drop-caches", made)])
    names = list(mitigations())
    assert names.index("trim") < names.index("drop-caches") < names.index("drain-restart")
    text = (
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    entity = Entity("h", "server.py", process.pid)
    finding = Finding("f", entity, "anon_bytes", "leak", "steady", 0.0, 1.0, 1e6, 0.9, 0.9)
    config = make_config({"state_dir": str(tmp_path), "mitigations": ("drop-caches",)})
    action = next(a for a in plan(finding, None, config) if a.name == "drop-caches")
    assert action.command == ("kill", "-USR2", str(process.pid))
    done = apply(action, finding, None, config)
    assert (done.applied, done.ok) == (True, True)
    assert process.wait(timeout=10) == 7
    process.stdout.close()
    assert signal.SIGUSR2


def test_the_table_of_mitigations_is_complete():
    text = DOCS.read_text(encoding="utf-8")
    for name in mitigations():
        assert f"| {name} |" in text


@pytest.mark.parametrize("name", ["detector", "mitigation"])
def test_recipes_name_their_entry_point_group(name):
    assert f'[project.entry-points."resin.{name}s"]' in DOCS.read_text(encoding="utf-8")
