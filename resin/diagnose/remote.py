"""Asking a running Python 3.14 or later with sys.remote_exec (PEP 768): the helper's code, one request."""

from __future__ import annotations

import json
import os
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
    if sys.version_info[:2] != target.python:
        return (
            f"resin runs under Python {sys.version_info[0]}.{sys.version_info[1]}; "
            f"sys.remote_exec needs the target's {target.python[0]}.{target.python[1]}"
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
        f"exec(compile({helper.read_text(encoding='utf-8')!r}, {str(helper)!r}, 'exec'), names)\n"
        f"threading.Thread(target=names['handle'], args=({dict(request)!r}, {str(answer)!r}), daemon=True).start()\n"
    )


def ask(pid: int, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any] | None:
    """Run one request in the target; None when its main thread did not come by in time."""
    with tempfile.TemporaryDirectory(prefix="resin-") as directory:
        os.chmod(directory, 0o700)
        answer = Path(directory) / "answer.json"
        code = Path(directory) / "request.py"
        code.write_text(script(request, answer), encoding="utf-8")
        try:
            sys.remote_exec(pid, str(code))  # type: ignore[attr-defined]
        except (OSError, RuntimeError) as error:
            return {"error": f"sys.remote_exec: {error}"}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if answer.exists():
                return json.loads(answer.read_text())
            if not is_alive(pid):
                break
            time.sleep(0.05)
    return None
