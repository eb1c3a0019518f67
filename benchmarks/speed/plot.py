"""The results as a drawing: how many times as quick as TRL, work by work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from prefloop.report.svg import el

WIDTH, LEFT, ROW, BAR = 720.0, 190.0, 34.0, 12.0
INK, STEADY, WHOLE = "#333", "#2f6db5", "#a9c6e8"


def plot(rows: Sequence[Any]) -> str:
    """Two bars for each row that has a peer: once under way, and the whole process; a line at 1."""
    shown = [row for row in rows if row.ratio is not None and row.ratio_whole is not None]
    most = max((max(row.ratio, row.ratio_whole) for row in shown), default=1.0)
    unit, height = (WIDTH - LEFT - 60) / most, 46 + ROW * len(shown)
    body = [
        el("rect", x=0, y=0, width=WIDTH, height=height, fill="white"),
        *_key(LEFT, STEADY, "training under way"),
        *_key(LEFT + 180, WHOLE, "the whole process"),
        el("line", x1=LEFT + unit, x2=LEFT + unit, y1=28, y2=height - 8, stroke=INK, stroke_dasharray="3 3"),
        el("text", "TRL", x=LEFT + unit + 4, y=height - 6, fill=INK),
    ]
    for index, row in enumerate(shown):
        top = 32 + ROW * index
        body.append(el("text", f"{row.work}, {row.size}", x=LEFT - 10, y=top + 17, text_anchor="end", fill=INK))
        for ratio, fill, y in ((row.ratio, STEADY, top), (row.ratio_whole, WHOLE, top + BAR + 1)):
            body.append(el("rect", x=LEFT, y=y, width=unit * ratio, height=BAR, fill=fill))
            body.append(el("text", f"{ratio:.1f} ×", x=LEFT + unit * ratio + 5, y=y + 10, fill=INK))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0f} {:.0f}" font-family="sans-serif" font-size="11">'
        "{}</svg>\n"
    ).format(WIDTH, height, Markup("").join(body))


def _key(x: float, fill: str, text: str) -> list[Markup]:
    return [
        el("rect", x=x, y=10, width=BAR, height=BAR, fill=fill),
        el("text", text, x=x + BAR + 5, y=20, fill=INK),
    ]
