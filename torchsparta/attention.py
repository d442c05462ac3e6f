"""Sparse attention with a static mask: sliding window, blocks, global tokens, 3-D nearby attention.

    attend = SparseAttention(sliding_window(4096, 256))
    out = attend(q, k, v)          # [batch, heads, sequence, head_dim], as F.scaled_dot_product_attention

The softmax runs over what the mask leaves alive. A query with no alive key gives zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .specialise.attention import AttentionSpec, attention_program
from .specialise.program import Launch, can_execute, interpreting
from .transform import SparseSite


def sliding_window(length: int, window: int, causal: bool = False) -> Tensor:
    """bool [length, length]: query i sees the `window` keys around it (causal: the last `window`, itself included)."""
    i = torch.arange(length)
    delta = i[None, :] - i[:, None]
    if causal:
        return (delta <= 0) & (delta > -window)
    half = window // 2
    return (delta >= -half) & (delta <= half)


def block_mask(alive: Tensor, block: int, length: int | None = None) -> Tensor:
    """bool [length, length] from a grid of alive blocks [ceil(length / block)] ** 2."""
    mask = alive.bool().repeat_interleave(block, 0).repeat_interleave(block, 1)
    return mask if length is None else mask[:length, :length]


def with_global_tokens(mask: Tensor, tokens: Tensor | list[int]) -> Tensor:
    """The mask, with these tokens seeing everything and seen by everything (Longformer's global attention)."""
    mask = mask.clone()
    index = torch.as_tensor(tokens)
    mask[..., index, :] = True
    mask[..., :, index] = True
    return mask


def nearby_3d(frames: tuple[int, int, int], window: tuple[int, int, int], causal: bool = False) -> Tensor:
    """bool [T*H*W] ** 2: NUWA's 3-D nearby attention, a window of odd extents around each position.

    frames (T, H, W), tokens in raster order; `causal` keeps the keys at or before the query in that order.
    """
    if any(w % 2 == 0 for w in window):
        raise ValueError(f"nearby_3d: window extents must be odd to be centred, got {window}")
    axes = torch.meshgrid(*(torch.arange(n) for n in frames), indexing="ij")
    mask = torch.ones((), dtype=torch.bool)
    for axis, extent in zip(axes, window):
        p = axis.reshape(-1)
        mask = mask & ((p[:, None] - p[None, :]).abs() <= extent // 2)
    return mask.tril() if causal else mask


def patch_order(frames: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """int64 [T*H*W]: tokens patch by patch instead of in raster order.

    Neighbours in space become neighbours in a block of queries, so that fewer keys serve the block.
    """
    axes = torch.meshgrid(*(torch.arange(n) for n in frames), indexing="ij")
    key = torch.zeros(frames, dtype=torch.long)
    for part in ([a // p for a, p in zip(axes, patch)], [a % p for a, p in zip(axes, patch)]):
        for coordinate, n in zip(part, frames):
            key = key * n + coordinate
    return torch.argsort(key.reshape(-1), stable=True)


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """A mask, arranged for the kernel.

    query_rows int32 [heads or 1, query blocks, queries]: which query each row of a block is, -1 past the end.
    begin int32 [heads or 1, query blocks + 1] (flattened per head): chunks of each block.
    key_rows int32 [chunks, keys]; pattern int32 [chunks]: which of `patterns` int8 [n, queries, keys] applies.
    """

    shape: tuple[int, int]
    heads: int
    queries: int
    keys: int
    query_rows: Tensor
    begin: Tensor
    key_rows: Tensor
    pattern: Tensor
    patterns: Tensor
    alive: int

    @property
    def query_blocks(self) -> int:
        return -(-self.shape[0] // self.queries)

    @property
    def computed_share(self) -> float:
        """Query-key pairs computed over all pairs; `alive` over all pairs is the lower limit."""
        return (
            self.pattern.numel()
            * self.queries
            * self.keys
            / max(1, self.heads * self.shape[0] * self.shape[1])
        )

    @staticmethod
    def build(
        mask: Tensor, queries: int = 32, keys: int = 32, order: Tensor | None = None
    ) -> AttentionPattern:
        """mask bool [Sq, Sk], or [heads, Sq, Sk] where heads differ; `order` arranges queries into blocks."""
        if mask.dim() == 2:
            mask = mask[None]
        if mask.dim() != 3:
            raise ValueError(
                f"attention mask must be [Sq, Sk] or [heads, Sq, Sk], got shape {tuple(mask.shape)}"
            )
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError(
                    "attention mask holds values other than 0 and 1; give alive positions, not biases"
                )
            mask = mask.bool()
        heads, sq, sk = mask.shape
        order = torch.arange(sq) if order is None else order.long()
        if order.shape != (sq,) or not torch.equal(order.sort().values, torch.arange(sq)):
            raise ValueError(f"order must be a permutation of the {sq} queries")
        blocks = -(-sq // queries)
        rows = torch.full((blocks * queries,), -1)
        rows[:sq] = order
        padded = torch.zeros(heads, blocks * queries, sk, dtype=torch.bool)
        padded[:, :sq] = mask[:, order]
        padded = padded.view(heads * blocks, queries, sk)
        begin, key_rows, chunks = [0], [], []
        for block in padded:
            cols = block.any(0).nonzero().flatten()
            count = -(-cols.numel() // keys)
            wide = torch.zeros(queries, count * keys, dtype=torch.bool)
            wide[:, : cols.numel()] = block[:, cols]
            chunks.append(wide.view(queries, count, keys).transpose(0, 1))
            key_rows.append(torch.nn.functional.pad(cols, (0, count * keys - cols.numel())))
            begin.append(begin[-1] + count)
        flat = torch.cat(chunks).reshape(-1, queries * keys)
        distinct, which = torch.unique(flat, dim=0, return_inverse=True)
        int32 = torch.int32
        return AttentionPattern(
            (sq, sk), heads, queries, keys, rows.view(blocks, queries).repeat(heads, 1, 1).to(int32),
            torch.tensor(begin, dtype=int32), torch.cat(key_rows).to(int32), which.to(int32),
            distinct.to(torch.int8).view(-1, queries, keys), int(mask.sum()),
        )  # fmt: skip

    def dense_mask(self) -> Tensor:
        """bool [heads or 1, Sq, Sk]: the mask that this was built from."""
        sq, sk = self.shape
        mask = torch.zeros(self.heads, sq, sk, dtype=torch.bool)
        begin = self.begin.tolist()
        for b in range(len(begin) - 1):
            head, rows = b // self.query_blocks, self.query_rows.view(-1, self.queries)[b].long()
            for j in range(begin[b], begin[b + 1]):
                alive = self.patterns[int(self.pattern[j])].bool()
                r, c = alive.nonzero(as_tuple=True)
                mask[head, rows[r], self.key_rows.view(-1, self.keys)[j].long()[c]] = True
        return mask

    def tensors(self) -> dict[str, Tensor]:
        names = ("query_rows", "begin", "key_rows", "pattern", "patterns")
        return {name: getattr(self, name) for name in names}


@lru_cache(maxsize=256)
def _launch(spec: AttentionSpec) -> Launch:
    return Launch(attention_program(spec))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Dense attention with the same meaning: softmax over alive keys, zeros where nothing is alive."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    score = (q @ k.transpose(-1, -2)) * scale
    score = score.masked_fill(~mask, float("-inf"))
    dead = ~mask.any(-1, keepdim=True)
    return torch.softmax(score.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0) @ v


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern, scale: float | None = None
) -> Tensor:
    """q [B, H, Sq, D], k and v [B, H, Sk, D] to [B, H, Sq, D]; needs unit stride along D (else copied)."""
    b, h, sq, d = q.shape
    if (
        (sq, k.shape[2]) != pattern.shape
        or v.shape != k.shape
        or k.shape[:2] != q.shape[:2]
        or k.shape[3] != d
    ):
        raise ValueError(
            f"sparse_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit a mask of "
            f"{pattern.shape[0]} queries by {pattern.shape[1]} keys"
        )
    if pattern.heads not in (1, h):
        raise ValueError(f"sparse_attention: the mask has {pattern.heads} heads, the input {h}")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not o.numel():
        return o
    lanes = max(16, 1 << (d - 1).bit_length())
    spec = AttentionSpec(
        pattern.queries, pattern.keys, d, lanes, pattern.query_blocks, h, pattern.heads > 1,
        "tl.float64" if q.dtype == torch.float64 else "tl.float32",
        1.0 / math.sqrt(d) if scale is None else float(scale), q.dtype == torch.bfloat16 and interpreting(),
    )  # fmt: skip
    strides = [s for t in (q, k, v, o) for s in t.stride()[:3]]
    tables = pattern.tensors().values()
    _launch(spec)((pattern.query_blocks, b * h), q, k, v, o, *tables, *strides)
    return o


class _Attend(torch.autograd.Function):
    """The sparse kernel forward; the gradient recomputes through the dense masked product."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern, scale: float | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.pattern, ctx.scale = pattern, scale
        return sparse_attention(q, k, v, pattern, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            q, k, v = inputs
            out = masked_attention(q, k, v, ctx.pattern.dense_mask().to(q.device), ctx.scale)
        return (*torch.autograd.grad(out, inputs, grads[0]), None, None)


class SparseAttention(nn.Module):
    """softmax(q k^T * scale over alive pairs) v, with a mask fixed at construction.

    mask: bool or 0/1 [Sq, Sk] or [heads, Sq, Sk]; `order` arranges the queries into blocks (`patch_order`).
    `reason` says why the dense path runs where it does.
    """

    def __init__(
        self,
        mask: Tensor,
        scale: float | None = None,
        order: Tensor | None = None,
        queries: int = 32,
        keys: int = 32,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.reason: str | None = None
        self.rest: SparseSite | None = None
        self.mask_shape: tuple[int, ...] = tuple(mask.shape)
        self.pattern = AttentionPattern.build(mask.detach().cpu(), queries, keys, order)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern = self._on(q.device)
        self.reason = can_execute(q.device)
        if self.reason is not None:
            return masked_attention(q, k, v, pattern.dense_mask().to(q.device), self.scale)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
            return _Attend.apply(q, k, v, pattern, self.scale)
        return sparse_attention(q, k, v, pattern, self.scale)

    def sparta_site(self) -> SparseSite:
        """The site that this module stands for; RuntimeError if it was made from a mask by hand."""
        if self.rest is None:
            raise RuntimeError("this attention was made from a mask, not chosen for a site")
        mask = self.pattern.dense_mask().reshape(self.mask_shape)
        return replace(self.rest, weight=mask.to(self.pattern.begin.device))

    def _on(self, device: torch.device) -> AttentionPattern:
        if self.pattern.begin.device != device:
            moved = {name: t.to(device) for name, t in self.pattern.tensors().items()}
            self.pattern = replace(self.pattern, **moved)  # type: ignore[arg-type]
        return self.pattern

    def extra_repr(self) -> str:
        p = self.pattern
        share = p.alive / max(1, p.heads * p.shape[0] * p.shape[1])
        return f"{p.shape[0]}x{p.shape[1]}, alive {share:.2%}, computed {p.computed_share:.2%}"
