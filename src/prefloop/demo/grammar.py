"""The embedded world: curt, rude and rambling messages at work.

A message is a *request* (one of 14 intents, with its facts) in one of three *registers*; how it may be rewritten is
in ``rewrites.py``. Everything is made from tables, so that the demo needs no download, the number of messages is
known, and the true preference (``preference.py``) can be computed instead of asked for.

Two properties the tests hold this file to:

* Texts can be read back: :func:`read` recovers intent and facts from any message, so nothing needs to be
  carried along in a prompt's metadata.
* The held-out messages put names *and* items into sentence forms in which they never stand in training, while
  each single word and each form does occur there (:func:`heldout_values`). Whoever does well on them has
  learnt to rewrite, not remembered.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from prefloop.feedback.records import Prompt, Split, content_id

# --- The facts -------------------------------------------------------------------------------------

NAMES: tuple[str, ...] = (
    "Anna", "Ben", "Carla", "Dana", "Emil", "Fiona", "Greg", "Hanna", "Ivan", "Julia", "Kofi", "Lena",
    "Marco", "Nadia", "Omar", "Paula", "Quinn", "Rosa", "Sam", "Tara", "Umar", "Vera", "Walter", "Yuki",
)  # fmt: skip
TIMES: tuple[str, ...] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
    "noon", "nine", "five", "today", "tonight", "tomorrow",
)  # fmt: skip
AMOUNTS: tuple[str, ...] = ("3", "4", "6", "7", "8", "9", "10", "12", "15", "20", "25", "30", "40", "60")
ITEMS: dict[str, tuple[str, ...]] = {
    "papers": ("report", "budget", "contract", "proposal", "manual", "agenda", "forecast"),
    "devices": ("printer", "projector", "laptop", "scanner", "heater", "router"),
    "supplies": ("chairs", "pens", "folders", "lamps", "cables", "badges"),
    "events": ("meeting", "workshop", "interview", "training", "party"),
}


@dataclass(frozen=True)
class Intent:
    """One thing that people ask of each other."""

    name: str
    items: str
    """Which row of :data:`ITEMS` it is about."""
    amount: bool
    forms: tuple[str, ...]
    """How a message may put it. Slots: {item}, {n}, and the time as {by} Friday, {at} (on Friday) or {to}."""
    cues: tuple[str, ...]
    """One word for each form, which no other intent's form and no register contains."""
    requests: tuple[str, ...]
    """How a rewrite asks for it."""
    verbs: frozenset[str]
    """A rewrite that has none of these does not make the request."""


def _intent(name: str, items: str, forms: dict[str, str], *requests: str) -> Intent:
    """An intent whose verbs are the first words of its requests; ``forms`` maps cue to form."""
    return Intent(
        name=name,
        items=items,
        amount=all("{n}" in form for form in forms.values()),
        forms=tuple(forms.values()),
        cues=tuple(forms),
        requests=requests,
        verbs=frozenset(request.split()[0] for request in requests),
    )


