"""Rows of a product that nobody stores: a tile is a power of two high, a matrix often is not.

    acc = dot(a, b, acc) ... tl.store(pointers, f(acc), mask=rows < n)

Behind the last row that a store lets through, the accumulator may keep whatever it holds, so those multiply-adds are
left out. It takes a proof: from the product onwards every value is computed element by element, up to stores whose
masks all hold the same comparison of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.function import Lowering
from torchroller.triton_cpu.lowering.masks import largest
from torchroller.triton_cpu.ttir import Op, Region, Value

# Element by element, without a trap or an effect whatever the operands are.
_PLAIN = {"tt.fp_to_fp", "tt.bitcast", "tt.clampf", "tt.precise_sqrt", "tt.precise_divf"}
_TRAPPING = {
    "arith.divsi",
    "arith.divui",
    "arith.remsi",
    "arith.remui",
    "arith.ceildivsi",
    "arith.floordivsi",
}


@dataclass(frozen=True)
class _Use:
    op: Op
    number: int
    within: Op | None  # the operation whose region holds it


def row_masks(body: Region) -> dict[Op, Value]:
    """For products whose rows are all stored under one comparison: that comparison, of shape [rows, 1] or [rows]."""
    uses: dict[Value, list[_Use]] = {}
    products: list[Op] = []
    for op, within in _walk(body, None):
        if op.name == "tt.dot" and len(op.results[0].type.dims) == 2:
            products.append(op)
        for n, v in enumerate(op.operands):
            uses.setdefault(v, []).append(_Use(op, n, within))
        for _, args in op.successors:
            for v in args:
                uses.setdefault(v, []).append(_Use(op, -1, within))
    found = {}
    for op in products:
        masks = _stored_under(op.results[0], uses)
        if masks:
            found[op] = min(masks, key=lambda v: v.name)
    return found


def _walk(region: Region, within: Op | None) -> Iterator[tuple[Op, Op | None]]:
    for block in region.blocks:
        for op in block.ops:
            yield op, within
            for inner in op.regions:
                yield from _walk(inner, op)


def _stored_under(start: Value, uses: dict[Value, list[_Use]]) -> set[Value]:
    """Comparisons of rows that every store of what is computed from `start` is masked by."""
    common: set[Value] | None = None
    seen, stack = {start}, [start]
    while stack:
        for use in uses.get(stack.pop(), ()):
            if use.op.name == "tt.store":
                masks = _comparisons(use.op.operands[2], start) if len(use.op.operands) > 2 else set()
                common = masks if common is None else common & masks
                if not common:
                    return set()
                continue
            reached = _results(use)
            if reached is None or any(v.type.dims != start.type.dims for v in reached):
                return set()
            stack += [v for v in reached if v not in seen]
            seen.update(reached)
    return common or set()


def _results(use: _Use) -> list[Value] | None:
    """Values that hold the operand of `use`, or are computed from it element by element; None for anything else."""
    op, n = use.op, use.number
    if op.name == "tt.dot":
        return op.results if n == 2 else None
    if op.name == "scf.for" and n >= 3:
        return [op.regions[0].blocks[0].args[n - 2], op.results[n - 3]]
    if op.name == "scf.yield" and use.within is not None:
        if use.within.name == "scf.for":
            return [use.within.regions[0].blocks[0].args[n + 1], use.within.results[n]]
        return [use.within.results[n]] if use.within.name == "scf.if" else None
    plain = op.name.startswith(("arith.", "math.")) and op.name not in _TRAPPING
    return op.results if plain or op.name in _PLAIN else None


def _comparisons(mask: Value, product: Value) -> set[Value]:
    op = mask.op
    if op is None:
        return set()
    if op.name in ("arith.andi", "tt.broadcast"):
        return set().union(*(_comparisons(v, product) for v in op.operands))
    if mask.type.dims != (product.type.dims[0], 1):
        return set()
    if op.name == "tt.expand_dims" and op.operands[0].type.dims == product.type.dims[:1]:
        mask, op = op.operands[0], op.operands[0].op
    return {mask} if op is not None and op.name == "arith.cmpi" else set()


def live_rows(low: Lowering, op: Op, step: int) -> Operand:
    """How many rows of a product are to be computed, rounded up to whole steps."""
    m = op.results[0].type.dims[0]
    mask = low.row_masks.get(op)
    if mask is None or mask.op is None:
        return m
    predicate = mask.op.text.split(",")[0].split()[0]
    number, end = (low.tensors.get(v) for v in mask.op.operands)
    if predicate not in ("slt", "sle") or number is None or end is None:
        return m
    ev, code = low.ev, low.code
    moving, limit = number.linear(ev, False), end.linear(ev, False)
    if any(f.terms or f.pointer is not None for f in (moving, limit)):
        return m
    if not limit.uniform or moving.strides[0] != 1:
        return m
    rest = code.add(code.sub(limit.base, moving.base), int(predicate == "sle"))
    # the forms are exact, the compared integers wrap
    most = largest(number.elem)
    inside = code.both([
        code.compare("sge", moving.base, -most - 1), code.compare("sle", code.add(moving.base, m - 1), most),
        code.compare("sge", limit.base, -most - 1), code.compare("sle", limit.base, most)])  # fmt: skip
    if isinstance(rest, int) and inside in ("true", "false"):
        return max(0, min(m, -(-rest // step) * step)) if inside == "true" else m
    code.declare("smax", "declare i64 @llvm.smax.i64(i64, i64)")
    code.declare("smin", "declare i64 @llvm.smin.i64(i64, i64)")
    positive = code.let(f"call i64 @llvm.smax.i64(i64 {rest}, i64 0)")
    below = code.let(f"call i64 @llvm.smin.i64(i64 {positive}, i64 {m})")
    raised = code.let(f"add i64 {below}, {step - 1}")
    whole = code.let(f"and i64 {raised}, {-step}")  # register blocks are powers of two high
    return whole if inside == "true" else code.let(f"select i1 {inside}, i64 {whole}, i64 {m}")
