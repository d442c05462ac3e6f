"""Triton source -> something that runs: compiled for a target, or under Triton's interpreter.

Kernel text is written to the cache directory (Triton reads the source of what it compiles), imported from there
and compiled by stock Triton for the named target. On a GPU Triton keeps the machine code in its own disk cache; on
a CPU it goes with the chosen rProgram into ours (store.py). Equal text is compiled once per process. A cache
directory that cannot be written is replaced by a temporary one.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from .buffers import allocate
from .emit.common import TritonSource
from .errors import KernelError
from .gpu_launch import allow_scratch, loaded
from .interpreted import NUMPY_LIBRARY, interpreted, wide_casts, wide_products
from .ptxas import SAFE_OPTIONS, miscompiled


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that can be launched. `handle` is what the executor needs: see each `Executor`."""

    source: TritonSource
    target: str
    handle: Any
    cached: bool = False

    def __str__(self) -> str:
        return f"{self.source.name} for {self.target}, grid {self.source.grid}"


@dataclass(frozen=True, eq=False)
class Loaded:
    """Machine code from our disk cache. `library` keeps it mapped."""

    library: Any
    function: Any
    code: bytes
    metadata: dict[str, Any]


class Executor(Protocol):
    """Builds kernels and runs them on tensors; the plan asks `native` ones for entry addresses instead."""

    name: str
    native: bool

    def compile(self, source: TritonSource) -> CompiledKernel: ...

    def launch(self, kernel: CompiledKernel, tensors: Sequence[torch.Tensor]) -> None: ...

    def code(self, kernel: CompiledKernel) -> tuple[bytes, dict[str, Any]]: ...

    def restore(
        self, source: TritonSource, code: bytes, metadata: dict[str, Any]
    ) -> CompiledKernel | None: ...


def cache_dir(configured: str | None = None) -> Path:
    """The directory of generated sources; a temporary one where the configured one cannot be written."""
    wanted = (
        configured
        or os.environ.get("TORCHROLLER_CACHE_DIR")
        or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "torchroller"
        )
    )
    return _writable(os.path.join(wanted, "sources"))


@functools.lru_cache
def _writable(wanted: str) -> Path:
    path = Path(wanted)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            return path
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="torchroller-"))
        warnings.warn(
            f"torchroller: the cache directory {path} cannot be written ({error}); using {other} for this process. "
            "Set TORCHROLLER_CACHE_DIR or options={'cache_dir': ...}.",
            stacklevel=2,
        )
        return other


def source_key(source: TritonSource) -> str:
    return hashlib.sha256(source.text.encode()).hexdigest()[:32]


def load_module(source: TritonSource, directory: Path) -> ModuleType:
    """Imports the kernel's text from a file in `directory`, written atomically; damaged files are replaced."""
    key = source_key(source)
    path = directory / f"{source.name[:60]}_{key[:16]}.py"
    try:
        if path.read_text() != source.text:
            raise FileNotFoundError
    except (OSError, UnicodeDecodeError):
        try:
            _write(path, source.text)
        except OSError:  # the disk filled up, or was remounted: Triton needs a file to read, wherever it is
            path = _private_directory() / path.name
            _write(path, source.text)
    name = f"torchroller_kernel_{key}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    code = compile(source.text, str(path), "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


@functools.lru_cache
def _private_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="torchroller-"))


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)


_LEAST_CUDA_ARCH = 80


# Triton's frontend parses Python source. CPython before 3.11.8 and 3.12.2 counts the depth of ast.parse for the whole
# interpreter, and raises SystemError when two threads are in it (gh-106905). Both would hold the GIL there anyway.
frontend = threading.RLock()