INTENTS: tuple[Intent, ...] = (
    _intent("send", "papers",
        {"send": "send me the {item} {by}",
         "where": "where is the {item}? I need it {by}",
         "waiting": "I am waiting for the {item}, I want it {by}"},
        "send me the {item} {by}", "share the {item} with me {by}"),
    _intent("check", "papers",
        {"check": "check the {item} {by}",
         "read": "nobody has read the {item}, do it {by}",
         "errors": "the {item} is full of errors, look at it {by}"},
        "check the {item} {by}", "review the {item} {by}"),
    _intent("print", "papers",
        {"print": "print the {item} {n} times {by}",
         "copies": "I want {n} copies of the {item} {by}",
         "paper": "we need the {item} on paper, {n} times, {by}"},
        "print {n} copies of the {item} {by}"),
    _intent("sign", "papers",
        {"sign": "sign the {item} {by}",
         "signature": "the {item} has no signature, do it {by}",
         "missing": "your name is missing on the {item}, I need it {by}"},
        "sign the {item} {by}"),
    _intent("call", "papers",
        {"call": "call me about the {item} {by}",
         "phone": "pick up the phone, it is about the {item}, {by}",
         "talk": "we have to talk about the {item} {by}"},
        "call me about the {item} {by}", "ring me about the {item} {by}"),
    _intent("fix", "devices",
        {"fix": "fix the {item} {by}",
         "broken": "the {item} is broken, do it {by}",
         "work": "the {item} has to work {by}"},
        "fix the {item} {by}", "repair the {item} {by}"),
    _intent("return", "devices",
        {"return": "return the {item} {by}",
         "give": "give me the {item} back {by}",
         "kept": "you kept the {item}, I need it back {by}"},
        "return the {item} {by}"),
    _intent("pay", "devices",
        {"pay": "pay {n} euros for the {item} {by}",
         "bill": "the bill for the {item} is late, {n} euros {by}",
         "owe": "you owe us {n} euros for the {item}, {by}"},
        "pay {n} euros for the {item} {by}"),
    _intent("order", "supplies",
        {"order": "order {n} {item} {by}",
         "buy": "buy {n} {item} {by}",
         "out": "we are out of {item}, get {n} {by}"},
        "order {n} {item} {by}", "buy {n} {item} {by}"),
    _intent("bring", "supplies",
        {"bring": "bring {n} {item} {by}",
         "carry": "carry {n} {item} to us {by}",
         "hall": "we need {n} {item} in the hall {by}"},
        "bring us {n} {item} {by}"),
    _intent("move", "events",
        {"move": "move the {item} to {to}",
         "change": "change the {item} to {to}",
         "suit": "the {item} does not suit me, make it {to}"},
        "move the {item} to {to}", "shift the {item} to {to}"),
    _intent("cancel", "events",
        {"cancel": "cancel the {item} {at}",
         "drop": "drop the {item} {at}",
         "wants": "nobody wants the {item} {at}, no more of it"},
        "cancel the {item} {at}"),
    _intent("book", "events",
        {"book": "book space for {n} people, {item} {at}",
         "room": "find a room for {n} people for the {item} {at}",
         "sit": "{n} people at the {item} {at} and no place to sit"},
        "book the {item} room for {n} people {at}", "reserve the {item} room for {n} people {at}"),
    _intent("join", "events",
        {"join": "join the {item} {at}",
         "come": "come to the {item} {at}",
         "show": "show up at the {item} {at}"},
        "join the {item} {at}", "attend the {item} {at}"),
)  # fmt: skip

# --- The registers ---------------------------------------------------------------------------------
# A message is a beginning, the form and an end; {Core} is the form with a capital.

RUDE_WORDS: frozenset[str] = frozenset(
    {"lazy", "idiot", "useless", "fool", "stupid", "pathetic", "clown", "whining", "moron", "hurry"}
)
REGISTERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "curt": (
        ("{name}, {core}", "{name}! {Core}", "{name}, again: {core}", "Quick, {name}, {core}"),
        (".", ", now.", "!", ". Be quick."),
    ),
    "rude": (
        (
            "{name}, you lazy idiot, {core}",
            "For the last time, {name}, {core}",
            "Wake up, {name}, you fool, {core}",
            "{name}, are you stupid? {Core}",
            "How useless can you be, {name}? {Core}",
            "Hurry, {name}, you moron, {core}",
        ),
        (".", ", you clown.", " and stop whining.", ". This is pathetic.", ", idiot!", ". You are so lazy."),
    ),
    "rambling": (
        (
            "{name}, so I was thinking on the train and well, {core}",
            "Oh {name}, it is one of those days again, anyway, {core}",
            "{name}, as my sister always says, or maybe it was my aunt, {core}",
            "So {name}, first there was the rain and then lunch, and {core}",
            "Well {name}, my cat slept on my keys, what can I say, {core}",
            "{name}, how do I put this, I mean, you know, {core}",
        ),
        (
            ".",
            ", if you see what I mean.",
            ", but then who knows.",
            ", or something like that, I guess.",
            ", and that is life, right.",
            ", not that it matters to my cat.",
        ),
    ),
}


@dataclass(frozen=True)
class Facts:
    """What a message says: the intent and the value of each slot."""

    intent: Intent
    name: str
    item: str
    time: str
    amount: str | None = None


# --- Train and held out ----------------------------------------------------------------------------


INTENT_OF: dict[str, Intent] = {form: intent for intent in INTENTS for form in intent.forms}
"""Each form of a message (a template), and what it asks for."""


