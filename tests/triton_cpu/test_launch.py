"""The launch block and its wrapper: every program runs once, and threads do not disturb each other."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from torchroller.triton_cpu import abi, jit, launch, openmp
from torchroller.triton_cpu.cpu import host_cpu

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Program:
    ir: str
    params: tuple[str, ...]
    scratch_bytes: int = 0
    name: str = "program"


POSITION = "i32 %x, i32 %y, i32 %z, i32 %gx, i32 %gy, i32 %gz, ptr %scratch"

# out[(z * gy + y) * gx + x] += 1 + x + 10 y + 100 z
VISIT = Program(
    f"""
define internal void @program(ptr %out, {POSITION}) {{
  %row = mul i32 %z, %gy
  %rows = add i32 %row, %y
  %line = mul i32 %rows, %gx
  %at = add i32 %line, %x
  %p = getelementptr i32, ptr %out, i32 %at
  %old = load i32, ptr %p
  %y10 = mul i32 %y, 10
  %z100 = mul i32 %z, 100
  %a = add i32 %x, %y10
  %b = add i32 %a, %z100
  %c = add i32 %b, 1
  %new = add i32 %old, %c
  store i32 %new, ptr %p
  ret void
}}
""",
    ("ptr",),
)


def build(program: Program) -> object:
    code = jit.optimize(program.name, abi.wrap(program), host_cpu()).object_code()
    return jit.link(program.name, code, abi.ENTRY).function(None, ctypes.c_void_p)


def run(entry: object, block: ctypes.Array) -> None:
    entry(ctypes.addressof(block))  # type: ignore[operator]


def visited(grid: tuple[int, int, int]) -> np.ndarray:
    x, y, z = np.meshgrid(*map(np.arange, grid), indexing="ij")
    return (1 + x + 10 * y + 100 * z).transpose(2, 1, 0).ravel().astype(np.int32)


@pytest.mark.parametrize("grid", [(1, 1, 1), (7, 1, 1), (1, 5, 1), (1, 1, 3), (13, 7, 5), (1000, 3, 1)])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("chunk", [0, 1, 4])
def test_every_program_runs_once(grid: tuple[int, int, int], threads: int, chunk: int) -> None:
    out = np.zeros(int(np.prod(grid)), np.int32)
    block = abi.pack_block(
        grid, [out.ctypes.data], ["*i32"], threads=threads, gomp_parallel=openmp.gomp_parallel(), chunk=chunk
    )
    entry = build(VISIT)
    run(entry, block)
    np.testing.assert_array_equal(out, visited(grid))
    run(entry, block)  # a block is not used up
    np.testing.assert_array_equal(out, 2 * visited(grid))


@pytest.mark.parametrize("grid", [(0,), (4, 0), (3, 2, 0)])
def test_an_empty_grid_runs_nothing(grid: tuple[int, ...]) -> None:
    run(build(VISIT), abi.pack_block(grid, [0], ["*i32"], threads=4, gomp_parallel=openmp.gomp_parallel()))


def test_one_block_from_many_threads() -> None:
    out = np.zeros(4 * 64, np.int32)
    entry = build(VISIT)
    blocks = [
        abi.pack_block((64,), [out[i * 64 :].ctypes.data], ["*i32"], threads=1, gomp_parallel=0)
        for i in range(4)
    ]

    def work(block: ctypes.Array) -> None:
        for _ in range(200):
            run(entry, block)

    workers = [threading.Thread(target=work, args=(block,)) for block in blocks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(out, 200 * np.tile(visited((64, 1, 1)), 4))


STORE_SLOTS = [
    ("i1", "i1", True, "B"),
    ("i8", "i8", -5, "b"),
    ("i16", "i16", -30000, "h"),
    ("i32", "i32", -(2**31), "i"),
    ("i64", "i64", -(2**63), "q"),
    ("u8", "i8", 200, "B"),
    ("u32", "i32", 2**32 - 1, "I"),
    ("u64", "i64", 2**64 - 1, "Q"),
    ("fp16", "half", 1.5, "e"),
    ("fp32", "float", 0.1, "f"),
    ("fp64", "double", 0.1, "d"),
]


@pytest.mark.parametrize(("triton_type", "llvm_type", "value", "code"), STORE_SLOTS)
def test_arguments_arrive(triton_type: str, llvm_type: str, value: object, code: str) -> None:
    program = Program(
        f"define internal void @program(ptr %out, {llvm_type} %v, {POSITION}) {{\n"
        f"  store {llvm_type} %v, ptr %out\n  ret void\n}}\n",
        ("ptr", llvm_type),
    )
    out = ctypes.create_string_buffer(16)
    block = abi.pack_block(
        (1,), [ctypes.addressof(out), value], ["*i8", triton_type], threads=1, gomp_parallel=0
    )
    run(build(program), block)
    assert out.raw[: struct.calcsize(code)] == struct.pack(code, value)


def test_bfloat16_arguments_round_to_even() -> None:
    for value in (1.0, 1.00390625, 1.01171875, -3.14159, 0.0, float("inf"), 3.4e38):
        want = torch.tensor(value, dtype=torch.bfloat16).view(torch.int16).item() & 0xFFFF
        assert abi.bfloat16_bits(value) == want
    assert abi.bfloat16_bits(float("nan")) & 0x7FFF > 0x7F80


def test_each_thread_has_its_own_scratch() -> None:
    # scratch[0] = x, then many reads of it: a shared scratch would show another program's x.
    program = Program(
        f"""
