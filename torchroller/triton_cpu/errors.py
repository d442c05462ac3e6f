"""The errors that the CPU backend raises, each with what happened, where, and what to do next."""

from __future__ import annotations


class TritonCPUError(RuntimeError):
    """Base class of every error that this backend raises on purpose."""


class UnsupportedOperation(TritonCPUError):
    """A Triton operation, or a form of one, that the CPU backend does not lower.

    `op` is the operation as Triton's IR spells it (`tt.histogram`), `location` the user's source
    line (`softmax.py:31`, or None when the kernel carries no locations), `detail` what about the
    operation is not supported, with the types and values seen.
    """

    def __init__(self, op: str, location: str | None, detail: str) -> None:
        self.op, self.location, self.detail = op, location, detail
        where = location or "(no source location in this kernel's IR)"
        super().__init__(
            f"The Triton CPU backend cannot lower `{op}`\n"
            f"  at {where}\n"
            f"  {detail}\n"
            "Write that line with other operations, or run the kernel with TRITON_INTERPRET=1 to get its "
            "numbers without compiling it."
        )

    def __reduce__(self):  # Triton deep-copies errors that it stores
        return type(self), (self.op, self.location, self.detail)


class InvalidIR(TritonCPUError):
    """LLVM refused the IR of a kernel: a defect of the lowering, never of the user's kernel."""

    def __init__(self, kernel: str, message: str, excerpt: str) -> None:
        self.kernel, self.message, self.excerpt = kernel, message, excerpt
        super().__init__(
            f"LLVM refused the IR that the Triton CPU backend made for kernel `{kernel}`: {message}\n"
            f"{excerpt}\n"
            "This is a defect of the backend, not of the kernel. Please report it with the kernel's source; "
            "TRITON_INTERPRET=1 runs the kernel without compiling it."
        )

    def __reduce__(self):
        return type(self), (self.kernel, self.message, self.excerpt)


class DeviceAssertion(TritonCPUError, AssertionError):
    """A `tl.device_assert` of a kernel compiled in debug mode did not hold; `program` is its id (x, y, z)."""

    def __init__(self, kernel: str, message: str, program: tuple[int, int, int]) -> None:
        self.kernel, self.message, self.program = kernel, message, program
        super().__init__(
            f"Assertion failed in kernel `{kernel}`, program {program}: {message}\n"
            "That program stopped there; others ran on, so what the launch wrote is incomplete."
        )

    def __reduce__(self):
        return type(self), (self.kernel, self.message, self.program)


class UnknownCPU(TritonCPUError):
    """A CPU name that LLVM, or this backend, does not know."""

    def __init__(self, name: str, known: tuple[str, ...], close: tuple[str, ...]) -> None:
        self.name, self.known, self.close = name, known, close
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        super().__init__(
            f"Unknown CPU {name!r} (from TORCHROLLER_CPU or the target's arch).{hint} "
            f"Known names: {', '.join(known)}; leave TORCHROLLER_CPU unset to use this machine's CPU."
        )

    def __reduce__(self):
        return type(self), (self.name, self.known, self.close)


class IncompatibleCPU(TritonCPUError):
    """A kernel compiled for a CPU with instructions that this machine does not have."""

    def __init__(self, kernel: str, cpu: str, missing: tuple[str, ...], host: str) -> None:
        self.kernel, self.cpu, self.missing, self.host = kernel, cpu, missing, host
        super().__init__(
            f"Kernel `{kernel}` was compiled for {cpu!r}, which has {', '.join(missing)}; this machine "
            f"({host!r}) has not, and would die of an illegal instruction. It can be compiled here but not "
            "launched: unset TORCHROLLER_CPU, or name a CPU that this machine contains."
        )

    def __reduce__(self):
        return type(self), (self.kernel, self.cpu, self.missing, self.host)
