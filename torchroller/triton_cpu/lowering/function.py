"""Walks a Triton function and lowers it operation by operation.

Scalars are computed where they stand. Tensors become index functions and cost nothing until a consumer (store,
reduce, dot, atomic, loop) evaluates them. Before memory changes, every tensor that reads memory and is still needed
is written to a buffer, so that laziness never shows.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering import masks
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.elementwise import COSTLY, emitter
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.nests import materialise
from torchroller.triton_cpu.lowering.values import Buffer, Elementwise, Remap, Splat, Tensor
from torchroller.triton_cpu.ttir import Block, Function, Op, Value

# Operations that change memory or order it.
EFFECTS = {
    "tt.store",
    "tt.atomic_rmw",
    "tt.atomic_cas",
    "tt.descriptor_store",
    "ttg.barrier",
    "gpu.barrier",
    "tt.call",
}
# A tensor at least this costly is not evaluated anew in every iteration of a loop.
_KEEP_WEIGHT = 8

_FOLDED: dict[str, Callable[..., int]] = {
    "arith.addi": operator.add,
    "arith.subi": operator.sub,
    "arith.muli": operator.mul,
    "arith.extsi": int,
    "arith.index_cast": int,
}

Handler = Callable[["Lowering", Op], None]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register the lowering of operations: the table that a new operation joins."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


@dataclass(frozen=True)
class LowerOptions:
    """What the lowering may use: the CPU's name, vector width and feature names, contraction of a*b+c."""

    arch: str = ""
    vector_bits: int = 512
    feature_names: tuple[str, ...] = ()
    enable_fp_fusion: bool = True


class Lowering:
    """The state of lowering one function."""

    def __init__(self, options: LowerOptions) -> None:
        self.code = Code()
        self.ev = Evaluator(
            self.code,
            options.vector_bits,
            frozenset(options.feature_names),
            options.enable_fp_fusion,
            options.arch,
        )
        self.scalars: dict[Value, str] = {}
        self.positions: dict[Value, Operand] = {}
        self.tensors: dict[Value, Tensor] = {}
        self.needed: list[
            set[Value]
        ] = []  # per open block: values used by what follows the current operation
        self.borrowed: list[list[Tensor]] = []  # per open region: tensors given a buffer inside it
        self.carried: dict[str, tuple[Value, Buffer]] = {}  # buffers of loop-carried tensors, by pointer
        self.use_counts: Counter[Value] = Counter()
        self.row_masks: dict[Op, Value] = {}  # of products that are stored under a mask of rows
        self.arguments: frozenset[Value] = frozenset()  # the kernel's own

    # ---- values ----------------------------------------------------------------------------------------------
    def scalar(self, v: Value) -> str:
        return self.scalars[v]

    def tensor(self, v: Value) -> Tensor:
        """The tensor of a value; a scalar counts as a tensor without dimensions."""
        if v.type.is_tensor:
            return self.tensors[v]
        return Splat((), v.type.elem, value=self.scalars[v], position=self.positions.get(v))

    def position(self, v: Value) -> Operand | None:
        """The i64 value of an integer scalar."""
        return self.positions.get(v)

    def set_scalar(self, v: Value, text: str, position: Operand | None = None) -> None:
        self.scalars[v] = text
        elem = v.type.elem
        if position is None and lt.is_int(elem) and elem != "i1":
            if lt.scalar(elem) == "i64":
                position = text
            elif elem in ("i8", "i16", "i32"):
                position = self.code.let(f"sext {elem} {text} to i64")
        if position is not None:
            self.positions[v] = position

    def set_tensor(self, v: Value, t: Tensor) -> None:
        """Bind a tensor, computing its linear forms here, where they dominate every later use."""
        self.tensors[v] = t
        if lt.is_int(t.elem) or t.elem == "ptr":
            t.linear(self.ev, False)
            t.linear(self.ev, True)
        if t.elem == "i1":
            self.ev.all_true(t)

    def keep(self, t: Tensor) -> Buffer:
        """Materialise for the rest of the current region."""
        if t.buffer is None:
            t.buffer = materialise(self.ev, t)
            if self.borrowed:
                self.borrowed[-1].append(t)
        return t.buffer

    @contextmanager
    def region(self) -> Iterator[None]:
        """Buffers given to outer tensors inside a conditional region do not outlive it."""
        self.borrowed.append([])
        try:
            yield
        finally:
            for t in self.borrowed.pop():
                t.buffer = None

    @contextmanager
    def loop_body(self) -> Iterator[None]:
        """What an outer loop carries must not be updated in place: this body may run more than once."""
        saved, self.carried = self.carried, {}
        try:
            yield
        finally:
            self.carried = saved

    # ---- blocks ----------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        """Lower the operations of a block up to, not including, its terminator."""
        from torchroller.triton_cpu.lowering.dot import products
        from torchroller.triton_cpu.lowering.gathered import chained
        from torchroller.triton_cpu.lowering.memory import store_group, write_stores

        used_later = _uses_after(block)
        self.needed.append(set())
        done: set[Op] = set()
        for k, op in enumerate(block.ops):
            if op in done:
                continue
            self.needed[-1] = used_later[k]
            if op.name == "tt.store" and op.operands[1].type.is_tensor:
                stores, between, last = store_group(block.ops, k, self.arguments)
                for other in between:
                    self.operation(other)
                done.update(stores, between)
                self.needed[-1] = used_later[last]
                write_stores(self, stores)
                continue
            if op.name == "tt.dot":
                dots, between, last = chained(block.ops, k, self.use_counts)
                if len(dots) > 1:
                    for other in between:
                        self.operation(other)
                    self.needed[-1] = used_later[last]
                    done.update(between)
                    if products(self, dots):
                        done.update(dots)
                        continue
            self.operation(op)
        self.needed.pop()

    def operation(self, op: Op) -> None:
        if op.name in TERMINATORS:
            return
        effect = has_effects(op)
        if effect and op.name != "tt.store":
            self.settle(op)
        if op.name in HANDLERS:
            HANDLERS[op.name](self, op)
            return
        emit = emitter(op)
        if emit is None:
            detail = f"it has no lowering yet: {op.name} {op.text} : {op.signature}"
            raise UnsupportedOperation(op.name, op.location or None, detail)
        self.elementwise(op, emit)

    def elementwise(self, op: Op, emit: Callable) -> None:
        result = op.results[0]
        if not result.type.is_tensor:
            self.scalar_elementwise(op, emit)
            return
        name = op.name if op.name != "arith.cmpi" else f"arith.cmpi {op.text.split(',')[0].split()[0]}"
        args = tuple(self.tensor(v) for v in op.operands)
        t = Elementwise(
            result.type.dims, result.type.elem, name=name, args=args, emit=emit,
            cost=COSTLY.get(op.name, 1), linear_rule=masks.RULES.get(op.name),
        )  # fmt: skip
        if op.name in ("arith.addi", "arith.subi", "arith.muli", "arith.shli") and result.type.elem == "i1":
            t.linear_rule = None
        self.set_tensor(result, t)

    def scalar_elementwise(self, op: Op, emit: Callable) -> None:
        result, code = op.results[0], self.code
        if op.name == "tt.addptr":
            pointer, offset = self.scalars[op.operands[0]], self.positions[op.operands[1]]
            pointee = (
                lt.storage(result.type.pointee or "i8")
                if not (result.type.pointee or "").startswith("!")
                else "ptr"
            )
            moved = (
                pointer if offset == 0 else code.let(f"getelementptr {pointee}, ptr {pointer}, i64 {offset}")
            )
            if moved != pointer:
                code.pointer_roots[moved] = code.pointer_roots.get(pointer, pointer)
            self.set_scalar(result, moved)
            return
        args = [self.scalars[v] for v in op.operands]
        position = self.constant_fold(op)
        self.set_scalar(result, emit(self.ev, args, None), position)

    def constant_fold(self, op: Op) -> int | None:
        """Integer scalars that are known: strides and bounds decide contiguity, so they must not hide."""
        fold = _FOLDED.get(op.name)
        parts = [self.positions.get(v) for v in op.operands]
        known = [p for p in parts if isinstance(p, int)]
        if fold is None or len(known) != len(parts) or op.results[0].type.elem == "i1":
            return None
        return fold(*known)

    def settle(self, op: Op) -> None:
        """Before memory changes: keep every tensor that reads memory and is needed later (or inside `op`)."""
        for v in self.live(op):
            t = self.tensors.get(v)
            if t is not None and t.reads_memory:
                self.keep(t)

    def live(self, op: Op) -> list[Value]:
        inside = set().union(*(_uses_in_region(r) for r in op.regions)) if op.regions else set()
        every = self.needed[-1] | inside
        return [v for v in self.tensors if v in every]  # in order of definition: deterministic

    def keep_for_loop(self, op: Op) -> None:
        """Before a loop: keep what its body would otherwise evaluate in every iteration."""
        inside = set().union(*(_uses_in_region(r) for r in op.regions))
        for v in list(self.tensors):
            t = self.tensors[v]
            if (
                v in inside
                and t.buffer is None
                and t.weight >= _KEEP_WEIGHT
                and not isinstance(t, (Splat, Remap))
            ):
                self.keep(t)

    def used_later(self, v: Value) -> bool:
        return v in self.needed[-1]


