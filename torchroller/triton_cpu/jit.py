"""LLVM through llvmlite: IR text → verified, optimised module → object code or assembly → an address.

llvmlite is imported inside functions, because Triton imports this package in every program on the machine.

llvmlite lets one thread at a time into LLVM. A compilation here shares nothing with another (each has its own
context, each thread its own target machine), so its two long calls, the passes and the code generation, pass
that lock by: kernels compile in parallel.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import re
import threading
from dataclasses import dataclass
from typing import Any

from .cpu import CPU
from .errors import InvalidIR

_library_numbers = itertools.count()
_thread = threading.local()
ASSERTION = "torchroller_assertion"  # what tl.device_assert writes to: a message's address, the program's id
assertion_record = (ctypes.c_int64 * 4)()


@dataclass(frozen=True)
class OptimizedModule:
    """A verified and optimised LLVM module: `ir` is its text, `handle` llvmlite's ModuleRef."""

    name: str
    cpu: CPU
    ir: str
    handle: Any

    def assembly(self) -> str:
        """The module as assembly text of its CPU."""
        return _emit(self.handle, self.cpu, as_object=False).decode()

    def object_code(self) -> bytes:
        """The module as a relocatable object file (ELF on Linux)."""
        return _emit(self.handle, self.cpu, as_object=True)


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm


def _target_machine(cpu: CPU) -> Any:
    """The calling thread's machine for `cpu`: one serves one thread at a time."""
    machines = _thread.__dict__.setdefault("machines", {})
    if cpu not in machines:
        machines[cpu] = _create_target_machine(cpu)
    return machines[cpu]


def _create_target_machine(cpu: CPU) -> Any:
    llvm = _llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    # Small code model: the JIT linker puts a whole object in one allocation, so constants are RIP-relative.
    return target.create_target_machine(
        cpu=cpu.name, features=cpu.features, opt=3, reloc="pic", codemodel="small"
    )


# What is left to do for code that comes as vectors and hoisted loops: inline, promote to registers, simplify,
# and find common subexpressions. Against LLVM's O3 on the kernels of this project: a third of the time, the
# same speed within noise.
_PASSES = (
    "always_inliner",
    "sroa",
    "simplify_cfg",
    "instruction_combine",
    "sroa",  # again: offsets into small buffers are constants only now
    "loop_simplify",
    "loop_rotate",
    "sccp",
    "simplify_cfg",
    "dead_code_elimination",
    "new_gvn",
    "dead_store_elimination",
    "instruction_combine",
    "simplify_cfg",
    "global_dead_code_eliminate",
)


def optimize(name: str, ir: str, cpu: CPU, *, full: bool = False) -> OptimizedModule:
    """Parse, verify and optimise the LLVM IR text of kernel `name` for `cpu`; `full` runs all of LLVM's O3.

    Raises InvalidIR, which shows the offending lines, when LLVM refuses the text.
    """
    module = parse(name, _prefer_wide_vectors(ir, cpu), cpu)
    _run_passes(module, cpu, full)
    return OptimizedModule(name, cpu, str(module), module)


def assemble(name: str, assembly: str, cpu: CPU) -> bytes:
    """Object code from assembly text: a tenth of the time of generating the code a second time.

    Only for what OptimizedModule.assembly() returned: LLVM ends the process on text that it cannot assemble.
    """
    escaped = (
        "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\{ord(c):02X}" for c in line)
        for line in assembly.splitlines()
    )
    module = parse(name, "".join(f'module asm "{line}"\n' for line in escaped), cpu)
    return _emit(module, cpu, as_object=True)


def reuse_optimized(name: str, ir: str, cpu: CPU) -> OptimizedModule:
    """Wrap IR text that was optimised before (a user's override file, say) without running passes again."""
    return OptimizedModule(name, cpu, ir, parse(name, ir, cpu))


def parse(name: str, ir: str, cpu: CPU) -> Any:
    """Parse and verify IR text; returns llvmlite's ModuleRef in a context of its own."""
    llvm = _llvm()
    machine = _target_machine(cpu)
    try:
        module = llvm.parse_assembly(ir, llvm.create_context())
    except RuntimeError as error:
        message, excerpt = _explain_parse_error(str(error), ir)
        raise InvalidIR(name, message, excerpt) from None
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    try:
        module.verify()
    except RuntimeError as error:
        message, _, excerpt = str(error).strip().partition("\n")
        raise InvalidIR(name, message, excerpt) from None
    return module


