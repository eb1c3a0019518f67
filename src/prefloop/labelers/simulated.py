"""Simulated annotators: people with known taste and known faults, for tests, demos and studies of robustness.

They know the true utility u of each answer and judge it the way people do. For a pair (Bradley–Terry with a
share ε of careless answers, Christiano et al. 2017, section 2.2.3):

    P(left preferred) = ε/2 + (1 − ε) · σ(Δu / temperature + length_bias · Δlength + position_bias)

with ε = 1 − reliability and Δlength the difference in words over their sum, which lies in [−1, 1].

For K answers each gets the score u/temperature + biases + Gumbel noise, and the ranking sorts the scores.
That is Plackett–Luce; and for K = 2 it is the formula above, since the difference of two independent standard
Gumbel variables is standard logistic: P(s₁ + G₁ > s₂ + G₂) = P(G₂ − G₁ < s₁ − s₂) = σ(s₁ − s₂).

When two neighbours in the ranking differ by less than ``tie_margin`` in true utility, a careful answer calls
them a tie with probability 1/2. This is decided apart from the noise: the formula holds for the answers that
are no ties.

Everything is a function of (seed, annotator, prompt, completions): the same question gets the same answer,
with the same id and the same ``created``, in whatever order the completions are handed over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TypeVar

from prefloop.feedback.records import Completion, Judgement, Prompt, content_id

Utility = Callable[[str, str], float]
"""(prompt text, answer) → how good the answer truly is."""
Item = TypeVar("Item")

CREATED = datetime(2000, 1, 1, tzinfo=UTC)
"""When simulated judgements say they were given: a constant, so that judging again makes the same records and
the same snapshot hash. It is long past so that nobody takes it for the time of a real click."""
TIE_PROBABILITY = 0.5
STRENGTH_STEPS = (1.0, 2.0, 3.5)
"""Perceived differences (in logits) from which on a preference has strength 2, 3 and 4."""


@dataclass(frozen=True)
class Annotator:
    """Somebody's taste and faults."""

    name: str
    reliability: float = 1.0
    """Share of answers given with care; the others (ε) are random clicks."""
    temperature: float = 0.1
    """Noise in units of utility: a difference of one temperature is seen rightly in σ(1) = 73 % of cases."""
    length_bias: float = 0.0
    """Logits in favour of the longer answer per relative difference in words."""
    position_bias: float = 0.0
    """Logits in favour of the answer shown first (left, top)."""
    tie_margin: float = 0.0
    """True difference below which they may say that it is a tie."""
    words_per_minute: float = 220.0
    """How fast they read."""

    def __post_init__(self) -> None:
        if not 0 <= self.reliability <= 1:
            raise ValueError(f"{self.name}: reliability is a share from 0 to 1; got {self.reliability}")
        for field in ("temperature", "words_per_minute"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{self.name}: {field} must be above 0; got {getattr(self, field)}")


PANEL: tuple[Annotator, ...] = (
    Annotator("sim-careful", reliability=0.98, temperature=0.05, tie_margin=0.02, words_per_minute=180),
    Annotator("sim-average-1", reliability=0.93, temperature=0.10, tie_margin=0.02),
    Annotator("sim-average-2", reliability=0.90, temperature=0.12, tie_margin=0.03, words_per_minute=240),
    Annotator("sim-likes-long", reliability=0.95, temperature=0.10, length_bias=2.0),
    Annotator("sim-likes-left", reliability=0.90, temperature=0.10, position_bias=1.0),
    Annotator("sim-clicks-at-random", reliability=0.0, words_per_minute=2000),
)
"""A small team as one finds it: good people, two with a bias, and one who does not read."""


def left_probability(annotator: Annotator, utilities: Sequence[float], n_words: Sequence[int]) -> float:
    """The formula at the top: how likely the first of two shown answers wins, given that it is no tie."""
    left, right = _logits(annotator, utilities, n_words)
    careless = 1 - annotator.reliability
    return careless / 2 + (1 - careless) * _sigmoid(left - right)


def judge(
    annotator: Annotator, prompt: Prompt, completions: Sequence[Completion], utility: Utility, seed: int
) -> Judgement:
    """One annotator ranks K ≥ 2 completions of one prompt."""
    _check(prompt, completions)
    by_text = sorted(completions, key=lambda completion: (completion.text, completion.id))
    key = content_id("simulated", seed, astuple(annotator), prompt.id, [c.id for c in by_text])
    # Drawn from what is judged, not from the ids, which carry the name of the run that wrote the answers.
    rng = random.Random(content_id("simulated", seed, astuple(annotator), prompt.id, [c.text for c in by_text]))
    shown = rng.sample(by_text, len(by_text))
    utilities = [utility(prompt.text, completion.text) for completion in shown]
    n_words = [len(completion.text.split()) for completion in shown]
    if rng.random() < annotator.reliability:
        ranks, strength = _careful(annotator, utilities, n_words, rng)
    else:
        ranks, strength = _careless(len(shown), rng)
    return Judgement(
        id=key,
        prompt_id=prompt.id,
        annotator=annotator.name,
        source="simulated",
        shown=tuple(completion.id for completion in shown),
        ranks=ranks,
        strength=strength,
        seconds=_seconds(annotator, len(prompt.text.split()) + sum(n_words), rng),
        created=CREATED,
    )


def assign(
    items: Sequence[Item], panel: Sequence[Annotator], overlap: int, seed: int
) -> Iterator[tuple[Item, Annotator]]:
    """Who judges what: each item (such as a prompt with its pair) by ``overlap`` different annotators.

    Those with the least to do so far are asked first and lots decide among equals, so everyone's load is the
    same to within one and everyone meets everyone over the same items.
    """
    if not 1 <= overlap <= len(panel):
        raise ValueError(f"overlap = {overlap}: a panel of {len(panel)} allows 1 to {len(panel)}")
    names = [annotator.name for annotator in panel]
    if len(set(names)) != len(names):
        raise ValueError(f"two annotators of the panel have the same name: {sorted(names)}")
    rng = random.Random(f"prefloop assign {seed}")
    load = dict.fromkeys(names, 0)
    for item in items:
        lots = {name: (load[name], rng.random()) for name in names}
        for annotator in sorted(panel, key=lambda a: lots[a.name])[:overlap]:
            load[annotator.name] += 1
            yield item, annotator


# --- How an answer comes about -----------------------------------------------------------------------


def _careful(
    annotator: Annotator, utilities: Sequence[float], n_words: Sequence[int], rng: random.Random
) -> tuple[tuple[int, ...], int | None]:
    """Ranks and strength of somebody who looks."""
    scores = [logit + _gumbel(rng) for logit in _logits(annotator, utilities, n_words)]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = dict.fromkeys(order, 1)
    for before, after in pairwise(order):
        close = abs(utilities[before] - utilities[after]) < annotator.tie_margin
        tie = close and rng.random() < TIE_PROBABILITY
        ranks[after] = ranks[before] + (0 if tie else 1)
    if ranks[order[-1]] == 1:
        return tuple(ranks[i] for i in range(len(scores))), None
    seen = scores[order[0]] - scores[order[-1]]
    strength = 1 + sum(seen >= step for step in STRENGTH_STEPS)
    return tuple(ranks[i] for i in range(len(scores))), strength


def _careless(k: int, rng: random.Random) -> tuple[tuple[int, ...], int]:
    """Any order, any strength; a random click is no tie."""
    return tuple(rng.sample(range(1, k + 1), k)), rng.randint(1, 4)


def _logits(annotator: Annotator, utilities: Sequence[float], n_words: Sequence[int]) -> list[float]:
    """One number per shown answer, whose differences are the argument of σ.

    Length enters as words / (2 · mean words): for two answers the difference is (a − b) / (a + b).
    """
    mean_words = sum(n_words) / len(n_words) or 1.0
    return [
        u / annotator.temperature
        + annotator.length_bias * n / (2 * mean_words)
        + (annotator.position_bias if place == 0 else 0.0)
        for place, (u, n) in enumerate(zip(utilities, n_words, strict=True))
    ]


def _seconds(annotator: Annotator, n_words: int, rng: random.Random) -> float:
    """Reading time and a moment to decide, spread by a quarter."""
    return round((60 * n_words / annotator.words_per_minute + 1.5) * math.exp(rng.gauss(0, 0.25)), 1)


def _gumbel(rng: random.Random) -> float:
    return -math.log(rng.expovariate(1.0) or math.ulp(0.0))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _check(prompt: Prompt, completions: Sequence[Completion]) -> None:
    if len(completions) < 2:
        raise ValueError(f"a judgement compares at least two completions; {len(completions)} given")
    for completion in completions:
        if completion.prompt_id != prompt.id:
            raise ValueError(f"completion {completion.id} answers another prompt than {prompt.id}")
