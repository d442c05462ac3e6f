"""Writes LLVM IR text: names, scopes, counted loops, scalar arithmetic with constant folding.

A scope is one level of a loop nest over a tile. Code that depends only on outer coordinates is appended to the
outer scope, which stands before the inner loop's header: loop-invariant code is hoisted as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Operand = str | int  # an SSA name, or an integer constant


@dataclass
class Scope:
    """`memo` remembers what was computed at this level, keyed by (object, place)."""

    lines: list[str] = field(default_factory=list)
    memo: dict[object, str] = field(default_factory=dict)


class Code:
    """One LLVM function under construction, with the module-level text that it needs."""

    def __init__(self) -> None:
        self.entry: list[str] = []  # allocas: they must stand in the entry block
        self.scopes: list[Scope] = [Scope()]
        self.level = 0
        self.depth_of: dict[str, int] = {}
        self.counter = 0
        self.declarations: dict[str, str] = {}
        self.scratch_bytes = 0
        self.loop_metadata: list[str] = []
        self.pointer_roots: dict[
            str, str
        ] = {}  # scalar pointers computed from another one → the first of them

    # ---- names and lines -------------------------------------------------------------------------------------
    def name(self, hint: str = "t") -> str:
        self.counter += 1
        return f"%{hint}{self.counter}"

    def line(self, text: str) -> None:
        self.scopes[self.level].lines.append(text)

    def let(self, text: str, hint: str = "t") -> str:
        name = self.name(hint)
        self.line(f"  {name} = {text}")
        if self.level:
            self.depth_of[name] = self.level
        return name

    def label(self, hint: str) -> str:
        self.counter += 1
        return f"{hint}{self.counter}"

    def place(self, label: str) -> None:
        self.line(f"{label}:")

    def declare(self, symbol: str, text: str) -> None:
        self.declarations.setdefault(symbol, text)

    def alloca(self, type: str, count: int = 1, align: int = 64) -> str:
        name = self.name("slot")
        self.entry.append(f"  {name} = alloca {type}, i64 {count}, align {align}")
        return name

    def scratch(self, size_bytes: int) -> str:
        """A 64-byte aligned region of the thread's scratch memory, as a pointer."""
        offset = self.scratch_bytes
        self.scratch_bytes += -(-size_bytes // 64) * 64
        name = self.name("buf")
        self.entry.append(f"  {name} = getelementptr i8, ptr %scratch, i64 {offset}")
        return name

    # ---- scopes ----------------------------------------------------------------------------------------------
    @contextmanager
    def nest(self) -> Iterator[None]:
        """A fresh memory of computed values: what is computed inside is not reused outside."""
        saved, level = self.scopes, self.level
        self.scopes, self.level = [Scope(saved[level].lines)], 0
        try:
            yield
        finally:
            self.scopes, self.level = saved, level

    @contextmanager
    def at_level(self, level: int) -> Iterator[None]:
        saved, self.level = self.level, level
        try:
            yield
        finally:
            self.level = saved

    def depth(self, *operands: Operand) -> int:
        return max((self.depth_of.get(o, 0) for o in operands if isinstance(o, str)), default=0)

    def loop(self, count: int, body: Callable[[Operand], None], *, step: int = 1, unroll: int = 0) -> None:
        """`for i in range(0, count, step): body(i)` with `count` known; one iteration makes no loop."""
        if count <= step:
            body(0)
            return
        self.dynamic_loop(0, count, step, "i64", body, unroll=unroll, at_least_once=True)

    def dynamic_loop(
        self,
        start: Operand,
        stop: Operand,
        step: Operand,
        type: str,
        body: Callable[[Operand], None],
        *,
        unroll: int = 0,
        at_least_once: bool = False,
        predicate: str = "slt",
    ) -> None:
        """A counted loop in the current scope; `body` writes into a scope of its own."""
        assert self.level == len(self.scopes) - 1
        self.counter += 1
        k = self.counter
        index, following = f"%i{k}", f"%n{k}"
        inner = Scope()
        self.scopes.append(inner)
        self.level += 1
        self.depth_of[index] = self.level
        body(index)
        self.scopes.pop()
        self.level -= 1
        meta = f", !llvm.loop !{self.unroll_metadata(unroll)}" if unroll else ""
        self.line(f"  br label %pre{k}")
        self.line(f"pre{k}:")
        if at_least_once:
            self.line(f"  br label %body{k}")
        else:
            first = self.let(f"icmp {predicate} {type} {start}, {stop}")
            self.line(f"  br i1 {first}, label %body{k}, label %end{k}")
        self.line(f"body{k}:")
        self.line(f"  {index} = phi {type} [ {start}, %pre{k} ], [ {following}, %latch{k} ]")
        self.scopes[self.level].lines.extend(inner.lines)
        self.line(f"  br label %latch{k}")
        self.line(f"latch{k}:")
        self.line(f"  {following} = add nsw {type} {index}, {step}")
        again = self.let(f"icmp {predicate} {type} {following}, {stop}")
        self.line(f"  br i1 {again}, label %body{k}, label %end{k}{meta}")
        self.line(f"end{k}:")

    def unroll_metadata(self, count: int) -> int:
        first = len(self.loop_metadata)
        self.loop_metadata.append(f"!{first} = distinct !{{!{first}, !{first + 1}}}")
        self.loop_metadata.append(f'!{first + 1} = !{{!"llvm.loop.unroll.count", i32 {count}}}')
        return first

    def branch(self, condition: str, then: Callable[[], None], otherwise: Callable[[], None] | None) -> None:
        """if/else; each side is a nest of its own."""
        self.counter += 1
        k = self.counter
        last = f"else{k}" if otherwise else f"join{k}"
        self.line(f"  br i1 {condition}, label %then{k}, label %{last}")
        self.line(f"then{k}:")
        with self.nest():
            then()
        self.line(f"  br label %join{k}")
        if otherwise:
            self.line(f"else{k}:")
            with self.nest():
                otherwise()
            self.line(f"  br label %join{k}")
        self.line(f"join{k}:")

    # Without nsw: a kernel may let 64-bit numbers wrap (hashes, random numbers).
    # ---- scalar i64 arithmetic -------------------------------------------------------------------------------
    def add(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0:
            return b
        if b == 0:
            return a
        return self.let(f"add i64 {a}, {b}")

    def sub(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        if b == 0:
            return a
        return self.let(f"sub i64 {a}, {b}")

    def mul(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1:
            return b
        if b == 1:
            return a
        return self.let(f"mul i64 {a}, {b}")

    def compare(self, predicate: str, a: Operand, b: Operand) -> str:
        if isinstance(a, int) and isinstance(b, int):
            holds = {"slt": a < b, "sle": a <= b, "sgt": a > b, "sge": a >= b, "eq": a == b, "ne": a != b}
            return "true" if holds[predicate] else "false"
        return self.let(f"icmp {predicate} i64 {a}, {b}")

    def both(self, conditions: list[str]) -> str:
        if "false" in conditions:
            return "false"
        needed = [c for c in conditions if c != "true"]
        if not needed:
            return "true"
        result = needed[0]
        for c in needed[1:]:
            result = self.let(f"and i1 {result}, {c}")
        return result
