"""Register-blocked inner products: text of the innermost loops of tl.dot.

One function multiplies an MR × K strip of A with a K × (NV vectors) panel of B and adds to an MR × NV block of C held
in registers. B is read as whole vectors, A as broadcast elements (`step` of them at a time for bf16 and int8 products).
"""

from __future__ import annotations

from dataclasses import dataclass

from torchroller.triton_cpu.lowering.code import Operand


@dataclass(frozen=True)
class Shape:
    """Register block: `rows` × `vectors` accumulators of `lanes` elements; `k` is the depth of one call."""

    rows: int
    vectors: int
    lanes: int
    k: int


@dataclass(frozen=True)
class Product:
    """What one multiply-accumulate step is.

    acc: LLVM element type of C. a_type: what is broadcast from A (i32 for packed pairs and quads).
    step: how many k one step consumes. kind: fma | mul (integers) | pairs (of i16, added in i32) | bf16 | vnni.
    """

    kind: str
    acc: str
    a_type: str
    step: int = 1


F32 = Product("fma", "float", "float")
F64 = Product("fma", "double", "double")
I32 = Product("mul", "i32", "i32")
PAIRS = Product("pairs", "i32", "i32", 2)
BF16 = Product("bf16", "float", "i32", 2)
VNNI = Product("vnni", "i32", "i32", 4)


@dataclass(frozen=True)
class Strip:
    """An operand in memory: pointer, distance between rows, distance between k steps (elements of its type).

    elsewhere: not written by this program, so it may have to come from a distant cache.
    """

    pointer: str
    row: Operand
    step: Operand
    elsewhere: bool = False


LINE_BYTES = 64
_DPBF16 = "llvm.x86.avx512bf16.dpbf16ps.512"
_DPBUSD = "llvm.x86.avx512.vpdpbusd.512"
_PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def unroll(p: Product, s: Shape) -> int:
    """Steps written out per iteration: enough that counters and addresses vanish beside the multiply-adds.

    Measured on Zen 3, 4x2 vectors of fp32: 73 % of the FMA peak at 1, 97 % at 4.
    """
    steps = s.k // p.step
    return 4 if steps % 4 == 0 else steps if steps < 8 else 1


def spare_loads(s: Shape) -> bool:
    """Whether multiply-adds outnumber loads two to one: then prefetches of A cost nothing."""
    return s.rows * s.vectors >= 2 * (s.rows + s.vectors)


@dataclass(frozen=True)
class Layout:
    """Distances that are known when the kernel is written, else None: of A between rows and steps (`a_type`
    elements), of B between steps (accumulator-sized elements).

    ahead: bytes of memory that each step asks for in advance, from the address that the call is given; 0: none.
    next_rows: ask for the rows of A behind the ones of this call, which the next call reads.
    fresh: C starts from zero, whatever its memory holds.
    """

    a_row: int | None = None
    a_step: int | None = None
    b_row: int | None = None
    ahead: int = 0
    next_rows: bool = False
    fresh: bool = False

    def __str__(self) -> str:
        r, a, b = ("x" if n is None else str(n) for n in (self.a_row, self.a_step, self.b_row))
        suffix = (f"_ahead{self.ahead}" if self.ahead else "") + ("_rows" if self.next_rows else "")
        suffix += "_fresh" if self.fresh else ""
        return f"r{r}_a{a}_b{b}{suffix}"


