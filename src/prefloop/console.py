"""What a run looks like in a terminal: a live table of stages, and a summary at the end. And what people said."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_ON_POLICY = ("ppo", "reinforce", "rloo", "grpo", "reinforce_pp", "online_dpo")
_DIRECT = ("dpo", "ipo", "kto", "orpo", "simpo")
FIGURES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "pretrain": (("loss", "loss", ".2f"), ("held-out", "eval_loss", ".2f")),
    "sft": (("loss", "loss", ".2f"), ("held-out", "eval_loss", ".2f")),
    "label": (("votes", "votes", ".0f"), ("of", "wanted", ".0f")),
    "reward": (("loss", "loss", ".2f"), ("held-out accuracy", "eval_accuracy", ".0%")),
    "judge": (("loss", "loss", ".2f"), ("held-out accuracy", "eval_accuracy", ".0%")),
    **dict.fromkeys(
        _ON_POLICY,
        (
            ("reward", "reward", "+.2f"),
            ("true", "true_reward", ".3f"),
            ("KL", "kl", ".1f"),
            ("entropy", "entropy", ".2f"),
            ("tokens", "response_tokens", ".0f"),
        ),
    ),
    **dict.fromkeys(
        _DIRECT, (("loss", "loss", ".2f"), ("accuracy", "accuracy", ".0%"), ("margin", "margin", "+.2f"))
    ),
}
"""The figures of each stage that are worth watching: label, key, format."""

MEANINGS = {
    "pretrain": "a small model from plain text",
    "sft": "learn from demonstrations",
    "sample": "answer prompts",
    "label": "have the answers judged",
    "reward": "learn what is preferred",
    "judge": "learn it again, for the evaluation",
    **dict.fromkeys(_ON_POLICY, "train against the reward"),
    "online_dpo": "train on preferences among its own answers",
    **dict.fromkeys(_DIRECT, "train on the preferences directly"),
    "evaluation": "compare on held-out prompts",
}


@dataclass
class _Row:
    state: str = "waiting"
    progress: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text without control characters, but for tab and new line: a model's or a user's words must not steer a
    terminal. They are shown by name instead."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class RunDisplay:
    """Shows a run while it goes on: in place on a terminal, line by line elsewhere."""

    def __init__(self, stages: Sequence[str], console: Console | None = None) -> None:
        self._console = console or Console()
        self._rows = {stage: _Row() for stage in stages}
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, stage: str) -> None:
        self._rows[stage].state, self._rows[stage].started = "running", time.perf_counter()

    def skipped(self, stage: str) -> None:
        self._rows[stage].state = "unchanged"
        self._tell(stage)

    def line(self, stage: str, metrics: dict[str, float]) -> None:
        row = self._rows[stage]
        news = row.figures.get("votes") != metrics.get("votes")
        row.figures |= metrics
        row.progress = metrics.get("progress", row.progress)
        if row.state in ("waiting", "asking"):  # people are asked before the stage begins
            row.state = "asking"
            if news and row.progress < 1:
                self._tell(stage)

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text), style="yellow"))

    def finished(self, stage: str, seconds: float) -> None:
        self._rows[stage].state, self._rows[stage].seconds = "done", seconds
        self._tell(stage)

    def _tell(self, stage: str) -> None:
        if not self._console.is_terminal:
            row = self._rows[stage]
            seconds = f"{row.seconds:6.1f} s" if row.seconds else " " * 8
            self._console.print(f"{stage:<13}{row.state:<10}{seconds}  {_figures(stage, row)}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage, row in self._rows.items():
            seconds = time.perf_counter() - row.started if row.state == "running" else row.seconds
            busy = row.state in ("running", "asking")
            style = "bold cyan" if busy else {"done": "green", "unchanged": "green"}.get(row.state, "dim")
            bar = ProgressBar(total=1.0, completed=row.progress, width=16) if busy else ""
            table.add_row(
                Text(stage, style=style),
                bar or Text(row.state, style=style),
                Text(f"{seconds:.0f} s" if seconds else "", style="dim"),
                Text(_figures(stage, row) or ("" if row.state == "done" else MEANINGS[stage]), style="dim"),
            )
        return table


def _figures(stage: str, row: _Row) -> str:
    shown = row.figures
    return "  ".join(f"{name} {shown[key]:{how}}" for name, key, how in FIGURES.get(stage, ()) if key in shown)


def summary_table(summary: dict[str, Any]) -> Group:
    """The outcome of a run: every trained policy against the supervised one."""
    parts: list[Any] = [comparison_table(list(summary["evaluation"].values()))]
    accuracy = summary["stages"].get("reward", {}).get("accuracy")
    if accuracy:
        parts.append(
            Text(
                f"Reward model: {accuracy['value']:.1%} of {accuracy['n']} held-out comparisons right "
                f"({accuracy['low']:.0%} to {accuracy['high']:.0%})."
            )
        )
    parts.append(Text(f"{summary['seconds']:.0f} s of work, {summary['peak_memory_mb']:.0f} MB at the peak."))
    return Group(*parts)


def comparison_table(comparisons: Sequence[dict[str, Any]]) -> Group:
    """Win rates and what goes with them, one row a comparison; alarms below."""
    # Narrow enough for a terminal of 80 columns; a long path is folded, not cut.
    against = ", ".join(dict.fromkeys(f["against"] for f in comparisons))
    title = Text(f"On held-out prompts, against {against}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    for heading in ("win rate (95 %)", "judge's score", "learned reward", "tokens", "KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    below = []
    for figures in comparisons:
        rate = figures["win_rate"]
        table.add_row(
            Text(figures["name"]),
            f"{rate['value']:.1%} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})",
            _change(figures, "true_reward", ".3f"),
            _change(figures, "learned_reward", "+.2f"),
            _change(figures, "response_tokens", ".1f"),
            f"{figures['kl']:.1f}",
        )
        below += [Text(f"{figures['name']}: {alarm}", style="yellow") for alarm in figures["alarms"]]
    judged = [Text(f"Judged by: {f['judge']}, {f['win_rate']['n']} prompts.") for f in comparisons[:1]]
    return Group(table, *judged, *below)


def _change(figures: dict[str, Any], name: str, how: str) -> str:
    if f"{name}_before" not in figures:
        return ""
    return f"{figures[f'{name}_before']:{how}} → {figures[f'{name}_after']:{how}}"


# What people said


def statistics_tables(figures: dict[str, Any], days: int = 14) -> Group:
    """What `prefloop.feedback.statistics.Statistics.to_json` says, for a terminal of 80 columns."""
    totals = figures["totals"]
    sends = f" in {totals['sends']:,} sends" if totals["sends"] < totals["judgements"] else ""
    parts: list[Any] = [
        Text(
            f"{totals['judgements']:,} judgements{sends} by {totals['annotators']:,} annotators, "
            f"{totals['prompts']:,} prompts, {totals['completions']:,} answers, "
            f"{totals['demonstrations']:,} demonstrations."
        )
    ]
    if figures["flags"]:
        flags = (f"{printable(name)} {count:,}" for name, count in figures["flags"].items())
        parts.append(Text("Flags: " + ", ".join(flags)))
    if figures["days"]:
        parts.append(_days_table(figures["days"], days))
    for criterion in figures["criteria"]:
        parts += _criterion_parts(criterion)
    return Group(*parts)


def _days_table(rows: Sequence[dict[str, Any]], days: int) -> Table:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["date"]] = counts.get(row["date"], 0) + row["sends"]
    table = _plain_table("Sent by day (UTC)" + (f", the last {days}" if len(counts) > days else ""))
    most = max(counts.values())
    for date in sorted(counts)[-days:]:
        table.add_row(date, f"{counts[date]:>9,}", _bar(counts[date] / most, 40))
    return table


def _criterion_parts(found: dict[str, Any]) -> list[Any]:
    ties = "" if found["ties"] is None else f"; {found['ties']:.0%} of votes are ties"
    unsure = f"; {found['cannot_judge']:,} could not judge" if found["cannot_judge"] else ""
    head = (
        f"{found['judgements']:,} judgements of {found['pairs']:,} pairs, {found['shared']:,} of them by two "
        f"annotators or more{ties}{unsure}"
    )
    parts: list[Any] = [Text(f"\n{printable(found['name'])}", style="bold"), Text(head)]
    parts += _agreement_lines(found["agreement"])
    parts.append(_annotators_table(found["annotators"]))
    for one in found["annotators"]:
        reasons = [*one["suspicions"], *one["leanings"]]
        parts += [Text(printable(f"{one['name']}: {why}"), style="yellow") for why in reasons]
    parts += _bias_lines(found["bias"]) if found["bias"] else []
    if found["arms"]:
        parts.append(_arms_table(found["arms"]))
    parts += [_origins_table(field) for field in found["origins"]]
    if found["questions"]:
        short = {each["name"]: each["short"] for field in found["origins"] for each in field}
        parts.append(_questions_table(found["questions"], short))
    parts += [Text(f"{advice[0].upper()}{advice[1:]}.", style="cyan") for advice in found["advice"]]
    parts += [Text(f"Estimated from a part: {what}.", style="dim") for what in found["sampled"]]
    return parts


def _agreement_lines(found: dict[str, Any]) -> list[Text]:
    if not found["raw"]:
        return []
    alpha = ", ".join(
        f"{name} {_interval(found[key], '.2f')}"
        for name, key in (("nominal", "alpha"), ("ordinal", "alpha_ordinal"))
        if found[key]
    )
    lines = [Text(f"Two annotators say the same in {_share(found['raw'])} of cases. Krippendorff's α: {alpha}.")]
    if found["accuracy_of_one"]:
        lines.append(
            Text(
                f"Where both take a side, in {_share(found['decided'])}: as if each were right in "
                f"{_share(found['accuracy_of_one'])}."
            )
        )
    return lines


def _annotators_table(rows: Sequence[dict[str, Any]], most: int = 40) -> Table:
    more = f" (the {most} with the most judgements, of {len(rows)})" if len(rows) > most else ""
    table = _plain_table(f"Annotators{more}")
    table.add_column("", overflow="fold")
    for heading in ("judged", "sec.", "gold", "agrees", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("η: 0 ─── ½ ─── 1", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)
    for row in rows[:most]:
        table.add_row(
            Text(printable(row["name"]), style="yellow" if row["suspicions"] else ""),
            f"{row['judgements']:,}",
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            *("" if row[key] is None else f"{row[key]['value']:.0%}" for key in ("gold", "agreement", "left")),
            _interval_bar(row["reliability"], 15) if row["reliability"] else "",
            f"{row['weight']:.2f}",
        )
    table.show_header = True
    return table


def _bias_lines(found: dict[str, Any]) -> list[Text]:
    """Logits as the share of votes that two otherwise equal answers would get."""
    lines = [f"the answer shown first {_chosen(found['position'], 1.0)}"]
    told = {
        "length": ("one twice as long", 1 / 3),
        "lists": ("one with a list, against one without,", 1.0),
        "headings": ("one with headings, against one without,", 1.0),
    }
    for name, effect in found["features"].items():
        what, difference = told[name]
        lines.append(f"{what} {_chosen(effect, difference)}")
    if found["within_pairs"]:
        lines.append(f"the answer shown first, by pairs judged in both orders, {_chosen(found['within_pairs'], 1.0)}")
    return [Text("Bias: of two answers equal otherwise,")] + [Text(f"  {line}") for line in lines]


def _arms_table(found: dict[str, Any]) -> Table:
    table = _plain_table("Chosen by priority, and the control group")
    table.add_column("")
    for heading in ("votes", "ties (95 %)", "two say the same"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, arm in (("by priority", found["priority"]), ("control, by lot", found["control"])):
        table.add_row(name, f"{arm['votes']:,}", *(_share(arm[key]) if arm[key] else "" for key in ("ties", "raw")))
    table.add_row("difference", "", *(_points(found[key]) if found[key] else "" for key in ("ties", "raw")))
    table.show_header = True
    return table


def _origins_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _plain_table("Whose answers win?")
    table.add_column("", overflow="fold")
    for heading in ("won (95 %)", "score (95 %)", "votes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        score = _interval(row["score"], "+.2f")
        table.add_row(Text(printable(row["short"])), _share(row["win_rate"]), score, f"{row['win_rate']['n']:,}")
    table.show_header = True
    return table


def _questions_table(rows: Sequence[dict[str, Any]], short: dict[str, str]) -> Table:
    table = _plain_table("Which is better?")
    table.add_column("", overflow="fold")
    table.add_column("over", overflow="fold")
    for heading in ("win rate (95 %)", "votes", "still needed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        rate, needed = row["win_rate"], row["needed"]
        missing = "none: answered" if needed["answered"] else "no end" if needed["more"] is None else ""
        table.add_row(
            Text(printable(short.get(row["one"], row["one"]))),
            Text(printable(short.get(row["other"], row["other"]))),
            f"{rate['value']:.1%} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})",
            f"{rate['n']:,}",
            missing or f"{needed['more']:,}",
        )
    table.show_header = True
    return table


def _plain_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_header=False,
    )


def _share(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.0%} ({100 * estimate['low']:.0f}–{100 * estimate['high']:.0f})"


def _points(estimate: dict[str, Any]) -> str:
    return "{:+.0f} ({:+.0f} to {:+.0f})".format(*(100 * estimate[key] for key in ("value", "low", "high")))


def _interval(estimate: dict[str, Any], how: str) -> str:
    return f"{estimate['value']:{how}} ({estimate['low']:{how}} to {estimate['high']:{how}})"


def _chosen(logits: dict[str, Any], difference: float) -> str:
    low, value, high = (1 / (1 + math.exp(-difference * logits[key])) for key in ("low", "value", "high"))
    return f"is chosen in {value:.0%} ({100 * low:.0f}–{100 * high:.0f})"


def _bar(share: float, width: int) -> str:
    eighths = round(8 * width * share)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _interval_bar(estimate: dict[str, Any], width: int) -> str:
    """An interval between 0 and 1 as a line with its value on it; a mark at one half."""
    low, value, high = (round((width - 1) * min(1.0, max(0.0, estimate[key]))) for key in ("low", "value", "high"))
    line = ["─" if low <= k <= high else "·" for k in range(width)]
    line[width // 2] = "┼" if low <= width // 2 <= high else "│"
    line[value] = "●"
    return "".join(line)
