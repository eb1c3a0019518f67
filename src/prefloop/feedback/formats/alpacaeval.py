"""AlpacaEval's annotations: ``instruction``, ``output_1``, ``output_2``, ``preference``, who wrote and who judged.

``preference`` is 1 or 2 for the better output and 1.5 (or 0) for a draw. Between 1 and 2 it is graded: the judge's
probability that output 2 is better, plus 1. How far it lies from 1.5 becomes the strength, in four equal steps.
"""

from __future__ import annotations

import math
from typing import Any

from .items import Answer, Ranked, need
from .rows import Row, RowError, criterion_of, field_of, kind_of, optional_text, split_of, strength_of, text_at, user

FIELDS = frozenset(
    {
        *("instruction", "input", "output_1", "output_2", "generator_1", "generator_2"),
        *("annotator", "preference", "split", "strength", "criterion"),
    }
)
NOT_JUDGED = "not judged"


def read_alpacaeval(row: Row) -> list[Ranked | str]:
    instruction = "\n".join(filter(None, (text_at(row, "instruction"), optional_text(row, "input"))))
    if not instruction.strip():
        raise RowError("field 'instruction' is empty")
    answers = tuple(Answer(text_at(row, f"output_{n}"), optional_text(row, f"generator_{n}") or None) for n in (1, 2))
    preference = field_of(row, "preference")
    if preference is None or preference != preference:  # pandas writes what could not be parsed as NaN
        return [NOT_JUDGED]
    ranks, graded = _preference(preference)
    annotator = optional_text(row, "annotator") or None
    strength = strength_of(row) or graded
    return [Ranked((user(instruction),), answers, ranks, split_of(row), strength, criterion_of(row), annotator)]


def _preference(value: Any) -> tuple[tuple[int, int], int | None]:
    if type(value) not in (int, float):
        raise RowError("field 'preference' is a " + kind_of(value), "expected 1, 2, 1.5 or a number between 1 and 2")
    if value in (0, 1.5):
        return (1, 1), None
    if not 1 <= value <= 2:
        raise RowError("field 'preference' is out of range", f"{value!r:.60}; expected 1 to 2, or 0 for a draw")
    strength = None if value in (1, 2) else min(4, 1 + math.floor(8 * abs(value - 1.5)))
    return ((1, 2) if value < 1.5 else (2, 1)), strength


def write_alpacaeval(item: Ranked) -> Row:
    need(len(item.turns) == 1 and item.turns[0].role == "user", "a prompt of several messages")
    need(bool(item.turns[0].content.strip()), "an empty prompt")
    one, other = item.answers
    return {
        "instruction": item.turns[0].content,
        "output_1": one.text,
        "generator_1": one.origin,
        "output_2": other.text,
        "generator_2": other.origin,
        "annotator": item.annotator,
        "preference": 1.5 if item.ranks[0] == item.ranks[1] else 1.0 if item.ranks[0] < item.ranks[1] else 2.0,
    }