def function(p: Product, s: Shape, layout: Layout) -> tuple[str, str, list[str]]:
    """(symbol, text, declarations).

    Arguments: ptr a, i64 a_row (a_type elements), i64 a_step, ptr b, i64 b_row, ptr c, i64 c_row (elements), and
    with `ahead` the ptr to prefetch from. Distances that `layout` knows are not read from the arguments.
    """
    symbol = f"@dot_{p.kind}_{p.acc}_{s.rows}x{s.vectors}x{s.lanes}_k{s.k}_{layout}"
    vec = f"<{s.lanes} x {p.acc}>"
    out = [
        f"define internal void {symbol}(ptr noalias %a, i64 %a_row, i64 %a_step, ptr noalias %b, i64 %b_row, "
        f"ptr noalias %c, i64 %c_row"
        f"{', ptr %ahead' if layout.ahead else ''}) noinline {{",
        "entry:",
    ]
    for m in range(s.rows):
        row = _times(out, f"%ar{m}", "%a_row" if layout.a_row is None else layout.a_row, m)
        out.append(f"  %ap{m} = getelementptr {p.a_type}, ptr %a, i64 {row}")
    _accumulators(out, p, s, layout.fresh)
    out.append("  br label %loop")
    _steps(out, p, s, layout, "entry", "from", "done")
    return symbol, _ended(out, p, s), [_DECLARE_PREFETCH, *_declarations(p, s, vec)]


def chain(p: Product, s: Shape, layout: Layout, members: int, height: int) -> tuple[str, str, list[str]]:
    """(symbol, text, declarations) of C += A0 B0 + A1 B1 + …, with C in registers throughout.

    Arguments: ptr rows, where each row of A lies: `members` times `height` pointers, of which the call takes the
    first `s.rows` of each member; ptr bs, `members` pointers; i64 b_at, the elements from each of them to the panel;
    i64 b_row, ptr c, i64 c_row as in `function`; with `ahead` also i64 bytes from a panel to what it prefetches.
    Steps along k are `layout.a_step` apart.
    """
    symbol = f"@chain{members}_{height}_{p.kind}_{p.acc}_{s.rows}x{s.vectors}x{s.lanes}_k{s.k}_{layout}"
    vec = f"<{s.lanes} x {p.acc}>"
    times = unroll(p, s)
    out = [
        f"define internal void {symbol}(ptr noalias %rows, ptr noalias %bs, i64 %b_at, i64 %b_row, "
        f"ptr noalias %c, i64 %c_row{', i64 %further' if layout.ahead else ''}) noinline {{",
        "entry:",
    ]
    _accumulators(out, p, s, layout.fresh)
    out += ["  br label %member", "member:", "  %t = phi i64 [ 0, %entry ], [ %t.next, %after ]"]
    for m, v in _cells(s):
        name = f"%acc{m}.{v}"
        out.append(f"  {name}.so = phi {vec} [ {name}.from, %entry ], [ {name}.{times}, %after ]")
    out.append(f"  %first = mul nsw i64 %t, {height}")
    for m in range(s.rows):
        out.append(f"  %number{m} = add nsw i64 %first, {m}")
        out.append(f"  %from{m} = getelementptr ptr, ptr %rows, i64 %number{m}")
        out.append(f"  %ap{m} = load ptr, ptr %from{m}, align 8")
    out += [
        "  %bt = getelementptr ptr, ptr %bs, i64 %t",
        "  %panels = load ptr, ptr %bt, align 8",
        f"  %b = getelementptr {p.acc}, ptr %panels, i64 %b_at",
        *(["  %ahead = getelementptr i8, ptr %b, i64 %further"] if layout.ahead else []),
        "  br label %loop",
    ]
    _steps(out, p, s, layout, "member", "so", "after")
    out += [
        "after:",
        "  %t.next = add nuw nsw i64 %t, 1",
        f"  %others = icmp ult i64 %t.next, {members}",
        "  br i1 %others, label %member, label %done",
    ]
    return symbol, _ended(out, p, s), [_DECLARE_PREFETCH, *_declarations(p, s, vec)]


def _steps(
    out: list[str], p: Product, s: Shape, layout: Layout, entry: str, start: str, following: str
) -> None:
    """The loop along k, entered from the block `entry` with the sums `%acc….<start>`; `following` comes after it."""
    vec, times = f"<{s.lanes} x {p.acc}>", unroll(p, s)
    out += ["loop:", f"  %k = phi i64 [ 0, %{entry} ], [ %k.next, %loop ]"]
    for m, v in _cells(s):
        name = f"%acc{m}.{v}"
        out.append(f"  {name}.0 = phi {vec} [ {name}.{start}, %{entry} ], [ {name}.{times}, %loop ]")
    _iteration(out, p, s, layout)
    out += [
        f"  %k.next = add nuw nsw i64 %k, {times}",
        f"  %more = icmp ult i64 %k.next, {s.k // p.step}",
        f"  br i1 %more, label %loop, label %{following}",
    ]