@cache
def heldout_values(form: str, slot: str) -> frozenset[str]:
    """The values of ``slot`` ("name" or "item") that go with this form in held-out messages only.

    A quarter of the names and at least one item. The values stand in a hashed order and each form takes the next
    ones around the circle, so that a value held out from one form is in training with another.
    """
    items, values = INTENT_OF[form].items, _all_values(form, slot)
    peers = [other for other, intent in INTENT_OF.items() if slot == "name" or intent.items == items]
    order = sorted(values, key=lambda value: content_id("heldout", slot, value))
    size = max(1, len(values) // 4)
    start = peers.index(form) * size
    return frozenset(order[(start + i) % len(order)] for i in range(size))


@cache
def slot_values(form: str, slot: str, split: Split) -> tuple[str, ...]:
    """The names or items that go with this form in this split."""
    held = heldout_values(form, slot)
    return tuple(value for value in _all_values(form, slot) if (value in held) == (split == "heldout"))


def _all_values(form: str, slot: str) -> tuple[str, ...]:
    return NAMES if slot == "name" else ITEMS[INTENT_OF[form].items]


def count_prompts(split: Split) -> int:
    """How many distinct messages the split has."""
    wordings = sum(len(before) * len(after) for before, after in REGISTERS.values())
    return wordings * sum(
        len(slot_values(form, "name", split))
        * len(slot_values(form, "item", split))
        * len(TIMES)
        * (len(AMOUNTS) if intent.amount else 1)
        for form, intent in INTENT_OF.items()
    )


# --- Writing messages ------------------------------------------------------------------------------


def time_phrases(time: str) -> dict[str, str]:
    """The three ways to say a time: a deadline, a moment, and the bare word after "to"."""
    if time in ("today", "tonight", "tomorrow"):
        return {"by": f"by {time}", "at": time, "to": time}
    at = "on" if time[0].isupper() else "at"
    return {"by": f"by {time}", "at": f"{at} {time}", "to": time}


def fill(template: str, facts: Facts) -> str:
    return template.format(item=facts.item, n=facts.amount, **time_phrases(facts.time))


def message(facts: Facts, form: str, before: str, after: str) -> str:
    core = fill(form, facts)
    return before.format(name=facts.name, core=core, Core=capital(core)) + after


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sample_message(rng: random.Random, split: Split) -> str:
    """One message: intent, form, register, wording and facts each drawn evenly."""
    intent = rng.choice(INTENTS)
    form = rng.choice(intent.forms)
    facts = Facts(
        intent=intent,
        name=rng.choice(slot_values(form, "name", split)),
        item=rng.choice(slot_values(form, "item", split)),
        time=rng.choice(TIMES),
        amount=rng.choice(AMOUNTS) if intent.amount else None,
    )
    before, after = REGISTERS[rng.choice(tuple(REGISTERS))]
    return message(facts, form, rng.choice(before), rng.choice(after))


def sample_prompts(n: int, split: Split, seed: int) -> list[Prompt]:
    """``n`` distinct prompts; the same ones for the same arguments, and a larger ``n`` only appends."""
    most = count_prompts(split) // 2  # beyond that, most draws would be repetitions
    if not 0 <= n <= most:
        raise ValueError(f"n = {n}: the {split} split gives 0 to {most} distinct prompts")
    rng = random.Random(f"prefloop prompts {split} {seed}")
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[sample_message(rng, split)] = None
    return [Prompt.of(text, split=split) for text in texts]


# --- Reading messages ------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


FACT_WORDS: dict[str, dict[str, str]] = {
    slot: {value.lower(): value for value in values}
    for slot, values in (
        ("name", NAMES),
        ("item", tuple(item for items in ITEMS.values() for item in items)),
        ("time", TIMES),
        ("amount", AMOUNTS),
    )
}
"""Slot → lower-case word → value."""
CUES: dict[str, Intent] = {cue: intent for intent in INTENTS for cue in intent.cues}


def read(text: str) -> Facts:
    """Intent and facts of a message of this world; a ValueError for any other text."""
    found = words(text)
    intents = [CUES[word] for word in found if word in CUES]
    values = {slot: [known[w] for w in found if w in known] for slot, known in FACT_WORDS.items()}
    if not (intents and values["name"] and values["item"] and values["time"]):
        raise ValueError(f"not a message of the embedded world (see prefloop.demo.grammar): {text!r}")
    amount = values["amount"][0] if values["amount"] else None
    if intents[0].amount != (amount is not None):
        raise ValueError(f"a message that asks to {intents[0].name} has the wrong facts: {text!r}")
    return Facts(intents[0], values["name"][0], values["item"][0], values["time"][0], amount)
