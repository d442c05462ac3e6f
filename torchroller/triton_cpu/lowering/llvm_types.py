"""Names of LLVM types for Triton element types, and conversions between vectors and scalars."""

from __future__ import annotations

from torchroller.triton_cpu.lowering.code import Code

# bf16 travels as its bits: LLVM turns moves and selects of its bfloat into conversions and library calls.
_LLVM = {"f16": "half", "bf16": "i16", "f32": "float", "f64": "double", "index": "i64", "ptr": "ptr"}
_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "index": 8, "ptr": 8, "i1": 1}
_FP8 = ("f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ", "f8E4M3B11FNUZ")


def scalar(elem: str) -> str:
    """`f32` → `float`, `i32` → `i32`."""
    if elem in _FP8:
        return "i8"
    return _LLVM.get(elem, elem)


def storage(elem: str) -> str:
    """The type in memory: an i1 takes a byte."""
    return "i8" if elem == "i1" else scalar(elem)


def typed(elem: str, lanes: int | None) -> str:
    return scalar(elem) if lanes is None else f"<{lanes} x {scalar(elem)}>"


def size_bytes(elem: str) -> int:
    if elem in _FP8:
        return 1
    return _BYTES.get(elem) or max(1, int(elem[1:]) // 8)


def is_float(elem: str) -> bool:
    return elem in ("f16", "bf16", "f32", "f64")


def is_float8(elem: str) -> bool:
    return elem in _FP8


def is_int(elem: str) -> bool:
    return elem == "index" or (elem[0] == "i" and elem[1:].isdigit())


def suffix(memory: str) -> str:
    """Mangling of an LLVM scalar type in an intrinsic's name."""
    return {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}.get(memory, memory)


def splat(code: Code, value: str, elem: str, lanes: int | None) -> str:
    """The scalar in every lane."""
    if lanes is None:
        return value
    if not value.startswith(("%", "@")):
        return constant(value, elem, lanes)
    type = scalar(elem)
    first = code.let(f"insertelement <{lanes} x {type}> poison, {type} {value}, i64 0")
    zeros = f"<{lanes} x i32> zeroinitializer"
    return code.let(f"shufflevector <{lanes} x {type}> {first}, <{lanes} x {type}> poison, {zeros}")


def constant(value: str, elem: str, lanes: int | None) -> str:
    """A literal in every lane, as an operand."""
    if lanes is None:
        return value
    return "<" + ", ".join([f"{scalar(elem)} {value}"] * lanes) + ">"


def iota(elem: str, lanes: int, step: int = 1) -> str:
    return "<" + ", ".join(f"{elem} {k * step}" for k in range(lanes)) + ">"


def float_literal(text: str, elem: str) -> str:
    """A literal as Triton prints it (`1.5`, `0x7F800000`) in LLVM's spelling, exact for the element type."""
    import struct

    if elem in _FP8:
        from torchroller.triton_cpu.lowering.float8 import encode

        return str(int(text, 16)) if text.startswith(("0x", "0X")) else str(encode(float(text), elem))
    kind = {"f32": ("<I", "<f"), "f64": ("<Q", "<d")}
    if text.startswith(("0x", "0X")):
        bits = int(text, 16)
        if elem == "f16":
            return f"0xH{bits:04X}"
        if elem == "bf16":
            return str(bits)
        as_int, as_float = kind[elem]
        number = struct.unpack(as_float, struct.pack(as_int, bits))[0]
    else:
        number = float(text)
    if elem == "f16":
        return f"0xH{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
    if elem == "bf16":
        bits = struct.unpack("<I", struct.pack("<f", number))[0]
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return str(0x7FC0 if number != number else rounded)
    if elem == "f32" and number == number and abs(number) != float("inf"):
        number = struct.unpack("<f", struct.pack("<f", number))[0]
    bits = struct.unpack("<Q", struct.pack("<d", number))[0]
    if number != number and elem == "f32" and text.startswith(("0x", "0X")):
        bits = 0x7FF8000000000000  # a quiet NaN; payloads do not survive widening in the printed form
    return f"0x{bits:016X}"
