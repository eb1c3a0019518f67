"""The fields of a row, checked; a fault is told so that a person can mend it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn, cast, get_args

from ..records import Message, Role, Split

Row = dict[str, Any]
Turns = tuple[Message, ...]


class RowError(ValueError):
    """What is wrong with one row. ``reason`` groups rows with the same fault; ``detail`` is this row's."""

    def __init__(self, reason: str, detail: str = "", row: Any = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.row = row
        """The row as far as it could be read: its fields, or its text."""


def parse(raw: bytes) -> Row:
    """One line's object. Two fields of one name are an error: JSON would silently keep the last."""
    try:
        return checked(_DECODER.decode(raw.decode("utf-8")), "line")
    except UnicodeDecodeError as error:
        fault = RowError("not UTF-8 text", f"byte {error.start + 1} is 0x{raw[error.start]:02x}; save as UTF-8")
    except json.JSONDecodeError as error:
        fault = RowError("not valid JSON", f"{error.msg} at column {error.pos + 1}")
    except RowError as error:
        fault = error
    except ValueError:  # Python refuses to read numbers of thousands of digits
        fault = RowError("not valid JSON", "a number is too long")
    except RecursionError:
        fault = RowError("not valid JSON", "nested too deeply")
    fault.row = raw.decode("utf-8", "backslashreplace")
    raise fault from None


def checked(value: Any, place: str) -> Row:
    """``value`` as a row; ``place`` is what it stands in: a line, an item."""
    if not isinstance(value, dict):
        raise RowError(f"the {place} is a JSON {kind_of(value)}", f"expected one object per {place}: {{...}}", value)
    return cast(Row, value)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise RowError(f"field {twice!r:.60} is there twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
scan_once = _DECODER.raw_decode
"""(text, start) → the value that begins there, and its end. Raises JSONDecodeError, RowError."""


def kind_of(value: Any) -> str:
    names = {str: "text", list: "list", dict: "object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def field_of(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError(f"field {name!r} is missing")
    return row[name]


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"field {name!r} is a {kind_of(value)}", "expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"field {name!r} has a lone surrogate",
            f"\\u{ord(value[error.start]):04x} at character {error.start + 1} is half of a pair",
        ) from None
    return value


def text_at(row: Row, name: str) -> str:
    return text_of(field_of(row, name), name)


def optional_text(row: Row, name: str) -> str:
    """Empty where the field is absent or null."""
    return "" if row.get(name) is None else text_of(row[name], name)


def list_of(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else f"a {kind_of(value)}"
        expected = "text or a list of messages" if name in ("prompt", "chosen", "rejected") else "messages"
        raise RowError(f"field {name!r} is {found}", f"expected {expected}")
    return value


def messages_of(value: Any, name: str) -> Turns:
    """A list of {role, content}."""
    return tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(list_of(value, name)))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"field {name!r} is a {kind_of(value)}", "expected a message: {role, content}")
    role = value.get("role")
    if role not in get_args(Role):
        if role != "developer":  # what OpenAI's newer models call the system
            not_among(f"{name}.role", "a role", role, get_args(Role))
        role = "system"
    return Message(role=cast(Role, role), content=_content(value.get("content"), f"{name}.content"))


def _content(value: Any, name: str) -> str:
    """A text, or the text of parts such as {"type": "text", "text": …}."""
    if not isinstance(value, list):
        return text_of(value, name)
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    if None in parts:
        raise RowError(f"field {name!r} is not only text", "expected text, or a list of text parts")
    return "".join(text_of(part, name) for part in parts)


def prompt_of(value: Any) -> Turns:
    """A conversation from a text, which is one user message, or from messages."""
    if not isinstance(value, str):
        return messages_of(value, "prompt")
    if not value.strip():
        raise RowError("field 'prompt' is empty")
    return (user(text_of(value, "prompt")),)


def answer_after(turns: Turns, prompt: Turns, name: str) -> str:
    """The text of the one answer by which ``turns``, which may repeat the prompt, goes on from it."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0].role != "assistant":
        raise RowError(
            f"field {name!r} is not the prompt and one answer",
            f"after the prompt's {len(prompt)} messages come {len(rest)}; expected one, the assistant's. "
            "Conversations that part before their last answer do not answer the same prompt",
        )
    return rest[0].content


def split_of(row: Row) -> Split | None:
    split = row.get("split")
    if split is not None and split not in get_args(Split):
        not_among("split", "a split", split, get_args(Split))
    return cast("Split | None", split)


def strength_of(row: Row) -> int | None:
    strength = row.get("strength")
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 4):
        raise RowError("field 'strength' is out of range", f"{strength!r:.60}; expected 1, 2, 3 or 4")
    return strength


def criterion_of(row: Row) -> str:
    return optional_text(row, "criterion") or "overall"


def label_of(row: Row) -> bool:
    """Whether the answer was found desirable; ``kto_tag`` is LLaMA-Factory's name for it."""
    name = "kto_tag" if "kto_tag" in row else "label"
    if type(label := field_of(row, name)) is not bool:
        raise RowError(f"field {name!r} is a {kind_of(label)}", "expected true (desirable) or false")
    return label


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def not_among(name: str, what: str, value: Any, choices: tuple[str, ...]) -> NoReturn:
    raise RowError(f"field {name!r} is not {what}", f"{value!r:.60}; expected one of {', '.join(choices)}")
