"""From Triton's launch call to the kernel's entry: argument packing, scratch memory, thread count."""

from __future__ import annotations

import ctypes
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import abi, openmp
from .cpu import missing_on_host, select_cpu
from .errors import DeviceAssertion, IncompatibleCPU

_thread = threading.local()


def scratch(byte_count: int) -> int:
    """Address of at least `byte_count` bytes, 64-byte aligned, that belong to the calling thread.

    The memory is kept for the thread's next launch; a launch must not hand it on.
    """
    arena = getattr(_thread, "arena", None)
    if arena is None or arena[1] < byte_count:
        buffer = ctypes.create_string_buffer(byte_count + 63)
        arena = _thread.arena = (-(-ctypes.addressof(buffer) // 64) * 64, byte_count, buffer)
    return arena[0]


def pointer(value: Any, name: str) -> int:
    """The address that a pointer argument stands for: a CPU tensor, an int, or None (0)."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    if not hasattr(value, "data_ptr"):
        raise TypeError(
            f"Kernel argument `{name}` is a pointer, got {type(value).__name__}: pass a CPU tensor "
            "(or an address as int)"
        )
    device = getattr(value, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        raise ValueError(
            f"Kernel argument `{name}` is on device {device}; the Triton CPU backend takes CPU tensors: "
            "move it with .cpu(), or unset TRITON_DEFAULT_BACKEND to launch on that device"
        )
    return value.data_ptr()


def raise_failed_assertion(kernel: str) -> None:
    """Raise DeviceAssertion if a tl.device_assert did not hold since the last call."""
    from .jit import assertion_record

    address, x, y, z = assertion_record
    if address:
        assertion_record[0] = 0
        message = ctypes.string_at(address).decode(errors="replace")
        raise DeviceAssertion(kernel, message, (x, y, z))


class CPULauncher:
    """Runs one compiled kernel on the tensors and numbers of a launch (Triton's `launcher_cls`)."""

    def __init__(self, src: Any, metadata: Any) -> None:
        leaves = list(flatten_signature(src.signature))
        types = [leaf_type for leaf_type, _ in leaves]
        params = tuple(metadata.params)
        if len(types) != len(params):
            raise RuntimeError(
                f"Kernel `{metadata.name}` was compiled with {len(params)} arguments {params}, its signature "
                f"gives {len(types)}: {types}. Clear Triton's cache, and report this if it comes back."
            )
        missing = missing_on_host(select_cpu(metadata.arch))
        if missing:
            raise IncompatibleCPU(metadata.name, metadata.arch, missing, select_cpu("host").name)
        self.types = tuple(types)
        self._call = _specialised_call(
            tuple(src.signature), leaves, abi.scratch_stride(metadata.scratch_bytes)
        )

        self._name = metadata.name if getattr(metadata, "asserts", False) else ""

    def __call__(self, *launch: Any) -> None:
        self._call(*launch)
        if self._name:
            raise_failed_assertion(self._name)


def flatten_signature(signature: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(Triton type, Python expression over a0, a1 …) of every argument that reaches the kernel, in order."""
    for index, triton_type in enumerate(signature.values()):
        yield from _flatten(triton_type, f"a{index}")


def _flatten(triton_type: Any, value: str) -> Iterator[tuple[str, str]]:
    if isinstance(triton_type, (tuple, list)):
        for index, inner in enumerate(triton_type):
            yield from _flatten(inner, f"{value}[{index}]")
    elif triton_type.startswith("tensordesc"):
        # As Triton's rewrite of descriptors to pointers declares them: base, shape and strides as i64, two
        # flags, then the shape (i32) and strides (i64) that the frontend passes beside the descriptor.
        match = re.match(r"tensordesc<([^\[>]*)\[([^\]]*)\]", triton_type)
        assert match is not None, triton_type
        axes = range(match[2].count(",") + 1)
        yield "*" + match[1], f"{value}.base"
        yield from (("i64", f"{value}.shape[{axis}]") for axis in axes)
        yield from (("i64", f"{value}.strides[{axis}]") for axis in axes)
        yield "i1", f"({value}.padding == 'nan')"
        yield "i1", f"getattr({value}, 'round_f32_to_tf32', False)"
        yield from (("i32", f"{value}.shape[{axis}]") for axis in axes)
        yield from (("i64", f"{value}.strides[{axis}]") for axis in axes)
    elif triton_type != "constexpr":
        yield triton_type, value


def _specialised_call(
    names: Sequence[Any], leaves: Sequence[tuple[str, str]], stride: int
) -> Callable[..., None]:
    """A Python function that packs exactly these arguments: a generic loop costs more than the launch."""
    packed = []
    for triton_type, value in leaves:
        if triton_type.startswith("*"):
            argument = re.findall(r"\d+", value)[0]  # the first number in a3[0].base is that of the parameter
            fast = f"{value}.data_ptr() if {value}.__class__ is Tensor and {value}.is_cpu"
            packed.append(f"({fast} else pointer({value}, names[{argument}]))")
        elif triton_type == "bf16":
            packed.append(f"bfloat16_bits({value})")
        else:
            packed.append(value)
    parameters = "".join(f", a{index}" for index in range(len(names)))
    values = "".join(f", {value}" for value in packed)
    scratch_address = f"scratch(threads * {stride})" if stride else "0"
    source = f"""
def launch(gx, gy, gz, stream, function, packed, metadata, enter_hook, exit_hook{parameters}):
    if enter_hook is not None:
        enter_hook(metadata)
    threads = thread_count()
    function(pack(gx, gy, gz, threads, 0, gomp_parallel(), {scratch_address}, {stride}{values}))
    if exit_hook is not None:
        exit_hook(metadata)
"""
    torch = sys.modules.get("torch")
    scope: dict[str, Any] = {
        "Tensor": torch.Tensor if torch is not None else None,
        "pointer": pointer,
        "names": [str(name) for name in names],
        "bfloat16_bits": abi.bfloat16_bits,
        "thread_count": torch.get_num_threads if torch is not None else openmp.thread_count,
        "gomp_parallel": openmp.gomp_parallel,
        "scratch": scratch,
        "pack": struct.Struct(abi.block_format([leaf_type for leaf_type, _ in leaves])).pack,
    }
    exec(compile(source, "<triton_cpu launcher>", "exec"), scope)
    return scope["launch"]
