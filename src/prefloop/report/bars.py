"""Charts of a few figures: intervals, before and after, shares of a whole, calibration, histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prefloop.report.entries import Interval
from prefloop.report.scale import (
    THIN,
    Scale,
    drawable,
    interval_text,
    number,
    padded,
    percent,
    tick_label,
    ticks,
    wilson,
)
from prefloop.report.svg import Chart, Frame, Key, Spot, Track, drawing, el, path

WIDTH = 470.0
ROW = 46.0
NEVER_LABELLED = 34.0  # a segment narrower than this has its figure in the legend alone


@dataclass(frozen=True)
class Row:
    """One line of a forest plot. `hollow` marks a second reading of the row above it."""

    label: str
    interval: Interval
    tone: str = "blue"
    hollow: bool = False


def forest(label: str, rows: Sequence[Row], rule: str = "no difference") -> Chart | None:
    """Shares with their 95 % intervals around a line at one half."""
    rows = [row for row in rows if drawable(row.interval.value)]
    if not rows:
        return None
    ends = [e for row in rows for e in (row.interval.low, row.interval.high, 0.5)]
    low, high = max(0.0, min(ends) - 0.05), min(1.0, max(ends) + 0.05)
    height = 16 + ROW * len(rows) + 34
    x = Scale(low, high, 14.0, WIDTH - 14.0)
    body = _share_axis(x, height - 34)
    middle = x(0.5)
    body.append(el("line", class_="rule strong", x1=middle, x2=middle, y1=8, y2=height - 34))
    anchor, shift = ("start", 5) if middle < WIDTH / 2 else ("end", -5)
    body.append(el("text", rule, class_="note", x=middle + shift, y=height - 40, text_anchor=anchor))
    spots: list[Track] = []
    for i, row in enumerate(rows):
        y = 40 + ROW * i
        body += _forest_row(x, y, row)
        read = f"{percent(row.interval.value)} ({interval_text(row.interval)})"
        spots.append(Track("", row.tone, [Spot(x(row.interval.value), y, row.label, read)]))
    said = "; ".join(f"{r.label} {percent(r.interval.value)}, interval {interval_text(r.interval)}" for r in rows)
    return Chart(drawing(WIDTH, height, f"Interval plot, {label}: {said}.", body, spots))


def _share_axis(x: Scale, bottom: float) -> list[Markup]:
    parts = [el("line", class_="axis", x1=x.start, x2=x.end, y1=bottom, y2=bottom)]
    for value in x.ticks(6):
        at = x(value)
        parts.append(el("line", class_="grid", x1=at, x2=at, y1=8, y2=bottom))
        anchor = "end" if at > x.end - 12 else "start" if at < x.start + 12 else "middle"
        parts.append(el("text", percent(value, 0), class_="tick", x=at, y=bottom + 17, text_anchor=anchor))
    return parts


def _forest_row(x: Scale, y: float, row: Row) -> list[Markup]:
    low, value, high = x(row.interval.low), x(row.interval.value), x(row.interval.high)
    tone = f"tone-{row.tone}"
    figure = f"{percent(row.interval.value)}  ({interval_text(row.interval)}), n = {row.interval.n}"
    return [
        # A plate keeps the line at one half from running through the words.
        el("rect", class_="plate", x=x.start - 2, y=y - 24, width=7.6 * len(row.label) + 6, height=17),
        el("text", row.label, class_="name", x=x.start, y=y - 11),
        el("text", figure, class_="figure", x=x.end, y=y - 11, text_anchor="end"),
        el("line", class_=f"whisker {tone}", x1=low, x2=high, y1=y, y2=y),
        el("line", class_=f"whisker {tone}", x1=low, x2=low, y1=y - 4, y2=y + 4),
        el("line", class_=f"whisker {tone}", x1=high, x2=high, y1=y - 4, y2=y + 4),
        el("circle", class_=f"{'hollow' if row.hollow else 'dot'} {tone}", cx=value, cy=y, r=5),
    ]


def whisker(interval: Interval, tone: str) -> Markup:
    """The small bar under a headline figure: 0 to 100 %, with the middle marked."""
    x = Scale(0.0, 1.0, 6.0, 394.0)
    label = f"{percent(interval.value)}, 95 % interval {interval_text(interval)}, on a line from 0 to 100 %"
    body = [
        el("line", class_="axis", x1=6, x2=394, y1=9, y2=9),
        el("line", class_="rule strong", x1=200, x2=200, y1=2, y2=16),
        el("line", class_=f"thick tone-{tone}", x1=x(interval.low), x2=x(interval.high), y1=9, y2=9),
        el("circle", class_=f"dot tone-{tone}", cx=x(interval.value), cy=9, r=5),
    ]
    return drawing(400, 18, label, body, [])


@dataclass(frozen=True)
class Change:
    label: str
    before: float
    after: float
    tone: str = "blue"


def dumbbell(label: str, changes: Sequence[Change]) -> Chart | None:
    """Before (hollow) and after (full) on one common axis."""
    changes = [c for c in changes if drawable(c.before) and drawable(c.after)]
    if not changes:
        return None
    values = [v for c in changes for v in (c.before, c.after)]
    low, high = min(values), max(values)
    low, high = (0.0, 1.0) if low >= 0 and 0.3 < high <= 1 else padded(low, high)
    height = 16 + ROW * len(changes) + 28
    x = Scale(low, high, 16.0, WIDTH - 16.0)
    places = x.ticks(6)
    body: list[Markup] = []
    for value in places:
        at = x(value)
        body.append(el("line", class_="grid", x1=at, x2=at, y1=8, y2=height - 30))
        body.append(el("text", tick_label(value, places), class_="tick", x=at, y=height - 13, text_anchor="middle"))
    tracks: list[Track] = []
    for i, change in enumerate(changes):
        y = 40 + ROW * i
        body += _dumbbell_row(x, y, change)
        spots = [
            Spot(x(value), y, f"{change.label}, {when}", number(value))
            for when, value in (("before", change.before), ("after", change.after))
        ]
        tracks.append(Track("", change.tone, spots))
    said = "; ".join(f"{c.label} from {number(c.before)} to {number(c.after)}" for c in changes)
    svg = drawing(WIDTH, height, f"Before and after, {label}: {said}.", body, tracks)
    return Chart(svg, [Key("before", "grey", "ring"), Key("after", changes[0].tone, "dot")])


def _dumbbell_row(x: Scale, y: float, change: Change) -> list[Markup]:
    before, after = x(change.before), x(change.after)
    tone = f"tone-{change.tone}"
    return [
        el("text", change.label, class_="name", x=x.start - 6, y=y - 12),
        el(
            "text",
            f"{number(change.before)} → {number(change.after)}",
            class_="figure",
            x=x.end + 6,
            y=y - 12,
            text_anchor="end",
        ),
        el("line", class_=f"thick soft {tone}", x1=before, x2=after, y1=y, y2=y),
        el("circle", class_="hollow tone-grey", cx=before, cy=y, r=5),
        el("circle", class_=f"dot {tone}", cx=after, cy=y, r=5.5),
    ]


@dataclass(frozen=True)
class Part:
    """One segment of a whole; `text` is what is written into it where there is room."""

    name: str
    amount: float
    text: str
    tone: str


def shares(label: str, rows: Sequence[tuple[str, Sequence[Part]]], width: float = WIDTH) -> Chart | None:
    """Each row a bar of full width, divided in proportion."""
    rows = [(name, parts) for name, parts in rows if sum(part.amount for part in parts) > 0]
    if not rows:
        return None
    body: list[Markup] = []
    for i, (name, parts) in enumerate(rows):
        top = 4 + 58.0 * i
        body.append(el("text", name, class_="name", x=2, y=top + 12))
        body += _divided(parts, top + 20, width)
    said = "; ".join(f"{name}: {', '.join(f'{part.name} {part.text}' for part in parts)}" for name, parts in rows)
    svg = drawing(width, 58.0 * len(rows), f"Shares, {label}: {said}.", body, [])
    legend = [Key(part.name, part.tone, "block") for part in rows[0][1]]
    return Chart(svg, legend)


def _divided(parts: Sequence[Part], top: float, whole: float) -> list[Markup]:
    total, at, body = sum(part.amount for part in parts), 2.0, []
    for part in parts:
        width = part.amount / total * (whole - 4)
        if width > 0:
            shown = max(width - 1.5, 0.5)
            body.append(el("rect", class_=f"block tone-{part.tone}", x=at, y=top, width=shown, height=26, rx=2))
        if width > max(NEVER_LABELLED, 6.6 * len(part.text) + 10):
            middle = at + width / 2
            body.append(el("text", part.text, class_="inside", x=middle, y=top + 17.3, text_anchor="middle"))
        at += width
    return body


def reliability(label: str, bins: Sequence[dict[str, float]]) -> Chart | None:
    """Predicted against observed share, a Wilson interval and a dot by the number of votes for each bin."""
    bins = [row for row in bins if all(drawable(value) for value in row.values())]
    if not bins:
        return None
    low = 0.5 if min(row["predicted"] for row in bins) >= 0.5 else 0.0
    bounds = [wilson(row["observed"], row["effective_n"]) for row in bins]
    floor = min([low, *(10 * b[0] // 1 / 10 for b in bounds)])
    height, most = 300.0, max(row["n"] for row in bins)
    left, right, bottom = 40.0, WIDTH - 14, height - 38
    # A little air on the left: the first labels of both axes would meet in the corner.
    frame = Frame(Scale(low - 0.03 * (1 - low), 1, left, right), Scale(floor, 1, bottom, 12), left, right, 12, bottom)
    values = ticks(floor, 1, 5)
    body = frame.axes("predicted probability", [tick_label(v, values) for v in values], values)
    body.append(el("path", class_="line tone-grey dashed thin", d=path([_at(frame, low), _at(frame, 1.0)])))
    spots = []
    for row, (lower, upper) in zip(bins, bounds, strict=True):
        x, y = frame.x(row["predicted"]), frame.y(row["observed"])
        body.append(el("line", class_="whisker tone-blue", x1=x, x2=x, y1=frame.y(lower), y2=frame.y(upper)))
        body.append(el("circle", class_="dot tone-blue", cx=x, cy=y, r=2.5 + 4 * math.sqrt(row["n"] / most)))
        read = f"observed {percent(row['observed'])}, {number(row['n'])} votes"
        spots.append(Spot(x, y, f"predicted {percent(row['predicted'])}", read))
    said = "; ".join(f"predicted {percent(r['predicted'])}, observed {percent(r['observed'])}" for r in bins)
    svg = drawing(WIDTH, height, f"Calibration, {label}: {said}.", body, [Track("", "blue", spots)])
    return Chart(svg, [Key("what was observed", "blue", "dot"), Key("perfect calibration", "grey", "dashed")])


def _at(frame: Frame, value: float) -> tuple[float, float]:
    return frame.x(value), frame.y(value)


def histogram(label: str, values: Sequence[float], x_label: str, tone: str = "blue") -> Chart | None:
    """Counts in bins of a round width; bars below zero are drawn in another tone, and hatched by outline.

    Values of exactly 0 (ties) are neither better nor worse: they stand in grey on top of the first bar above it.
    """
    values = [value for value in values if drawable(value)]
    if len(values) < 8 or min(values) == max(values):
        return None
    places = ticks(*padded(min(values), max(values), 0.0), 30)
    step = places[1] - places[0] if len(places) > 1 else max(values) - min(values)
    first = math.floor(min(values) / step)
    counts = [0] * (math.floor(max(values) / step) - first + 1)
    for value in values:
        counts[min(max(math.floor(value / step) - first, 0), len(counts) - 1)] += 1
    edges = [(first + i) * step for i in range(len(counts) + 1)]
    right_end, bottom = WIDTH - 12, 232.0 - 38
    across, up = Scale(edges[0], edges[-1], 40, right_end), Scale(0, max(counts) * 1.06, bottom, 12)
    frame = Frame(across, up, 40, right_end, 12, bottom)
    marks = [v for v in frame.y.ticks(4) if v == int(v)]
    body = frame.axes(x_label, [tick_label(v, marks) for v in marks], marks)
    spots = []
    ties = sum(value == 0 for value in values)
    for i, count in enumerate(counts):
        sides = edges[i], edges[i + 1]
        shade = "tone-orange outlined" if sides[1] <= step * 1e-6 else f"tone-{tone}"
        unchanged = ties if i == -first else 0
        body += _bar(frame, sides, 0, count - unchanged, shade)
        body += _bar(frame, sides, count - unchanged, count, "tone-grey")
        read = f"{count} prompts" + (f", {unchanged} of them unchanged" if unchanged else "")
        middle = (frame.x(sides[0]) + frame.x(sides[1])) / 2
        spots.append(Spot(middle, frame.y(count), f"{number(sides[0])} to {number(sides[1])}", read))
    if edges[0] < 0 < edges[-1]:
        at = frame.x(0)
        body.append(el("line", class_="rule strong", x1=at, x2=at, y1=8, y2=frame.bottom))
    said = f"{sum(v > 0 for v in values)} above zero, {sum(v < 0 for v in values)} below, of {len(values)}{THIN}"
    keys = [Key("after is better", tone, "block"), Key("after is worse", "orange", "outlined")]
    keys += [Key("no change", "grey", "block")] if ties else []
    return Chart(drawing(WIDTH, bottom + 38, f"Histogram, {label}: {said}", body, [Track("", tone, spots)]), keys)


def _bar(frame: Frame, sides: tuple[float, float], low: float, high: float, shade: str) -> list[Markup]:
    """One bar, or the part of one, from `low` to `high`; nothing where it has no height."""
    if high <= low:
        return []
    left, right, top = frame.x(sides[0]) + 0.8, frame.x(sides[1]) - 0.8, frame.y(high)
    height, width = frame.y(low) - top, max(right - left, 1)
    return [el("rect", class_=f"block {shade}", x=left, y=top, width=width, height=height)]
