"""Other ways to run a constructed rProgram on a GPU: tensor descriptors, warp specialisation, persistent grids.

A variant has its plain program's tile and takes a little more shared memory (barriers; output staging). All are known
to compile and to fit, which tests check offline; none has been timed, so they stand behind the plain rPrograms in the
ranking and win only where candidates are measured (mode="max-autotune"). The order depends on nothing but the
expression and the device.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torchroller.capacity import Launch, scratch_bytes, violation
from torchroller.emit.common import Tiling
from torchroller.emit.descriptors import VARIANTS, describable, fits
from torchroller.expr import TensorExpr
from torchroller.search import Construction
from torchroller.space import Space
from torchroller.spec import DeviceSpec, KiB
from torchroller.tile import RProgram
from torchroller.tiled import Tiled

_VARIED = 2  # programs of each variant, the best ones that have it
_LEAST_ARCH = 90
_BARRIER_BYTES = 1 * KiB
_MULTIPLYING_WARPS = 4  # one warp group: what wgmma and tcgen05 need


def with_variants(found: Construction, expr: TensorExpr, device: DeviceSpec) -> Construction:
    """`found` with the variants of its best programs at the end; unchanged where the device or the kernel has none."""
    if device.kind != "cuda" or not device.arch.isdigit() or not _LEAST_ARCH <= int(device.arch) < 120:
        return found
    if not describable(expr):
        return found
    by_variant: dict[str, list[RProgram]] = {name: [] for name in VARIANTS}
    for program in found.ranked:
        for varied in variants(program, expr, device):
            by_variant[varied.variant].append(varied)
    more = [v for many in by_variant.values() for v in many[:_VARIED]]
    return replace(found, ranked=(*found.ranked, *more)) if more else found


def variants(program: RProgram, expr: TensorExpr, device: DeviceSpec) -> list[RProgram]:
    """The variants of one program that fit the device."""
    blocks = (*program.block.items(), *program.step.items())
    if not fits(Tiling(blocks), expr) or min(program.block.values(), default=0) < 64:
        return []
    grouped = replace(program, num_warps=max(_MULTIPLYING_WARPS, program.num_warps))
    # Triton splits loops of one warp group only; the group that copies comes on top.
    found = [
        replace(grouped, variant="tma"),
        replace(program, num_warps=_MULTIPLYING_WARPS, variant="tma-ws"),
    ]
    if program.grid > device.units:
        found.append(replace(grouped, variant="tma-persist", grid=device.units))
    return [v for v in found if _fits(v, expr, device)]


def _fits(program: RProgram, expr: TensorExpr, device: DeviceSpec) -> bool:
    """Shared memory holds the stages, barriers and, where tiles overlap in time, one more result; registers suffice."""
    space = Space(expr)
    tile = Tiled(space, device, tuple(space.order({**program.block, **program.step})))
    launch = Launch(program.num_warps, program.num_stages)
    need = scratch_bytes(tile, launch.num_stages) + _BARRIER_BYTES
    if program.variant != "tma":
        need += space.itemsize * math.prod(program.block.values())
    return need <= device.program_scratch_bytes and violation(tile, launch) is None
