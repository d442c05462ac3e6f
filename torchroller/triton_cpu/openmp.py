"""The OpenMP runtime that torch has loaded: the pool of threads that kernels share with it.

A second OpenMP runtime in the process would give a second pool on the same cores: none is ever loaded here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

# GNU's runtime, and the ones that answer to its entry points (LLVM's, Intel's).
_RUNTIMES = ("libgomp", "libomp", "libiomp5")

_found: tuple[int, ctypes.CDLL] | None = None
_forked = False


def _after_fork() -> None:
    """The threads of the parent's pool do not exist in a forked child, and waiting for them would never end."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def gomp_parallel() -> int:
    """Address of GOMP_parallel in the runtime that this process has loaded; 0 while there is none, and in a child
    of fork().

    A kernel launched with 0 runs on the calling thread alone.
    """
    global _found
    if _forked:
        return 0
    if _found is None:
        for path in _rank(_mapped_runtimes()):
            try:
                library = ctypes.CDLL(path)  # already mapped: this only takes another reference
                address = ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
            if address:
                _found = (address, library)
                break
    return _found[0] if _found else 0


def thread_count() -> int:
    """Threads to launch on: torch.get_num_threads() where torch is loaded, else one."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else 1


def _mapped_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes mapped into this process, in order of address."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths: dict[str, None] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).name.startswith(_RUNTIMES):
            paths[fields[5]] = None
    return list(paths)


def _rank(paths: Iterable[str]) -> list[str]:
    """torch's own copy first: other wheels (scikit-learn, for one) bring theirs."""
    torch = sys.modules.get("torch")
    file = getattr(torch, "__file__", None)
    home = Path(file).parent if file else None

    def foreign(path: str) -> bool:
        return home is None or not (home in Path(path).parents or f"{home}.libs" == str(Path(path).parent))

    return sorted(paths, key=foreign)
