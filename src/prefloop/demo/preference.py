"""The true preference of the embedded world: how good a rewrite is, as a pure function of two texts.

    utility = faithfulness · (0.4 + 0.4 · politeness + 0.2 · brevity)

Faithfulness multiplies because nothing else matters in an answer that says something different. All parts lie
in [0, 1], and each is multiplied by *sense*, which is near 0 for an empty answer, a loop or a heap of words.

* Faithfulness: 0.6 to the power of the number of mistakes. A mistake is a fact of the message (name, item,
  time, amount, the request itself) that is missing, or a fact or request that the message does not contain.
* Politeness: 0.4 for a neutral tone, and 0.2 each for greeting the person by name, asking rather than
  ordering, and thanking; saying it again costs, and each rude word leaves a quarter of the whole.
* Brevity: 1 up to 15 words, which is enough for every message, then falling in a line to 0 at 30.
* Sense: the share of neighbouring words that some rewrite could have put next to each other
  (names, items, times and amounts counting as one word each), and how much of the text is new, not repeated.

The function knows nothing of how an answer came about, takes any two texts and never raises.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from prefloop.demo import grammar, rewrites
from prefloop.demo.grammar import FACT_WORDS, INTENTS, RUDE_WORDS, Facts, Intent
from prefloop.feedback.records import Prompt

MISTAKE = 0.6
"""What is left of faithfulness after each mistake."""
WEIGHTS = {"base": 0.4, "politeness": 0.4, "brevity": 0.2}
NEUTRAL, GREETED, ASKED, THANKED = 0.4, 0.2, 0.2, 0.2
OVERDONE = 0.15
"""Off politeness for each courtesy beyond the first of its kind."""
INSULT = 0.25
"""What is left of politeness after each insult."""
ENOUGH_WORDS, TOO_MANY_WORDS = 15, 30
ODD_PAIRS_FORGIVEN = 0.1
"""Share of unknown neighbours that costs nothing: people phrase things in their own way."""

_GREETINGS = frozenset({"hi", "hello", "dear"})
_KINDS = {word: f"<{slot}>" for slot, known in FACT_WORDS.items() for word in known}
_VERBS = {verb: intent for intent in INTENTS for verb in intent.verbs}
_OTHER_ASKS = ("could you {request}?", "would you please {request}?", "would you {request} please?")
"""Ways of asking that no demonstration uses and that are as good."""
_RUDE = re.compile(rf"\b({'|'.join(sorted(RUDE_WORDS))}|wake up|(?:for )?the last time|are so lazy)\b")


@dataclass(frozen=True)
class Parts:
    """How good an answer is, each in [0, 1]."""

    politeness: float
    brevity: float
    faithfulness: float

    @property
    def utility(self) -> float:
        rest = WEIGHTS["politeness"] * self.politeness + WEIGHTS["brevity"] * self.brevity
        return self.faithfulness * (WEIGHTS["base"] + rest)


def score(prompt_text: str, answer: str) -> Parts:
    """How good ``answer`` is as a rewrite of ``prompt_text``."""
    sensible = sense(answer)
    found = grammar.words(answer)
    return Parts(
        politeness=sensible * politeness(prompt_text, answer),
        brevity=sensible * brevity(len(found)),
        faithfulness=sensible * MISTAKE ** mistakes(prompt_text, answer),
    )


def utility(prompt_text: str, answer: str) -> float:
    return score(prompt_text, answer).utility


# --- The parts -------------------------------------------------------------------------------------


def mistakes(prompt_text: str, answer: str) -> int:
    """Facts and request of the message that the answer lacks, and those that it makes up."""
    asked, found = grammar.words(prompt_text), set(grammar.words(answer))
    count = 0
    for known in FACT_WORDS.values():
        wanted = {word for word in asked if word in known}
        count += len(wanted - found) + len({word for word in found if word in known} - wanted)
    known_numbers = FACT_WORDS["amount"]
    count += len({w for w in found if w.isdigit() and w not in known_numbers} - set(asked))
    intent = _intent_of(asked)
    if intent and not intent.verbs & found:
        count += 1
    others = {_VERBS[word].name for word in found if word in _VERBS and word not in asked}
    return count + len(others - ({intent.name} if intent else set()))


def politeness(prompt_text: str, answer: str) -> float:
    text = " ".join(grammar.words(answer))
    greetings = re.findall(rf"\b(?:{'|'.join(sorted(_GREETINGS))}) (\w+)", text)
    names = {word for word in grammar.words(prompt_text) if word in FACT_WORDS["name"]}
    greeted = bool(greetings) and (greetings[0] in names or not names)
    please = len(re.findall(r"\bplease\b", text))
    could = len(re.findall(r"\b(?:could|can|would) you\b", text))
    thanks = len(re.findall(r"\b(?:thanks|thank you)\b", text))
    value = NEUTRAL + GREETED * greeted + ASKED * bool(please or could) + THANKED * bool(thanks)
    again = sum(max(0, count - 1) for count in (len(greetings), please, could, thanks))
    insults = len(_RUDE.findall(text))
    return max(0.0, value - OVERDONE * again) * INSULT**insults


def brevity(n_words: int) -> float:
    return min(1.0, max(0.0, (TOO_MANY_WORDS - n_words) / (TOO_MANY_WORDS - ENOUGH_WORDS)))


def sense(answer: str) -> float:
    """Does it read like a message at all? 0 for nothing or noise, 1 for what the grammar can write."""
    tokens = _tokens(answer)
    if len([token for token in tokens if token != "."]) < 3:
        return 0.0
    pairs = list(zip(["^", *tokens], [*tokens, "$"], strict=True))
    odd = sum(pair not in _known_pairs() for pair in pairs) / len(pairs)
    fluent = max(0.0, 1 - 2 * max(0.0, odd - ODD_PAIRS_FORGIVEN))
    triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    fresh = len(triples) / max(1, triples.total())
    return fluent * fresh


def _intent_of(asked: list[str]) -> Intent | None:
    """The message's intent by its cue word (a text from elsewhere may have none)."""
    return next((grammar.CUES[word] for word in asked if word in grammar.CUES), None)


