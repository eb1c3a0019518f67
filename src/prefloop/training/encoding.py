"""Comparisons become groups of token sequences. However many there are, only numbers of them are kept in memory.

The sequences lie wherever the caller keeps them, best on disk; comparisons are asked for one by one, and a group is
made when it is asked for.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison, Ranking
from prefloop.feedback.elsewhere import prompts_of
from prefloop.feedback.records import Prompt, content_id_of
from prefloop.training.comparisons import Each, PreferenceGroup, of_two

Said = Sequence[tuple[int, Comparison]]
"""What was said about a prompt's answers, with the number of the criterion."""
Pairs = Iterable[tuple[int, int, float, float]]
"""As in `PreferenceGroup`."""
Make = Callable[[Counter[str]], Iterator[Rendered]]
"""Tokenises answers, and counts the prompts that were ``cut``."""


class Asked(NamedTuple):
    """Prompts and different answers to each."""

    prompts: int
    hash: str
    """Of the prompts' ids and the answers' texts, in their order."""


class Kept(NamedTuple):
    """The sequences of answers, prompt by prompt."""

    sequences: Sequence[Rendered]
    response_tokens: Sequence[int] | npt.NDArray[np.int64]
    """Of each sequence."""
    cut: int
    """Prompts that were cut."""


Keep = Callable[[Asked, Make], Kept]
"""Where to have these sequences from: from a place where they are kept, or made."""


def in_lists(_: Asked, make: Make) -> Kept:
    """Made, and kept in memory."""
    counts = Counter[str]()
    sequences = list(make(counts))
    return Kept(sequences, [one.response_tokens for one in sequences], counts["cut"])


def encode(
    chat: Chat, comparisons: Sequence[Comparison], max_prompt_tokens: int, max_response_tokens: int
) -> tuple[list[PreferenceGroup], int, int]:
    """Tokenise comparisons; returns the groups, how many prompts were cut, and how many answers were too long."""
    asked = _Prompts([comparisons], range(len(comparisons)), range(1, len(comparisons) + 1))
    groups, cut, left_out = _encode(chat, asked, 1, max_prompt_tokens, max_response_tokens, in_lists)
    return list(groups), cut, left_out


def encode_criteria(
    chat: Chat,
    parts: Sequence[Sequence[Comparison]],
    max_prompt_tokens: int,
    max_response_tokens: int,
    keep: Keep = in_lists,
) -> tuple[KeptGroups, int, int]:
    """As :func:`encode`, of one list of comparisons for each criterion.

    What was said about a prompt by all of them is one group, and an answer that several speak of is in it once.
    """
    asked = _Prompts(parts, *_by_prompt(parts))
    return _encode(chat, asked, len(parts), max_prompt_tokens, max_response_tokens, keep)


@dataclass(frozen=True)
class _Prompts:
    """What was said about each prompt; the comparisons are asked for each time anew."""

    parts: Sequence[Sequence[Comparison]]
    """By each criterion."""
    rows: Sequence[int]
    """Numbers of comparisons, of all parts end to end, those of a prompt together."""
    ends: Sequence[int]
    """For each prompt, how many rows there are up to its last."""

    def __iter__(self) -> Iterator[Said]:
        start = 0
        for end in self.ends:
            yield [self._comparison(row) for row in self.rows[start:end]]
            start = end

    def __len__(self) -> int:
        return len(self.ends)

    def _comparison(self, row: int) -> tuple[int, Comparison]:
        for criterion, part in enumerate(self.parts):
            if row < len(part):
                return criterion, part[row]
            row -= len(part)
        raise IndexError(row)


def _by_prompt(parts: Sequence[Sequence[Comparison]]) -> tuple[Sequence[int], Sequence[int]]:
    """`_Prompts`' rows and ends; prompts come in the order in which they are first spoken of."""
    ids = bytearray()
    for part in parts:
        for id, _ in prompts_of(part):
            ids += bytes.fromhex(id)
    _, first, which = np.unique(np.frombuffer(ids, "S16"), return_index=True, return_inverse=True)
    place = first[which]
    counts = np.bincount(place)
    ends = counts[counts > 0].cumsum()
    return array("q", np.argsort(place, kind="stable").tobytes()), array("q", ends.tobytes())


