"""What people said about what models wrote: one SQLite file, ``feedback.db``, or a team's PostgreSQL database.

Everything is only ever added. Prompts, completions and demonstrations are named by their content, so adding
one again changes nothing; a judgement is an event, and a correction or an undo is a later event that
supersedes it. What was said stays readable for good, and every reader sees the store as it was at one moment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import sqlalchemy as sa

from .database import Database, open_database, place_of
from .records import Completion, Demonstration, Judgement, Message, Prompt, Split
from .tables import COMPLETIONS, DEMONSTRATIONS, GUIDELINES, JUDGEMENTS, PROMPTS, moment

_BATCH = 1000
"""Records per INSERT and rows per page: large enough that a statement's cost vanishes, small in memory."""

_LONG = 100
"""Batches after which adding is an import of a large file, worth a larger cache."""
_LARGE_CACHE = -192 * 1024
"""SQLite's unit: negative KiB. Identifiers are hashes, so that a long import touches all pages at random."""
_Row = dict[str, Any]


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


@dataclass(frozen=True)
class Guidelines:
    """What annotators are asked to do, as it stood at one time."""

    version: int
    text: str
    """Markdown."""
    author: str
    created: datetime


AnyRecord = Prompt | Completion | Demonstration | Judgement | Guidelines


class Store:
    """The feedback of one project. Safe to use from several threads and several processes at once.

    Readers return records in the order in which they were added, as the store was when the method was called;
    they hold no lock while the caller works, so an iteration may be left half way.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, path_or_url: str | Path, create: bool = True) -> Self:
        """Open a file, or a URL (``sqlite:///…``, ``postgresql://…``), and bring its schema up to date.

        A file that is not there is made; a PostgreSQL database is there already, perhaps empty.

        Raises FileNotFoundError when there is nothing to open, and ValueError when it is not a prefloop
        database or was written by a newer prefloop.
        """
        return cls(open_database(path_or_url, create))

    @classmethod
    def of_project(cls, folder: Path, create: bool = True) -> Self:
        """The store of the project in ``folder``: ``$PREFLOOP_DATABASE`` where that is set, else ``feedback.db``."""
        return cls.open(place_of(folder), create)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    def add(self, records: Iterable[AnyRecord]) -> Counts:
        """Add records of any kinds in one transaction, all or nothing, and return how many of them were new.

        ``records`` may be a generator of any length; it is consumed in batches while other writers wait. A
        record follows those that it refers to, or they are in the store already.

        A record whose id is there already is left as it is. ValueError, with nothing written, for: a
        judgement whose id is there with other content (its time of creation aside: a repeated send has its
        own clock); a reference to a record that is not there or belongs to another prompt; a second
        correction of the same judgement; a prompt that changes its split; text that is not valid Unicode.
        TimeoutError when another writer does not let go.
        """
        stream = iter(records)
        added = Counts()
        with self.database.writing() as db:
            usual = _cache(db)
            for number, batch in enumerate(iter(lambda: list(islice(stream, _BATCH)), [])):
                if number == _LONG:
                    _cache(db, _LARGE_CACHE)
                added += add_records(db, batch)
            _cache(db, usual)
        return added

    # Reading

    def prompts(self, split: Split | None = None, ids: Collection[str] | None = None) -> Iterator[Prompt]:
        """All prompts, or those that their owner put in ``split``; or those of ``ids`` (1,000 at most)."""
        where = [] if split is None else [PROMPTS.c.split == split]
        where += [] if ids is None else [PROMPTS.c.id.in_(ids)]
        return map(_to_prompt, self._scan(PROMPTS, self._end(PROMPTS), *where))

    def completions(self, prompt_ids: Iterable[str] | None = None) -> Iterator[Completion]:
        """All completions in order of insertion, or those of some prompts, prompt by prompt as given."""
        end = self._end(COMPLETIONS)
        if prompt_ids is None:
            return map(_to_completion, self._scan(COMPLETIONS, end))
        return self._completions_of(list(dict.fromkeys(prompt_ids)), end)

    def demonstrations(self, effective: bool = True) -> Iterator[Demonstration]:
        """All demonstrations but those that were undone with their judgement; every one with ``effective=False``."""
        undone = sa.exists().where(
            JUDGEMENTS.c.supersedes == DEMONSTRATIONS.c.judgement_id, JUDGEMENTS.c.seq <= self._end(JUDGEMENTS)
        )
        where = [~undone] if effective else []
        return map(_to_demonstration, self._scan(DEMONSTRATIONS, self._end(DEMONSTRATIONS), *where))

    def judgements(self, criterion: str | None = None, effective: bool = True) -> Iterator[Judgement]:
        """What counts today: neither superseded nor retracted; with ``effective=False``, every event ever."""
        end = self._end(JUDGEMENTS)
        where = [] if criterion is None else [JUDGEMENTS.c.criterion == criterion]
        if effective:
            later = JUDGEMENTS.alias("later")
            superseded = sa.exists().where(later.c.supersedes == JUDGEMENTS.c.id, later.c.seq <= end)
            where += [~superseded, ~JUDGEMENTS.c.retracted]
        return map(_to_judgement, self._scan(JUDGEMENTS, end, *where))

    def latest(self, ids: Iterable[str]) -> dict[str, Judgement]:
        """For each of these judgements that is there, the end of its chain of corrections: itself, or the event that
        stands in its place today, which may be a retraction."""
        with self.database.reading() as db:
            found = _judgements_by(db, JUDGEMENTS.c.id, ids)
            latest = dict(found)
            while found:
                later = _judgements_by(db, JUDGEMENTS.c.supersedes, [judgement.id for judgement in found.values()])
                found = {key: later[judgement.id] for key, judgement in found.items() if judgement.id in later}
                latest |= found
        return latest

    def add_guidelines(self, text: str, author: str) -> Guidelines:
        """What annotators are asked to do from now on; earlier versions stay."""
        if not text.strip():
            raise ValueError("guidelines need a text; to ask for nothing, say so")
        with self.database.writing() as db:
            version = (db.scalar(sa.select(sa.func.max(GUIDELINES.c.version))) or 0) + 1
            made = Guidelines(version, text, author, datetime.now(UTC))
            db.execute(GUIDELINES.insert(), [_from_guidelines(made)])
        return made

    def guidelines(self) -> list[Guidelines]:
        """Every version, newest last."""
        with self.database.reading() as db:
            rows = db.execute(sa.select(GUIDELINES).order_by(GUIDELINES.c.version)).mappings().all()
        return [Guidelines(**{**row, "created": datetime.fromisoformat(row["created"])}) for row in rows]

    def newest_judgement(self) -> int:
        """A number that grows whenever somebody judges."""
        return self._end(JUDGEMENTS)

    def counts(self) -> Counts:
        """How many records there are; judgements include those that were superseded or retracted."""
        tables = (PROMPTS, COMPLETIONS, DEMONSTRATIONS, JUDGEMENTS)
        each = [sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in tables]
        with self.database.reading() as db:
            return Counts(*db.execute(sa.select(*each)).one())

    def _end(self, table: sa.Table) -> int:
        with self.database.reading() as db:
            return db.scalar(sa.select(sa.func.max(table.c.seq))) or 0

    def _scan(self, table: sa.Table, end: int, *where: sa.ColumnElement[bool]) -> Iterator[sa.RowMapping]:
        """Rows up to ``end``, page by page. Rows never change, so the pages make one consistent view."""
        after = 0
        while True:
            query = sa.select(table).where(table.c.seq > after, table.c.seq <= end, *where)
            with self.database.reading() as db:
                page = db.execute(query.order_by(table.c.seq).limit(_BATCH)).mappings().all()
            yield from page
            if len(page) < _BATCH:
                return
            after = page[-1]["seq"]

    def _completions_of(self, prompt_ids: list[str], end: int) -> Iterator[Completion]:
        for start in range(0, len(prompt_ids), _BATCH):
            found: dict[str, list[Completion]] = {key: [] for key in prompt_ids[start : start + _BATCH]}
            with self.database.reading() as db:
                query = sa.select(COMPLETIONS).where(COMPLETIONS.c.prompt_id.in_(found))
                query = query.where(COMPLETIONS.c.seq <= end).order_by(COMPLETIONS.c.seq)
                for row in db.execute(query).mappings():
                    found[row["prompt_id"]].append(_to_completion(row))
            for completions in found.values():
                yield from completions


def _judgements_by(db: sa.Connection, key: sa.Column[str], values: Iterable[str]) -> dict[str, Judgement]:
    """Judgements by the value that they have in a column of unique values."""
    rows = _lookup(db, sa.select(JUDGEMENTS), key, set(values))
    return {row._mapping[key.name]: _to_judgement(row._mapping) for row in rows}


def _cache(db: sa.Connection, size: int | None = None) -> int | None:
    """SQLite's cache size as it was; with ``size``, it is changed."""
    if db.dialect.name != "sqlite":
        return None
    before: int = db.exec_driver_sql("PRAGMA cache_size").scalar_one()
    if size is not None and size != before:
        db.exec_driver_sql(f"PRAGMA cache_size = {size}")
    return before


# Adding one batch


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
    known = _pairs(db, PROMPTS.c.id, {prompt.id for prompt in given}, PROMPTS.c.split)
    fresh: list[_Row] = []
    for prompt in given:
        if prompt.id not in known:
            known[prompt.id] = prompt.split
            fresh.append(_from_prompt(prompt))
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
            db.execute(GUIDELINES.insert(), [_from_guidelines(guidelines)])
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
        missing = written_with - _present(db, JUDGEMENTS, {str(key) for key in written_with})
        if missing:
            raise ValueError(
                f"a demonstration names judgement {_named(str(missing.pop()))}, which is not in the store"
            )
    known = _present(db, table, {record.id for record in given})
    fresh = {record.id: _from_answer(record) for record in given if record.id not in known}
    return _insert(db, table, list(fresh.values()))


def _add_judgements(
    db: sa.Connection, given: list[Judgement], prompts: list[Prompt], completions: list[Completion]
) -> int:
    named = {record.id for record in given} | {record.supersedes for record in given if record.supersedes}
    known = {
        row.id: _to_judgement(row._mapping) for row in _lookup(db, sa.select(JUDGEMENTS), JUDGEMENTS.c.id, named)
    }
    fresh: dict[str, Judgement] = {}
    for judgement in given:
        before = known.get(judgement.id) or fresh.get(judgement.id)
        if before is None:
            fresh[judgement.id] = judgement
        elif before != judgement.model_copy(update={"created": before.created}):
            raise ValueError(
                f"judgement {_named(judgement.id)} is here already with other content; a judgement is never "
                "changed: send a correction under a new id that supersedes it"
            )
    new = list(fresh.values())
    _check_prompts(db, new, prompts)
    _check_references(db, new, completions)
    _check_chains(db, new, known)
    return _insert(db, JUDGEMENTS, [_from_judgement(judgement) for judgement in new])


def _check_prompts(
    db: sa.Connection,
    records: list[Completion] | list[Demonstration] | list[Judgement],
    prompts: list[Prompt],
) -> None:
    missing = {record.prompt_id for record in records} - {prompt.id for prompt in prompts}
    missing -= _present(db, PROMPTS, missing)
    for record in records:
        if record.prompt_id in missing:
            kind = type(record).__name__.lower()
            raise ValueError(
                f"{kind} {_named(record.id)} belongs to prompt {_named(record.prompt_id)}, which is not in "
                "the store; add the prompt first"
            )


def _check_references(db: sa.Connection, judgements: list[Judgement], completions: list[Completion]) -> None:
    owner = {completion.id: completion.prompt_id for completion in completions}
    unknown = {key for judgement in judgements for key in judgement.shown} - owner.keys()
    owner.update(_pairs(db, COMPLETIONS.c.id, unknown, COMPLETIONS.c.prompt_id))
    for judgement in judgements:
        for key in judgement.shown:
            if key not in owner:
                raise ValueError(
                    f"judgement {_named(judgement.id)} shows completion {_named(key)}, which is not in the "
                    "store; add the completion first"
                )
            if owner[key] != judgement.prompt_id:
                raise ValueError(
                    f"judgement {_named(judgement.id)} is about prompt {_named(judgement.prompt_id)}, but "
                    f"completion {_named(key)} answers prompt {_named(owner[key])}"
                )


def _check_chains(db: sa.Connection, new: list[Judgement], known: dict[str, Judgement]) -> None:
    """A correction names an earlier judgement of the same prompt that nothing else has superseded."""
    targets = {judgement.supersedes for judgement in new if judgement.supersedes is not None}
    if not targets:
        return
    taken = _pairs(db, JUDGEMENTS.c.supersedes, targets, JUDGEMENTS.c.id)
    earlier = dict(known)
    for judgement in new:
        if (target := judgement.supersedes) is not None:
            corrects = f"judgement {_named(judgement.id)} supersedes {_named(target)}, which"
            if target not in earlier:
                raise ValueError(f"{corrects} is not in the store")
            if earlier[target].prompt_id != judgement.prompt_id:
                raise ValueError(f"{corrects} is about another prompt ({_named(earlier[target].prompt_id)})")
            if target in taken:
                raise ValueError(f"{corrects} {_named(taken[target])} has superseded already; supersede that one")
            taken[target] = judgement.id
        earlier[judgement.id] = judgement


# Single records, within a transaction of the caller's


def prompt_by_id(db: sa.Connection, id: str) -> Prompt:
    """LookupError: there is none."""
    row = db.execute(sa.select(PROMPTS).where(PROMPTS.c.id == id)).mappings().first()
    if row is None:
        raise LookupError(f"there is no prompt {_named(id)}")
    return _to_prompt(row)


def completions_by_id(db: sa.Connection, ids: Collection[str]) -> list[Completion]:
    """Those of ``ids`` that are there, in no order."""
    return [_to_completion(row._mapping) for row in _lookup(db, sa.select(COMPLETIONS), COMPLETIONS.c.id, set(ids))]


def judgement_by_id(db: sa.Connection, id: str) -> Judgement | None:
    row = db.execute(sa.select(JUDGEMENTS).where(JUDGEMENTS.c.id == id)).mappings().first()
    return None if row is None else _to_judgement(row)


def _lookup(
    db: sa.Connection, query: sa.Select[*tuple[Any, ...]], key: sa.Column[str], values: Collection[str]
) -> Iterator[sa.Row[*tuple[Any, ...]]]:
    """Rows whose ``key`` is one of ``values``, in pieces: a statement takes so many parameters only."""
    ordered = sorted(values)
    for start in range(0, len(ordered), _BATCH):
        yield from db.execute(query.where(key.in_(ordered[start : start + _BATCH]))).all()


def _pairs(db: sa.Connection, key: sa.Column[str], values: Collection[str], value: sa.Column[str]) -> dict[str, Any]:
    return {row[0]: row[1] for row in _lookup(db, sa.select(key, value), key, values)}


def _present(db: sa.Connection, table: sa.Table, ids: Collection[str]) -> set[str]:
    return {row[0] for row in _lookup(db, sa.select(table.c.id), table.c.id, ids)}


def _insert(db: sa.Connection, table: sa.Table, rows: list[_Row]) -> int:
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


def _named(key: str) -> str:
    """An identifier in an error message: what others made may be long or odd."""
    return f"{key!r:.80}"


def _is_unicode(record: AnyRecord) -> bool:
    try:
        json.dumps(
            record, ensure_ascii=False, default=lambda value: getattr(value, "__dict__", None) or str(value)
        ).encode()
    except UnicodeEncodeError:
        return False
    return True


# Records and rows


def _from_guidelines(guidelines: Guidelines) -> _Row:
    return vars(guidelines) | {"created": moment(guidelines.created)}


def _from_prompt(prompt: Prompt) -> _Row:
    messages = [[message.role, message.content] for message in prompt.messages]
    return {"id": prompt.id, "messages": messages, "split": prompt.split, "metadata": prompt.metadata}


def _to_prompt(row: sa.RowMapping) -> Prompt:
    messages = tuple(Message(role=role, content=content) for role, content in row["messages"])
    return Prompt(id=row["id"], messages=messages, split=row["split"], metadata=row["metadata"])


def _from_answer(record: Completion | Demonstration) -> _Row:
    return vars(record)


def _fields(row: sa.RowMapping) -> _Row:
    return {name: value for name, value in row.items() if name != "seq"}


def _to_completion(row: sa.RowMapping) -> Completion:
    return Completion(**_fields(row))


def _to_demonstration(row: sa.RowMapping) -> Demonstration:
    return Demonstration(**_fields(row))


def _from_judgement(judgement: Judgement) -> _Row:
    return vars(judgement) | {"created": moment(judgement.created)}


def _to_judgement(row: sa.RowMapping) -> Judgement:
    fields = _fields(row)
    for name in ("shown", "ranks", "flags"):
        fields[name] = tuple(fields[name])
    fields["created"] = datetime.fromisoformat(fields["created"])
    return Judgement(**fields)
