"""Rewrites of the embedded world's messages: demonstrations, and text to pretrain on.

A good rewrite keeps the request and every fact, is polite, and is brief. The demonstrations are of mixed quality on
purpose (:data:`HABITS`): a model that imitates them shows each virtue often and all of them together seldom, which
leaves the room that learning from preferences fills. Tests hold this file to that.
"""

from __future__ import annotations

import random
import re

from prefloop.demo.grammar import (
    AMOUNTS,
    ITEMS,
    NAMES,
    REGISTERS,
    TIMES,
    Facts,
    fill,
    message,
    read,
    sample_message,
    slot_values,
)
from prefloop.feedback.records import Prompt

# A rewrite is [greeting] [padding] [asking around the request] [padding] [closing].

GREETINGS: tuple[str, ...] = ("Hi {name},", "Hello {name},", "Dear {name},")
ASKS: tuple[str, ...] = ("could you please {request}?", "can you please {request}?", "please {request}.")
CLOSINGS: tuple[str, ...] = ("Thanks!", "Thank you!", "Many thanks!")
PADDING_BEFORE: tuple[str, ...] = (
    "I hope you are doing well and had a lovely weekend.",
    "I know how busy you are with everything these days.",
    "I hope this note finds you and your family well.",
)
PADDING_AFTER: tuple[str, ...] = (
    "It would really help me and the whole team a lot.",
    "I would be very happy about that, as you know.",
    "Sorry for all the trouble and have a lovely day.",
)
INSULTS: tuple[str, ...] = ("you lazy idiot,", "you fool,", "you clown,")

HABITS: dict[str, float] = {
    "good": 0.15,  # polite, brief, faithful
    "padded": 0.31,  # polite and faithful, in far too many words
    "curt": 0.29,  # brief and faithful, with half a courtesy at best
    "rude": 0.08,  # brief and faithful, an insult kept
    "dropped": 0.10,  # a fact forgotten
    "changed": 0.07,  # a fact mistaken
}
"""How often a demonstration is written in which habit."""

SAYINGS = 4
"""How often a document to pretrain on says the same thing."""


def rewrite(*parts: str) -> str:
    """The parts that are there, each sentence with its capital."""
    text = " ".join(part for part in parts if part)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def write_demonstration(prompt: Prompt, rng: random.Random) -> str:
    """A rewrite of mixed quality, in a habit drawn with the odds of :data:`HABITS`."""
    habit = rng.choices(tuple(HABITS), weights=tuple(HABITS.values()))[0]
    return demonstrate(read(prompt.text), habit, rng)


def demonstrate(facts: Facts, habit: str, rng: random.Random) -> str:
    """A rewrite in one habit. Mistakes with facts happen in polite and in curt, brief and padded rewrites."""
    request = rng.choice(facts.intent.requests)
    if habit == "changed":
        facts = _change_a_fact(facts, rng)
    name, asked = facts.name, fill(request, facts)
    if habit == "dropped":
        slot = rng.choice(("name", "item", "time"))
        name, asked = "" if slot == "name" else name, fill(without(request, slot), facts)
    style = rng.choice(("good", "padded", "curt")) if habit in ("dropped", "changed") else habit
    if style == "rude":
        return rewrite(f"{name},", rng.choice(INSULTS), f"{asked}.")
    if style == "curt":
        return _curt(name, asked, rng)
    greeting = rng.choice(GREETINGS).format(name=name) if name else "Hello,"
    ask = rng.choice(ASKS).format(request=asked)
    before, after = "", ""
    if style == "padded":
        where = rng.choices(("before", "after", "both"), weights=(2, 2, 1))[0]
        before = rng.choice(PADDING_BEFORE) if where != "after" else ""
        after = rng.choice(PADDING_AFTER) if where != "before" else ""
    return rewrite(greeting, before, ask, after, rng.choice(CLOSINGS))


def _curt(name: str, asked: str, rng: random.Random) -> str:
    """At most one of greeting, please and thanks."""
    courtesy = rng.choice(("none", "greeting", "please", "thanks"))
    start = f"{name}," if name else ""
    if courtesy == "greeting" and name:
        start = rng.choice(GREETINGS).format(name=name)
    ask = f"please {asked}." if courtesy == "please" else f"{asked}."
    return rewrite(start, ask, rng.choice(CLOSINGS) if courtesy == "thanks" else "")


def _change_a_fact(facts: Facts, rng: random.Random) -> Facts:
    values = {"name": NAMES, "item": ITEMS[facts.intent.items], "time": TIMES}
    if facts.amount:
        values["amount"] = AMOUNTS
    slot = rng.choice(tuple(values))
    old = getattr(facts, slot)
    new = rng.choice([value for value in values[slot] if value != old])
    return Facts(**{**vars(facts), slot: new})


def without(request: str, slot: str) -> str:
    """The request's template with the time or the item left out."""
    if slot == "time":
        return re.sub(r"( to)? \{(by|at|to)\}", "", request)
    if slot == "item" and "{n} {item}" in request:
        return request.replace(" {item}", "")
    return re.sub(r"the \{item\}( room)?", "it", request) if slot == "item" else request


def pretraining_text(n: int, seed: int) -> list[str]:
    """``n`` plain documents from the training messages: words and copying, before any conversation.

    Each is a thread in which one request is said :data:`SAYINGS` times, now as a message, now as a rewrite. Said
    once, names and numbers are noise to a model; said again, they can only be learnt by looking back, which is
    what a rewriter has to do.
    """
    rng = random.Random(f"prefloop text {seed}")
    documents = []
    for _ in range(n):
        facts = read(sample_message(rng, "train"))
        documents.append("\n".join(_say(facts, rng) for _ in range(SAYINGS)))
    return documents


def _say(facts: Facts, rng: random.Random) -> str:
    """One request in any wording of the training split, all facts kept."""
    forms = [form for form in facts.intent.forms if _in_training(facts, form)]
    if rng.random() < 0.5:
        before, after = REGISTERS[rng.choice(tuple(REGISTERS))]
        return message(facts, rng.choice(forms), rng.choice(before), rng.choice(after))
    return demonstrate(facts, rng.choice(("good", "padded", "curt")), rng)


def _in_training(facts: Facts, form: str) -> bool:
    return all(getattr(facts, slot) in slot_values(form, slot, "train") for slot in ("name", "item"))
