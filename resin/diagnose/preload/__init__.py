"""Started with the target by `resin watch`: waits for requests and costs nothing until one comes.

`environment` gives the variables that make a Python child carry the helper; `ask` sends it a request and waits
for the answer. The helper is `path/resin_inprocess.py`, loaded by the `sitecustomize.py` beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..target import is_alive

HERE = Path(__file__).resolve().parent / "path"
_MOST_ANSWER = 4 * 1048576
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
    The directory belongs to the target, which may be another user's: no link in it is followed.
    """
    try:
        directory = os.open(control_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        return {"error": f"control directory {control_dir}: {error.strerror}"}
    try:
        return _ask(directory, pid, request, timeout_s)
    except OSError as error:
        return {"error": f"control directory {control_dir}: {error.strerror}"}
    finally:
        os.close(directory)


def _ask(directory: int, pid: int, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any] | None:
    draft, sent, answer = f"{pid}.request.part", f"{pid}.request", f"{pid}.answer"
    for name in (answer, draft):
        _unlink(name, directory)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=directory)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(request), file)
    os.rename(draft, sent, src_dir_fd=directory, dst_dir_fd=directory)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            descriptor = os.open(answer, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except FileNotFoundError:
            if not is_alive(pid):
                return None
            time.sleep(0.05)
            continue
        with os.fdopen(descriptor, encoding="utf-8") as file:
            try:
                found = json.loads(file.read(_MOST_ANSWER))
            except ValueError as error:
                return {"error": f"unreadable answer: {error}"}
        _unlink(answer, directory)
        return found if isinstance(found, dict) else {"error": "unreadable answer: not an object"}
    _unlink(sent, directory)
    return None


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