def _ended(out: list[str], p: Product, s: Shape) -> str:
    """The text of the function, with the block that stores the sums."""
    vec, times = f"<{s.lanes} x {p.acc}>", unroll(p, s)
    stores = [f"  store {vec} %acc{m}.{v}.{times}, ptr %cp{m}.{v}, align 4" for m, v in _cells(s)]
    return "\n".join([*out, "done:", *stores, "  ret void", "}"])


def _cells(s: Shape) -> list[tuple[int, int]]:
    return [(m, v) for m in range(s.rows) for v in range(s.vectors)]


def _accumulators(out: list[str], p: Product, s: Shape, fresh: bool) -> None:
    """Addresses of the block of C, `%cp`, and what the sums start from, `%acc….from`."""
    vec = f"<{s.lanes} x {p.acc}>"
    for m in range(s.rows):
        out.append(f"  %cr{m} = mul nsw i64 %c_row, {m}")
        for v in range(s.vectors):
            out.append(f"  %co{m}.{v} = add nsw i64 %cr{m}, {v * s.lanes}")
            out.append(f"  %cp{m}.{v} = getelementptr {p.acc}, ptr %c, i64 %co{m}.{v}")
            start = (
                f"bitcast {vec} zeroinitializer to {vec}" if fresh else f"load {vec}, ptr %cp{m}.{v}, align 4"
            )
            out.append(f"  %acc{m}.{v}.from = {start}")


def _iteration(out: list[str], p: Product, s: Shape, layout: Layout) -> None:
    """The steps from `%k` on that one iteration takes, of the rows at `%ap` and the panel at `%b`."""
    vec = f"<{s.lanes} x {p.acc}>"
    b_step = "%b_row" if layout.b_row is None else layout.b_row
    a_by = "%a_step" if layout.a_step is None else layout.a_step
    if layout.ahead:
        out.append(f"  %fo = mul nsw i64 %k, {layout.ahead}")
        for line in range(0, layout.ahead * unroll(p, s), LINE_BYTES):
            out.append(f"  %fo{line} = add nsw i64 %fo, {line}")
            out.append(f"  %fp{line} = getelementptr i8, ptr %ahead, i64 %fo{line}")
            out.append(_prefetch(f"%fp{line}"))
    out.append(f"  %bo = mul nsw i64 %k, {b_step}")
    out.append(f"  %bb = getelementptr {p.acc}, ptr %b, i64 %bo")
    out.append(f"  %ao = mul nsw i64 %k, {a_by}")
    out += [f"  %ab{m} = getelementptr {p.a_type}, ptr %ap{m}, i64 %ao" for m in range(s.rows)]
    if layout.next_rows and layout.a_row is not None:
        for m in range(s.rows):
            out.append(f"  %an{m} = getelementptr {p.a_type}, ptr %ab{m}, i64 {s.rows * layout.a_row}")
            out.append(_prefetch(f"%an{m}"))
    for u in range(unroll(p, s)):
        b_at, a_at = _times(out, f"%bu{u}", b_step, u), _times(out, f"%au{u}", a_by, u)
        out.append(f"  %bp{u} = getelementptr {p.acc}, ptr %bb, i64 {b_at}")
        for v in range(s.vectors):
            out.append(f"  %bp{v}.{u} = getelementptr {p.acc}, ptr %bp{u}, i64 {v * s.lanes}")
            out.append(f"  %bv{v}.{u} = load {vec}, ptr %bp{v}.{u}, align 4")
        for m in range(s.rows):
            wide = f"<{s.lanes} x {p.a_type}>"
            out.append(f"  %al{m}.{u} = getelementptr {p.a_type}, ptr %ab{m}, i64 {a_at}")
            out.append(f"  %as{m}.{u} = load {p.a_type}, ptr %al{m}.{u}, align 1")
            out.append(f"  %ai{m}.{u} = insertelement {wide} poison, {p.a_type} %as{m}.{u}, i64 0")
            spread = f"<{s.lanes} x i32> zeroinitializer"
            out.append(f"  %av{m}.{u} = shufflevector {wide} %ai{m}.{u}, {wide} poison, {spread}")
            for v in range(s.vectors):
                out += _step(p, s, vec, m, v, u)


