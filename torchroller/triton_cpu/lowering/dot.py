"""tl.dot: packed, register-blocked matrix products.

    C[M, N] += A[M, K] B[K, N]      C lives in a buffer, in place in the one that a loop carries

A is read where it lies when its address is linear, B when its rows are short runs; otherwise they are packed: B into
panels [N / NR][K][NR], which also applies whatever computes them (casts, masks, a fused prologue).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torchroller.triton_cpu.blocking import IN_PLACE_ROWS, micro_kernels, register_block
from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering import microkernel as mk
from torchroller.triton_cpu.lowering.batched_dot import batches, is_row_major
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.control import _reads
from torchroller.triton_cpu.lowering.elementwise import convert
from torchroller.triton_cpu.lowering.evaluate import Evaluator, conjuncts
from torchroller.triton_cpu.lowering.function import Lowering, handles
from torchroller.triton_cpu.lowering.gathered import Products, add_products, is_zero, rows_apart
from torchroller.triton_cpu.lowering.live import live_rows
from torchroller.triton_cpu.lowering.nests import identity, materialise, new_buffer, stored, versions
from torchroller.triton_cpu.lowering.packing import compensate, pack_panels, pack_rows
from torchroller.triton_cpu.lowering.prefix import counted
from torchroller.triton_cpu.lowering.strips import least, over_rows, strips
from torchroller.triton_cpu.lowering.values import (
    Buffer,
    Elementwise,
    Interleaved,
    Load,
    Merged,
    Remap,
    Tensor,
)
from torchroller.triton_cpu.ttir import Op, Value

# Rows of B at most this far apart (in elements) are read in place: they share pages and cache sets well.
_NEAR_ROWS = 256
# Up to this many rows memory bounds a product with a packed B: one core of Zen 4 reads 36 GB/s with prefetches this
# far ahead, 19 with those of a whole block of k.
_STREAMED_ROWS, _STREAM_BYTES = 4, 2048


# dpbf16ps at the rate of fma, so twice its products. Intel's cores issue one every other cycle: there, widening to
# f32 is faster (measured on Emerald Rapids: 84 GFLOP/s a core with dpbf16ps, 115 to 145 with fma) and rounds less.
_FAST_BF16 = ("znver",)


def product_of(ev: Evaluator, a: str, b: str, acc: str) -> tuple[mk.Product, str] | None:
    """How elements of these types are multiplied here, and the element type that the operands are brought to."""
    wide = ev.vector_bits == 512
    if a != b and not (lt.is_float8(a) and lt.is_float8(b)):
        return None
    if (
        a == "bf16"
        and wide
        and "avx512bf16" in ev.features
        and ev.arch.startswith(_FAST_BF16)
        and acc == "f32"
    ):
        return mk.BF16, "bf16"
    if a == "i8" and wide and "avx512vnni" in ev.features and acc == "i32":
        return mk.VNNI, "i8"
    if a == "i8" and acc == "i32" and "sse2" in ev.features:
        return mk.PAIRS, "i16"  # exact, which pmaddubsw is not: it saturates at 16 bits
    if lt.is_float8(a) and acc in ("f32", "f16"):
        return mk.F32, "f32"
    if a in ("f16", "bf16", "f32") and acc in ("f32", "f16", "bf16"):
        return mk.F32, "f32"
    if a == "f64" and acc == "f64":
        return mk.F64, "f64"
    if lt.is_int(a) and acc == "i32":
        return mk.I32, "i32"
    return None


@handles("tt.dot")
def dot(low: Lowering, op: Op) -> None:
    ev = low.ev
    if products(low, [op]):
        return
    a, b, c = (low.tensor(v) for v in op.operands)
    found = product_of(ev, a.elem, b.elem, c.elem)
    if found is None:
        raise UnsupportedOperation(
            op.name, op.location or None, f"{a.elem} x {b.elem} accumulated in {c.elem}"
        )
    product, elem = found
    if product.step > a.shape[-1]:
        product, elem = (mk.F32, "f32") if product is mk.BF16 else (mk.I32, "i32")
    acc_elem = {"float": "f32", "double": "f64", "i32": "i32"}[product.acc]
    wide_c = c if c.elem == acc_elem else cast(c, acc_elem)
    fresh = is_zero(c) and product.kind != "vnni"  # whose sums start from a correction for the signs of A
    buffer = new_buffer(low.code, acc_elem, c.shape) if fresh else accumulator(low, op, wide_c)
    if not is_row_major(buffer):
        buffer = materialise(ev, stored(buffer), into=new_buffer(low.code, acc_elem, buffer.shape))
    a, b = cast(a, elem), cast(b, elem)
    if len(a.shape) == 3:
        batches(low, a, b, buffer, lambda x, y, z: _multiply(low, product, x, y, z, fresh=fresh))
    else:
        versions(
            ev,
            [identity(a), identity(b)],
            lambda: _multiply(low, product, a, b, buffer, op, fresh),
            apart=True,
        )
    result = stored(buffer)
    low.set_tensor(op.results[0], result if c.elem == acc_elem else cast(result, c.elem))


def products(low: Lowering, ops: Sequence[Op]) -> bool:
    """Products on one accumulator whose rows of A lie here and there, without a copy of them; False for others."""
    ev = low.ev
    lefts, rights = ([low.tensor(op.operands[n]) for op in ops] for n in (0, 1))
    c = low.tensor(ops[0].operands[2])
    found = product_of(ev, lefts[0].elem, rights[0].elem, c.elem)
    depths = {rows_apart(ev, a) for a in lefts}
    depth = depths.pop()
    if found is None or depth is None or depths:
        return False
    product, elem = found
    if product.kind != "fma" or c.elem not in ("f32", "f64"):
        return False
    if not (elem == lefts[0].elem == rights[0].elem):
        return False
    m, n = c.shape
    lanes = min(ev.vector_bits // (64 if product.acc == "double" else 32), n)
    rows, vectors = register_block(micro_kernels(ev.vector_bits), m, n, lanes)
    with low.code.nest():
        width = vectors * lanes
        panels = tuple(_panel_in_place(ev, b, m, width, depth) for b in rights)
        first = panels[0]
        if first is None or any(b is None or (b.row, b.step) != (first.row, first.step) for b in panels):
            return False
        fresh = is_zero(c)
        buffer = new_buffer(low.code, c.elem, c.shape) if fresh else accumulator(low, ops[0], c)
        if not is_row_major(buffer):
            buffer = materialise(ev, stored(buffer), into=new_buffer(low.code, c.elem, buffer.shape))
        places = tuple(b for b in panels if b is not None)
        work = Products(product, tuple(lefts), places, buffer, depth, width, (rows, vectors))
        add_products(low, work, ops[-1], fresh)
    low.set_tensor(ops[-1].results[0], stored(buffer))
    return True


def cast(t: Tensor, elem: str) -> Tensor:
    """The tensor in another element type, lazily."""
    if t.elem == elem:
        return t

    def emit(ev: Evaluator, args: list[str], lanes: int | None) -> str:
        if lt.is_float(elem):
            return convert(ev, args[0], t.elem, elem, lanes)
        return ev.code.let(f"sext {lt.typed(t.elem, lanes)} {args[0]} to {lt.typed(elem, lanes)}")

    return Elementwise(t.shape, elem, name="cast", args=(t,), emit=emit)


def accumulator(low: Lowering, op: Op, c: Tensor) -> Buffer:
    """Where C is accumulated: in place in the buffer of a loop-carried value that nothing else reads."""
    value = op.operands[2]
    if c.buffer is not None and _single_use(low, value) and c.buffer.pointer in low.carried:
        return c.buffer
    if c.buffer is None and _single_use(low, value):
        for pointer, (arg, buffer) in low.carried.items():
            fits = buffer.shape == c.shape and buffer.elem == c.elem and pointer == buffer.pointer
            if fits and _only_path(low, value, arg) and _reads(low.ev, c, buffer) == "here":
                return materialise(low.ev, c, into=buffer)
    return materialise(low.ev, c)


def _only_path(low: Lowering, value: Value, arg: Value) -> bool:
    """Whether nothing but `value` is computed from `arg`: updating in place then changes nothing else."""

    def depends(v: Value) -> bool:
        return v is arg or (v.op is not None and any(depends(o) for o in v.op.operands))

    def alone(v: Value) -> bool:
        if not depends(v):
            return True
        return _single_use(low, v) and (v is arg or all(alone(o) for o in v.op.operands))  # type: ignore[union-attr]

    return depends(value) and alone(value)


def _single_use(low: Lowering, v: Value) -> bool:
    return low.use_counts.get(v, 0) == 1


def _multiply(
    low: Lowering, p: mk.Product, a: Tensor, b: Tensor, c: Buffer, op: Op | None = None, fresh: bool = False
) -> None:
    ev, code = low.ev, low.code
    m, k = a.shape
    n = b.shape[1]
    lanes = min(ev.vector_bits // (64 if p.acc == "double" else 32), n)
    rows, vectors = register_block(micro_kernels(ev.vector_bits), m, n, lanes)
    if p.step > 1 and lanes != ev.lanes:
        p, a, b = (mk.F32, cast(a, "f32"), cast(b, "f32")) if p.kind == "bf16" else (
            mk.I32, cast(a, "i32"), cast(b, "i32"))  # fmt: skip
    left = _in_place(ev, a, p.step) or pack_rows(low, p, a)
    panels = vectors * lanes
    compensation = None
    in_place = _panel_in_place(ev, b, m, panels) if p.step == 1 else _stored_steps(ev, b, p.step, panels)
    if in_place is not None:
        b_pointer, b_row, b_panel = in_place.pointer, in_place.step, in_place.row
    else:
        b_pointer = pack_panels(low, p, b, vectors, lanes)
        b_row, b_panel = panels, (k // p.step) * panels
        if p.kind == "vnni":
            compensation = compensate
    shape = mk.Shape(rows, vectors, lanes, k)
    live = m if op is None else live_rows(low, op, rows)
    spans = strips(low, (rows, vectors), m, live)
    a_row, a_step, b_step = (n if isinstance(n, int) else None for n in (left.row, left.step, b_row))
    next_rows = left.elsewhere and m > rows and mk.spare_loads(shape)
    layout = mk.Layout(a_row, a_step, b_step, next_rows=next_rows, fresh=fresh)
    # What follows in memory is asked for early where panels are read in place: by as many strips as there are lines
    # in the steps that one iteration takes, each asking for its part.
    step_bytes = panels * (8 if p.acc == "double" else 4)
    (_, reach, height), *_ = spans
    count = reach // height if isinstance(reach, int) else m // height
    asking = max(1, min(count, step_bytes * mk.unroll(p, shape) // mk.LINE_BYTES))
    following = in_place is not None and b_row == panels
    ahead = _distance(m, k // p.step * step_bytes) if following else 0
    size = "float" if p.acc == "float" else p.acc

    def block(column: Operand, rows: int, share: int, row: Operand) -> None:
        a_at = _advance(ev, left.pointer, p.a_type, code.mul(row, left.row))
        if isinstance(b_panel, int):
            start = code.mul(column, b_panel // panels)
        else:
            start = code.mul(code.let(f"udiv i64 {column}, {panels}") if column != 0 else 0, b_panel)
        b_at = _advance(ev, b_pointer, size, start)
        c_at = _advance(ev, c.pointer, size, code.add(code.mul(row, c.strides[0]), column))
        symbol, text, declared = mk.function(p, replace(shape, rows=rows), replace(layout, ahead=share))
        for d in declared:
            code.declare(d, d)
        code.declare(symbol, text)
        extra = ""
        if share:
            part = share * (k // p.step) // rows
            extra = f", ptr {_advance(ev, b_at, 'i8', code.add(code.mul(row, part), ahead))}"
        code.line(
            f"  call void {symbol}(ptr {a_at}, i64 {left.row}, i64 {left.step}, ptr {b_at}, i64 {b_row}, "
            f"ptr {c_at}, i64 {c.strides[0]}{extra})"
        )

    def column(index: Operand) -> None:
        if compensation is not None:
            compensation(low, index, b_pointer, b_row, k, c, vectors, lanes, m)
        for n, (start, end, height) in enumerate(spans):
            if ahead and n == 0:
                asked = least(low, end, asking * height)
                over_rows(low, start, asked, height, partial(block, index, height, step_bytes // asking))
                start = asked
            over_rows(low, start, end, height, partial(block, index, height, 0))

    code.loop(n, column, step=panels)


def _distance(m: int, block_bytes: int) -> int:
    """Bytes from a panel's place in memory to what is asked for meanwhile: its next block of k, which the strips of
    this one do not touch; a short way where so few rows use it that the hardware keeps up and only the start is late.
    """
    return block_bytes if m > _STREAMED_ROWS else min(block_bytes, _STREAM_BYTES)


def _advance(ev: Evaluator, pointer: str, type: str, offset: Operand) -> str:
    return pointer if offset == 0 else ev.code.let(f"getelementptr {type}, ptr {pointer}, i64 {offset}")


def _linear_load(ev: Evaluator, t: Tensor, dim: int = 0, needed: int | None = None):
    """(form, pointer type) of a plain load whose address is linear and that needs no mask in this version, or none but
    the one that ends it after `needed` places along `dim`. What lies behind them is then not to be read, and is zero.
    """
    if not isinstance(t, Load) or t.buffer is not None or t.volatile:
        return None
    short = needed is not None and needed < t.shape[dim]
    if short or (t.mask is not None and not ev.holds(t.mask)):
        if t.mask is None or not short or not (t.other is None or is_zero(t.other)):
            return None
        if any(dim not in m.varies and not ev.holds(m) for m in conjuncts(t.mask)):
            return None
        if counted(ev, t, dim) != needed:
            return None
    form = t.pointer.linear(ev, ev.mode.forms)
    if form.pointer is None or t.pointer.buffer is not None:
        return None
    return form


def _in_place(ev: Evaluator, a: Tensor, step: int) -> mk.Strip | None:
    """A where it lies. Pairs and quads need consecutive k."""
    if a.buffer is not None:
        strides = a.buffer.strides
        if step > 1 and strides[1] != 1:
            return None
        if step > 1:  # rows of packed elements: count in units of the packed type
            whole = a.elem == "bf16" and strides[0] % step == 0
            return mk.Strip(a.buffer.pointer, strides[0] // step, 1) if whole else None
        return mk.Strip(a.buffer.pointer, strides[0], strides[1])
    form = _linear_load(ev, a)
    if form is None or form.terms:
        return None
    if step > 1:
        if (
            a.elem != "bf16"
            or form.strides[1] != 1
            or not isinstance(form.strides[0], int)
            or form.strides[0] % step
        ):
            return None
        pointer = _advance(ev, form.pointer, lt.storage(a.elem), form.base)
        return mk.Strip(pointer, form.strides[0] // step, 1, elsewhere=True)
    pointer = _advance(ev, form.pointer, lt.storage(a.elem), form.base)
    return mk.Strip(pointer, form.strides[0], form.strides[1], elsewhere=True)


def _panel_in_place(
    ev: Evaluator, b: Tensor, m: int, width: int, depth: int | None = None
) -> mk.Strip | None:
    """B where it lies: packed in panels, or rows that are contiguous, and either close together or used too little
    to be worth packing. `row` of the result is the distance between panels of `width` columns; only `depth` rows are
    read, if given."""
    if b.buffer is not None:
        ok = b.buffer.strides[1] == 1
        return mk.Strip(b.buffer.pointer, width, b.buffer.strides[0]) if ok else None
    if isinstance(b, Merged):
        return _stored_panels(ev, b, width, depth)
    form = _linear_load(ev, b, 0, depth)
    if form is None or form.terms or form.strides[1] != 1:
        return None
    near = isinstance(form.strides[0], int) and abs(form.strides[0]) <= _NEAR_ROWS
    if not near and m > IN_PLACE_ROWS:
        return None
    return mk.Strip(_advance(ev, form.pointer, lt.storage(b.elem), form.base), width, form.strides[0])


def _stored_panels(ev: Evaluator, b: Merged, width: int, depth: int | None) -> mk.Strip | None:
    """B that lies in memory as [panel][k][width], as constant operands are packed once for all calls."""
    view: Tensor = b.source
    order: tuple[int, ...] = (0, 1, 2)
    if isinstance(view, Remap) and view.buffer is None and None not in view.source_dims:
        order, view = tuple(view.source_dims.index(d) for d in order), view.source
    form = _linear_load(ev, view, order[0], depth)
    if form is None or form.terms:
        return None
    step, panel, column = (form.strides[d] for d in order)
    if b.source.shape[2] != width or column != 1:
        return None
    return mk.Strip(_advance(ev, form.pointer, lt.storage(b.elem), form.base), panel, step)


def _stored_steps(ev: Evaluator, b: Tensor, step: int, width: int) -> mk.Strip | None:
    """B that lies in memory as [panel][k / step][width][step], in units of `step` elements."""
    if not isinstance(b, Interleaved) or b.source.shape[-1] != step or b.source.shape[-2] != width:
        return None
    form = _linear_load(ev, b.source)
    if form is None or form.terms or form.strides[-1] != 1 or form.strides[-2] != step:
        return None
    apart = (form.strides[0], form.strides[1] if len(form.strides) == 4 else 0)
    if any(not isinstance(n, int) or n % step for n in apart):
        return None
    pointer = _advance(ev, form.pointer, lt.storage(b.elem), form.base)
    return mk.Strip(pointer, apart[1] // step, apart[0] // step)
