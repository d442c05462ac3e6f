"""Generated Triton source becomes a kernel: one `@triton.jit` function per distinct text.

Triton reads a kernel's source through `inspect`, so the text is registered with `linecache` under a name made
of its hash; tracebacks and debuggers show the generated lines, and nothing has to be written to disk.
"""

from __future__ import annotations

import hashlib
import linecache
import os
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

PREAMBLE = "import triton\nimport triton.language as tl\n\n\n"


def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 asks for Triton's interpreter instead of a compiler."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class Program:
    """One specialised kernel: `source` defines one jit function called `name`."""

    name: str
    source: str

    @property
    def fn(self) -> Any:
        """The triton JIT function (an interpreted one under TRITON_INTERPRET=1)."""
        return _jit(self.name, self.source, interpreting())

    def __str__(self) -> str:
        return self.source


@lru_cache(maxsize=4096)
def _jit(name: str, source: str, interpreted: bool) -> Any:
    del interpreted  # part of the key: triton.jit decides at decoration time
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<torchsparta {name} {digest}>"
    text = PREAMBLE + source
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = ModuleType(f"torchsparta.generated.{name}_{digest}")
    module.__file__ = filename
    exec(compile(text, filename, "exec"), module.__dict__)
    return module.__dict__[name]


def can_execute(device: torch.device) -> str | None:
    """None where Triton kernels run on tensors of this device, else the reason why they do not."""
    if interpreting():
        return None
    return _driver_refusal(device.type, os.environ.get("TRITON_DEFAULT_BACKEND"))


@lru_cache(maxsize=16)
def _driver_refusal(device_type: str, chosen: str | None) -> str | None:
    del chosen  # part of the key: it decides which driver is active
    try:
        from triton.backends import backends
        from triton.runtime import driver
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if device_type == "cpu" and "cpu" not in backends:
        return "no Triton backend for the CPU is installed (torchroller registers one as an entry point)"
    try:
        target = driver.active.get_current_target()
    except RuntimeError as error:
        return f"Triton has no active driver ({error})"
    wanted = {"cpu": ("cpu",), "cuda": ("cuda", "hip"), "xpu": ("xpu",)}.get(device_type, ())
    if target.backend not in wanted:
        return f"Triton's active driver is {target.backend!r}, the tensors are on {device_type!r}"
    return None


@dataclass(frozen=True)
class Launch:
    """A kernel with everything but the tensors that change from call to call.

    `__call__` goes through Triton's launcher.
    """

    program: Program
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4

    def __call__(self, grid: tuple[int, ...], *args: Any) -> Any:
        """Launch; returns Triton's compiled kernel (None from the interpreter)."""
        return self.program.fn[grid](*args, **self.constants, num_warps=self.num_warps)
