"""Triton's tutorials 01, 02, 03 and 05, written as one writes them for a GPU, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, ramp, sweep, triton

pytestmark = needs_backend


# ---- 01: vector addition ---------------------------------------------------------------------------------------


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(axis=0)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask)
    tl.store(out_ptr + offsets, x + y, mask=mask)


@pytest.mark.parametrize("n", [1, 1024, 98432])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64], ids=str)
def test_vector_addition(n: int, dtype: torch.dtype) -> None:
    x, y = ramp(n, dtype=dtype), ramp(n, dtype=dtype, seed=1)
    out = torch.empty_like(x)
    add_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out, n, BLOCK=1024)
    assert torch.equal(out, x + y)


# ---- 02: fused softmax -----------------------------------------------------------------------------------------


@triton.jit
def softmax_kernel(
    out_ptr, in_ptr, in_stride, out_stride, rows, cols, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    start, step = tl.program_id(0), tl.num_programs(0)
    for row in tl.range(start, rows, step, num_stages=STAGES):
        offsets = tl.arange(0, BLOCK)
        mask = offsets < cols
        x = tl.load(in_ptr + row * in_stride + offsets, mask=mask, other=-float("inf"))
        shifted = x - tl.max(x, axis=0)
        numerator = tl.exp(shifted)
        denominator = tl.sum(numerator, axis=0)
        tl.store(out_ptr + row * out_stride + offsets, numerator / denominator, mask=mask)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 781), (33, 128), (5, 2048)])
def test_softmax(rows: int, cols: int) -> None:
    x = ramp(rows, cols)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(cols)
    kernel = softmax_kernel.warmup(
        out, x, x.stride(0), out.stride(0), rows, cols, BLOCK=block, STAGES=2, num_warps=8, grid=(1,)
    )
    kernel._init_handles()
    properties = triton.runtime.driver.active.utils.get_device_properties(0)
    programs = min(
        rows, properties["multiprocessor_count"] * (properties["max_shared_mem"] // kernel.metadata.shared)
    )
    softmax_kernel[(programs, 1, 1)](out, x, x.stride(0), out.stride(0), rows, cols, BLOCK=block, STAGES=2)
    torch.testing.assert_close(out.double(), x.double().softmax(1), rtol=2e-6, atol=1e-7)


# ---- 03: matrix multiplication ---------------------------------------------------------------------------------

CONFIGS = [
    triton.Config({"BM": 32, "BN": 64, "BK": 32, "GROUP": 8}, num_stages=3, num_warps=8),
    triton.Config({"BM": 16, "BN": 16, "BK": 16, "GROUP": 2}, num_stages=4, num_warps=4),
]


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.01 * x)


def matmul_body(a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
                BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                ACTIVATION: tl.constexpr):  # fmt: skip
    pid = tl.program_id(axis=0)
    pids_m, pids_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    per_group = GROUP * pids_n
    group = pid // per_group
    first = group * GROUP
    size = min(pids_m - first, GROUP)
    pid_m = first + ((pid % per_group) % size)
    pid_n = (pid % per_group) // size
    tl.assume(pid_m >= 0)
    tl.assume(pid_n >= 0)
    rows = (pid_m * BM + tl.arange(0, BM)) % M
    cols = (pid_n * BN + tl.arange(0, BN)) % N
    depth = tl.arange(0, BK)
    a = a_ptr + (rows[:, None] * stride_am + depth[None, :] * stride_ak)
    b = b_ptr + (depth[:, None] * stride_bk + cols[None, :] * stride_bn)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(tl.cdiv(K, BK)):
        x = tl.load(a, mask=depth[None, :] < K - k * BK, other=0.0)
        y = tl.load(b, mask=depth[:, None] < K - k * BK, other=0.0)
        acc = tl.dot(x, y, acc)
        a += BK * stride_ak
        b += BK * stride_bk
    if ACTIVATION == "leaky_relu":
        acc = leaky_relu(acc)
    c = acc.to(c_ptr.dtype.element_ty)
    out_rows, out_cols = pid_m * BM + tl.arange(0, BM), pid_n * BN + tl.arange(0, BN)
    out = c_ptr + stride_cm * out_rows[:, None] + stride_cn * out_cols[None, :]
    tl.store(out, c, mask=(out_rows[:, None] < M) & (out_cols[None, :] < N))


matmul_plain = triton.jit(matmul_body)
matmul_tuned = triton.autotune(configs=CONFIGS, key=["M", "N", "K"])(matmul_plain)


@pytest.mark.parametrize(
    "dtype", sweep([torch.float32, torch.float16, torch.bfloat16], [torch.float32]), ids=str
)
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (70, 45, 33), (1, 130, 17)])
@pytest.mark.parametrize("layout", ["nn", "nt"])
def test_matmul(dtype: torch.dtype, m: int, n: int, k: int, layout: str) -> None:
    a = ramp(m, k, dtype=dtype)
    b = ramp(k, n, dtype=dtype, seed=1) if layout == "nn" else ramp(n, k, dtype=dtype, seed=1).T
    c = torch.full((m, n), float("nan"), dtype=dtype)
    grid = (triton.cdiv(m, 32) * triton.cdiv(n, 32),)
    matmul_plain[grid](a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), BM=32, BN=32, BK=16, GROUP=4,
                       ACTIVATION="leaky_relu")  # fmt: skip
    want = torch.nn.functional.leaky_relu(a.double() @ b.double(), 0.01)
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(c.double(), want, rtol=rounding, atol=rounding)


def test_autotuned_matmul() -> None:
    a, b, c = ramp(96, 64), ramp(64, 80, seed=1), torch.empty(96, 80)
    matmul_tuned[lambda meta: (triton.cdiv(96, meta["BM"]) * triton.cdiv(80, meta["BN"]),)](
        a, b, c, 96, 80, 64, *a.stride(), *b.stride(), *c.stride(), ACTIVATION=""
    )
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    assert matmul_tuned.best_config in CONFIGS


# ---- 05: layer normalisation -----------------------------------------------------------------------------------


@triton.jit
def norm_forward(X, Y, W, B, Mean, Rstd, stride, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    Y += row * stride
    X += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for off in range(0, N, BLOCK):
        cols = off + tl.arange(0, BLOCK)
        total += tl.load(X + cols, mask=cols < N, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / N
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for off in range(0, N, BLOCK):
        cols = off + tl.arange(0, BLOCK)
        x = tl.load(X + cols, mask=cols < N, other=0.0).to(tl.float32)
        x = tl.where(cols < N, x - mean, 0.0)
        squares += x * x
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / N + eps)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)
    for off in range(0, N, BLOCK):
        cols = off + tl.arange(0, BLOCK)
        mask = cols < N
        w, b = tl.load(W + cols, mask=mask), tl.load(B + cols, mask=mask)
        x = tl.load(X + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(Y + cols, (x - mean) * rstd * w + b, mask=mask)


@triton.jit
def norm_backward_x(
    DX, DY, DW, DB, X, W, Mean, Rstd, Lock, stride, N, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    X += row * stride
    DY += row * stride
    DX += row * stride
    lock = row % GROUP
    Lock += lock
    Count = Lock + GROUP
    DW = DW + lock * N + cols
    DB = DB + lock * N + cols
    x = tl.load(X + cols, mask=mask, other=0).to(tl.float32)
    dy = tl.load(DY + cols, mask=mask, other=0).to(tl.float32)
    w = tl.load(W + cols, mask=mask).to(tl.float32)
    mean, rstd = tl.load(Mean + row), tl.load(Rstd + row)
    xhat = tl.where(mask, (x - mean) * rstd, 0.0)
    wdy = tl.where(mask, w * dy, 0.0)
    c1 = tl.sum(xhat * wdy, axis=0) / N
    c2 = tl.sum(wdy, axis=0) / N
    tl.store(DX + cols, (wdy - (xhat * c1 + c2)) * rstd, mask=mask)
    partial_dw = (dy * xhat).to(w.dtype)
    partial_db = dy.to(w.dtype)
    while tl.atomic_cas(Lock, 0, 1) == 1:
        pass
    count = tl.load(Count)
    if count == 0:  # the first program to come here
        tl.atomic_xchg(Count, 1)
    else:
        partial_dw += tl.load(DW, mask=mask)
        partial_db += tl.load(DB, mask=mask)
    tl.store(DW, partial_dw, mask=mask)
    tl.store(DB, partial_db, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(Lock, 0)


@triton.jit
def norm_backward_w(DW, DB, FINAL_DW, FINAL_DB, M, N, BM: tl.constexpr, BN: tl.constexpr):
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    dw = tl.zeros((BM, BN), dtype=tl.float32)
    db = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, M, BM):
        rows = i + tl.arange(0, BM)
        mask = (rows[:, None] < M) & (cols[None, :] < N)
        offs = rows[:, None] * N + cols[None, :]
        dw += tl.load(DW + offs, mask=mask, other=0.0)
        db += tl.load(DB + offs, mask=mask, other=0.0)
    tl.store(FINAL_DW + cols, tl.sum(dw, axis=0), mask=cols < N)
    tl.store(FINAL_DB + cols, tl.sum(db, axis=0), mask=cols < N)


@pytest.mark.parametrize(("m", "n"), [(1, 8), (37, 200), (64, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layer_norm_forward_and_backward(m: int, n: int, dtype: torch.dtype) -> None:
    x, dy = ramp(m, n, dtype=dtype) * 2 + 0.5, ramp(m, n, dtype=dtype, seed=1) * 0.1
    w, b = ramp(n, dtype=dtype, seed=2), ramp(n, dtype=dtype, seed=3)
    y, mean, rstd = torch.empty_like(x), torch.empty(m), torch.empty(m)
    norm_forward[(m,)](x, y, w, b, mean, rstd, x.stride(0), n, 1e-5, BLOCK=64)

    group, block = 8, triton.next_power_of_2(n)
    locks = torch.zeros(2 * group, dtype=torch.int32)
    part_w, part_b, dx = torch.zeros(group, n), torch.zeros(group, n), torch.empty_like(x)
    norm_backward_x[(m,)](
        dx, dy, part_w, part_b, x, w, mean, rstd, locks, x.stride(0), n, GROUP=group, BLOCK=block
    )
    dw, db = torch.empty(n), torch.empty(n)
    norm_backward_w[(triton.cdiv(n, 128),)](part_w, part_b, dw, db, min(group, m), n, BM=32, BN=128)

    exact = [t.double().requires_grad_() for t in (x, w, b)]
    want = torch.nn.functional.layer_norm(exact[0], (n,), exact[1], exact[2], 1e-5)
    want.backward(dy.double())
    rounding = 2e-5 if dtype is torch.float32 else 4e-3
    for got, expected in ((y, want.detach()), (dx, exact[0].grad), (dw, exact[1].grad), (db, exact[2].grad)):
        torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=rounding * 3)


def test_benchmarking_a_kernel() -> None:
    x, out = ramp(4096), torch.empty(4096)
    time_ms = triton.testing.do_bench(lambda: add_kernel[(4,)](x, x, out, 4096, BLOCK=1024), warmup=1, rep=2)
    assert time_ms > 0
    assert torch.equal(out, x + x)
