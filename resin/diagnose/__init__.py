"""Diagnosis of a running process: `diagnose(pid)` names what grows and, where it can, file and line."""

from __future__ import annotations

from .ladder import diagnose
from .target import Gone

__all__ = ["Gone", "diagnose"]
