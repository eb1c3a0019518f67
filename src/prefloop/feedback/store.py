"""What people said about what models wrote: one SQLite file, ``feedback.db``, or a team's PostgreSQL database.

Everything is only ever added. Prompts, completions and demonstrations are named by their content, so adding
one again changes nothing; a judgement is an event, and a correction or an undo is a later event that
supersedes it. What was said stays readable for good, and every reader sees the store as it was at one moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from .adding import Counts, add_records, add_stream
from .database import Database, open_database, place_of
from .records import Completion, Demonstration, Judgement, Prompt, Split
from .stored import (
    AT_ONCE,
    AnyRecord,
    Guidelines,
    completions_by_id,
    from_guidelines,
    judgement_by_id,
    judgements_by,
    pairs,
    prompt_by_id,
    to_completion,
    to_demonstration,
    to_judgement,
    to_prompt,
)
from .tables import COMPLETIONS, DEMONSTRATIONS, GUIDELINES, JUDGEMENTS, PROMPTS

__all__ = [
    "AnyRecord",
    "Counts",
    "Guidelines",
    "Store",
    "add_records",
    "completions_by_id",
    "judgement_by_id",
    "prompt_by_id",
]


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
        with self.database.writing() as db:
            return add_stream(db, records)

    # Reading

    def prompts(self, split: Split | None = None, ids: Collection[str] | None = None) -> Iterator[Prompt]:
        """All prompts, or those that their owner put in ``split``; or those of ``ids`` (1,000 at most)."""
        where = [] if split is None else [PROMPTS.c.split == split]
        where += [] if ids is None else [PROMPTS.c.id.in_(ids)]
        return map(to_prompt, self._scan(PROMPTS, self._end(PROMPTS), *where))

    def completions(self, prompt_ids: Iterable[str] | None = None) -> Iterator[Completion]:
        """All completions in order of insertion, or those of some prompts, prompt by prompt as given."""
        end = self._end(COMPLETIONS)
        if prompt_ids is None:
            return map(to_completion, self._scan(COMPLETIONS, end))
        return self._completions_of(list(dict.fromkeys(prompt_ids)), end)

    def demonstrations(self, effective: bool = True) -> Iterator[Demonstration]:
        """All demonstrations but those that were undone with their judgement; every one with ``effective=False``."""
        where = [~self._undone()] if effective else []
        return map(to_demonstration, self._scan(DEMONSTRATIONS, self._end(DEMONSTRATIONS), *where))

    def judgements(self, criterion: str | None = None, effective: bool = True) -> Iterator[Judgement]:
        """What counts today: neither superseded nor retracted; with ``effective=False``, every event ever."""
        return map(to_judgement, self._said(criterion, effective))

    def placed_judgements(self, criterion: str) -> Iterator[tuple[int, Judgement]]:
        """What `judgements` returns, each with its place."""
        return ((row["seq"], to_judgement(row)) for row in self._said(criterion, effective=True))

    def _said(self, criterion: str | None, effective: bool) -> Iterator[sa.RowMapping]:
        end = self._end(JUDGEMENTS)
        where = [] if criterion is None else [JUDGEMENTS.c.criterion == criterion]
        if effective:
            later = JUDGEMENTS.alias("later")
            superseded = sa.exists().where(later.c.supersedes == JUDGEMENTS.c.id, later.c.seq <= end)
            where += [~superseded, ~JUDGEMENTS.c.retracted]
        return self._scan(JUDGEMENTS, end, *where)

    def prompt_rows(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Place, id, split and metadata of all prompts, page by page."""
        c = PROMPTS.c
        return self._pages(sa.select(c.seq, c.id, c.split, c.metadata), self._end(PROMPTS))

    def demonstration_rows(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Place, the prompt's id and place, and the judgement of what `demonstrations` returns, page by page."""
        c = DEMONSTRATIONS.c
        what = sa.select(c.seq, c.prompt_id, PROMPTS.c.seq.label("prompt"), c.judgement_id)
        what = what.join(PROMPTS, PROMPTS.c.id == c.prompt_id).where(~self._undone())
        return self._pages(what, self._end(DEMONSTRATIONS))

    def completion_rows(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Place, id, prompt, text and origin of all completions, page by page, for those who count them only: to make
        records takes longer."""
        c = COMPLETIONS.c
        return self._pages(sa.select(c.seq, c.id, c.prompt_id, c.text, c.origin), self._end(COMPLETIONS))

    def rows_from(self, origin: str) -> Iterator[Sequence[Sequence[Any]]]:
        """Place, id and prompt of the completions whose origin begins so, page by page."""
        c = COMPLETIONS.c
        begins = sa.func.substr(c.origin, 1, len(origin)) == origin  # LIKE would not tell a from A
        return self._pages(sa.select(c.seq, c.id, c.prompt_id).where(begins), self._end(COMPLETIONS))

    def completion_places(self, ids: Iterable[str]) -> dict[str, int]:
        """Id → place of these completions, as far as they are there."""
        c = COMPLETIONS.c
        with self.database.reading() as db:
            return pairs(db, c.id, set(ids), c.seq)

    def given_rows(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Place, the prompt's id and place, and metadata of all completions, page by page."""
        c = COMPLETIONS.c
        what = sa.select(c.seq, c.prompt_id, PROMPTS.c.seq.label("prompt"), c.metadata)
        return self._pages(what.join(PROMPTS, PROMPTS.c.id == c.prompt_id), self._end(COMPLETIONS))

    def judgement_rows(self, criterion: str | None = None) -> Iterator[Sequence[Sequence[Any]]]:
        """What `judgements` returns, page by page, as fields whose JSON is left as text: place, id, prompt,
        annotator, source, shown, ranks, criterion, flags, seconds and moment."""
        c, end = JUDGEMENTS.c, self._end(JUDGEMENTS)
        with self.database.reading() as db:  # a set of those that are, quicker than a question about each
            later = sa.select(c.supersedes).where(c.supersedes.is_not(None), c.seq <= end)
            superseded = set(db.scalars(later))
        shown, ranks, flags = (sa.cast(column, sa.Text) for column in (c.shown, c.ranks, c.flags))
        what: sa.Select[*tuple[Any, ...]] = sa.select(
            *(c.seq, c.id, c.prompt_id, c.annotator, c.source, shown, ranks, c.criterion, flags, c.seconds, c.created)
        ).where(~c.retracted)
        if criterion is not None:
            what = what.where(c.criterion == criterion)
        for page in self._pages(what, end):
            yield [row for row in page if row[1] not in superseded] if superseded else page

    def latest(self, ids: Iterable[str]) -> dict[str, Judgement]:
        """For each of these judgements that is there, the end of its chain of corrections: itself, or the event that
        stands in its place today, which may be a retraction."""
        with self.database.reading() as db:
            found = judgements_by(db, JUDGEMENTS.c.id, ids)
            latest = dict(found)
            while found:
                later = judgements_by(db, JUDGEMENTS.c.supersedes, [judgement.id for judgement in found.values()])
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
            db.execute(GUIDELINES.insert(), [from_guidelines(made)])
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

    def _undone(self) -> sa.Exists:
        """Whether a demonstration was undone with its judgement."""
        return sa.exists().where(
            JUDGEMENTS.c.supersedes == DEMONSTRATIONS.c.judgement_id, JUDGEMENTS.c.seq <= self._end(JUDGEMENTS)
        )

    def _end(self, table: sa.Table) -> int:
        with self.database.reading() as db:
            return db.scalar(sa.select(sa.func.max(table.c.seq))) or 0

    def _scan(self, table: sa.Table, end: int, *where: sa.ColumnElement[bool]) -> Iterator[sa.RowMapping]:
        for page in self._pages(sa.select(table).where(*where), end):
            yield from (row._mapping for row in page)

    def _pages(self, what: sa.Select[*tuple[Any, ...]], end: int) -> Iterator[Sequence[sa.Row[*tuple[Any, ...]]]]:
        """Rows up to ``end``, their ``seq`` first. Rows never change, so the pages make one consistent view."""
        seq = what.selected_columns["seq"]
        after = 0
        while True:
            query = what.where(seq > after, seq <= end).order_by(seq).limit(AT_ONCE)
            with self.database.reading() as db:
                page = db.execute(query).all()
            yield page
            if len(page) < AT_ONCE:
                return
            after = page[-1][0]

    def _completions_of(self, prompt_ids: list[str], end: int) -> Iterator[Completion]:
        for start in range(0, len(prompt_ids), AT_ONCE):
            found: dict[str, list[Completion]] = {key: [] for key in prompt_ids[start : start + AT_ONCE]}
            with self.database.reading() as db:
                query = sa.select(COMPLETIONS).where(COMPLETIONS.c.prompt_id.in_(found))
                query = query.where(COMPLETIONS.c.seq <= end).order_by(COMPLETIONS.c.seq)
                for row in db.execute(query).mappings():
                    found[row["prompt_id"]].append(to_completion(row))
            for completions in found.values():
                yield from completions
