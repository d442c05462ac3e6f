"""Draws the README's picture from the figures that bench.py wrote: speed-up over eager PyTorch, one row a case.

python benchmarks/plot.py benchmarks/results/cpu.json docs/images/bench.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

COLOURS = {
    "inductor": "#9aa5b1", "inductor-max": "#7b8794", "onnxruntime": "#c9a96a", "openvino": "#8fb8a8",
    "roller": "#d64545",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--cases", nargs="*", help="names of the cases to show; default: all that eager ran")
    args = parser.parse_args()
    data = json.loads(args.figures.read_text())
    results = [r for r in data["results"] if "eager" in r["rows"] and "roller" in r["rows"]]
    if args.cases:
        results = [r for r in results if r["case"] in args.cases]
    if not results:
        parser.error(f"{args.figures} holds no case that both eager and roller ran")
    draw(data["machine"], results, args.picture)
    return 0


def draw(about: dict, results: list[dict], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in COLOURS if any(n in r["rows"] for r in results)]
    height = 0.8 / len(names)
    fig, axis = plt.subplots(figsize=(9, 0.55 * len(results) + 1.6))
    for k, name in enumerate(names):
        speeds = [
            r["rows"]["eager"]["median_s"] / r["rows"][name]["median_s"] if name in r["rows"] else 0.0
            for r in results
        ]
        places = [i + (k - (len(names) - 1) / 2) * height for i in range(len(results))]
        axis.barh(places, speeds, height, color=COLOURS[name], label=name)
        if name == "roller":
            for place, speed in zip(places, speeds):
                axis.text(speed + 0.02, place, f"{speed:.2f}×", va="center", fontsize=7)
    axis.axvline(1.0, color="#323f4b", linewidth=1)
    axis.set_yticks(range(len(results)), [r["case"] for r in results], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("speed-up over eager PyTorch (medians of interleaved rounds)")
    versions = about["versions"]
    axis.set_title(
        f"{about['processor']}, {about['cores']} cores, torch {versions.get('torch')}, {about['when']}",
        fontsize=9,
    )
    axis.legend(fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    fig.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(picture)


if __name__ == "__main__":
    sys.exit(main())
