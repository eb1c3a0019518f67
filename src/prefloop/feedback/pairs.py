"""Judgements as arrays: one row for each pair of answers that a judgement compares.

Statistics of feedback count pairs. A ranking of K answers is C(K, 2) of them, so two answers and rankings of many
go through the same formulas. A pair is a *unit*: two different answers to one prompt, in whatever order they were
shown and by whomever they were judged. Answers with the same text are one answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .records import BEST_ONLY, Completion, Judgement

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


class PairCollector:
    """Takes judgements one by one and makes `PairVotes` of them.

    Args:
        answers: completion id → number of the answer; the same number for the same text.
    """

    def __init__(self, answers: Mapping[str, int]) -> None:
        self._answers = answers
        self._annotators: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        self._count = 0
        self._ints = array("q")  # prompt, annotator, judgement, first, second; in turn
        self._codes = array("b")  # value · 2, first_left, gold; in turn

    def add(self, judgement: Judgement, gold: Sequence[int] | None = None) -> int:
        """Take one judgement; its number is returned. Corrections come later than what they correct.

        Args:
            gold: the right ranks of the shown answers, where they are known.

        Raises:
            ValueError: a completion that ``answers`` does not have, or gold ranks that do not fit.
        """
        if gold is not None and len(gold) != len(judgement.shown):
            raise ValueError(
                f"judgement {judgement.id!r:.80} shows {len(judgement.shown)} answers and has {len(gold)} gold ranks"
            )
        number, self._count = self._count, self._count + 1
        prompt = self._prompts.setdefault(judgement.prompt_id, len(self._prompts))
        annotator = self._annotators.setdefault(judgement.annotator, len(self._annotators))
        try:
            shown = [self._answers[key] for key in judgement.shown]
        except KeyError as missing:
            raise ValueError(f"judgement {judgement.id!r:.80} shows completion {missing}, which is missing") from None
        for left, right in compared(judgement):
            one, other = shown[left], shown[right]
            if one != other:
                value = _order(judgement.ranks[left], judgement.ranks[right])
                known = 0 if gold is None else _order(gold[left], gold[right])
                if one > other:
                    one, other, value, known, first_left = other, one, -value, -known, 0
                else:
                    first_left = 1
                self._ints.extend((prompt, annotator, number, one, other))
                self._codes.extend((value + 1, first_left, known))
        return number

    def votes(self) -> PairVotes:
        """What was taken so far."""
        ints = np.array(self._ints, np.int64).reshape(-1, 5)
        codes = np.array(self._codes, np.int8).reshape(-1, 3)
        prompt, annotator, judgement, first, second = ints.T.copy()
        answers = int(second.max()) + 1 if len(ints) else 1
        return PairVotes(
            annotators=tuple(self._annotators),
            prompt=prompt,
            pair=np.unique(first * answers + second, return_inverse=True)[1],
            annotator=annotator,
            judgement=judgement,
            first=first,
            second=second,
            value=codes[:, 0] / 2,
            first_left=codes[:, 1].astype(bool),
            gold=codes[:, 2].copy(),
        )


def pair_votes(
    judgements: Iterable[Judgement], answers: Mapping[str, int], gold: Mapping[str, Sequence[int]] | None = None
) -> PairVotes:
    """Judgements as pairs, in their order; see `PairCollector`.

    Args:
        gold: judgement id → the right ranks of what it shows.
    """
    collector, known = PairCollector(answers), gold or {}
    for judgement in judgements:
        collector.add(judgement, known.get(judgement.id))
    return collector.votes()


def number_answers(completions: Iterable[Completion]) -> dict[str, int]:
    """Completion id → number of the answer, the same for the same text of a prompt."""
    texts: dict[tuple[str, str], int] = {}
    return {c.id: texts.setdefault((c.prompt_id, c.text), len(texts)) for c in completions}


def compared(judgement: Judgement) -> Iterable[tuple[int, int]]:
    """Places (left, right) of the pairs that a judgement says something about."""
    places = combinations(range(len(judgement.shown)), 2)
    if BEST_ONLY not in judgement.flags:
        return places
    return ((i, j) for i, j in places if judgement.ranks[i] != judgement.ranks[j])


def _order(rank: int, other: int) -> int:
    return (rank < other) - (rank > other)
