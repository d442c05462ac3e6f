"""Register-blocked inner products: text of the innermost loops of tl.dot.

One function multiplies an MR × K strip of A with a K × (NV vectors) panel of B and adds to an MR × NV block of C held
in registers. B is read as whole vectors, A as broadcast elements (`step` of them at a time for bf16 and int8 products).
"""

from __future__ import annotations

from dataclasses import dataclass


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
    step: how many k one step consumes. kind: fma | mul (integers) | bf16 | vnni.
    """

    kind: str
    acc: str
    a_type: str
    step: int = 1


F32 = Product("fma", "float", "float")
F64 = Product("fma", "double", "double")
I32 = Product("mul", "i32", "i32")
BF16 = Product("bf16", "float", "i32", 2)
VNNI = Product("vnni", "i32", "i32", 4)

_DPBF16 = "llvm.x86.avx512bf16.dpbf16ps.512"
_DPBUSD = "llvm.x86.avx512.vpdpbusd.512"


def function(p: Product, s: Shape, a_step: int | None, prefetch: bool = False) -> tuple[str, str, list[str]]:
    """(symbol, text, declarations). `a_step` is the distance in `a_type` elements between steps, None if dynamic.

    Arguments: ptr a, i64 a_row (a_type elements), i64 a_step, ptr b, i64 b_row (accumulator-sized elements between
    steps), ptr c, i64 c_row (elements).
    """
    stride = "x" if a_step is None else str(a_step)
    symbol = (
        f"@dot_{p.kind}_{p.acc}_{s.rows}x{s.vectors}x{s.lanes}_k{s.k}_a{stride}{'_ahead' if prefetch else ''}"
    )
    vec = f"<{s.lanes} x {p.acc}>"
    steps = s.k // p.step
    out = [
        f"define internal void {symbol}(ptr noalias %a, i64 %a_row, i64 %a_step, ptr noalias %b, i64 %b_row, "
        f"ptr noalias %c, i64 %c_row"
        f"{', ptr %ahead, i64 %ahead_step' if prefetch else ''}) noinline {{",
        "entry:",
    ]
    for m in range(s.rows):
        out.append(f"  %ar{m} = mul nsw i64 %a_row, {m}")
        out.append(f"  %ap{m} = getelementptr {p.a_type}, ptr %a, i64 %ar{m}")
        out.append(f"  %cr{m} = mul nsw i64 %c_row, {m}")
        for v in range(s.vectors):
            out.append(f"  %co{m}.{v} = add nsw i64 %cr{m}, {v * s.lanes}")
            out.append(f"  %cp{m}.{v} = getelementptr {p.acc}, ptr %c, i64 %co{m}.{v}")
            out.append(f"  %ci{m}.{v} = load {vec}, ptr %cp{m}.{v}, align 4")
    out += ["  br label %loop", "loop:", "  %k = phi i64 [ 0, %entry ], [ %k.next, %loop ]"]
    cells = [(m, v) for m in range(s.rows) for v in range(s.vectors)]
    for m, v in cells:
        out.append(f"  %acc{m}.{v} = phi {vec} [ %ci{m}.{v}, %entry ], [ %new{m}.{v}, %loop ]")
    out.append("  %bo = mul nsw i64 %k, %b_row")
    for v in range(s.vectors):
        out.append(f"  %bi{v} = add nsw i64 %bo, {v * s.lanes}")
        out.append(f"  %bp{v} = getelementptr {p.acc}, ptr %b, i64 %bi{v}")
        out.append(f"  %bv{v} = load {vec}, ptr %bp{v}, align 4")
    if prefetch:
        out.append("  %fo = mul nsw i64 %k, %ahead_step")
        out.append("  %fp = getelementptr i8, ptr %ahead, i64 %fo")
        out.append("  call void @llvm.prefetch.p0(ptr %fp, i32 0, i32 2, i32 1)")
    step = "%a_step" if a_step is None else str(a_step)
    out.append(f"  %ao = mul nsw i64 %k, {step}")
    for m in range(s.rows):
        out.append(f"  %al{m} = getelementptr {p.a_type}, ptr %ap{m}, i64 %ao")
        out.append(f"  %as{m} = load {p.a_type}, ptr %al{m}, align 1")
        wide = f"<{s.lanes} x {p.a_type}>"
        out.append(f"  %ai{m} = insertelement {wide} poison, {p.a_type} %as{m}, i64 0")
        out.append(
            f"  %av{m} = shufflevector {wide} %ai{m}, {wide} poison, <{s.lanes} x i32> zeroinitializer"
        )
        for v in range(s.vectors):
            out += _step(p, s, vec, m, v)
    out += [
        "  %k.next = add nuw nsw i64 %k, 1",
        f"  %more = icmp ult i64 %k.next, {steps}",
        "  br i1 %more, label %loop, label %done, !llvm.loop !UNROLL",
        "done:",
    ]
    out += [f"  store {vec} %new{m}.{v}, ptr %cp{m}.{v}, align 4" for m, v in cells]
    out += ["  ret void", "}"]
    declared = ["declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"] if prefetch else []
    return symbol, "\n".join(out), declared + _declarations(p, s, vec)


def _step(p: Product, s: Shape, vec: str, m: int, v: int) -> list[str]:
    old, new, b = f"%acc{m}.{v}", f"%new{m}.{v}", f"%bv{v}"
    if p.kind == "fma":
        suffix = f"v{s.lanes}{'f32' if p.acc == 'float' else 'f64'}"
        return [f"  {new} = call {vec} @llvm.fma.{suffix}({vec} %av{m}, {vec} {b}, {vec} {old})"]
    if p.kind == "mul":
        return [f"  %mu{m}.{v} = mul {vec} %av{m}, {b}", f"  {new} = add {vec} {old}, %mu{m}.{v}"]
    if p.kind == "bf16":
        pairs = "<32 x bfloat>"
        return [
            f"  %ac{m}.{v} = bitcast <16 x i32> %av{m} to {pairs}",
            f"  %bc{m}.{v} = bitcast <16 x float> {b} to {pairs}",
            f"  {new} = call {vec} @{_DPBF16}({vec} {old}, {pairs} %ac{m}.{v}, {pairs} %bc{m}.{v})",
        ]
    quads = "<64 x i8>"
    return [
        f"  %ac{m}.{v} = bitcast <16 x i32> %av{m} to {quads}",
        f"  %bc{m}.{v} = bitcast <16 x i32> {b} to {quads}",
        f"  {new} = call {vec} @{_DPBUSD}({vec} {old}, {quads} %ac{m}.{v}, {quads} %bc{m}.{v})",
    ]


def _declarations(p: Product, s: Shape, vec: str) -> list[str]:
    if p.kind == "fma":
        suffix = f"v{s.lanes}{'f32' if p.acc == 'float' else 'f64'}"
        return [f"declare {vec} @llvm.fma.{suffix}({vec}, {vec}, {vec})"]
    if p.kind == "bf16":
        return [f"declare {vec} @{_DPBF16}({vec}, <32 x bfloat>, <32 x bfloat>)"]
    if p.kind == "vnni":
        return [f"declare {vec} @{_DPBUSD}({vec}, <64 x i8>, <64 x i8>)"]
    return []
