"""The rewriter over several seeds: what docs/rewriter.md reports.

    python benchmarks/rewriter.py --seeds 0 1 2 3 [--folder runs-of-benchmark] [--set ppo.kl_coef=0.1]

Runs the demo for each seed in a folder of its own, one after the other, and prints a table for each policy, one row a
seed. `--set 'algorithms=["ppo", "rloo", "grpo"]'` trains others than the demo's. Runs that are
there already are not repeated (stages whose inputs did not change are skipped).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("prefloop-demo/benchmark"))
    parser.add_argument("--set", dest="settings", action="append", default=[])
    options = parser.parse_args()
    summaries = [run(seed, options.folder / f"seed-{seed}", options.settings) for seed in options.seeds]
    print(tables(summaries))


def run(seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """One seed, in a process of its own, so that its memory and its time are its own."""
    command = [sys.executable, "-m", "prefloop", "demo", "--seed", str(seed), "--folder", str(folder)]
    subprocess.run([*command, *(part for setting in settings for part in ("--set", setting))], check=True)
    summary: dict[str, Any] = json.loads((folder / f"runs/seed-{seed}/summary.json").read_text(encoding="utf-8"))
    return summary


def tables(summaries: list[dict[str, Any]]) -> str:
    """A Markdown table for each policy, a row for each seed."""
    names = dict.fromkeys(name for summary in summaries for name in summary["evaluation"])
    return "\n\n".join(f"{name}\n\n{table(name, summaries)}" for name in names)


def table(name: str, summaries: list[dict[str, Any]]) -> str:
    """One policy's figures; the seconds are those of its own stage."""
    parts_judged = ("politeness", "brevity", "faithfulness")
    headings = ("seed", "win rate (95 %)", "true reward", *parts_judged, "KL", "tokens", "seconds of training")
    rows = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for summary in summaries:
        figures = summary["evaluation"].get(name)
        if figures is None:
            continue
        rate, parts = figures["win_rate"], figures["parts"]
        cells = [
            str(summary["seed"]),
            f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})",
            f"{figures['true_reward_before']:.3f} → {figures['true_reward_after']:.3f}",
            *(f"{parts[part]['before']:.3f} → {parts[part]['after']:.3f}" for part in parts_judged),
            f"{figures['kl']:.2f}",
            f"{figures['response_tokens_before']:.1f} → {figures['response_tokens_after']:.1f}",
            f"{summary['stages'][name]['seconds']:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
