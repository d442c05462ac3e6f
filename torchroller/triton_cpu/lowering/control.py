"""Loops and branches: scf.for, scf.while, scf.if, and the basic blocks of early returns.

What a loop carries stays as cheap as it is: scalars in registers, pointer and index tensors that advance by a uniform
step as one scalar offset, other tensors in a buffer (small ones are promoted to registers by LLVM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.function import Lowering, handles, has_effects
from torchroller.triton_cpu.lowering.nests import identity, materialise, new_buffer, stored
from torchroller.triton_cpu.lowering.values import Buffer, Linear, Place, Tensor
from torchroller.triton_cpu.ttir import Block, Op, Value


@dataclass(eq=False)
class Advanced(Tensor):
    """A pointer or index tensor plus a scalar that a loop carries."""

    source: Tensor = None  # type: ignore[assignment]
    offset: Operand = 0

    def __post_init__(self) -> None:
        self._forms: dict[bool, Linear] = {}

    def deps(self):
        return [(self.source, self.same_dims())]

    @property
    def varies(self) -> frozenset[int]:
        return self.source.varies

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        if fast not in self._forms:
            form = self.source.linear(ev, fast)
            if form.terms == (self.source,):  # opaque source
                form = Linear(None, 0, form.strides, (self.source,))
            self._forms[fast] = replace(form, base=ev.code.add(form.base, self.offset))
        return self._forms[fast]

    def compute(self, ev: Evaluator, place: Place) -> str:
        form = self.linear(ev, ev.mode.forms)
        if form.pointer is not None:
            kind, where = ev.address(self, self.elem, place)
            return lt.splat(ev.code, where, "ptr", place.width) if kind == "same" else where
        scalar = lt.scalar(self.elem)
        value = ev.at(self.source, place)
        step = str(self.offset)
        if scalar != "i64" and isinstance(self.offset, str):
            step = ev.code.let(f"trunc i64 {self.offset} to {scalar}")
        spread = lt.splat(ev.code, step, self.elem, place.width)
        return ev.code.let(f"add {lt.typed(self.elem, place.width)} {value}, {spread}")


def uniform_steps(low: Lowering, v: Value, arg: Value) -> list[Value] | None:
    """The uniform tensors added to `arg` to give `v`; None where `v` is anything else."""
    if v is arg:
        return []
    op = v.op
    if op is None or op.name not in ("tt.addptr", "arith.addi"):
        return None
    for base, step in (op.operands, op.operands[::-1] if op.name == "arith.addi" else op.operands):
        below = uniform_steps(low, base, arg)
        if below is not None and _uniform_source(step):
            return [*below, step]
    return None


def _uniform_source(v: Value) -> bool:
    return v.op is not None and v.op.name in ("tt.splat", "arith.constant")


class Carried:
    """How one loop-carried value lives; `enter` before the loop, `bind` at its top, `leave` at its end."""

    def __init__(self, low: Lowering, arg: Value, init: Value, out: Value | None) -> None:
        self.low, self.arg, self.init, self.out = low, arg, init, out
        self.slot: str = ""
        self.buffer: Buffer | None = None
        self.steps: list[Value] | None = None

    def enter(self) -> None:
        low, code, type = self.low, self.low.code, self.arg.type
        if not type.is_tensor:
            self.slot = code.alloca(lt.scalar(type.elem), 1, 8)
            code.line(f"  store {lt.scalar(type.elem)} {low.scalar(self.init)}, ptr {self.slot}")
            return
        if (lt.is_int(type.elem) and type.elem != "i1") or type.elem == "ptr":
            self.steps = uniform_steps(low, self.out, self.arg) if self.out is not None else None
            if self.steps is not None:
                self.slot = code.alloca("i64", 1, 8)
                code.line(f"  store i64 0, ptr {self.slot}")
                return
        self.buffer = materialise(low.ev, low.tensor(self.init))

    def bind(self, value: Value) -> None:
        """Make `value` (the body's argument, or the loop's result) mean what is carried now."""
        low, code, type = self.low, self.low.code, self.arg.type
        if not type.is_tensor:
            name = code.let(f"load {lt.scalar(type.elem)}, ptr {self.slot}")
            low.set_scalar(value, name)
            if type.elem == "ptr":
                start = low.scalar(self.init)
                code.pointer_roots[name] = code.pointer_roots.get(start, start)
        elif self.buffer is not None:
            low.set_tensor(value, stored(self.buffer))
            if value is self.arg:
                low.carried[self.buffer.pointer] = (value, self.buffer)
            else:
                low.carried.pop(self.buffer.pointer, None)
        else:
            offset = code.let(f"load i64, ptr {self.slot}")
            source = low.tensor(self.init)
            low.set_tensor(value, Advanced(type.dims, type.elem, source=source, offset=offset))


def leave(low: Lowering, carried: Sequence[Carried], outs: Sequence[Value]) -> None:
    """Store the values of the next iteration. All are evaluated before any that another one reads is replaced."""
    code, ev = low.code, low.ev
    scalars = [(c, low.scalar(v)) for c, v in zip(carried, outs) if not c.arg.type.is_tensor]
    steps = []
    for c in carried:
        if c.steps is not None:
            total: Operand = 0
            for step in c.steps:
                total = code.add(total, low.tensor(step).linear(ev, False).base)
            steps.append((c, total))
    tensors = [(c, low.tensor(v)) for c, v in zip(carried, outs) if c.buffer is not None]
    copies: list[tuple[Buffer, Buffer]] = []
    for c, t in tensors:
        if t.buffer is c.buffer:
            continue
        assert c.buffer is not None
        read_by_others = any(o is not c and _reads(ev, u, c.buffer) for o, u in tensors)
        if read_by_others or _reads(ev, t, c.buffer) == "elsewhere":
            copies.append((c.buffer, materialise(ev, t)))
        else:
            materialise(ev, t, into=c.buffer)
    for target, source in copies:
        materialise(ev, stored(source), into=target)
    for c, value in scalars:
        code.line(f"  store {lt.scalar(c.arg.type.elem)} {value}, ptr {c.slot}")
    for c, total in steps:
        old = code.let(f"load i64, ptr {c.slot}")
        code.line(f"  store i64 {code.add(old, total)}, ptr {c.slot}")


def _reads(ev: Evaluator, t: Tensor, buffer: Buffer) -> str:
    """Whether evaluating `t` reads `buffer`: "" no, "here" only at the same place, "elsewhere" otherwise."""
    answer = ""
    for inner, dims in ev.walk([identity(t)]):
        if inner.buffer is not None and inner.buffer.pointer == buffer.pointer:
            if dims != tuple(range(len(t.shape))) or inner.buffer.strides != buffer.strides:
                return "elsewhere"
            answer = "here"
    return answer


@handles("scf.for")
def for_loop(low: Lowering, op: Op) -> None:
    code = low.code
    block = op.regions[0].blocks[0]
    start, stop, step = op.operands[:3]
    outs = block.ops[-1].operands if block.ops and block.ops[-1].name == "scf.yield" else []
    low.keep_for_loop(op)
    if has_effects(op):
        low.settle(op)
    carried = [Carried(low, a, i, o) for a, i, o in zip(block.args[1:], op.operands[3:], outs)]
    for c in carried:
        c.enter()
    type = lt.scalar(start.type.elem)
    predicate = "ult" if op.text.startswith("unsigned") else "slt"

    def body(index: Operand) -> None:
        with low.region(), low.loop_body():
            low.set_scalar(block.args[0], str(index))
            for c in carried:
                c.bind(c.arg)
            low.block(block)
            leave(low, carried, outs)

    # the body is a nest of its own: nothing in it may be hoisted in front of the loop
    def opaque(index: Operand) -> None:
        with code.nest():
            body(index)

    code.dynamic_loop(
        low.scalar(start), low.scalar(stop), low.scalar(step), type, opaque, predicate=predicate
    )
    for c, result in zip(carried, op.results):
        c.bind(result)


@handles("scf.if")
def if_else(low: Lowering, op: Op) -> None:
    code, ev = low.code, low.ev
    slots: list[str | Buffer] = []
    for r in op.results:
        if r.type.is_tensor:
            slots.append(new_buffer(code, r.type.elem, r.type.dims))
        else:
            slots.append(code.alloca(lt.scalar(r.type.elem), 1, 8))

    def side(block: Block) -> None:
        with low.region():
            low.block(block)
            if not op.results:
                return
            for slot, v in zip(slots, block.ops[-1].operands):
                if isinstance(slot, Buffer):
                    materialise(ev, low.tensor(v), into=slot)
                else:
                    code.line(f"  store {lt.scalar(v.type.elem)} {low.scalar(v)}, ptr {slot}")

    low.keep_for_loop(op) if len(op.regions) > 1 else None
    then = op.regions[0].blocks[0]
    other = op.regions[1].blocks[0] if len(op.regions) > 1 else None
    code.branch(low.scalar(op.operands[0]), lambda: side(then), (lambda: side(other)) if other else None)
    for slot, r in zip(slots, op.results):
        if isinstance(slot, Buffer):
            low.set_tensor(r, stored(slot))
        else:
            low.set_scalar(r, code.let(f"load {lt.scalar(r.type.elem)}, ptr {slot}"))


@handles("scf.while")
def while_loop(low: Lowering, op: Op) -> None:
    code = low.code
    before, after = op.regions[0].blocks[0], op.regions[1].blocks[0]
    low.keep_for_loop(op)
    low.settle(op)
    carried = [Carried(low, a, i, None) for a, i in zip(before.args, op.operands)]
    for c in carried:
        c.enter()
    condition = before.ops[-1]
    forwarded = condition.operands[1:]
    results: list[Buffer | None] = [
        new_buffer(code, v.type.elem, v.type.dims) if v.type.is_tensor else None for v in forwarded
    ]
    head, body, end = code.label("while"), code.label("do"), code.label("done")
    code.line(f"  br label %{head}")
    code.place(head)
    with code.nest(), low.region(), low.loop_body():
        for c in carried:
            c.bind(c.arg)
        low.block(before)
        for buffer, v in zip(results, forwarded):
            if buffer is not None:
                materialise(low.ev, low.tensor(v), into=buffer)
    code.line(f"  br i1 {low.scalar(condition.operands[0])}, label %{body}, label %{end}")

    def bind(targets: Sequence[Value]) -> None:
        for target, v, buffer in zip(targets, forwarded, results):
            if buffer is not None:
                low.set_tensor(target, stored(buffer))
            else:
                low.set_scalar(target, low.scalar(v), low.position(v))

    code.place(body)
    with code.nest(), low.region(), low.loop_body():
        bind(after.args)
        low.block(after)
        leave(low, carried, after.ops[-1].operands if after.ops else [])
    code.line(f"  br label %{head}")
    code.place(end)
    bind(op.results)


def basic_blocks(low: Lowering, blocks: Sequence[Block]) -> None:
    """A function body: usually one block, several where the kernel returns early."""
    code, ev = low.code, low.ev
    slots: dict[Value, str | Buffer] = {}
    for block in blocks[1:]:
        for a in block.args:
            if a.type.is_tensor:
                slots[a] = new_buffer(code, a.type.elem, a.type.dims)
            else:
                slots[a] = code.alloca(lt.scalar(a.type.elem), 1, 8)
    labels = {b.label: f"bb.{k}" for k, b in enumerate(blocks)}
    used: list[set[Value]] = [{v for op in b.ops for v in _all_uses(op)} for b in blocks]
    code.line("  br label %bb.0")
    for k, block in enumerate(blocks):
        code.place(labels[block.label] if k else "bb.0")
        for a in block.args if k else ():
            slot = slots[a]
            if isinstance(slot, Buffer):
                low.set_tensor(a, stored(slot))
            else:
                low.set_scalar(a, code.let(f"load {lt.scalar(a.type.elem)}, ptr {slot}"))
        low.block(block)
        for other in used[k + 1 :]:
            for v in other:
                t = low.tensors.get(v)
                if t is not None and t.reads_memory:
                    low.keep(t)
        last = block.ops[-1]
        if last.name == "tt.return":
            code.line("  ret void")
            continue
        if last.name not in ("cf.br", "cf.cond_br"):
            raise UnsupportedOperation(last.name, last.location or None, "as the end of a block")
        targets = []
        for label, args in last.successors:
            target = next(b for b in blocks if b.label == label)
            for a, v in zip(target.args, args):
                slot = slots[a]
                if isinstance(slot, Buffer):
                    materialise(ev, low.tensor(v), into=slot)
                else:
                    code.line(f"  store {lt.scalar(a.type.elem)} {low.scalar(v)}, ptr {slot}")
            targets.append(f"label %{labels[label]}")
        if last.name == "cf.br":
            code.line(f"  br {targets[0]}")
        else:
            code.line(f"  br i1 {low.scalar(last.operands[0])}, {', '.join(targets)}")


def _all_uses(op: Op) -> set[Value]:
    used = set(op.operands)
    for _, args in op.successors:
        used |= set(args)
    for region in op.regions:
        for block in region.blocks:
            for inner in block.ops:
                used |= _all_uses(inner)
    return used
