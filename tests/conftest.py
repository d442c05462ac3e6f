"""Kernel caches of this checkout's own, for the tests and the processes that they start.

A kernel in the user's caches may come from another checkout, and then names that one's files in its locations; a
measurement of the machine kept there changes which tiles are chosen. Neither may decide a test.
"""

from __future__ import annotations

import os
from pathlib import Path

_CACHES = Path(__file__).parents[1] / "out" / "test-caches"
os.environ.setdefault("TRITON_CACHE_DIR", str(_CACHES / "triton"))
os.environ.setdefault("TORCHROLLER_CACHE_DIR", str(_CACHES / "torchroller"))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHES / "inductor"))
