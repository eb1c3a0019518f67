"""SVG elements as escaped text, the frame that every chart stands in, and what its hover read-out needs.

Colours come from CSS classes (`tone-blue`, ...), so that one drawing serves light, dark and paper. Nothing
uses a `style` attribute: the page's content security policy would refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from prefloop.report.scale import Scale, tick_label

TONES = ("blue", "orange", "green", "purple", "grey", "rose")
CHARACTER = 6.1  # mean width of a character of the 11-unit axis labels


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return _short(value)


def _short(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def el(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. `class_` is `class`, underscores become dashes; texts are escaped, Markup is kept."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup(written), Markup("").join(children))


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)


@dataclass(frozen=True)
class Spot:
    """One point of the hover read-out: where it is, and what is said about it."""

    x: float
    y: float
    title: str
    text: str


@dataclass(frozen=True)
class Track:
    """The points of one series, in the read-out under its name and colour."""

    name: str
    tone: str
    spots: list[Spot]


@dataclass(frozen=True)
class Key:
    """One entry of a legend: `kind` is line, dashed, dot or block."""

    name: str
    tone: str
    kind: str = "line"


@dataclass(frozen=True)
class Chart:
    svg: Markup
    keys: list[Key] = field(default_factory=list)
    note: str = ""


def drawing(width: float, height: float, label: str, body: Sequence[Markup], tracks: Sequence[Track]) -> Markup:
    """The <svg>, with the read-out's points in a data attribute (escaped like any other text)."""
    data = "\n\n".join(_listed(track) for track in tracks if track.spots)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-tracks="{}"{}>{}</svg>').format(
        _short(width),
        _short(height),
        label,
        data,
        Markup(' tabindex="0"') if tracks else "",
        Markup("").join(body),
    )


def _listed(track: Track) -> str:
    """A line for the series and one for each point, tabs between: half the size of escaped JSON."""
    rows: list[tuple[str, ...]] = [(track.name, track.tone)]
    rows += [(_short(spot.x), _short(spot.y), spot.title, spot.text) for spot in track.spots]
    return "\n".join("\t".join(" ".join(part.split()) for part in row) for row in rows)


@dataclass(frozen=True)
class Frame:
    """The plot area inside a drawing and its two scales."""

    x: Scale
    y: Scale
    left: float
    right: float
    top: float
    bottom: float

    def axes(self, x_label: str, y_ticks: Sequence[str], y_values: Sequence[float]) -> list[Markup]:
        parts = []
        for value, text in zip(y_values, y_ticks, strict=True):
            y = self.y(value)
            parts.append(el("line", class_="grid", x1=self.left, x2=self.right, y1=y, y2=y))
            parts.append(el("text", text, class_="tick", x=self.left - 7, y=y + 3.7, text_anchor="end"))
        parts.append(el("line", class_="axis", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom))
        values = self.x.ticks(max(2, int((self.right - self.left) / 68)))
        for value in values:
            x = self.x(value)
            text = tick_label(value, values)
            anchor = "end" if x + CHARACTER * len(text) / 2 > self.right + 12 else "middle"
            parts.append(el("line", class_="axis", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4))
            parts.append(el("text", text, class_="tick", x=x, y=self.bottom + 16, text_anchor=anchor))
        if x_label:
            parts.append(el("text", x_label, class_="label", x=self.right, y=self.bottom + 31, text_anchor="end"))
        return parts


def left_margin(labels: Sequence[str]) -> float:
    return max(24.0, 11 + CHARACTER * max((len(text) for text in labels), default=0))
