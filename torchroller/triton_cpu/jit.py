"""LLVM through llvmlite: IR text → verified, optimised module → object code or assembly → an address.

llvmlite is imported inside functions, because Triton imports this package in every program on the machine.
"""

from __future__ import annotations

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
_codegen_lock = threading.Lock()  # a TargetMachine serves one thread at a time


@dataclass(frozen=True)
class OptimizedModule:
    """A verified and optimised LLVM module: `ir` is its text, `handle` llvmlite's ModuleRef."""

    name: str
    cpu: CPU
    ir: str
    handle: Any

    def assembly(self) -> str:
        """The module as assembly text of its CPU."""
        with _codegen_lock:
            return _target_machine(self.cpu).emit_assembly(self.handle)

    def object_code(self) -> bytes:
        """The module as a relocatable object file (ELF on Linux)."""
        with _codegen_lock:
            return _target_machine(self.cpu).emit_object(self.handle)


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def _target_machine(cpu: CPU) -> Any:
    llvm = _llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    # Small code model: the JIT linker puts a whole object in one allocation, so constants are RIP-relative.
    return target.create_target_machine(
        cpu=cpu.name, features=cpu.features, opt=3, reloc="pic", codemodel="small"
    )


def optimize(name: str, ir: str, cpu: CPU) -> OptimizedModule:
    """Parse, verify and optimise the LLVM IR text of kernel `name` for `cpu`.

    Raises InvalidIR, which shows the offending lines, when LLVM refuses the text.
    """
    module = parse(name, _prefer_wide_vectors(ir, cpu), cpu)
    with _codegen_lock:
        _run_passes(module, cpu)
    return OptimizedModule(name, cpu, str(module), module)


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


def _run_passes(module: Any, cpu: CPU) -> None:
    llvm = _llvm()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    tuning.loop_interleaving = True
    tuning.loop_unrolling = True
    # The lowering writes vectors itself; SLP finds little in them and costs a third of the compile time.
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(_target_machine(cpu), tuning)
    builder.getModulePassManager().run(module, builder)


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
    return _llvm().create_lljit_compiler(use_jit_link=True)


def link(name: str, object_code: bytes, symbol: str) -> LoadedLibrary:
    """Load an object file into this process. Its code stays mapped as long as the result is alive.

    Symbols that the object does not define (memset, libm) are those of the running process.
    Raises RuntimeError, with the linker's message, for a corrupt object or an unknown symbol.
    """
    llvm = _llvm()
    builder = llvm.JITLibraryBuilder().add_object_img(object_code).add_current_process().export_symbol(symbol)
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
        function.library = self
        return function
