"""What a mitigation is, and what it may look at."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..config import Config
from ..model import Diagnosis, Finding

_SERVER = re.compile(
    r"serv|api|gunicorn|uvicorn|hypercorn|torchserve|vllm|triton|celery|rq|dramatiq|web|proxy|gateway|infer",
    re.I,
)
_TRAINER = re.compile(r"train|finetun|fine_tun|pretrain|fit\.|deepspeed|accelerate|lightning", re.I)


@dataclass(frozen=True)
class Context:
    """A finding with all that is known of it. Mitigations read; only `Mitigation.apply` acts."""

    finding: Finding
    diagnosis: Diagnosis | None
    config: Config
    now_s: float

    @property
    def role(self) -> str:
        """worker, server or trainer. What is not clearly a server counts as a trainer: it is the careful choice."""
        component = self.finding.entity.component
        if "data-worker" in component or component.endswith(("/worker", ":worker")):
            return "worker"
        if _TRAINER.search(component):
            return "trainer"
        return "server" if _SERVER.search(component) else "trainer"

    @property
    def is_retention(self) -> bool:
        """Memory that the allocator keeps although the program has freed it."""
        return self.finding.verdict == "retention" or (
            self.diagnosis is not None and self.diagnosis.kind == "fragmentation"
        )


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `applied` is False when it was refused before anything was done."""

    applied: bool
    ok: bool
    reason: str


@runtime_checkable
class Mitigation(Protocol):
    """One way to deal with a leak. `weight` orders from light (0) to heavy (100)."""

    name: str
    weight: int

    def why_not(self, context: Context) -> str | None:
        """The precondition that does not hold, as a sentence; None when the action may be taken."""
        ...

    def command(self, context: Context) -> tuple[str, ...]:
        """What would be done, as a command line or as words for actions that are none."""
        ...

    def apply(self, context: Context) -> Outcome:
        """Do it. Preconditions were checked just before."""
        ...


def fill(template: str, context: Context) -> tuple[str, ...]:
    """Words of a configured command with {pid}, {host}, {component}, {group} and {finding} filled in.

    The template is split before it is filled: a name with spaces stays one word, and no shell is involved.
    Raises ValueError for a placeholder that does not exist or a quote that does not close.
    """
    entity = context.finding.entity
    values: Mapping[str, object] = {
        "pid": entity.pid if entity.pid is not None else "",
        "host": entity.host,
        "component": entity.component,
        "group": entity.group or "",
        "finding": context.finding.id,
    }
    words = []
    for word in shlex.split(template):
        try:
            words.append(word.format_map(values))
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join("{" + name + "}" for name in values)
            raise ValueError(
                f"command {template!r}: {word!r} is not understood ({error}); placeholders: {known}"
            ) from error
    return tuple(words)


def execute(words: tuple[str, ...], *, timeout_s: float = 120.0) -> Outcome:
    """Run a command without a shell and report its end."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        return Outcome(True, False, f"{words[0]}: no such program")
    except OSError as error:
        return Outcome(True, False, f"{words[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Outcome(True, False, f"{shlex.join(words)}: not finished after {timeout_s:.0f} s")
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        return Outcome(True, False, f"exit code {done.returncode}" + (f": {said}" if said else ""))
    return Outcome(True, True, "done")
