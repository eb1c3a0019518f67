"""Everything that a store's judgements say about themselves, in one tree of figures.

`statistics` reads completions and judgements once. What takes longer than counting is bounded: the bootstrap by
`agreement.resampled`, reliability by `reliability.MOST_VOTES`, the regression by `MOST_VOTES` here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np

from .agreement import Agreement, agreement, following
from .arms import Arms, compare_arms
from .bias import Bias, bias, leanings
from .clickers import coin_evidence, coin_suspicions, gold_suspicion, side_suspicion, speed_suspicion
from .intervals import Estimate, clustered_wilson, effective_number, wilson
from .keys import Ints
from .origins import Origin, compare_origins
from .pairs import Floats, PairVotes
from .reading import Answers, Said, read
from .reliability import Reliability, crowd_bt
from .sample_size import Needed, votes_still_needed
from .store import Store

MOST_VOTES = 200_000
"""Votes in the regression; of more, those of prompts drawn at random."""
MOST_QUESTIONS = 20
"""Pairs of origins that are compared; of more, those with the most votes."""
FEWEST_SHARED = 100
"""Pairs judged by two annotators from which on agreement is known to some ±9 %."""


@dataclass(frozen=True)
class Totals:
    """How much there is."""

    prompts: int
    completions: int
    demonstrations: int
    events: int
    """Judgements ever given, with those that were superseded or taken back."""
    judgements: int
    """Those that count today."""
    sends: int
    """The same, where judgements by several criteria that were sent together are one."""
    annotators: int


@dataclass(frozen=True)
class Day:
    """How often one annotator sent something on one day (UTC), be it by one criterion or by several."""

    date: str
    source: str
    annotator: str
    sends: int


@dataclass(frozen=True)
class AnnotatorStatistics:
    """One annotator, by one criterion. None where nothing is known."""

    name: str
    judgements: int
    ties: float | None
    """Share of votes that are ties."""
    skips: int | None
    seconds: float | None
    """Median time for one send, by however many criteria."""
    words_per_minute: float | None
    """Median over judgements: words of the answers shown, by the time taken."""
    gold: Estimate | None
    """Share of gold items that they got right."""
    agreement: Estimate | None
    """Share of votes that go with the majority of the others."""
    reliability: Estimate | None
    """η of Crowd-BT; None where no pair of theirs was judged by somebody else or is gold."""
    weight: float
    """What a vote would weigh with ``label.weights = "reliability"``; 1 on average."""
    left: Estimate | None
    """Share of decided votes for the answer shown first."""
    suspicions: tuple[str, ...]
    """Why this annotator may not read, in words; empty when there is no reason to think so."""
    leanings: tuple[str, ...]
    """What moves this annotator besides the answers' worth, in words (`bias.leanings`)."""


@dataclass(frozen=True)
class Question:
    """Is one origin of answers better than another?"""

    one: str
    other: str
    win_rate: Estimate
    """Of ``one``; ``n`` is the number of votes, and the interval allows for several of one prompt."""
    needed: Needed


@dataclass(frozen=True)
class CriterionStatistics:
    """Everything about the judgements by one criterion."""

    name: str
    judgements: int
    cannot_judge: int
    votes: int
    """Pairs of answers compared by a judgement; a ranking of K has C(K, 2)."""
    pairs: int
    """Different pairs of answers."""
    shared: int
    """Those that at least two annotators judged."""
    prompts: int
    ties: float | None
    agreement: Agreement
    annotators: tuple[AnnotatorStatistics, ...]
    spread: float | None
    """σ of Crowd-BT: how far apart two answers are, in logits."""
    bias: Bias | None
    arms: Arms | None
    """The control group and what was chosen by priority; None where there are not both."""
    origins: tuple[tuple[Origin, ...], ...]
    """What wrote the answers, by how they do against each other: one table for those that can be compared."""
    questions: tuple[Question, ...]
    advice: tuple[str, ...]
    """What is missing before more can be said, in words."""
    sampled: tuple[str, ...]
    """What was estimated from a part of the votes only."""


