"""tl.dot: types, shapes, layouts, accumulation, and the instructions of each CPU."""

from __future__ import annotations

import itertools

import pytest
import torch
import triton.language as tl
from oracle import assert_equal, needs_backend, ramp, sweep, triton

from torchroller.triton_cpu import ttir
from torchroller.triton_cpu.blocking import micro_kernels, register_block
from torchroller.triton_cpu.cpu import missing_on_host, select_cpu
from torchroller.triton_cpu.lowering.live import row_masks

pytestmark = needs_backend

CPUS = [
    name
    for name in ("haswell", "x86-64-v4", "cascadelake", "znver4")
    if not missing_on_host(select_cpu(name))
]
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6, torch.float64: 1e-14}
ACCUMULATOR = {torch.int8: tl.int32, torch.float64: tl.float64}


@triton.jit
def product(a, b, c, o, ar, ac, br, bc, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
            ACC: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    i, j, l = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)  # noqa: E741
    at_a, at_b = a + i[:, None] * ar + l[None, :] * ac, b + l[:, None] * br + j[None, :] * bc
    if MASKED:
        x = tl.load(at_a, mask=(i < m)[:, None] & (l < k)[None, :], other=0)
        y = tl.load(at_b, mask=(l < k)[:, None] & (j < n)[None, :], other=0)
    else:
        x, y = tl.load(at_a), tl.load(at_b)
    inside = (i < m)[:, None] & (j < n)[None, :]
    at_c = i[:, None] * N + j[None, :]
    z = tl.load(c + at_c).to(ACC)
    tl.store(o + at_c, tl.dot(x, y, z, out_dtype=ACC).to(o.dtype.element_ty), mask=inside)


def check(
    dtype: torch.dtype, m: int, n: int, k: int, layout: str = "nn", cut: int = 0, **options: object
) -> None:
    """One product of a tile of m × k by k × n, `cut` rows and columns of which are masked off."""
    a = ramp(m, k, dtype=dtype, seed=1) if layout[0] == "n" else ramp(k, m, dtype=dtype, seed=1).T
    b = ramp(k, n, dtype=dtype, seed=2) if layout[1] == "n" else ramp(n, k, dtype=dtype, seed=2).T
    kind = torch.int32 if dtype is torch.int8 else torch.float64 if dtype is torch.float64 else torch.float32
    c, out = ramp(m, n, dtype=kind, seed=3), torch.zeros(m, n, dtype=kind)
    mm, nn, kk = max(m - cut, 1), max(n - cut, 1), max(k - cut, 1)
    product[(1,)](a, b, c, out, *a.stride(), *b.stride(), mm, nn, kk, M=m, N=n, K=k,
                  ACC=ACCUMULATOR.get(dtype, tl.float32), MASKED=cut > 0, **options)  # fmt: skip
    a, b = a[:mm, :kk], b[:kk, :nn]
    if dtype is torch.int8:
        want = torch.zeros(m, n, dtype=torch.int64)
        want[:mm, :nn] = c[:mm, :nn] + a.long() @ b.long()
        assert_equal(out, want.int())
        return
    want = torch.zeros(m, n, dtype=torch.float64)
    want[:mm, :nn] = c[:mm, :nn].double() + a.double() @ b.double()
    # sums of k products, each rounded in the accumulator: the inputs are exact
    allowed = 4e-7 * k**0.5 * 4 if kind is torch.float32 else 1e-13
    assert (out.double() - want).abs().max() <= allowed * max(1.0, want.abs().max().item())


SIDES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
FEW = [(1, 1, 1), (1, 64, 16), (2, 16, 2), (4, 4, 4), (16, 1, 64), (8, 8, 64), (16, 16, 16), (16, 2, 8),
       (64, 64, 32), (32, 128, 64), (128, 32, 16)]  # fmt: skip
QUICK = [torch.float32, torch.bfloat16, torch.int8]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8]


