"""Y = activation(X W^T + bias) + residual for a weight that is a sum of sparse formats.

`SpecialisedLinear` owns the packed parts and plans a call as two launches: the input panel (tokens
contiguous, quantised on the way for int8 arithmetic) and the row-group kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..formats import NM, Dense, RowGroups, SparseFormat
from ..formats.base import Tile, round_up
from ..formats.quantized import Quantized
from ..input_quant import InputQuant
from ..vector_unit import vector_unit
from .pieces import (
    ConvSpec,
    Epilogue,
    given_panel_program,
    image_panel_program,
    panel_program,
    quantized_panel_program,
)
from .plan import Open, Plan, Repeats, Space, Step
from .program import Launch
from .rows import EXACT_COLUMNS, PartSpec, RowsSpec, rows_program

PANEL_COLUMNS = 64
SLAB_TOKENS = 1024
"""Tokens per launch: bounds the work space, and keeps the input panels of a long batch in cache."""
MOST_PLANS = 64
"""Input shapes for which a layer keeps its launches prepared."""


def turns(items: int, threads: int) -> int:
    """Programs that share `items`: two to six per thread, so that threads which fall behind take fewer of them; the
    number that leaves the shares most even."""
    if items <= 2 * threads:
        return items
    counts = [threads * each for each in (4, 5, 3, 6, 2) if threads * each <= items]
    return min(counts, key=lambda count: -(-items // count) * count)


def part_spec(part: SparseFormat) -> PartSpec:
    """What the source depends on in one format."""
    if isinstance(part, Quantized):
        inner = part_spec(part.inner)
        return replace(inner, values=f"int{part.bits}", scaled=True)
    if isinstance(part, RowGroups):
        return PartSpec("groups", part.group, part.width, unroll=part.unroll)
    if isinstance(part, Dense):
        return PartSpec("dense", part.group)
    if isinstance(part, NM):
        return PartSpec("nm", 1, 1, runs=part.val.shape[1], n_alive=part.n_alive, n_of=part.n_of)
    raise TypeError(f"no kernel iterates the format {type(part).__name__}")


def part_tensors(part: SparseFormat) -> list[Tensor]:
    """The tensors of one part in the order of `rows.part_arguments`."""
    if isinstance(part, Quantized):
        return [*part_tensors(part.inner), part.scale]
    if isinstance(part, RowGroups):
        return [part.ptr, part.idx, part.val]
    if isinstance(part, Dense):
        return [part.val]
    if isinstance(part, NM):
        return [part.val, part.meta]
    raise TypeError(f"no kernel iterates the format {type(part).__name__}")


def part_tile(part: SparseFormat) -> Tile | None:
    """The tile that the part was packed for; None where any will do (N:M)."""
    inner = part.inner if isinstance(part, Quantized) else part
    return getattr(inner, "tile", None)


@lru_cache(maxsize=1024)
def _rows_launch(spec: RowsSpec) -> Launch:
    return Launch(rows_program(spec))


@lru_cache(maxsize=64)
def _panel_launch(compute: str, tokens: int, strip: int) -> Launch:
    return Launch(panel_program(compute, tokens, PANEL_COLUMNS, strip))


@lru_cache(maxsize=64)
def _quantized_panel_launch(tokens: int, given: bool) -> Launch:
    return Launch((given_panel_program if given else quantized_panel_program)(tokens, PANEL_COLUMNS))


@lru_cache(maxsize=256)
def _image_panel_launch(compute: str, tokens: int, conv: ConvSpec) -> Launch:
    return Launch(image_panel_program(compute, tokens, PANEL_COLUMNS, conv))


def _patches(x: Tensor, conv: ConvSpec) -> Tensor:
    """[images, OH * OW, C * KH * KW]: patches as rows, for the panel that also finds each token's scale."""
    unfolded = torch.nn.functional.unfold(x.float(), conv.kernel, conv.dilation, conv.padding, conv.stride)
    return unfolded.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class SpecialisedLinear:
    """Parts that add up to one weight [N, K], specialised with their epilogue.

    integer: int8 x int8 arithmetic; the input is quantised on the way in: as `quant` says (the bias must then hold
    `quant.shift`), else per token. All parts must then be quantised with the same scale. Otherwise quantised weights
    multiply real inputs.
    batches: the weight stacks this many matrices, each `rows_per_batch` rows padded to whole tiles (see `bmm`).
    """

    parts: tuple[SparseFormat, ...]
    activation: str = "none"
    integer: bool = False
    batches: int = 1
    rows_per_batch: int = 0
    quant: InputQuant | None = None
    order: Tensor = field(init=False)
    _plans: dict[tuple[Any, ...], Plan] = field(default_factory=dict, init=False)
    _repeats: Repeats = field(default_factory=Repeats, init=False)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("SpecialisedLinear: at least one part is needed")
        shapes = {p.shape for p in self.parts}
        if len(shapes) != 1:
            raise ValueError(
                f"SpecialisedLinear: the parts disagree on the shape of the weight: {sorted(shapes)}"
            )
        tiles = {t for p in self.parts if (t := part_tile(p)) is not None}
        if len(tiles) > 1:
            raise ValueError(
                f"SpecialisedLinear: the parts were packed for different tiles: {sorted(map(str, tiles))}"
            )
        if self.integer and not all(isinstance(p, Quantized) for p in self.parts):
            raise ValueError("SpecialisedLinear: integer arithmetic needs quantised parts only")
        Epilogue(activation=self.activation)
        first = next((p for p in map(_unwrapped, self.parts) if isinstance(p, RowGroups)), None)
        blocks = self.tile.counts(self.shape)[0]
        device = part_tensors(self.parts[0])[0].device
        order = first.balanced_order() if first is not None else torch.arange(blocks, dtype=torch.int32)
        object.__setattr__(self, "order", order.to(device))
        if self.integer and self._span() > EXACT_COLUMNS:
            raise ValueError(
                f"SpecialisedLinear: int8 sums over {self._span()} columns are not exact in float32; pack with a "
                f"column block of at most {EXACT_COLUMNS}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    @property
    def tile(self) -> Tile:
        return next((t for p in self.parts if (t := part_tile(p)) is not None), Tile())

    def _span(self) -> int:
        return self.tile.columns if self.tile.columns and self.tile.columns < self.shape[1] else self.shape[1]

    def spec(self, tokens: int, dtype: torch.dtype, epilogue: Epilogue, layout: str = "linear") -> RowsSpec:
        """What is hard-coded for inputs of this dtype."""
        row_blocks, column_blocks = self.tile.counts(self.shape)
        parts = tuple(part_spec(p) for p in self.parts)
        widest = max([p.width for p in parts] + [p.n_of for p in parts])
        compute = "tl.float64" if dtype == torch.float64 and not self.integer else "tl.float32"
        return RowsSpec(
            parts, self.tile.rows, tokens, row_blocks // self.batches, column_blocks, self.tile.columns,
            self.shape[1], round_up(self.shape[1] + widest, PANEL_COLUMNS), compute, self.integer, epilogue, layout,
        )  # fmt: skip

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [..., K] to [..., N] of x's dtype. `residual` has the output's shape."""
        repeated = self._repeats.run(x, bias, residual)
        if repeated is not None:
            return repeated
        n, k = self.shape
        if x.shape[-1] != k:
            raise ValueError(f"SpecialisedLinear: the input has {x.shape[-1]} features, the weight takes {k}")
        y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
        if y.numel():
            res = None if residual is None else residual.expand_as(y).contiguous()
            flat, rows = x.reshape(-1, k), y.view(-1, n)
            res = None if res is None else res.view(-1, n)
            if flat.shape[0] <= SLAB_TOKENS:
                plan = self._run(flat[None], rows, flat.shape[0], bias, res, "linear")
                self._repeats.remember(x, flat, y, bias, residual, plan)
                return y
            for start in range(0, flat.shape[0], SLAB_TOKENS):
                part = slice(start, start + SLAB_TOKENS)
                few = flat[part]
                self._run(
                    few[None], rows[part], few.shape[0], bias, None if res is None else res[part], "linear"
                )
        return y

    def conv2d(
        self, x: Tensor, conv: ConvSpec, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """x [images, C, H, W] to [images, N, OH, OW]; the weight's columns are (channel, row, column) of a patch."""
        n, k = self.shape
        images, channels, height, width = x.shape
        if channels * conv.kernel[0] * conv.kernel[1] != k:
            raise ValueError(
                f"SpecialisedLinear: {channels} channels of {conv.kernel} do not make {k} columns"
            )
        oh, ow = conv.out_size(height, width)
        y = torch.empty(images, n, oh, ow, dtype=x.dtype, device=x.device)
        if y.numel():
            res = None if residual is None else residual.expand_as(y).contiguous()
            if conv.pointwise and x.is_contiguous():
                x = x.view(images, channels, height * width).transpose(1, 2)
            at_once = max(1, SLAB_TOKENS // (oh * ow))
            for start in range(0, images, at_once):
                part = slice(start, start + at_once)
                some = None if res is None else res[part]
                self._run(x[part], y[part], oh * ow, bias, some, "image", conv)
        return y

    def bmm(self, x: Tensor) -> Tensor:
        """x [batches, M, K] to [batches, M, N / batches]; the weight stacks one [rows, K] per batch."""
        n, k = self.rows_per_batch, self.shape[1]
        if x.dim() != 3 or x.shape[0] != self.batches or x.shape[2] != k:
            raise ValueError(
                f"SpecialisedLinear: the input has shape {tuple(x.shape)}, wanted [{self.batches}, M, {k}]"
            )
        y = torch.empty(x.shape[0], x.shape[1], n, dtype=x.dtype, device=x.device)
        if y.numel():
            self._run(x, y, x.shape[1], None, None, "batch")
        return y

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        m: int,
        bias: Tensor | None,
        residual: Tensor | None,
        layout: str,
        conv: ConvSpec | None = None,
    ) -> Plan:
        """x [images, M, K] of any strides, or [images, C, H, W] with a `conv` that is not pointwise, into y."""
        if self.integer and x.dim() == 4:
            assert conv is not None
            x = _patches(x, conv)
        opened = {"x": x, "y": y}
        if bias is not None:
            opened["bias"] = bias
        if residual is not None:
            opened["residual"] = residual
        kinds = tuple((name, t.dtype) for name, t in opened.items())
        key = (x.shape, x.stride(), x.device, layout, conv, kinds)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.pop(next(iter(self._plans)), None)
            plan = self._plans[key] = self._plan(x, m, frozenset(opened), layout, conv)
        plan(**opened)
        return plan

    def _plan(self, x: Tensor, m: int, given: frozenset[str], layout: str, conv: ConvSpec | None) -> Plan:
        """The two launches for inputs like x: the panel and the row-group kernel."""
        n = self.rows_per_batch if layout == "batch" else self.shape[0]
        k = self.shape[1]
        epilogue = Epilogue("bias" in given, self.activation, "residual" in given)
        tokens = vector_unit(x.device).tokens(m, max(part_spec(p).group for p in self.parts))
        strip = vector_unit(x.device).lanes if x.device.type == "cpu" else 0
        spec = replace(self.spec(tokens, x.dtype, epilogue, layout), strip=strip)
        per_image = -(-m // tokens)
        panels = per_image * x.shape[0]
        compute = torch.float64 if spec.compute == "tl.float64" else torch.float32
        xp = Space("xp", panels * spec.panel_rows * tokens, compute)
        scale: Space | Open = (
            Space("token_scale", panels * tokens, torch.float32) if self.integer else Open("x")
        )
        grid = (panels, spec.panel_rows // PANEL_COLUMNS)
        sizes = (m, k, spec.panel_rows, per_image)
        if x.dim() == 4:
            assert conv is not None
            image = (*sizes, x.shape[2], x.shape[3], conv.out_size(x.shape[2], x.shape[3])[1])
            launch = _image_panel_launch(spec.compute, tokens, conv)
            first = Step(launch, grid, (Open("x"), xp, *image, *x.stride()))
        elif self.integer:
            launch = _quantized_panel_launch(tokens, self.quant is not None)
            levels = () if self.quant is None else (self.quant.parameters(x.device),)
            first = Step(launch, (panels,), (Open("x"), xp, scale, *levels, *sizes, *x.stride()))
        else:
            first = Step(
                _panel_launch(spec.compute, tokens, strip), grid, (Open("x"), xp, *sizes, *x.stride())
            )
        items = panels * spec.row_blocks
        programs = turns(items, torch.get_num_threads()) if x.device.type == "cpu" else items
        scratch = Space(
            "scratch", programs * spec.rows * tokens, torch.int32 if spec.sums_integers else compute
        )
        tensors = [t for p in self.parts for t in part_tensors(p)]
        arguments = (
            xp, Open("y"), scratch, self.order, Open("bias" if epilogue.bias else "x"),
            Open("residual" if epilogue.residual else "x"), scale, *tensors, m, n, n, per_image, items,
        )  # fmt: skip
        return Plan((first, Step(_rows_launch(spec), (programs,), arguments)))

    def dense_weight(self) -> Tensor:
        """The weight [N, K] that the parts add up to."""
        total = self.parts[0].unpack()
        for part in self.parts[1:]:
            total = total + part.unpack()
        return total

    def describe(self) -> str:
        return " + ".join(p.describe() for p in self.parts) + (" (int8 arithmetic)" if self.integer else "")


def _unwrapped(part: SparseFormat) -> SparseFormat:
    return part.inner if isinstance(part, Quantized) else part
