"""`make demo-sparta`: prune BERT with NNI, propagate, sparsify, compare. Nothing is downloaded: weights are random.

Three prunings of the same model. Heads and FFN neurons that are gone make smaller dense layers; single weights
and blocks that are gone make specialised kernels. Each sparse model is compared with the masked one in
double precision and timed in turns with it. Without NNI its masks are computed here, by the same rule. A page with the
graph, every mask and the reason for every format is written to out/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import torchsparta
from torchsparta.api import difference

Masks = dict[str, dict[str, Tensor]]


class Encoder(nn.Module):
    """BERT with one tensor in and one out."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert(tokens).last_hidden_state


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def by_level(model: nn.Module, sparsity: float) -> tuple[Masks, str]:
    """Unstructured: the smallest weights of each layer, with NNI's LevelPruner where NNI is installed."""
    try:
        from nni.compression.pruning import LevelPruner
    except ImportError:
        kept = {n: (m.weight.abs() > m.weight.abs().flatten().kthvalue(int(sparsity * m.weight.numel())).values)
                for n, m in linears(model).items()}  # fmt: skip
        return {
            n: {"weight": k.float()} for n, k in kept.items()
        }, "NNI is not installed: the same rule, computed here"
    pruner = LevelPruner(copy.deepcopy(model), [{"op_types": ["Linear"], "sparse_ratio": sparsity}])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return {n: dict(m) for n, m in masks.items()}, "NNI LevelPruner"


def by_block(model: nn.Module, sparsity: float) -> tuple[Masks, str]:
    """Blocks of 32 x 32, the smallest by L1 norm: what NNI's L1NormPruner does with granularity [32, 32]."""
    try:
        from nni.compression.pruning import L1NormPruner
    except ImportError:
        masks = {}
        for name, module in linears(model).items():
            blocks = module.weight.detach().abs().unflatten(0, (-1, 32)).unflatten(2, (-1, 32)).sum((1, 3))
            kept = blocks > blocks.flatten().kthvalue(int(sparsity * blocks.numel())).values
            masks[name] = {"weight": kept.float().repeat_interleave(32, 0).repeat_interleave(32, 1)}
        return masks, "NNI is not installed: the same rule, computed here"
    config = [{"op_types": ["Linear"], "sparse_ratio": sparsity, "granularity": [32, 32],
               "target_settings": {"bias": {"align": None, "apply_method": None}}}]  # fmt: skip
    try:
        pruner = L1NormPruner(copy.deepcopy(model), config)
    except Exception:  # settings of biases differ between NNI's versions; they are not pruned here anyway
        config[0].pop("target_settings")
        pruner = L1NormPruner(copy.deepcopy(model), config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return {n: {"weight": m["weight"]} for n, m in masks.items()}, "NNI L1NormPruner, granularity [32, 32]"


def by_structure(model: nn.Module, sparsity: float) -> tuple[Masks, str]:
    """Whole heads of q, k and v, and whole FFN neurons, the smallest by norm."""
    masks: Masks = {}
    for name, module in linears(model).items():
        rows = module.weight.detach().norm(dim=1)
        if name.endswith("attention.self.query"):
            heads = rows.view(-1, 64).sum(1)
            kept = (heads > heads.kthvalue(max(1, int(sparsity * len(heads)))).values).repeat_interleave(64)
            for other in ("query", "key", "value"):
                masks[name.replace("query", other)] = {"weight": kept.float()[:, None].expand_as(module.weight).clone(),
                                                       "bias": kept.float()}  # fmt: skip
        elif name.endswith("intermediate.dense"):
            kept = rows > rows.kthvalue(int(sparsity * len(rows))).values
            masks[name] = {
                "weight": kept.float()[:, None].expand_as(module.weight).clone(),
                "bias": kept.float(),
            }
    return masks, "whole heads and FFN neurons by norm"


def in_turns(
    dense: nn.Module, fast: nn.Module, inputs: tuple[Tensor, ...], rounds: int
) -> tuple[float, float]:
    """Median seconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for spent, model in zip(times, (dense, fast)):
            model(*inputs)
            start = time.perf_counter()
            model(*inputs)
            spent.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument(
        "--sparsity", type=float, default=0.9, help="of weights and blocks; heads and neurons lose half"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument(
        "--no-calibration", action="store_true", help="use shipped rates instead of this CPU's"
    )
    args = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    console = Console()
    torch.manual_seed(0)
    model = Encoder(args.layers, args.width).eval()
    inputs = (torch.randint(0, 30000, (1, args.tokens)),)
    if not args.no_calibration:
        with console.status("measuring this CPU, so that formats are chosen for it"):
            try:
                torchsparta.calibrate()
            except RuntimeError as error:
                console.print(f"[yellow]{error}")
    table = Table("pruned", "masked", "sparse", "ratio", "error", "alive", "built in",
                  box=None, pad_edge=False)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    prunings = {
        "heads and FFN 50 %": (by_structure, 0.5),
        f"weights {args.sparsity:.0%}": (by_level, args.sparsity),
        f"blocks 32x32 {args.sparsity:.0%}": (by_block, args.sparsity),
    }
    for title, (prune, share) in prunings.items():
        with console.status(title):
            masks, how = prune(model, share)
            tesa = torchsparta.from_nni(masks)
            plan = torchsparta.propagate(model, tesa, inputs)
            start = time.perf_counter()
            fast = torchsparta.sparsify(model, tesa, inputs)
            masked = torchsparta.masked_model(model, tesa).eval()
            with torch.no_grad():
                fast(*inputs)
                built_s = time.perf_counter() - start
                exact = copy.deepcopy(masked).double()(*inputs)
                error = difference(exact, fast(*inputs))
                dense_s, sparse_s = in_turns(masked, fast, inputs, args.rounds)
            found = torchsparta.report(fast)
            page = args.out / f"sparta-{title.split()[0]}.html"
            page.write_text(found.html(plan), encoding="utf-8")
        gained = sum(plan.gained().values())
        console.print(
            f"\n[bold]{title}[/]  ({how}); propagation pruned {gained:,} more elements; page: {page}"
        )
        for row in found.rows[: 6 if args.layers > 1 else None]:
            console.print(
                f"  {row.name}: {row.density:.0%} alive → {row.format}. {row.reason}", highlight=False
            )
        console.print(f"  … {found.summary()}", highlight=False)
        table.add_row(title, f"{dense_s * 1e3:.1f} ms", f"{sparse_s * 1e3:.1f} ms",
                      f"{dense_s / sparse_s:.2f} x", f"{error:.1e}",
                      f"{found.parameters / found.parameters_before:.0%}", f"{built_s:.1f} s")  # fmt: skip
        torchsparta.save(fast, args.out / f"sparta-{title.split()[0]}.safetensors")
    console.print()
    console.print(table)
    console.print(
        "masked: the same masks in eager PyTorch, zeros multiplied like any other number\n"
        "error: largest difference from the masked model in float64, relative to its largest output\n"
        "alive: parameters that are left, embeddings included",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
