"""Reads and writes of memory as LLVM IR: scalars, runs, one place for all lanes, a place for each."""

from __future__ import annotations

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code


def read(code: Code, elem: str, kind: str, where: str, mask: str | None, other: str | None, lanes: int | None,
         volatile: bool = False) -> str:  # fmt: skip
    """Read a scalar or a vector: `kind` says what `where` is, as in `Evaluator.address`."""
    memory, align = lt.storage(elem), lt.size_bytes(elem)
    if lanes is None or kind == "same":
        scalar_mask, scalar_other = mask, other
        if lanes is not None and mask is not None:  # one address, lanes masked: read if any lane wants it
            scalar_mask = code.let(f"call i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1> {mask})")
            code.declare(f"or{lanes}", f"declare i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1>)")
            scalar_other = None
        if scalar_mask is not None:  # a masked scalar load reads a zero of our own instead
            code.declare("zero", "@zero_bytes = internal constant [16 x i8] zeroinitializer, align 16")
            where = code.let(f"select i1 {scalar_mask}, ptr {where}, ptr @zero_bytes")
        value = code.let(f"load {'volatile ' if volatile else ''}{memory}, ptr {where}, align {align}")
        if elem == "i1":
            value = code.let(f"trunc i8 {value} to i1")
        if scalar_mask is not None and scalar_other is not None:
            value = code.let(
                f"select i1 {scalar_mask}, {lt.scalar(elem)} {value}, {lt.scalar(elem)} {scalar_other}"
            )
        if lanes is None:
            return value
        value = lt.splat(code, value, elem, lanes)
        if mask is not None and other is not None:
            type = lt.typed(elem, lanes)
            value = code.let(f"select <{lanes} x i1> {mask}, {type} {value}, {type} {other}")
        return value
    type = f"<{lanes} x {memory}>"
    if kind == "run" and mask is None:
        value = code.let(f"load {type}, ptr {where}, align {align}")
        return code.let(f"trunc {type} {value} to <{lanes} x i1>") if elem == "i1" else value
    passthru = "zeroinitializer"
    if other is not None:
        passthru = code.let(f"zext <{lanes} x i1> {other} to {type}") if elem == "i1" else other
    suffix = f"v{lanes}{lt.suffix(memory)}"
    lane_mask = mask if mask is not None else lt.constant("true", "i1", lanes)
    if kind == "run":
        name, signature = f"@llvm.masked.load.{suffix}.p0", f"(ptr, i32, <{lanes} x i1>, {type})"
        pointer = f"ptr {where}"
    else:
        name, signature = (
            f"@llvm.masked.gather.{suffix}.v{lanes}p0",
            f"(<{lanes} x ptr>, i32, <{lanes} x i1>, {type})",
        )
        pointer = f"<{lanes} x ptr> {where}"
    code.declare(name, f"declare {type} {name}{signature}")
    value = code.let(
        f"call {type} {name}({pointer}, i32 {align}, <{lanes} x i1> {lane_mask}, {type} {passthru})"
    )
    return code.let(f"trunc {type} {value} to <{lanes} x i1>") if elem == "i1" else value


def write(
    code: Code, elem: str, kind: str, where: str, value: str, mask: str | None, lanes: int | None
) -> None:
    """Write a scalar or a vector; a masked scalar write branches, masked vectors use masked stores."""
    memory, align = lt.storage(elem), lt.size_bytes(elem)
    if elem == "i1":
        narrow = lt.typed("i1", lanes)
        value = code.let(f"zext {narrow} {value} to {'i8' if lanes is None else f'<{lanes} x i8>'}")
    if lanes is None:
        if mask is None:
            code.line(f"  store {memory} {value}, ptr {where}, align {align}")
            return
        yes, end = code.label("wr"), code.label("wx")
        code.line(f"  br i1 {mask}, label %{yes}, label %{end}")
        code.place(yes)
        code.line(f"  store {memory} {value}, ptr {where}, align {align}")
        code.line(f"  br label %{end}")
        code.place(end)
        return
    type = f"<{lanes} x {memory}>"
    if kind == "run" and mask is None:
        code.line(f"  store {type} {value}, ptr {where}, align {align}")
        return
    lane_mask = mask if mask is not None else lt.constant("true", "i1", lanes)
    suffix = f"v{lanes}{lt.suffix(memory)}"
    if kind == "same":
        kind, where = "each", lt.splat(code, where, "ptr", lanes)
    if kind == "run":
        name = f"@llvm.masked.store.{suffix}.p0"
        code.declare(name, f"declare void {name}({type}, ptr, i32, <{lanes} x i1>)")
        code.line(f"  call void {name}({type} {value}, ptr {where}, i32 {align}, <{lanes} x i1> {lane_mask})")
    else:
        name = f"@llvm.masked.scatter.{suffix}.v{lanes}p0"
        code.declare(name, f"declare void {name}({type}, <{lanes} x ptr>, i32, <{lanes} x i1>)")
        code.line(
            f"  call void {name}({type} {value}, <{lanes} x ptr> {where}, i32 {align}, <{lanes} x i1> {lane_mask})"
        )
