"""The snapshot of a store, without its records in memory: numbers and hashes are kept, records read when needed.

`aggregate.snapshot` makes the same with everything in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from .aggregate import Comparison, comparisons, said_key, snapshot_hash, tells_apart, write_snapshot
from .elsewhere import Compared
from .keys import Grouped, Ints, Keys, as_array, find, ids_of, key_of, ordered
from .lazy import Stored, asked_at, completions_at, judgement_ids_at, judgements_at, prompts_at
from .pairs import Codes
from .reading import Names
from .records import CANNOT_JUDGE, Completion, Judgement, Prompt, Split
from .store import Store
from .stored import AT_ONCE, completions_by_id, lookup
from .tables import COMPLETIONS, PROMPTS

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


@dataclass(frozen=True)
class StoredSnapshot:
    """As `aggregate.Snapshot`, of J judgements, with records that stay in the store; rows never change."""

    criterion: str
    prompts: Stored[Prompt]
    completions: Stored[Completion]
    judgements: Stored[Judgement]
    keys: Keys
    """[J] What each says, as a hash."""
    annotator: Names
    """[J] Who gave each."""
    created: Ints
    """[J] When, in microseconds since 1970."""
    is_vote: npt.NDArray[np.bool_]
    """[J] Whether its annotator could judge."""
    tells_apart: npt.NDArray[np.bool_]
    """[J] Whether it casts a vote for one text over another."""
    about: Ints
    """[J] The number of its prompt among ``prompts``."""

    @cached_property
    def hash(self) -> str:
        """As `aggregate.Snapshot.hash`."""
        return snapshot_hash(self.criterion, ids_of(self.keys))

    def write(self, path: str | Path) -> None:
        """As `aggregate.Snapshot.write`."""
        write_snapshot(Path(path), self)

    def by_time(self) -> Stored[Judgement]:
        """Its judgements, the earliest first; of those of one moment, the first here."""
        order = np.argsort(self.created, kind="stable")
        return judgements_at(self.judgements.store, self.judgements.places[order])

    def voted_about(self) -> Stored[tuple[str, Split | None]]:
        """Id and split of the prompts that somebody could judge; each once."""
        return asked_at(self.prompts.store, self.prompts.places[np.unique(self.about[self.is_vote])])

    def comparisons(self) -> StoredComparisons:
        """As `aggregate.Snapshot.comparisons`, every judgement counting as one."""
        said = Grouped(self.judgements.places, self.about, len(self.prompts))
        return StoredComparisons(self.prompts, said, np.unique(self.about[self.tells_apart]))


class StoredComparisons(Compared):
    """Those of some prompts of a snapshot, made when they are asked for."""

    def __init__(self, prompts: Stored[Prompt], said: Grouped, numbers: Ints) -> None:
        """``said``: the places of the judgements about each of the prompts; ``numbers``: which prompts are meant."""
        super().__init__(numbers)
        self._prompts, self._said = prompts, said

    def at(self, places: Ints) -> Self:
        return type(self)(self._prompts, self._said, places)

    def pages(self) -> list[Ints]:
        """Prompts with about `AT_ONCE` judgements."""
        page = self._said.counts[self.places].cumsum() // AT_ONCE
        return np.split(self.places, np.flatnonzero(np.diff(page)) + 1)

    def read(self, places: Ints) -> list[Comparison]:
        store, asked = self._prompts.store, list(self._prompts.chosen(places.tolist()))
        about = [place for number in places for place in self._said[number]]
        said = list(judgements_at(store, np.array(about, np.int64)))
        with store.database.reading() as db:
            answers = completions_by_id(db, {id for one in said for id in one.shown})
        found = {one.prompt.id: one for one in comparisons(asked, answers, said)}
        return [found[prompt.id] for prompt in asked]

    def asked(self) -> Iterator[tuple[str, Split | None]]:
        return iter(asked_at(self._prompts.store, self._prompts.places[self.places]))


def freeze(
    store: Store,
    criterion: str,
    completion_ids: Collection[str] | None = None,
    counts: Callable[[Judgement], bool] = lambda _: True,
) -> StoredSnapshot:
    """As `aggregate.snapshot`.

    Args:
        counts: whether a judgement is one of the snapshot's. What it is about stays in the snapshot if it is not.
    """
    allowed = None if completion_ids is None else frozenset(completion_ids)
    said = (
        (place, one)
        for place, one in store.placed_judgements(criterion)
        if allowed is None or allowed.issuperset(one.shown)
    )
    found = _Columns()
    while page := list(islice(said, AT_ONCE)):
        found.add(store, page, counts)
    return found.snapshot(store, criterion)


class _Columns:
    """What is kept of judgements, in the order of the store."""

    def __init__(self) -> None:
        self._prompts, self._completions = _Rows(PROMPTS.c.split), _Rows(COMPLETIONS.c.text)
        self._keys, self._about = bytearray(), bytearray()
        self._is_vote, self._tells_apart = bytearray(), bytearray()
        self._annotators = Codes()
        self._places, self._annotator, self._created = array("q"), array("q"), array("q")

    def add(self, store: Store, page: Sequence[tuple[int, Judgement]], counts: Callable[[Judgement], bool]) -> None:
        with store.database.reading() as db:
            splits = self._prompts.read(db, {one.prompt_id for _, one in page})
            texts = self._completions.read(db, {id for _, one in page for id in one.shown})
        for place, one in page:
            if counts(one):
                self._note(place, one, splits[one.prompt_id], [texts[id] for id in one.shown])

    def _note(self, place: int, one: Judgement, split: Split | None, texts: Sequence[str]) -> None:
        self._keys += bytes.fromhex(said_key(one, split, texts))
        self._about += key_of(one.prompt_id)
        self._places.append(place)
        self._annotator.append(self._annotators[one.annotator])
        self._created.append((one.created - _EPOCH) // _MICROSECOND)
        self._is_vote.append(CANNOT_JUDGE not in one.flags)
        self._tells_apart.append(tells_apart(one, dict(zip(one.shown, texts, strict=True))))

    def snapshot(self, store: Store, criterion: str) -> StoredSnapshot:
        """Everything in the order that follows from the content."""
        places = np.array(self._places, np.int64)
        order = _order(store, self._keys, places)
        prompt_ids, at = self._prompts.by_id()
        return StoredSnapshot(
            criterion,
            prompts_at(store, at),
            completions_at(store, self._completions.by_id()[1]),
            judgements_at(store, places[order]),
            keys=as_array(self._keys)[order],
            annotator=Names(tuple(self._annotators), np.array(self._annotator, np.int64)[order]),
            created=np.array(self._created, np.int64)[order],
            is_vote=np.array(self._is_vote, bool)[order],
            tells_apart=np.array(self._tells_apart, bool)[order],
            about=find(prompt_ids, self._about)[order],
        )


class _Rows:
    """Rows of a table that judgements are about: one column's values for now, and their places for good."""

    def __init__(self, column: sa.Column[Any]) -> None:
        self._column = column
        self._ids, self._places = bytearray(), array("q")

    def read(self, db: sa.Connection, ids: Collection[str]) -> dict[str, Any]:
        """The values of some rows by their ids."""
        c, found = self._column.table.c, {}
        for place, id, value in lookup(db, sa.select(c.seq, c.id, self._column), c.id, ids):
            self._ids += key_of(id)
            self._places.append(place)
            found[id] = value
        return found

    def by_id(self) -> tuple[Keys, Ints]:
        """The ids of all that were read, in order and each once, and their places."""
        ids, first = np.unique(as_array(self._ids), return_index=True)
        return ids, np.array(self._places, np.int64)[first]


def _order(store: Store, keys: bytearray, places: Ints) -> Ints:
    """By what was said; of those who said the same, by the judgement's id."""
    found, order = ordered(keys)
    again = np.flatnonzero(found[1:] == found[:-1])
    same = np.union1d(again, again + 1)
    ids = list(judgement_ids_at(store, places[order[same]]))
    by_id = sorted(range(len(same)), key=lambda number: (found[same[number]], ids[number]))
    order[same] = order[same[by_id]]
    return order
