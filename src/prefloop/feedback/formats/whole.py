"""prefloop's own format: every record of a store, one JSON object per line, judgements that were superseded too.

The first line is ``{"prefloop": 1}``; then come guidelines, prompts, completions, judgements and demonstrations, each
in the order in which it was added: ``{"prompt": {…}}`` and so on, with the fields of `prefloop.feedback.records`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..records import Completion, Demonstration, Judgement, Prompt
from ..store import AnyRecord, Guidelines, Store
from .rows import Row, RowError, kind_of

VERSION = 1
HEADER = "prefloop"
_KINDS: dict[str, TypeAdapter[Any]] = {
    "guidelines": TypeAdapter(Guidelines),
    "prompt": TypeAdapter(Prompt),
    "completion": TypeAdapter(Completion),
    "judgement": TypeAdapter(Judgement),
    "demonstration": TypeAdapter(Demonstration),
}
FIELDS = frozenset({HEADER, *_KINDS})


def is_record(row: Row) -> bool:
    """Whether a row is a line of this format."""
    ((name, value),) = row.items() if len(row) == 1 else (("", None),)
    return name == HEADER or (name in _KINDS and isinstance(value, dict))


def read_whole(row: Row) -> list[AnyRecord]:
    if HEADER in row:
        if row[HEADER] != VERSION:
            raise RowError(f"written by another prefloop, in format {row[HEADER]!r:.20}", f"this one reads {VERSION}")
        return []
    name = next(iter(row), "")
    if len(row) != 1 or name not in _KINDS:
        found = ", ".join(map(repr, row)) or "none"
        raise RowError("not one record", f"expected one of {', '.join(_KINDS)}; found {found:.60}")
    if not isinstance(row[name], dict):
        raise RowError(f"field {name!r} is a {kind_of(row[name])}", "expected an object")
    try:
        return [_KINDS[name].validate_json(json.dumps(row[name]))]
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, (name, *fault["loc"])))
        raise RowError(f"field {where!r:.80} is not right", f"{fault['msg']}") from None


def write_whole(store: Store) -> Iterator[Row]:
    """Rows of everything that is in a store now."""
    # Those who refer are looked up first: what they refer to was there before them.
    demonstrations, judgements = store.demonstrations(effective=False), store.judgements(effective=False)
    records: dict[str, Iterable[AnyRecord]] = {
        "completion": store.completions(),
        "prompt": store.prompts(),
        "guidelines": store.guidelines(),
        "judgement": judgements,
        "demonstration": demonstrations,
    }
    yield {HEADER: VERSION}
    for name, kind in _KINDS.items():
        for record in records[name]:
            yield {name: kind.dump_python(record, mode="json")}
