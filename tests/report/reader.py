"""The report as a reader has it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from prefloop.report import write_report


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Text(HTMLParser):
    """What a reader sees, and which elements and attributes there are."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = 0
        self.feed(source)
        self.text = " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def shown(run: Path) -> set[str]:
    return {
        attributes["id"] or ""
        for tag, attributes in Text(page(run)).elements
        if tag == "section" and attributes.get("id")
    }
