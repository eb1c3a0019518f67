"""A store's completions and judgements as columns: what statistics count.

No record is made of a row, and what can be done for a page of rows at once is not done for each: of two million rows,
making records and taking them apart again took longer than all that is estimated from them.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .features import FEATURES, features
from .keys import Ints
from .pairs import Codes, Floats, Numbered, PairCollector, PairVotes, Rankings, in_order
from .store import Store


@dataclass
class Answers:
    """What is known of the completions, by number."""

    numbered: Numbered = field(default_factory=Numbered)
    _features: array[int] = field(default_factory=lambda: array("q"))
    _origin: array[int] = field(default_factory=lambda: array("q"))
    _origins: Codes = field(default_factory=Codes)

    @classmethod
    def read(cls, store: Store) -> Self:
        """Those of a store."""
        found = cls()
        for page in store.completion_rows():
            for _, id, prompt_id, text, origin in map(tuple, page):
                found.numbered.add(id, prompt_id, text)
                found._features.extend(features(text))
                found._origin.append(found._origins[origin])
        return found

    @property
    def origins(self) -> tuple[str, ...]:
        """What wrote the answers, by number."""
        return tuple(self._origins)

    @property
    def origin(self) -> Ints:
        """[completions] What wrote each."""
        return np.array(self._origin, np.int64)

    @property
    def words(self) -> Ints:
        """[completions]."""
        return np.array(self._features, np.int64)[FEATURES.index("length") :: len(FEATURES)]

    @property
    def features(self) -> Floats:
        """[answers, F] Features of each answer, which are those of its completions."""
        number = self.numbered.answer
        found = np.zeros((int(number.max(initial=-1)) + 1, len(FEATURES)))
        found[number] = np.array(self._features, float).reshape(-1, len(FEATURES))
        return found


@dataclass(frozen=True)
class Names:
    """A column of texts: J numbers that count in a list of names."""

    names: tuple[str, ...]
    number: Ints

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Self:
        """Some rows, and the names that these have, in the order in which they come."""
        old, new = in_order(self.number[chosen])
        return type(self)(tuple(self.names[k] for k in old), new)


@dataclass(frozen=True)
class Said:
    """J judgements that count today."""

    rankings: Rankings
    annotator: Names
    source: Names
    criterion: Names
    day: Names
    """ISO dates, UTC."""
    flags: Names
    """JSON lists."""
    arm: Names
    """``control``, ``priority`` or nothing."""
    send: Ints
    """[J] Numbers of sends, which are judgements by one annotator of the same answers in the same order at the same
    moment, each by another criterion. Imported and simulated judgements have no task to be known by."""
    seconds: Floats
    """[J] Of the send. NaN where it is not known."""

    def __len__(self) -> int:
        return len(self.seconds)

    def by(self, criterion: int) -> Said:
        """Those by one criterion; prompts and annotators are numbered anew."""
        if len(self.criterion.names) == 1:
            return self
        chosen = self.criterion.number == criterion
        columns = ("annotator", "source", "criterion", "day", "flags", "arm")
        names: dict[str, Names] = {name: getattr(self, name).rows(chosen) for name in columns}
        rankings = self.rankings.rows(chosen, names["annotator"].number)
        return Said(rankings=rankings, send=self.send[chosen], seconds=self.seconds[chosen], **names)

    def votes(self, completions: Numbered) -> PairVotes:
        """Its pairs."""
        return self.rankings.votes(self.annotator.names, completions)

    def words(self, of_completions: Ints) -> Floats:
        """[J] Words of the answers shown."""
        shown = self.rankings.shown
        return np.bincount(self.rankings.judgement, of_completions[shown], len(self)).astype(float)

    def right(self) -> Floats:
        """[J] How much of the order that gold fixes is there: 1 for all of it, a half for a tie; NaN where it fixes
        none."""
        found, ends = np.full(len(self), math.nan), self.rankings.length.cumsum()
        for row in np.flatnonzero(np.logical_or.reduceat(self.rankings.gold > 0, ends - self.rankings.length)):
            at = slice(ends[row] - self.rankings.length[row], ends[row])
            found[row] = _right(self.rankings.ranks[at], self.rankings.gold[at])
        return found


def read(
    store: Store,
    answers: Answers,
    criterion: str | None,
    gold: Mapping[str, Sequence[int]],
    arms: Mapping[str, str],
) -> Said:
    """The judgements of a store.

    Args:
        criterion: only this one.
        gold: judgement id → the right ranks of what it shows.
        arms: judgement id → the part of its batch that it belongs to.
    """
    collector = PairCollector(answers.numbered)
    codes = {name: Codes() for name in ("source", "criterion", "day", "flags", "arm")}
    numbers = {name: array("q") for name in codes}
    seconds, occasion = array("d"), array("q")
    flags_of = cache(json.loads)  # many rows, few different ones
    for page in filter(None, store.judgement_rows(criterion)):
        _, ids, prompts, annotators, sources, shown, ranks, criteria, flags, times, created = zip(*page, strict=True)
        collector.add(ids, prompts, annotators, _page(shown), _page(ranks), list(map(flags_of, flags)), gold)
        texts = {"source": sources, "criterion": criteria, "day": [when[:10] for when in created], "flags": flags}
        texts["arm"] = [arms.get(id, "") for id in ids]
        for name, column in texts.items():
            numbers[name].extend(map(codes[name].__getitem__, column))
        # 64 bits: of a million there are two that are equal by chance in one of 10^7 stores.
        occasion.extend(map(hash, zip(annotators, prompts, shown, created, strict=True)))
        seconds.extend([math.nan if time is None else time for time in times])
    rankings = collector.rankings()
    names = {name: Names(tuple(codes[name]), np.array(numbers[name], np.int64)) for name in codes}
    names["annotator"] = Names(collector.annotators, rankings.annotator)
    send = _sends(np.array(occasion, np.int64), names["criterion"].number)
    return Said(rankings=rankings, send=send, seconds=np.array(seconds), **names)


def _sends(occasion: Ints, criterion: Ints) -> Ints:
    """[J] Numbers of sends: judgements of one occasion, of which no two are by the same criterion. What is there
    twice (in files whose moments are rough) was said twice."""
    if not criterion.any():
        return np.arange(len(criterion))
    order = np.lexsort((criterion, occasion))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (np.diff(occasion[order]) != 0) | (np.diff(criterion[order]) != 0)
    place = np.arange(len(order))
    again = np.empty_like(order)
    again[order] = place - np.maximum.accumulate(np.where(fresh, place, 0))  # how often it was said before
    number = np.unique(occasion, return_inverse=True)[1]
    return np.unique(number * (again.max() + 1) + again, return_inverse=True)[1]


def _page(column: Iterable[str]) -> Any:
    """JSON texts, read as one."""
    return json.loads(f"[{','.join(column)}]")


def _right(ranks: Ints, gold: Ints) -> float:
    k = len(gold)
    orders = [(ranks[i], ranks[j]) for i in range(k) for j in range(k) if gold[i] < gold[j]]
    return sum(float(a < b) + float(a == b) / 2 for a, b in orders) / len(orders) if orders else math.nan
