"""What the kernel tests share: kernels made from text, Triton's interpreter as second executor, comparisons."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

_numbers = itertools.count()
HEADER = "import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n"


def cpu_is_active() -> bool:
    """Whether kernels launched here reach the backend under test."""
    try:
        return triton.runtime.driver.active.get_current_target().backend == "cpu"
    except (RuntimeError, AttributeError):
        return False


needs_backend = pytest.mark.skipif(
    not cpu_is_active(), reason="torchroller is not installed, or a GPU driver is active"
)


def module_of(folder: Path, source: str) -> ModuleType:
    """Import a module from source text: Triton reads a kernel's source from its file."""
    name = f"made_kernels_{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(HEADER + textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Interpreter:
    """Triton's interpreter in a process of its own: TRITON_INTERPRET turns all of a process's kernels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("interpret_kernel.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    def run(self, path: str, arguments: list[Any], constants: dict[str, int]) -> list[Any]:
        """What the arguments are after `kernel` of the module at `path` has run as one program."""
        given, result = self.folder / "given.pt", self.folder / "result.pt"
        torch.save(arguments, given)
        job = {"path": path, "arguments": str(given), "constants": constants, "result": str(result)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        answer = self.process.stdout.readline().strip()
        if answer != "done":
            pytest.fail(f"the interpreter did not run the kernel: {answer}\n{Path(path).read_text()}")
        return torch.load(result)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def sweep(values: Sequence[Any], quick: Sequence[Any], unpack: bool = False) -> list[Any]:
    """Parameters of a test, all but the `quick` ones marked slow; `unpack` where a value is several parameters."""
    assert all(v in values for v in quick)
    given = [v if unpack else (v,) for v in values]
    return [pytest.param(*v, marks=() if w in quick else pytest.mark.slow) for v, w in zip(given, values)]


def ramp(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Reproducible numbers: normal for floats, small ones of both signs for integers, coin flips for bool."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    low = 0 if dtype is torch.uint8 else -50
    return torch.randint(low, 50, shape, generator=generator).to(dtype)


def ulp_distance(got: torch.Tensor, want: torch.Tensor) -> int:
    """The largest number of representable values between two float tensors; equal NaNs count as equal."""
    same = (got == want) | (got.isnan() & want.isnan())
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]

    def order(t: torch.Tensor) -> torch.Tensor:
        bits = t.view(width).to(torch.float64 if width is torch.int64 else torch.int64)
        least = -(2 ** (8 * got.element_size() - 1))
        return torch.where(bits < 0, least - bits, bits)

    distance = (order(got) - order(want)).abs()
    distance[same] = 0
    return int(distance.max()) if distance.numel() else 0


def assert_equal(got: torch.Tensor, want: torch.Tensor, what: str = "") -> None:
    """Bit for bit, except that any NaN equals any NaN; names the first differing element."""
    assert got.shape == want.shape and got.dtype == want.dtype, f"{what}: {got.dtype} {got.shape}"
    wrong = got != want
    if got.dtype.is_floating_point:
        wrong &= ~(got.isnan() & want.isnan())
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        pytest.fail(f"{what}: {int(wrong.sum())} differ, first at {at}: {got[at]} instead of {want[at]}")


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 0.5, -2.5, 1e-8, 65504.0, 3.4e38, 1e-40, 6e-8]


def flushed(t: torch.Tensor) -> torch.Tensor:
    """Subnormal bfloat16 numbers count as zero: AVX512-BF16 conversions take them for that."""
    return torch.where(t.abs() < torch.finfo(t.dtype).tiny, 0, t) if t.dtype is torch.bfloat16 else t


def floats(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    t = ramp(count, dtype=torch.float64, seed=seed) * 4
    special = len(SPECIAL)
    for k in range(min(count, special**2)):
        t[k] = SPECIAL[k % special if seed else k // special]
    return t.to(dtype)


def many(folder: Path, expressions: list[str], out: str = "o", inputs: str = "ab") -> Any:
    """One kernel that stores each expression of its inputs to a row of the output."""
    lines = [f"    tl.store(o + {k} * N + i, {e})" for k, e in enumerate(expressions)]
    loads = [f"    {n} = tl.load(p{n} + i)" for n in inputs]
    arguments = "".join(f"p{n}, " for n in inputs)
    text = [
        f"@triton.jit\ndef kernel({arguments}o, N: tl.constexpr):",
        "    i = tl.arange(0, N)",
        *loads,
        *lines,
    ]
    return module_of(folder, "\n".join(text)).kernel
