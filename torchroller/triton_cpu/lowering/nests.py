"""Loop nests over tiles: which dimension becomes the vector, which versions are written, where values are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator, Mode
from torchroller.triton_cpu.lowering.masks import conjuncts
from torchroller.triton_cpu.lowering.prefix import Split, find_split
from torchroller.triton_cpu.lowering.values import Buffer, Dims, Load, Place, Stored, Tensor, row_major

Roots = list[tuple[Tensor, Dims]]

# Allocas up to this size stay on the stack, where LLVM may promote them to registers.
_STACK_BYTES = 4096
# Nests of up to this many vectors are written out: with constant offsets a small buffer lives in registers.
_WRITTEN_OUT = 8


def identity(t: Tensor) -> tuple[Tensor, Dims]:
    return t, tuple(range(len(t.shape)))


def new_buffer(code: Code, elem: str, shape: Sequence[int], order: Sequence[int] | None = None) -> Buffer:
    """Memory for a tile; `order` lists dimensions from slowest to fastest, default row-major."""
    shape = tuple(shape)
    strides = list(row_major(shape))
    if order is not None:
        run = 1
        for d in reversed(order):
            strides[d] = run
            run *= shape[d]
    total = lt.size_bytes(elem)
    for n in shape:
        total *= n
    if total <= _STACK_BYTES:
        pointer = code.alloca("i8", max(total, 1))
    else:
        pointer = code.scratch(total)
    return Buffer(pointer, elem, shape, tuple(strides))


def stride_along(ev: Evaluator, t: Tensor, dim: int) -> Operand | None:
    """Elements between neighbours of a pointer tensor along a dimension; None where the index is indirect."""
    form = t.linear(ev, True)
    if form.pointer is None or t.buffer is not None or any(dim in term.varies for term in form.terms):
        return None
    return form.strides[dim]


def vector_dim(ev: Evaluator, shape: Sequence[int], roots: Roots, stores: Roots = ()) -> int | None:  # type: ignore[assignment]
    """The dimension of the nest along which most accesses are contiguous; None for one-element tiles."""
    candidates = [d for d, n in enumerate(shape) if n > 1]
    if not candidates:
        return None
    accesses: list[tuple[Callable[[int], Operand | None], Dims, int]] = []
    for t, dims in ev.walk(roots):
        if t.buffer is not None:
            strides = t.buffer.strides
            accesses.append((lambda k, s=strides: s[k], dims, 1))  # type: ignore[misc]
        elif isinstance(t, Load):
            accesses.append((lambda k, p=t.pointer: stride_along(ev, p, k), dims, 2))  # type: ignore[misc]
    for t, dims in stores:
        accesses.append((lambda k, p=t: stride_along(ev, p, k), dims, 4))  # type: ignore[misc]

    def score(d: int) -> tuple[float, int]:
        total = 8.0 * min(shape[d], ev.lanes) / ev.lanes
        for stride, dims, weight in accesses:
            if d not in dims:
                continue
            total += weight * (2 if stride(dims.index(d)) == 1 else -3)
        return total, d

    return max(candidates, key=score)


def versions(
    ev: Evaluator,
    roots: Roots,
    write: Callable[[], None],
    masks: Sequence[Tensor] = (),
    apart: bool = False,
) -> None:
    """Write a consumer under what can be tested at run time: without masks, with masks, without linear forms.

    `apart`: test the masks of each root on its own, so that one that is never full does not slow down the others.
    """
    code = ev.code
    forms: dict[str, None] = {}
    groups: list[dict[str, None]] = [{}]
    for root in roots:
        if apart:
            groups.append({})
        for t, _ in ev.walk([root]):
            if lt.is_int(t.elem) or t.elem == "ptr":
                forms.update(dict.fromkeys(t.linear(ev, True).guards))
            if isinstance(t, Load) and t.buffer is None and t.mask is not None:
                groups[-1].update(_tests(ev, t.mask, whole=apart))
    for m in masks:
        groups[0].update(_tests(ev, m))
    saved = ev.mode

    def under(left: list[dict[str, None]], mode: Mode) -> None:
        if left:
            more = replace(mode, tests=mode.tests | frozenset(left[0]))
            test = code.both(list(left[0])) if left[0] else "true"
            _choose(code, test, lambda: under(left[1:], more), lambda: under(left[1:], mode))
            return
        ev.mode = mode
        write()
        ev.mode = saved

    linear = code.both(list(forms)) if forms else "true"
    _choose(code, linear, lambda: under(groups, Mode(forms=True)), lambda: under([], Mode()))


def _tests(ev: Evaluator, mask: Tensor, whole: bool = False) -> dict[str, None]:
    """Conditions under which those parts of a mask hold that can hold everywhere; or the `whole` of it."""
    if whole:
        return dict.fromkeys(ev.all_true(mask) or ())
    tests: dict[str, None] = {}
    for part in conjuncts(mask):
        conditions = ev.all_true(part) or ()
        if "false" not in conditions:
            tests.update(dict.fromkeys(conditions))
    return tests


def _choose(code: Code, condition: str, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    if condition in ("true", "false"):
        with code.nest():
            (then if condition == "true" else otherwise)()
    else:
        code.branch(condition, then, otherwise)


def over_tile(
    ev: Evaluator,
    shape: Sequence[int],
    vdim: int | None,
    body: Callable[[Place], None],
    split: Split | None = None,
    beyond: bool = True,
) -> None:
    """Visit every place of a tile once: scalar loops over all other dimensions, vectors along `vdim`.

    `split` cuts the loop along `vdim`; `beyond`: whether anything is to be done behind the end of its masks.
    """
    code = ev.code
    coords: list[Operand] = [0] * len(shape)
    outer = [d for d in range(len(shape)) if d != vdim]

    total = 1
    for d, n in enumerate(shape):
        total *= n if d != vdim else n // min(ev.lanes, n)
    written_out = total <= _WRITTEN_OUT

    def descend(k: int) -> None:
        if k < len(outer):
            if written_out:
                for position in range(shape[outer[k]]):
                    coords[outer[k]] = position
                    descend(k + 1)
                return

            def inner(index: Operand) -> None:
                coords[outer[k]] = index
                descend(k + 1)

            code.loop(shape[outer[k]], inner)
            return
        if vdim is None:
            body(Place(tuple(coords)))
            return
        lanes = min(ev.lanes, shape[vdim])

        def chunk(index: Operand) -> None:
            coords[vdim] = index
            body(Place(tuple(coords), vdim, lanes))

        if split is None:
            along(ev, 0, shape[vdim], lanes, chunk, written_out)
            return
        with ev.during(split.inside(ev.mode)):
            along(ev, 0, split.whole, lanes, chunk, written_out)
        along(ev, split.whole, split.end, lanes, chunk, written_out)
        if beyond:
            with ev.during(split.outside(ev.mode)):
                along(ev, split.end, shape[vdim], lanes, chunk, written_out)

    descend(0)


def along(
    ev: Evaluator,
    start: Operand,
    stop: Operand,
    step: int,
    body: Callable[[Operand], None],
    flat: bool = False,
) -> None:
    """`for i in range(start, stop, step): body(i)`; written out where the count is known and small, or `flat`."""
    if isinstance(start, int) and isinstance(stop, int):
        if flat or (stop - start) // step <= 4:
            for index in range(start, stop, step):
                body(index)
            return
        ev.code.dynamic_loop(start, stop, step, "i64", body, unroll=4, at_least_once=True)
        return
    ev.code.dynamic_loop(start, stop, step, "i64", body)


def materialise(ev: Evaluator, t: Tensor, into: Buffer | None = None) -> Buffer:
    """Evaluate a whole tile into memory. The caller decides whether `t` keeps the buffer."""
    buffer = into or new_buffer(ev.code, t.elem, t.shape)
    roots = [identity(t)]

    def write() -> None:
        vdim = vector_dim(ev, t.shape, roots)
        split = find_split(ev, roots, t.shape, vdim, ev.lanes)
        over_tile(ev, t.shape, vdim, lambda place: ev.store_buffer(buffer, place, ev.at(t, place)), split)

    versions(ev, roots, write)
    return buffer


def stored(buffer: Buffer) -> Stored:
    return Stored(buffer.shape, buffer.elem, buffer=buffer)


def reinterpreted(buffer: Buffer, shape: Sequence[int]) -> Buffer:
    """The same row-major memory under another shape."""
    return replace(buffer, shape=tuple(shape), strides=row_major(shape))
