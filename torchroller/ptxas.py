"""A fault of ptxas that gives wrong numbers, and how to tell that a kernel falls under it.

ptxas 12.8 and 13.1 (those in Triton 3.6 to 3.8, at -O1 and above) lose the constant of a packed 16-bit addition whose
other operand has an undefined half:

    mov.b32   %r1, {%rs1, %rs2};       // nothing defines %rs2
    mov.b32   %r2, 255;
    add.s16x2 %r3, %r1, %r2;           // becomes VIADD.16x2 R3, R1, 0x0

LLVM writes such code for sums of small numbers whose range it knows, such as tests of positions against the border of
an image. Found on an H100, where a convolution lost taps of 12 positions out of 364.
"""

from __future__ import annotations

import re

_PACKED = re.compile(r"\b(?:add|sub|min|max)\.(?:s16x2|u16x2)\s+(%r\d+),\s*(%r\d+|-?\d+),\s*(%r\d+|-?\d+);")
_PAIR = re.compile(r"\bmov\.b32\s+(%r\d+),\s*\{(%rs\d+),\s*(%rs\d+)\};")

SAFE_OPTIONS = "--opt-level 0"  # with which ptxas does not fold constants


def miscompiled(ptx: str) -> bool:
    """Whether ptxas may get a packed 16-bit operation of this text wrong: one with a half that nothing defines."""
    packed = _PACKED.findall(ptx)
    if not packed:
        return False
    pairs = {name: halves for name, *halves in _PAIR.findall(ptx)}
    halves = {h for names in packed for name in names for h in pairs.get(name, ())}
    return bool(halves - _defined(ptx))


def _defined(ptx: str) -> set[str]:
    """16-bit registers that some instruction writes: the first operand, or all of a first `{a, b}`."""
    found: set[str] = set()
    for line in ptx.splitlines():
        match = re.match(r"\s*(?:@!?%p\d+\s+)?[a-z][\w.:]*\s+(\{[^}]*\}|%rs\d+)\s*,", line)
        if match:
            found.update(re.findall(r"%rs\d+", match.group(1)))
    return found