def _run_passes(module: Any, cpu: CPU, full: bool) -> None:
    llvm = _llvm()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    tuning.loop_interleaving = True
    tuning.loop_unrolling = True
    # The lowering writes vectors itself; SLP finds little in them and costs a third of the compile time.
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(_target_machine(cpu), tuning)
    if full:
        manager = builder.getModulePassManager()
    else:
        manager = llvm.create_new_module_pass_manager()
        for name in _PASSES:
            getattr(manager, f"add_{name}_pass")()
    _unlocked("LLVMPY_RunNewModulePassManager")(manager, module, builder)


def _emit(module: Any, cpu: CPU, *, as_object: bool) -> bytes:
    from llvmlite.binding import ffi

    with ffi.OutputString() as message:
        emit = _unlocked("LLVMPY_TargetMachineEmitToMemory")
        buffer = emit(_target_machine(cpu), module, int(as_object), message)
        if not buffer:
            raise RuntimeError(f"LLVM generated no code for {cpu.name}: {message}")
    try:
        start, size = ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(start, size)
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(name: str) -> Any:
    """A function of llvmlite's library without llvmlite's lock around it (with it, if llvmlite changes)."""
    from llvmlite.binding import ffi

    function = getattr(ffi.lib, name)
    return getattr(function, "_cfn", function)


def _prefer_wide_vectors(ir: str, cpu: CPU) -> str:
    """Ask for 512-bit vectors in every definition: most AVX-512 models of LLVM stop at 256 bits otherwise."""
    if cpu.vector_bits < 512:
        return ir
    return re.sub(
        r"^(define\b.*?)[ \t]*\{[ \t]*$", r'\1 nounwind "prefer-vector-width"="512" {', ir, flags=re.MULTILINE
    )


def _explain_parse_error(text: str, ir: str) -> tuple[str, str]:
    """(message, the lines around it) from LLVM's `<string>:12:5: error: …`."""
    match = re.search(r"<string>:(\d+):(\d+): error: (.*)", text)
    if match is None:
        return text.strip(), ""
    line_number, column = int(match[1]), int(match[2])
    lines = ir.splitlines()
    shown = [
        f"{n:6} | {lines[n - 1]}" for n in range(max(1, line_number - 2), min(len(lines), line_number) + 1)
    ]
    shown.append(" " * (8 + column) + "^")
    return f"line {line_number}: {match[3]}", "\n".join(shown)


@functools.cache
def _jit() -> Any:
    with contextlib.suppress(
        OSError
    ):  # kernels call libm by name; not every Python has it in the global scope
        ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    return _llvm().create_lljit_compiler(use_jit_link=True)


def link(name: str, object_code: bytes, symbol: str) -> LoadedLibrary:
    """Load an object file into this process. Its code stays mapped as long as the result is alive.

    Symbols that the object does not define (memset, libm) are those of the running process.
    Raises RuntimeError, with the linker's message, for a corrupt object or an unknown symbol.
    """
    llvm = _llvm()
    builder = llvm.JITLibraryBuilder().add_object_img(object_code).add_current_process().export_symbol(symbol)
    builder.import_symbol(ASSERTION, ctypes.addressof(assertion_record))
    library_name = f"{name}.{next(_library_numbers)}"
    try:
        tracker = builder.link(_jit(), library_name)
    except RuntimeError as error:
        raise RuntimeError(f"Cannot load the compiled kernel `{name}`: {error}") from None
    return LoadedLibrary(library_name, symbol, tracker[symbol], tracker)


@dataclass(frozen=True)
class LoadedLibrary:
    """Code in memory: `address` is that of `symbol`; `tracker` unmaps the code when it is collected."""

    name: str
    symbol: str
    address: int
    tracker: Any

    def function(self, result: Any, *arguments: Any) -> Any:
        """A ctypes function for the symbol, which releases the GIL and keeps the code mapped."""
        function = ctypes.CFUNCTYPE(result, *arguments)(self.address)
        function.library = self  # type: ignore[attr-defined]
        return function
