"""The store's statistics for administrators: the figures as JSON, and drawn and explained as HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Lock
from time import monotonic
from typing import Any

from markupsafe import Markup

from prefloop.feedback.assignment import Queue
from prefloop.feedback.intervals import Estimate
from prefloop.feedback.statistics import AnnotatorStatistics, CriterionStatistics, Day, Statistics, statistics
from prefloop.feedback.store import Store
from prefloop.report.bars import Row, forest
from prefloop.report.entries import Interval
from prefloop.report.scale import Scale, interval_text, number, percent
from prefloop.report.svg import Chart, Key, drawing, el

PATIENCE = 5
"""Statistics are kept for so many times as long as they took."""
MOST_DAYS = 60
"""Columns of the chart of votes over time; of more days the last."""
MOST_ROWS = 24
"""Annotators in a chart; of more, those with the most judgements. The table has all."""
SOURCES = {"human": "blue", "imported": "grey", "simulated": "purple", "ai": "orange", "program": "green"}

_SIDES = {
    "position": ("shown first", "shown later"),
    "length": ("that is longer", "that is shorter"),
    "lists": ("with more lists", "with fewer lists"),
    "headings": ("with more headings", "with fewer headings"),
}
"""What votes go to when an effect is above 0, and below."""


@dataclass(frozen=True)
class Counted:
    """Statistics, and when they were true."""

    found: Statistics
    at: datetime
    seconds: float
    """How long they took."""


class CachedStatistics:
    """The statistics of a store, estimated in one thread at a time and kept.

    What is kept serves as long as nothing was said or skipped since, and else for `PATIENCE` times what it took: an
    administrator who reloads the page leaves the processor to those who judge. Who asks meanwhile gets what is kept;
    only where there is nothing yet do they wait.
    """

    def __init__(self, store: Store, queue: Queue, clock: Callable[[], float] = monotonic) -> None:
        self._store, self._queue, self._clock = store, queue, clock
        self._turn = Lock()
        self._kept: Counted | None = None
        self._finished = 0.0
        self._of: object = None

    def get(self) -> Counted:
        kept = self._kept
        if kept is not None and self._clock() - self._finished < PATIENCE * kept.seconds:
            return kept
        if kept is None:
            with self._turn:
                return self._kept or self._count(self._now())
        if not self._turn.acquire(blocking=False):
            return kept
        try:
            now = self._now()
            return kept if now == self._of else self._count(now)
        finally:
            self._turn.release()

    def _now(self) -> tuple[int, dict[str, int]]:
        """What changes with whatever the figures are about."""
        return self._store.newest_judgement(), self._queue.skips()

    def _count(self, now: tuple[int, dict[str, int]]) -> Counted:
        at, started = datetime.now(UTC), self._clock()
        gold, arms = self._queue.gold_ranks(), self._queue.arms()
        found = statistics(self._store, gold=gold, skips=now[1], arms=arms)
        self._finished = self._clock()
        self._of, self._kept = now, Counted(found, at, self._finished - started)
        return self._kept


@dataclass(frozen=True)
class Figure:
    """A chart under its title, with what it shows in words."""

    title: str
    chart: Chart
    caption: str


def figures(counted: Counted) -> dict[str, Any]:
    """The figures by their names, intervals as objects; and when they were counted, in how many seconds."""
    made: dict[str, Any] = json.loads(counted.found.to_json())
    return made | {"counted": {"at": counted.at.isoformat(), "seconds": counted.seconds}}


def described(counted: Counted) -> dict[str, Any]:
    """What the template ``statistics.html`` shows."""
    found = counted.found
    return {
        "counted": counted,
        "found": found,
        "over_time": votes_over_time(found.days),
        "criteria": [(one, list(charts(one)), list(bias_rows(one))) for one in found.criteria],
        "percent": percent,
        "number": number,
        "estimate": estimate,
        "points": points,
        "short": {each.name: each.short for one in found.criteria for field in one.origins for each in field},
        "plain": plain,
    }


def plain(text: str) -> str:
    """Text in which what cannot be seen, or would turn its neighbours round, is spelled out."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def estimate(value: Estimate | None, share: bool = True) -> str:
    """A figure with its interval, or a dash."""
    if value is None:
        return "–"
    interval = _interval(value)
    if share:
        return f"{percent(interval.value)} ({interval_text(interval)})"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def points(value: Estimate | None) -> str:
    """A difference of shares with its interval, in percentage points."""
    if value is None:
        return "–"
    return "{:+.1f} ({:+.1f} to {:+.1f}) points".format(*(100 * value[key] for key in ("value", "low", "high")))


