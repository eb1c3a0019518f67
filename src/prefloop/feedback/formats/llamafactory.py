"""Rows as LLaMA-Factory takes them: ShareGPT conversations and Alpaca instructions, each of them as comparisons
(``chosen``, ``rejected``), as labels (``kto_tag``) or as demonstrations.

ShareGPT: ``conversations`` is a list of {from, value}; ``system`` may come beside it. Alpaca: ``instruction``, then
``input`` on a line of its own; ``history`` holds earlier rounds as [question, answer].
"""

from __future__ import annotations

from typing import Any

from ..records import Message, Role
from .items import Answer, Demonstrated, Labelled, NotCarriedError, Ranked, need, pair_of
from .rows import (
    Row,
    RowError,
    Turns,
    answer_after,
    assistant,
    criterion_of,
    field_of,
    kind_of,
    label_of,
    list_of,
    not_among,
    optional_text,
    split_of,
    strength_of,
    text_at,
    text_of,
    user,
)

SHAREGPT = frozenset(
    {"conversations", "system", "chosen", "rejected", "kto_tag", "label", "split", "strength", "criterion"}
)
ALPACA = frozenset(
    {
        *("instruction", "input", "output", "system", "history", "chosen", "rejected"),
        *("kto_tag", "label", "split", "strength", "criterion"),
    }
)
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_ALSO: dict[str, Role] = {"user": "user", "assistant": "assistant"}
_FROM = {role: name for name, role in _ROLES.items()}

Item = Ranked | Labelled | Demonstrated


def read_sharegpt(row: Row) -> list[Item]:
    turns = tuple(_turn(item, f"conversations[{i}]") for i, item in enumerate(_conversation(row)))
    if (system := optional_text(row, "system")) and turns[0].role != "system":
        turns = (Message(role="system", content=system), *turns)
    if "chosen" in row or "rejected" in row:
        return [_compared(row, turns, _message_text(row, "chosen"), _message_text(row, "rejected"))]
    return [_answered(row, turns[:-1], answer_after(turns, turns[:-1], "conversations"))]


def read_alpaca(row: Row) -> list[Item]:
    instruction = "\n".join(filter(None, (text_at(row, "instruction"), optional_text(row, "input"))))
    if not instruction.strip():
        raise RowError("field 'instruction' is empty")
    system = optional_text(row, "system")
    turns = (*([Message(role="system", content=system)] if system else ()), *_history(row), user(instruction))
    if "chosen" in row or "rejected" in row:
        return [_compared(row, turns, text_at(row, "chosen"), text_at(row, "rejected"))]
    return [_answered(row, turns, text_at(row, "output"))]


def _compared(row: Row, turns: Turns, chosen: str, rejected: str) -> Ranked:
    answers = Answer(chosen), Answer(rejected)
    return Ranked(turns, answers, (1, 2), split_of(row), strength_of(row), criterion_of(row))


def _answered(row: Row, turns: Turns, text: str) -> Labelled | Demonstrated:
    if "kto_tag" in row or "label" in row:
        return Labelled(turns, Answer(text), label_of(row), split_of(row))
    return Demonstrated(turns, text, split_of(row))


def _conversation(row: Row) -> list[Any]:
    return list_of(field_of(row, "conversations"), "conversations")


def _turn(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"field {name!r} is a {kind_of(value)}", "expected a message: {from, value}")
    speaker = value.get("from", "")
    role = (_ROLES | _ALSO).get(speaker) if isinstance(speaker, str) else None
    if role is None:
        not_among(f"{name}.from", "a speaker", value.get("from"), tuple(_ROLES))
    return Message(role=role, content=text_of(value.get("value"), f"{name}.value"))


def _message_text(row: Row, name: str) -> str:
    """An answer as {from, value}, as a list of one such, or as a text."""
    value = field_of(row, name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return text_of(value, name)
    message = _turn(value, name)
    return answer_after((message,), (), name)


def _history(row: Row) -> Turns:
    rounds = row.get("history") or []
    turns = list[Message]()
    for number, pair in enumerate(rounds if isinstance(rounds, list) else [rounds]):
        name = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"field {name!r} is not a round", "expected [question, answer]")
        turns += [user(text_of(pair[0], name)), assistant(text_of(pair[1], name))]
    return tuple(turns)


# Writing


def write_sharegpt(item: Item) -> Row:
    row: Row = {"conversations": [_speech(turn) for turn in item.turns]}
    if isinstance(item, Ranked):
        better, worse = pair_of(item)
        return row | {"chosen": _speech(assistant(better.text)), "rejected": _speech(assistant(worse.text))}
    row["conversations"].append(_speech(assistant(_text(item))))
    return row | ({"kto_tag": item.label} if isinstance(item, Labelled) else {})


def _speech(turn: Message) -> Row:
    return {"from": _FROM[turn.role], "value": turn.content}


def _text(item: Labelled | Demonstrated) -> str:
    if isinstance(item, Labelled):
        return item.answer.text
    need(bool(item.text.strip()), "an empty answer")
    return item.text


def write_alpaca(item: Item) -> Row:
    row = _instruction(item.turns)
    if isinstance(item, Ranked):
        better, worse = pair_of(item)
        return row | {"chosen": better.text, "rejected": worse.text}
    return row | {"output": _text(item)} | ({"kto_tag": item.label} if isinstance(item, Labelled) else {})


def _instruction(turns: Turns) -> Row:
    """``input`` stays empty: where an instruction ends and its input begins is not known."""
    rest = turns
    system = rest[0].content if rest[0].role == "system" else None
    if system is not None:
        need(bool(system), "an empty system message")
        rest = rest[1:]
    if [turn.role for turn in rest] != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
        raise NotCarriedError("a conversation in which speakers do not take turns")
    need(bool(rest[-1].content.strip()), "an empty prompt")
    return {
        "instruction": rest[-1].content,
        "input": "",
        "system": system or "",
        "history": [[one.content, other.content] for one, other in zip(rest[:-1:2], rest[1::2], strict=False)],
    }