class NativeExecutor:
    """Stock Triton for the device's target; on a CPU the machine code is called without the stock launcher."""

    name = "native"
    native = True

    def __init__(self, device: torch.device, directory: Path) -> None:
        self.device, self.directory = device, directory
        self.target, self.driver = _target(device)
        if self.target.backend == "cuda" and int(self.target.arch) < _LEAST_CUDA_ARCH:
            import triton

            raise KernelError(
                f"Triton {triton.__version__} supports NVIDIA GPUs from compute capability 8.0 on, {device} has "
                f"{int(self.target.arch) / 10:.1f}: it would compile tl.dot without matrix instructions "
                "and spill registers. Run on a newer GPU, or eagerly on this one."
            )
        self.native = device.type == "cpu"

    @functools.cached_property
    def environment(self) -> tuple[str, ...]:
        """What machine code depends on besides its source: target, versions and, on a CPU, features and LLVM."""
        import triton
        from triton.backends import backends

        found: tuple[str, ...] = (str(self.target), str(torch.__version__), triton.__version__)
        if self.native:  # elsewhere Triton keeps the machine code, under a key of its own
            found += (backends["cpu"].compiler(self.target).hash(),)
        return found

    def compile(self, source: TritonSource) -> CompiledKernel:
        from triton.compiler import ASTSource
        from triton.compiler import compile as triton_compile

        try:
            fn = getattr(load_module(source, self.directory), source.name)
            names = fn.arg_names
            signature = dict(zip(names, source.signature))
            attrs = {(i,): [["tt.divisibility", 16]] for i in range(len(names))}
            ast = ASTSource(fn=fn, signature=signature, constexprs={}, attrs=attrs)
            if self.native and not _inspected():
                return CompiledKernel(source, str(self.target), self.machine_code(ast))
            options: dict[str, Any] = {"num_warps": source.num_warps, "num_stages": source.num_stages}
            if self.native:
                options = {"emit_asm": False}
            built = triton_compile(ast, target=self.target, options=options)
            if self.target.backend == "cuda" and miscompiled(built.asm["ptx"]):
                safe = options | {"ptx_options": SAFE_OPTIONS}
                built = triton_compile(ast, target=self.target, options=safe)
            if not self.native:
                loaded(built, self.device)  # here, where kernels are compiled side by side: launchers are C
        except Exception as error:
            told = " because ".join(f"{type(e).__name__}: {e}" for e in _causes(error))
            raise KernelError(
                f"Triton could not compile kernel {source.name} for {self.target}: {told}"
            ) from error
        return CompiledKernel(source, str(self.target), built)

    def machine_code(self, ast: Any) -> Loaded:
        """The stages of triton.compile for our own backend, without its disk cache: that is keyed by a digest of
        Triton's whole library, half a second for each process, and these kernels have a cache of their own."""
        from triton._C.libtriton import ir
        from triton.backends import backends
        from triton.backends.compiler import Language

        backend = backends["cpu"].compiler(self.target)
        options = backend.parse_options({"emit_asm": False})
        context = ir.context()
        ir.load_dialects(context)
        functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
        with frontend:
            stage: Any = ast.make_ir(self.target, options, functions, modules, context)
        stages: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        backend.add_stages(stages, options, Language.TRITON)
        for step in stages.values():
            stage = step(stage, metadata)
        kept = {"name": metadata["name"], "scratch_bytes": int(metadata["scratch_bytes"])}
        library, function, *_ = self.driver.utils.load_binary(kept["name"], stage, 0, 0)
        return Loaded(library, function, stage, kept)

    def entry(self, kernel: CompiledKernel) -> int:
        """Address of the machine code of a CPU kernel."""
        handle = kernel.handle
        return self.driver.utils.entry_address(handle.function if isinstance(handle, Loaded) else handle)

    def block(self, kernel: CompiledKernel, addresses: Sequence[int]) -> tuple[Any, Any]:
        """(launch block, memory that must live as long as the block) of a CPU kernel."""
        metadata = kernel.handle.metadata
        need = int(metadata["scratch_bytes"] if isinstance(metadata, dict) else metadata.scratch_bytes)
        extra: dict[str, Any] = {}
        memory = None
        if need:  # threads x whole cache lines
            memory = allocate(-(-need // 64) * 64 * torch.get_num_threads(), torch.device("cpu"))
            extra = {"scratch": memory.data_ptr(), "scratch_bytes": need}
        source = kernel.source
        return self.driver.utils.pack_block((source.grid, 1, 1), addresses, source.signature, **extra), memory

    def code(self, kernel: CompiledKernel) -> tuple[bytes, dict[str, Any]]:
        """Machine code and launch metadata of a CPU kernel, to be kept; nothing where Triton keeps them itself."""
        if not self.native:
            return b"", {}
        if isinstance(kernel.handle, Loaded):
            return kernel.handle.code, kernel.handle.metadata
        built = kernel.handle
        metadata = {"name": built.metadata.name, "scratch_bytes": int(built.metadata.scratch_bytes)}
        return built.kernel, metadata

    def restore(self, source: TritonSource, code: bytes, metadata: dict[str, Any]) -> CompiledKernel | None:
        """The kernel from what `code` gave, in another process; None where it does not load."""
        if not self.native or not code:
            return None
        try:
            library, function, *_ = self.driver.utils.load_binary(metadata["name"], code, 0, 0)
        except RuntimeError:
            return None
        return CompiledKernel(
            source, str(self.target), Loaded(library, function, code, metadata), cached=True
        )

    def launch(self, kernel: CompiledKernel, tensors: Sequence[torch.Tensor]) -> None:
        if self.native:
            block, _scratch = self.block(kernel, [t.data_ptr() for t in tensors])
            entries = (ctypes.c_void_p * 1)(self.entry(kernel))
            blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
            self.driver.utils.run_many(1, entries, blocks)
            return
        with torch.cuda.device(self.device):  # Triton launches on the current device and its current stream
            if getattr(kernel.handle.metadata, "global_scratch_size", 0):
                allow_scratch(self.device)
            kernel.handle[(kernel.source.grid, 1, 1)](*tensors)


def _inspected() -> bool:
    """Has the user asked Triton to dump, replace or report the stages of its compilations?"""
    from triton import knobs

    compilation = knobs.compilation
    return bool(
        compilation.dump_ir or compilation.override or compilation.listener or compilation.always_compile
    )


class InterpretExecutor:
    """Triton's own interpreter (NumPy) on CPU tensors: slow, and independent of every compiler here."""

    name = "interpret"
    native = False
    _lock = threading.RLock()

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def compile(self, source: TritonSource) -> CompiledKernel:
        from triton import knobs

        with self._lock, knobs.runtime.scope():
            knobs.runtime.interpret = True
            fn = getattr(load_module(source, self.directory), source.name)
        return CompiledKernel(source, "interpret", fn)

    def code(self, kernel: CompiledKernel) -> tuple[bytes, dict[str, Any]]:
        return b"", {}

    def restore(self, source: TritonSource, code: bytes, metadata: dict[str, Any]) -> CompiledKernel | None:
        return None

    def launch(self, kernel: CompiledKernel, tensors: Sequence[torch.Tensor]) -> None:
        with self._lock, _interpreted_library():
            kernel.handle[(kernel.source.grid, 1, 1)](*tensors)


class _interpreted_library:
    """Triton's standard library (tl.sum, tl.zeros ..) is compiled functions; inside, they are interpreted."""

    _functions: dict[Any, Any] = {}

    def __enter__(self) -> None:
        import triton
        import triton.experimental.gluon  # noqa: F401  (imported at the first launch; must see compiled functions)
        import triton.language as tl
        from triton.language.extra import libdevice
        from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

        # The interpreter replaces members of these while device functions run, and does not put all of them back.
        patched = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.core.tensor_descriptor_base, tl.dtype,
                   libdevice, InterpreterBuilder)  # fmt: skip
        self.saved = [(owner, dict(vars(owner))) for owner in patched]
        for module in (tl, tl.standard, tl.core):
            for name, value in list(vars(module).items()):
                if isinstance(value, triton.runtime.JITFunction):
                    if value not in self._functions:
                        self._functions[value] = InterpretedFunction(value.fn)
                    setattr(module, name, self._functions[value])
        for name, function in NUMPY_LIBRARY.items():
            setattr(libdevice, name, interpreted(function))
        InterpreterBuilder.create_dot = wide_products(InterpreterBuilder.create_dot)
        InterpreterBuilder.cast_impl = wide_casts(InterpreterBuilder.cast_impl)

    def __exit__(self, *exc: Any) -> None:
        for owner, members in self.saved:
            for name, value in members.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def _target(device: torch.device) -> tuple[Any, Any]:
    """Triton's target and driver for a device; the plan names its target and never asks for the active one."""
    import triton  # noqa: F401  (finds the backends)
    from triton.backends import backends

    if "cpu" not in backends:
        _register_cpu(backends)
    wanted = {"cpu": "cpu", "cuda": "amd" if torch.version.hip else "nvidia"}.get(device.type)
    if wanted not in backends:
        raise KernelError(f"Triton has no backend for {device} (it has {sorted(backends)})")
    driver = _driver(wanted)
    return driver.get_current_target(), driver


def _register_cpu(backends: dict[str, Any]) -> None:
    """Makes our CPU backend known where Triton did not find its entry point (a source tree, not installed)."""
    from triton.backends import Backend

    from .triton_cpu.compiler import CPUBackend
    from .triton_cpu.driver import CPUDriver

    backends["cpu"] = Backend(compiler=CPUBackend, driver=CPUDriver)


@functools.lru_cache
def _driver(name: str) -> Any:
    from triton.backends import backends

    return backends[name].driver()


@functools.lru_cache
def executor_for(kind: str, device: torch.device, directory: Path) -> Executor:
    return InterpretExecutor(directory) if kind == "interpret" else NativeExecutor(device, directory)


_compiled: dict[tuple[str, str, str], CompiledKernel] = {}


def _key(executor: Executor, source: TritonSource) -> tuple[str, str, str]:
    target = str(getattr(executor, "target", executor.name))
    return (target, source.text, f"{source.num_warps},{source.num_stages}")


def remember(executor: Executor, kernel: CompiledKernel) -> CompiledKernel:
    """Makes a restored kernel known to `compile_all`."""
    return _compiled.setdefault(_key(executor, kernel.source), kernel)


def known(executor: Executor, source: TritonSource) -> CompiledKernel | None:
    return _compiled.get(_key(executor, source))


def compile_all(executor: Executor, sources: Sequence[TritonSource]) -> list[CompiledKernel | KernelError]:
    """Compiles kernels, equal text once, several at a time. A kernel that fails gives its error."""
    keys = [_key(executor, s) for s in sources]
    missing = {k: s for k, s in zip(keys, sources) if k not in _compiled}

    def build(source: TritonSource) -> CompiledKernel | KernelError:
        try:
            return executor.compile(source)
        except KernelError as error:
            return error

    if len(missing) > 1 and executor.name == "native":
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            results = list(pool.map(build, missing.values()))
    else:
        results = [build(s) for s in missing.values()]
    results = [build(s) if isinstance(r, KernelError) and _interrupted(r) else r
               for s, r in zip(missing.values(), results)]  # fmt: skip
    failed = {k: r for k, r in zip(missing, results) if isinstance(r, KernelError)}
    _compiled.update({k: r for k, r in zip(missing, results) if isinstance(r, CompiledKernel)})
    return [failed.get(k) or _compiled[k] for k in keys]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: Triton's outer message names only the line of a call."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def _interrupted(error: BaseException | None) -> bool:
    """Did ast.parse fail because several threads were in it? CPython 3.11 and 3.12 raise SystemError then."""
    while error is not None:
        if isinstance(error, SystemError):
            return True
        error = error.__cause__ or error.__context__
    return False
