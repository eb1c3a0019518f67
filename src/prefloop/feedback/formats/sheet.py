"""prefloop's own judging sheet: prompts with K ≥ 2 answers each, for a person with a text editor.

The judge fills in ``choice``: the number of the best answer (``1`` is the first one), ``tie``, or a ranking such as
``2>1=3``; nothing for an item that is not judged. What wrote an answer is not in the sheet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..records import BEST_ONLY, Completion, Prompt, content_id
from .rows import Row, RowError, field_of, text_at, text_of
from .trl import is_plain

FIELDS = frozenset({"prompt_id", "prompt", "answers", "criterion", "annotator", "choice"})
NOT_JUDGED = "not judged"


class Chosen(NamedTuple):
    """A sheet's row that was filled in."""

    prompt_id: str
    shown: tuple[str, ...]
    """Completion ids."""
    ranks: tuple[int, ...]
    flags: tuple[str, ...]
    annotator: str
    criterion: str


def read_sheet(row: Row) -> list[Chosen | str]:
    prompt_id = text_at(row, "prompt_id")
    answers = field_of(row, "answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("field 'answers' is not a list of objects", "expected [{id, text}, …]")
    shown = tuple(text_of(field_of(answer, "id"), "answers.id") for answer in answers)
    if len(shown) < 2 or len(set(shown)) < len(shown):
        raise RowError("field 'answers' does not hold two or more different answers")
    choice = field_of(row, "choice")
    # People who edit by hand write 1 for "1".
    choice = str(choice) if type(choice) is int else text_of(choice, "choice").strip().lower()
    if not choice:
        return [NOT_JUDGED]
    annotator = text_at(row, "annotator").strip()
    if not annotator:
        raise RowError("field 'annotator' is empty", "expected the name of who made the choice")
    criterion = text_of(row.get("criterion", "overall"), "criterion")
    return [Chosen(prompt_id, shown, *_choice(choice, len(shown)), annotator, criterion)]


def _choice(choice: str, count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ranks of ``count`` answers, and flags, from ``2``, ``tie`` or ``2>1=3``."""
    if choice == "tie":
        return (1,) * count, ()
    groups = [[part.strip() for part in group.split("=")] for group in choice.split(">")]
    named = [name for group in groups for name in group]
    numbers = [str(number) for number in range(1, count + 1)]
    if len(named) == 1 and named[0] in numbers:
        ranks = tuple(1 if number == named[0] else 2 for number in numbers)
        return ranks, (BEST_ONLY,) if count > 2 else ()
    if sorted(named) != sorted(numbers):
        raise RowError(
            "field 'choice' is not understood",
            f"{choice!r:.60}; expected a number from 1 to {count}, tie, a ranking of all answers such as "
            f"{'>'.join(numbers)}, or nothing",
        )
    place = {name: rank for rank, group in enumerate(groups, start=1) for name in group}
    return tuple(place[number] for number in numbers), ()


def write_sheet(
    path: str | Path,
    items: Iterable[tuple[Prompt, Sequence[Completion]]],
    *,
    annotator: str = "",
    criterion: str = "overall",
) -> int:
    """Write a sheet and return the number of its rows. A sheet that exists is not overwritten.

    The order of the answers is drawn from their identifiers and the annotator's name.
    """
    rows = 0
    with Path(path).open("x", encoding="utf-8", newline="\n") as file:
        for prompt, completions in items:
            if len(completions) < 2 or any(answer.prompt_id != prompt.id for answer in completions):
                raise ValueError(f"prompt {prompt.id} needs two or more completions, all of them its own")
            order = sorted(completions, key=lambda answer: content_id("sheet", annotator, answer.id))
            row = {
                "prompt_id": prompt.id,
                "prompt": prompt.text if is_plain(prompt.messages) else [dict(turn) for turn in prompt.messages],
                "answers": [{"id": answer.id, "text": answer.text} for answer in order],
                "criterion": criterion,
                "annotator": annotator,
                "choice": "",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows += 1
    return rows
