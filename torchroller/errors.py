"""Exceptions of the compiler. Each message says what happened, where, and what to do next."""

from __future__ import annotations


class RollerError(Exception):
    """Base of every error that torchroller raises on purpose."""


class OptionError(RollerError, ValueError):
    """An option has an unknown name or an impossible value."""


class NotLowered(RollerError):
    """An operator (or one use of it) has no tensor expression here; it becomes an extern ATen call.

    `reason` is what the report shows, so it must read well after "because".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class GroupError(RollerError):
    """Fused values could not be made into a kernel; `origins` are their FX nodes."""

    def __init__(self, reason: str, origins: frozenset[str]) -> None:
        super().__init__(reason)
        self.reason, self.origins = reason, origins


class StrictError(RollerError):
    """`options={"strict": True}` was asked for, and some node could not be lowered."""


class KernelError(RollerError):
    """A kernel could not be built or run by the chosen executor."""


class UntrackedWeight(RollerError):
    """A weight that should be packed is an inference tensor: nothing says when it changes."""
