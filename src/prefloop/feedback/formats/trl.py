"""Rows as TRL's trainers take them: texts, or lists of {role, content}. Also chat logs in the same messages.

``comparison``     prompt, chosen, rejected. Answers may repeat the prompt's messages; without ``prompt``, what both
                   begin with is it: messages, or in plain texts whole words.
``unpaired``       prompt, completion, label; or messages that end with the answer, and label (or ``kto_tag``).
``demonstration``  prompt with completion or response; or messages that end with the answer.
``prompt``         prompt alone.
``chat``           messages of a log: what is before the last answer is the prompt; the answer is what the app said,
                   not one worth imitating.
"""

from __future__ import annotations

import re
from typing import Any

from .dialogue import common
from .items import Answer, Asked, Demonstrated, Labelled, Ranked, need, pair_of
from .rows import (
    Row,
    RowError,
    Turns,
    answer_after,
    criterion_of,
    field_of,
    label_of,
    messages_of,
    optional_text,
    prompt_of,
    split_of,
    strength_of,
    text_at,
    text_of,
    user,
)

COMPARISON = frozenset({"prompt", "chosen", "rejected", "split", "strength", "criterion"})
UNPAIRED = frozenset({"prompt", "completion", "messages", "label", "kto_tag", "split"})
DEMONSTRATION = frozenset({"prompt", "response", "completion", "messages", "split"})
PROMPT = frozenset({"prompt", "split"})
CHAT = frozenset({"messages", "model", "split"})

WORDS_IN_COMMON = "the prompt is the words that both texts begin with"


def read_comparison(row: Row) -> list[Ranked | str]:
    chosen, rejected = field_of(row, "chosen"), field_of(row, "rejected")
    noted = list[Ranked | str]()
    if "prompt" in row:
        turns = prompt_of(row["prompt"])
        texts = _answer(chosen, turns, "chosen"), _answer(rejected, turns, "rejected")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        turns, texts = _words(text_at(row, "chosen"), text_at(row, "rejected"))
        noted.append(WORDS_IN_COMMON)
    else:
        whole = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        turns = common(*whole)
        texts = answer_after(whole[0], turns, "chosen"), answer_after(whole[1], turns, "rejected")
    answers = Answer(texts[0]), Answer(texts[1])
    return [Ranked(turns, answers, (1, 2), split_of(row), strength_of(row), criterion_of(row)), *noted]


def _words(chosen: str, rejected: str) -> tuple[Turns, tuple[str, str]]:
    """Two texts as their first words in common and what follows; the space goes with what follows."""
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    length = next((i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other), None)
    shared = chosen[:length] if length is not None else min(chosen, rejected, key=len)
    spaces = [mark.start() for mark in re.finditer(r"\s+", shared)]
    length = spaces[-1] if spaces else 0
    if not shared[:length].strip():
        raise RowError("field 'prompt' is missing", "and 'chosen' and 'rejected' have no first word in common")
    return (user(shared[:length]),), (chosen[length:], rejected[length:])


def _answer(value: Any, prompt: Turns, name: str) -> str:
    """The answer in a field that is a text or messages."""
    return text_of(value, name) if isinstance(value, str) else answer_after(messages_of(value, name), prompt, name)


def _turns_and_answer(row: Row, name: str) -> tuple[Turns, str]:
    if "messages" in row:
        messages = messages_of(row["messages"], "messages")
        return messages[:-1], answer_after(messages, messages[:-1], "messages")
    turns = prompt_of(field_of(row, "prompt"))
    return turns, _answer(field_of(row, name), turns, name)


def read_unpaired(row: Row) -> list[Labelled]:
    turns, text = _turns_and_answer(row, "completion")
    return [Labelled(turns, Answer(text), label_of(row), split_of(row))]


def read_demonstration(row: Row) -> list[Demonstrated]:
    return [
        Demonstrated(*_turns_and_answer(row, "response" if "response" in row else "completion"), split=split_of(row))
    ]


def read_prompt(row: Row) -> list[Asked]:
    return [Asked(prompt_of(field_of(row, "prompt")), None, split_of(row))]


def read_chat(row: Row) -> list[Asked]:
    messages = messages_of(field_of(row, "messages"), "messages")
    if messages[-1].role != "assistant":
        return [Asked(messages, None, split_of(row))]
    answer = Answer(messages[-1].content, optional_text(row, "model") or None)
    return [Asked(messages[:-1], answer, split_of(row))]


# Writing. ``plain`` is for a whole file: a column holds texts or messages, not both.


def is_plain(turns: Turns) -> bool:
    """Whether a conversation can be written as one text."""
    return len(turns) == 1 and turns[0].role == "user" and bool(turns[0].content.strip())


def write_comparison(item: Ranked, plain: bool) -> Row:
    better, worse = pair_of(item)
    return {
        "prompt": _prompt(item.turns, plain),
        "chosen": _said(better.text, plain),
        "rejected": _said(worse.text, plain),
    }


def write_unpaired(item: Labelled, plain: bool) -> Row:
    return {
        "prompt": _prompt(item.turns, plain),
        "completion": _said(item.answer.text, plain),
        "label": item.label,
    }


def write_demonstration(item: Demonstrated, plain: bool) -> Row:
    need(bool(item.text.strip()), "an empty answer")
    return {"prompt": _prompt(item.turns, plain), "completion": _said(item.text, plain)}


def write_prompt(item: Asked, plain: bool) -> Row:
    return {"prompt": _prompt(item.turns, plain)}


def _prompt(turns: Turns, plain: bool) -> Any:
    return turns[0].content if plain else [{"role": turn.role, "content": turn.content} for turn in turns]


def _said(text: str, plain: bool) -> Any:
    return text if plain else [{"role": "assistant", "content": text}]
