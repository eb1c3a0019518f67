"""hh-rlhf: ``chosen`` and ``rejected`` are whole conversations with ``\\n\\nHuman:`` and ``\\n\\nAssistant:``.

The turns that both begin with are the prompt, and each must go on with exactly one answer; conversations that part
earlier are refused, because the answers then belong to different prompts. White space around a turn is the format's
and no part of the text; where it is not the usual one, the answer's ``metadata["spacing"]`` keeps it, so that the row
can be written again to the letter. A speaker who has two turns in a row wrote the marker into his text: it is one
turn, with the marker in it. An empty answer is an answer (silence may be preferred).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeGuard

from ..records import Message, Role
from .items import Answer, NotCarriedError, Ranked, need, pair_of
from .rows import Row, RowError, Turns, answer_after, criterion_of, split_of, strength_of, text_at

FIELDS = frozenset({"chosen", "rejected", "split", "strength", "criterion"})
_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_NAMES = {role: name for name, role in _ROLES.items()}

Spacing = list[str]
"""White space before the first marker, and for each turn after its marker and behind its text."""


def is_dialogue(text: str) -> bool:
    return _MARKER.match(text) is not None


def read_dialogue(row: Row) -> list[Ranked]:
    (chosen, its_spacing), (rejected, other_spacing) = (
        read_turns(text_at(row, name), name) for name in ("chosen", "rejected")
    )
    prompt = common(chosen, rejected)
    answers = (
        Answer(answer_after(chosen, prompt, "chosen"), None, _kept(its_spacing)),
        Answer(answer_after(rejected, prompt, "rejected"), None, _kept(other_spacing)),
    )
    return [Ranked(prompt, answers, (1, 2), split_of(row), strength_of(row), criterion_of(row))]


def write_dialogue(item: Ranked) -> Row:
    better, worse = pair_of(item)
    return {name: _written(item.turns, answer) for name, answer in (("chosen", better), ("rejected", worse))}


def common(chosen: Turns, rejected: Turns) -> Turns:
    """The messages that both begin with."""
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    length = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        length += 1
    return chosen[:length]


def read_turns(text: str, name: str) -> tuple[Turns, Spacing]:
    marks = list(_MARKER.finditer(text))
    if not marks or marks[0].start() != 0:
        raise RowError(f"field {name!r} does not begin with 'Human:'", "expected '\\n\\nHuman: …\\n\\nAssistant: …'")
    starts = [mark for i, mark in enumerate(marks) if i == 0 or mark[1] != marks[i - 1][1]]
    ends = [mark.start() for mark in starts[1:]] + [len(text)]
    bodies = [text[mark.end() : end] for mark, end in zip(starts, ends, strict=True)]
    turns = tuple(
        Message(role=_ROLES[mark[1]], content=body.strip()) for mark, body in zip(starts, bodies, strict=True)
    )
    return turns, [text[: marks[0].start(1)], *chain.from_iterable(map(_around, bodies))]


def _around(body: str) -> tuple[str, str]:
    text = body.strip()
    before = body.index(text) if text else len(body)
    return body[:before], body[before + len(text) :]


def _usual(turns: int) -> Spacing:
    return ["\n\n", *(" ", "") * turns]


def _kept(spacing: Spacing) -> dict[str, Any]:
    return {} if spacing == _usual(len(spacing) // 2) else {"spacing": spacing}


def _written(prompt: Turns, answer: Answer) -> str:
    turns = (*prompt, Message(role="assistant", content=answer.text))
    need(all(turn.role in _NAMES for turn in turns), "a system message")
    # The prompt's own answer may have come from another file: its spacing is then another conversation's.
    for spacing in (answer.metadata.get("spacing"), _usual(len(turns))):
        if _fits(spacing, len(turns)):
            text = _joined(turns, spacing)
            if is_dialogue(text) and read_turns(text, "chosen")[0] == turns:
                return text
    raise NotCarriedError("a text with a speaker's mark, with white space around it, or out of turn")


def _fits(spacing: Any, turns: int) -> TypeGuard[Spacing]:
    whole = isinstance(spacing, list) and len(spacing) == 2 * turns + 1
    return whole and all(isinstance(space, str) and not space.strip() for space in spacing)


def _joined(turns: Turns, spacing: Sequence[str]) -> str:
    parts = (
        f"{_NAMES[turn.role]}:{spacing[2 * i + 1]}{turn.content}{spacing[2 * i + 2]}" for i, turn in enumerate(turns)
    )
    return spacing[0] + "\n\n".join(parts)