define internal void @program(ptr %out, {POSITION}) {{
entry:
  store volatile i32 %x, ptr %scratch
  br label %loop
loop:
  %i = phi i32 [ 0, %entry ], [ %next, %loop ]
  %same = phi i1 [ true, %entry ], [ %still, %loop ]
  %v = load volatile i32, ptr %scratch
  %equal = icmp eq i32 %v, %x
  %still = and i1 %same, %equal
  %next = add i32 %i, 1
  %more = icmp ult i32 %next, 2000
  br i1 %more, label %loop, label %done
done:
  %p = getelementptr i8, ptr %out, i32 %x
  %byte = zext i1 %still to i8
  store i8 %byte, ptr %p
  ret void
}}
""",
        ("ptr",),
        scratch_bytes=100,
    )
    out = np.zeros(500, np.uint8)
    assert abi.scratch_stride(100) == 128
    address = launch.scratch(4 * 128)
    assert address % 64 == 0
    block = abi.pack_block(
        (500,), [out.ctypes.data], ["*i8"], threads=4, gomp_parallel=openmp.gomp_parallel(), scratch=address,
        scratch_bytes=100,
    )  # fmt: skip
    run(build(program), block)
    assert out.all()


def test_pack_block_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="1 arguments and 2 types"):
        abi.pack_block((1,), [1], ["i32", "i32"], threads=1, gomp_parallel=0)
    with pytest.raises(ValueError, match="needs 64 bytes of scratch"):
        abi.pack_block((1,), [], [], threads=1, gomp_parallel=0, scratch_bytes=64)
    with pytest.raises(TypeError, match="cannot pass a kernel argument of type 'nvTmaDesc'"):
        abi.pack_block((1,), [1], ["nvTmaDesc"], threads=1, gomp_parallel=0)


def test_run_many_calls_in_order(cpu_backend: None) -> None:
    import triton

    utils = triton.runtime.driver.active.utils
    out = np.zeros(8, np.int32)
    entry = build(VISIT)
    blocks = [utils.pack_block((8,), [out.ctypes.data], ["*i32"]) for _ in range(3)]
    entries = (ctypes.c_void_p * 3)(*[utils.entry_address(entry)] * 3)
    addresses = (ctypes.c_void_p * 3)(*map(ctypes.addressof, blocks))
    utils.run_many(3, entries, addresses)
    utils.run_many(0, entries, addresses)
    np.testing.assert_array_equal(out, 3 * visited((8, 1, 1)))


def test_the_pool_is_torchs() -> None:
    from pathlib import Path

    assert openmp.gomp_parallel() != 0
    assert openmp._found is not None
    home = Path(torch.__file__).parent
    path = Path(openmp._found[1]._name)
    assert home in path.parents or path.parent == Path(f"{home}.libs")
    assert openmp.thread_count() == torch.get_num_threads()


def test_no_second_runtime_is_preferred_to_torchs() -> None:
    home = torch.__path__[0]
    ours, other = f"{home}/lib/libgomp.so.1", "/usr/lib/x86_64-linux-gnu/libgomp.so.1"
    assert openmp._rank([other, ours]) == [ours, other]


@dataclass(frozen=True)
class Source:
    signature: dict[str, object]


@dataclass(frozen=True)
class Metadata:
    params: Sequence[str]
    arch: str
    name: str = "k"
    scratch_bytes: int = 0


def launched(signature: dict[str, object], params: Sequence[str], *values: object) -> bytes:
    """The arguments' part of the block that a launch hands to the kernel."""
    seen: list[bytes] = []
    call = launch.CPULauncher(Source(signature), Metadata(params, host_cpu().name))
    call(2, 3, 4, 0, seen.append, None, None, None, None, *values)
    assert struct.unpack_from("=qqq", seen[0]) == (2, 3, 4)
    return seen[0][abi.ARGUMENTS_OFFSET :]


