"""Judged answers as token sequences, pairs and choices: what the reward model and DPO learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison, Ranking
from prefloop.feedback.records import Prompt
from prefloop.feedback.scores import choices
from prefloop.models.packing import longest_packed


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
        return _of_two(vote for vote in (*forth, *back) if vote[2])


def _of_two(votes: Iterable[tuple[int, int, float]]) -> tuple[Ranking, ...]:
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


Asked = tuple[Prompt, tuple[str, ...]]
"""A prompt and different answers to it."""
Make = Callable[[Counter[str]], Iterator[Rendered]]
"""Tokenises answers, and counts the prompts that were ``cut``."""
Keep = Callable[[Sequence[Asked], Make], tuple[Iterable[Rendered], Mapping[str, int]]]
"""Where to have the sequences of these answers and the counts from: from a place where they are kept, or made."""


def _made(_: Sequence[Asked], make: Make) -> tuple[Iterable[Rendered], Mapping[str, int]]:
    counts = Counter[str]()
    return make(counts), counts


def encode(
    chat: Chat, comparisons: Sequence[Comparison], max_prompt_tokens: int, max_response_tokens: int
) -> tuple[list[PreferenceGroup], int, int]:
    """Tokenise comparisons; returns the groups, how many prompts were cut, and how many answers were too long."""
    return _encode(chat, [[(0, one)] for one in comparisons], 1, max_prompt_tokens, max_response_tokens, _made)


def encode_criteria(
    chat: Chat,
    parts: Sequence[Sequence[Comparison]],
    max_prompt_tokens: int,
    max_response_tokens: int,
    keep: Keep = _made,
) -> tuple[list[PreferenceGroup], int, int]:
    """As :func:`encode`, of one list of comparisons for each criterion.

    What was said about a prompt by all of them is one group, and an answer that several speak of is in it once.
    """
    by_prompt: dict[str, list[tuple[int, Comparison]]] = {}
    for criterion, part in enumerate(parts):
        for comparison in part:
            by_prompt.setdefault(comparison.prompt.id, []).append((criterion, comparison))
    return _encode(chat, list(by_prompt.values()), len(parts), max_prompt_tokens, max_response_tokens, keep)


def _encode(
    chat: Chat,
    prompts: Sequence[Sequence[tuple[int, Comparison]]],
    criteria: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
    keep: Keep,
) -> tuple[list[PreferenceGroup], int, int]:
    """``prompts``: for each prompt the comparisons of its answers, each with the number of its criterion."""
    asked = [
        (said[0][1].prompt, tuple(dict.fromkeys(text for _, comparison in said for text in comparison.texts)))
        for said in prompts
    ]
    made, counts = keep(asked, partial(_answers, chat, asked, max_prompt_tokens))
    sequences, groups, left_out = iter(made), list[PreferenceGroup](), 0
    for said, (_, texts) in zip(prompts, asked, strict=True):
        rendered = {text: next(sequences) for text in texts}
        kept = [text for text, sequence in rendered.items() if sequence.response_tokens <= max_response_tokens]
        left_out += len(rendered) - len(kept)
        pairs, rankings = list[tuple[int, int, float, float]](), list[Ranking]()
        for criterion, comparison in said:
            place = {
                old: kept.index(text) * criteria + criterion
                for old, text in enumerate(comparison.texts)
                if text in kept
            }
            pairs += _pairs(comparison, place)
            rankings += _rankings(comparison, place)
        if pairs:
            groups.append(
                PreferenceGroup(tuple(rendered[text] for text in kept), tuple(pairs), tuple(rankings), criteria)
            )
    return groups, counts.get("cut", 0), left_out


def _answers(chat: Chat, asked: Iterable[Asked], max_prompt_tokens: int, counts: Counter[str]) -> Iterator[Rendered]:
    """All answers, each with its prompt, which is cut where it is too long."""
    for prompt, texts in asked:
        _, fitted = chat.fitted_prompt_ids(prompt, max_prompt_tokens)
        counts["cut"] += fitted is not prompt
        yield from (chat.answered(fitted, text) for text in texts)


def _pairs(comparison: Comparison, place: Mapping[int, int]) -> list[tuple[int, int, float, float]]:
    """Both directions of a pair as one row; ``place`` lacks what was left out."""
    votes = dict[tuple[int, int], float]()
    for i, j, count in comparison.wins:
        if i in place and j in place:
            votes[i, j] = votes.get((i, j), 0.0) + count
    return [
        (place[i], place[j], votes.get((i, j), 0.0), votes.get((j, i), 0.0))
        for i, j in sorted({(min(pair), max(pair)) for pair in votes})
    ]


def _rankings(comparison: Comparison, place: Mapping[int, int]) -> Iterator[Ranking]:
    """The rankings of what was kept. A tier may be left empty: ranks keep their distances."""
    for ranking in comparison.rankings or _of_two(comparison.wins):
        tiers = tuple(tuple(place[i] for i in tier if i in place) for tier in ranking.tiers)
        if sum(map(len, tiers)) > 1 and (tiers[0] or not ranking.best_only):
            yield replace(ranking, tiers=tiers)


def with_margins(groups: Sequence[PreferenceGroup], per_strength: float) -> list[PreferenceGroup]:
    """The groups with a row for each pair and margin, from the strengths of their rankings.

    A judgement of strength s says that the best one leads the worst by ``per_strength``·(s − 1): nothing for
    "negligibly better". Between them, a pair gets its share of the distance in ranks. Ties and rankings without a
    strength have no margin.
    """
    return [_with_margins(group, per_strength) for group in groups]


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


def with_choices(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """The groups with their rankings as choices; equal choices are one, with the sum of their weights.

    Raises:
        ValueError: more answers tie than Plackett–Luce can take.
    """
    return [_with_choices(group) for group in groups]


def _with_choices(group: PreferenceGroup) -> PreferenceGroup:
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for ranking in group.judged:
        for places, first, weight in choices(ranking.tiers, ranking.best_only):
            found[places, first] = found.get((places, first), 0.0) + weight * ranking.weight
    return replace(group, choices=tuple((places, first, weight) for (places, first), weight in found.items()))


def with_mismatched(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Each group with the first answer of the group before it, as if it answered this prompt.

    Raises:
        ValueError: there is one prompt only.
    """
    if len(groups) == 1:
        raise ValueError("KTO compares answers with those to other prompts; there is only one prompt")
    return [
        replace(group, mismatched=_answer_to(group.sequences[0], other.sequences[0]))
        for group, other in zip(groups, [*groups[-1:], *groups[:-1]], strict=True)
    ]


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
