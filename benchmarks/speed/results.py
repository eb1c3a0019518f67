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
    ratio_whole: float | None
    """Of the seconds of the whole processes."""
    share_of_limit: float
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
    return Row(
        work=work,
        size=size,
        setting=setting,
        ours=median(items * turn.ours.steady for turn in turns),
        peer=_median([items * peer.steady for _, peer in with_peer]),
        ratio=_median([ours.steady / peer.steady for ours, peer in with_peer]),
        ratio_whole=_median([peer.seconds / ours.seconds for ours, peer in with_peer]),
        share_of_limit=median(_share(turn, items) for turn in turns),
        memory_mb=median(turn.ours.peak_mb for turn in turns),
        memory_ratio=_median([ours.peak_mb / peer.peak_mb for ours, peer in with_peer]),
        loss=losses[0] if losses else None,
        peer_loss=losses[1] if len(losses) > 1 else None,
        figures=turns[-1].ours.figures,
    )


def _share(turn: Turn, items: int) -> float:
    """Of the bare model's tokens a second."""
    limit = turn.limit.figures["tokens"] * (len(turn.limit.ends) - 1) * turn.limit.steady
    return items * turn.ours.steady / limit


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
        "" if row.ratio is None else f"{row.ratio:.1f} ×",
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
    """``path`` as JSON, and the plot beside it."""
    content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