def _encode(
    chat: Chat, asked: _Prompts, criteria: int, max_prompt_tokens: int, max_response_tokens: int, keep: Keep
) -> tuple[KeptGroups, int, int]:
    table = _Table()
    hash = content_id_of(_noted(asked, criteria, table))
    kept = keep(Asked(len(asked), hash), lambda counts: _answers(chat, asked, max_prompt_tokens, counts))
    short = np.asarray(kept.response_tokens) <= max_response_tokens
    left_out = len(short) - int(np.count_nonzero(short))
    if left_out:
        table = _without(table, short.tobytes(), criteria)
    return KeptGroups(table, kept.sequences, criteria), kept.cut, left_out


def _noted(asked: _Prompts, criteria: int, table: _Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Prompts' ids and answers; what was said of them goes into the table."""
    answers = 0
    for said in asked:
        texts = _texts(said)
        pairs, rankings = list[tuple[int, int, float, float]](), list[Ranking]()
        for criterion, comparison in said:
            place = {old: texts.index(text) * criteria + criterion for old, text in enumerate(comparison.texts)}
            pairs += _pairs(comparison, place)
            rankings += _among(comparison.rankings or of_two(comparison.wins), place)
        if pairs:
            table.add(range(answers, answers + len(texts)), pairs, rankings)
        answers += len(texts)
        yield said[0][1].prompt.id, texts


def _texts(said: Said) -> tuple[str, ...]:
    """The different answers that were spoken of."""
    return tuple(dict.fromkeys(text for _, comparison in said for text in comparison.texts))


def _answers(chat: Chat, asked: _Prompts, max_prompt_tokens: int, counts: Counter[str]) -> Iterator[Rendered]:
    """All answers, each with its prompt, which is cut where it is too long."""
    for said in asked:
        prompt: Prompt = said[0][1].prompt
        _, fitted = chat.fitted_prompt_ids(prompt, max_prompt_tokens)
        counts["cut"] += fitted is not prompt
        yield from (chat.answered(fitted, text) for text in _texts(said))


def _pairs(comparison: Comparison, place: Mapping[int, int]) -> Pairs:
    """Both directions of a pair as one row."""
    votes = dict[tuple[int, int], float]()
    for i, j, count in comparison.wins:
        votes[i, j] = votes.get((i, j), 0.0) + count
    return [
        (place[i], place[j], votes.get((i, j), 0.0), votes.get((j, i), 0.0))
        for i, j in sorted({(min(pair), max(pair)) for pair in votes})
    ]


def _among(rankings: Iterable[Ranking], place: Mapping[int, int]) -> Iterator[Ranking]:
    """The rankings of the answers that have a place. A tier may be left empty: ranks keep their distances."""
    for ranking in rankings:
        tiers = tuple(tuple(place[i] for i in tier if i in place) for tier in ranking.tiers)
        if sum(map(len, tiers)) > 1 and (tiers[0] or not ranking.best_only):
            yield replace(ranking, tiers=tiers)


def _ends() -> array[int]:
    return array("q", [0])


@dataclass
class _Table:
    """Groups as columns of numbers. An ``…_ends`` column says where in others the rows of each begin and end."""

    answers: array[int] = field(default_factory=lambda: array("q"))
    answers_ends: array[int] = field(default_factory=_ends)
    pairs: array[int] = field(default_factory=lambda: array("i"))
    """Two places for each pair."""
    votes: array[float] = field(default_factory=lambda: array("d"))
    """Two counts for each pair."""
    pairs_ends: array[int] = field(default_factory=_ends)
    ranked: array[int] = field(default_factory=lambda: array("i"))
    """The places that a ranking speaks of, best first."""
    tier: array[int] = field(default_factory=lambda: array("i"))
    """Of each of those places."""
    ranked_ends: array[int] = field(default_factory=_ends)
    tiers: array[int] = field(default_factory=lambda: array("i"))
    """How many a ranking has; the last may be empty."""
    weights: array[float] = field(default_factory=lambda: array("d"))
    strengths: array[int] = field(default_factory=lambda: array("i"))
    margins: array[float] = field(default_factory=lambda: array("d"))
    best_only: bytearray = field(default_factory=bytearray)
    rankings_ends: array[int] = field(default_factory=_ends)

    def __len__(self) -> int:
        return len(self.answers_ends) - 1

    def add(self, answers: Iterable[int], pairs: Pairs, rankings: Iterable[Ranking]) -> None:
        self.answers.extend(answers)
        self.answers_ends.append(len(self.answers))
        for i, j, wins, losses in pairs:
            self.pairs.extend((i, j))
            self.votes.extend((wins, losses))
        self.pairs_ends.append(len(self.pairs))
        for ranking in rankings:
            self._add_ranking(ranking)
        self.rankings_ends.append(len(self.tiers))

    def _add_ranking(self, ranking: Ranking) -> None:
        for number, tier in enumerate(ranking.tiers):
            self.ranked.extend(tier)
            self.tier.extend([number] * len(tier))
        self.ranked_ends.append(len(self.ranked))
        self.tiers.append(len(ranking.tiers))
        self.weights.append(ranking.weight)
        self.strengths.append(ranking.strength)
        self.margins.append(ranking.margin)
        self.best_only.append(ranking.best_only)

    def answers_of(self, group: int) -> array[int]:
        return self.answers[self.answers_ends[group] : self.answers_ends[group + 1]]

    def pairs_of(self, group: int) -> tuple[tuple[int, int, float, float], ...]:
        part = slice(self.pairs_ends[group], self.pairs_ends[group + 1])
        places, votes = self.pairs[part], self.votes[part]
        return tuple(zip(places[::2], places[1::2], votes[::2], votes[1::2], strict=True))

    def rankings_of(self, group: int) -> tuple[Ranking, ...]:
        return tuple(map(self._ranking, range(self.rankings_ends[group], self.rankings_ends[group + 1])))

    def _ranking(self, number: int) -> Ranking:
        part = slice(self.ranked_ends[number], self.ranked_ends[number + 1])
        tiers: list[list[int]] = [[] for _ in range(self.tiers[number])]
        for place, tier in zip(self.ranked[part], self.tier[part], strict=True):
            tiers[tier].append(place)
        return Ranking(
            tuple(map(tuple, tiers)),
            self.weights[number],
            self.strengths[number],
            self.margins[number],
            bool(self.best_only[number]),
        )


def _without(table: _Table, short: bytes, criteria: int) -> _Table:
    """The groups without the answers that are too long, and without those about whose others nothing was said."""
    found = _Table()
    for group in range(len(table)):
        answers = table.answers_of(group)
        kept = [number for number, answer in enumerate(answers) if short[answer]]
        place = {
            old * criteria + criterion: new * criteria + criterion
            for new, old in enumerate(kept)
            for criterion in range(criteria)
        }
        pairs = [
            (place[i], place[j], wins, losses)
            for i, j, wins, losses in table.pairs_of(group)
            if i in place and j in place
        ]
        if pairs:
            found.add([answers[number] for number in kept], pairs, _among(table.rankings_of(group), place))
    return found


class KeptGroups(Each):
    """Groups of a table, with their sequences from wherever these are kept."""

    def __init__(self, table: _Table, sequences: Sequence[Rendered], criteria: int) -> None:
        super().__init__(len(table), self._group)
        self._table, self._sequences, self._criteria = table, sequences, criteria

    @property
    def outright(self) -> bool:
        """Whether a ranking says by how much the best should lead."""
        return any(self._table.margins)

    def _group(self, number: int) -> PreferenceGroup:
        return PreferenceGroup(
            tuple(self._sequences[answer] for answer in self._table.answers_of(number)),
            self._table.pairs_of(number),
            self._table.rankings_of(number),
            self._criteria,
        )
