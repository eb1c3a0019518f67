"""Line charts and trajectories as inline SVG: several series, bands, rules, marked points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from prefloop.report.read import Points
from prefloop.report.scale import Scale, finite, number, padded, percent, rolling, thin, tick_label
from prefloop.report.svg import Chart, Frame, Key, Spot, Track, drawing, el, left_margin, path

MOST_POINTS = 120  # what a screen can show; longer series are drawn as means with their range
SMALL = (340.0, 178.0)
NORMAL = (470.0, 262.0)


@dataclass(frozen=True)
class Series:
    """`smooth` draws the values faintly and their rolling mean above; `values` replaces what is read out."""

    name: str
    points: Points
    tone: str = "blue"
    dashed: bool = False
    dots: bool = False
    smooth: bool = False
    values: Sequence[str] | None = None


@dataclass(frozen=True)
class Mark:
    """A ringed point with a few words beside it."""

    x: float
    y: float
    text: str
    tone: str = "grey"


@dataclass(frozen=True)
class Options:
    x_label: str = "step"
    size: tuple[float, float] = NORMAL
    zero: bool = False
    share: bool = False
    log: bool = False
    free: bool = False  # a trajectory: x need not increase, nothing is thinned or smoothed
    rules: Sequence[tuple[float, str]] = ()
    marks: Sequence[Mark] = field(default_factory=tuple)
    y_range: tuple[float, float] | None = None
    heading: str = ""  # what a chart shows that shares its figure with another


def line_chart(label: str, series: Sequence[Series], options: Options | None = None) -> Chart | None:
    """Draws what is finite; None where nothing is. The note says how many values could not be drawn."""
    options = options or Options()
    lost = sum(len(s.points) - len(finite(s.points)) for s in series)
    drawn = [s for s in series if finite(s.points)]
    note = f"{lost} values are not finite numbers and are left out." if lost else ""
    if lost == 1:
        note = "1 value is not a finite number and is left out."
    if not drawn:
        return None
    frame, y_values, y_texts = _frame(drawn, options)
    show: Callable[[float], str] = percent if options.share else number
    body = frame.axes(options.x_label, y_texts, y_values)
    if options.heading:
        body.append(el("text", options.heading, class_="name", x=2, y=14))
    body += [_rule(frame, value, text) for value, text in options.rules]
    tracks = []
    for one in drawn:
        shapes, track = _draw(one, frame, options, show)
        body += shapes
        tracks.append(track)
    for mark in options.marks:
        body += _marked(frame, mark)
    keys = [Key(s.name, s.tone, "dashed" if s.dashed else "line") for s in drawn] if len(drawn) > 1 else []
    svg = drawing(*options.size, _described(label, drawn, show, options), body, tracks)
    return Chart(svg, keys, note)


def _described(label: str, drawn: Sequence[Series], show: Callable[[float], str], options: Options) -> str:
    said = []
    for one in drawn:
        points = finite(one.points)
        said.append(f"{one.name} from {show(points[0][1])} to {show(points[-1][1])}")
    kind = "Trajectory" if options.free else "Line chart"
    return f"{kind}, {label}: {'; '.join(said)}."


def _frame(drawn: Sequence[Series], options: Options) -> tuple[Frame, list[float], list[str]]:
    xs = [x for s in drawn for x, _ in finite(s.points)]
    ys = [y for s in drawn for _, y in finite(s.points)] + [value for value, _ in options.rules]
    if options.log:
        above = [y for y in ys if y > 1e-12] or [1e-9]  # what is smaller lies on the floor
        low, high = 10 ** math.floor(math.log10(min(above))), 10 ** math.ceil(math.log10(max(above)))
        low, high = (low, high) if high > low else (low, low * 10)
    else:
        low, high = options.y_range or _range(ys, options)
    width, height = options.size
    top, bottom = 30.0 if options.heading else 12.0, height - (38.0 if options.x_label else 24.0)
    y = Scale(low, high, bottom, top, options.log)
    values = y.ticks(4 if height < 220 else 5)
    texts = _tick_labels(values, options)
    left, right = left_margin(texts), width - 12.0
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else padded(min(xs), max(xs))
    if options.free:
        x_low, x_high = min(0.0, x_low), x_high + 0.04 * (x_high - x_low)
    return Frame(Scale(x_low, x_high, left, right), y, left, right, top, bottom), values, texts


def _tick_labels(values: Sequence[float], options: Options) -> list[str]:
    if options.share:
        digits = 0 if all(abs(100 * value - round(100 * value)) < 1e-6 for value in values) else 1
        return [percent(value, digits) for value in values]
    if options.log:  # each by itself: beside 1, the others would be written with as many decimals as the smallest
        return [tick_label(value, [value]) if value < 0.01 else f"{value:g}" for value in values]
    return [tick_label(value, values) for value in values]


def _range(ys: Sequence[float], options: Options) -> tuple[float, float]:
    low, high = padded(min(ys), max(ys))
    if options.zero and min(ys) >= 0:
        low = 0.0
    if options.share:
        low, high = max(low, 0.0), min(high, 1.0) if max(ys) <= 1 else high
        if not high > low:
            low, high = (0.0, 1.0) if high in (0.0, 1.0) else padded(low, low)
    return low, high


def _rule(frame: Frame, value: float, text: str) -> Markup:
    y = frame.y(value)
    line = el("line", class_="rule", x1=frame.left, x2=frame.right, y1=y, y2=y)
    return line + el("text", text, class_="note", x=frame.right, y=y - 4, text_anchor="end")


def _draw(one: Series, frame: Frame, options: Options, show: Callable[[float], str]) -> tuple[list[Markup], Track]:
    raw = finite(one.points)
    points, band = (raw, []) if options.free or len(raw) <= 150 else thin(raw, MOST_POINTS)
    tone = f"tone-{one.tone}"
    shapes = []
    wide = len(raw) >= 4 * len(points)  # enough values in each bucket for their range to mean something
    if band and wide:
        upper = [(frame.x(x), frame.y(high)) for x, _, high in band]
        lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(band)]
        shapes.append(el("path", class_=f"band {tone}", d=path(upper + lower) + "Z"))
    placed = [(frame.x(x), frame.y(y)) for x, y in points]
    dashed = " dashed" if one.dashed else ""
    smooth = one.smooth and len(points) >= 24
    if len(placed) > 1 and not (smooth and wide):
        shapes.append(el("path", class_=f"line {tone}{' faint' if smooth else dashed}", d=path(placed)))
    if smooth:
        mean = rolling(points, max(3, len(points) // 12))
        strong = [(frame.x(x), frame.y(y)) for x, y in mean]
        shapes.append(el("path", class_=f"line {tone}{dashed}", d=path(strong)))
    if len(placed) == 1 or (one.dots and len(placed) <= 60):
        shapes += [el("circle", class_=f"dot {tone}", cx=x, cy=y, r=2.6) for x, y in placed]
    texts = one.values or [show(y) for _, y in points]
    axis = options.x_label or "step"
    spots = [
        Spot(px, py, f"{axis} {number(x if options.free or not band else round(x))}", text)
        for (px, py), (x, _), text in zip(placed, points, texts, strict=True)
    ]
    return shapes, Track(one.name, one.tone, spots)


def _marked(frame: Frame, mark: Mark) -> list[Markup]:
    x, y = frame.x(mark.x), frame.y(mark.y)
    right_half = x > (frame.left + frame.right) / 2
    above = y - 11 if y - 11 > frame.top else y + 19
    anchor = "end" if right_half else "start"
    return [
        el("circle", class_=f"ring tone-{mark.tone}", cx=x, cy=y, r=5),
        el("text", mark.text, class_="marked", x=x + (6 if right_half else -6), y=above, text_anchor=anchor),
    ]
