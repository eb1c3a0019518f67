"""The demo's recipe, and the one that a new project starts from."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any, Literal


def demo_table(name: str, seed: int, algorithm: Literal["ppo", "dpo", "both"], human: bool) -> dict[str, Any]:
    """The embedded world's recipe with the demo's options."""
    table = tomllib.loads(files("prefloop.demo").joinpath("rewriter.toml").read_text(encoding="utf-8"))
    table |= {"name": name, "seed": seed}
    table["algorithms"] = ["ppo", "dpo"] if algorithm == "both" else [algorithm]
    if human:
        # People judge dozens of pairs, not thousands: sample what they can look at, and learn from it for longer.
        table["label"] = {"by": "human", "minimum": 30}
        table["sample"] |= {"prompts": 150, "heldout": 50}
        table["reward"] |= {"epochs": 4.0}
    return table


def starter_text(name: str) -> str:
    """A commented recipe for a new project."""
    return files("prefloop.demo").joinpath("starter.toml").read_text(encoding="utf-8").replace("NAME", name, 1)
