"""The disk cache of chosen and compiled kernels: a second process neither searches nor compiles.

One file per (tensor expression, device, options, versions): a JSON header with the Triton source and what was
measured, then the machine code (CPU targets). Files are written beside and renamed, so two processes cannot
damage each other's; a damaged or foreign file fails its checksum and counts as absent. Nothing here raises:
without a usable directory there is no cache.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .emit.common import Pack, TritonSource

_MAGIC = b"torchroller kernel 1\n"


@dataclass(frozen=True)
class Entry:
    """A kernel as kept: its source, the machine code if any, what launching needs to know, measured times."""

    source: TritonSource
    code: bytes
    metadata: dict[str, Any]
    chosen: int = 0
    measured_s: tuple[float, ...] | None = None


def key_of(*parts: object) -> str:
    """Name of an entry: a digest of everything that the kernel depends on."""
    digest = hashlib.sha256()
    for part in (*parts, _code_digest()):
        digest.update(repr(part).encode())  # not str: a TensorExpr prints without its strides
        digest.update(b"\0")
    return digest.hexdigest()


def read(directory: Path, key: str) -> Entry | None:
    try:
        data = (directory / f"{key}.kernel").read_bytes()
        if not data.startswith(_MAGIC):
            return None
        checksum, data = data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if hashlib.sha256(data).digest() != checksum:
            return None
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        source = header["source"]
        packs = tuple(Pack(**_tuples(p)) for p in source.pop("packs"))
        built = TritonSource(**_tuples(source), packs=packs)
        measured = tuple(header["measured_s"]) if header["measured_s"] is not None else None
        return Entry(built, data[8 + length :], header["metadata"], header["chosen"], measured)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(directory: Path, key: str, entry: Entry) -> None:
    header = {"source": dataclasses.asdict(entry.source), "metadata": entry.metadata, "chosen": entry.chosen,
              "measured_s": entry.measured_s}  # fmt: skip
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + entry.code
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(data).digest() + data)
        os.replace(temporary, directory / f"{key}.kernel")
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _tuples(fields: dict[str, Any]) -> Any:
    """JSON has lists where the dataclasses have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


@functools.lru_cache
def _code_digest() -> str:
    """Digest of this package's own source: another version's kernels are other kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode())
        try:
            digest.update(path.read_bytes())
        except OSError:
            digest.update(b"?")
    return digest.hexdigest()
