"""TTIR → one LLVM function: loops of vector code over lazily evaluated tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchroller.triton_cpu import ttir
from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import (  # noqa: F401  (fill the table)
    control,
    dot,
    lookup,
    memory,
    output,
    reduce,
    structure,
)  # fmt: skip
from torchroller.triton_cpu.lowering.function import Lowering, LowerOptions, count_uses, parameters
from torchroller.triton_cpu.lowering.live import row_masks


@dataclass(frozen=True)
class LoweredModule:
    """LLVM IR of `@program`, the LLVM types of the kernel's arguments, the scratch memory of one thread, and whether
    a failed tl.device_assert may have left its message in `output.ASSERTION`."""

    name: str
    ir: str
    params: tuple[str, ...]
    scratch_bytes: int
    asserts: bool = False


def lower(text: str, options: LowerOptions) -> LoweredModule:
    """Lower a printed TTIR module. Raises UnsupportedOperation with the user's line for what is not lowered."""
    functions = ttir.read(text)
    kernels = [f for f in functions if f.public]
    if len(kernels) != 1 or len(functions) != 1:
        names = ", ".join(f.name for f in functions if not f.public)
        call = next(iter(_calls(kernels[0].body)), None) if kernels else None
        where = call.location if call is not None else None
        detail = f"{names} could not be inlined: it returns early, and is called inside a loop or branch"
        raise UnsupportedOperation("tt.call", where or None, detail)
    fn = kernels[0]
    low = Lowering(options)
    low.use_counts = count_uses(fn.body)
    low.row_masks = row_masks(fn.body)
    params = parameters(fn)
    for value, (_, name) in zip(fn.args, params):
        low.set_scalar(value, name)
    low.arguments = frozenset(fn.args)
    control.basic_blocks(low, fn.body.blocks)
    types, asserts = tuple(t for t, _ in params), output.ASSERTION in low.code.declarations
    return LoweredModule(fn.name, _module(low, params), types, low.code.scratch_bytes, asserts)


def _calls(region: ttir.Region) -> Iterator[ttir.Op]:
    for block in region.blocks:
        for op in block.ops:
            if op.name == "tt.call":
                yield op
            for inner in op.regions:
                yield from _calls(inner)


def _module(low: Lowering, params: list[tuple[str, str]]) -> str:
    code = low.code
    arguments = ", ".join(f"{t} {n}" for t, n in params)
    ids = ", ".join(f"i32 %{w}_{a}" for w in ("pid", "grid") for a in "xyz")
    header = (
        f"define internal void @program({arguments}{', ' if arguments else ''}{ids}, ptr noalias %scratch) {{"
    )
    body = [header, "entry:", *code.entry, *code.scopes[0].lines, "}"]
    return "\n".join([*code.declarations.values(), *body, *code.loop_metadata]) + "\n"


__all__ = ["LowerOptions", "LoweredModule", "lower"]
