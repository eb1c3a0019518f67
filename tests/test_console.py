"""What a run looks like while it goes on."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from prefloop.console import RunDisplay


def shown(terminal: bool) -> tuple[RunDisplay, StringIO]:
    file = StringIO()
    return RunDisplay(["sample", "label"], Console(file=file, force_terminal=terminal, width=80)), file


def test_votes_are_told_as_they_come_in_where_there_is_no_terminal() -> None:
    display, file = shown(terminal=False)
    with display:
        display.finished("sample", 1.5)
        for votes in (0, 0, 3, 5):
            display.line("label", {"progress": votes / 5, "votes": votes, "wanted": 5})
        display.started("label")
        display.finished("label", 0.5)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines == [
        "sample done 1.5 s",
        "label asking votes 0 of 5",
        "label asking votes 3 of 5",
        "label done 0.5 s votes 5 of 5",
    ]


def test_a_stage_that_waits_for_people_has_a_bar() -> None:
    display, file = shown(terminal=True)
    with display:
        display.line("label", {"progress": 0.5, "votes": 2, "wanted": 4})
    assert re.search(r"label.*━.*votes 2  of 4", file.getvalue())
