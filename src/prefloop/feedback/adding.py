"""Adding records within a transaction, in batches, and everything that is checked before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

import sqlalchemy as sa

from .records import Completion, Demonstration, Judgement, Prompt
from .stored import (
    AT_ONCE,
    AnyRecord,
    Fields,
    Guidelines,
    from_answer,
    from_guidelines,
    from_judgement,
    from_prompt,
    judgements_by,
    named,
    pairs,
    present,
)
from .tables import COMPLETIONS, DEMONSTRATIONS, GUIDELINES, JUDGEMENTS, PROMPTS

_LONG = 100
"""Batches after which adding is an import of a large file, worth a larger cache."""
_LARGE_CACHE = -160 * 1024
"""SQLite's unit: negative KiB. Identifiers are hashes, so that a long import touches all pages at random."""


@dataclass(frozen=True)
class Counts:
    """Numbers of records, of each kind."""

    prompts: int = 0
    completions: int = 0
    demonstrations: int = 0
    judgements: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.prompts + other.prompts,
            self.completions + other.completions,
            self.demonstrations + other.demonstrations,
            self.judgements + other.judgements,
        )


def add_stream(db: sa.Connection, records: Iterable[AnyRecord]) -> Counts:
    """As `Store.add`, within a transaction of `Database.writing`."""
    stream, added = iter(records), Counts()
    usual, late = _cache(db), list[sa.Index]()
    for number, batch in enumerate(iter(lambda: list(islice(stream, AT_ONCE)), [])):
        if number == _LONG:
            _cache(db, _LARGE_CACHE)
            late = _without_indexes(db, added)
        added += add_records(db, batch)
    _cache(db, usual)
    for index in late:
        index.create(db)
    return added


def _cache(db: sa.Connection, size: int | None = None) -> int | None:
    """SQLite's cache size as it was; with ``size``, it is changed."""
    if db.dialect.name != "sqlite":
        return None
    before: int = db.exec_driver_sql("PRAGMA cache_size").scalar_one()
    if size is not None and size != before:
        db.exec_driver_sql(f"PRAGMA cache_size = {size}")
    return before


def _without_indexes(db: sa.Connection, added: Counts) -> list[sa.Index]:
    """Drop, until the end of a long import into an empty store, the indexes that adding does not use.

    Sorting a million hashes at the end is quicker than putting each one in its place. PostgreSQL would lock all
    readers out meanwhile.
    """
    if db.dialect.name != "sqlite":
        return []
    dropped = list[sa.Index]()
    for table, count in ((COMPLETIONS, added.completions), (JUDGEMENTS, added.judgements)):
        if db.scalar(sa.select(sa.func.max(table.c.seq))) == count:  # every row is this transaction's
            dropped += table.indexes
    for index in dropped:
        index.drop(db)
    return dropped


def add_records(db: sa.Connection, batch: list[AnyRecord]) -> Counts:
    """As `Store.add`, within a transaction of `Database.writing`."""
    try:
        kinds: dict[type[Any], list[Any]] = {kind: [] for kind in get_args(AnyRecord)}
        for record in batch:
            if type(record) not in kinds:
                raise TypeError(f"a store holds prompts, completions, demonstrations and judgements, not {record!r}")
            kinds[type(record)].append(record)
        prompts, completions, demonstrations, judgements, guidelines = kinds.values()
        _add_guidelines(db, guidelines)
        return Counts(
            prompts=_add_prompts(db, prompts),
            completions=_add_answers(db, COMPLETIONS, completions, prompts),
            judgements=_add_judgements(db, judgements, prompts, completions),
            demonstrations=_add_answers(db, DEMONSTRATIONS, demonstrations, prompts),
        )
    except UnicodeEncodeError as error:
        # The driver meets the text first; looking for its owner only now costs nothing where all is well.
        owner = next((record for record in batch if not _is_unicode(record)), None)
        raise ValueError(f"text with a lone surrogate is not Unicode and cannot be stored: {owner!r:.200}") from error


def _add_prompts(db: sa.Connection, given: list[Prompt]) -> int:
    known = pairs(db, PROMPTS.c.id, {prompt.id for prompt in given}, PROMPTS.c.split)
    fresh: list[Fields] = []
    for prompt in given:
        if prompt.id not in known:
            known[prompt.id] = prompt.split
            fresh.append(from_prompt(prompt))
        elif prompt.split is not None and prompt.split != known[prompt.id]:
            raise ValueError(
                f"prompt {prompt.id} ({prompt.text!r:.60}) is here already with the split "
                f"{known[prompt.id]!r} and cannot be put in the split {prompt.split!r} too"
            )
    return _insert(db, PROMPTS, fresh)


def _add_guidelines(db: sa.Connection, given: list[Guidelines]) -> None:
    """Those of another store, under their own numbers: judgements name them."""
    known = {row.version: row for row in db.execute(sa.select(GUIDELINES))} if given else {}
    for guidelines in given:
        if guidelines.version not in known:
            db.execute(GUIDELINES.insert(), [from_guidelines(guidelines)])
        elif known[guidelines.version].text != guidelines.text:
            raise ValueError(f"guidelines {guidelines.version} are here already with another text")


