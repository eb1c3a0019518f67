"""The results: a row for each work and size, as JSON, as a Markdown table and as a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.speed.jobs import Timing
from benchmarks.speed.plot import plot

ORDER = ("tiny", "small", "gpt2", "sft", "reward", "dpo", "ppo", "ppo-separate", "sample")
"""Of the table: sizes, and the works of each."""


@dataclass(frozen=True)
class Turn:
    """One repetition: what ran next to each other."""

    ours: Timing
    peer: Timing | None
    limit: Timing


@dataclass(frozen=True)
class Row:
    """One work at one size; medians over the turns, ratios of neighbours in time."""

    work: str
    size: str
    setting: dict[str, Any]
    """TRL's, the fastest of those tried."""
    ours: float
    """Tokens (PPO: episodes) a second, once under way."""
    peer: float | None
    ratio: float | None
    ratio_range: tuple[float, float] | None
    """Over the repetitions."""
    ratio_whole: float | None
    """Of the seconds of the whole processes."""
    share_of_limit: float
    """Of the bare model's step or decode loop, in tokens a second."""
    memory_mb: float
    memory_ratio: float | None
    """Peak memory, ours by theirs."""
    loss: float | None
    """On held-out rows after training; theirs beside it."""
    peer_loss: float | None
    figures: dict[str, float]


def summarise(
    work: str, size: str, setting: dict[str, Any], items: int, turns: Sequence[Turn], losses: Sequence[float]
) -> Row:
    """``items``: tokens or episodes of the whole work."""
    with_peer = [(turn.ours, turn.peer) for turn in turns if turn.peer is not None]
    ratios = [ours.steady / peer.steady for ours, peer in with_peer]
    return Row(
        work=work,
        size=size,
        setting=setting,
        ours=median(items * turn.ours.steady for turn in turns),
        peer=_median([items * peer.steady for _, peer in with_peer]),
        ratio=_median(ratios),
        ratio_range=(min(ratios), max(ratios)) if ratios else None,
        ratio_whole=_median([peer.seconds / ours.seconds for ours, peer in with_peer]),
        share_of_limit=median(_share(turn, items) for turn in turns),
        memory_mb=median(turn.ours.peak_mb for turn in turns),
        memory_ratio=_median([ours.peak_mb / peer.peak_mb for ours, peer in with_peer]),
        loss=losses[0] if losses else None,
        peer_loss=losses[1] if len(losses) > 1 else None,
        figures=turns[-1].ours.figures | {"gflops": turns[-1].limit.figures["gflops"]},
    )


def _share(turn: Turn, items: int) -> float:
    """Of the bare model's tokens a second; PPO's are those of its update."""
    limit = turn.limit.figures["tokens"] * (len(turn.limit.ends) - 1) * turn.limit.steady
    return turn.ours.figures.get("trained_tokens_per_second", items * turn.ours.steady) / limit


def _median(values: list[float]) -> float | None:
    return median(values) if values else None


HEAD = (
    "| work | size | prefloop | TRL | ratio | whole process | share of the limit | memory | loss (TRL's) |",
    "|---|---|---|---|---|---|---|---|---|",
)


def line(row: Row) -> str:
    """A line of the table."""
    cells = [
        row.work,
        row.size,
        f"{row.ours:,.0f}" if row.ours >= 100 else f"{row.ours:.2f}",
        "" if row.peer is None else f"{row.peer:,.0f}" if row.peer >= 100 else f"{row.peer:.2f}",
        ""
        if row.ratio is None or row.ratio_range is None
        else "{:.1f} × ({:.1f}–{:.1f})".format(row.ratio, *row.ratio_range),
        "" if row.ratio_whole is None else f"{row.ratio_whole:.1f} ×",
        f"{row.share_of_limit:.0%}",
        f"{row.memory_mb:,.0f} MB" + ("" if row.memory_ratio is None else f" ({row.memory_ratio:.0%})"),
        "" if row.loss is None else f"{row.loss:.4f} ({row.peer_loss:.4f})",
    ]
    return "| " + " | ".join(cells) + " |"


def machine() -> str:
    """What the figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(path: Path, rows: Sequence[Row]) -> None:
    """``path`` as JSON; below it the table (.md) and the plot (.svg). Other works and sizes that stand there stay, if
    they were measured on the same machine."""
    new = [asdict(row) for row in rows]
    measured = {(row["work"], row["size"]) for row in new}
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8")))["machine"] == machine():
        new = [row for row in before["rows"] if (row["work"], row["size"]) not in measured] + new
    new.sort(key=lambda row: (ORDER.index(row["size"]), ORDER.index(row["work"])))
    path.write_text(json.dumps({"machine": machine(), "rows": new}, indent=1) + "\n", encoding="utf-8")
    every = [Row(**row) for row in new]
    path.with_suffix(".md").write_text("\n".join([machine(), "", *HEAD, *map(line, every)]) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(plot(every), encoding="utf-8")
