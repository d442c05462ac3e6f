"""TTIR → one LLVM function: loops of vector code over lazily evaluated tiles."""

from __future__ import annotations

from dataclasses import dataclass

from torchroller.triton_cpu import ttir
from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import control, dot, memory, reduce, structure  # noqa: F401  (fill the table)
from torchroller.triton_cpu.lowering.function import Lowering, LowerOptions, count_uses, parameters


@dataclass(frozen=True)
class LoweredModule:
    """LLVM IR of `@program`, the LLVM types of the kernel's arguments, and the scratch memory of one thread."""

    name: str
    ir: str
    params: tuple[str, ...]
    scratch_bytes: int


def lower(text: str, options: LowerOptions) -> LoweredModule:
    """Lower a printed TTIR module. Raises UnsupportedOperation with the user's line for what is not lowered."""
    functions = ttir.read(text)
    kernels = [f for f in functions if f.public]
    if len(kernels) != 1 or len(functions) != 1:
        names = ", ".join(f.name for f in functions if not f.public)
        raise UnsupportedOperation("tt.call", None, f"functions marked noinline are not lowered: {names}")
    fn = kernels[0]
    low = Lowering(options)
    low.use_counts = count_uses(fn.body)
    params = parameters(fn)
    for value, (_, name) in zip(fn.args, params):
        low.set_scalar(value, name)
    control.basic_blocks(low, fn.body.blocks)
    return LoweredModule(fn.name, _module(low, params), tuple(t for t, _ in params), low.code.scratch_bytes)


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
