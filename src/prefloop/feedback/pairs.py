"""Judgements as arrays: one row for each pair of answers that a judgement compares.

Statistics of feedback count pairs. A ranking of K answers is C(K, 2) of them, so two answers and rankings of many
go through the same formulas. A pair is a *unit*: two different answers to one prompt, in whatever order they were
shown and by whomever they were judged. Answers with the same text are one answer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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
    """Completions by number, and which of them are the same answer: those of a prompt with the same text."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        """Completion id → its number."""
        self._texts: dict[bytes, int] = {}  # by hash: the texts of a million completions are gigabytes
        self._answer = array("q")

    def add(self, completion: Completion) -> int:
        """The completion's number; that of one that is here already if it comes again."""
        number = self.number.setdefault(completion.id, len(self.number))
        if number == len(self._answer):
            text = f"{completion.prompt_id}\0{completion.text}".encode("utf-8", "surrogatepass")
            key = hashlib.blake2b(text, digest_size=16).digest()
            self._answer.append(self._texts.setdefault(key, len(self._texts)))
        return number

    @property
    def answer(self) -> Ints:
        """[completions] The number of each one's answer."""
        return np.array(self._answer, np.int64)


class PairCollector:
    """Takes judgements one by one and makes `PairVotes` of them.

    Args:
        completions: what the judgements show.
    """

    def __init__(self, completions: Numbered) -> None:
        self._completions = completions
        self._annotators: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        self._count = 0
        self._ints = array("q")  # prompt, annotator, judgement, left, right; in turn
        self._codes = array("b")  # whether the left is preferred, and by gold: 1, 0 or −1; in turn

    def add(self, judgement: Judgement, gold: Sequence[int] | None = None) -> int:
        """Take one judgement; its number is returned. Corrections come later than what they correct.

        Args:
            gold: the right ranks of the shown answers, where they are known.

        Raises:
            ValueError: a completion that is not known, or gold ranks that do not fit.
        """
        if gold is not None and len(gold) != len(judgement.shown):
            raise ValueError(
                f"judgement {judgement.id!r:.80} shows {len(judgement.shown)} answers and has {len(gold)} gold ranks"
            )
        number, self._count = self._count, self._count + 1
        prompt = self._prompts.setdefault(judgement.prompt_id, len(self._prompts))
        annotator = self._annotators.setdefault(judgement.annotator, len(self._annotators))
        try:
            shown = [self._completions.number[key] for key in judgement.shown]
        except KeyError as missing:
            raise ValueError(f"judgement {judgement.id!r:.80} shows completion {missing}, which is missing") from None
        for left, right in compared(judgement):
            self._ints.extend((prompt, annotator, number, shown[left], shown[right]))
            known = 0 if gold is None else _order(gold[left], gold[right])
            self._codes.extend((_order(judgement.ranks[left], judgement.ranks[right]), known))
        return number

    def votes(self) -> PairVotes:
        """What was taken so far."""
        ints = np.array(self._ints, np.int64).reshape(-1, 5)
        order, gold = np.array(self._codes, np.int8).reshape(-1, 2).T
        answers = self._completions.answer[ints[:, 3:]]
        differ = answers[:, 0] != answers[:, 1]
        ints, order, gold, answers = ints[differ], order[differ], gold[differ], answers[differ]
        first_left = answers[:, 0] < answers[:, 1]
        turn = np.where(first_left, 1, -1).astype(np.int8)
        first, second = answers.min(1, initial=2**62), answers.max(1, initial=0)
        return PairVotes(
            annotators=tuple(self._annotators),
            prompt=ints[:, 0].copy(),
            pair=np.unique(first * (second.max(initial=0) + 1) + second, return_inverse=True)[1],
            annotator=ints[:, 1].copy(),
            judgement=ints[:, 2].copy(),
            first=first,
            second=second,
            value=(1 + order * turn) / 2,
            first_left=first_left,
            gold=gold * turn,
            shown=ints[:, 3:].copy(),
        )


def pair_votes(
    judgements: Iterable[Judgement],
    completions: Iterable[Completion],
    gold: Mapping[str, Sequence[int]] | None = None,
) -> PairVotes:
    """Judgements as pairs, in their order; see `PairCollector`.

    Args:
        gold: judgement id → the right ranks of what it shows.
    """
    numbered, known = Numbered(), gold or {}
    for completion in completions:
        numbered.add(completion)
    collector = PairCollector(numbered)
    for judgement in judgements:
        collector.add(judgement, known.get(judgement.id))
    return collector.votes()


def sums(group: Ints, values: npt.ArrayLike, groups: int) -> Floats:
    """[groups] The sum of the values of each group."""
    return np.bincount(group, np.asarray(values, float), groups).astype(float)


def compared(judgement: Judgement) -> Iterable[tuple[int, int]]:
    """Places (left, right) of the pairs that a judgement says something about; as in `aggregate.votes`."""
    if CANNOT_JUDGE in judgement.flags:
        return ()
    places = combinations(range(len(judgement.shown)), 2)
    if BEST_ONLY not in judgement.flags:
        return places
    return ((i, j) for i, j in places if judgement.ranks[i] != judgement.ranks[j])


def _order(rank: int, other: int) -> int:
    return (rank < other) - (rank > other)