_DECLARE_PREFETCH = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"


def _prefetch(pointer: str) -> str:
    """Into L2: until it is used, other data passes through L1."""
    return f"  call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)"


def _times(out: list[str], name: str, step: int | str, count: int) -> int | str:
    """`step` taken `count` times: a constant, or a line that computes it."""
    if isinstance(step, int) or count == 0:
        return count * step if isinstance(step, int) else 0
    if count == 1:
        return step
    out.append(f"  {name} = mul nsw i64 {step}, {count}")
    return name


def _step(p: Product, s: Shape, vec: str, m: int, v: int, u: int) -> list[str]:
    old, new, a, b = f"%acc{m}.{v}.{u}", f"%acc{m}.{v}.{u + 1}", f"%av{m}.{u}", f"%bv{v}.{u}"
    if p.kind == "fma":
        suffix = f"v{s.lanes}{'f32' if p.acc == 'float' else 'f64'}"
        return [f"  {new} = call {vec} @llvm.fma.{suffix}({vec} {a}, {vec} {b}, {vec} {old})"]
    if p.kind == "mul":
        return [f"  %mu{m}.{v}.{u} = mul {vec} {a}, {b}", f"  {new} = add {vec} {old}, %mu{m}.{v}.{u}"]
    if p.kind == "pairs":
        halves, at = f"<{2 * s.lanes} x i16>", f"{m}.{v}.{u}"
        return [
            f"  %ac{at} = bitcast {vec} {a} to {halves}",
            f"  %bc{at} = bitcast {vec} {b} to {halves}",
            f"  %mu{at} = call {vec} @{_PMADDWD[s.lanes]}({halves} %ac{at}, {halves} %bc{at})",
            f"  {new} = add {vec} {old}, %mu{at}",
        ]
    if p.kind == "bf16":
        pairs = "<32 x bfloat>"
        return [
            f"  %ac{m}.{v}.{u} = bitcast <16 x i32> {a} to {pairs}",
            f"  %bc{m}.{v}.{u} = bitcast <16 x float> {b} to {pairs}",
            f"  {new} = call {vec} @{_DPBF16}({vec} {old}, {pairs} %ac{m}.{v}.{u}, {pairs} %bc{m}.{v}.{u})",
        ]
    quads = "<64 x i8>"
    return [
        f"  %ac{m}.{v}.{u} = bitcast <16 x i32> {a} to {quads}",
        f"  %bc{m}.{v}.{u} = bitcast <16 x i32> {b} to {quads}",
        f"  {new} = call {vec} @{_DPBUSD}({vec} {old}, {quads} %ac{m}.{v}.{u}, {quads} %bc{m}.{v}.{u})",
    ]


def _declarations(p: Product, s: Shape, vec: str) -> list[str]:
    if p.kind == "fma":
        suffix = f"v{s.lanes}{'f32' if p.acc == 'float' else 'f64'}"
        return [f"declare {vec} @llvm.fma.{suffix}({vec}, {vec}, {vec})"]
    if p.kind == "pairs":
        halves = f"<{2 * s.lanes} x i16>"
        return [f"declare {vec} @{_PMADDWD[s.lanes]}({halves}, {halves})"]
    if p.kind == "bf16":
        return [f"declare {vec} @{_DPBF16}({vec}, <32 x bfloat>, <32 x bfloat>)"]
    if p.kind == "vnni":
        return [f"declare {vec} @{_DPBUSD}({vec}, <64 x i8>, <64 x i8>)"]
    return []