def charts(one: CriterionStatistics) -> Iterable[Figure]:
    """The charts of one criterion; only those for which there is something to draw."""
    shown = sorted(one.annotators, key=lambda annotator: -annotator.judgements)[:MOST_ROWS]

    def drawn(label: str, rule: str, values: Sequence[tuple[AnnotatorStatistics, Estimate | None]]) -> Chart | None:
        rows = [
            Row(plain(who.name), _interval(value), "rose" if who.suspicions else "blue")
            for who, value in values
            if value is not None
        ]
        return forest(label, rows, rule)

    drawings = (
        (
            "Reliability",
            drawn("reliability", "a coin", [(who, who.reliability) for who in shown]),
            "How often each sees the difference that the others' votes imply (Crowd-BT). At one half somebody "
            "says as much as a coin. Red: see the table for why.",
        ),
        (
            "Agreement with the others",
            drawn("agreement", "one half", [(who, who.agreement) for who in shown]),
            "Share of votes that go with the majority of the others on the same pair.",
        ),
        (
            "Gold items",
            drawn("gold", "a coin", [(who, who.gold) for who in shown]),
            "Share of the items with a known answer that each got right.",
        ),
        (
            "The answer shown first",
            drawn("shown first", "no preference", [(who, who.left) for who in shown]),
            "How often each chose the answer that was shown first. The order is drawn by lot, so one half is fair.",
        ),
    )
    for title, chart, caption in drawings:
        if chart is not None:
            yield Figure(title, chart, caption)


def bias_rows(one: CriterionStatistics) -> Iterable[tuple[str, str, str]]:
    """What moves a vote besides quality: name, effect in logits with its interval, what it means."""
    if one.bias is None:
        return
    effects = {"position": one.bias.position, **one.bias.features}
    for name, effect in effects.items():
        more, less = _SIDES[name]
        clear = effect["low"] > 0 or effect["high"] < 0
        side = more if effect["value"] > 0 else less
        yield name, estimate(effect, share=False), f"for the answer {side}" if clear else "not clear of 0"


def votes_over_time(days: Sequence[Day]) -> Figure | None:
    """What was sent on each day as columns, by source."""
    if not days:
        return None
    counts: Counter[tuple[str, str]] = Counter()
    for day in days:
        counts[day.date, day.source] += day.sends
    last = date.fromisoformat(days[-1].date)
    first = max(date.fromisoformat(days[0].date), last - timedelta(days=MOST_DAYS - 1))
    dates = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    sources = [name for name in SOURCES if any(counts[when, name] for when in dates)]
    svg = _columns(dates, sources, counts)
    hidden = sum(day.sends for day in days if day.date < dates[0])
    earlier = f" {hidden} earlier ones are not drawn." if hidden else ""
    keys = [Key(name, SOURCES[name], "block") for name in sources]
    caption = (
        f"What was sent and counts, by the day (UTC) and who sent it; several criteria at once are one.{earlier}"
    )
    return Figure("Votes over time", Chart(svg, keys), caption)


def _columns(dates: Sequence[str], sources: Sequence[str], counts: Counter[tuple[str, str]]) -> Markup:
    width, height, left, bottom = 720.0, 190.0, 44.0, 160.0
    totals = [sum(counts[when, name] for name in sources) for when in dates]
    y = Scale(0.0, float(max(totals)), bottom, 12.0)
    step = (width - left - 8) / len(dates)
    body = []
    for value in y.ticks(4):
        at = y(value)
        body.append(el("line", class_="grid", x1=left, x2=width - 8, y1=at, y2=at))
        body.append(el("text", number(value), class_="tick", x=left - 7, y=at + 3.7, text_anchor="end"))
    for place, when in enumerate(dates):
        base = 0
        for name in sources:
            top = base + counts[when, name]
            if top > base:
                title = el("title", f"{when}: {counts[when, name]} {name}")
                box = {"x": left + step * place + step * 0.1, "width": max(1.0, min(step * 0.8, 48.0))}
                tone = f"block tone-{SOURCES[name]}"
                body.append(el("rect", title, class_=tone, y=y(top), height=y(base) - y(top), **box))
            base = top
    for place in sorted({0, len(dates) - 1}):
        anchor = "start" if place == 0 else "end"
        x = left if place == 0 else width - 8
        body.append(el("text", dates[place], class_="tick", x=x, y=bottom + 18, text_anchor=anchor))
    label = f"Columns, sends a day: {sum(totals)} from {dates[0]} to {dates[-1]}, at most {max(totals)} on one."
    return drawing(width, height, label, body, [])


def _interval(value: Estimate) -> Interval:
    return Interval(value["value"], value["low"], value["high"], value["n"])
