"""Judged answers as token sequences, pairs and choices: what the reward model and DPO learn from.

Comparisons become groups in `prefloop.training.encoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefloop.chat import Rendered
from prefloop.feedback.aggregate import Ranking
from prefloop.feedback.scores import choices
from prefloop.models.packing import longest_packed

AT_ONCE = 5_000
"""Groups in memory where all of them are read."""


@dataclass(frozen=True)
class PreferenceGroup:
    """All judged answers to one prompt. They stay together in a batch: each is read once, however many pairs it
    is part of, and pairs of one prompt do not come back as fresh data [Ouyang et al. 2022, §3.5].

    Pairs, rankings and choices speak of *places*. With one criterion the place of an answer is its number. With H
    of them every answer has H scores, and the place of its score by criterion h is its number · H + h.
    """

    sequences: tuple[Rendered, ...]
    pairs: tuple[tuple[int, int, float, float], ...]
    """(i, j, votes for i, votes for j); a tie is half a vote for each."""
    rankings: tuple[Ranking, ...] = ()
    """The judgements behind the votes; empty where only the votes are known."""
    criteria: int = 1
    """H: scores of each answer."""
    margins: tuple[float, ...] = ()
    """By how much the winner of each pair should lead; empty for 0. :func:`with_margins` fills it in."""
    choices: tuple[tuple[tuple[int, ...], int, float], ...] = ()
    """(places, how many of the first may be the one chosen, weight); :func:`with_choices` fills it in."""
    ref_log_probs: Float[Tensor, " K"] | None = None
    """log π_ref of each answer, summed over its tokens; methods with a reference fill it in."""
    mismatched: Rendered | None = None
    """This prompt with an answer to another; KTO estimates its reference point from such."""
    ref_mismatched: Float[Tensor, ""] | None = None
    """log π_ref of that answer, summed over its tokens."""

    @property
    def all_sequences(self) -> tuple[Rendered, ...]:
        return self.sequences if self.mismatched is None else (*self.sequences, self.mismatched)

    @property
    def votes(self) -> float:
        return sum(wins + losses for _, _, wins, losses in self.pairs)

    @property
    def judged(self) -> tuple[Ranking, ...]:
        """The rankings; where only votes are known, each vote is a ranking of two."""
        if self.rankings:
            return self.rankings
        forth = ((i, j, wins) for i, j, wins, _ in self.pairs)
        back = ((j, i, losses) for i, j, _, losses in self.pairs)
        return of_two(vote for vote in (*forth, *back) if vote[2])


def of_two(votes: Iterable[tuple[int, int, float]]) -> tuple[Ranking, ...]:
    """(winner, loser, votes) as rankings of two."""
    return tuple(Ranking(((winner,), (loser,)), count) for winner, loser, count in votes)


@dataclass(frozen=True)
class Pairs:
    """The pairs of several groups, over the groups' scores laid end to end."""

    first: Int[Tensor, " P"]
    second: Int[Tensor, " P"]
    wins: Float[Tensor, " P"]
    losses: Float[Tensor, " P"]
    margin: Float[Tensor, " P"]
    """By how much each vote's winner should lead."""


@dataclass(frozen=True)
class Choices:
    """The choices of several groups, over the groups' scores laid end to end; K is the size of the largest."""

    places: Int[Tensor, "C K"]
    shown: Bool[Tensor, "C K"]
    """False where a choice is out of fewer than K."""
    chosen: Float[Tensor, "C K"]
    """How likely each was the one chosen: 1/m for each of m that tie."""
    weights: Float[Tensor, " C"]


class Each(Sequence[PreferenceGroup]):
    """Groups that are made when they are asked for, each time anew. A slice of them is a list."""

    def __init__(self, count: int, make: Callable[[int], PreferenceGroup]) -> None:
        """``make``: the group of this number, from 0."""
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PreferenceGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[PreferenceGroup]: ...

    def __getitem__(self, index: int | slice) -> PreferenceGroup | list[PreferenceGroup]:
        numbers = self._numbers[index]
        return self._make(numbers) if isinstance(numbers, int) else [self._make(number) for number in numbers]


def each(groups: Sequence[PreferenceGroup], make: Callable[[PreferenceGroup], PreferenceGroup]) -> Each:
    """What is made of each group, when it is asked for."""
    return Each(len(groups), lambda number: make(groups[number]))


def in_memory(groups: Sequence[PreferenceGroup]) -> Iterator[Sequence[PreferenceGroup]]:
    """Parts of the groups, so many at a time as are read without gradients; there may be any number of groups."""
    return (groups[start : start + AT_ONCE] for start in range(0, len(groups), AT_ONCE))


def with_margins(groups: Sequence[PreferenceGroup], per_strength: float) -> Sequence[PreferenceGroup]:
    """The groups with a row for each pair and margin, from the strengths of their rankings.

    A judgement of strength s says that the best one leads the worst by ``per_strength``·(s − 1): nothing for
    "negligibly better". Between them, a pair gets its share of the distance in ranks. Ties and rankings without a
    strength have no margin.
    """
    return each(groups, lambda group: _with_margins(group, per_strength))


