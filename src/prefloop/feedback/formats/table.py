"""The formats by name: what reads a row, which fields it uses, and how a format is known by its fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..format_names import Format
from ..store import AnyRecord
from . import alpacaeval, dialogue, llamafactory, oasst, sheet, trl, whole
from .items import Item
from .rows import Row, RowError

Read = Item | sheet.Chosen | AnyRecord | str
"""What a row says; a text is a note about it."""


@dataclass(frozen=True)
class Reader:
    read: Callable[[Row], Sequence[Read]]
    fields: frozenset[str]
    """Those that it uses; others are noted."""


READERS: dict[Format, Reader] = {
    "dialogue": Reader(dialogue.read_dialogue, dialogue.FIELDS),
    "comparison": Reader(trl.read_comparison, trl.COMPARISON),
    "unpaired": Reader(trl.read_unpaired, trl.UNPAIRED),
    "demonstration": Reader(trl.read_demonstration, trl.DEMONSTRATION),
    "prompt": Reader(trl.read_prompt, trl.PROMPT),
    "chat": Reader(trl.read_chat, trl.CHAT),
    "sharegpt": Reader(llamafactory.read_sharegpt, llamafactory.SHAREGPT),
    "alpaca": Reader(llamafactory.read_alpaca, llamafactory.ALPACA),
    "alpacaeval": Reader(alpacaeval.read_alpacaeval, alpacaeval.FIELDS),
    "oasst": Reader(oasst.read_oasst, oasst.FIELDS),
    "sheet": Reader(sheet.read_sheet, sheet.FIELDS),
    "prefloop": Reader(whole.read_whole, whole.FIELDS),
}
NOT_JUDGED = sheet.NOT_JUDGED
EXPECTED = (
    "expected the fields chosen and rejected (with or without prompt), prompt with response or completion (and "
    "label), messages, conversations, instruction, output_1 and output_2, prompt alone, a tree or table of "
    "Open-Assistant, a judging sheet (prompt_id, answers, choice), or what prefloop exported"
)
_ITEM = {"role", "content", "from", "value", "id", "text"}
"""Fields of messages and of a sheet's answers."""


def known_format(format: str | None) -> None:
    if format is not None and format not in READERS:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(get_args(Format))}")


def detect(row: Row) -> Format:
    """The format that a row's fields show. ``chat`` is never guessed: its rows look like demonstrations."""
    has = row.keys()
    signs: list[tuple[bool, Format]] = [
        ({"answers", "choice"} <= has, "sheet"),
        (isinstance(row.get("prompt"), dict) and "role" in row["prompt"], "oasst"),
        (whole.is_record(row), "prefloop"),
        ({"output_1", "output_2"} <= has, "alpacaeval"),
        ("conversations" in has, "sharegpt"),
        ("instruction" in has, "alpaca"),
        (_is_dialogue(row), "dialogue"),
        ({"chosen", "rejected"} <= has, "comparison"),
        (bool({"label", "kto_tag"} & has) and bool({"completion", "messages"} & has), "unpaired"),
        ("messages" in has or ("prompt" in has and bool({"response", "completion"} & has)), "demonstration"),
        ("prompt" in has, "prompt"),
    ]
    for met, format in signs:
        if met:
            return format
    raise RowError("not in a known format", f"{EXPECTED}; found {', '.join(map(repr, list(has)[:8])) or 'none'}", row)


def _is_dialogue(row: Row) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    texts = isinstance(chosen, str) and isinstance(rejected, str) and "prompt" not in row
    return texts and dialogue.is_dialogue(chosen) and dialogue.is_dialogue(rejected)  # type: ignore[arg-type]


def unused_fields(row: Row, fields: frozenset[str]) -> set[str]:
    """Names of what a row has and its format does not use."""
    unused = row.keys() - fields
    for name in fields & row.keys():
        value: Any = row[name]
        if isinstance(value, list):
            unused |= {f"{name}[].{key}" for item in value if isinstance(item, dict) for key in item.keys() - _ITEM}
    return unused
