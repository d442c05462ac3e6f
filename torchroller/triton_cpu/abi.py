"""How a kernel is entered: the launch block, and the native wrapper around a lowered program.

A compiled kernel exports one function, `entry(ptr block)`. The block is read-only to the kernel, so one block
may be launched any number of times and from several threads, provided the kernel needs no scratch memory.
Every field takes 8 bytes, in the byte order of the machine:

    offset  field
         0  grid_x, grid_y, grid_z    i64 each; an empty grid runs nothing
        24  threads                   i64, threads to run on; 1 runs everything on the caller
        32  chunk                     i64, programs taken from the queue at a time; 0 = chosen from what is left
        40  gomp_parallel             pointer to GOMP_parallel, or 0: run on the caller
        48  scratch                   pointer to threads × scratch_stride bytes, 64-byte aligned, or 0
        56  scratch_stride            i64, a multiple of 64
        64  the kernel's arguments    one slot each, the value in the low bytes

`entry` keeps the queue's counter on its own stack and runs `worker` on every thread; a worker takes the next
`chunk` programs until none is left. A chunk that is not given shrinks towards the end of the grid, down to a single
program (guided self-scheduling, Polychronopoulos and Kuck 1987): threads that started late or met dearer programs
finish with the others. Consecutive programs follow x first, then y, then z, as on a GPU.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lowering import LoweredModule

GRID_OFFSET, THREADS_OFFSET, CHUNK_OFFSET, PARALLEL_OFFSET = 0, 24, 32, 40
SCRATCH_OFFSET, SCRATCH_STRIDE_OFFSET, ARGUMENTS_OFFSET, SLOT_BYTES = 48, 56, 64, 8
ENTRY = "entry"
HEADER_FORMAT = "qqqqqQQq"

# The queue's state on the stack of `entry`: counter and scratch slots on cache lines of their own.
_STATE_BYTES, _COUNTER_OFFSET, _SLOT_OFFSET = 192, 64, 128
_STATE_TOTAL, _STATE_MOST, _STATE_LEAST, _STATE_PARTS = 8, 16, 24, 32
# A chunk is at most this part of a thread's share of the grid, and at most this part of its share of what is left.
_CHUNKS_PER_THREAD = 8
_CHUNKS_PER_REST = 2

_FORMATS = {
    "i1": "q", "i8": "q", "i16": "q", "i32": "q", "i64": "q",
    "u1": "Q", "u8": "Q", "u16": "Q", "u32": "Q", "u64": "Q",
    "fp16": "e6x", "bf16": "Q", "fp32": "f4x", "f32": "f4x", "fp64": "d",
}  # fmt: skip


def slot_format(triton_type: str) -> str:
    """`struct` format of one 8-byte argument slot: pointers ("*fp32"), integers, floats."""
    if triton_type.startswith("*"):
        return "Q"
    try:
        return _FORMATS[triton_type]
    except KeyError:
        raise TypeError(
            f"The Triton CPU backend cannot pass a kernel argument of type {triton_type!r}; "
            f"it passes pointers and {', '.join(_FORMATS)}"
        ) from None


def block_format(types: Sequence[str]) -> str:
    """`struct` format of a whole launch block for arguments of the given Triton types."""
    return "=" + HEADER_FORMAT + "".join(map(slot_format, types))


def bfloat16_bits(value: float) -> int:
    """The 16 bits of `value` rounded to the nearest bfloat16, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if bits & 0x7FFFFFFF > 0x7F800000:  # NaN stays NaN
        return (bits >> 16) | 0x40
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def scratch_stride(scratch_bytes: int) -> int:
    """Bytes from one thread's scratch to the next: whole cache lines, so that threads do not share one."""
    return -(-scratch_bytes // 64) * 64


def pack_block(
    grid: Sequence[int],
    args: Sequence[int | float],
    types: Sequence[str],
    *,
    threads: int,
    gomp_parallel: int,
    scratch: int = 0,
    scratch_bytes: int = 0,
    chunk: int = 0,
) -> ctypes.Array:
    """A launch block, as a ctypes buffer that the caller keeps alive and may write to between launches.

    `grid` has one to three sizes. `args` are the kernel's non-constexpr arguments in order: addresses (int)
    for pointers, numbers otherwise; `types` their Triton types ("*fp32", "i32", "fp32" …). `scratch` is the
    address of threads × scratch_stride(scratch_bytes) bytes when the kernel needs scratch. Argument i lives
    at ARGUMENTS_OFFSET + i × SLOT_BYTES.
    """
    if len(args) != len(types):
        raise ValueError(f"pack_block got {len(args)} arguments and {len(types)} types: {list(types)}")
    if scratch_bytes and not scratch:
        raise ValueError(
            f"pack_block: the kernel needs {scratch_bytes} bytes of scratch a thread, scratch is 0"
        )
    x, y, z = (*grid, 1, 1)[:3]
    values = [bfloat16_bits(a) if t == "bf16" else a for a, t in zip(args, types)]
    data = struct.pack(
        block_format(types),
        x, y, z, threads, chunk, gomp_parallel, scratch, scratch_stride(scratch_bytes), *values,
    )  # fmt: skip
    return ctypes.create_string_buffer(data, len(data))


def wrap(lowered: LoweredModule) -> str:
    """The IR of a whole kernel: the lowered `@program` with `@worker` and `@entry` around it."""
    loads, values = [], []
    for index, llvm_type in enumerate(lowered.params):
        loads += _load_argument(index, llvm_type)
        values.append(f"{llvm_type} %arg{index}")
    call = ", ".join(
        [*values, "i32 %x", "i32 %y", "i32 %z", "i32 %gx32", "i32 %gy32", "i32 %gz32", "ptr %scratch"]
    )
    argument_loads = "\n".join(f"  {line}" for line in loads)
    return f"""{_without_duplicate_declarations(lowered.ir).rstrip()}

define internal void @worker(ptr %state) {{
entry:
  %block = load ptr, ptr %state
  %total.p = getelementptr i8, ptr %state, i64 {_STATE_TOTAL}
  %total = load i64, ptr %total.p
  %most.p = getelementptr i8, ptr %state, i64 {_STATE_MOST}
  %most = load i64, ptr %most.p
  %least.p = getelementptr i8, ptr %state, i64 {_STATE_LEAST}
  %least = load i64, ptr %least.p
  %parts.p = getelementptr i8, ptr %state, i64 {_STATE_PARTS}
  %parts = load i64, ptr %parts.p
  %counter = getelementptr i8, ptr %state, i64 {_COUNTER_OFFSET}
  %slots = getelementptr i8, ptr %state, i64 {_SLOT_OFFSET}
  %slot = atomicrmw add ptr %slots, i64 1 monotonic
  %scratch.p = getelementptr i8, ptr %block, i64 {SCRATCH_OFFSET}
  %scratch.base = load ptr, ptr %scratch.p
  %stride.p = getelementptr i8, ptr %block, i64 {SCRATCH_STRIDE_OFFSET}
  %stride = load i64, ptr %stride.p
  %scratch.offset = mul i64 %slot, %stride
  %scratch = getelementptr i8, ptr %scratch.base, i64 %scratch.offset
  %gx = load i64, ptr %block
  %gy.p = getelementptr i8, ptr %block, i64 8
  %gy = load i64, ptr %gy.p
  %gz.p = getelementptr i8, ptr %block, i64 16
  %gz = load i64, ptr %gz.p
  %gx32 = trunc i64 %gx to i32
  %gy32 = trunc i64 %gy to i32
  %gz32 = trunc i64 %gz to i32
{argument_loads}
  br label %take

take:
  %seen = load atomic i64, ptr %counter monotonic, align 8
  %rest = call i64 @llvm.usub.sat.i64(i64 %total, i64 %seen)
  %part = udiv i64 %rest, %parts
  %part.most = call i64 @llvm.umin.i64(i64 %part, i64 %most)
  %chunk = call i64 @llvm.umax.i64(i64 %part.most, i64 %least)
  %first = atomicrmw add ptr %counter, i64 %chunk monotonic
  %some = icmp ult i64 %first, %total
  br i1 %some, label %decode, label %done

decode:
  %beyond = add i64 %first, %chunk
  %last = call i64 @llvm.umin.i64(i64 %beyond, i64 %total)
  %x.first = urem i64 %first, %gx
  %rows = udiv i64 %first, %gx
  %y.first = urem i64 %rows, %gy
  %z.first = udiv i64 %rows, %gy
  %x0 = trunc i64 %x.first to i32
  %y0 = trunc i64 %y.first to i32
  %z0 = trunc i64 %z.first to i32
  br label %run

run:
  %index = phi i64 [ %first, %decode ], [ %index.next, %run ]
  %x = phi i32 [ %x0, %decode ], [ %x.next, %run ]
  %y = phi i32 [ %y0, %decode ], [ %y.next, %run ]
  %z = phi i32 [ %z0, %decode ], [ %z.next, %run ]
  call void @program({call}) alwaysinline
  %x.up = add i32 %x, 1
  %x.wrap = icmp uge i32 %x.up, %gx32
  %x.next = select i1 %x.wrap, i32 0, i32 %x.up
  %y.carry = zext i1 %x.wrap to i32
  %y.up = add i32 %y, %y.carry
  %y.wrap = icmp uge i32 %y.up, %gy32
  %y.next = select i1 %y.wrap, i32 0, i32 %y.up
  %z.carry = zext i1 %y.wrap to i32
  %z.next = add i32 %z, %z.carry
  %index.next = add i64 %index, 1
  %more = icmp ult i64 %index.next, %last
  br i1 %more, label %run, label %take

done:
  ret void
}}

define void @{ENTRY}(ptr %block) {{
entry:
  %state = alloca [{_STATE_BYTES} x i8], align 64
  %gx = load i64, ptr %block
  %gy.p = getelementptr i8, ptr %block, i64 8
  %gy = load i64, ptr %gy.p
  %gz.p = getelementptr i8, ptr %block, i64 16
  %gz = load i64, ptr %gz.p
  %plane = mul i64 %gx, %gy
  %total = mul i64 %plane, %gz
  %none = icmp eq i64 %total, 0
  br i1 %none, label %done, label %prepare

prepare:
  %threads.p = getelementptr i8, ptr %block, i64 {THREADS_OFFSET}
  %asked = load i64, ptr %threads.p
  %gomp.p = getelementptr i8, ptr %block, i64 {PARALLEL_OFFSET}
  %gomp = load ptr, ptr %gomp.p
  %nogomp = icmp eq ptr %gomp, null
  %allowed = select i1 %nogomp, i64 1, i64 %asked
  %capped = call i64 @llvm.umin.i64(i64 %allowed, i64 %total)
  %threads = call i64 @llvm.umax.i64(i64 %capped, i64 1)
  %single = icmp eq i64 %threads, 1
  %chunk.p = getelementptr i8, ptr %block, i64 {CHUNK_OFFSET}
  %chunk.asked = load i64, ptr %chunk.p
  %chunk.given = icmp ne i64 %chunk.asked, 0
  %pieces = mul i64 %threads, {_CHUNKS_PER_THREAD}
  %share = udiv i64 %total, %pieces
  %chunk.auto = call i64 @llvm.umax.i64(i64 %share, i64 1)
  %chunk.some = select i1 %chunk.given, i64 %chunk.asked, i64 %chunk.auto
  %most = select i1 %single, i64 %total, i64 %chunk.some
  %least.some = select i1 %chunk.given, i64 %chunk.asked, i64 1
  %least = select i1 %single, i64 %total, i64 %least.some
  %parts = mul i64 %threads, {_CHUNKS_PER_REST}
  store ptr %block, ptr %state
  %s.total = getelementptr i8, ptr %state, i64 {_STATE_TOTAL}
  store i64 %total, ptr %s.total
  %s.most = getelementptr i8, ptr %state, i64 {_STATE_MOST}
  store i64 %most, ptr %s.most
  %s.least = getelementptr i8, ptr %state, i64 {_STATE_LEAST}
  store i64 %least, ptr %s.least
  %s.parts = getelementptr i8, ptr %state, i64 {_STATE_PARTS}
  store i64 %parts, ptr %s.parts
  %s.counter = getelementptr i8, ptr %state, i64 {_COUNTER_OFFSET}
  store i64 0, ptr %s.counter
  %s.slots = getelementptr i8, ptr %state, i64 {_SLOT_OFFSET}
  store i64 0, ptr %s.slots
  br i1 %single, label %serial, label %parallel

serial:
  call void @worker(ptr %state)
  br label %done

parallel:
  %threads32 = trunc i64 %threads to i32
  call void %gomp(ptr @worker, ptr %state, i32 %threads32, i32 0)
  br label %done

done:
  ret void
}}
"""


def _without_duplicate_declarations(ir: str) -> str:
    """IR text with one of each `declare` line: LLVM refuses a second, and pieces of a kernel share libm."""
    seen: set[str] = set()
    kept = []
    for line in ir.splitlines():
        if line.startswith("declare "):
            if line.strip() in seen:
                continue
            seen.add(line.strip())
        kept.append(line)
    return "\n".join(kept)


def _load_argument(index: int, llvm_type: str) -> list[str]:
    pointer = f"%arg{index}.p = getelementptr i8, ptr %block, i64 {ARGUMENTS_OFFSET + SLOT_BYTES * index}"
    if llvm_type == "i1":  # a bool in memory is a byte
        return [
            pointer,
            f"%arg{index}.byte = load i8, ptr %arg{index}.p",
            f"%arg{index} = trunc i8 %arg{index}.byte to i1",
        ]
    return [pointer, f"%arg{index} = load {llvm_type}, ptr %arg{index}.p"]


RUN_MANY = "run_many"
# Calls entries[0](blocks[0]) … entries[n-1](blocks[n-1]) in order: a whole plan for one foreign call.
RUN_MANY_IR = f"""
define void @{RUN_MANY}(i64 %n, ptr %entries, ptr %blocks) {{
entry:
  %none = icmp eq i64 %n, 0
  br i1 %none, label %done, label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %entry.p = getelementptr ptr, ptr %entries, i64 %i
  %kernel = load ptr, ptr %entry.p
  %block.p = getelementptr ptr, ptr %blocks, i64 %i
  %block = load ptr, ptr %block.p
  call void %kernel(ptr %block)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""