TERMINATORS = {
    "scf.yield",
    "scf.condition",
    "tt.return",
    "cf.br",
    "cf.cond_br",
    "tt.reduce.return",
    "tt.scan.return",
}


def has_effects(op: Op) -> bool:
    """Whether an operation, or anything inside it, changes or orders memory."""
    return op.name in EFFECTS or any(has_effects(o) for r in op.regions for b in r.blocks for o in b.ops)


def _uses_in_region(region: object) -> set[Value]:
    used: set[Value] = set()
    for block in region.blocks:  # type: ignore[attr-defined]
        for op in block.ops:
            used |= _uses(op)
    return used


def _uses(op: Op) -> set[Value]:
    used = set(op.operands)
    for _, args in op.successors:
        used |= set(args)
    for region in op.regions:
        used |= _uses_in_region(region)
    return used


def _uses_after(block: Block) -> list[set[Value]]:
    """For each operation, the values used by operations after it."""
    result: list[set[Value]] = []
    later: set[Value] = set()
    for op in reversed(block.ops):
        result.append(set(later))
        later |= _uses(op)
    return result[::-1]


def count_uses(region: object) -> Counter[Value]:
    """How often each value is an operand, anywhere."""
    total: Counter[Value] = Counter()
    for block in region.blocks:  # type: ignore[attr-defined]
        for op in block.ops:
            total.update(op.operands)
            for _, args in op.successors:
                total.update(args)
            for inner in op.regions:
                total.update(count_uses(inner))
    return total


def parameters(fn: Function) -> list[tuple[str, str]]:
    """(LLVM type, name) of each argument."""
    return [(lt.scalar(a.type.elem), f"%arg{k}") for k, a in enumerate(fn.args)]


__all__ = ["HANDLERS", "LowerOptions", "Lowering", "handles", "has_effects", "parameters"]