def _add_answers(
    db: sa.Connection,
    table: sa.Table,
    given: list[Completion] | list[Demonstration],
    prompts: list[Prompt],
) -> int:
    _check_prompts(db, given, prompts)
    if written_with := {record.judgement_id for record in given if isinstance(record, Demonstration)} - {None}:
        missing = written_with - present(db, JUDGEMENTS, {str(key) for key in written_with})
        if missing:
            raise ValueError(
                f"a demonstration names judgement {named(str(missing.pop()))}, which is not in the store"
            )
    known = present(db, table, {record.id for record in given})
    fresh = {record.id: from_answer(record) for record in given if record.id not in known}
    return _insert(db, table, list(fresh.values()))


def _add_judgements(
    db: sa.Connection, given: list[Judgement], prompts: list[Prompt], completions: list[Completion]
) -> int:
    ids = {record.id for record in given} | {record.supersedes for record in given if record.supersedes}
    there = present(db, JUDGEMENTS, ids)
    known = judgements_by(db, JUDGEMENTS.c.id, there)
    fresh: dict[str, Judgement] = {}
    for judgement in given:
        before = known.get(judgement.id) or fresh.get(judgement.id)
        if before is None:
            fresh[judgement.id] = judgement
        elif before != judgement.model_copy(update={"created": before.created}):
            raise ValueError(
                f"judgement {named(judgement.id)} is here already with other content; a judgement is never "
                "changed: send a correction under a new id that supersedes it"
            )
    new = list(fresh.values())
    _check_prompts(db, new, prompts)
    _check_references(db, new, completions)
    _check_chains(db, new, known)
    return _insert(db, JUDGEMENTS, [from_judgement(judgement) for judgement in new])


def _check_prompts(
    db: sa.Connection,
    records: list[Completion] | list[Demonstration] | list[Judgement],
    prompts: list[Prompt],
) -> None:
    missing = {record.prompt_id for record in records} - {prompt.id for prompt in prompts}
    missing -= present(db, PROMPTS, missing)
    for record in records:
        if record.prompt_id in missing:
            kind = type(record).__name__.lower()
            raise ValueError(
                f"{kind} {named(record.id)} belongs to prompt {named(record.prompt_id)}, which is not in "
                "the store; add the prompt first"
            )


def _check_references(db: sa.Connection, judgements: list[Judgement], completions: list[Completion]) -> None:
    owner = {completion.id: completion.prompt_id for completion in completions}
    unknown = {key for judgement in judgements for key in judgement.shown} - owner.keys()
    owner.update(pairs(db, COMPLETIONS.c.id, unknown, COMPLETIONS.c.prompt_id))
    for judgement in judgements:
        for key in judgement.shown:
            if key not in owner:
                raise ValueError(
                    f"judgement {named(judgement.id)} shows completion {named(key)}, which is not in the "
                    "store; add the completion first"
                )
            if owner[key] != judgement.prompt_id:
                raise ValueError(
                    f"judgement {named(judgement.id)} is about prompt {named(judgement.prompt_id)}, but "
                    f"completion {named(key)} answers prompt {named(owner[key])}"
                )


def _check_chains(db: sa.Connection, new: list[Judgement], known: dict[str, Judgement]) -> None:
    """A correction names an earlier judgement of the same prompt that nothing else has superseded."""
    targets = {judgement.supersedes for judgement in new if judgement.supersedes is not None}
    if not targets:
        return
    taken = pairs(db, JUDGEMENTS.c.supersedes, targets, JUDGEMENTS.c.id)
    earlier = dict(known)
    for judgement in new:
        if (target := judgement.supersedes) is not None:
            corrects = f"judgement {named(judgement.id)} supersedes {named(target)}, which"
            if target not in earlier:
                raise ValueError(f"{corrects} is not in the store")
            if earlier[target].prompt_id != judgement.prompt_id:
                raise ValueError(f"{corrects} is about another prompt ({named(earlier[target].prompt_id)})")
            if target in taken:
                raise ValueError(f"{corrects} {named(taken[target])} has superseded already; supersede that one")
            taken[target] = judgement.id
        earlier[judgement.id] = judgement


def _insert(db: sa.Connection, table: sa.Table, rows: list[Fields]) -> int:
    """Insert rows that have every column but ``seq``."""
    if rows and db.dialect.name == "sqlite":
        # For each row, SQLAlchemy's own way takes several times as long as SQLite does.
        names = [column.name for column in table.c if column.name in rows[0]]
        values = zip(*(_bound(db, table.c[name], [row[name] for row in rows]) for name in names), strict=True)
        db.exec_driver_sql(str(table.insert().compile(dialect=db.dialect, column_keys=names)), list(values))
    elif rows:
        db.execute(table.insert(), rows)
    return len(rows)


def _bound(db: sa.Connection, column: sa.Column[Any], values: list[Any]) -> list[Any]:
    """A column's values as SQLite's driver takes them."""
    if not isinstance(column.type, sa.JSON | sa.Boolean):
        return values
    process = column.type.dialect_impl(db.dialect).bind_processor(db.dialect)
    assert process is not None
    empty: dict[type[Any], str] = {dict: "{}", tuple: "[]"}  # most metadata and flags are
    return [process(value) if value else empty.get(type(value), value) for value in values]


def _is_unicode(record: AnyRecord) -> bool:
    try:
        json.dumps(
            record, ensure_ascii=False, default=lambda value: getattr(value, "__dict__", None) or str(value)
        ).encode()
    except UnicodeEncodeError:
        return False
    return True