def test_launcher_skips_constants_and_takes_tensors() -> None:
    x = torch.arange(3.0)
    signature = {"x": "*fp32", "BLOCK": "constexpr", "n": "i32", "pair": ("*fp32", "constexpr", "fp32")}
    data = launched(signature, ["ptr", "i32", "ptr", "float"], x, 128, -7, (x[1:], 5, 0.5))
    assert struct.unpack("=QqQf4x", data) == (x.data_ptr(), -7, x.data_ptr() + 4, 0.5)


def test_launcher_takes_addresses_parameters_and_none() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    data = launched({"a": "*fp32", "b": "*fp32", "c": "*fp32"}, ["ptr"] * 3, 4096, None, parameter)
    assert struct.unpack("=QQQ", data) == (4096, 0, parameter.data_ptr())


def test_launcher_names_the_argument_that_it_refuses() -> None:
    with pytest.raises(ValueError, match="`weight` is on device meta.*move it with .cpu()"):
        launched({"weight": "*fp32"}, ["ptr"], torch.empty(2, device="meta"))
    with pytest.raises(TypeError, match="`weight` is a pointer, got list"):
        launched({"weight": "*fp32"}, ["ptr"], [1.0])


def test_launcher_refuses_a_kernel_that_does_not_fit_its_signature() -> None:
    with pytest.raises(RuntimeError, match="compiled with 2 arguments"):
        launch.CPULauncher(Source({"x": "*fp32"}), Metadata(["ptr", "ptr"], host_cpu().name))


def test_launcher_runs_hooks_around_the_kernel() -> None:
    order: list[object] = []
    call = launch.CPULauncher(Source({}), Metadata([], host_cpu().name))
    call(
        1,
        1,
        1,
        0,
        lambda block: order.append("run"),
        None,
        "metadata",
        order.append,
        lambda m: order.append("exit"),
    )
    assert order == ["metadata", "run", "exit"]


def test_threads_follow_torch() -> None:
    seen: list[bytes] = []
    call = launch.CPULauncher(Source({}), Metadata([], host_cpu().name))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        call(1, 1, 1, 0, seen.append, None, None, None, None)
        torch.set_num_threads(2)
        call(1, 1, 1, 0, seen.append, None, None, None, None)
    finally:
        torch.set_num_threads(before)
    threads = [struct.unpack_from("=q", block, abi.THREADS_OFFSET)[0] for block in seen]
    assert threads == [1, 2]