@pytest.mark.parametrize("dtype", sweep(TYPES, QUICK), ids=str)
@pytest.mark.parametrize("shape", sweep(FEW, [(1, 64, 16), (4, 4, 4), (32, 128, 64)]))
def test_shapes(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    check(dtype, *shape)
    check(dtype, *shape, cut=3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_shapes(dtype: torch.dtype) -> None:
    for shape in itertools.product(SIDES, SIDES, SIDES):
        if shape[0] * shape[1] * shape[2] <= 1 << 18:
            check(dtype, *shape)


@pytest.mark.parametrize("dtype", sweep(TYPES, QUICK), ids=str)
@pytest.mark.parametrize("layout", sweep(["tn", "nt", "tt"], ["nt"]))
def test_transposed_operands(dtype: torch.dtype, layout: str) -> None:
    for shape in ((16, 32, 64), (4, 128, 16)):
        check(dtype, *shape, layout=layout)
        check(dtype, *shape, layout=layout, cut=5)


@pytest.mark.parametrize("cpu", sweep(CPUS, CPUS[:1]))
@pytest.mark.parametrize("dtype", sweep(TYPES, QUICK), ids=str)
def test_on_other_cpus(cpu: str, dtype: torch.dtype) -> None:
    for shape in ((1, 32, 8), (64, 32, 64), (4, 4, 32)):
        check(dtype, *shape, arch=cpu)
        check(dtype, *shape, layout="nt", cut=3, arch=cpu)


@triton.jit
def plain(a, b, o, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@pytest.mark.parametrize(("cpu", "dtype", "instruction", "absent"), [
    ("haswell", torch.float32, "vfmadd", "zmm"), ("x86-64-v4", torch.float32, "zmm", "vdpbf16ps"),
    ("znver4", torch.bfloat16, "vdpbf16ps", "vpdpbusd"), ("cascadelake", torch.bfloat16, "vfmadd", "vdpbf16ps"),
    ("cascadelake", torch.int8, "vpdpbusd", "ymm31"), ("x86-64-v4", torch.int8, "zmm", "vpdpbusd"),
])  # fmt: skip
def test_instructions(cpu: str, dtype: torch.dtype, instruction: str, absent: str) -> None:
    """Compiled only: this works for CPUs that this machine is not."""
    kind = "i32" if dtype is torch.int8 else "fp32"
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "i8"}[dtype]
    types = {"a": f"*{name}", "b": f"*{name}", "o": f"*{kind}", "N": "constexpr"}
    source = triton.compiler.ASTSource(plain, types, {(3,): 64})
    target = triton.backends.compiler.GPUTarget("cpu", cpu, 1)
    text = triton.compile(source, target=target).asm["asm"]
    assert instruction in text
    assert absent not in text


@triton.jit
def looped(a, b, o, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, l = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)  # noqa: E741
    acc = tl.zeros((M, N), tl.float32)
    for at in range(0, k, K):
        x = tl.load(a + i[:, None] * k + (at + l)[None, :], mask=(at + l)[None, :] < k, other=0.0)
        y = tl.load(b + (at + l)[:, None] * N + j[None, :], mask=(at + l)[:, None] < k, other=0.0)
        acc = tl.dot(x, y, acc)
    tl.store(o + i[:, None] * N + j[None, :], acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [16, 40, 100])
def test_accumulation_in_a_loop(dtype: torch.dtype, k: int) -> None:
    a, b, out = ramp(16, k, dtype=dtype), ramp(k, 32, dtype=dtype, seed=1), torch.empty(16, 32)
    looped[(1,)](a, b, out, k, M=16, N=32, K=16)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@triton.jit
def accumulator_used_elsewhere(a, b, o, n, N: tl.constexpr, WAY: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x, y = tl.load(a + i), tl.load(b + i)
    acc = x + y
    other = tl.zeros((N, N), tl.float32)
    for k in range(n):
        if WAY == 0:  # the old value is used after the product
            new = tl.dot(x, y, acc)
            other += acc
            acc = new
        elif WAY == 1:  # in a branch
            if k % 2 == 0:
                acc = tl.dot(x, y, acc)
            other += acc
        elif WAY == 2:  # an inner loop starts from the same value every time
            for _ in range(2):
                other += tl.dot(x, y, acc)
            acc += 1
        elif WAY == 3:  # scaled first, and the scaled value is used again
            scaled = acc * 0.5
            acc = tl.dot(x, y, scaled + 1)
            other += scaled
        elif WAY == 4:  # two products from one accumulator
            left, right = tl.dot(x, y, acc), tl.dot(y, x, acc)
            acc, other = left * 0.5, right * 0.5 + other
        else:  # the product feeds itself
            acc = tl.dot(acc * 0.1, y, tl.trans(acc))
    tl.store(o + i, acc)
    tl.store(o + N * N + i, other)


@pytest.mark.parametrize("way", range(6))
@pytest.mark.parametrize("side", sweep([4, 16, 64], [16]))
def test_an_accumulator_that_is_used_elsewhere_keeps_its_value(way: int, side: int) -> None:
    a, b, out = ramp(side, side) / side, ramp(side, side, seed=1) / side, torch.empty(2, side, side)
    accumulator_used_elsewhere[(1,)](a, b, out, 3, N=side, WAY=way)
    x, y = a.double(), b.double()
    acc, other = x + y, torch.zeros(side, side, dtype=torch.float64)
    for k in range(3):
        if way == 0:
            acc, other = acc + x @ y, other + acc
        elif way == 1:
            acc = acc + x @ y if k % 2 == 0 else acc
            other = other + acc
        elif way == 2:
            other = other + 2 * (acc + x @ y)
            acc = acc + 1
        elif way == 3:
            scaled = acc * 0.5
            acc, other = scaled + 1 + x @ y, other + scaled
        elif way == 4:
            acc, other = (acc + x @ y) * 0.5, (acc + y @ x) * 0.5 + other
        else:
            acc = (acc * 0.1) @ y + acc.T
    torch.testing.assert_close(out[0].double(), acc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1].double(), other, rtol=1e-4, atol=1e-5)


@triton.jit
def attention(q, k, v, o, n, scale, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr):
    row = tl.program_id(0) * M + tl.arange(0, M)
    d = tl.arange(0, D)
    query = tl.load(q + row[:, None] * D + d[None, :], mask=row[:, None] < n, other=0.0)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    for start in range(0, n, N):
        col = start + tl.arange(0, N)
        key = tl.load(k + col[None, :] * D + d[:, None], mask=col[None, :] < n, other=0.0)
        value = tl.load(v + col[:, None] * D + d[None, :], mask=col[:, None] < n, other=0.0)
        score = tl.dot(query, key) * scale
        allowed = (col < n)[None, :]
        if CAUSAL:
            allowed = allowed & (col[None, :] <= row[:, None])
        score = tl.where(allowed, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        shrink = tl.exp(top - new_top)
        p = tl.exp(score - new_top[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None])
        top = new_top
    tl.store(o + row[:, None] * D + d[None, :], acc / total[:, None], mask=row[:, None] < n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "d"), [(64, 32), (77, 16)])
def test_flash_attention(dtype: torch.dtype, causal: bool, n: int, d: int) -> None:
    q, k, v = (ramp(n, d, dtype=dtype, seed=s) for s in range(3))
    out = torch.empty(n, d)
    attention[(triton.cdiv(n, 32),)](q, k, v, out, n, d**-0.5, M=32, N=16, D=d, CAUSAL=causal)
    want = torch.nn.functional.scaled_dot_product_attention(
        *(t.double()[None, None] for t in (q, k, v)), is_causal=causal
    )[0, 0]
    assert (out.double() - want).abs().max() < {torch.float32: 1e-5}.get(dtype, 2 * ROUNDING[dtype])


@triton.jit
def half_result(a, b, o, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.zeros((N, N), tl.float16)
    acc = tl.dot(tl.load(a + i), tl.load(b + i), acc, out_dtype=tl.float16)
    tl.store(o + i, acc)


def test_half_accumulator() -> None:
    a, b = ramp(32, 32, dtype=torch.float16), ramp(32, 32, dtype=torch.float16, seed=1)
    out = torch.empty(32, 32, dtype=torch.float16)
    half_result[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=2e-3, atol=2e-2)


@triton.jit
def computed_operands(a, b, bias, o, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.exp(tl.load(a + i) * 0.1)
    y = tl.trans(tl.load(b + i)).to(tl.float32) * 0.5
    z = tl.dot(x, y) + tl.load(bias + tl.arange(0, N))[None, :]
    tl.store(o + i, tl.dot(z, x) + tl.sum(z, 0)[None, :])


@pytest.mark.parametrize("kind", [torch.int8, torch.float32, torch.bfloat16], ids=str)
def test_computed_and_chained_operands(kind: torch.dtype) -> None:
    a, b, bias, out = ramp(32, 32), (ramp(32, 32) * 3).to(kind), ramp(32), torch.empty(32, 32)
    computed_operands[(1,)](a, b, bias, out, N=32)
    x = (a.double() * 0.1).exp()
    z = x @ (b.double().T * 0.5) + bias.double()
    torch.testing.assert_close(out.double(), z @ x + z.sum(0), rtol=1e-4, atol=1e-3)


@triton.jit
def batched(a, b, o, n, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    h, i, j, l = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)  # noqa: E741
    x = tl.load(a + (h[:, None, None] * M + i[None, :, None]) * K + l[None, None, :])
    y = tl.load(b + (h[:, None, None] * K + l[None, :, None]) * N + j[None, None, :])
    acc = tl.dot(x, y, out_dtype=o.dtype.element_ty)
    for _ in range(n):
        acc = tl.dot(x, y, acc, out_dtype=o.dtype.element_ty)
    tl.store(o + (h[:, None, None] * M + i[None, :, None]) * N + j[None, None, :], acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (4, 16, 32, 16), (2, 4, 8, 4)])
def test_three_dimensions(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    h, m, n, k = shape
    a, b = ramp(h, m, k, dtype=dtype), ramp(h, k, n, dtype=dtype, seed=1)
    out = torch.empty(h, m, n, dtype=torch.int32 if dtype is torch.int8 else torch.float32)
    batched[(1,)](a, b, out, 2, *shape)
    torch.testing.assert_close(out.double(), 3 * (a.double() @ b.double()), rtol=1e-4, atol=1e-4)


@triton.jit
def eights(a, b, o, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_float_operands(kind: torch.dtype) -> None:
    a, b, out = ramp(32, 32).to(kind), ramp(32, 32, seed=1).to(kind), torch.empty(32, 32)
    eights[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


def compiled_assembly(cpu: str, types: dict[str, str], constants: dict[str, int], kernel: object) -> str:
    """Assembly of a kernel for a CPU that this machine need not be."""
    names = list(kernel.arg_names)  # type: ignore[attr-defined]
    source = triton.compiler.ASTSource(kernel, types, {(names.index(n),): v for n, v in constants.items()})
    return triton.compile(source, target=triton.backends.compiler.GPUTarget("cpu", cpu, 1)).asm["asm"]


def innermost_loop(text: str, symbol: str) -> list[str]:
    """Instructions of the loop of a micro-kernel."""
    lines = [line.strip() for line in text.split(f"\n{symbol}", 1)[1].splitlines()]
    labels = {line.rstrip(":"): n for n, line in enumerate(lines) if line.endswith(":")}
    for n, line in enumerate(lines):
        target = line.split()[-1] if line.startswith("j") else ""
        if target in labels and labels[target] < n:
            return [x for x in lines[labels[target] + 1 : n + 1] if x and not x.startswith((".", "#"))]
    raise AssertionError(f"{symbol} has no loop")


@pytest.mark.parametrize(
    ("cpu", "symbol", "register", "multiply_adds"),
    [("haswell", "dot_fma_float_4x2x8", "ymm", 32), ("znver3", "dot_fma_float_4x2x8", "ymm", 32),
     ("x86-64-v4", "dot_fma_float_4x4x16", "zmm", 64), ("znver5", "dot_fma_float_4x4x16", "zmm", 64)],
)  # fmt: skip
def test_the_micro_kernel_keeps_its_accumulators_in_registers(
    cpu: str, symbol: str, register: str, multiply_adds: int
) -> None:
    """Steps are written out, nothing is spilled, and there is little beside loads and multiply-adds."""
    text = compiled_assembly(
        cpu, {"a": "*fp32", "b": "*fp32", "o": "*fp32", "N": "constexpr"}, {"N": 64}, plain
    )
    loop = innermost_loop(text, symbol)
    assert sum(x.startswith("vfmadd") and register in x for x in loop) == multiply_adds
    assert not [x for x in loop if "(%rsp" in x or "(%rbp" in x and x.startswith("vmov")]
    assert not [x for x in loop if x.startswith("vmov") and x.rstrip().endswith(")")]  # no stores
    beside = [x for x in loop if not x.startswith(("vfmadd", "vbroadcast", "vmov", "prefetch"))]
    assert len(beside) <= 12, beside


def test_eight_bit_products_are_exact_at_the_ends_of_their_range() -> None:
    """-128 x -128 in both places of every pair is what saturating instructions get wrong."""
    a = torch.tensor([-128, -128, 127, -128], dtype=torch.int8).repeat(64, 16)
    b = torch.tensor([-128, -128, -128, 127], dtype=torch.int8).repeat(64, 16).T.contiguous()
    out = torch.zeros(64, 64, dtype=torch.int32)
    c = torch.zeros(64, 64, dtype=torch.int32)
    product[(1,)](a, b, c, out, *a.stride(), *b.stride(), 64, 64, 64, M=64, N=64, K=64,
                  ACC=tl.int32, MASKED=False)  # fmt: skip
    assert_equal(out, (a.long() @ b.long()).int())


@pytest.mark.parametrize(("cpu", "instruction"), [("haswell", "vpmaddwd"), ("x86-64-v4", "vpmaddwd"),
                                                  ("cascadelake", "vpdpbusd")])  # fmt: skip
def test_eight_bit_products_multiply_in_pairs(cpu: str, instruction: str) -> None:
    text = compiled_assembly(cpu, {"a": "*i8", "b": "*i8", "o": "*i32", "N": "constexpr"}, {"N": 64}, plain)
    assert instruction in text
    assert "vpmulld" not in text
    assert "pmaddubsw" not in text


@triton.jit
def panelled(a, b, o, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, W: tl.constexpr):
    i, p, w = tl.arange(0, M), tl.arange(0, N // W), tl.arange(0, W)
    acc = tl.zeros((M, N), tl.float32)
    for at in range(0, k, K):
        l = at + tl.arange(0, K)  # noqa: E741
        x = tl.load(a + i[:, None] * k + l[None, :], mask=l[None, :] < k, other=0.0)
        where = p[None, :, None] * k * W + l[:, None, None] * W + w[None, None, :]
        y = tl.reshape(tl.load(b + where, mask=l[:, None, None] < k, other=0.0), (K, N))
        acc = tl.dot(x, y, acc)
    tl.store(o + i[:, None] * N + tl.arange(0, N)[None, :], acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [8, 16, 32, 64])  # also those that no register block of this CPU reads
@pytest.mark.parametrize(("m", "k"), [(1, 33), (4, 64), (64, 100)])
def test_an_operand_in_panels(dtype: torch.dtype, width: int, m: int, k: int) -> None:
    a, b, out = ramp(m, k, dtype=dtype), ramp(k, 64, dtype=dtype, seed=1), torch.empty(m, 64)
    panels = b.reshape(k, 64 // width, width).transpose(0, 1).contiguous()
    panelled[(1,)](a, panels, out, k, M=m, N=64, K=32, W=width)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("cpu", "m", "lines"),  # four steps an iteration, each of 64 columns on AVX-512, of 16 on AVX2
    [("znver5", 4, 16), ("znver5", 16, 4), ("znver5", 128, 1), ("haswell", 4, 4), ("haswell", 64, 1)],
)
def test_every_line_of_the_next_block_is_asked_for_once(cpu: str, m: int, lines: int) -> None:
    """The calls that share a panel ask together for as many lines as they read: too few, and rows wait for memory."""
    wide = 64 if cpu == "znver5" else 16
    types = {"a": "*fp32", "b": "*fp32", "o": "*fp32", "k": "i32", **dict.fromkeys("MNKW", "constexpr")}
    text = compiled_assembly(cpu, types, {"M": m, "N": 2 * wide, "K": 32, "W": wide}, panelled)
    symbol = next(x for x in text.splitlines() if x.startswith("dot_fma") and "_ahead" in x)
    loop = innermost_loop(text, symbol)
    assert sum(x.startswith("prefetch") for x in loop) == lines


@triton.jit
def interleaved(
    a, b, o, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, W: tl.constexpr, S: tl.constexpr
):
    i, p, w, s = tl.arange(0, M), tl.arange(0, N // W), tl.arange(0, W), tl.arange(0, S)
    acc = tl.zeros((M, N), tl.float32)
    for at in range(0, k, K):
        l = at + tl.arange(0, K)  # noqa: E741
        x = tl.load(a + i[:, None] * k + l[None, :])
        step = at // S + tl.arange(0, K // S)
        where = (
            p[None, :, None, None] * k * W
            + step[:, None, None, None] * W * S
            + w[None, None, :, None] * S
            + s
        )
        y = tl.reshape(tl.permute(tl.load(b + where), (0, 3, 1, 2)), (K, N))
        acc = tl.dot(x, y, acc)
    tl.store(o + i[:, None] * N + tl.arange(0, N)[None, :], acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize(("m", "width"), [(1, 64), (4, 16), (16, 32), (64, 64)])
def test_an_operand_with_neighbours_along_k_side_by_side(
    dtype: torch.dtype, step: int, m: int, width: int
) -> None:
    k, n = 64, 128
    a, b, out = ramp(m, k, dtype=dtype), ramp(k, n, dtype=dtype, seed=1), torch.empty(m, n)
    stored = b.reshape(k // step, step, n // width, width).permute(2, 0, 3, 1).contiguous()
    interleaved[(1,)](a, stored, out, k, M=m, N=n, K=32, W=width, S=step)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


def test_pairs_are_read_where_they_lie() -> None:
    """Nothing is shuffled on the way to dpbf16ps: the operand was interleaved when it was packed."""
    types = {"a": "*bf16", "b": "*bf16", "o": "*fp32", "k": "i32", **dict.fromkeys("MNKWS", "constexpr")}
    text = compiled_assembly("znver4", types, {"M": 64, "N": 64, "K": 32, "W": 64, "S": 2}, interleaved)
    assert "vdpbf16ps" in text
    assert not [x for x in text.splitlines() if x.strip().startswith(("vpunpck", "vperm"))]


@pytest.mark.parametrize("cpu", ["haswell", "znver5"])
def test_the_search_counts_with_the_register_blocks_that_are_emitted(cpu: str) -> None:
    chosen = select_cpu(cpu)
    blocks = micro_kernels(chosen.vector_bits)
    for m, n in ((64, 64), (1, 64), (2, 64), (16, 16), (4, 8)):
        types = {"a": "*fp32", "b": "*fp32", "c": "*fp32", "o": "*fp32", **dict.fromkeys(("ar", "ac", "br", "bc", "m",
                 "n", "k"), "i32"), **dict.fromkeys(("M", "N", "K", "ACC", "MASKED"), "constexpr")}  # fmt: skip
        constants = {"M": m, "N": n, "K": 16, "ACC": tl.float32, "MASKED": False}
        text = compiled_assembly(cpu, types, constants, product)  # type: ignore[arg-type]
        lanes = min(chosen.vector_bits // 32, n)
        rows, vectors = register_block(blocks, m, n, lanes)
        assert f"dot_fma_float_{rows}x{vectors}x{lanes}_" in text, (m, n)


@triton.jit
def last_rows(a, b, o, seen, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr,
              ALL: tl.constexpr):  # fmt: skip
    i = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    j, acc = tl.arange(0, N)[None, :], tl.zeros((M, N), tl.float32)
    for step in range(STEPS):
        k = step * K + tl.arange(0, K)
        x = tl.load(a + i * (STEPS * K) + k[None, :], mask=i < n, other=0)
        acc = tl.dot(x, tl.load(b + k[:, None] * N + j), acc, input_precision="ieee")
    tl.store(o + i * N + j, acc * 2, mask=i < n)
    if ALL:
        tl.store(seen + i * N + j, acc)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("rows", [1, 49, 64, 98, 127])
def test_rows_behind_the_last_are_neither_stored_nor_missing(rows: int, cpu: str) -> None:
    a, b = ramp(rows, 48, dtype=torch.float32, seed=1), ramp(48, 32, dtype=torch.float32, seed=2)
    out = torch.full((128, 32), 7.0)
    last_rows[(2,)](a, b, out, out, rows, M=64, N=32, K=16, STEPS=3, ALL=False, arch=cpu)
    assert (out[:rows].double() - 2 * (a.double() @ b.double())).abs().max() < 1e-4
    assert (out[rows:] == 7).all()


def test_rows_that_any_store_lets_through_are_computed() -> None:
    """0 x inf is NaN in the masked rows of A, and a second store shows them."""
    a, b = torch.ones(49, 48), torch.full((48, 32), float("inf"))
    out, seen = torch.full((64, 32), 7.0), torch.zeros(64, 32)
    whole = last_rows[(1,)](a, b, out, seen, 49, M=64, N=32, K=16, STEPS=3, ALL=True)
    cut = last_rows[(1,)](a, b, torch.empty(64, 32), seen, 49, M=64, N=32, K=16, STEPS=3, ALL=False)
    assert seen[49:].isnan().all() and (seen[:49] == float("inf")).all() and (out[49:] == 7).all()
    found = [[len(row_masks(f.body)) for f in ttir.read(kernel.asm["ttir"])] for kernel in (whole, cut)]
    assert found == [[0], [1]]