@dataclass(frozen=True)
class Statistics:
    """All figures of a store."""

    totals: Totals
    days: tuple[Day, ...]
    flags: Mapping[str, int]
    """How many sends have each."""
    criteria: tuple[CriterionStatistics, ...]

    def to_json(self) -> str:
        """One JSON object with the fields' names; intervals as ``{"value", "low", "high", "n"}``."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


def statistics(
    store: Store,
    criterion: str | None = None,
    gold: Mapping[str, Sequence[int]] | None = None,
    skips: Mapping[str, int] | None = None,
    arms: Mapping[str, str] | None = None,
) -> Statistics:
    """Count and estimate everything.

    Args:
        criterion: only this one.
        gold: judgement id → the right ranks of what it shows, for judgements about gold items.
        skips: annotator → how many items they passed over.
        arms: judgement id → ``control`` or ``priority`` (`assignment.Queue.arms`).

    Raises:
        ValueError: no judgements by this criterion.
    """
    answers = Answers.read(store)
    said = read(store, answers, criterion, gold or {}, arms or {})
    if criterion is not None and not len(said):
        raise ValueError(f"the store has no judgements by the criterion {criterion!r}; leave it out to see all")
    counts = store.counts()
    return Statistics(
        totals=Totals(
            counts.prompts,
            counts.completions,
            counts.demonstrations,
            counts.judgements,
            len(said),
            len(np.unique(said.send)),
            len(said.annotator.names),
        ),
        days=tuple(sorted(_days(said), key=lambda day: (day.date, day.source, day.annotator))),
        flags=_flags(said),
        criteria=tuple(
            _of_criterion(name, said.by(number), answers, skips)
            for name, number in sorted(zip(said.criterion.names, count(), strict=False))
        ),
    )


def _days(said: Said) -> Iterable[Day]:
    columns = (said.day, said.source, said.annotator)
    one_each = np.unique(said.send, return_index=True)[1]
    sizes = [max(1, len(column.names)) for column in columns]
    keys, counts = np.unique(
        np.ravel_multi_index([column.number[one_each] for column in columns], sizes), return_counts=True
    )
    for row, n in zip(zip(*np.unravel_index(keys, sizes), strict=True), counts, strict=True):
        date, source, annotator = (column.names[k] for column, k in zip(columns, row, strict=True))
        yield Day(date, source, annotator, int(n))


def _flags(said: Said) -> dict[str, int]:
    lists = [json.loads(text) for text in said.flags.names]
    found = {}
    for flag in sorted({flag for flags in lists for flag in flags}):
        having = np.array([flag in flags for flags in lists])
        found[flag] = len(np.unique(said.send[having[said.flags.number]]))
    return found


# One criterion


def _of_criterion(name: str, said: Said, answers: Answers, skips: Mapping[str, int] | None) -> CriterionStatistics:
    votes = said.votes(answers.numbered)
    agreed = agreement(votes)
    found = crowd_bt(votes) if len(votes) else None
    regressed = _sample(votes)
    moved = bias(regressed, answers.features)
    return CriterionStatistics(
        name=name,
        judgements=len(said),
        cannot_judge=int(said.rankings.cannot_judge.sum()),
        votes=len(votes),
        pairs=votes.n_pairs,
        shared=agreed.pairs,
        prompts=len(np.unique(votes.prompt)),
        ties=float((votes.value == 0.5).mean()) if len(votes) else None,
        agreement=agreed,
        annotators=_annotators(said, answers, votes, found, leanings(moved) if moved else {}, skips),
        spread=found.spread if found and any(eta["n"] for eta in found.eta) else None,
        bias=moved,
        arms=compare_arms(votes, said.arm),
        origins=compare_origins(votes, answers.origin, answers.origins),
        questions=_questions(votes, answers),
        advice=tuple(_advice(votes, agreed)),
        sampled=tuple(
            filter(
                None,
                [
                    _part("bias", len(regressed), len(votes)),
                    _part("reliability", found.votes, found.informative) if found else "",
                ],
            )
        ),
    )


def _part(what: str, read: int, there: int) -> str:
    return f"{what}: {read:,} of {there:,} votes" if read < there else ""


def _sample(votes: PairVotes) -> PairVotes:
    if len(votes) <= MOST_VOTES:
        return votes
    order = np.random.default_rng(0).permutation(int(votes.prompt.max()) + 1)
    return votes.rows(order[votes.prompt] < len(order) * MOST_VOTES / len(votes))


def _annotators(
    said: Said,
    answers: Answers,
    votes: PairVotes,
    found: Reliability | None,
    leaning: Mapping[str, tuple[str, ...]],
    skips: Mapping[str, int] | None,
) -> tuple[AnnotatorStatistics, ...]:
    names, seconds = said.annotator.names, said.seconds
    words, gold = said.words(answers.words), said.right()
    latest = votes.latest()
    rows, score, _ = following(latest)
    followed = _split(latest.annotator[rows], len(names))
    cast, given = _split(votes.annotator, len(names)), _split(said.annotator.number, len(names))
    coins = coin_suspicions(coin_evidence(votes))
    weights = (
        found.weights(np.bincount(votes.annotator, minlength=len(votes.annotators))) if found else np.ones(len(names))
    )
    result = []
    for k, name in enumerate(names):
        mine, timed = given[k], given[k][seconds[given[k]] > 0]
        right = gold[mine][~np.isnan(gold[mine])]
        accuracy = wilson(float(right.sum()), len(right)) if len(right) else None
        left = votes.left[cast[k]]
        decided = left[left != 0.5]
        pace = 60 * words[timed] / seconds[timed]
        reasons = [coins[k], gold_suspicion(accuracy) if accuracy else ""]
        reasons += [speed_suspicion(words[timed], seconds[timed]), side_suspicion(left)]
        eta = found.eta[k] if found and found.eta[k]["n"] else None
        with_others = followed[k]
        result.append(
            AnnotatorStatistics(
                name=name,
                judgements=len(mine),
                ties=float((left == 0.5).mean()) if len(left) else None,
                skips=None if skips is None else skips.get(name, 0),
                seconds=float(np.median(seconds[timed])) if len(timed) else None,
                words_per_minute=float(np.median(pace)) if len(timed) else None,
                gold=accuracy,
                agreement=_share(score[with_others], latest.prompt[rows[with_others]]),
                reliability=eta,
                weight=float(weights[k]),
                left=_share(decided, votes.prompt[cast[k]][left != 0.5]),
                suspicions=tuple(filter(None, reasons)),
                leanings=leaning.get(name, ()),
            )
        )
    return tuple(sorted(result, key=lambda one: (-one.judgements, one.name)))


def _split(group: Ints, groups: int) -> list[Ints]:
    """Row numbers of each group."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group, minlength=groups))[:-1])


