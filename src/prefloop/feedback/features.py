"""What can be seen of an answer without understanding it: its length and its formatting."""

from __future__ import annotations

import re

FEATURES = ("length", "lists", "headings")
"""Words, list items (bulleted or numbered) and headings, as Markdown writes them."""

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]|^[ \t]*\*\*[^*\n]+\*\*:?[ \t]*$", re.MULTILINE)


def features(text: str) -> tuple[int, int, int]:
    """`FEATURES` of a text. A line that is bold as a whole is a heading too: models write them so."""
    return len(text.split()), _lines(_LIST_ITEM, text), _lines(_HEADING, text)


def _lines(pattern: re.Pattern[str], text: str) -> int:
    """How many lines begin so. Of a single line only the beginning is looked at."""
    return len(pattern.findall(text)) if "\n" in text else int(pattern.match(text) is not None)
