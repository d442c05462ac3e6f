"""Triton's view of the CPU: options, stages TTIR → LLVM IR → assembly and object code.

Triton imports this module during `import triton`, in every program on the machine: it must be cheap and must
not raise. It holds exactly one concrete subclass of BaseBackend, because Triton looks for exactly one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget

BACKEND = "cpu"


@dataclass(frozen=True)
class CPUOptions:
    """What a kernel is compiled with. The first group shapes the code; Triton's frontend reads the rest.

    `full_optimization` runs all of LLVM's O3, for kernels with scalar loops of their own: three times the
    optimiser's time. `emit_asm=False` leaves out the assembly text.

    Launch options of GPU backends are accepted, so that kernels and autotuner configurations written for a
    GPU run unchanged, and have no effect.
    """

    arch: str = ""
    features: str = ""
    feature_names: tuple[str, ...] = ()
    vector_bits: int = 0
    enable_fp_fusion: bool = True
    emit_asm: bool = True
    full_optimization: bool = False

    num_warps: int = 4
    num_ctas: int = 1
    num_stages: int = 3
    warp_size: int = 1
    debug: bool = False
    sanitize_overflow: bool = False
    extern_libs: tuple[tuple[str, str], ...] = ()
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e4b15", "fp8e4b8", "fp8e4nv", "fp8e5", "fp8e5b16")
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    default_dot_input_precision: str = "ieee"
    # All are computed as ieee: no CPU has a reduced-precision float32 product that is faster.
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0
    instrumentation_mode: str = ""
    fpsan_homomorphic_casts: bool = False
    backend_name: str = BACKEND
    ir_override: str | None = None

    launch_cooperative_grid: bool = False
    launch_pdl: bool = False
    maxnreg: int | None = None
    ptx_version: int | None = None
    ptx_options: str | None = None
    enable_reflect_ftz: bool = True
    waves_per_eu: int = 0
    matrix_instr_nonkdim: int = 0
    kpack: int = 1
    allow_flush_denorm: bool = False
    schedule_hint: str = "none"
    sched4reg: bool = False
    clc: bool = False
    min_shared_mem: int | None = None
    llvm_fn_attrs: str | tuple[tuple[str, str], ...] = ""
    wgp_cu_mode: str = "wgp"

    def hash(self) -> str:
        """A digest of every option."""
        text = "_".join(f"{name}-{value}" for name, value in sorted(self.__dict__.items()))
        return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _option_names() -> tuple[str, ...]:
    return tuple(option.name for option in fields(CPUOptions))


@functools.cache
def source_hash() -> str:
    """A digest of this package's source: a changed lowering must not find the old one's kernels."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class CPUBackend(BaseBackend):
    """Compiles Triton kernels for the CPU that `target.arch` names."""

    binary_ext = "obj"
    supports_native_tensor_specialization = True

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == BACKEND

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "obj"

    def hash(self) -> str:
        """What code depends on besides the kernel and its options: CPU, LLVM, and this package's source."""
        import llvmlite

        from .cpu import select_cpu

        cpu = select_cpu(str(self.target.arch))
        return f"cpu-{cpu.name}-{cpu.features}-llvmlite{llvmlite.__version__}-{source_hash()}"

    def parse_options(self, options: dict[str, Any]) -> CPUOptions:
        """CPUOptions from what a launch passes; raises UnknownCPU for a bad target."""
        from triton import knobs

        from .cpu import select_cpu

        given = {name: options[name] for name in _option_names() if options.get(name) is not None}
        cpu = select_cpu(given.get("arch") or str(self.target.arch))
        given.update(
            arch=cpu.name,
            features=cpu.features,
            feature_names=tuple(sorted(cpu.feature_names)),
            vector_bits=given.get("vector_bits") or cpu.vector_bits,
        )
        if "enable_fp_fusion" not in given:
            given["enable_fp_fusion"] = knobs.language.default_fp_fusion
        if isinstance(given.get("extern_libs"), dict):
            given["extern_libs"] = tuple(given["extern_libs"].items())
        hashable: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
        return CPUOptions(**hashable)

    def pack_metadata(self, metadata: Any) -> tuple[int, int, int]:
        return metadata.num_warps, metadata.num_ctas, metadata.shared

    def get_codegen_implementation(self, options: CPUOptions) -> dict[str, Callable[..., Any]]:
        return {"min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def get_module_map(self) -> dict[str, ModuleType]:
        # CUDA's declarations ship in every wheel and name externs (`__nv_expf`) that the lowering maps to
        # its own functions; kernels that import them directly then need nothing more.
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    def load_dialects(self, context: Any) -> None:
        """Nothing: Triton's own dialects are enough."""

    def add_stages(self, stages: dict[str, Callable], options: CPUOptions, language: Any = None) -> None:
        """ttir (Triton's passes) → llir (ours, optimised) → asm → obj."""
        from triton.backends.compiler import Language

        if language not in (None, Language.TRITON):
            raise ValueError(
                f"The Triton CPU backend compiles Triton kernels; this one is written in {language}"
            )
        pipeline = _Pipeline(options)
        stages["ttir"] = pipeline.ttir
        stages["llir"] = pipeline.llir
        if options.emit_asm:
            stages["asm"] = pipeline.asm
        stages["obj"] = pipeline.obj


# Block pointers and tensor descriptors become plain pointers; Triton 3.8 has no pass for the former, because
# its frontend does it.
_TTIR_PASSES = (
    ("common", "inliner"),
    ("ttir", "rewrite_tensor_pointer"),
    ("ttir", "rewrite_tensor_descriptor_to_pointer"),
    ("common", "canonicalizer"),
    ("ttir", "combine"),
    ("ttir", "reorder_broadcast"),
    ("common", "cse"),
    ("common", "symbol_dce"),
    ("ttir", "loop_unroll"),
)


def _inline_all(text: str) -> str:
    """A printed module with its noinline functions inlined: a call has no advantage on a CPU."""
    import tempfile

    from triton._C.libtriton import ir, passes

    context = ir.context()
    ir.load_dialects(context)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.ttir"
        path.write_text(text.replace("noinline = true", "noinline = false"))
        module = ir.parse_mlir_module(str(path), context)
    module.context = context  # it must outlive the module
    manager = ir.pass_manager(context)
    manager.enable_debug()
    passes.common.add_inliner(manager)
    passes.common.add_canonicalizer(manager)
    passes.common.add_cse(manager)
    passes.common.add_symbol_dce(manager)
    manager.run(module, "inline_all")
    return str(module)


class _Pipeline:
    """The stages of one compilation; the optimised module is handed on beside its text, to parse it once."""

    def __init__(self, options: CPUOptions) -> None:
        self.options = options
        self.optimized: Any = None
        self.assembly: str | None = None

    def ttir(self, module: Any, metadata: dict[str, Any]) -> Any:
        from triton._C.libtriton import ir, passes

        manager = ir.pass_manager(module.context)
        manager.enable_debug()
        for group, name in _TTIR_PASSES:
            add = getattr(getattr(passes, group), f"add_{name}", None)
            if add is not None:
                add(manager)
        manager.run(module, "make_ttir")
        return module

    def llir(self, module: Any, metadata: dict[str, Any]) -> str:
        from . import abi, jit
        from .cpu import select_cpu
        from .lowering import LowerOptions, lower

        wanted = [option.name for option in fields(LowerOptions) if hasattr(self.options, option.name)]
        options = LowerOptions(**{name: getattr(self.options, name) for name in wanted})
        text = str(module)  # with locations: errors name the user's line
        if "noinline = true" in text:
            text = _inline_all(text)
        lowered = lower(text, options)
        metadata["name"] = lowered.name
        metadata["params"] = list(lowered.params)
        metadata["scratch_bytes"] = lowered.scratch_bytes
        metadata["asserts"] = lowered.asserts
        # Kernels divide the shared memory of a device by this to choose a grid (Triton's softmax tutorial).
        metadata["shared"] = max(1, lowered.scratch_bytes)
        cpu, full = select_cpu(self.options.arch), self.options.full_optimization
        self.optimized = jit.optimize(lowered.name, abi.wrap(lowered), cpu, full=full)
        return self.optimized.ir

    def _module(self, ir: str, metadata: dict[str, Any]) -> Any:
        if self.optimized is None or self.optimized.ir is not ir:  # overridden by the user
            from . import jit
            from .cpu import select_cpu

            self.optimized = jit.reuse_optimized(metadata["name"], ir, select_cpu(self.options.arch))
        return self.optimized

    def asm(self, ir: str, metadata: dict[str, Any]) -> str:
        self.assembly = self._module(ir, metadata).assembly()
        return self.assembly

    def obj(self, previous: str, metadata: dict[str, Any]) -> bytes:
        if not self.options.emit_asm:
            return self._module(previous, metadata).object_code()
        if previous is not self.assembly:
            raise ValueError(
                f"The assembly of kernel `{metadata['name']}` cannot be overridden: LLVM ends the "
                "process on a mistake in it. Override its .llir or .ttir instead."
            )
        from . import jit
        from .cpu import select_cpu

        return jit.assemble(metadata["name"], previous, select_cpu(self.options.arch))
