"""tl.device_print and tl.device_assert."""

from __future__ import annotations

import functools
import re

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code
from torchroller.triton_cpu.lowering.function import Lowering, handles
from torchroller.triton_cpu.lowering.nests import identity, over_tile, versions
from torchroller.triton_cpu.lowering.values import Place
from torchroller.triton_cpu.ttir import Op

# The loader points this symbol at the record that the launcher reads: a message's address, then the program's id.
ASSERTION = "torchroller_assertion"


def c_string(code: Code, text: str) -> str:
    """A constant zero-terminated string, as a pointer."""
    data = text.encode() + b"\0"
    escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data)
    name = f"@text{len(code.declarations)}"
    code.declare(name, f'{name} = internal constant [{len(data)} x i8] c"{escaped}"')
    return name


def _quoted(text: str) -> str:
    """The first string literal of an operation's text."""
    match = re.search(r'"((?:[^"\\]|\\.)*)"', text)
    body = match.group(1) if match else ""
    return re.sub(r"\\([0-9A-Fa-f]{2}|.)", lambda m: chr(int(m[1], 16)) if len(m[1]) == 2 else m[1], body)


@handles("tt.print")
def device_print(low: Lowering, op: Op) -> None:
    """One line for each element: the program, the element's index, the prefix, the value."""
    ev, code = low.ev, low.code
    prefix, hexadecimal = _quoted(op.text).strip(), op.attr("hex") == "true"
    signs = [int(s) for s in re.findall(r"\d+", (op.attr("isSigned") or "").partition(":")[2])]
    code.declare("printf", "declare i32 @printf(ptr, ...)")
    code.declare("fflush", "declare i32 @fflush(ptr)")
    tensors = [low.tensor(v) for v in op.operands]
    program = "i32 %pid_x, i32 %pid_y, i32 %pid_z"
    if not tensors:
        text = c_string(code, f"pid (%d, %d, %d) {prefix}\n")
        code.line(f"  call i32 (ptr, ...) @printf(ptr {text}, {program})")
    for k, (t, value) in enumerate(zip(tensors, op.operands)):
        signed = bool(signs[k]) if k < len(signs) else True
        which = f"(operand {k}) " if len(tensors) > 1 else ""
        index = f" idx ({', '.join(['%lld'] * len(t.shape))})" if t.shape else ""
        spec, type, cast = _format(value.type.elem, hexadecimal, signed)
        text = c_string(code, f"pid (%d, %d, %d){index} {prefix} {which}{spec}\n")

        def show(place: Place, t=t, text=text, type=type, cast=cast) -> None:
            shown = ev.at(t, place)
            if cast:
                shown = code.let(f"{cast} {lt.scalar(t.elem)} {shown} to {type}")
            at = "".join(f", i64 {c}" for c in place.coords)
            code.line(f"  call i32 (ptr, ...) @printf(ptr {text}, {program}{at}, {type} {shown})")

        versions(ev, [identity(t)], functools.partial(over_tile, ev, t.shape, None, show))
    code.line("  call i32 @fflush(ptr null)")  # Python's own output is not behind this buffer


def _format(elem: str, hexadecimal: bool, signed: bool) -> tuple[str, str, str]:
    """(printf format, type passed, cast to that type)."""
    if elem == "ptr":
        return "%p", "ptr", ""
    if lt.is_float(elem):
        return "%f", "double", "" if elem == "f64" else "fpext"
    extend = (
        "" if lt.scalar(elem) == "i64" else "sext" if signed and elem != "i1" and not hexadecimal else "zext"
    )
    if hexadecimal:
        return f"0x%0{2 * lt.size_bytes(elem)}llx", "i64", extend
    return ("%lld" if signed else "%llu"), "i64", extend


@handles("tt.assert")
def device_assert(low: Lowering, op: Op) -> None:
    """A false element ends the program and is reported by the launch (Triton emits these in debug mode only)."""
    ev, code = low.ev, low.code
    condition = low.tensor(op.operands[0])
    where = f"{op.location}: " if op.location else ""
    text = c_string(code, f"{where}{_quoted(op.text)}")
    code.declare(ASSERTION, f"@{ASSERTION} = external global [4 x i64]")
    failed = code.alloca("i1", 1, 1)
    code.line(f"  store i1 false, ptr {failed}")

    def test(place: Place) -> None:
        value = ev.at(condition, place)
        old = code.let(f"load i1, ptr {failed}")
        inverse = code.let(f"xor i1 {value}, true")
        both = code.let(f"or i1 {old}, {inverse}")
        code.line(f"  store i1 {both}, ptr {failed}")

    versions(ev, [identity(condition)], lambda: over_tile(ev, condition.shape, None, test))
    bad = code.let(f"load i1, ptr {failed}")
    stop, on = code.label("failed"), code.label("holds")
    code.line(f"  br i1 {bad}, label %{stop}, label %{on}")
    code.place(stop)
    for k, axis in enumerate("xyz"):
        slot = code.let(f"getelementptr i64, ptr @{ASSERTION}, i64 {k + 1}")
        wide = code.let(f"zext i32 %pid_{axis} to i64")
        code.line(f"  store i64 {wide}, ptr {slot}")
    address = code.let(f"ptrtoint ptr {text} to i64")
    code.line(f"  store atomic i64 {address}, ptr @{ASSERTION} release, align 8")
    code.line("  ret void")
    code.place(on)