def _share(values: Floats, prompts: Ints) -> Estimate | None:
    return clustered_wilson(values, prompts) if len(values) else None


def _questions(votes: PairVotes, answers: Answers) -> tuple[Question, ...]:
    """Win rates between any two origins that were compared, most votes first."""
    origin, names = answers.origin, answers.origins
    left, right = origin[votes.shown].T
    low, high = np.minimum(left, right), np.maximum(left, right)
    keys, key, counts = np.unique(low * len(names) + high, return_inverse=True, return_counts=True)
    found: list[Question] = []
    for k in np.argsort(-counts, kind="stable"):
        one, other = divmod(int(keys[k]), len(names))
        if one != other and len(found) < MOST_QUESTIONS:
            rows = np.flatnonzero(key == k)
            wins = np.where(left[rows] == one, votes.left[rows], 1 - votes.left[rows])
            prompts = votes.prompt[rows]
            needed = votes_still_needed(float(wins.sum()), len(wins), effective_number(wins, prompts))
            found.append(Question(names[one], names[other], clustered_wilson(wins, prompts), needed))
    return tuple(found)


def _advice(votes: PairVotes, agreed: Agreement) -> Iterable[str]:
    if len(votes) and agreed.pairs < FEWEST_SHARED:
        yield (
            f"{agreed.pairs} pairs were judged by two annotators; agreement, reliability and careless annotators "
            f"show from about {FEWEST_SHARED} on: set the overlap of a batch to 2 or more"
        )
    if agreed.pairs > 0 and agreed.pairs == np.bincount(votes.pair).size and not votes.gold.any():
        counts = np.bincount(votes.latest().pair)
        if counts.max() < 4:
            yield (
                "no pair has four judgements and no item is gold: reliabilities can be compared with each other, "
                "but their level is known roughly only; gold items fix it"
            )
