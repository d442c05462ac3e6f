"""Asking a running Python 3.14 or later with sys.remote_exec (PEP 768): the helper's code, one request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .preload import HERE
from .target import Target, is_alive


def usable(target: Target) -> str | None:
    """None when the target can be asked, else why not."""
    if target.python is None:
        return "not a Python process"
    if target.python < (3, 14):
        return f"the target runs Python {target.python[0]}.{target.python[1]}; sys.remote_exec needs 3.14"
    if sys.version_info[:2] != target.python and not _is_interpreter(target):
        return (
            f"resin runs under Python {sys.version_info[0]}.{sys.version_info[1]} and the target's interpreter "
            f"({target.executable or 'unknown'}) cannot be started from here; sys.remote_exec needs "
            f"{target.python[0]}.{target.python[1]} on both sides"
        )
    if not target.readable:
        return "no ptrace access to the target (same user, CAP_SYS_PTRACE, kernel.yama.ptrace_scope 0)"
    return None


def script(request: Mapping[str, Any], answer: Path) -> str:
    """Source text that answers one request in a thread of the target and writes `answer`."""
    helper = HERE / "resin_inprocess.py"
    return (
        "import threading\n"
        f"names = {{'__name__': 'resin_inprocess', '__file__': {str(helper)!r}}}\n"
        f"names['LEDGER_SOURCE'] = {(HERE / 'resin_ledger.py').read_text(encoding='utf-8')!r}\n"
        f"exec(compile({helper.read_text(encoding='utf-8')!r}, {str(helper)!r}, 'exec'), names)\n"
        f"threading.Thread(target=names['handle'], args=({dict(request)!r}, {str(answer)!r}), daemon=True).start()\n"
    )


def ask(target: Target, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any] | None:
    """Run one request in the target; None when its main thread did not come by in time."""
    with tempfile.TemporaryDirectory(prefix="resin-") as directory:
        answer = Path(directory) / "answer.json"
        code = Path(directory) / "request.py"
        code.write_text(script(request, answer), encoding="utf-8")
        # The target reads the request and writes the answer as its own user.
        owner = _owner(target.pid)
        if owner is not None and owner[0] != os.geteuid() and os.geteuid() == 0:
            os.chown(directory, *owner)
            os.chown(code, *owner)
        refused = _send(target, code)
        if refused is not None:
            return {"error": f"sys.remote_exec: {refused}"}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = _read(answer)
            if found is not None:
                return found
            if not is_alive(target.pid):
                break
            time.sleep(0.05)
    return None


def _owner(pid: int) -> tuple[int, int] | None:
    try:
        stat = os.stat(f"/proc/{pid}")
    except OSError:
        return None
    return stat.st_uid, stat.st_gid


def _read(answer: Path) -> dict[str, Any] | None:
    """The answer, None as long as there is none. The target may be another user's: no link is followed."""
    try:
        descriptor = os.open(answer, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"error": f"answer: {error.strerror}"}
    with os.fdopen(descriptor, encoding="utf-8") as file:
        try:
            found = json.loads(file.read(4 * 1048576))
        except ValueError as error:
            return {"error": f"unreadable answer: {error}"}
    return found if isinstance(found, dict) else {"error": "unreadable answer: not an object"}


def _is_interpreter(target: Target) -> bool:
    """Whether the program that the target runs is a Python that can be started here, outside of its container."""
    path = Path(target.executable)
    return path.name.startswith("python") and os.access(path, os.X_OK)


def _send(target: Target, code: Path) -> str | None:
    """Hand the code over, by our own interpreter or, where versions differ, by one like the target's."""
    if sys.version_info[:2] == target.python:
        try:
            sys.remote_exec(target.pid, str(code))  # type: ignore[attr-defined]
        except (OSError, RuntimeError) as error:
            return str(error)
        return None
    # Never a program of another user's choosing with our rights: it runs as the target's user.
    owner = _owner(target.pid)
    as_owner: dict[str, Any] = {}
    if owner is not None and os.geteuid() == 0 and owner[0] != 0:
        as_owner = {"user": owner[0], "group": owner[1], "extra_groups": []}
    call = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"
    try:
        done = subprocess.run(
            [target.executable, "-I", "-S", "-c", call, str(target.pid), str(code)],
            capture_output=True,
            text=True,
            timeout=20.0,
            check=False,
            **as_owner,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
