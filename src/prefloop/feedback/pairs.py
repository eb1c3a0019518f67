"""Judgements as arrays: one row for each pair of answers that a judgement compares.

Statistics of feedback count pairs. A ranking of K answers is C(K, 2) of them, so two answers and rankings of many
go through the same formulas. A pair is a *unit*: two different answers to one prompt, in whatever order they were
shown and by whomever they were judged. Answers with the same text are one answer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, combinations, islice, repeat
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from .keys import Ints, Keys, as_array, find, key_of
from .records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement

Floats = npt.NDArray[np.float64]
Column = TypeVar("Column", np.int64, np.bytes_)
_AT_ONCE = 10_000
"""Judgements that `pair_votes` holds at a time."""


@dataclass(frozen=True)
class PairVotes:
    """N votes, each by one annotator between two answers."""

    annotators: tuple[str, ...]
    """Names; ``annotator`` counts in them."""
    prompt: Ints
    """[N] Which prompt."""
    pair: Ints
    """[N] Which two answers, 0 to ``n_pairs`` − 1."""
    annotator: Ints
    """[N] Who."""
    judgement: Ints
    """[N] Which judgement the row comes from, in the order in which they were given."""
    first: Ints
    """[N] The answer of the pair with the lower number."""
    second: Ints
    """[N] The other one."""
    value: Floats
    """[N] 1 where the first is preferred, 0 where the second is, ½ for a tie."""
    first_left: npt.NDArray[np.bool_]
    """[N] Whether the first was shown before (left of, above) the second."""
    gold: npt.NDArray[np.int8]
    """[N] 1 where the first is known to be better, −1 where the second is, 0 where nothing is known."""
    shown: Ints
    """[N, 2] The completions, by number, left and right."""

    def __len__(self) -> int:
        return len(self.value)

    @property
    def n_pairs(self) -> int:
        return int(self.pair.max()) + 1 if len(self) else 0

    @property
    def sign(self) -> Floats:
        """[N] 1 for the first, −1 for the second, 0 for a tie."""
        return 2 * self.value - 1

    @property
    def left(self) -> Floats:
        """[N] 1 where the answer shown before the other is preferred, 0 where it is not, ½ for a tie."""
        return np.where(self.first_left, self.value, 1 - self.value)

    def rows(self, chosen: npt.NDArray[Any]) -> Self:
        """Some of the votes, by a mask or by their numbers. Pairs are numbered anew."""
        arrays: dict[str, Any] = {
            field.name: getattr(self, field.name)[chosen] for field in fields(self) if field.name != "annotators"
        }
        arrays["pair"] = np.unique(arrays["pair"], return_inverse=True)[1]
        return type(self)(annotators=self.annotators, **arrays)

    def latest(self) -> Self:
        """Only the last vote of each annotator about each pair: who says the same twice does not agree with
        anybody else."""
        return self.rows(self.latest_rows())

    def latest_rows(self) -> Ints:
        """Numbers of the rows that `latest` keeps, in order."""
        key = self.pair * max(1, len(self.annotators)) + self.annotator
        _, last = np.unique(key[::-1], return_index=True)
        return np.sort(len(self) - 1 - last)


class Numbered:
    """Completions by number, and which of them are the same answer: those of a prompt with the same text.

    Identifiers and hashes of texts are 16 bytes each: the texts of a million completions are gigabytes, and even
    their identifiers, as texts in a table, hundreds of megabytes.
    """

    def __init__(self) -> None:
        self._ids, self._texts = bytearray(), bytearray()
        self._index: tuple[Keys, Ints] | None = None  # made when all are there

    def add(self, id: str, prompt_id: str, text: str) -> None:
        """Give the completion the next number; one that is here already keeps its own."""
        self._ids += key_of(id)
        self._texts += _hash(f"{prompt_id}\0{text}")
        self._index = None

    def numbers(self, ids: Iterable[str]) -> Ints:
        """The completions' numbers; -1 for one that was not added."""
        keys, number = self._indexed()
        places = find(keys, b"".join(map(key_of, ids)))
        return np.where(places < 0, -1, number[places]) if len(keys) else places

    @property
    def answer(self) -> Ints:
        """[completions] The number of each one's answer."""
        _, first = np.unique(as_array(self._ids), return_index=True)
        return in_order(as_array(self._texts)[np.sort(first)])[1]

    def _indexed(self) -> tuple[Keys, Ints]:
        """The different identifiers, sorted, and the number of each: its place among those that came first."""
        if self._index is None:
            keys, first = np.unique(as_array(self._ids), return_index=True)
            self._index = keys, np.argsort(np.argsort(first))
        return self._index


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class Rankings:
    """J judgements as columns. Their S shown answers stand one after the other, in the order of the judgements."""

    prompt: Ints
    """[J] Which prompt."""
    annotator: Ints
    """[J] Who."""
    length: Ints
    """[J] How many answers were shown."""
    cannot_judge: npt.NDArray[np.bool_]
    """[J] Flagged so: no votes."""
    best_only: npt.NDArray[np.bool_]
    """[J] Flagged so: ties are no votes."""
    shown: Ints
    """[S] Completions by number."""
    ranks: Ints
    """[S]."""
    gold: Ints
    """[S] The right ranks; all 0 where they are not known."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def judgement(self) -> Ints:
        """[S] Which judgement each shown answer belongs to."""
        return np.repeat(np.arange(len(self)), self.length)

    def rows(self, chosen: npt.NDArray[np.bool_], annotator: Ints) -> Self:
        """Some of the judgements. Prompts are numbered anew, and annotators as is said."""
        of_shown = np.repeat(chosen, self.length)
        return type(self)(
            prompt=in_order(self.prompt[chosen])[1],
            annotator=annotator,
            **{name: getattr(self, name)[chosen] for name in ("length", "cannot_judge", "best_only")},
            **{name: getattr(self, name)[of_shown] for name in ("shown", "ranks", "gold")},
        )

    def votes(self, annotators: Sequence[str], completions: Numbered) -> PairVotes:
        """The pairs, judgement by judgement and in each from the first to the last.

        Args:
            annotators: names by number.
        """
        judgement, left, right = self._compared()
        order, gold = (np.sign(ranks[right] - ranks[left]).astype(np.int8) for ranks in (self.ranks, self.gold))
        shown = self.shown[np.column_stack([left, right])]
        answers = completions.answer[shown]
        kept = (answers[:, 0] != answers[:, 1]) & ~(self.best_only[judgement] & (order == 0))
        judgement, order, gold, shown, answers = (x[kept] for x in (judgement, order, gold, shown, answers))
        first_left = answers[:, 0] < answers[:, 1]
        turn = np.where(first_left, 1, -1).astype(np.int8)
        first, second = answers.min(1, initial=2**62), answers.max(1, initial=0)
        return PairVotes(
            annotators=tuple(annotators),
            prompt=self.prompt[judgement],
            pair=np.unique(first * (second.max(initial=0) + 1) + second, return_inverse=True)[1],
            annotator=self.annotator[judgement],
            judgement=judgement,
            first=first,
            second=second,
            value=(1 + order * turn) / 2,
            first_left=first_left,
            gold=gold * turn,
            shown=shown,
        )

    def _compared(self) -> tuple[Ints, Ints, Ints]:
        """Of each pair of places: the judgement, and where in ``shown`` the left and the right answer stand."""
        start = self.length.cumsum() - self.length
        found = [np.zeros((0, 3), np.int64)]
        for k in np.unique(self.length):
            rows = np.flatnonzero((self.length == k) & ~self.cannot_judge)
            places = np.array(list(combinations(range(int(k)), 2)))
            at = start[rows][:, None, None] + places[None]  # [rows, pairs, 2]
            judgement = np.broadcast_to(rows[:, None, None], (*at.shape[:2], 1))
            found.append(np.concatenate([judgement, at], axis=2).reshape(-1, 3))
        table = np.concatenate(found)
        judgement, left, right = table[np.argsort(table[:, 0], kind="stable")].T
        return judgement, left, right


class PairCollector:
    """Takes judgements, one by one or many at a time, and makes `Rankings` of them.

    Args:
        completions: what the judgements show.
    """

    def __init__(self, completions: Numbered) -> None:
        self._completions = completions
        self._annotators, self._prompts = Codes(), bytearray()
        self._columns = {name: array("q") for name in ("annotator", "length", "shown", "ranks", "gold")}
        self._flags = {name: array("b") for name in ("cannot_judge", "best_only")}

    def add(
        self,
        ids: Sequence[str],
        prompts: Sequence[str],
        annotators: Sequence[str],
        shown: Sequence[Sequence[str]],
        ranks: Sequence[Sequence[int]],
        flags: Sequence[Sequence[str]],
        gold: Mapping[str, Sequence[int]],
    ) -> None:
        """Take judgements, column by column. Corrections come later than what they correct.

        Args:
            gold: judgement id → the right ranks of the shown answers, where they are known.

        Raises:
            ValueError: a completion that is not known, or gold ranks that do not fit.
        """
        columns, numbers = self._columns, self._completions.numbers(chain.from_iterable(shown))
        if (numbers < 0).any():
            raise _missing(ids, shown, int(np.argmin(numbers)))
        columns["shown"].frombytes(numbers.tobytes())
        self._prompts.extend(b"".join(map(_hash, prompts)))
        columns["annotator"].extend(map(self._annotators.__getitem__, annotators))
        columns["length"].extend(map(len, shown))
        columns["ranks"].extend(chain.from_iterable(ranks))
        columns["gold"].extend(chain.from_iterable(_known(ids, shown, gold)))
        self._flags["cannot_judge"].extend([CANNOT_JUDGE in one for one in flags])
        self._flags["best_only"].extend([BEST_ONLY in one for one in flags])

    def rankings(self) -> Rankings:
        """What was taken so far."""
        flags = {name: np.array(column, bool) for name, column in self._flags.items()}
        columns: dict[str, Any] = {name: np.array(column, np.int64) for name, column in self._columns.items()}
        return Rankings(prompt=in_order(as_array(self._prompts))[1], **columns, **flags)

    @property
    def annotators(self) -> tuple[str, ...]:
        """Names by number."""
        return tuple(self._annotators)


class Codes(dict[str, int]):
    """Texts by number, in the order in which they were first asked for."""

    def __missing__(self, value: str) -> int:
        return self.setdefault(value, len(self))


def _missing(ids: Sequence[str], shown: Sequence[Sequence[str]], place: int) -> ValueError:
    """``place``: of the completion that is not known, among all that are shown."""
    id, key = [(id, key) for id, keys in zip(ids, shown, strict=True) for key in keys][place]
    return ValueError(f"judgement {id!r:.80} shows completion {key!r}, which is missing")


def _known(
    ids: Sequence[str], shown: Sequence[Sequence[str]], gold: Mapping[str, Sequence[int]]
) -> Iterator[Iterable[int]]:
    """For each judgement its gold ranks, or as many zeros."""
    if not gold:
        yield repeat(0, sum(map(len, shown)))
        return
    for id, keys in zip(ids, shown, strict=True):
        right = gold.get(id)
        if right is not None and len(right) != len(keys):
            raise ValueError(f"judgement {id!r:.80} shows {len(keys)} answers and has {len(right)} gold ranks")
        yield repeat(0, len(keys)) if right is None else right


def pair_votes(
    judgements: Iterable[Judgement],
    completions: Iterable[Completion],
    gold: Mapping[str, Sequence[int]] | None = None,
) -> PairVotes:
    """Judgements as pairs, in their order; see `PairCollector`.

    Args:
        gold: judgement id → the right ranks of what it shows.
    """
    numbered = Numbered()
    for completion in completions:
        numbered.add(completion.id, completion.prompt_id, completion.text)
    collector = PairCollector(numbered)
    left = iter(judgements)
    while some := list(islice(left, _AT_ONCE)):
        collector.add(
            [one.id for one in some],
            [one.prompt_id for one in some],
            [one.annotator for one in some],
            [one.shown for one in some],
            [one.ranks for one in some],
            [one.flags for one in some],
            gold or {},
        )
    return collector.rankings().votes(collector.annotators, numbered)


def in_order(values: npt.NDArray[Column]) -> tuple[npt.NDArray[Column], Ints]:
    """The different values in the order in which they come, and for each value its number in that order."""
    found, first, number = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return found[order], np.argsort(order)[number]


def sums(group: Ints, values: npt.ArrayLike, groups: int) -> Floats:
    """[groups] The sum of the values of each group."""
    return np.bincount(group, np.asarray(values, float), groups).astype(float)