def _with_margins(group: PreferenceGroup, per_strength: float) -> PreferenceGroup:
    rows: dict[tuple[int, int, float], list[float]] = {}

    def vote(winner: int, loser: int, margin: float, count: float) -> None:
        row = rows.setdefault((min(winner, loser), max(winner, loser), margin), [0.0, 0.0])
        row[winner > loser] += count

    for ranking in group.judged:
        tiers = ranking.tiers
        whole = ranking.margin + per_strength * max(0, ranking.strength - 1)
        for (above, upper), (below, lower) in combinations(enumerate(tiers), 2):
            for winner, loser in product(upper, lower):
                vote(winner, loser, whole * (below - above) / (len(tiers) - 1), ranking.weight)
        for one, other in () if ranking.best_only else (pair for tier in tiers for pair in combinations(tier, 2)):
            vote(one, other, 0.0, ranking.weight / 2)
            vote(other, one, 0.0, ranking.weight / 2)
    found = sorted(rows.items())
    return replace(
        group,
        pairs=tuple((i, j, wins, losses) for (i, j, _), (wins, losses) in found),
        margins=tuple(margin for (_, _, margin), _ in found),
    )


def with_choices(groups: Sequence[PreferenceGroup]) -> Sequence[PreferenceGroup]:
    """The groups with their rankings as choices; equal choices are one, with the sum of their weights.

    Raises:
        ValueError: more answers tie than Plackett–Luce can take.
    """
    for group in groups:
        _with_choices(group)  # an error comes now, not in the middle of the training
    return each(groups, _with_choices)


def _with_choices(group: PreferenceGroup) -> PreferenceGroup:
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for ranking in group.judged:
        for places, first, weight in choices(ranking.tiers, ranking.best_only):
            found[places, first] = found.get((places, first), 0.0) + weight * ranking.weight
    return replace(group, choices=tuple((places, first, weight) for (places, first), weight in found.items()))


def with_mismatched(groups: Sequence[PreferenceGroup]) -> Sequence[PreferenceGroup]:
    """Each group with the first answer of the group before it, as if it answered this prompt.

    Raises:
        ValueError: there is one prompt only.
    """
    if len(groups) == 1:
        raise ValueError("KTO compares answers with those to other prompts; there is only one prompt")
    return Each(len(groups), lambda number: _with_mismatched(groups[number], groups[number - 1]))


def _with_mismatched(group: PreferenceGroup, other: PreferenceGroup) -> PreferenceGroup:
    return replace(group, mismatched=_answer_to(group.sequences[0], other.sequences[0]))


def _answer_to(asked: Rendered, other: Rendered) -> Rendered:
    """The prompt of ``asked`` with the answer of ``other``."""
    here, there = asked.mask.index(True), other.mask.index(True)
    return Rendered(asked.ids[:here] + other.ids[there:], asked.mask[:here] + other.mask[there:])


def flatten(groups: Sequence[PreferenceGroup], device: torch.device) -> tuple[list[Rendered], Pairs]:
    """The sequences of all groups end to end, and their pairs."""
    sequences: list[Rendered] = []
    rows: list[tuple[int, int, float, float, float]] = []
    for group in groups:
        start = len(sequences) * group.criteria
        margins = group.margins or (0.0,) * len(group.pairs)
        rows += [
            (i + start, j + start, wins, losses, margin)
            for (i, j, wins, losses), margin in zip(group.pairs, margins, strict=True)
        ]
        sequences += group.sequences
    return sequences, Pairs(*(torch.tensor(column, device=device) for column in zip(*rows, strict=True)))


def flatten_choices(groups: Sequence[PreferenceGroup], device: torch.device) -> Choices:
    """The choices of all groups; places as in :func:`flatten`."""
    rows, start = list[tuple[list[int], int, float]](), 0
    for group in groups:
        rows += [([place + start for place in places], first, weight) for places, first, weight in group.choices]
        start += len(group.sequences) * group.criteria
    longest = max(len(places) for places, _, _ in rows)
    places, shown, chosen = (
        torch.tensor([own + [nothing] * (longest - len(own)) for own in column], device=device)
        for column, nothing in (
            ([places for places, _, _ in rows], 0),
            ([[True] * len(places) for places, _, _ in rows], False),
            ([[1 / first] * first + [0.0] * (len(places) - first) for places, first, _ in rows], 0.0),
        )
    )
    return Choices(places, shown, chosen, torch.tensor([weight for _, _, weight in rows], device=device))


def group_micro_batches(
    groups: Sequence[PreferenceGroup], max_tokens: int, *models: Any
) -> Iterator[list[PreferenceGroup]]:
    """Cut groups into micro-batches of at most ``max_tokens`` tokens (with padding, where the models need it), groups
    kept whole.

    A group larger than that is a micro-batch of its own. Groups of similar length come together.
    """
    packs = max(map(_longest, groups), default=0) <= min(map(longest_packed, models), default=0)
    batch: list[PreferenceGroup] = []
    answers = tokens = 0
    for group in sorted(groups, key=_longest):
        count, length = len(group.sequences), sum(map(len, group.sequences))
        if batch and (tokens + length if packs else (answers + count) * _longest(group)) > max_tokens:
            yield batch
            batch, answers, tokens = [], 0, 0
        batch.append(group)
        answers, tokens = answers + count, tokens + length
    if batch:
        yield batch


def _longest(group: PreferenceGroup) -> int:
    return max(map(len, group.sequences))
