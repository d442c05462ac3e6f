"""Started with the target by `resin watch`: waits for requests and costs nothing until one comes.

`environment` gives the variables that make a Python child carry the helper; `ask` sends it a request and waits
for the answer. The helper is `inprocess.py`, loaded by the `sitecustomize.py` beside it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..target import is_alive

HERE = Path(__file__).resolve().parent / "path"
CONTROL_VARIABLE = "RESIN_PRELOAD_DIR"


def environment(control_dir: str | Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a child that shall carry the helper; `base` defaults to our own environment.

    `control_dir` must be writable by the child and private to its user: requests are read from there.
    """
    env = dict(os.environ if base is None else base)
    old = env.get("PYTHONPATH")
    env["PYTHONPATH"] = str(HERE) if not old else f"{HERE}{os.pathsep}{old}"
    env[CONTROL_VARIABLE] = str(Path(control_dir).resolve())
    return env


def control_dir_of(pid: int) -> Path | None:
    """The control directory of a running process that carries the helper, else None."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = CONTROL_VARIABLE.encode() + b"="
    for variable in variables:
        if variable.startswith(prefix):
            path = Path(os.fsdecode(variable[len(prefix) :]))
            return path if (path / f"{pid}.ready").exists() else None
    return None


def ask(
    control_dir: Path, pid: int, request: Mapping[str, Any], *, timeout_s: float
) -> dict[str, Any] | None:
    """Send one request to the helper in process `pid`; None when no answer came in time.

    Requests: {"op": "window", "seconds": s, "frames": n}, {"op": "allocator"}, {"op": "trim"}, {"op": "types"}.
    """
    answer = control_dir / f"{pid}.answer"
    answer.unlink(missing_ok=True)
    draft = control_dir / f"{pid}.request.part"
    draft.write_text(json.dumps(dict(request)))
    draft.rename(control_dir / f"{pid}.request")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer.exists():
            found = json.loads(answer.read_text())
            answer.unlink(missing_ok=True)
            return found
        if not is_alive(pid):
            return None
        time.sleep(0.05)
    (control_dir / f"{pid}.request").unlink(missing_ok=True)
    return None
