"""Lines of a JSON file and the fields of its rows, checked; a fault is told so that a person can mend it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from .records import Message, Role, Split

Row = dict[str, Any]
Turns = tuple[Message, ...]


class RowError(ValueError):
    """What is wrong with one row. ``reason`` groups rows with the same fault; ``detail`` is this row's."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, numbered. Only a line feed ends one: JSON strings may hold U+2028."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if stripped := raw.strip(b" \t\r\n"):
                yield number, stripped


def parse(raw: bytes) -> Row:
    """One line's object. Two fields of one name are an error: JSON would silently keep the last."""
    try:
        row = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(
            "not UTF-8 text", f"byte {error.start + 1} is 0x{raw[error.start]:02x}; save as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise RowError("not valid JSON", f"{error.msg} at column {error.pos + 1}") from None
    except RowError:
        raise
    except ValueError:  # Python refuses to read numbers of thousands of digits
        raise RowError("not valid JSON", "a number is too long") from None
    except RecursionError:
        raise RowError("not valid JSON", "nested too deeply") from None
    if not isinstance(row, dict):
        raise RowError(f"the line is a JSON {kind_of(row)}", "expected one object per line: {...}")
    return cast(Row, row)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise RowError(f"field {twice!r:.60} is there twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


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


def messages_of(value: Any, name: str) -> Turns:
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else f"a {kind_of(value)}"
        expected = "messages" if name == "messages" else "text or a list of messages"
        raise RowError(f"field {name!r} is {found}", f"expected {expected}")
    return tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(value))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"field {name!r} is a {kind_of(value)}", "expected a message: {role, content}")
    role = value.get("role")
    if role not in get_args(Role):
        raise RowError(f"field {name + '.role'!r} is not a role", _expected(role, Role))
    return Message(role=cast(Role, role), content=text_of(value.get("content"), f"{name}.content"))


def prompt_of(value: Any) -> Turns:
    if not isinstance(value, str):
        return messages_of(value, "prompt")
    if not value.strip():
        raise RowError("field 'prompt' is empty")
    return (Message(role="user", content=text_of(value, "prompt")),)


def split_of(row: Row) -> Split | None:
    split = row.get("split")
    if split is not None and split not in get_args(Split):
        raise RowError("field 'split' is not a split", _expected(split, Split))
    return cast("Split | None", split)


def strength_of(row: Row) -> int | None:
    strength = row.get("strength")
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 4):
        raise RowError("field 'strength' is out of range", f"{strength!r:.60}; expected 1, 2, 3 or 4")
    return strength


def _expected(value: Any, choices: Any) -> str:
    return f"{value!r:.60}; expected one of {', '.join(get_args(choices))}"
