"""The snapshot of a store, without its records in memory: numbers and hashes are kept, records read when needed.

`aggregate.snapshot` makes the same with everything in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from .aggregate import said_key, snapshot_hash, write_snapshot
from .keys import Ints, Keys, as_array, ids_of, key_of, ordered
from .lazy import Stored, completions_at, judgement_ids_at, judgements_at, prompts_at
from .pairs import Codes
from .reading import Names
from .records import CANNOT_JUDGE, Completion, Judgement, Prompt
from .store import Store
from .stored import AT_ONCE, lookup
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
    voted_about: Keys
    """The prompts that somebody could judge; each once."""

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
        self._keys, self._voted_about, self._is_vote = bytearray(), bytearray(), bytearray()
        self._annotators = Codes()
        self._places, self._annotator, self._created = array("q"), array("q"), array("q")

    def add(self, store: Store, page: Sequence[tuple[int, Judgement]], counts: Callable[[Judgement], bool]) -> None:
        with store.database.reading() as db:
            splits = self._prompts.read(db, {one.prompt_id for _, one in page})
            texts = self._completions.read(db, {id for _, one in page for id in one.shown})
        for place, one in page:
            if counts(one):
                self._keys += bytes.fromhex(said_key(one, splits[one.prompt_id], [texts[id] for id in one.shown]))
                self._note(place, one)

    def _note(self, place: int, one: Judgement) -> None:
        self._places.append(place)
        self._annotator.append(self._annotators[one.annotator])
        self._created.append((one.created - _EPOCH) // _MICROSECOND)
        self._is_vote.append(CANNOT_JUDGE not in one.flags)
        if self._is_vote[-1]:
            self._voted_about += key_of(one.prompt_id)

    def snapshot(self, store: Store, criterion: str) -> StoredSnapshot:
        """Everything in the order that follows from the content."""
        places = np.array(self._places, np.int64)
        order = _order(store, self._keys, places)
        return StoredSnapshot(
            criterion,
            prompts_at(store, self._prompts.by_id()),
            completions_at(store, self._completions.by_id()),
            judgements_at(store, places[order]),
            keys=as_array(self._keys)[order],
            annotator=Names(tuple(self._annotators), np.array(self._annotator, np.int64)[order]),
            created=np.array(self._created, np.int64)[order],
            is_vote=np.array(self._is_vote, bool)[order],
            voted_about=np.unique(as_array(self._voted_about)),
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

    def by_id(self) -> Ints:
        """The places of all that were read, each once, in the order of the ids."""
        _, first = np.unique(as_array(self._ids), return_index=True)
        return np.array(self._places, np.int64)[first]


def _order(store: Store, keys: bytearray, places: Ints) -> Ints:
    """By what was said; of those who said the same, by the judgement's id."""
    found, order = ordered(keys)
    again = np.flatnonzero(found[1:] == found[:-1])
    same = np.union1d(again, again + 1)
    ids = list(judgement_ids_at(store, places[order[same]]))
    by_id = sorted(range(len(same)), key=lambda number: (found[same[number]], ids[number]))
    order[same] = order[same[by_id]]
    return order