def _tokens(text: str) -> list[str]:
    """Words with facts replaced by their kind, ends of sentences as ".", any other sign as itself."""
    tokens = re.findall(r"[^\W_]+(?:'[^\W_]+)?|[.!?]+|[^\s,;:'\"()-]", text.lower())
    return ["." if token[0] in ".!?" else _KINDS.get(token, token) for token in tokens]


@cache
def _known_pairs() -> frozenset[tuple[str, str]]:
    """Neighbours that occur in the rewrites: every combination of parts, with one value for each fact."""
    pairs: set[tuple[str, str]] = set()
    for text in _sample_of_every_wording():
        tokens = _tokens(text)
        pairs.update(zip(["^", *tokens], [*tokens, "$"], strict=True))
    return frozenset(pairs)


def _sample_of_every_wording() -> list[str]:
    """Rewrites in which any two parts that can be neighbours are neighbours once.

    Forgetful and rude ones are among them: their fault is counted elsewhere, and once is enough.
    """
    greetings = [greeting.format(name="Dana") for greeting in (*rewrites.GREETINGS, "{name},", "Hello,", "")]
    greetings += [f"Dana, {insult}" for insult in rewrites.INSULTS]
    before, after = ("", *rewrites.PADDING_BEFORE), ("", *rewrites.PADDING_AFTER)
    asks, closings = (*rewrites.ASKS, *_OTHER_ASKS, "{request}."), ("", *rewrites.CLOSINGS)
    texts = []
    for request in _requests():
        for greeting, pad, ask in product(greetings, before, asks):
            texts.append(rewrites.rewrite(greeting, pad, ask.format(request=request)))
        for ask, pad, closing in product(asks, after, closings):
            texts.append(rewrites.rewrite("Hi Dana,", ask.format(request=request), pad, closing))
    return texts


def _requests() -> Iterator[str]:
    """Each request, whole and without one of its facts, with each kind of time phrase."""
    for intent, time in product(INTENTS, ("Monday", "noon", "today")):
        facts = Facts(intent, "Dana", grammar.ITEMS[intent.items][0], time, "3" if intent.amount else None)
        for request, left_out in product(intent.requests, ("nothing", "item", "time")):
            yield grammar.fill(rewrites.without(request, left_out), facts)


# --- For tests -------------------------------------------------------------------------------------


def ideal_rewrite(prompt: Prompt) -> str:
    """The best that the grammar can write. For tests: training must never see it."""
    facts = grammar.read(prompt.text)
    asked = grammar.fill(facts.intent.requests[0], facts)
    return rewrites.rewrite(f"Hi {facts.name},", f"could you please {asked}?", "Thanks!")
