"""Records as rows of the tables, and finding them within a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from .records import Completion, Demonstration, Judgement, Message, Prompt
from .tables import COMPLETIONS, JUDGEMENTS, PROMPTS, moment

AT_ONCE = 1000
"""Rows in a statement or page: so many that its cost vanishes, few enough for memory."""
Fields = dict[str, Any]


@dataclass(frozen=True)
class Guidelines:
    """What annotators are asked to do, as it stood at one time."""

    version: int
    text: str
    """Markdown."""
    author: str
    created: datetime


AnyRecord = Prompt | Completion | Demonstration | Judgement | Guidelines


def from_guidelines(guidelines: Guidelines) -> Fields:
    return vars(guidelines) | {"created": moment(guidelines.created)}


def from_prompt(prompt: Prompt) -> Fields:
    messages = [[message.role, message.content] for message in prompt.messages]
    return {"id": prompt.id, "messages": messages, "split": prompt.split, "metadata": prompt.metadata}


def to_prompt(row: sa.RowMapping) -> Prompt:
    messages = tuple(Message(role=role, content=content) for role, content in row["messages"])
    return Prompt(id=row["id"], messages=messages, split=row["split"], metadata=row["metadata"])


def from_answer(record: Completion | Demonstration) -> Fields:
    return vars(record)


def _fields(row: sa.RowMapping) -> Fields:
    return {name: value for name, value in row.items() if name != "seq"}


def to_completion(row: sa.RowMapping) -> Completion:
    return Completion(**_fields(row))


def to_demonstration(row: sa.RowMapping) -> Demonstration:
    return Demonstration(**_fields(row))


def from_judgement(judgement: Judgement) -> Fields:
    return vars(judgement) | {"created": moment(judgement.created)}


def to_judgement(row: sa.RowMapping) -> Judgement:
    fields = _fields(row)
    for name in ("shown", "ranks", "flags"):
        fields[name] = tuple(fields[name])
    fields["created"] = datetime.fromisoformat(fields["created"])
    return Judgement(**fields)


# Finding


def prompt_by_id(db: sa.Connection, id: str) -> Prompt:
    """LookupError: there is none."""
    row = db.execute(sa.select(PROMPTS).where(PROMPTS.c.id == id)).mappings().first()
    if row is None:
        raise LookupError(f"there is no prompt {named(id)}")
    return to_prompt(row)


def completions_by_id(db: sa.Connection, ids: Collection[str]) -> list[Completion]:
    """Those of ``ids`` that are there, in no order."""
    return [to_completion(row._mapping) for row in lookup(db, sa.select(COMPLETIONS), COMPLETIONS.c.id, set(ids))]


def judgement_by_id(db: sa.Connection, id: str) -> Judgement | None:
    row = db.execute(sa.select(JUDGEMENTS).where(JUDGEMENTS.c.id == id)).mappings().first()
    return None if row is None else to_judgement(row)


def judgements_by(db: sa.Connection, key: sa.Column[str], values: Iterable[str]) -> dict[str, Judgement]:
    """Judgements by the value that they have in a column of unique values."""
    rows = lookup(db, sa.select(JUDGEMENTS), key, set(values))
    return {row._mapping[key.name]: to_judgement(row._mapping) for row in rows}


def lookup(
    db: sa.Connection, query: sa.Select[*tuple[Any, ...]], key: sa.Column[str], values: Collection[str]
) -> Iterator[sa.Row[*tuple[Any, ...]]]:
    """Rows whose ``key`` is one of ``values``."""
    for piece in pieces(values):
        yield from db.execute(query.where(key.in_(piece))).all()


def pairs(db: sa.Connection, key: sa.Column[str], values: Collection[str], value: sa.Column[Any]) -> dict[str, Any]:
    """``value`` by ``key``, two columns of one table, of the rows whose ``key`` is one of ``values``."""
    if db.dialect.name != "sqlite":
        return {row[0]: row[1] for row in lookup(db, sa.select(key, value), key, values)}
    # Written out: SQLAlchemy takes longer to name a thousand parameters than SQLite to find them.
    query = f"SELECT {key.name}, {value.name} FROM {key.table} WHERE {key.name} IN "
    found: dict[str, Any] = {}
    for piece in pieces(values):
        rows = db.exec_driver_sql(f"{query} ({','.join('?' * len(piece))})", piece).all()
        found.update((row[0], row[1]) for row in rows)
    return found


def present(db: sa.Connection, table: sa.Table, ids: Collection[str]) -> set[str]:
    return set(pairs(db, table.c.id, ids, table.c.id))


def pieces(values: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Sorted, and so many at a time: a statement takes so many parameters only."""
    ordered = sorted(values)
    for start in range(0, len(ordered), AT_ONCE):
        yield tuple(ordered[start : start + AT_ONCE])


def named(key: str) -> str:
    """An identifier in an error message: what others made may be long or odd."""
    return f"{key!r:.80}"
